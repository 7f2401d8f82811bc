package simulate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// A history is a log that is written by hand: each event says by itself what
// was decided, and nothing here asks this package.
type history struct {
	t      *testing.T
	now    time.Time
	events []*schemas.Event
}

const inForceFleet = `
trust_domain: acme.example
agents:
  - id: ann
    ceiling:
      scope: [read:data.sales, read:data.staff, send:bob]
      tools: [pandas, shell, model]
      max_tokens: 1000
      ttl: 1h
      jobs: [report]
  - id: bob
    ceiling:
      scope: [read:data.sales, ask:ann]
      tools: [pandas]
      ttl: 1h
  - id: carl
    ceiling:
      scope: [read:data.sales]
      ttl: 1h
services:
  - id: warehouse
    serves: [read:data]
  - id: lab
    serves: [call:pandas, call:shell]
    tools: {pandas: {class: read, description: "dataframes"}, shell: {class: write, description: "a shell"}}
  - id: gateway
    serves: [call:model]
    tools: {model: {class: read, description: "a language model"}}
    meter: tokens
`

func parsed(t *testing.T, text string) *fleet.File {
	t.Helper()
	f, err := fleet.Parse("fleet.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newHistory(t *testing.T) *history {
	h := &history{t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}
	for _, p := range parsed(t, inForceFleet).Principals {
		h.put(&schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)})
	}
	return h
}

func (h *history) put(e *schemas.Event) uint64 {
	h.now = h.now.Add(time.Second)
	e.Seq, e.Time = uint64(len(h.events)+1), h.now
	e.ID = fmt.Sprintf("id-%d", e.Seq)
	h.events = append(h.events, e)
	return e.Seq
}

func (h *history) log() iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		for _, e := range h.events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (h *history) issue(agent, op string, tokens int64, scope ...string) uint64 {
	g := schemas.Grant{JTI: "jti-" + op, Agent: agent, Operation: op, Scope: scope, MaxTokens: tokens,
		NotBefore: h.now, Expires: h.now.Add(time.Hour)}
	return h.put(&schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Operation: op, JTI: g.JTI, Data: schemas.Marshal(g)})
}

// act logs an action as it was decided. What another model judged keeps its
// risk where a fleet file is simulated.
func (h *history) act(agent, op, scope, to string, kind schemas.Kind, risk int, lock schemas.Lock) uint64 {
	h.t.Helper()
	a, err := schemas.ParseAction(scope)
	if err != nil {
		h.t.Fatal(err)
	}
	body := fmt.Appendf(nil, `{"n":%d}`, len(h.events))
	e := &schemas.Event{Kind: kind, Agent: agent, Operation: op, Action: a, To: to, JTI: "jti-" + op, Digest: schemas.Sum(body), Data: body,
		Risk: risk, Lock: lock, Verdict: schemas.Marshal(schemas.Verdict{Risk: risk, ActionRisk: risk, Model: "by hand", AsOf: uint64(len(h.events))})}
	switch {
	case kind == schemas.MessageDenied && lock == schemas.Suspended:
		e.Code, e.Reason = schemas.CodeCancelled, "suspended"
	case kind == schemas.MessageDenied:
		e.Code, e.Reason = schemas.CodeForbidden, "not in scope"
	}
	return h.put(e)
}

func (h *history) answered(ref uint64, tokens int64) uint64 {
	asked := h.events[ref-1]
	return h.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: asked.To, To: asked.Agent, Operation: asked.Operation, Action: asked.Action,
		Ref: ref, Tokens: tokens, Final: true})
}

func (h *history) lift(kind schemas.Kind, agent string, ref uint64) {
	h.put(&schemas.Event{Kind: kind, Agent: agent, Ref: ref, Reason: "by hand"})
}

