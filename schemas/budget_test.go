package schemas

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// till is a world with a metered service, from which alice and bob, who has his
// part of it from alice, use tokens.
func till(t *testing.T, change ...func(*Principal)) *world {
	t.Helper()
	w := newWorld(t, Principal{ID: "llm", Serves: []string{"call:pandas"}, Meter: MeterTokens, Reserve: 10})
	w.grant("alice", "op")
	for _, f := range change {
		p := w.s.Agents["alice"].Principal
		f(&p)
		w.declare(p)
	}
	return w
}

// use is an action that reserves, and its sequence.
func (w *world) use(agent, op, jti string, reserve int64) uint64 {
	w.t.Helper()
	return w.apply(Event{Kind: MessageAccepted, Agent: agent, Operation: op, JTI: jti, To: "llm", Reserve: reserve,
		Action: Action{VerbCall, "pandas"}, Digest: Digest{1}, Request: "r"})
}

func (w *world) answer(agent, op string, ref uint64, tokens int64) {
	w.t.Helper()
	w.apply(Event{Kind: ResponseAccepted, Agent: "llm", To: agent, Operation: op, Ref: ref, Request: "r", Tokens: tokens, Final: true})
}

func (w *world) free(agent, op string, want int64) {
	w.t.Helper()
	if b := w.s.BudgetOf(agent, op, w.now); b.Free != want {
		w.t.Errorf("%s has %d tokens left for %s, want %d (%+v)", agent, b.Free, op, want, b)
	}
}

func TestAnActionReservesAndItsAnswerSettles(t *testing.T) {
	w := till(t)
	stated := w.use("alice", "op", "j-op", 60)
	w.free("alice", "op", 40)
	unstated := w.use("alice", "op", "j-op", 0) // what the service declares
	w.free("alice", "op", 30)
	w.use("alice", "op", "j-op", 31) // refused: nothing of it is booked
	w.free("alice", "op", 30)
	w.answer("alice", "op", stated, 20)
	w.free("alice", "op", 70)
	w.apply(Event{Kind: MessageCancelled, Agent: "alice", Ref: unstated, Code: CodeConflict})
	w.free("alice", "op", 80)
	if spent := w.s.Agents["alice"].Spent["op"]; spent != 20 {
		t.Errorf("spent %d", spent)
	}
	over := w.use("alice", "op", "j-op", 10)
	w.answer("alice", "op", over, 30) // a service that keeps to nothing is charged for
	w.free("alice", "op", 50)
}

// A deadline of a millisecond must not free what the service goes on to use.
func TestAShortDeadlineFreesNothing(t *testing.T) {
	w := till(t)
	seq := w.use("alice", "op", "j-op", 100)
	w.now = w.now.Add(time.Millisecond)
	w.apply(Event{Kind: MessageExpired, Agent: "alice", Ref: seq, Code: CodeNoAnswer})
	w.free("alice", "op", 0)
	w.now = w.now.Add(reserveFloor - time.Second)
	w.apply(Event{Kind: ReleaseMark, Agent: Fleet, Ref: 1})
	w.free("alice", "op", 0)
	w.now = w.now.Add(time.Second)
	w.apply(Event{Kind: ReleaseMark, Agent: Fleet, Ref: 1})
	w.free("alice", "op", 100)
	w.answer("alice", "op", seq, 70) // and what it states then is charged
	w.free("alice", "op", 30)
}

func TestAnAnswerToAnotherRequestSettlesNothing(t *testing.T) {
	w := till(t)
	seq := w.use("alice", "op", "j-op", 100)
	w.apply(Event{Kind: ResponseAccepted, Agent: "llm", To: "alice", Operation: "op", Ref: seq, Request: "other", Tokens: 1, Final: true})
	w.apply(Event{Kind: ResponseAccepted, Agent: "bob", To: "alice", Operation: "op", Ref: seq, Request: "r", Tokens: 1, Final: true})
	w.apply(Event{Kind: ResponseAccepted, Agent: "llm", To: "bob", Operation: "op", Ref: seq, Request: "r", Tokens: 1, Final: true})
	w.free("alice", "op", 0)
}

