package schemas

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A world folds events and numbers them.
type world struct {
	t   *testing.T
	s   *State
	now time.Time
}

func newWorld(t *testing.T, services ...Principal) *world {
	w := &world{t: t, s: NewState(), now: noon}
	w.declare(Principal{ID: "alice", Kind: KindAgent})
	w.declare(Principal{ID: "bob", Kind: KindAgent})
	for _, p := range services {
		p.Kind = KindService
		w.declare(p)
	}
	return w
}

func (w *world) apply(e Event) uint64 {
	w.t.Helper()
	e.Seq, e.Time = w.s.Seq+1, w.now
	if err := w.s.Apply(&e); err != nil {
		w.t.Fatal(err)
	}
	return e.Seq
}

func (w *world) refuses(name string, e Event) {
	w.t.Helper()
	e.Seq, e.Time = w.s.Seq+1, w.now
	if err := w.s.Apply(&e); err == nil {
		w.t.Errorf("%s was folded", name)
	}
}

func (w *world) declare(p Principal) {
	w.t.Helper()
	w.apply(Event{Kind: AgentDeclared, Agent: p.ID, Data: Marshal(p)})
}

func (w *world) grant(agent, op string, change ...func(*Grant)) {
	w.t.Helper()
	g := Grant{JTI: "j-" + op, Agent: agent, Operation: op, Scope: []string{"call:bash", "call:pandas", "read:data.x", "send:bob", "memory:get"},
		NotBefore: w.now, Expires: w.now.Add(time.Hour), MaxTokens: 100}
	for _, f := range change {
		f(&g)
	}
	w.apply(Event{Kind: TokenIssued, Agent: agent, Operation: g.Operation, JTI: g.JTI, Data: Marshal(g)})
}

func (w *world) admit(agent, op, action string, digest Digest) (Admission, *Refusal) {
	w.t.Helper()
	a, err := ParseAction(action)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.s.Admit(&Event{Agent: agent, Operation: op, Action: a, Digest: digest, Time: w.now})
}

// code is 0 for admitted, else the refusal's.
func (w *world) code(agent, op, action string) int {
	w.t.Helper()
	if _, r := w.admit(agent, op, action, Digest{1}); r != nil {
		return r.Code
	}
	return 0
}

func (w *world) lock(kind Kind) uint64 {
	w.t.Helper()
	return w.apply(Event{Kind: kind, Agent: "alice", Reason: "r-" + string(kind)})
}

var data = Principal{ID: "warehouse", Serves: []string{"read:data"}}

func TestAWeakerLockNeverReplacesAStrongerOne(t *testing.T) {
	kinds := map[Lock]Kind{Paused: AgentPaused, Suspended: AgentSuspended, Killed: AgentKilled}
	order := []Lock{Active, Paused, Suspended, Killed}
	for i, first := range order {
		for j, second := range order[1:] {
			for _, byVerdict := range []bool{false, true} {
				w := newWorld(t)
				var firstSeq uint64
				if first != Active {
					firstSeq = w.lock(kinds[first])
				}
				var seq uint64
				if byVerdict {
					seq = w.apply(Event{Kind: MessageDenied, Agent: "alice", Lock: second, Verdict: []byte("{}"), Risk: 95, Reason: "risk"})
				} else {
					seq = w.lock(kinds[second])
				}
				a, want, wantSeq := w.s.Agents["alice"], order[max(i, j+1)], seq
				if j+1 <= i {
					wantSeq = firstSeq
				}
				if a.Lock != want || a.LockSeq != wantSeq {
					t.Errorf("%s, then %s: %s by %d, want %s by %d", first, second, a.Lock, a.LockSeq, want, wantSeq)
				}
			}
		}
	}
}

func TestOnlyEnrollingAnewEndsAKill(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	w.lock(AgentKilled)
	w.lock(AgentResumed)
	w.apply(Event{Kind: MessageDenied, Agent: "alice", Lock: Active, Verdict: []byte("{}"), Risk: 93})
	w.declare(Principal{ID: "alice", Kind: KindAgent, Lock: Active})
	if a := w.s.Agents["alice"]; a.Lock != Killed || w.code("alice", "op", "read:data.x") != CodeCancelled {
		t.Fatalf("%s", a.Lock)
	}
	w.apply(Event{Kind: AgentEnrolled, Agent: "alice", Ref: w.s.Agents["alice"].LockSeq - 1})
	if a := w.s.Agents["alice"]; a.Lock != Killed || a.Risk != 93 {
		t.Errorf("an enrolment that knew nothing of the kill: %s at risk %d", a.Lock, a.Risk)
	}
	w.apply(Event{Kind: AgentEnrolled, Agent: "alice", Ref: w.s.Agents["alice"].LockSeq})
	if a := w.s.Agents["alice"]; a.Lock != Active || a.Risk != 0 || w.code("alice", "op", "read:data.x") != CodeUnauthorized {
		t.Errorf("%s at risk %d, and the old capability gives %d", a.Lock, a.Risk, w.code("alice", "op", "read:data.x"))
	}
	w.lock(AgentSuspended)
	w.apply(Event{Kind: AgentEnrolled, Agent: "alice"})
	if w.s.Agents["alice"].Lock != Suspended {
		t.Error("enrolling ended a suspension")
	}
}

