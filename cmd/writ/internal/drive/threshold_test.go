package drive

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// An agent that calls a tool which its capability forbids by name has risk 50 by
// that alone. One point more or less in its thresholds decides, on a real control
// plane, whether it goes on, is paused, or is suspended.
func TestOnePointOfAThresholdDecides(t *testing.T) {
	const risk = 50
	ctx := context.Background()
	p, err := plane.Start(ctx, plane.Options{Data: filepath.Join(t.TempDir(), "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	}()
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	d := &driver{Options: Options{URL: p.URL(), Operator: operator, Actor: "test"}}
	for agent, c := range map[string]struct {
		thresholds schemas.Thresholds
		want       schemas.Lock
	}{
		"below":   {schemas.Thresholds{Pause: risk + 1, Suspend: 100}, schemas.Active},
		"paused":  {schemas.Thresholds{Pause: risk, Suspend: 100}, schemas.Paused},
		"almost":  {schemas.Thresholds{Pause: 10, Suspend: risk + 1}, schemas.Paused},
		"reached": {schemas.Thresholds{Pause: 10, Suspend: risk}, schemas.Suspended},
	} {
		d.principals = []schemas.Principal{{ID: agent, Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{Tools: []string{"look"}, TTLSeconds: 600}}}
		if err := d.thresholds(ctx, &c.thresholds); err != nil {
			t.Fatal(err)
		}
		grant, err := bus.Call[schemas.IssueReply](ctx, operator, schemas.CtlIssue, schemas.IssueRequest{AgentID: agent, OperationID: "op",
			Tools: []string{"look"}, ForbiddenTools: []string{"wipe"}, TTLSeconds: 600, Task: "look", Actor: "test"})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := d.connect(agent, grant.Creds)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		// The server itself may refuse it, and tell only beside the request.
		if err := nc.PublishRequest("out.op.call.wipe", "_INBOX_"+agent+".x", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil && !nc.IsClosed() {
			t.Fatal(err)
		}
		var s schemas.AgentStatus
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			r, err := bus.Call[schemas.StatusReply](ctx, operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: agent})
			if err != nil || len(r.Agents) != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			if s = r.Agents[0]; s.Risk > 0 || time.Now().After(deadline) {
				break
			}
		}
		if s.Risk != risk || s.State != c.want {
			t.Errorf("%s: risk %d and %s, want %d and %s", agent, s.Risk, s.State, risk, c.want)
		}
	}
}
