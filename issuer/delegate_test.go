package issuer

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

var planner = asker{agent: "planner", name: "planner"}

// planned is a grant of planner's own, from which one for alice can be derived.
func planned(change ...func(*schemas.Grant)) schemas.Event {
	g := schemas.Grant{JTI: "j-plan", Agent: "planner", Operation: "plan", Scope: []string{"call:pandas", "read:data.sales"}, ForbiddenTools: []string{"http"},
		NotBefore: noon.Truncate(time.Second), Expires: noon.Truncate(time.Second).Add(5 * time.Minute), MaxTokens: 50, Task: "the user's words",
		TraceID: "11111111111111111111111111111111", IssuedBy: "root"}
	for _, f := range change {
		f(&g)
	}
	return issuedEvent(g)
}

func issuedEvent(g schemas.Grant) schemas.Event {
	return schemas.Event{Kind: schemas.TokenIssued, Agent: g.Agent, Operation: g.Operation, JTI: g.JTI, Data: schemas.Marshal(g)}
}

// planState is fleetState with planner, which holds what is handed on.
func planState(t testing.TB, events ...schemas.Event) *schemas.State {
	t.Helper()
	p := schemas.Principal{ID: "planner", Kind: schemas.KindAgent, MayIssueFor: []string{"alice", "orchestrator"},
		Ceiling: &schemas.Ceiling{Scope: []string{"read:data.sales"}, Tools: []string{"pandas"}, MaxTokens: 50}}
	return fleetState(t, append([]schemas.Event{{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)}}, events...)...)
}

func part(change func(*schemas.IssueRequest)) schemas.IssueRequest {
	req := schemas.IssueRequest{AgentID: "alice", OperationID: "part", Scope: []string{"read:data.sales"}, MaxTokens: 20, PublicKey: anyKey}
	if change != nil {
		change(&req)
	}
	return req
}

func TestWhatIsHandedOnNamesWhereItComesFrom(t *testing.T) {
	f := now
	f.free = 20
	g, err := decideIssue(planState(t, planned()), planner, part(nil), f)
	if err != nil {
		t.Fatal(err)
	}
	want := schemas.Grant{JTI: "j-1", Agent: "alice", Operation: "part", Scope: []string{"read:data.sales"}, ForbiddenTools: []string{"bash", "http"},
		NotBefore: noon.Truncate(time.Second), Expires: noon.Truncate(time.Second).Add(5 * time.Minute), MaxTokens: 20, Task: "the user's words",
		TraceID: "11111111111111111111111111111111", PublicKey: anyKey, IssuedBy: "planner",
		Parent: "j-plan", ParentAgent: "planner", ParentOperation: "plan", Act: []string{"planner"}, TTLSeconds: 600}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
}