func TestSuspensionEndsGrantsAndApprovalsForGood(t *testing.T) {
	for _, kind := range []Kind{AgentSuspended, AgentKilled} {
		w := newWorld(t, data)
		w.grant("alice", "op")
		w.lock(AgentPaused)
		held := w.hold("op", "read:data.x", Digest{1})
		late := w.hold("op", "read:data.y", Digest{2})
		w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: held})
		generation := w.s.Agents["alice"].Generation
		w.lock(kind)
		w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: late}) // in a race with the lock
		w.grant("alice", "race")
		if g := w.s.Agents["alice"].Generation; g != generation+1 {
			t.Errorf("%s: generation %d after %d", kind, g, generation)
		}
		w.lock(AgentResumed)
		w.apply(Event{Kind: AgentEnrolled, Agent: "alice", Ref: w.s.Agents["alice"].LockSeq})
		for _, op := range []string{"op", "race"} {
			if code := w.code("alice", op, "read:data.x"); code != CodeUnauthorized {
				t.Errorf("%s: the capability of %s gives %d after it", kind, op, code)
			}
		}
		w.grant("alice", "op", func(g *Grant) { g.Scope = []string{"read:data.x", "read:data.y"} })
		w.lock(AgentPaused)
		for action, digest := range map[string]Digest{"read:data.x": {1}, "read:data.y": {2}} {
			if ad, r := w.admit("alice", "op", action, digest); r != nil || ad.Approval != 0 || !ad.Hold {
				t.Errorf("%s: %s: an approval outlived it: %+v, %v", kind, action, ad, r)
			}
		}
	}
}

func TestPauseKeepsGrantsAndHolds(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	w.lock(AgentPaused)
	if ad, r := w.admit("alice", "op", "read:data.x", Digest{1}); r != nil || !ad.Hold {
		t.Errorf("%+v, %v", ad, r)
	}
	w.lock(AgentResumed)
	if ad, r := w.admit("alice", "op", "read:data.x", Digest{1}); r != nil || ad.Hold {
		t.Errorf("%+v, %v", ad, r)
	}
}

func (w *world) hold(op, action string, digest Digest) uint64 {
	w.t.Helper()
	a, err := ParseAction(action)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.apply(Event{Kind: MessageHeld, Agent: "alice", Operation: op, Action: a, Digest: digest, Data: []byte("body")})
}

// A repetition that was approved and held again rests on the new review alone.
func TestAnActionThatIsHeldAgainNeedsAReviewOfItsOwn(t *testing.T) {
	for name, review := range map[string]Kind{"denied": ReviewDenied, "not reviewed": AgentResumed} {
		w := newWorld(t, data)
		w.grant("alice", "op")
		w.lock(AgentPaused)
		first := w.hold("op", "read:data.x", Digest{1})
		w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: first})
		second := w.apply(Event{Kind: MessageHeld, Agent: "alice", Operation: "op", Action: Action{VerbRead, "data.x"}, Digest: Digest{1}, Ref: first})
		w.apply(Event{Kind: review, Agent: "alice", Ref: second})
		if ad, r := w.admit("alice", "op", "read:data.x", Digest{1}); r != nil || ad.Approval != 0 {
			t.Errorf("%s: %+v, %v", name, ad, r)
		}
	}
}

// Who does not fold accepted actions forgets a spent approval all the same.
func TestASpentApprovalIsForgotten(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	w.lock(AgentPaused)
	approve := func() uint64 {
		held := w.hold("op", "read:data.x", Digest{1})
		w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: held})
		return held
	}
	admitted := func() bool {
		ad, r := w.admit("alice", "op", "read:data.x", Digest{1})
		return r == nil && ad.Approval != 0
	}
	use := &Event{Kind: MessageAccepted, Agent: "alice", Operation: "op", Action: Action{VerbRead, "data.x"}, Digest: Digest{1}, Ref: approve()}
	w.s.Spend(&Event{Agent: "alice", Operation: "op", Action: use.Action, Digest: Digest{2}, Ref: use.Ref})
	if !admitted() {
		t.Error("another action spent it")
	}
	if w.s.Spend(use); admitted() {
		t.Error("it was spent, and stands")
	}
	approve()
	if w.s.Spend(use); !admitted() {
		t.Error("an older use spent a newer approval")
	}
	if w.s.Void("alice", "op", use.Action); admitted() {
		t.Error("release said that it was used, and it stands")
	}
}