func simulated(t *testing.T, h *history, p *Policy, o Options) Report {
	t.Helper()
	r, err := Run(h.log(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func flips(r Report) []string {
	var out []string
	for _, f := range r.List {
		out = append(out, fmt.Sprintf("%d %s → %s", f.Seq, f.Was, f.Would))
	}
	return out
}

const (
	ok     = schemas.MessageAccepted
	held   = schemas.MessageHeld
	denied = schemas.MessageDenied
)

// A stricter policy, and a history of which each line says
// what that policy does to it.
const stricterFleet = `
trust_domain: acme.example
agents:
  - id: ann
    ceiling:
      scope: [read:data.sales, send:bob]
      tools: [pandas, model]
      forbidden_tools: [shell]
      max_tokens: 1000
      ttl: 1h
      jobs: [report]
    thresholds: {pause: 60, suspend: 85}
  - id: bob
    ceiling:
      scope: [ask:ann]
      tools: [pandas]
      ttl: 1h
services:
  - id: warehouse
    serves: [read:data]
  - id: lab
    serves: [call:pandas, call:shell]
    tools: {pandas: {class: read, description: "dataframes"}, shell: {class: write, description: "a shell"}}
  - id: gateway
    serves: [call:model]
    tools: {model: {class: read, description: "a language model"}}
    meter: tokens
`

// oracle writes a history, and the flips under stricterFleet with a budget of
// 250 tokens, each written down where the event is.
func oracle(t *testing.T) (h *history, want []string) {
	h = newHistory(t)
	flip := func(seq uint64, what string) { want = append(want, fmt.Sprintf("%d %s", seq, what)) }
	flip(h.issue("carl", "gone", 0, "read:data.sales"), "issue → refuse") // carl is in the old fleet alone
	flip(h.act("carl", "gone", "read:data.sales", "warehouse", ok, 1, ""), "accept → deny")
	for day := range 20 {
		op := fmt.Sprintf("day-%d", day)
		// ann asks for more than the stricter ceiling has: refused as a whole.
		flip(h.issue("ann", op, 1000, "read:data.sales", "read:data.staff", "call:pandas", "call:shell", "call:model", "send:bob"), "issue → refuse")
		flip(h.issue("bob", "b-"+op, 0, "read:data.sales", "call:pandas"), "issue → refuse")
		h.act("ann", op, "read:data.sales", "warehouse", ok, 12, "")
		h.act("ann", op, "read:data.sales", "warehouse", ok, 59, "")
		flip(h.act("ann", op, "read:data.staff", "warehouse", ok, 3, ""), "accept → deny")
		flip(h.act("ann", op, "call:shell", "lab", ok, 30, ""), "accept → deny")
		h.act("ann", op, "call:pandas", "lab", ok, 8, "")
		flip(h.act("bob", "b-"+op, "read:data.sales", "warehouse", ok, 1, ""), "accept → deny")
		h.act("bob", "b-"+op, "call:shell", "lab", denied, 5, "") // refused then and now
		h.answered(h.act("ann", op, "call:model", "gateway", ok, 5, ""), 200)
		h.answered(h.act("ann", op, "call:model", "gateway", ok, 5, ""), 200)
		flip(h.act("ann", op, "call:model", "gateway", ok, 5, ""), "accept → deny") // 400 of 250 tokens
		// What the log does not hold decided this: no flip, whatever is asked.
		h.put(&schemas.Event{Kind: denied, Agent: "ann", Operation: op, Action: schemas.Action{Verb: "call", Resource: "pandas"},
			JTI: "jti-" + op, Code: schemas.CodeRate, Reason: "over the rate"})
		flip(h.act("ann", op, "send:bob", "bob", ok, 60, ""), "accept → hold, paused")
		paused := h.act("ann", op, "send:bob", "bob", held, 75, schemas.Paused) // paused then and now
		h.act("ann", op, "call:pandas", "lab", held, 20, "")
		h.lift(schemas.ReviewApproved, "ann", paused)
		flip(h.act("ann", op, "call:pandas", "lab", held, 86, schemas.Paused), "hold, paused → deny, suspended")
		h.lift(schemas.AgentResumed, "ann", 0)
		h.act("ann", op, "call:pandas", "lab", denied, 95, schemas.Suspended)
		h.lift(schemas.AgentResumed, "ann", 0)
	}
	return h, want
}

func stricter(t *testing.T) *Policy {
	budget := int64(250)
	return &Policy{Fleet: parsed(t, stricterFleet), Budget: &budget}
}

func TestAStricterPolicyFlipsExactlyWhatTheOracleSays(t *testing.T) {
	h, want := oracle(t)
	actions := 0
	for _, e := range h.events {
		if e.Action.Verb != "" && !isAnswer(e.Kind) {
			actions++
		}
	}
	r := simulated(t, h, stricter(t), Options{})
	if got := flips(r); !slices.Equal(got, want) {
		t.Errorf("flips\n%v\nwant\n%v", got, want)
	}
	if actions < 200 || r.Unexplained != 20 || int(r.Flips) != len(want) || r.Events != uint64(len(h.events)) {
		t.Errorf("%d actions, %d unexplained, %d flips of %d, %d events", actions, r.Unexplained, r.Flips, len(want), r.Events)
	}
	if r.ByAgent["bob"] != 40 || r.ByKind["accept → deny"] != 81 {
		t.Errorf("counts: %v %v", r.ByAgent, r.ByKind)
	}
}

// A span and an agent narrow the list, and change nothing in it.
func TestASpanListsTheSameFlips(t *testing.T) {
	h, _ := oracle(t)
	all := simulated(t, h, stricter(t), Options{})
	from, to := h.events[60].Seq, h.events[140].Seq
	for name, o := range map[string]Options{
		"sequences": {From: from, To: to, Agent: "ann"},
		"times":     {Since: h.events[60].Time, Until: h.events[140].Time, Agent: "ann"},
	} {
		var want []Flip
		for _, f := range all.List {
			if f.Seq >= from && f.Seq <= to && f.Agent == "ann" {
				want = append(want, f)
			}
		}
		if got := simulated(t, h, stricter(t), o).List; len(want) < 10 || !slices.Equal(got, want) {
			t.Errorf("%s: %d flips, want %d", name, len(got), len(want))
		}
	}
}

func TestTheSameQuestionGetsTheSameBytes(t *testing.T) {
	h, _ := oracle(t)
	for _, cascade := range []bool{false, true} {
		var first []byte
		for range 5 {
			r := simulated(t, h, stricter(t), Options{Cascade: cascade})
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = b
			}
			if !bytes.Equal(b, first) {
				t.Fatalf("cascade %v: two reports differ", cascade)
			}
		}
	}
}

// With consequences: who would have been paused is held until the log lifts
// it, what was not delivered was not answered and spent nothing.
func TestCascadeFollowsALockUntilTheLogLiftsIt(t *testing.T) {
	h := newHistory(t)
	h.issue("ann", "op", 1000, "read:data.sales", "call:model", "send:bob")
	h.act("ann", "op", "read:data.sales", "warehouse", ok, 10, "")
	first := h.act("ann", "op", "send:bob", "bob", ok, 65, "")
	second := h.act("ann", "op", "call:model", "gateway", ok, 10, "")
	h.answered(second, 900)
	third := h.act("ann", "op", "call:model", "gateway", ok, 10, "")
	h.answered(third, 200)
	refused := h.issue("ann", "op-2", 0, "read:data.sales")
	last := h.act("ann", "op-2", "read:data.sales", "warehouse", ok, 10, "")
	h.lift(schemas.AgentResumed, "ann", 0)
	// Live, the budget is spent by now; had the calls been held, it would not be.
	spent := h.act("ann", "op", "call:model", "gateway", denied, 10, "")
	h.events[spent-1].Code = schemas.CodeBudget
	h.act("ann", "op", "read:data.sales", "warehouse", ok, 10, "")
	p := &Policy{Thresholds: &schemas.Thresholds{Pause: 60, Suspend: 90}}

	alone := []string{fmt.Sprintf("%d accept → hold, paused", first)}
	if got := flips(simulated(t, h, p, Options{})); !slices.Equal(got, alone) {
		t.Errorf("one at a time: %v, want %v", got, alone)
	}
	followed := []string{
		fmt.Sprintf("%d accept → hold, paused", first), fmt.Sprintf("%d accept → hold", second), fmt.Sprintf("%d accept → hold", third),
		fmt.Sprintf("%d issue → refuse", refused), fmt.Sprintf("%d accept → deny", last), fmt.Sprintf("%d deny → accept", spent)}
	r := simulated(t, h, p, Options{Cascade: true})
	if got := flips(r); !slices.Equal(got, followed) || r.Void != 2 {
		t.Errorf("with what follows: %v, %d void, want %v and 2", got, r.Void, followed)
	}
	// The same from behind the first: history until then is as it was.
	if r := simulated(t, h, p, Options{Cascade: true, From: first + 1}); r.Flips != 0 {
		t.Errorf("from behind it: %v", flips(r))
	}
}

func TestWiderThresholdsLetPassWhatWasHeld(t *testing.T) {
	h := newHistory(t)
	h.issue("ann", "op", 0, "send:bob", "read:data.sales")
	first := h.act("ann", "op", "send:bob", "bob", held, 75, schemas.Paused)
	second := h.act("ann", "op", "read:data.sales", "warehouse", held, 10, "")
	p := &Policy{Thresholds: &schemas.Thresholds{Pause: 80, Suspend: 99}}
	want := []string{fmt.Sprintf("%d hold, paused → accept", first)}
	if got := flips(simulated(t, h, p, Options{})); !slices.Equal(got, want) {
		t.Errorf("one at a time: %v, want %v", got, want)
	}
	want = append(want, fmt.Sprintf("%d hold → accept", second))
	if got := flips(simulated(t, h, p, Options{Cascade: true})); !slices.Equal(got, want) {
		t.Errorf("with what follows: %v, want %v", got, want)
	}
}

// random writes a history as intake would: what it may is asked of the fold,
// risks and what people do are chance.
func random(t *testing.T, seed uint64) *history {
	h := newHistory(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := schemas.NewState()
	for _, e := range h.events {
		must(t, s.Apply(e))
	}
	m := monitor.New(monitor.Options{})
	for _, e := range h.events {
		must(t, m.Apply(e))
	}
	put := func(seq uint64) {
		must(t, s.Apply(h.events[seq-1]))
		must(t, m.Apply(h.events[seq-1]))
	}
	scopes := []string{"read:data.sales", "read:data.staff", "call:pandas", "call:shell", "call:model", "send:bob", "ask:ann"}
	ops := map[string]string{"ann": "", "bob": ""}
	for i := range 300 {
		agent := []string{"ann", "bob"}[rng.IntN(2)]
		switch n := rng.IntN(20); {
		case n == 0:
			for _, seq := range slices.Sorted(mapsKeys(s.Agents[agent].Causes)) {
				h.lift(schemas.ReviewVouched, agent, seq)
				put(uint64(len(h.events)))
			}
			h.lift(schemas.AgentResumed, agent, 0)
			put(uint64(len(h.events)))
		case n == 1 || ops[agent] == "":
			ops[agent] = fmt.Sprintf("op-%d", i)
			if s.Agents[agent].Lock != schemas.Active {
				continue
			}
			if agent == "ann" {
				put(h.issue(agent, ops[agent], 500, "read:data.sales", "call:pandas", "call:model", "send:bob"))
			} else {
				put(h.issue(agent, ops[agent], 0, "read:data.sales", "ask:ann"))
			}
		case n == 2:
			for _, seq := range slices.Sorted(mapsKeys(s.Agents[agent].Held)) {
				h.lift(schemas.ReviewApproved, agent, seq)
				put(uint64(len(h.events)))
				break
			}
		default:
			a, err := schemas.ParseAction(scopes[rng.IntN(len(scopes))])
			must(t, err)
			body := fmt.Appendf(nil, `{"to":"x%d"}`, rng.IntN(9))
			e := &schemas.Event{Kind: ok, Agent: agent, Operation: ops[agent], JTI: "jti-" + ops[agent], Action: a, Digest: schemas.Sum(body), Data: body, Time: h.now.Add(time.Second)}
			ad, r := s.Admit(agent, e.Operation, a, e.Digest, 0, e.Time)
			e.To, e.Ref = ad.To, ad.Approval
			if r != nil {
				e.Kind, e.Code, e.Reason = denied, r.Code, r.Text
			} else if ad.Hold {
				e.Kind = held
			}
			if e.Code != schemas.CodeCancelled {
				v := m.Assess(e)
				e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
				switch v.Decision {
				case schemas.Pause:
					e.Lock = schemas.Paused
					if e.Kind == ok {
						e.Kind = held
					}
				case schemas.Suspend:
					e.Kind, e.Lock, e.Code, e.Reason = denied, schemas.Suspended, schemas.CodeCancelled, "suspended"
				}
			}
			put(h.put(e))
			if e.Kind == ok && a.Request() && a.Verb != schemas.VerbAsk { // an agent that answers may itself be paused
				put(h.answered(e.Seq, int64(rng.IntN(100))))
			}
		}
	}
	return h
}

func mapsKeys[V any](m map[uint64]V) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestThePolicyInForceFlipsNothing(t *testing.T) {
	for seed := range uint64(12) {
		h := random(t, seed)
		w := monitor.Reference
		for name, p := range map[string]*Policy{
			"nothing": {}, "fleet": {Fleet: parsed(t, inForceFleet)},
			"thresholds": {Thresholds: &schemas.Thresholds{Pause: 70, Suspend: 90}},
			"all":        {Fleet: parsed(t, inForceFleet), Weights: &w},
		} {
			for _, cascade := range []bool{false, true} {
				r := simulated(t, h, p, Options{Cascade: cascade})
				if r.Flips != 0 || r.Unexplained != 0 || r.Decisions < 150 {
					t.Errorf("seed %d, %s, cascade %v: %d flips, %d unexplained of %d: %v", seed, name, cascade, r.Flips, r.Unexplained, r.Decisions, flips(r))
				}
			}
		}
	}
}

// Other weights judge anew: with all of them nothing, nobody is paused for
// what it does, and refusals alone count.
func TestWeightsJudgeAnew(t *testing.T) {
	changed := 0
	for seed := range uint64(12) {
		h := random(t, seed)
		w := monitor.Weights{Base: monitor.Reference.Base}
		for i := range w.Of {
			w.Of[i] = monitor.Reference.Of[i] * 3
		}
		r := simulated(t, h, &Policy{Weights: &w, Thresholds: &schemas.Thresholds{Pause: 50, Suspend: 90}}, Options{})
		t.Logf("seed %d: %v", seed, r.ByKind)
		changed += int(r.Flips)
		if r.Unexplained != 0 {
			t.Errorf("seed %d: %d unexplained", seed, r.Unexplained)
		}
	}
	if changed == 0 {
		t.Error("threefold weights and a lower threshold change nothing")
	}
}
