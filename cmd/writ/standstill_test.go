package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/monitor"
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

// A control plane stands still until EVENTS has forgotten everything, and its
// monitor has lost what it wrote down, as after an upgrade of the model. An agent
// that waited for this is known as before, and what is judged then is what a replay
// makes of the whole log.
func TestTheMonitorsMemoryOutlivesAStandstill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := &living{T: t, ctx: ctx}
	stop := l.start(t.TempDir())
	victim := l.connect("issue", "--agent", "victim", "--operation", "op", "--tool", "echo", "--scope", "send:worker", "--ttl", "1h")
	l.ask(victim, "out.op.send.worker", `{"to":"x@far.example","text":"`+strings.Repeat("a long letter. ", 40<<10)+`"}`) // no answer of the ledger holds so much
	if err := victim.Publish("out.op.call.bank", []byte(`{"to":"DE44500105175407324931"}`)); err != nil {                // which the server refuses
		t.Fatal(err)
	}
	// The letter may be found strange too: what is waited for is of no action.
	var before, after schemas.RiskReply
	for end := time.Now().Add(time.Minute); before.Seq == 0 || before.Risk < 40 || before.Action != ""; time.Sleep(20 * time.Millisecond) {
		if l.writ(&before, "risk", "victim"); time.Now().After(end) {
			t.Fatalf("nothing is known of what it tried: %+v", before)
		}
	}
	stop()
	if err := os.Remove(filepath.Join(l.data, "monitor", "snapshot")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(6 * time.Second) // longer than EVENTS keeps here
	stop = l.start(l.data)
	if first := l.agedOut(before.Seq); first <= before.Seq {
		t.Fatalf("EVENTS begins with %d; this test shows nothing", first)
	}
	l.writ(&after, "risk", "victim")
	if after.Seq != before.Seq || after.Action != before.Action || len(after.History) != len(before.History) {
		t.Errorf("before: %+v\nafter: %+v", before, after)
	}
	l.writ(nil, "enroll", "victim", "--out", l.TempDir()+"/v")
	victim = l.connect("issue", "--agent", "victim", "--operation", "op-2", "--tool", "echo", "--scope", "send:worker", "--ttl", "1h")
	l.ask(victim, "out.op-2.send.worker", `{"text":"here again"}`)
	stop()
	app := &App{globals: globals{Data: l.data}}
	read, end, err := app.record(false)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := monitor.Replay(read.events(ctx, schemas.ReadRequest{From: 1, Limit: pageSize, Data: true, Begin: schemas.MaxJudged + 1}, nil), nil)
	if err := errors.Join(err, end()); err != nil || rep.Mismatches != 0 || rep.Verdicts < 3 {
		t.Errorf("a replay makes otherwise what was judged then: %+v, %v", rep, err)
	}
}