func TestAnApprovalAdmitsExactlyOneRepetition(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op", func(g *Grant) { g.Scope = append(g.Scope, "read:data.y") })
	w.grant("alice", "other")
	w.lock(AgentPaused)
	held := w.hold("op", "read:data.x", Digest{1})
	if body := w.s.Agents["alice"].Held[held].Data; body != nil {
		t.Error("the state keeps bodies")
	}
	w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: held})
	if len(w.s.Agents["alice"].Held) != 0 {
		t.Error("an approved action is still listed")
	}
	approved := func(op, action string, digest Digest) bool {
		ad, r := w.admit("alice", op, action, digest)
		if r != nil {
			t.Fatal(r)
		}
		if ad.Approval != 0 && (ad.Approval != held || ad.Hold) {
			t.Errorf("%+v", ad)
		}
		return ad.Approval != 0
	}
	if !approved("op", "read:data.x", Digest{1}) {
		t.Error("the approved action is not admitted")
	}
	if approved("op", "read:data.x", Digest{2}) || approved("op", "read:data.y", Digest{1}) || approved("other", "read:data.x", Digest{1}) {
		t.Error("an approval admits another argument, action or operation")
	}
	// The same bytes under another type are other arguments: a form with another
	// boundary, what was JSON as YAML.
	if ad, r := w.s.Admit(&Event{Agent: "alice", Operation: "op", Action: Action{VerbRead, "data.x"}, Digest: Digest{1}, ContentType: "multipart/form-data; boundary=b", Time: w.now}); r != nil || ad.Approval != 0 || !ad.Hold {
		t.Errorf("an approval admits another content type: %+v, %v", ad, r)
	}
	w.now = noon.Add(ApprovalTTL - 1)
	if !approved("op", "read:data.x", Digest{1}) {
		t.Error("it ended too early")
	}
	w.now = noon.Add(ApprovalTTL)
	if approved("op", "read:data.x", Digest{1}) {
		t.Error("it has no end")
	}
	w.now = noon
	a := Action{VerbRead, "data.x"}
	w.apply(Event{Kind: MessageAccepted, Agent: "alice", Operation: "op", Action: a, Digest: Digest{1}}) // not by the approval
	if !approved("op", "read:data.x", Digest{1}) {
		t.Error("an action that did not need it used it up")
	}
	w.apply(Event{Kind: MessageAccepted, Agent: "alice", Operation: "op", Action: a, Digest: Digest{1}, Ref: held})
	if approved("op", "read:data.x", Digest{1}) {
		t.Error("it can be used twice")
	}
	w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: held})
	if approved("op", "read:data.x", Digest{1}) {
		t.Error("one held action can be approved twice")
	}
}

func TestReviewsOfWhatIsNotHeldChangeNothing(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	w.lock(AgentPaused)
	denied, cancelled, expired := w.hold("op", "read:data.x", Digest{1}), w.hold("op", "read:data.x", Digest{2}), w.hold("op", "read:data.x", Digest{3})
	foreign := w.hold("op", "read:data.x", Digest{4})
	w.apply(Event{Kind: ReviewDenied, Agent: "alice", Ref: denied, Reason: "no"})
	w.apply(Event{Kind: MessageCancelled, Agent: "alice", Ref: cancelled, Code: 410})
	w.apply(Event{Kind: MessageExpired, Agent: "alice", Ref: expired, Code: 504})
	for _, ref := range []uint64{denied, cancelled, expired, 999} {
		w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: ref})
	}
	w.apply(Event{Kind: ReviewApproved, Agent: "bob", Ref: foreign})
	for d := byte(1); d < 5; d++ {
		if ad, r := w.admit("alice", "op", "read:data.x", Digest{d}); r != nil || ad.Approval != 0 {
			t.Errorf("%d: %+v, %v", d, ad, r)
		}
	}
	if w.s.Agents["alice"].Lock != Paused {
		t.Error("a review that judged nothing resumed the agent")
	}
}

func TestApprovingTheActionThatPausedResumes(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	pausing := w.apply(Event{Kind: MessageHeld, Agent: "alice", Operation: "op", Action: Action{VerbSend, "bob"}, Digest: Digest{1}, Lock: Paused, Verdict: []byte("{}"), Risk: 75})
	later := w.hold("op", "send:bob", Digest{2})
	if a := w.s.Agents["alice"]; a.Lock != Paused || a.Risk != 75 {
		t.Fatalf("%s, risk %d", a.Lock, a.Risk)
	}
	w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: later})
	if w.s.Agents["alice"].Lock != Paused {
		t.Error("approving another action resumed the agent")
	}
	w.apply(Event{Kind: ReviewApproved, Agent: "alice", Ref: pausing})
	if a := w.s.Agents["alice"]; a.Lock != Active || a.Risk != 0 {
		t.Errorf("%s, risk %d", a.Lock, a.Risk)
	}
	if ad, r := w.admit("alice", "op", "send:bob", Digest{1}); r != nil || ad.Approval != 0 {
		t.Errorf("a held send is released itself, and its repetition is a new one: %+v, %v", ad, r)
	}
}

