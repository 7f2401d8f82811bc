package release

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// fixture builds logs: every event gets the next sequence and the next second.
type fixture struct {
	t    *testing.T
	core *Core
	seq  uint64
	now  time.Time
	log  []*schemas.Event
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, core: NewCore(), now: epoch}
	f.declare(schemas.Principal{ID: "alice", Kind: schemas.KindAgent})
	f.declare(schemas.Principal{ID: "bob", Kind: schemas.KindAgent})
	f.declare(schemas.Principal{ID: "eve", Kind: schemas.KindAgent})
	f.declare(schemas.Principal{ID: "shop", Kind: schemas.KindService, Serves: []string{"call:buy"}})
	f.declare(schemas.Principal{ID: "model", Kind: schemas.KindService, Serves: []string{"call:llm"}, Meter: "tokens"})
	f.grant("alice", "j1")
	return f
}

// step puts an event into the log and gives what release does about it.
func (f *fixture) step(e schemas.Event) []Effect {
	f.t.Helper()
	f.seq++
	f.now = f.now.Add(time.Second)
	e.Seq, e.Time, e.Source = f.seq, f.now, "test"
	if e.ID == "" {
		e.ID = fmt.Sprint(f.seq)
	}
	f.log = append(f.log, &e)
	out, err := f.core.Step(&e)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) declare(p schemas.Principal) {
	f.step(schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)})
}

func (f *fixture) grant(agent, jti string) { f.refresh(agent, "", jti) }

func (f *fixture) refresh(agent, was, jti string) {
	f.step(schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Operation: "op", JTI: jti, Data: schemas.Marshal(schemas.Grant{
		JTI: jti, Refreshes: was, Agent: agent, Operation: "op", Scope: []string{"call:buy", "call:llm", "send:bob", "ask:bob"},
		NotBefore: epoch, Expires: epoch.Add(time.Hour), MaxTokens: 100, TraceID: trace.ID, Token: "token-" + jti})})
}

var trace = schemas.Trace{ID: "0af7651916cd43dd8448eb211c80319c", Span: "b7ad6b7169203331"}

// act is what intake appends for an action of alice.
func act(action, to string) schemas.Event {
	a, err := schemas.ParseAction(action)
	if err != nil {
		panic(err)
	}
	body := []byte("body of " + action)
	return schemas.Event{Kind: schemas.MessageAccepted, Agent: "alice", Operation: "op", Action: a, To: to, JTI: "j1",
		Request: fmt.Sprintf("%032x", 7), Reply: "_R_.alice", Expires: epoch.Add(30 * time.Minute),
		Digest: schemas.Sum(body), Data: body, Trace: trace}
}

func answer(from string, ref uint64, body string) schemas.Event {
	return schemas.Event{Kind: schemas.ResponseAccepted, Agent: from, Operation: "op", Action: schemas.Action{Verb: "call", Resource: "buy"},
		To: "alice", Request: fmt.Sprintf("%032x", 7), Ref: ref, Digest: schemas.Sum([]byte(body)), Data: []byte(body), Trace: trace, Final: true}
}

// logged feeds what release wants logged back, as the ledger does.
func (f *fixture) logged(effects []Effect) (events []schemas.Event, then []Effect) {
	f.t.Helper()
	for _, x := range effects {
		if e, ok := x.(Emit); ok {
			events = append(events, *e.Event)
			then = append(then, f.step(*e.Event)...)
		}
	}
	return events, then
}