func TestAChildReservesItsBudgetAndGivesBackWhatItDidNotUse(t *testing.T) {
	w := till(t)
	w.grant("bob", "part", handed("alice", "op", "j-op"), func(g *Grant) { g.MaxTokens = 60 })
	w.free("alice", "op", 40)
	w.free("bob", "part", 60)
	if _, r := w.s.Admit(&Event{Agent: "alice", Operation: "op", Action: Action{VerbCall, "pandas"}, Digest: Digest{1}, Reserve: 41, Time: w.now}); r == nil || r.Code != CodeBudget {
		t.Errorf("the parent uses what its child has reserved: %v", r)
	}
	w.answer("bob", "part", w.use("bob", "part", "j-part", 50), 15)
	w.free("alice", "op", 40)
	open := w.use("bob", "part", "j-part", 5)
	w.apply(Event{Kind: OperationEnded, Agent: "bob", Operation: "part", JTI: "j-part", Reason: "given up"})
	w.free("alice", "op", 80)
	w.answer("bob", "part", open, 1)
	w.free("alice", "op", 84)
}

// More was handed on than there is: both issued while neither was known to
// release. What is used stays within.
func TestChildrenTogetherUseNoMoreThanTheirParentHas(t *testing.T) {
	w := till(t)
	w.declare(Principal{ID: "carol", Kind: KindAgent})
	w.use("alice", "op", "j-op", 50)
	w.grant("bob", "part", handed("alice", "op", "j-op"), func(g *Grant) { g.MaxTokens = 100 })
	w.grant("carol", "part", handed("alice", "op", "j-op"), func(g *Grant) { g.JTI, g.MaxTokens = "j-part2", 100 })
	w.use("bob", "part", "j-part", 30)
	w.free("carol", "part", 20)
	w.free("alice", "op", 0)
}

// A hijacked agent hands a little of its budget to one that is only observed,
// and has it spend all.
func TestAnObservedChildSpendsNoMoreThanItsParentHandedOn(t *testing.T) {
	w := till(t)
	w.declare(Principal{ID: "bob", Kind: KindAgent, Mode: ModeObserve})
	w.grant("bob", "part", handed("alice", "op", "j-op"), func(g *Grant) { g.MaxTokens = 20 })
	w.use("bob", "part", "j-part", 20)
	if _, r := w.s.Admit(&Event{Agent: "bob", Operation: "part", Action: Action{VerbCall, "pandas"}, Digest: Digest{1}, Reserve: 10, Time: w.now}); r == nil || r.Code != CodeBudget {
		t.Errorf("an observed child uses its parent's tokens beyond what it was handed: %v", r)
	}
	w.free("alice", "op", 80)
}

func TestADayHasItsBudget(t *testing.T) {
	w := till(t, func(p *Principal) { p.Ceiling = &Ceiling{MaxTokensPerDay: 130} })
	w.now = w.now.Truncate(24 * time.Hour).Add(12 * time.Hour)
	w.grant("alice", "op2", func(g *Grant) { g.Expires = w.now.Add(20 * time.Hour) })
	w.grant("alice", "op", func(g *Grant) { g.Expires = w.now.Add(20 * time.Hour) })
	w.answer("alice", "op", w.use("alice", "op", "j-op", 100), 90)
	w.free("alice", "op2", 40)
	w.now = w.now.Add(13 * time.Hour)
	w.free("alice", "op2", 100)
	w.free("alice", "op", 10)
}

// sum is what an oracle counts of one operation: what was used or may yet be,
// of its own actions and of those of the operations under it.
type sum struct {
	up    *sum
	limit int64
	used  int64
}

func (s *sum) add(n int64) {
	for ; s != nil; s = s.up {
		s.used += n
	}
}

