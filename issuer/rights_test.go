package issuer_test

import (
	"testing"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/schemas"
)

func TestEachTemplateGrantsWhatItSaysAndNothingElse(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	identity := p.enroll("analyst-7")
	service := p.enroll("pandas")
	operation := p.mustClient(p.issue(reportRequest()).Creds)
	empty := p.mustClient(p.issue(schemas.IssueRequest{AgentID: "orchestrator", OperationID: "plan", Actor: "alice"}).Creds)
	type rights struct{ identity, operation, service, empty bool }
	for subject, want := range map[string]rights{
		"out.token.issue":              {true, true, true, true},
		"out.token.refresh":            {true, true, true, true},
		"out._r.0-1":                   {false, true, true, true},
		"out.report.call.pandas":       {false, true, false, false},
		"out.report.read.data.sales":   {false, true, false, false},
		"out.report.send.writer-2":     {false, true, false, false},
		"out.report.memory.get.a.b":    {false, true, false, false},
		"out.report.memory.list":       {false, true, false, false},
		"out.report.memory.put.a":      {false, false, false, false},
		"out.report.memory.list.a":     {false, false, false, false},
		"out.report.read.data":         {false, false, false, false},
		"out.report.read.data.sales.x": {false, false, false, false},
		"out.report.read.data.other":   {false, false, false, false},
		"out.other.call.pandas":        {false, false, false, false},
		"out.plan.call.pandas":         {false, false, false, false},
		"out.report.call.bash":         {false, false, false, false},
		"out.report.call.http":         {false, false, false, false},
		"out.report.call.matplotlib":   {false, false, false, false},
		"out.report.ask.writer-2":      {false, false, false, false},
		"in.call.pandas":               {false, false, false, false},
		"writ.in.analyst-7.call.x":     {false, false, false, false},
		"writ.out.analyst-7.x":         {false, false, false, false},
		"$JS.API.INFO":                 {false, false, false, false},
		"$JS.API.STREAM.DELETE.EVENTS": {false, false, false, false},
		"$SYS.REQ.SERVER.PING":         {false, false, false, false},
		"$SYS.REQ.USER.INFO":           {false, false, false, false},
		"_INBOX.x":                     {false, false, false, false},
		"ev.analyst-7.agent.resumed":   {false, false, false, false},
		"writ.ctl.issuer.lock":         {false, false, false, false},
		"_R_.x":                        {false, false, false, false},
		"anything":                     {false, false, false, false},
	} {
		got := rights{mayPublish(t, identity, subject), mayPublish(t, operation, subject), mayPublish(t, service, subject), mayPublish(t, empty, subject)}
		if got != want {
			t.Errorf("publish %s: got %+v, want %+v", subject, got, want)
		}
	}
	for subject, want := range map[string]rights{
		"in.>":              {false, true, true, true},
		"in.call.pandas":    {false, true, true, true},
		"_INBOX.>":          {true, true, true, true},
		">":                 {false, false, false, false},
		"*.>":               {false, false, false, false},
		"out.>":             {false, false, false, false},
		"writ.in.>":         {false, false, false, false},
		"writ.out.>":        {false, false, false, false},
		"$SYS.>":            {false, false, false, false},
		"$JS.>":             {false, false, false, false},
		"_INBOX_operator.>": {false, false, false, false},
		"_R_.>":             {false, false, false, false},
	} {
		got := rights{maySubscribe(t, identity, subject), maySubscribe(t, operation, subject), maySubscribe(t, service, subject), maySubscribe(t, empty, subject)}
		if got != want {
			t.Errorf("subscribe %s: got %+v, want %+v", subject, got, want)
		}
	}
}