func TestRoutingTakesTheLongestPrefix(t *testing.T) {
	w := newWorld(t,
		Principal{ID: "all", Serves: []string{"read:data", "call:pandas"}},
		Principal{ID: "hr", Serves: []string{"read:data.hr"}},
		Principal{ID: "pay", Serves: []string{"read:data.hr.pay"}})
	for action, want := range map[string]string{
		"read:data": "all", "read:data.x": "all", "read:data.x.y": "all", "read:data.hr": "hr", "read:data.hr.x": "hr", "read:data.hr.pay.x": "pay",
		"read:data.hrx": "all", "read:datax": "", "read:hr": "", "write:data.x": "", "call:pandas": "all", "call:pandasx": "",
		"send:bob": "bob", "ask:alice": "alice", "send:hr": "", "ask:nobody": "", "memory:list": "memory", "memory:get.k": "memory",
	} {
		a, err := ParseAction(action)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.s.Route(a); got != want {
			t.Errorf("%s goes to %q, want %q", action, got, want)
		}
	}
	pay := Action{VerbRead, "data.hr.pay"}
	w.declare(Principal{ID: "pay", Kind: KindService})
	if got := w.s.Route(pay); got != "hr" {
		t.Errorf("what pay gave up goes to %q", got)
	}
	w.apply(Event{Kind: AgentRemoved, Agent: "hr"})
	if got := w.s.Route(pay); got != "all" {
		t.Errorf("what the removed one served goes to %q", got)
	}
	w.declare(Principal{ID: "new", Kind: KindService, Serves: []string{"call:pandas"}})
	w.declare(Principal{ID: "all", Kind: KindService, Serves: []string{"read:data"}})
	if got := w.s.Route(Action{VerbCall, "pandas"}); got != "new" {
		t.Errorf("what was handed over goes to %q", got)
	}
}

func TestBudgetsSurviveRefreshAndCannotOverflow(t *testing.T) {
	w := newWorld(t, Principal{ID: "llm", Serves: []string{"call:pandas"}, Meter: "tokens"}, data)
	use := func(op string, n int64) {
		w.apply(Event{Kind: ResponseAccepted, Agent: "llm", To: "alice", Operation: op, Tokens: n})
	}
	w.grant("alice", "op")
	w.grant("alice", "other")
	use("op", 99)
	if code := w.code("alice", "op", "call:pandas"); code != 0 {
		t.Errorf("one token is left, and it gives %d", code)
	}
	use("op", 1)
	w.grant("alice", "op", func(g *Grant) { g.JTI = "j-2" })
	if code := w.code("alice", "op", "call:pandas"); code != CodeBudget {
		t.Errorf("a refreshed capability has a fresh budget: %d", code)
	}
	if code := w.code("alice", "op", "read:data.x"); code != 0 {
		t.Errorf("an unmetered service costs: %d", code)
	}
	if code := w.code("alice", "other", "call:pandas"); code != 0 {
		t.Errorf("another operation pays: %d", code)
	}
	w.grant("alice", "none", func(g *Grant) { g.MaxTokens = 0 })
	if code := w.code("alice", "none", "call:pandas"); code != CodeBudget {
		t.Errorf("no budget gives %d", code)
	}
	use("op", math.MaxInt64)
	use("op", math.MaxInt64)
	if spent := w.s.Agents["alice"].Spent["op"]; spent != math.MaxInt64 {
		t.Errorf("spent %d", spent)
	}
}