func only[T Effect](t *testing.T, effects []Effect) T {
	t.Helper()
	var found []T
	for _, e := range effects {
		if x, ok := e.(T); ok {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d effects of type %T, want 1: %+v", len(found), *new(T), effects)
	}
	return found[0]
}

func none[T Effect](t *testing.T, effects []Effect) {
	t.Helper()
	for _, e := range effects {
		if x, ok := e.(T); ok {
			t.Fatalf("unwanted %T: %+v", x, x)
		}
	}
}

func code(t *testing.T, a Answer) string {
	t.Helper()
	if c := a.Header[schemas.HeaderErrorCode]; len(c) == 1 {
		return c[0]
	}
	return ""
}

func TestARequestIsDeliveredAndAnsweredOnce(t *testing.T) {
	f := newFixture(t)
	d := only[Deliver](t, f.step(act("call:buy", "shop")))
	if d.To != "shop" || d.Token != "token-j1" || string(d.Event.Data) != "body of call:buy" {
		t.Fatalf("delivery %+v", d)
	}
	asked := f.seq
	a := only[Answer](t, f.step(answer("shop", asked, "done")))
	if string(a.Body) != "done" || a.Reply != "_R_.alice" || !a.Final {
		t.Fatalf("answer %+v", a)
	}
	if late := f.step(answer("shop", asked, "again")); len(late) != 0 {
		t.Fatalf("the second answer was released: %+v", late)
	}
}

func TestAnAnswerFromAnybodyElseIsNotReleased(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	asked := f.seq
	none[Answer](t, f.step(answer("eve", asked, "forged")))
	wrong := answer("shop", asked, "wrong id")
	wrong.Request = fmt.Sprintf("%032x", 8)
	none[Answer](t, f.step(wrong))
	only[Answer](t, f.step(answer("shop", asked, "true")))
}

func TestNothingBehindAKillIsReleased(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	pending := f.seq
	effects := f.step(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "hijacked"})
	none[Deliver](t, effects)
	ends, then := f.logged(effects)
	if len(ends) != 1 || ends[0].Ref != pending || ends[0].Kind != schemas.MessageCancelled {
		t.Fatalf("pending work was not cancelled: %+v", ends)
	}
	if a := only[Answer](t, then); code(t, a) != "410" {
		t.Fatalf("the caller was told %+v", a)
	}
	if c := only[Cancel](t, then); c.To != "shop" || c.Ref != pending {
		t.Fatalf("the service was told %+v", c)
	}
	// Intake may not know yet: what it lets through behind the kill ends here.
	late := f.step(act("call:buy", "shop"))
	none[Deliver](t, late)
	ends, then = f.logged(late)
	if len(ends) != 1 || ends[0].Code != schemas.CodeCancelled {
		t.Fatalf("%+v", ends)
	}
	none[Deliver](t, then)
	// Neither are answers to it, nor of it.
	none[Answer](t, f.step(answer("shop", pending, "too late")))
}

// Whatever an agent sent a moment before, and whatever intake lets through
// because it does not know yet: nothing of it goes out once the glass is broken.
func TestNothingBehindALockdownIsReleased(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	asked := f.seq
	f.step(act("send:bob", "bob"))
	sent := f.seq
	held := act("send:bob", "bob")
	held.Kind, held.Code, held.Reason = schemas.MessageHeld, 423, "odd"
	f.step(held)
	effects := f.step(schemas.Event{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Reason: "fire"})
	none[Deliver](t, effects)
	ends, then := f.logged(effects)
	var got []uint64
	for _, e := range ends {
		got = append(got, e.Ref)
	}
	if want := []uint64{asked, sent, sent + 1}; !slices.Equal(got, want) {
		t.Fatalf("cancelled %v, want %v", got, want)
	}
	if a := only[Answer](t, then); code(t, a) != "410" || !strings.Contains(string(a.Body), "fire") {
		t.Fatalf("the caller was told %+v", a)
	}
	for _, late := range []schemas.Event{act("call:buy", "shop"), act("send:bob", "bob"), held} {
		effects := f.step(late)
		none[Deliver](t, effects)
		ends, then := f.logged(effects)
		if len(ends) != 1 || ends[0].Code != schemas.CodeCancelled {
			t.Fatalf("%s: %+v", late.Kind, ends)
		}
		none[Deliver](t, then)
	}
	none[Answer](t, f.step(answer("shop", asked, "too late")))
	f.step(schemas.Event{Kind: schemas.PolicyLifted, Agent: schemas.Fleet, Reason: "it was a drill"})
	only[Deliver](t, f.step(act("call:buy", "shop")))
}

