package intake

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

// aside is an intake that has folded a log, and asks nobody.
func aside(t *testing.T, events ...*schemas.Event) *Intake {
	t.Helper()
	i := &Intake{Options: Options{Now: func() time.Time { return noon }}, lanes: testLanes(), state: schemas.NewState()}
	grant := schemas.Grant{JTI: "j", Agent: "ann", Operation: "op", Scope: []string{"send:bob", "call:mail"}, NotBefore: noon, Expires: noon.Add(time.Hour)}
	events = append([]*schemas.Event{
		{Kind: schemas.AgentDeclared, Agent: "ann", Data: schemas.Marshal(schemas.Principal{ID: "ann", Kind: schemas.KindAgent})},
		{Kind: schemas.AgentDeclared, Agent: "bob", Data: schemas.Marshal(schemas.Principal{ID: "bob", Kind: schemas.KindAgent})},
		{Kind: schemas.AgentDeclared, Agent: "shop", Data: schemas.Marshal(schemas.Principal{ID: "shop", Kind: schemas.KindService, Serves: []string{"call:mail"}})},
		{Kind: schemas.TokenIssued, Agent: "ann", Operation: "op", JTI: "j", Data: schemas.Marshal(grant)},
	}, events...)
	for n, e := range events {
		e.Seq, e.Time = uint64(n+1), noon
		if err := i.state.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// asks has ann act, and gives her task.
func (i *Intake) asks(t *testing.T, final bool) (*task, step) {
	t.Helper()
	i.lanes.put(&nats.Msg{Subject: "writ.out.ann.op.call.mail", Data: []byte("x")}, noon)
	one := i.lanes.take(1, 1<<20)[0]
	one.event = i.read(one.arrival)
	s := i.decide(&one, final)
	i.lanes.done(&one)
	return &one, s
}

// A paused agent that was let go on a moment ago is not held once more: intake looks
// first whether the log says so already.
func TestAPausedAgentIsHeldOnceNothingElseIsOnItsWay(t *testing.T) {
	i := aside(t, &schemas.Event{Kind: schemas.AgentPaused, Agent: "ann", Reason: "odd"})
	if one, s := i.asks(t, false); s != tooEarly || one.event.Kind != schemas.MessageAccepted {
		t.Errorf("step %d, %s", s, one.event.Kind)
	}
	if one, s := i.asks(t, true); s != toJudge || one.event.Kind != schemas.MessageHeld {
		t.Errorf("at last: step %d, %s", s, one.event.Kind)
	}
}

// The monitor must know of the approval, and of who resumed the agent, before it
// judges what comes behind it: or it would find the approved action as risky as
// before, and hold it again, or suspend who was just let go on.
func TestTheMonitorJudgesBehindWhatLetTheAgentGoOn(t *testing.T) {
	held := &schemas.Event{Kind: schemas.MessageHeld, Agent: "ann", Operation: "op", Action: schemas.Action{Verb: "call", Resource: "mail"},
		Digest: schemas.Sum([]byte("x")), Lock: schemas.Paused}
	for name, last := range map[string]*schemas.Event{
		"approved": {Kind: schemas.ReviewApproved, Agent: "ann", Ref: 5},
		"resumed":  {Kind: schemas.AgentResumed, Agent: "ann"},
	} {
		i := aside(t, held, last)
		one, s := i.asks(t, false)
		if s != toJudge || one.event.Kind != schemas.MessageAccepted || (one.event.Ref == 5) != (name == "approved") {
			t.Errorf("%s: step %d, %+v", name, s, one.event)
		}
		if one.lane.after != last.Seq {
			t.Errorf("%s: it is judged behind event %d, and event %d let it go on", name, one.lane.after, last.Seq)
		}
	}
}