// The codes in the order of the checks: who breaks several rules is told the
// first, and is never admitted by a later one.
func TestRefusalsInTheOrderOfTheChecks(t *testing.T) {
	prepare := func() *world {
		w := newWorld(t, Principal{ID: "llm", Serves: []string{"call:pandas", "call:bash"}, Meter: "tokens"})
		w.declare(Principal{ID: "svc", Kind: KindService})
		return w
	}
	grant := func(change func(*Grant)) func(*world) {
		return func(w *world) { w.grant("alice", "op", change) }
	}
	cases := []struct {
		name          string
		world         func(*world)
		agent, action string
		code          int
		text          string
	}{
		{"nobody we know", func(*world) {}, "eve", "call:pandas", CodeUnauthorized, "no agent of this fleet"},
		{"a service", func(w *world) { w.grant("svc", "op") }, "svc", "call:pandas", CodeUnauthorized, "no agent of this fleet"},
		{"killed, without capability", func(w *world) { w.lock(AgentKilled) }, "alice", "call:pandas", CodeCancelled, "was killed: r-agent.killed"},
		{"suspended, without capability", func(w *world) { w.lock(AgentSuspended) }, "alice", "call:pandas", CodeCancelled, "an operator must resume it"},
		{"no capability", func(*world) {}, "alice", "call:pandas", CodeUnauthorized, "alice holds no capability"},
		{"capability of another operation", func(w *world) { w.grant("alice", "op2") }, "alice", "call:pandas", CodeUnauthorized, "alice holds no capability"},
		{"capability of another agent", func(w *world) { w.grant("bob", "op") }, "alice", "call:pandas", CodeUnauthorized, "alice holds no capability"},
		{"revoked", func(w *world) {
			w.grant("alice", "op")
			w.apply(Event{Kind: TokenRevoked, Agent: "alice", JTI: "j-op", Reason: "leak"})
		}, "alice", "read:nothing", CodeUnauthorized, "revoked: leak"},
		{"ended", func(w *world) {
			w.grant("alice", "op")
			w.apply(Event{Kind: OperationEnded, Agent: "alice", Operation: "op", Reason: "done"})
		}, "alice", "read:nothing", CodeUnauthorized, "alice holds no capability"},
		{"expired at this moment, and out of scope", grant(func(g *Grant) { g.Expires = noon }), "alice", "read:nothing", CodeUnauthorized, "expired at 2026-03-01T12:00:00Z"},
		{"not yet valid", grant(func(g *Grant) { g.NotBefore = noon.Add(time.Second + 1) }), "alice", "call:pandas", CodeUnauthorized, "not valid before"},
		{"forbidden beats granted", grant(func(g *Grant) { g.ForbiddenTools = []string{"bash"} }), "alice", "call:bash", CodeForbidden, "is forbidden"},
		{"out of scope, and nobody serves it", grant(func(*Grant) {}), "alice", "read:nothing", CodeForbidden, "not in the scope"},
		{"longer than the scope", grant(func(*Grant) {}), "alice", "read:data.x.y", CodeForbidden, "not in the scope"},
		{"shorter than the scope", grant(func(*Grant) {}), "alice", "read:data", CodeForbidden, "not in the scope"},
		{"another memory operation", grant(func(*Grant) {}), "alice", "memory:put.k", CodeForbidden, "memory:put is not in the scope"},
		{"granted, and nobody serves it", grant(func(*Grant) {}), "alice", "read:data.x", CodeNotFound, "nobody in the fleet serves"},
		{"recipient killed", func(w *world) {
			w.grant("alice", "op")
			w.apply(Event{Kind: AgentKilled, Agent: "bob", Reason: "r"})
		}, "alice", "send:bob", CodeNotFound, "bob is killed"},
		{"service suspended, budget spent", func(w *world) {
			w.grant("alice", "op", func(g *Grant) { g.MaxTokens = 0 })
			w.apply(Event{Kind: AgentSuspended, Agent: "llm", Reason: "r"})
		}, "alice", "call:pandas", CodeNotFound, "llm is suspended"},
		{"budget spent, and paused", func(w *world) {
			w.grant("alice", "op", func(g *Grant) { g.MaxTokens = 0 })
			w.lock(AgentPaused)
		}, "alice", "call:pandas", CodeBudget, "has used 0 of its 0 tokens"},
		{"nbf within a second of clocks", grant(func(g *Grant) { g.NotBefore = noon.Add(time.Second) }), "alice", "call:pandas", 0, ""},
		{"recipient paused", func(w *world) {
			w.grant("alice", "op")
			w.apply(Event{Kind: AgentPaused, Agent: "bob", Reason: "r"})
		}, "alice", "send:bob", 0, ""},
		{"all in order", grant(func(*Grant) {}), "alice", "call:pandas", 0, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := prepare()
			c.world(w)
			ad, r := w.admit(c.agent, "op", c.action, Digest{1})
			switch {
			case c.code == 0 && (r != nil || ad.To == "" || ad.Grant == nil):
				t.Errorf("%+v, %v", ad, r)
			case c.code != 0 && (r == nil || r.Code != c.code || !strings.Contains(r.Text, c.text)):
				t.Errorf("%v, want %d %s", r, c.code, c.text)
			}
		})
	}
}

