package replay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A recorded log, written by hand as the services would have written it.
type recorded struct {
	t      *testing.T
	now    time.Time
	events []*schemas.Event
}

func (r *recorded) put(e *schemas.Event) uint64 {
	r.now = r.now.Add(time.Second)
	e.Seq, e.Time = uint64(len(r.events)+1), r.now
	r.events = append(r.events, e)
	return e.Seq
}

func (r *recorded) declare(p schemas.Principal) uint64 {
	return r.put(&schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)})
}

func (r *recorded) issue(agent, op string, scope ...string) uint64 {
	g := schemas.Grant{JTI: "jti-" + op, Agent: agent, Operation: op, Scope: scope, ForbiddenTools: []string{"shell"},
		NotBefore: r.now, Expires: r.now.Add(time.Hour)}
	return r.put(&schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Operation: op, JTI: g.JTI, Data: schemas.Marshal(g)})
}

func (r *recorded) act(agent, op, scope, to string, kind schemas.Kind) *schemas.Event {
	r.t.Helper()
	a, err := schemas.ParseAction(scope)
	if err != nil {
		r.t.Fatal(err)
	}
	body := fmt.Appendf(nil, "%d", len(r.events))
	e := &schemas.Event{Kind: kind, Agent: agent, Operation: op, Action: a, To: to, JTI: "jti-" + op,
		Request: fmt.Sprintf("%032x", len(r.events)), Digest: schemas.Sum(body), Data: body, Expires: r.now.Add(2 * time.Minute)}
	r.put(e)
	return e
}

func (r *recorded) end(kind schemas.Kind, of *schemas.Event, code int) uint64 {
	return r.put(&schemas.Event{Kind: kind, Agent: of.Agent, Ref: of.Seq, Code: code, Reason: "in other words",
		Operation: of.Operation, Action: of.Action, To: of.To})
}

func (r *recorded) review(kind schemas.Kind, of *schemas.Event, actor string) uint64 {
	return r.put(&schemas.Event{Kind: kind, Agent: of.Agent, Ref: of.Seq, Operation: of.Operation, Action: of.Action, Digest: of.Digest, Actor: actor, Reason: "read"})
}

func verdict(risk int, decision string) []byte {
	return schemas.Marshal(schemas.Verdict{Risk: risk, Decision: decision})
}

const (
	accepted  = schemas.MessageAccepted
	held      = schemas.MessageHeld
	denied    = schemas.MessageDenied
	cancelled = schemas.MessageCancelled
	expired   = schemas.MessageExpired
)

var ann = schemas.Principal{ID: "ann", Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{
	Scope: []string{"read:data", "send:bob"}, ForbiddenTools: []string{"shell"}, TTLSeconds: 3600}}

// sound is a log in which all is as it must be. Its events have names, for the
// attacks below.
func sound(t *testing.T) (*recorded, map[string]uint64) {
	r := &recorded{t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}
	at := map[string]uint64{}
	r.declare(ann)
	r.declare(schemas.Principal{ID: "bob", Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{}})
	r.declare(schemas.Principal{ID: "warehouse", Kind: schemas.KindService, Serves: []string{"read:data"}})
	at["issued"] = r.issue("ann", "op", "read:data", "send:bob")
	asked := r.act("ann", "op", "read:data", "warehouse", accepted)
	asked.Verdict, asked.Risk = verdict(5, schemas.Pass), 5
	at["accepted"] = asked.Seq
	r.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: "warehouse", To: "ann", Operation: "op", Action: asked.Action,
		Ref: asked.Seq, Request: asked.Request, Final: true})
	out := r.act("ann", "op", "send:nobody", "", denied)
	out.Code, out.To = schemas.CodeForbidden, ""
	at["denied"] = out.Seq
	shed := r.act("ann", "op", "send:bob", "", denied)
	shed.Code = schemas.CodeRate
	late := r.act("ann", "op", "read:data", "warehouse", accepted)
	r.now = late.Expires
	at["expired"] = r.end(expired, late, schemas.CodeNoAnswer)
	risky := r.act("ann", "op", "send:bob", "bob", held)
	risky.Verdict, risky.Risk, risky.Lock = verdict(80, schemas.Pause), 80, schemas.Paused
	at["paused"] = risky.Seq
	waits := r.act("ann", "op", "send:bob", "bob", held)
	at["held"] = waits.Seq
	at["reviewed"] = r.review(schemas.ReviewDenied, waits, "vera")
	at["cancelled"] = r.end(cancelled, waits, schemas.CodeForbidden)
	again := ann
	again.Lock = schemas.Paused
	at["declared"] = r.declare(again)
	r.put(&schemas.Event{Kind: schemas.AgentResumed, Agent: "ann", Reason: "fine"})
	pending := r.act("ann", "op", "send:bob", "bob", accepted)
	at["killed"] = r.put(&schemas.Event{Kind: schemas.AgentKilled, Agent: "ann", Reason: "hijacked"})
	// Intake had not heard of the kill yet.
	behind := r.act("ann", "op", "read:data", "warehouse", accepted)
	at["behind"] = behind.Seq
	first := r.end(cancelled, risky, schemas.CodeCancelled)
	at["ended"] = first
	r.end(cancelled, pending, schemas.CodeCancelled)
	at["stopped"] = r.end(cancelled, behind, schemas.CodeCancelled)
	r.end(cancelled, risky, schemas.CodeCancelled) // once more, after a crash
	gone := r.act("ann", "op", "read:data", "", denied)
	gone.Code = schemas.CodeCancelled
	at["mark"] = r.put(&schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: uint64(len(r.events))})
	return r, at
}

