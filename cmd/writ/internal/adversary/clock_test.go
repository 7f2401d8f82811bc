package adversary

import (
	"fmt"
	"testing"
	"time"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/schemas"
)

// A past is a log told to release and to a state side by side, event by event,
// at times of the test's choosing.
type past struct {
	t     *testing.T
	core  *release.Core
	state *schemas.State
	seq   uint64
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (p *past) tell(at time.Time, e schemas.Event) []release.Effect {
	p.t.Helper()
	p.seq++
	e.Seq, e.Time, e.Source, e.ID = p.seq, at, "test", fmt.Sprint(p.seq)
	effects, err := p.core.Step(&e)
	must(p.t, err)
	must(p.t, p.state.Apply(&e))
	return effects
}

func newPast(t *testing.T) *past {
	p := &past{t: t, core: release.NewCore(), state: schemas.NewState()}
	p.tell(noon, schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(schemas.Principal{ID: "alice", Kind: schemas.KindAgent})})
	p.tell(noon, schemas.Event{Kind: schemas.AgentDeclared, Agent: "echo", Data: schemas.Marshal(schemas.Principal{ID: "echo", Kind: schemas.KindService, Serves: []string{"call:echo"}})})
	p.tell(noon, schemas.Event{Kind: schemas.TokenIssued, Agent: "alice", Operation: "op", JTI: "j", Data: schemas.Marshal(schemas.Grant{JTI: "j", Agent: "alice", Operation: "op",
		Scope: []string{"call:echo"}, NotBefore: noon, Expires: noon.Add(5 * time.Minute), TraceID: tracing.ID, Token: "t"})})
	return p
}

var tracing = schemas.Trace{ID: "0af7651916cd43dd8448eb211c80319c", Span: "b7ad6b7169203331"}

func called(at time.Time) schemas.Event {
	return schemas.Event{Kind: schemas.MessageAccepted, Agent: "alice", Operation: "op", Action: schemas.Action{Verb: "call", Resource: "echo"}, To: "echo", JTI: "j",
		Request: fmt.Sprintf("%032x", 7), Reply: "_R_.alice", Expires: at.Add(time.Minute), Digest: schemas.Sum([]byte("x")), Data: []byte("x"), Trace: tracing}
}

func delivered(effects []release.Effect) bool {
	for _, f := range effects {
		if _, ok := f.(release.Deliver); ok {
			return true
		}
	}
	return false
}

// Whoever sets the clock back does not bring a capability back whose end is in
// the log, nor one that was not valid yet.
func TestClockSetBackRevivesNoCapability(t *testing.T) {
	p := newPast(t)
	if !delivered(p.tell(noon.Add(time.Minute), called(noon.Add(time.Minute)))) {
		t.Fatal("the control: a good call is not delivered")
	}
	if delivered(p.tell(noon.Add(-time.Minute), called(noon.Add(-time.Minute)))) {
		t.Error("a call from before the capability is delivered")
	}
	p.tell(noon.Add(5*time.Minute+2*time.Second), schemas.Event{Kind: schemas.OperationEnded, Agent: "alice", Operation: "op", JTI: "j", Reason: "expired"})
	back := noon.Add(time.Minute) // within its life, by the clock
	if delivered(p.tell(back, called(back))) {
		t.Error("an ended capability counts again")
	}
	if _, refusal := p.state.Admit(&schemas.Event{Agent: "alice", Operation: "op", Action: schemas.Action{Verb: "call", Resource: "echo"}, Time: back}); refusal == nil || refusal.Code != schemas.CodeUnauthorized {
		t.Errorf("got %v", refusal)
	}
}

// A kill is a place in the log, and no moment: what stands behind it counts for
// nothing, whatever its time says.
func TestClockSetBackUndoesNoKill(t *testing.T) {
	p := newPast(t)
	p.tell(noon.Add(2*time.Minute), schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "hijacked"})
	for _, at := range []time.Time{noon.Add(time.Minute), noon.Add(3 * time.Minute), noon.Add(-time.Hour)} {
		if delivered(p.tell(at, called(at))) {
			t.Errorf("a call at %s is delivered behind the kill", at)
		}
	}
}

// While the clock stands behind, deadlines wait; they pass once, and not again.
func TestClockSetBackEndsNothingTwice(t *testing.T) {
	p := newPast(t)
	at := noon.Add(time.Minute)
	p.tell(at, called(at))
	for _, now := range []time.Time{noon.Add(-time.Hour), noon, at} {
		if got := p.core.Due(now); len(got) != 0 {
			t.Errorf("at %s: %v", now, got)
		}
	}
	ends := 0
	for _, now := range []time.Time{at.Add(2 * time.Minute), at, at.Add(3 * time.Minute), noon.Add(-time.Hour), at.Add(time.Hour)} {
		for _, f := range p.core.Due(now) {
			if e, ok := f.(release.Emit); ok && e.Event.Kind == schemas.MessageExpired {
				ends++
			}
		}
	}
	if ends != 1 {
		t.Errorf("its deadline passed %d times", ends)
	}
}