func TestBrokenLogsHaltTheFold(t *testing.T) {
	w := newWorld(t)
	for name, e := range map[string]Event{
		"grant under another agent's name": {Kind: TokenIssued, Agent: "alice", Operation: "op", JTI: "j", Data: Marshal(Grant{JTI: "j", Agent: "bob", Operation: "op"})},
		"grant for another operation":      {Kind: TokenIssued, Agent: "alice", Operation: "op", JTI: "j", Data: Marshal(Grant{JTI: "j", Agent: "alice", Operation: "op2"})},
		"grant of another jti":             {Kind: TokenIssued, Agent: "alice", Operation: "op", JTI: "j", Data: Marshal(Grant{JTI: "k", Agent: "alice", Operation: "op"})},
		"grant that is no JSON":            {Kind: TokenIssued, Agent: "alice", Data: []byte("x")},
		"grant with an unknown key":        {Kind: TokenIssued, Agent: "alice", Data: []byte(`{"admin":true}`)},
		"declaration under another name":   {Kind: AgentDeclared, Agent: "alice", Data: Marshal(Principal{ID: "eve", Kind: KindAgent})},
		"declaration of an unknown kind":   {Kind: AgentDeclared, Agent: "alice", Data: Marshal(Principal{ID: "alice", Kind: "root"})},
		"declaration with an unknown lock": {Kind: AgentDeclared, Agent: "alice", Data: Marshal(Principal{ID: "alice", Kind: KindAgent, Lock: "frozen"})},
		"policy that is no JSON":           {Kind: PolicyApplied, Agent: Fleet, Data: []byte("{")},
	} {
		w.refuses(name, e)
	}
	for _, seq := range []uint64{0, w.s.Seq, w.s.Seq - 1} {
		if err := w.s.Apply(&Event{Kind: ReleaseMark, Agent: Fleet, Seq: seq}); err == nil {
			t.Errorf("event %d was folded after %d", seq, w.s.Seq)
		}
	}
	if w.s.Agents["eve"] != nil || len(w.s.Agents["alice"].Grants) != 0 {
		t.Error("a refused event left its mark")
	}
}

func TestRepeatedDeclarationsKeepWhatHappened(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	w.lock(AgentSuspended)
	w.declare(Principal{ID: "alice", Kind: KindAgent, Lock: Active, Generation: 9, Owner: "new"})
	a := w.s.Agents["alice"]
	if a.Lock != Suspended || a.Generation != 1 || a.Owner != "new" || len(a.Grants) != 1 {
		t.Errorf("%+v", a)
	}
	fresh := NewState() // one that starts behind the log's oldest part
	if err := fresh.Apply(&Event{Kind: AgentDeclared, Agent: "alice", Seq: 90, Data: Marshal(Principal{ID: "alice", Kind: KindAgent, Lock: Killed, Generation: 3})}); err != nil {
		t.Fatal(err)
	}
	if b := fresh.Agents["alice"]; b.Lock != Killed || b.Generation != 3 {
		t.Errorf("%+v", b)
	}
}

func TestPolicyAndThresholds(t *testing.T) {
	w := newWorld(t)
	w.apply(Event{Kind: PolicyApplied, Agent: Fleet, Data: Marshal(Policy{TrustDomain: "acme.example", Digest: "d"})})
	w.declare(Principal{ID: "carol", Kind: KindAgent, Thresholds: &Thresholds{Pause: 40, Suspend: 60}})
	if w.s.TrustDomain != "acme.example" || w.s.Policy != "d" || w.s.ThresholdsOf("carol").Pause != 40 ||
		w.s.ThresholdsOf("alice") != DefaultThresholds || w.s.ThresholdsOf("nobody") != DefaultThresholds {
		t.Errorf("%+v", w.s)
	}
}

