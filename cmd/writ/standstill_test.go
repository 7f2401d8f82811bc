package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A control plane stands still until EVENTS has forgotten everything: the fleet,
// and that an agent of it was killed and another suspended. Whoever applies the
// fleet afterwards must not undo the locks thereby.
func TestLocksOutliveAStandstill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := &living{T: t, ctx: ctx}
	stop := l.start(t.TempDir())
	var kill, suspension schemas.Receipt
	l.writ(&kill, "kill", "victim", "--reason", "stolen keys")
	l.writ(&suspension, "suspend", "worker", "--reason", "odd")
	stop()
	last := suspension.Seq
	time.Sleep(6 * time.Second) // longer than EVENTS keeps here
	data := l.data
	stop = l.start(data)
	if first := l.agedOut(last); first <= last {
		t.Fatalf("EVENTS begins with %d and knows the locks; this test shows nothing", first)
	}
	var status statusDoc
	l.writ(&status, "status")
	for _, a := range status.Agents {
		want := map[string]schemas.Lock{"victim": schemas.Killed, "worker": schemas.Suspended}[a.AgentID]
		if want != "" && a.State != want {
			t.Errorf("%s is %s; it was %s", a.AgentID, a.State, want)
		}
	}
	if said := l.refused("issue", "--agent", "victim", "--operation", "op", "--tool", "echo", "--creds", l.TempDir()+"/c"); !strings.Contains(said, "stolen keys") {
		t.Errorf("a capability for a killed agent: %s", said)
	}
	// An operator brings both back, for every part of the control plane: release,
	// which folds the whole log, lets them act again.
	l.writ(nil, "enroll", "victim", "--out", l.TempDir()+"/v")
	l.writ(nil, "resume", "worker", "--reason", "looked into")
	l.works()
	victim := l.connect("issue", "--agent", "victim", "--operation", "op", "--tool", "echo", "--ttl", "1h")
	l.ask(victim, "out.op.call.echo", "alive")
	stop()
}