// Many callers at the same time, answers in any order, deadlines, cancellations,
// children that come and go: no operation and no day ever has more in use than
// it may, whatever the order. The service keeps to what it is told.
func TestBudgetsAreNeverOverspentByCallersAtTheSameTime(t *testing.T) {
	const callers, cases = 64, 100_000
	seed := uint64(20260301)
	r := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, Principal{ID: "llm", Serves: []string{"call:pandas"}, Meter: MeterTokens, Reserve: 7})
	agents := []string{"alice", "bob", "carol"}
	days := map[string]*sum{}
	for _, id := range agents {
		w.declare(Principal{ID: id, Kind: KindAgent, Ceiling: &Ceiling{MaxTokensPerDay: 1 << 40}})
	}
	done, accepted, refused := 0, 0, 0
	for round := 0; done < cases; round++ {
		op := fmt.Sprintf("op-%d", round)
		for _, id := range agents { // the day's bound is near, in every third round
			bound := int64(1) << 40
			days[id] = &sum{limit: bound}
			if round%3 == 0 {
				days[id].limit = w.s.Agents[id].days[dayOf(w.now)] + 1 + r.Int64N(4000)
				days[id].used = w.s.Agents[id].days[dayOf(w.now)]
				bound = days[id].limit
			}
			w.s.Agents[id].Ceiling.MaxTokensPerDay = bound
		}
		limit := 1 + r.Int64N(5000)
		sums := map[string]*sum{"alice": {limit: limit}}
		w.grant("alice", op, func(g *Grant) { g.MaxTokens = limit })
		for n, id := range agents[1:] {
			up, limit := agents[n], r.Int64N(limit+1)
			limit = min(limit, sums[up].limit)
			sums[id] = &sum{up: sums[up], limit: limit}
			w.grant(id, op, handed(up, op, "j-"+op, agents[:n]...), func(g *Grant) {
				g.JTI, g.MaxTokens = "j-"+op, limit
				g.Act = nil
				for back := n; back >= 0; back-- {
					g.Act = append(g.Act, agents[back])
				}
			})
		}
		type call struct {
			seq   uint64
			agent string
			n     int64
		}
		var open []call
		for step := range callers * 3 { // all at once, and then as it comes
			done++
			if step < callers || len(open) < callers && r.IntN(3) > 0 {
				id, stated := agents[r.IntN(3)], r.Int64N(120)
				if r.IntN(8) == 0 {
					stated = 0
				}
				ad, refusal := w.s.Admit(&Event{Agent: id, Operation: op, Action: Action{VerbCall, "pandas"}, Digest: Digest{1}, Reserve: stated, Time: w.now})
				seq := w.use(id, op, "j-"+op, stated)
				if refusal != nil {
					if refusal.Code != CodeBudget {
						t.Fatalf("seed %d: %v", seed, refusal)
					}
					refused++
					continue
				}
				accepted++
				sums[id].add(ad.Reserve)
				days[id].add(ad.Reserve)
				open = append(open, call{seq, id, ad.Reserve})
			} else if len(open) > 0 {
				at := r.IntN(len(open))
				c := open[at]
				open = append(open[:at], open[at+1:]...)
				used := r.Int64N(c.n + 1)
				if r.IntN(4) == 0 { // refused behind its acceptance: never delivered
					used = 0
					w.apply(Event{Kind: MessageCancelled, Agent: c.agent, Ref: c.seq, Code: CodeConflict})
				} else {
					w.answer(c.agent, op, c.seq, used)
				}
				sums[c.agent].add(used - c.n)
				days[c.agent].add(used - c.n)
			}
			for id, s := range sums {
				if s.used > s.limit || days[id].used > days[id].limit {
					t.Fatalf("seed %d, round %d: %s has %d of %d in use, and %d of %d today", seed, round, id, s.used, s.limit, days[id].used, days[id].limit)
				}
				if b := w.s.BudgetOf(id, op, w.now); b.Used != s.used {
					t.Fatalf("seed %d, round %d: %s has %d in use, the state says %d", seed, round, id, s.used, b.Used)
				}
			}
		}
		for _, c := range open {
			w.answer(c.agent, op, c.seq, 0)
		}
		for _, id := range agents {
			w.apply(Event{Kind: OperationEnded, Agent: id, Operation: op, Reason: "over"})
		}
	}
	if len(w.s.reserved) != 0 {
		t.Errorf("%d reservations are left", len(w.s.reserved))
	}
	t.Logf("seed %d: %d steps, %d accepted, %d refused", seed, done, accepted, refused)
	if accepted < cases/10 || refused < cases/10 {
		t.Errorf("%d accepted and %d refused: the test shows too little", accepted, refused)
	}
}
