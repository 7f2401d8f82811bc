package intake

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// reborn is an intake whose fold knows an agent that was killed, enrolled anew
// and given a capability for the operation that it had before.
func reborn(t *testing.T) *Intake {
	t.Helper()
	i := &Intake{Options: Options{Source: "test", Logger: slog.New(slog.DiscardHandler), Now: time.Now}, state: schemas.NewState(),
		asked: newRequests(nil), folded: bus.NewWatermark()}
	i.lanes = newLanes(i.limits)
	apply := func(e schemas.Event, data any) {
		t.Helper()
		e.Seq, e.Time = i.state.Seq+1, time.Now()
		if data != nil {
			e.Data = schemas.Marshal(data)
		}
		if err := i.state.Apply(&e); err != nil {
			t.Fatal(err)
		}
	}
	grant := func(jti string) {
		apply(schemas.Event{Kind: schemas.TokenIssued, Agent: "alice", Operation: "op", JTI: jti},
			schemas.Grant{JTI: jti, Agent: "alice", Operation: "op", Scope: []string{"call:buy"},
				NotBefore: time.Now().Add(-time.Minute), Expires: time.Now().Add(time.Hour), TraceID: "0af7651916cd43dd8448eb211c80319c"})
	}
	apply(schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice"}, schemas.Principal{ID: "alice", Kind: schemas.KindAgent, Incarnation: "first", Lock: schemas.Active})
	apply(schemas.Event{Kind: schemas.AgentDeclared, Agent: "shop"}, schemas.Principal{ID: "shop", Kind: schemas.KindService, Serves: []string{"call:buy"}})
	grant("j1")
	apply(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "hijacked"}, nil)
	apply(schemas.Event{Kind: schemas.AgentEnrolled, Agent: "alice", Ref: i.state.Seq}, schemas.Enrolment{Incarnation: "second"})
	grant("j2")
	return i
}

func (i *Intake) sent(subject string) *task {
	a := arrival{msg: &nats.Msg{Subject: subject, Reply: "_R_.x", Data: []byte("all of it")}}
	return &task{arrival: a, lane: &lane{account: &account{}}}
}

// A hijacked agent fills what is on its way to intake, and is killed for it.
// What still lies in buffers is read when the agent is enrolled anew and holds a
// capability for the same operation: it is the thief's all the same, and no act
// of the one who bears the name now.
func TestWhatWasSentBeforeAKillIsNoActOfTheNextIncarnation(t *testing.T) {
	i := reborn(t)
	for _, sender := range []string{"alice~first", "alice"} {
		task := i.sent("writ.out." + sender + ".op.call.buy")
		if s := i.prepare(task); s != tooEarly {
			t.Fatalf("from %s: step %d; what intake does not know yet may be on its way here", sender, s)
		}
		if s := i.void(task); s != toLog {
			t.Errorf("from %s: step %d", sender, s)
		}
		e := task.event
		if e.Kind != schemas.MessageDenied || e.Code != schemas.CodeCancelled || !strings.Contains(e.Reason, "former credential") {
			t.Errorf("from %s: %s %d %q", sender, e.Kind, e.Code, e.Reason)
		}
		if e.JTI != "" || e.Trace != (schemas.Trace{}) {
			t.Errorf("from %s: it stands under the capability of the next, %q %+v", sender, e.JTI, e.Trace)
		}
	}
	task := i.sent("writ.out.alice~second.op.call.buy")
	if s := i.prepare(task); s != toJudge || task.event.Kind != schemas.MessageAccepted || task.event.JTI != "j2" || task.event.Agent != "alice" {
		t.Errorf("who bears the name: step %d, %+v", s, task.event)
	}
}

// The same with an answer: the one killed was asked something, and so might be
// the next.
func TestAnAnswerFromBeforeAKillIsNoAnswerOfTheNextIncarnation(t *testing.T) {
	i := reborn(t)
	const request = "0123456789abcdef0123456789abcdef"
	asked := &schemas.Event{Seq: 99, Kind: schemas.MessageAccepted, Agent: "bob", To: "alice", Operation: "op",
		Action: schemas.Action{Verb: schemas.VerbAsk, Resource: "alice"}, Request: request}
	i.asked.remember([]*schemas.Event{asked})
	task := i.sent("writ.out.alice~first._r." + schemas.ResponseToken(request, 99))
	if s := i.prepare(task); s != tooEarly {
		t.Fatalf("step %d", s)
	}
	if s, e := i.void(task), task.event; s != toLog || e.Kind != schemas.ResponseDenied || e.Code != schemas.CodeCancelled || e.Ref != 0 || e.Data != nil {
		t.Errorf("step %d, %+v", s, e)
	}
	task = i.sent("writ.out.alice~second._r." + schemas.ResponseToken(request, 99))
	if s := i.prepare(task); s != toJudge || task.event.Kind != schemas.ResponseAccepted {
		t.Errorf("who bears the name: step %d, %+v", s, task.event)
	}
}
