package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

var actions = flag.Int("actions", 2000, "actions in the log that the test of replay recomputes")

// A longLog is a log as harmless agents at work fill it: each action judged by
// the model that knows all before it, accepted, and answered.
type longLog struct {
	t     *testing.T
	model *monitor.Model
	now   time.Time
	seq   uint64
	out   chan<- bus.Entry
}

func (l *longLog) put(e *schemas.Event) {
	l.t.Helper()
	l.seq++
	e.ID, e.Source, e.Time = fmt.Sprintf("%032x", l.seq), "writ/test/1", l.now
	subject, h, data, err := e.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	e.Seq = l.seq
	if err := l.model.Apply(e); err != nil {
		l.t.Fatal(err)
	}
	l.out <- bus.Entry{Seq: l.seq, Subject: subject, Header: h, Data: data}
}

// act judges an action, logs it, and has it answered.
func (l *longLog) act(agent, op, trace string, i int) {
	l.now = l.now.Add(250 * time.Microsecond)
	tool, body := "search", `{"q":"quarter figures"}`
	if i%2 == 1 {
		tool, body = "mail", fmt.Sprintf(`{"to":"team@acme.example","subject":"figures","body":"The quarter went well, see sheet %d.","url":"https://acme.example/q"}`, i%17)
	}
	tr := schemas.Trace{ID: trace, Span: fmt.Sprintf("%016x", l.seq+1)}
	action := schemas.Action{Verb: schemas.VerbCall, Resource: tool}
	e := &schemas.Event{Kind: schemas.MessageAccepted, Agent: agent, Operation: op, Trace: tr, Action: action, To: "tools", JTI: "jti-" + op,
		Request: fmt.Sprintf("%032x", l.seq+1), Reply: "_R_.x", Expires: l.now.Add(2 * time.Minute), Digest: schemas.Sum([]byte(body)), Data: []byte(body)}
	e.Time = l.now
	v := l.model.Assess(e)
	e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
	switch v.Decision {
	case schemas.Pause:
		e.Lock = schemas.Paused
	case schemas.Suspend:
		e.Lock = schemas.Suspended
	}
	l.put(e)
	answer := []byte(`{"text":"Figures of the quarter: 120, 130 and 140, by region","from":"books@acme.example"}`)
	l.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: "tools", To: agent, Operation: op, Trace: tr, Action: action,
		Request: e.Request, Ref: e.Seq, Digest: schemas.Sum(answer), Input: e.Digest, Final: true, Data: answer})
}

func (l *longLog) fill(n int) {
	const agents = 64
	l.put(&schemas.Event{Kind: schemas.PolicyApplied, Agent: schemas.Fleet, Data: schemas.Marshal(schemas.Policy{TrustDomain: "long.example"})})
	l.put(&schemas.Event{Kind: schemas.AgentDeclared, Agent: "tools", Data: schemas.Marshal(schemas.Principal{ID: "tools", Kind: schemas.KindService,
		Serves: []string{"call:mail", "call:search"}, Tools: map[string]schemas.Tool{"search": {Class: "read"}, "mail": {Class: "write"}}})})
	ceiling := schemas.Ceiling{Tools: []string{"mail", "search"}, TTLSeconds: 7200}
	for job := range 8 {
		ceiling.Jobs = append(ceiling.Jobs, fmt.Sprintf("job-%d", job))
	}
	for a := range agents {
		id := fmt.Sprintf("agent-%d", a)
		l.put(&schemas.Event{Kind: schemas.AgentDeclared, Agent: id, Data: schemas.Marshal(schemas.Principal{ID: id, Kind: schemas.KindAgent, Ceiling: &ceiling})})
	}
	for done, run := 0, 0; done < n; run++ {
		l.now = l.now.Add(time.Second)
		agent, op, trace := fmt.Sprintf("agent-%d", run%agents), fmt.Sprintf("op-%d", run), fmt.Sprintf("%032x", run+1)
		l.put(&schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Operation: op, JTI: "jti-" + op, Trace: schemas.Trace{ID: trace, Span: "0000000000000001"},
			Data: schemas.Marshal(schemas.Grant{JTI: "jti-" + op, Agent: agent, Operation: op, Job: fmt.Sprintf("job-%d", run/agents%8),
				Scope: []string{"call:mail", "call:search"}, NotBefore: l.now.Add(-time.Minute), Expires: l.now.Add(time.Hour), TraceID: trace,
				Task: "Find the quarter's figures and mail them to team@acme.example"})})
		for i := range min(10, n-done) {
			l.act(agent, op, trace, i)
			done++
		}
		l.put(&schemas.Event{Kind: schemas.OperationEnded, Agent: agent, Operation: op, Reason: "done"})
		l.put(&schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: l.seq})
	}
}

type nobody struct{}

func (nobody) Durable([]*schemas.Event) error { return nil }

// longLedger makes a data folder whose ledger holds so many actions.
func longLedger(t *testing.T, n int) (data string) {
	t.Helper()
	data = t.TempDir()
	if err := keys.Init(data, "long.example"); err != nil {
		t.Fatal(err)
	}
	o, err := plane.LedgerOptions(data)
	if err != nil {
		t.Fatal(err)
	}
	o.StreamID = 1
	led, err := ledger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	in, done := make(chan bus.Entry, 4096), make(chan error, 1)
	go func() { done <- led.Run(context.Background(), in, nobody{}) }()
	l := &longLog{t: t, model: monitor.New(monitor.Options{}), now: time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC), out: in}
	l.fill(n)
	close(in)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := led.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

// TestReplayOfALongLogReproducesEveryVerdict: go test ./cmd/writ -run
// LongLog -actions 1000000 -v shows the rate.
func TestReplayOfALongLogReproducesEveryVerdict(t *testing.T) {
	data := longLedger(t, *actions)
	var out, errs bytes.Buffer
	start := time.Now()
	if code := run([]string{"replay", "--json", "--data", data}, strings.NewReader(""), &out, &errs); code != exitDone {
		t.Fatalf("exit %d\n%s%s", code, out.String(), errs.String())
	}
	took := time.Since(start)
	var r monitor.ReplayReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.Mismatches != 0 || r.OtherModel != 0 || r.Verdicts != uint64(*actions) || r.Events < 2*uint64(*actions) {
		t.Fatalf("%+v", r)
	}
	t.Logf("%d verdicts in %d events reproduced in %s: %.0f verdicts and %.0f events a second",
		r.Verdicts, r.Events, took, float64(r.Verdicts)/took.Seconds(), float64(r.Events)/took.Seconds())
}