// A join token counts once, for its own agent, for as long as it was made for,
// and not behind a lock.
func TestAJoinTokenCountsOnce(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	invite := func(s *State, agent, id string) {
		t.Helper()
		if err := s.Apply(&Event{Kind: AgentInvited, Agent: agent, JTI: id, Expires: at.Add(time.Hour), Time: at, Seq: s.Seq + 1}); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func() *State {
		s := NewState()
		for n, id := range []string{"alice", "bob"} {
			if err := s.Apply(&Event{Kind: AgentDeclared, Agent: id, Seq: uint64(n + 1), Data: Marshal(Principal{ID: id, Kind: KindAgent})}); err != nil {
				t.Fatal(err)
			}
		}
		invite(s, "alice", "one")
		return s
	}
	s := fresh()
	for _, c := range []struct {
		name, agent, id string
		at              time.Time
		want            bool
	}{
		{"in time", "alice", "one", at.Add(time.Hour - time.Second), true},
		{"at its end", "alice", "one", at.Add(time.Hour), false},
		{"of another agent", "bob", "one", at, false},
		{"another", "alice", "two", at, false},
		{"none", "alice", "", at, false},
	} {
		if got := s.Agents[c.agent].Invited(c.id, c.at); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
	for name, e := range map[string]Event{
		"used":      {Kind: AgentEnrolled, JTI: "one"},
		"suspended": {Kind: AgentSuspended, Reason: "x"},
		"killed":    {Kind: AgentKilled, Reason: "x"},
	} {
		s := fresh()
		invite(s, "alice", "two")
		e.Agent, e.Seq = "alice", s.Seq+1
		if err := s.Apply(&e); err != nil {
			t.Fatal(err)
		}
		if s.Agents["alice"].Invited("one", at) {
			t.Errorf("%s: it still counts", name)
		}
		if got, want := s.Agents["alice"].Invited("two", at), name == "used"; got != want {
			t.Errorf("%s: the other one counts: %t", name, got)
		}
	}
}

// Nobody acts under a lockdown, whatever they hold; and a repetition of its
// event, which the issuer makes before the first ages out, begins no new one.
func TestALockdownRefusesEverybody(t *testing.T) {
	w := newWorld(t, data)
	w.grant("alice", "op")
	if code := w.code("alice", "op", "read:data.x"); code != 0 {
		t.Fatalf("before: %d", code)
	}
	first := w.apply(Event{Kind: PolicyLockdown, Agent: Fleet, Reason: "fire"})
	w.apply(Event{Kind: PolicyLockdown, Agent: Fleet, Reason: "fire"})
	if w.s.LockdownSeq != first || w.code("alice", "op", "read:data.x") != CodeCancelled {
		t.Errorf("lockdown of %d, code %d", w.s.LockdownSeq, w.code("alice", "op", "read:data.x"))
	}
	w.apply(Event{Kind: PolicyLifted, Agent: Fleet, Reason: "drill"})
	if code := w.code("alice", "op", "read:data.x"); code != 0 {
		t.Errorf("lifted: %d", code)
	}
}

// Observe mode: the verdict stands in the log and puts no lock on, a spent
// budget stops nothing; an operator's lock and the grant's own scope do.
func TestObserveModeEnforcesNoVerdict(t *testing.T) {
	for _, mode := range []string{"", ModeObserve} {
		w := newWorld(t, data, Principal{ID: "llm", Serves: []string{"call:bash"}, Meter: MeterTokens})
		w.apply(Event{Kind: AgentDeclared, Agent: "alice", Data: Marshal(Principal{ID: "alice", Kind: KindAgent, Mode: mode})})
		w.grant("alice", "op", func(g *Grant) { g.MaxTokens = 0 })
		if got, want := w.code("alice", "op", "call:bash") == 0, mode == ModeObserve; got != want {
			t.Errorf("mode %q: a spent budget admits: %t", mode, got)
		}
		w.apply(Event{Kind: MessageAccepted, Agent: "alice", Verdict: []byte("{}"), Risk: 93, Lock: Suspended, Reason: "risk 93"})
		if got, want := w.s.Agents["alice"].Lock == Active, mode == ModeObserve; got != want {
			t.Errorf("mode %q: after a verdict that suspends: %s", mode, w.s.Agents["alice"].Lock)
		}
		if w.s.Agents["alice"].Risk != 93 {
			t.Errorf("mode %q: risk %d", mode, w.s.Agents["alice"].Risk)
		}
		if mode == "" {
			continue
		}
		if w.code("alice", "op", "read:other") != CodeForbidden {
			t.Error("observe mode admits what was not granted")
		}
		w.lock(AgentPaused)
		if ad, r := w.admit("alice", "op", "read:data.x", Digest{1}); r != nil || !ad.Hold {
			t.Errorf("an operator's pause in observe mode: %+v, %v", ad, r)
		}
	}
}

// The first of two approvals counts as long as who gave it may give it: neither
// a thief whose operator was locked since, nor who was lowered, nor whoever
// bears a removed operator's name.
func TestAnEndorsementEndsWithTheRightToGiveIt(t *testing.T) {
	operator := func(role Role) Principal { return Principal{ID: "rita", Kind: KindOperator, Role: role} }
	for name, c := range map[string]struct {
		change func(*world)
		want   string
	}{
		"nothing":          {func(*world) {}, "rita"},
		"restated":         {func(w *world) { w.declare(operator(RoleReviewer)) }, "rita"},
		"raised":           {func(w *world) { w.declare(operator(RoleAdmin)) }, "rita"},
		"another locked":   {func(w *world) { w.apply(Event{Kind: AgentKilled, Agent: "bob"}) }, "rita"},
		"lowered":          {func(w *world) { w.declare(operator(RoleViewer)) }, ""},
		"lowered, raised":  {func(w *world) { w.declare(operator(RoleViewer)); w.declare(operator(RoleReviewer)) }, ""},
		"paused":           {func(w *world) { w.apply(Event{Kind: AgentPaused, Agent: "rita"}) }, ""},
		"suspended":        {func(w *world) { w.apply(Event{Kind: AgentSuspended, Agent: "rita"}) }, ""},
		"killed":           {func(w *world) { w.apply(Event{Kind: AgentKilled, Agent: "rita"}) }, ""},
		"removed":          {func(w *world) { w.apply(Event{Kind: AgentRemoved, Agent: "rita"}) }, ""},
		"removed, renewed": {func(w *world) { w.apply(Event{Kind: AgentRemoved, Agent: "rita"}); w.declare(operator(RoleReviewer)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Principal{ID: "pandas", Serves: []string{"call:pandas"}})
			w.declare(operator(RoleReviewer))
			w.grant("alice", "op")
			cause := w.suspect()
			w.apply(Event{Kind: AgentResumed, Agent: "alice"})
			seq := w.hold("op", "call:pandas", Digest{1})
			for _, ref := range []uint64{seq, cause} {
				w.apply(Event{Kind: ReviewEndorsed, Agent: "alice", Ref: ref, Actor: "rita"})
			}
			a := w.s.Agents["alice"]
			before, beforehand := a.Held[seq], a.Causes[cause]
			c.change(w)
			if got := a.Held[seq]; got == nil || got.Actor != c.want {
				t.Errorf("endorsed by %+v, want %q", got, c.want)
			}
			if got := a.Causes[cause]; got == nil || got.Actor != c.want {
				t.Errorf("half vouched for by %+v, want %q", got, c.want)
			}
			if before.Actor != "rita" || beforehand.Actor != "rita" {
				t.Error("an event in the state was changed")
			}
		})
	}
}

// suspect has an action of alice suspend her.
func (w *world) suspect() uint64 {
	w.t.Helper()
	return w.apply(Event{Kind: MessageDenied, Agent: "alice", Operation: "op", Action: Action{Verb: "call", Resource: "pandas"}, To: "pandas",
		Digest: Digest{7}, Lock: Suspended, Code: CodeCancelled, Data: []byte("x")})
}

// What suspended an agent can be vouched for while it is one of the newest, until
// somebody has, or the agent is killed; one that is only observed was not suspended.
func TestWhatSuspendedAnAgentIsKept(t *testing.T) {
	w := newWorld(t)
	var seqs []uint64
	for range MaxCauses + 2 {
		seqs = append(seqs, w.suspect())
		w.apply(Event{Kind: AgentResumed, Agent: "alice"})
	}
	a := w.s.Agents["alice"]
	if got := slices.Sorted(maps.Keys(a.Causes)); !slices.Equal(got, seqs[2:]) || a.Causes[seqs[2]].Data != nil {
		t.Errorf("%v of %v are kept", got, seqs)
	}
	w.suspect()
	if late := w.suspect(); a.Causes[late] != nil {
		t.Error("what came behind the suspension is said to have caused it")
	}
	w.apply(Event{Kind: AgentResumed, Agent: "alice"})
	w.apply(Event{Kind: ReviewVouched, Agent: "alice", Ref: seqs[5]})
	if len(a.Causes) != MaxCauses-1 || a.Causes[seqs[5]] != nil {
		t.Error("it can be vouched for again")
	}
	w.apply(Event{Kind: AgentKilled, Agent: "alice"})
	if len(a.Causes) != 0 {
		t.Error("a killed agent's can be vouched for")
	}
	w.suspect()
	if len(a.Causes) != 0 {
		t.Error("what a killed agent still tried can be vouched for")
	}
	w = newWorld(t)
	w.declare(Principal{ID: "alice", Kind: KindAgent, Mode: ModeObserve})
	if w.suspect(); len(w.s.Agents["alice"].Causes) != 0 {
		t.Error("an observed agent was not suspended")
	}
}

// A declaration carries what was known of a principal's credential when it was
// made. One that was renewed while that was on its way lasts as long as it does.
func TestADeclarationSetsNoCredentialsEndBack(t *testing.T) {
	w := newWorld(t)
	first, renewed := w.now.Add(time.Hour), w.now.Add(24*time.Hour)
	p := Principal{ID: "carol", Kind: KindAgent, Incarnation: "first", Lock: Active, CredentialExpires: first}
	w.declare(p)
	w.apply(Event{Kind: AgentRenewed, Agent: "carol", Expires: renewed})
	w.declare(p)
	if got := w.s.Agents["carol"].CredentialExpires; !got.Equal(renewed) {
		t.Errorf("it ends at %s, and was renewed until %s", got, renewed)
	}
	p.Incarnation = "second" // another's has its own
	w.declare(p)
	if got := w.s.Agents["carol"].CredentialExpires; !got.Equal(first) {
		t.Errorf("the next one's ends at %s", got)
	}
}