func TestAVerdictThatSuspendsCancelsWhatIsPending(t *testing.T) {
	f := newFixture(t)
	f.step(act("send:bob", "bob"))
	first := f.seq
	f.step(act("send:bob", "bob"))
	second := f.seq
	bad := act("call:buy", "shop")
	bad.Kind, bad.Lock, bad.Code, bad.Reason = schemas.MessageDenied, schemas.Suspended, 410, "risk 95"
	bad.Verdict, bad.Risk = []byte(`{}`), 95
	ends, _ := f.logged(f.step(bad))
	got := []uint64{}
	for _, e := range ends {
		got = append(got, e.Ref)
	}
	if !slices.Equal(got, []uint64{first, second}) {
		t.Fatalf("cancelled %v, want %v", got, []uint64{first, second})
	}
}

func TestSendsOfOnePairGoOutOneAtATimeAndInOrder(t *testing.T) {
	f := newFixture(t)
	one := f.step(act("send:bob", "bob"))
	if a := only[Answer](t, one); string(a.Body) != fmt.Sprintf(`{"stream":"EVENTS","seq":%d}`, f.seq) {
		t.Fatalf("acknowledgement %s", a.Body)
	}
	first := only[Deliver](t, one)
	two := f.step(act("send:bob", "bob"))
	none[Deliver](t, two)
	second := f.seq
	ackOf := answer("bob", first.Event.Seq, "")
	ackOf.Action = schemas.Action{Verb: "send", Resource: "bob"}
	next := f.step(ackOf)
	none[Answer](t, next)
	if d := only[Deliver](t, next); d.Event.Seq != second {
		t.Fatalf("delivered %d, want %d", d.Event.Seq, second)
	}
}

func TestAnUnansweredSendIsRedeliveredWithDoublingPauses(t *testing.T) {
	f := newFixture(t)
	only[Deliver](t, f.step(act("send:bob", "bob")))
	sent := f.now
	var pauses []time.Duration
	for at := sent; at.Before(sent.Add(4 * time.Minute)); at = at.Add(100 * time.Millisecond) {
		for _, e := range f.core.Due(at) {
			if d, ok := e.(Deliver); ok && d.Event.Data == nil {
				pauses = append(pauses, at.Sub(sent).Round(time.Second))
			}
		}
	}
	want := []time.Duration{1, 3, 7, 15, 31, 63, 123, 183}
	for i := range want {
		want[i] *= time.Second
	}
	if len(pauses) < 7 || !slices.Equal(pauses[:7], want[:7]) {
		t.Fatalf("redelivered after %v, want %v", pauses, want)
	}
}

// A recipient was away while the sender's operation ended, or another capability
// was issued for it. It must get the capability that admitted the message, as
// refreshed meanwhile: without one, or with one of another line, it refuses the
// message, which then is lost though it was acknowledged.
func TestALateDeliveryBearsTheCapabilityThatAdmittedIt(t *testing.T) {
	ended := schemas.Event{Kind: schemas.OperationEnded, Agent: "alice", Operation: "op", JTI: "j2", Reason: "released"}
	for name, happens := range map[string]func(*fixture){
		"ended":          func(f *fixture) { f.step(ended) },
		"issued anew":    func(f *fixture) { f.grant("alice", "j3") },
		"ended and anew": func(f *fixture) { f.step(ended); f.grant("alice", "j3") },
	} {
		for _, restart := range []bool{false, true} {
			f := newFixture(t)
			if d := only[Deliver](t, f.step(act("send:bob", "bob"))); d.Token != "token-j1" {
				t.Fatalf("%s: delivered with %q", name, d.Token)
			}
			f.refresh("alice", "j1", "j2")
			happens(f)
			if restart {
				f.again()
			}
			tries := 0
			for _, e := range f.core.Due(f.now.Add(time.Minute)) {
				if d, ok := e.(Deliver); ok {
					if tries++; d.Token != "token-j2" {
						t.Errorf("%s, restarted %v: delivered again with %q", name, restart, d.Token)
					}
				}
			}
			if tries != 1 {
				t.Errorf("%s, restarted %v: delivered again %d times", name, restart, tries)
			}
		}
	}
}