// An agent that may issue for another tries to hand on more than it holds, or
// something of what it no longer holds.
func TestNothingIsHandedOnThatIsNotHeld(t *testing.T) {
	later := func(d time.Duration) fresh {
		f := now
		f.now, f.free = noon.Add(d), 50
		return f
	}
	second := issuedEvent(schemas.Grant{JTI: "j-2", Agent: "planner", Operation: "other", Expires: noon.Add(time.Hour)})
	for _, c := range []struct {
		name   string
		change func(*schemas.IssueRequest)
		events []schemas.Event
		at     fresh
		code   int
		text   string
	}{
		{"nothing held", nil, nil, later(0), 401, "planner holds no capability that counts"},
		{"nothing held under that name", func(r *schemas.IssueRequest) { r.ParentOperation = "other" }, []schemas.Event{planned()}, later(0), 401, "planner holds no capability for operation other, from which one for alice could be derived; it has: plan"},
		{"another's operation", func(r *schemas.IssueRequest) { r.ParentOperation = "theirs" }, []schemas.Event{planned(),
			issuedEvent(schemas.Grant{JTI: "j-3", Agent: "stranger", Operation: "theirs", Expires: noon.Add(time.Hour)})}, later(0), 401, "planner holds no capability for operation theirs"},
		{"one of several, unnamed", nil, []schemas.Event{planned(), second}, later(0), 400, "name the one to derive from with parent_operation: other plan"},
		{"a wildcard for the operation", func(r *schemas.IssueRequest) { r.ParentOperation = "*" }, []schemas.Event{planned()}, later(0), 400, "parent_operation"},
		{"the operation in capitals", func(r *schemas.IssueRequest) { r.ParentOperation = "Plan" }, []schemas.Event{planned()}, later(0), 400, "parent_operation"},
		{"a scope that the ceiling admits and the parent does not hold", func(r *schemas.IssueRequest) { r.Scope = []string{"write:report"} }, []schemas.Event{planned()}, later(0), 403,
			"write:report is beyond the capability of planner for operation plan, from which it is to be derived; allowed: call:pandas read:data.sales"},
		{"a scope by a dot", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.sales.x"} }, []schemas.Event{planned()}, later(0), 403, "beyond"},
		{"a scope less a dot", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data"} }, []schemas.Event{planned()}, later(0), 403, "beyond"},
		{"a scope with two dots", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data..sales"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a scope in another case", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.Sales"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a look-alike scope", func(r *schemas.IssueRequest) { r.Scope = []string{"reаd:data.sales"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a look-alike agent", func(r *schemas.IssueRequest) { r.AgentID = "аlice" }, []schemas.Event{planned()}, later(0), 400, "agent_id"},
		{"an agent by a digit", func(r *schemas.IssueRequest) { r.AgentID = "a1ice" }, []schemas.Event{planned()}, later(0), 404, ""},
		{"a wildcard for a scope", func(r *schemas.IssueRequest) { r.Scope = []string{"read:*"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"all that follows for a scope", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.>"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a wildcard for a tool", func(r *schemas.IssueRequest) { r.Tools = []string{"*"} }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a wildcard for an agent", func(r *schemas.IssueRequest) { r.AgentID = "*" }, []schemas.Event{planned()}, later(0), 400, ""},
		{"a wildcard for a job", func(r *schemas.IssueRequest) { r.Job = "*" }, []schemas.Event{planned()}, later(0), 403, ""},
		{"a wildcard for an audience", func(r *schemas.IssueRequest) { r.Audience = "*" }, []schemas.Event{planned()}, later(0), 404, ""},
		{"a tool that the ceiling admits", func(r *schemas.IssueRequest) { r.Tools = []string{"sql"} }, []schemas.Event{planned()}, later(0), 403, "call:sql is beyond the capability of planner"},
		{"a tool that the parent is denied", func(r *schemas.IssueRequest) { r.Tools = []string{"pandas"} },
			[]schemas.Event{planned(func(g *schemas.Grant) { g.ForbiddenTools = []string{"pandas"} })}, later(0), 403, "tool pandas is forbidden to planner in operation plan"},
		{"more time", func(r *schemas.IssueRequest) { r.TTLSeconds = 301 }, []schemas.Event{planned()}, later(0), 403, "its end at"},
		{"more tokens than it was given", func(r *schemas.IssueRequest) { r.MaxTokens = 51 }, []schemas.Event{planned()}, later(0), 403, "max_tokens 51 of 50"},
		{"more tokens than it has left", func(r *schemas.IssueRequest) { r.MaxTokens = 50 }, []schemas.Event{planned()}, now, 402, "has left to reserve: 0 of 50"},
		{"beyond its own ceiling, the parent admits it", func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.costs"} },
			[]schemas.Event{planned(func(g *schemas.Grant) { g.Scope = append(g.Scope, "read:data.costs") })}, later(0), 403, "beyond the ceiling of alice"},
		{"another trace", func(r *schemas.IssueRequest) { r.TraceID = traceA }, []schemas.Event{planned()}, later(0), 403, "trace"},
		{"of what expired a second ago", nil, []schemas.Event{planned()}, later(5*time.Minute + time.Second), 401, "holds no capability that counts"},
		{"of what expired a second ago, by name", func(r *schemas.IssueRequest) { r.ParentOperation = "plan" }, []schemas.Event{planned()}, later(5*time.Minute + time.Second), 401, "it expired at"},
		{"of what was revoked", func(r *schemas.IssueRequest) { r.ParentOperation = "plan" }, []schemas.Event{planned(),
			{Kind: schemas.TokenRevoked, Agent: "planner", JTI: "j-plan", Reason: "why"}}, later(0), 401, "revoked: why"},
		{"while suspended", nil, []schemas.Event{planned(), lockedBy(schemas.AgentSuspended, "planner")}, later(0), 410, "planner is suspended"},
		{"while paused", nil, []schemas.Event{planned(), lockedBy(schemas.AgentPaused, "planner")}, later(0), 423, "planner is paused"},
		{"in a circle", nil, []schemas.Event{issuedEvent(schemas.Grant{JTI: "j-a", Agent: "alice", Operation: "op", Scope: []string{"read:data.sales"}, Expires: noon.Add(time.Hour)}),
			planned(func(g *schemas.Grant) {
				g.ParentAgent, g.ParentOperation, g.Parent, g.Act = "alice", "op", "j-a", []string{"alice"}
				g.Scope, g.MaxTokens = []string{"read:data.sales"}, 0
			})}, later(0), 403, "a delegation does not come back"},
		{"from oneself", func(r *schemas.IssueRequest) { r.AgentID, r.ParentOperation = "planner", "plan" }, []schemas.Event{planned()}, later(0), 400, "only a capability for another agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := decideIssue(planState(t, c.events...), planner, part(c.change), c.at)
			refused(t, err, c.code, c.text)
			if !reflect.DeepEqual(g, schemas.Grant{}) && err == nil {
				t.Errorf("granted %+v", g)
			}
		})
	}
}

func TestWhoLivesByDelegationMayNotAskForItself(t *testing.T) {
	alice := aliceAs(nil)
	alice.DelegatedOnly = true
	declared := schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(alice)}
	s := planState(t, declared, planned())
	_, err := decideIssue(s, asker{agent: "alice", name: "alice"}, part(nil), now)
	refused(t, err, 403, "alice may not ask for itself (delegated_only)")
	f := now
	f.free = 50
	for _, who := range []asker{planner, operatorAsks} {
		if _, err := decideIssue(s, who, part(nil), f); err != nil {
			t.Errorf("%s: %v", who.name, err)
		}
	}
}

// A child is renewed as long as its parent is, and within it as it then is.
func TestARefreshOfWhatWasHandedOnStaysWithinItsParent(t *testing.T) {
	f := now
	f.free = 50
	s := planState(t, planned())
	child, err := decideIssue(s, planner, part(func(r *schemas.IssueRequest) { r.Tools, r.TTLSeconds = []string{"pandas"}, 120 }), f)
	if err != nil {
		t.Fatal(err)
	}
	seq := s.Seq
	fold := func(g schemas.Grant, at time.Time) {
		t.Helper()
		seq++
		e := issuedEvent(g)
		e.Seq, e.Time = seq, at
		if err := s.Apply(&e); err != nil {
			t.Fatal(err)
		}
	}
	fold(child, noon)
	refresh := func(at time.Duration) (schemas.Grant, error) {
		return decideRefresh(s, "alice", schemas.RefreshRequest{OperationID: "part"}, fresh{now: noon.Add(at), jti: fmt.Sprintf("j-at-%s", at)})
	}
	start := noon.Truncate(time.Second)
	near, err := refresh(100 * time.Second)
	if err != nil || near.Expires != start.Add(220*time.Second) {
		t.Fatalf("%+v, %v", near, err)
	}
	fold(near, noon.Add(100*time.Second))
	cut, err := refresh(210 * time.Second) // the parent ends after 300 s
	if err != nil || cut.Expires != start.Add(300*time.Second) || cut.TTLSeconds != 120 {
		t.Fatalf("%+v, %v", cut, err)
	}
	fold(cut, noon.Add(210*time.Second))
	var parent schemas.Grant
	e := planned(func(g *schemas.Grant) {
		g.JTI, g.Refreshes, g.Scope, g.Expires, g.MaxTokens = "j-plan2", "j-plan", []string{"read:data.sales"}, start.Add(time.Hour), 10
	})
	if err := schemas.Unmarshal(e.Data, &parent); err != nil {
		t.Fatal(err)
	}
	fold(parent, noon.Add(250*time.Second))
	again, err := refresh(260 * time.Second)
	if err != nil || again.Expires != start.Add(380*time.Second) || again.Parent != "j-plan2" || again.MaxTokens != 10 || !slices.Equal(again.Scope, []string{"read:data.sales"}) {
		t.Fatalf("%+v, %v", again, err)
	}
	// Until it is renewed, what it holds beyond its parent ends it.
	if over := overdue(s, noon.Add(260*time.Second)); len(over) != 1 || over[0].grant.Agent != "alice" || !strings.Contains(over[0].why, "call:pandas") {
		t.Errorf("overdue: %+v", over)
	}
	seq++
	if err := s.Apply(&schemas.Event{Seq: seq, Time: noon, Kind: schemas.TokenRevoked, Agent: "planner", JTI: "j-plan2", Reason: "why"}); err != nil {
		t.Fatal(err)
	}
	_, err = refresh(261 * time.Second)
	refused(t, err, 401, "from which it was derived, has ended: revoked: why")
	if over := overdue(s, noon.Add(261*time.Second)); len(over) != 2 {
		t.Errorf("overdue: %+v", over)
	}
}

// line is a row of agents, each of which may issue for all others.
func row(t testing.TB, n int, pool []string) *schemas.State {
	s := schemas.NewState()
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("a%d", i))
	}
	for i, id := range ids {
		declareIn(t, s, schemas.Principal{ID: id, Kind: schemas.KindAgent, MayIssueFor: ids,
			Ceiling: &schemas.Ceiling{Scope: pool, TTLSeconds: int64(300 + i), MaxTokens: 1000}})
	}
	return s
}

func declareIn(t testing.TB, s *schemas.State, p schemas.Principal) {
	t.Helper()
	foldIn(t, s, schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)}, noon)
}

func foldIn(t testing.TB, s *schemas.State, e schemas.Event, at time.Time) {
	t.Helper()
	e.Seq, e.Time = s.Seq+1, at
	if err := s.Apply(&e); err != nil {
		t.Fatal(err)
	}
}

// some is a random part of a list.
func some(r *rand.Rand, list []string, of int) []string {
	var out []string
	for _, x := range list {
		if r.IntN(of) > 0 {
			out = append(out, x)
		}
	}
	return out
}

// wider says what of a the other does not hold, by itself and not by what the
// issuer compares with.
func wider(a, b schemas.Grant) string {
	holds := map[string]bool{}
	for _, s := range b.Scope {
		holds[s] = true
	}
	for _, s := range a.Scope {
		if !holds[s] {
			return s
		}
	}
	denied := map[string]bool{}
	for _, f := range a.ForbiddenTools {
		denied[f] = true
	}
	for _, f := range b.ForbiddenTools {
		if !denied[f] {
			return "no denial of " + f
		}
	}
	if a.MaxTokens > b.MaxTokens {
		return "tokens"
	}
	return ""
}

var delegated = []string{"call:p", "call:q", "read:a", "read:a.b", "write:a", "send:a1", "memory:get"}

// Chains of random requests, each asked of whom the one before was granted to:
// what is granted never exceeds its parent, in nothing, at no depth.
func TestNoChildExceedsItsParentAtAnyDepth(t *testing.T) {
	t.Parallel()
	const cases = 100_000
	seed := uint64(20260302)
	r := rand.New(rand.NewPCG(seed, 1))
	s := row(t, 8, delegated)
	tried, granted := 0, map[int]int{}
	for round := 0; tried < cases; round++ {
		at := noon
		op := fmt.Sprintf("op%d", round)
		root, err := decideIssue(s, operatorAsks, schemas.IssueRequest{AgentID: "a0", OperationID: op, Scope: some(r, delegated, 12), MaxTokens: r.Int64N(1001), PublicKey: anyKey},
			fresh{now: at, jti: fmt.Sprintf("j%d", round), trace: traceA})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		foldIn(t, s, issuedEvent(root), at)
		parent := root
		for depth := 1; depth <= schemas.MaxDepth+2; depth++ {
			tried++
			at = at.Add(time.Duration(r.IntN(20)) * time.Second)
			req := schemas.IssueRequest{AgentID: fmt.Sprintf("a%d", depth%8), OperationID: op, ParentOperation: op, Scope: some(r, parent.Scope, 12),
				ForbiddenTools: some(r, []string{"p", "q", "z"}, 2), MaxTokens: r.Int64N(parent.MaxTokens + 1), PublicKey: anyKey}
			for _, f := range req.ForbiddenTools {
				req.Scope = slices.DeleteFunc(req.Scope, func(s string) bool { return s == "call:"+f })
			}
			left := int64(parent.Expires.Sub(at.Truncate(time.Second)) / time.Second)
			switch r.IntN(40) { // and often enough a little more
			case 0:
				req.Scope = append(req.Scope, delegated[r.IntN(len(delegated))])
			case 1:
				req.MaxTokens = parent.MaxTokens + 1
			case 2:
				req.TTLSeconds = left + 1
			case 3:
				req.AgentID = fmt.Sprintf("a%d", r.IntN(8))
			case 4:
				req.TTLSeconds = max(left, 1)
			}
			slices.Sort(req.Scope)
			req.Scope = slices.Compact(req.Scope)
			who := asker{agent: parent.Agent, name: parent.Agent}
			g, err := decideIssue(s, who, req, fresh{now: at, jti: fmt.Sprintf("j%d-%d", round, depth), trace: traceA, free: s.BudgetOf(parent.Agent, op, at).Free})
			if err != nil {
				break
			}
			if req.AgentID == parent.Agent {
				break // for itself: from its own ceiling
			}
			if what := wider(g, parent); what != "" || g.Expires.After(parent.Expires) || len(g.Act) != depth || depth > schemas.MaxDepth || g.Act[0] != parent.Agent || slices.Contains(g.Act, g.Agent) {
				t.Fatalf("seed %d: at depth %d more was granted (%s):\n%+v\nof\n%+v", seed, depth, what, g, parent)
			}
			foldIn(t, s, issuedEvent(g), at)
			if live := s.GrantOf(g.Agent, op); live.Over(at) != "" {
				t.Fatalf("seed %d: granted, and does not count: %s", seed, live.Over(at))
			}
			granted[depth]++
			parent = g
		}
		for i := range 8 {
			if s.GrantOf(fmt.Sprintf("a%d", i), op) != nil {
				foldIn(t, s, schemas.Event{Kind: schemas.OperationEnded, Agent: fmt.Sprintf("a%d", i), Operation: op, Reason: "over"}, at)
			}
		}
	}
	t.Logf("seed %d: %d requests, granted by depth: %v", seed, tried, granted)
	if granted[schemas.MaxDepth] < cases/50 {
		t.Errorf("%d chains of full depth: the test shows too little", granted[schemas.MaxDepth])
	}
}

// Ceilings and parents change, and everybody refreshes in any order: nobody's
// capability ever gets wider, or wider than its ceiling and its parent then are.
func TestNoSequenceOfRefreshesWidens(t *testing.T) {
	t.Parallel()
	const cases = 100_000
	seed := uint64(20260303)
	r := rand.New(rand.NewPCG(seed, 1))
	s := row(t, 4, delegated)
	done, ended, repeated := 0, 0, 0
	for round := 0; done < cases; round++ {
		op, at := fmt.Sprintf("op%d", round), noon
		chain := []schemas.Grant{}
		for i := range 4 {
			p := s.Agents[fmt.Sprintf("a%d", i)].Principal
			p.Ceiling = &schemas.Ceiling{Scope: delegated, TTLSeconds: 300, MaxTokens: 1000}
			declareIn(t, s, p)
			req := schemas.IssueRequest{AgentID: p.ID, OperationID: op, Scope: delegated, MaxTokens: int64(1000 - i), PublicKey: anyKey, TTLSeconds: 300}
			who := operatorAsks
			if i > 0 {
				who = asker{agent: chain[i-1].Agent, name: chain[i-1].Agent}
				req.ParentOperation = op
			}
			g, err := decideIssue(s, who, req, fresh{now: at, jti: fmt.Sprintf("j%d-%d", round, i), trace: traceA, free: 1000})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			foldIn(t, s, issuedEvent(g), at)
			chain = append(chain, g)
		}
		for step := range 200 {
			done++
			at = at.Add(time.Duration(r.IntN(30)) * time.Second)
			i := r.IntN(4)
			a := s.Agents[chain[i].Agent]
			if r.IntN(8) == 0 { // the ceiling changes, to more or less
				p := a.Principal
				p.Ceiling = &schemas.Ceiling{Scope: some(r, delegated, 12), ForbiddenTools: some(r, []string{"p", "q"}, 3)[:0], TTLSeconds: 200 + r.Int64N(200), MaxTokens: r.Int64N(1200)}
				if r.IntN(6) == 0 {
					p.Ceiling.ForbiddenTools = []string{"q"}
				}
				declareIn(t, s, p)
			}
			old := s.GrantOf(a.ID, op)
			g, err := decideRefresh(s, a.ID, schemas.RefreshRequest{OperationID: op}, fresh{now: at, jti: fmt.Sprintf("j%d-%d-%d", round, i, step), signs: func(string) bool { return true }})
			if err != nil {
				if old.Over(at) == "" && old.Parent() == nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				ended++
				continue
			}
			life := func(g schemas.Grant) time.Duration {
				return max(g.Expires.Sub(g.NotBefore), time.Duration(g.TTLSeconds)*time.Second)
			}
			if what := wider(g, old.Grant); what != "" || life(g) > life(old.Grant) || g.TraceID != old.TraceID || g.Task != old.Task {
				t.Fatalf("seed %d: a refresh widened (%s):\n%+v\nof\n%+v", seed, what, g, old.Grant)
			}
			if what := wider(g, schemas.Grant{Scope: ceilingScopes(a.Ceiling), ForbiddenTools: a.Ceiling.ForbiddenTools, MaxTokens: a.Ceiling.MaxTokens}); what != "" || g.Expires.Sub(g.NotBefore) > time.Duration(a.Ceiling.TTLSeconds)*time.Second {
				t.Fatalf("seed %d: a refresh is beyond the ceiling (%s): %+v", seed, what, g)
			}
			if from := old.Parent(); from != nil {
				if what := wider(g, from.Grant); what != "" || g.Expires.After(from.Expires) {
					t.Fatalf("seed %d: a refresh is beyond its parent (%s):\n%+v\nof\n%+v", seed, what, g, from.Grant)
				}
			}
			if g.JTI == old.JTI { // asked twice, and refreshed once
				repeated++
				continue
			}
			foldIn(t, s, issuedEvent(g), at)
			if live := s.GrantOf(a.ID, op); live.Over(at) != "" {
				t.Fatalf("seed %d: refreshed, and does not count: %s", seed, live.Over(at))
			}
		}
		for _, g := range chain {
			foldIn(t, s, schemas.Event{Kind: schemas.OperationEnded, Agent: g.Agent, Operation: op, Reason: "over"}, at)
		}
	}
	t.Logf("seed %d: %d refreshes, %d of them refused, %d asked a moment before", seed, done, ended, repeated)
	if repeated < cases/200 {
		t.Errorf("%d were asked for a moment before: the test shows too little", repeated)
	}
	if done-ended < cases/4 {
		t.Errorf("%d refreshes were granted: the test shows too little", done-ended)
	}
}