func (r *recorded) check(t *testing.T, only func(*schemas.Event) bool) Report {
	t.Helper()
	c := NewCheck(only)
	for _, e := range r.events {
		if err := c.Step(e); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := c.Report()
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestASoundLogHasNoMismatch(t *testing.T) {
	r, _ := sound(t)
	got := r.check(t, nil)
	want := Report{Decisions: 6, Ends: 6, Locks: 2, Unchecked: 1}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := r.check(t, func(e *schemas.Event) bool { return e.Agent == "bob" }); got != (Report{}) {
		t.Errorf("of bob: %+v", got)
	}
}

// Without its end, what the log ends before is open; what a mark covers is
// missing.
func TestAnEndThatIsMissingIsNamed(t *testing.T) {
	r, at := sound(t)
	r.events = r.events[:at["ended"]-1]
	if got := r.check(t, nil); got.Mismatches != 0 || got.Open != 3 {
		t.Errorf("cut before the ends: %+v", got)
	}
	r.put(&schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: at["killed"]})
	if got := r.check(t, nil); got.Mismatches != 2 || got.First != at["killed"] || got.Open != 1 {
		t.Errorf("marked without the ends: %+v", got)
	}
}

// Somebody who could write the log, its hashes and its verdicts anew, and
// changed one decision.
func TestEachChangedDecisionIsNamed(t *testing.T) {
	for name, attack := range map[string]struct {
		at     string // where it is found
		what   string
		change func(r *recorded, at map[string]uint64)
	}{
		"an action that its verdict stops is let through": {"paused", "pause", func(r *recorded, at map[string]uint64) {
			r.events[at["paused"]-1].Kind = accepted
		}},
		"the lock of a verdict is dropped": {"paused", "puts the lock", func(r *recorded, at map[string]uint64) {
			r.events[at["paused"]-1].Lock = ""
		}},
		"a lock without a verdict": {"held", "without a verdict", func(r *recorded, at map[string]uint64) {
			r.events[at["held"]-1].Lock = schemas.Paused
		}},
		"a suspension that only held": {"paused", "suspend", func(r *recorded, at map[string]uint64) {
			e := r.events[at["paused"]-1]
			e.Verdict, e.Lock = verdict(95, schemas.Suspend), schemas.Suspended
		}},
		"held without a pause": {"held", "nothing had paused", func(r *recorded, at map[string]uint64) {
			e := r.events[at["paused"]-1]
			e.Lock, e.Verdict = "", verdict(10, schemas.Pass)
			e.Kind = accepted
			// What follows from the pause is gone as well.
			for _, name := range []string{"declared"} {
				r.events[at[name]-1].Kind = schemas.ReleaseMark
			}
		}},
		"a review of what was not held": {"reviewed", "not held", func(r *recorded, at map[string]uint64) {
			r.events[at["reviewed"]-1].Ref = at["accepted"]
		}},
		"a denial for a reason that was not": {"denied", "does not deny it so", func(r *recorded, at map[string]uint64) {
			r.events[at["denied"]-1].Code = schemas.CodeBudget
		}},
		"a denial of what was granted": {"denied", "does not deny it so", func(r *recorded, at map[string]uint64) {
			r.events[at["denied"]-1].Action.Resource = "bob"
		}},
		"a capability beyond the ceiling": {"issued", "ceiling", func(r *recorded, at map[string]uint64) {
			e := r.events[at["issued"]-1]
			var g schemas.Grant
			if err := schemas.Unmarshal(e.Data, &g); err != nil {
				r.t.Fatal(err)
			}
			g.Scope = append(g.Scope, "call:shell")
			e.Data = schemas.Marshal(g)
		}},
		"an expiry before its time": {"expired", "before its time", func(r *recorded, at map[string]uint64) {
			e := r.events[at["expired"]-1]
			e.Time = e.Time.Add(-time.Minute)
			of := r.events[e.Ref-1]
			of.Action, of.To = schemas.Action{Verb: "send", Resource: "bob"}, "bob"
			e.Action, e.To = of.Action, of.To
		}},
		"an end of what was answered": {"expired", "nothing before it", func(r *recorded, at map[string]uint64) {
			e := r.events[at["expired"]-1]
			e.Kind, e.Ref, e.Code = cancelled, at["accepted"], schemas.CodeCancelled
		}},
		"an end with another code": {"cancelled", "was decided at", func(r *recorded, at map[string]uint64) {
			r.events[at["cancelled"]-1].Code = schemas.CodeNotFound
		}},
		"an agent declared free that was paused": {"declared", "declared as active", func(r *recorded, at map[string]uint64) {
			again := ann
			again.Lock = schemas.Active
			again.Generation = 4
			r.events[at["declared"]-1].Data = schemas.Marshal(again)
		}},
		"an agent declared with other keys": {"declared", "generation 3", func(r *recorded, at map[string]uint64) {
			again := ann
			again.Lock, again.Generation = schemas.Paused, 3
			r.events[at["declared"]-1].Data = schemas.Marshal(again)
		}},
		"the end of what came behind a kill is left out": {"behind", "not in the log", func(r *recorded, at map[string]uint64) {
			r.events[at["stopped"]-1].Kind, r.events[at["stopped"]-1].Ref = schemas.ReleaseMark, 0
		}},
	} {
		r, at := sound(t)
		attack.change(r, at)
		got := r.check(t, nil)
		if got.Mismatches == 0 || got.First != at[attack.at] || !strings.Contains(got.Reason, attack.what) {
			t.Errorf("%s: %+v, want event %d", name, got, at[attack.at])
		}
	}
}

// Somebody who could write the log anew, and had a held action let through that
// two operators must approve, with one approval or none.
func TestAnApprovalIsHeldAgainstItsEndorsement(t *testing.T) {
	const one, two = "vera", "walt"
	endorsed, approved := schemas.ReviewEndorsed, schemas.ReviewApproved
	type step struct {
		kind  schemas.Kind
		actor string
	}
	for name, c := range map[string]struct {
		needs bool // two operators
		steps []step
		bad   int // which of them is found, from 1 on; 0: none
	}{
		"one operator suffices":                   {false, []step{{approved, one}}, 0},
		"two operators":                           {true, []step{{endorsed, one}, {approved, two}}, 0},
		"the second is the data folder's":         {true, []step{{endorsed, one}, {approved, "root/ada"}}, 0},
		"no endorsement":                          {true, []step{{approved, two}}, 1},
		"the same operator twice":                 {true, []step{{endorsed, one}, {approved, one}}, 2},
		"the data folder's, under two names":      {true, []step{{endorsed, "root/ada"}, {approved, "root/bert"}}, 2},
		"an endorsement that nobody asked for":    {false, []step{{endorsed, one}}, 1},
		"approved twice":                          {false, []step{{approved, one}, {approved, two}}, 2},
		"endorsed twice, and never approved":      {true, []step{{endorsed, one}, {endorsed, two}}, 2},
		"denied by one, though two must approve":  {true, []step{{schemas.ReviewDenied, one}}, 0},
		"denied, and approved behind that":        {false, []step{{schemas.ReviewDenied, one}, {approved, two}}, 2},
		"approved with what the endorsement lost": {true, []step{{endorsed, one}, {schemas.AgentPaused, one}, {approved, two}}, 0},
	} {
		r := &recorded{t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}
		p := ann
		p.TwoPerson = c.needs
		r.declare(p)
		r.declare(schemas.Principal{ID: "bob", Kind: schemas.KindAgent})
		r.issue("ann", "op", "send:bob")
		risky := r.act("ann", "op", "send:bob", "bob", held)
		risky.Verdict, risky.Risk, risky.Lock = verdict(80, schemas.Pause), 80, schemas.Paused
		var seqs []uint64
		for _, s := range c.steps {
			seqs = append(seqs, r.review(s.kind, risky, s.actor))
		}
		got := r.check(t, nil)
		switch {
		case c.bad == 0 && got.Mismatches == 0:
		case c.bad > 0 && got.Mismatches == 1 && got.First == seqs[c.bad-1] && strings.Contains(got.Reason, "approvals"):
		default:
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The same of what suspended an agent: nobody has the monitor learn an action by
// writing into the log that somebody vouched for it.
func TestAVouchIsHeldAgainstWhatItIsOf(t *testing.T) {
	vouched, endorsed := schemas.ReviewVouched, schemas.ReviewEndorsed
	for name, c := range map[string]struct {
		needs  bool // two operators
		steps  []schemas.Kind
		change func(of *schemas.Event) // what it is said to be of
		bad    int
	}{
		"of what suspended it":        {false, []schemas.Kind{vouched}, nil, 0},
		"by two":                      {true, []schemas.Kind{endorsed, vouched}, nil, 0},
		"by one of two":               {true, []schemas.Kind{vouched}, nil, 1},
		"twice":                       {false, []schemas.Kind{vouched, vouched}, nil, 2},
		"of another body":             {false, []schemas.Kind{vouched}, func(of *schemas.Event) { of.Digest = schemas.Sum([]byte("more")) }, 1},
		"of another tool":             {false, []schemas.Kind{vouched}, func(of *schemas.Event) { of.Action.Resource = "eve" }, 1},
		"of what was accepted":        {false, []schemas.Kind{vouched}, func(of *schemas.Event) { of.Seq-- }, 1},
		"as an approval":              {false, []schemas.Kind{schemas.ReviewApproved}, nil, 1},
		"as a denial":                 {false, []schemas.Kind{schemas.ReviewDenied}, nil, 1},
		"behind an endorsement alone": {true, []schemas.Kind{endorsed, endorsed}, nil, 2},
	} {
		r := &recorded{t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}
		p := ann
		p.TwoPerson = c.needs
		r.declare(p)
		r.declare(schemas.Principal{ID: "bob", Kind: schemas.KindAgent})
		r.issue("ann", "op", "send:bob")
		risky := r.act("ann", "op", "send:bob", "bob", denied)
		risky.Verdict, risky.Risk, risky.Lock, risky.Code = verdict(95, schemas.Suspend), 95, schemas.Suspended, schemas.CodeCancelled
		of := *risky
		if c.change != nil {
			c.change(&of)
		}
		var seqs []uint64
		for i, kind := range c.steps {
			seqs = append(seqs, r.review(kind, &of, []string{"vera", "walt"}[i]))
		}
		got := r.check(t, nil)
		switch {
		case c.bad == 0 && got.Mismatches == 0:
		case c.bad > 0 && got.Mismatches == 1 && got.First == seqs[c.bad-1] && strings.Contains(got.Reason, "approvals"):
		default:
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Intake and issuer may be a little behind the log, and no more.
func TestWhatIsFarBehindTheLogIsAMismatch(t *testing.T) {
	for _, lag := range []int{1, window - 1, window + 1} {
		r := &recorded{t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}
		r.declare(ann)
		r.declare(schemas.Principal{ID: "bob", Kind: schemas.KindAgent})
		r.issue("ann", "op", "send:bob")
		for range lag {
			r.events = append(r.events, &schemas.Event{Kind: schemas.AgentViolation, Agent: "bob", Seq: uint64(len(r.events) + 1), Time: r.now})
		}
		e := r.act("ann", "op", "send:bob", "", denied)
		e.Code, e.To = schemas.CodeUnauthorized, ""
		got := r.check(t, nil)
		if far := lag > window; far != (got.Mismatches == 1) {
			t.Errorf("%d events behind: %+v", lag, got)
		}
	}
}