func TestASendExpires(t *testing.T) {
	f := newFixture(t)
	f.step(act("send:bob", "bob"))
	ends, then := f.logged(f.core.Due(epoch.Add(31 * time.Minute)))
	if len(ends) != 1 || ends[0].Kind != schemas.MessageExpired || ends[0].Code != 504 {
		t.Fatalf("%+v", ends)
	}
	none[Answer](t, then) // it was acknowledged
	if len(f.core.open) != 0 || len(f.core.pairs) != 0 {
		t.Fatalf("%d actions, %d pairs are left", len(f.core.open), len(f.core.pairs))
	}
}

func TestARequestThatNobodyAnswersGets504(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	_, then := f.logged(f.core.Due(epoch.Add(31 * time.Minute)))
	if a := only[Answer](t, then); code(t, a) != "504" {
		t.Fatalf("%+v", a)
	}
}

func TestAnAbsentServiceEndsARequestAndKeepsASend(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	id := fmt.Sprintf("%032x", 7)
	none[Emit](t, f.core.Absent(f.seq, fmt.Sprintf("%032x", 9), f.now))
	ends, _ := f.logged(f.core.Absent(f.seq, id, f.now))
	if len(ends) != 1 || ends[0].Code != 504 {
		t.Fatalf("%+v", ends)
	}
	f.step(act("send:bob", "bob"))
	if e := f.core.Absent(f.seq, id, f.now); len(e) != 0 {
		t.Fatalf("a send ended for want of a connection: %+v", e)
	}
	if d := only[Deliver](t, f.core.Due(f.now.Add(2*time.Second))); d.Attempt != 2 {
		t.Fatalf("%+v", d)
	}
}

func TestAnIdempotencyKeyIsCarriedOutOnce(t *testing.T) {
	f := newFixture(t)
	e := act("send:bob", "bob")
	e.MsgID = "order-1"
	f.step(e)
	first := f.seq
	again := e
	effects := f.step(again)
	none[Deliver](t, effects)
	_, then := f.logged(effects)
	if a := only[Answer](t, then); string(a.Body) != fmt.Sprintf(`{"stream":"EVENTS","seq":%d,"duplicate":true}`, first) {
		t.Fatalf("%s", a.Body)
	}
	other := e
	other.Data, other.Digest = []byte("x"), schemas.Sum([]byte("x"))
	_, then = f.logged(f.step(other))
	if a := only[Answer](t, then); code(t, a) != "409" {
		t.Fatalf("%+v", a)
	}
}

// pauseWith holds an action and pauses alice with it.
func pauseWith(action, to string) schemas.Event {
	e := act(action, to)
	e.Kind, e.Lock, e.Code, e.Reason = schemas.MessageHeld, schemas.Paused, 423, "risk 75"
	e.Verdict, e.Risk = []byte(`{}`), 75
	return e
}

func TestAnApprovalAdmitsOneRepetitionOfExactlyThatAction(t *testing.T) {
	f := newFixture(t)
	if a := only[Answer](t, f.step(pauseWith("call:buy", "shop"))); code(t, a) != "423" || a.Header[schemas.HeaderSeq][0] != fmt.Sprint(f.seq) {
		t.Fatalf("%+v", a)
	}
	reviewed := f.seq
	more := pauseWith("call:llm", "model")
	f.step(more)
	// Only the second is approved: the agent stays paused for the first.
	second := f.seq
	f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: second})
	repeat := act("call:llm", "model")
	repeat.Ref = second
	changed := repeat
	changed.Data, changed.Digest = []byte("other"), schemas.Sum([]byte("other"))
	none[Deliver](t, f.step(changed))
	only[Deliver](t, f.step(repeat))
	none[Deliver](t, f.step(repeat))
	f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: reviewed})
	only[Deliver](t, f.step(act("call:buy", "shop"))) // its cause approved, alice is active
}

func TestAHeldSendIsAcknowledgedAndReleasedOnApproval(t *testing.T) {
	f := newFixture(t)
	effects := f.step(pauseWith("send:bob", "bob"))
	none[Deliver](t, effects)
	if a := only[Answer](t, effects); code(t, a) != "" {
		t.Fatalf("%+v", a)
	}
	held := f.seq
	d := only[Deliver](t, f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: held}))
	if d.Event.Seq != held {
		t.Fatalf("delivered %d, want %d", d.Event.Seq, held)
	}
	if twice := f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: held}); len(twice) != 0 {
		t.Fatalf("approved twice: %+v", twice)
	}
}

func TestADeniedReviewCancelsWhatWasHeld(t *testing.T) {
	f := newFixture(t)
	f.step(pauseWith("send:bob", "bob"))
	ends, then := f.logged(f.step(schemas.Event{Kind: schemas.ReviewDenied, Agent: "alice", Ref: f.seq, Reason: "no"}))
	if len(ends) != 1 || ends[0].Code != 403 {
		t.Fatalf("%+v", ends)
	}
	none[Deliver](t, then)
}

func TestABudgetIsExactInLogOrder(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:llm", "model"))
	a := answer("model", f.seq, "text")
	a.Action = schemas.Action{Verb: "call", Resource: "llm"}
	a.Tokens = 100
	f.step(a)
	_, then := f.logged(f.step(act("call:llm", "model")))
	if r := only[Answer](t, then); code(t, r) != "402" {
		t.Fatalf("%+v", r)
	}
	only[Deliver](t, f.step(act("call:buy", "shop"))) // a service without a meter costs nothing
}

func TestARevokedCapabilityEndsWhatItAdmitted(t *testing.T) {
	f := newFixture(t)
	f.step(act("call:buy", "shop"))
	ends, _ := f.logged(f.step(schemas.Event{Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j1", Reason: "lost"}))
	if len(ends) != 1 {
		t.Fatalf("%+v", ends)
	}
	none[Deliver](t, f.step(act("call:buy", "shop")))
}

func TestRestartFromTheLogComesToTheSameState(t *testing.T) {
	f := newFixture(t)
	f.step(act("send:bob", "bob"))
	f.step(act("call:buy", "shop"))
	f.step(pauseWith("send:bob", "bob"))
	lost := f.step(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "x"}) // ends never logged: the crash
	again := NewCore()
	for _, e := range f.log {
		if _, err := again.Step(e); err != nil {
			t.Fatal(err)
		}
	}
	unfinished := again.Unfinished()
	if len(lost) != 3 || len(unfinished) != 3 {
		t.Fatalf("%d ends were lost, %d are repeated, want 3 and 3", len(lost), len(unfinished))
	}
	for i := range lost {
		a, b := lost[i].(Emit).Event, unfinished[i].(Emit).Event
		if a.Ref != b.Ref || a.Code != b.Code || a.Kind != b.Kind {
			t.Fatalf("end %d: %+v, want %+v", i, b, a)
		}
	}
}

// Of two messages to bob the second waits for the first. The kill cancels both;
// that the first has ended must not bring up the second.
func TestAKillDeliversNoMessageThatStoodBehindAnother(t *testing.T) {
	f := newFixture(t)
	only[Deliver](t, f.step(act("send:bob", "bob")))
	none[Deliver](t, f.step(act("send:bob", "bob")))
	effects := f.step(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "hijacked"})
	ends, then := f.logged(effects)
	if len(ends) != 2 {
		t.Fatalf("%d ends, want both", len(ends))
	}
	none[Deliver](t, then)
	f.step(schemas.Event{Kind: schemas.AgentEnrolled, Agent: "alice", Ref: f.seq - 2})
	f.grant("alice", "j1")
	only[Deliver](t, f.step(act("send:bob", "bob"))) // the pair is free again
}

// An action of a child is delivered under a metered service's bound, and ends
// with the revocation of its parent.
func TestARevokedParentEndsWhatItsChildHasOpen(t *testing.T) {
	f := newFixture(t)
	f.step(schemas.Event{Kind: schemas.TokenIssued, Agent: "bob", Operation: "part", JTI: "j2", Data: schemas.Marshal(schemas.Grant{
		JTI: "j2", Agent: "bob", Operation: "part", Scope: []string{"call:buy", "call:llm"}, NotBefore: epoch, Expires: epoch.Add(time.Hour), MaxTokens: 60,
		TraceID: trace.ID, Token: "token-j2", Parent: "j1", ParentAgent: "alice", ParentOperation: "op", Act: []string{"alice"}})})
	of := func(action, to string) schemas.Event {
		e := act(action, to)
		e.Agent, e.Operation, e.JTI = "bob", "part", "j2"
		return e
	}
	if d := only[Deliver](t, f.step(of("call:llm", "model"))); d.Reserve != 60 || d.Token != "token-j2" {
		t.Fatalf("%+v", d)
	}
	open := f.seq
	held := of("call:buy", "shop")
	held.Kind, held.Code, held.Reason = schemas.MessageHeld, schemas.CodeHeld, "a reviewer decides"
	f.step(held)
	awaits := f.seq
	own := act("call:buy", "shop")
	only[Deliver](t, f.step(own))
	ends, _ := f.logged(f.step(schemas.Event{Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j1", Reason: "why"}))
	var refs []uint64
	for _, e := range ends {
		refs = append(refs, e.Ref)
	}
	if !slices.Equal(refs, []uint64{open, awaits, awaits + 1}) {
		t.Fatalf("cancelled: %v", refs)
	}
	for _, late := range []schemas.Event{of("call:buy", "shop"), held} {
		effects := f.step(late)
		none[Deliver](t, effects)
		if e := only[Emit](t, effects); e.Event.Code != schemas.CodeUnauthorized {
			t.Fatalf("%+v", e.Event)
		}
	}
}

// again is the core that a restart builds from the log.
func (f *fixture) again() {
	f.t.Helper()
	f.core = NewCore()
	for _, e := range f.log {
		if _, err := f.core.Step(e); err != nil {
			f.t.Fatal(err)
		}
	}
}

// Somebody who can make release restart gains nothing by it: what was held
// still awaits its review, what was approved passes once, what was revoked has
// ended.
func TestReviewsAndRevocationsSurviveARestart(t *testing.T) {
	f := newFixture(t)
	f.step(pauseWith("call:buy", "shop"))
	reviewed := f.seq
	f.again()
	none[Deliver](t, f.step(act("call:buy", "shop")))
	f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: reviewed})
	f.step(schemas.Event{Kind: schemas.AgentPaused, Agent: "alice", Reason: "why"})
	f.again()
	repeat := act("call:buy", "shop")
	repeat.Ref = reviewed
	only[Deliver](t, f.step(repeat))
	f.again()
	none[Deliver](t, f.step(repeat))
	f.step(schemas.Event{Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j1", Reason: "why"})
	f.step(schemas.Event{Kind: schemas.AgentResumed, Agent: "alice", Reason: "why"})
	f.again()
	none[Deliver](t, f.step(act("call:buy", "shop")))
}
