package issuer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
)

const noReports = `
@id("no-reports") forbid (principal, action == Action::"write", resource == Data::"report");
@id("no-sql") @mode("shadow") forbid (principal, action == Action::"call", resource == Tool::"sql");
`

func railsOf(t *testing.T, text string) *guard.Rails {
	t.Helper()
	r, err := guard.Parse("test", text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A guard rail beats every ceiling; the refusal names it; what it says in shadow
// mode is noted in the grant and refuses nothing.
func TestGuardRailsBeatCeilings(t *testing.T) {
	f := now
	f.rails = railsOf(t, noReports)
	_, err := decideIssue(fleetState(t), operatorAsks, request(nil), f)
	refused(t, err, 403, "guard rail no-reports forbids write:report to alice")
	g, err := decideIssue(fleetState(t), operatorAsks, request(func(r *schemas.IssueRequest) { r.Scope, r.Tools = nil, []string{"sql"} }), f)
	if err != nil || len(g.Notes) != 1 || !strings.Contains(g.Notes[0], "shadow: guard rail no-sql forbids call:sql") {
		t.Errorf("%+v, %v", g, err)
	}
	f.rails = guard.Broken(errors.New("damaged"))
	_, err = decideIssue(fleetState(t), operatorAsks, request(nil), f)
	refused(t, err, 403, "can't be read")
}

// What was granted before ends with new guard rails: at once what they forbid,
// where they are declared, and with the next refresh in any case.
func TestNewGuardRailsEndWhatTheyForbid(t *testing.T) {
	s := fleetState(t, issued(func(g *schemas.Grant) { g.Scope = []string{"read:data.sales", "write:report"} }))
	req := schemas.ApplyRequest{TrustDomain: "acme.example", Digest: "ab", Actor: "root", Prune: true, Guardrails: noReports, Principals: []schemas.Principal{aliceAs(nil)}}
	p, err := decideApply(s, "acme.example", req)
	if err != nil || !p.policy {
		t.Fatalf("%+v, %v", p, err)
	}
	if revoke := outdated(s, railsOf(t, noReports), noon); len(revoke) != 1 || revoke[0].why != "guard rail no-reports forbids write:report" {
		t.Errorf("revoked %+v", revoke)
	}
	if i := slices.IndexFunc(p.changes, func(c schemas.Change) bool { return c.ID == "guardrails" }); i < 0 || p.changes[i].Detail != "1 enforced, 1 in shadow mode" {
		t.Errorf("changes %+v", p.changes)
	}
	req.Guardrails = "nonsense"
	_, err = decideApply(s, "acme.example", req)
	refused(t, err, 400, "guardrails")
	f := now
	f.rails = railsOf(t, noReports)
	g, err := decideRefresh(s, "alice", schemas.RefreshRequest{OperationID: "op"}, f)
	if err != nil || slices.Contains(g.Scope, "write:report") || !slices.Contains(g.Scope, "read:data.sales") {
		t.Errorf("refreshed to %v, %v", g.Scope, err)
	}
}

// An agent gets through others what it would not be given itself: guard rails see
// all through whom a capability came, and how many they are, also where it is
// refreshed and where the rails come later.
func TestGuardRailsSeeThroughWhomACapabilityCame(t *testing.T) {
	rails := func(f fresh, text string) fresh {
		f.rails, f.free = railsOf(t, text), 50
		return f
	}
	near := `@id("near") forbid (principal, action == Action::"read", resource) when { context.depth > 1 };`
	by := `@id("not-by-boss") forbid (principal, action == Action::"read", resource) when { context.chain.contains("boss") };`
	deep := planned(func(g *schemas.Grant) { g.Act = []string{"mate", "boss"} })
	for _, c := range []struct {
		name  string
		held  schemas.Event
		rails string
		says  string // "": granted
	}{
		{"from the one before", planned(), near + by, ""},
		{"from three before", deep, near, "guard rail near forbids read:data.sales to alice"},
		{"from who is further up", deep, by, "guard rail not-by-boss forbids read:data.sales to alice"},
		{"from others", deep, strings.ReplaceAll(by, `"boss"`, `"alice"`), ""},
	} {
		_, err := decideIssue(planState(t, c.held), planner, part(nil), rails(now, c.rails))
		if c.says != "" {
			refused(t, err, 403, c.says)
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// The same from an operator, who is no agent of the chain.
	if _, err := decideIssue(planState(t), operatorAsks, part(func(r *schemas.IssueRequest) { r.MaxTokens = 0 }), rails(now, near+by)); err != nil {
		t.Errorf("from an operator: %v", err)
	}
	g, err := decideIssue(planState(t, deep), planner, part(nil), rails(now, ""))
	if err != nil || !slices.Equal(g.Act, []string{"planner", "mate", "boss"}) {
		t.Fatalf("%+v, %v", g, err)
	}
	s := planState(t, deep, issuedEvent(g))
	revoke := outdated(s, railsOf(t, by), noon) // planner's own came through boss, too
	if len(revoke) != 2 || revoke[0].grant.Agent != "alice" || revoke[1].grant.Agent != "planner" || revoke[0].why != "guard rail not-by-boss forbids read:data.sales" {
		t.Errorf("revoked %+v", revoke)
	}
	if g, err := decideRefresh(s, "alice", schemas.RefreshRequest{OperationID: "part"}, rails(now, by)); err != nil || len(g.Scope) != 0 {
		t.Errorf("refreshed to %v, %v", g.Scope, err)
	}
}

// An exception is a scope for a time: no capability outlives it, whichever way
// it was come by.
func TestNoCapabilityOutlivesAnException(t *testing.T) {
	end := noon.Add(90 * time.Second).Truncate(time.Second)
	extra := aliceAs(func(c *schemas.Ceiling) {
		c.Exceptions = []schemas.Exception{{Scope: "read:data.hr", Until: end, Reason: "audit"}}
	})
	declared := schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(extra)}
	ask := func(ttl int64, at time.Time) (schemas.Grant, error) {
		f := now
		f.now = at
		return decideIssue(fleetState(t, declared), operatorAsks, request(func(r *schemas.IssueRequest) { r.Scope, r.TTLSeconds = []string{"read:data.hr"}, ttl }), f)
	}
	if g, err := ask(60, noon); err != nil || !slices.Contains(g.Scope, "read:data.hr") {
		t.Errorf("within: %+v, %v", g, err)
	}
	_, err := ask(91, noon)
	refused(t, err, 403, "read:data.hr is an exception of alice until "+end.Format(time.RFC3339)+" (audit)")
	_, err = ask(1, end)
	refused(t, err, 403, "read:data.hr is beyond the ceiling")

	held := issued(func(g *schemas.Grant) { g.Scope = []string{"read:data.hr", "read:data.sales"} })
	for _, c := range []struct {
		name    string
		at      time.Time
		expires time.Time
		hr      bool
	}{
		{"early", noon, end, true},
		{"over", end, end.Add(5 * time.Minute), false},
	} {
		f := now
		f.now = c.at
		g, err := decideRefresh(fleetState(t, declared, held), "alice", schemas.RefreshRequest{OperationID: "op"}, f)
		if err != nil || slices.Contains(g.Scope, "read:data.hr") != c.hr || !g.Expires.Equal(c.expires) {
			t.Errorf("%s: %v until %s, %v; want hr %t until %s", c.name, g.Scope, g.Expires, err, c.hr, c.expires)
		}
	}
	// A new exception for the same scope goes on where an older one ended.
	followed := aliceAs(func(c *schemas.Ceiling) {
		c.Exceptions = []schemas.Exception{{Scope: "read:data.hr", Until: noon.Add(-time.Hour), Reason: "audit"}, {Scope: "read:data.hr", Until: end, Reason: "another"}}
	})
	again := schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(followed)}
	if _, err := decideIssue(fleetState(t, again), operatorAsks, request(func(r *schemas.IssueRequest) { r.Scope, r.TTLSeconds = []string{"read:data.hr"}, 60 }), now); err != nil {
		t.Errorf("behind an exception that ended: %v", err)
	}
	if g, err := decideRefresh(fleetState(t, again, held), "alice", schemas.RefreshRequest{OperationID: "op"}, now); err != nil || !g.Expires.Equal(end) {
		t.Errorf("refreshed behind an exception that ended: until %s, %v", g.Expires, err)
	}
	// Where the exception is shortened, what rests on it ends.
	shorter := aliceAs(func(c *schemas.Ceiling) {
		c.Exceptions = []schemas.Exception{{Scope: "read:data.hr", Until: noon.Add(time.Second), Reason: "audit"}}
	})
	declaredAnew := schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(shorter)}
	if revoke := outdated(fleetState(t, declared, held, declaredAnew), nil, noon); len(revoke) != 1 || revoke[0].why != "the ceiling no longer admits read:data.hr for so long" {
		t.Errorf("%+v", revoke)
	}
}

// Observe mode lets an agent have what it asks for, and notes what would have
// been refused. It asks for no more than that, and locks, delegation and the
// grammar hold.
func TestObserveModeNotesWhatItWouldRefuse(t *testing.T) {
	watched := aliceAs(nil)
	watched.Mode = schemas.ModeObserve
	declared := schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(watched)}
	f := now
	f.rails = railsOf(t, noReports)
	const rail = "no-reports forbids write:report"
	for name, c := range map[string]struct {
		change func(*schemas.IssueRequest)
		noted  []string // in this order, all of it
	}{
		"a scope beyond":    {func(r *schemas.IssueRequest) { r.Scope = []string{"read:secrets"} }, []string{"read:secrets is beyond"}},
		"a forbidden tool":  {func(r *schemas.IssueRequest) { r.Tools = []string{"bash"} }, []string{"tool bash is forbidden", rail}},
		"a lifetime beyond": {func(r *schemas.IssueRequest) { r.TTLSeconds = 3600 }, []string{"ttl 3600 s is beyond", rail}},
		"a budget beyond":   {func(r *schemas.IssueRequest) { r.MaxTokens = 1 << 20 }, []string{"max_tokens 1048576 is beyond", rail}},
		"a job beyond":      {func(r *schemas.IssueRequest) { r.Job = "other" }, []string{"job other is beyond", rail}},
		"a guard rail":      {func(r *schemas.IssueRequest) { r.Scope = []string{"write:report"} }, []string{rail}},
		"everything": {func(r *schemas.IssueRequest) {
			r.Scope, r.Tools, r.Job, r.TTLSeconds, r.MaxTokens = []string{"read:secrets", "read:more", "write:report"}, []string{"bash"}, "other", 3600, 1<<20
		}, []string{"job other is beyond", "tool bash is forbidden", "read:more read:secrets is beyond", "ttl 3600 s is beyond", "max_tokens 1048576 is beyond", rail}},
	} {
		req := request(c.change)
		g, err := decideIssue(fleetState(t, declared), operatorAsks, req, f)
		if err != nil || len(g.Notes) != len(c.noted) {
			t.Errorf("%s: %q, %v", name, g.Notes, err)
			continue
		}
		for n, want := range c.noted {
			if !strings.HasPrefix(g.Notes[n], "observe mode: ") || !strings.Contains(g.Notes[n], want) {
				t.Errorf("%s: note %d is %q, want %q", name, n, g.Notes[n], want)
			}
		}
		want := slices.Clone(req.Scope)
		for _, tool := range req.Tools {
			want = append(want, "call:"+tool)
			if slices.Contains(g.ForbiddenTools, tool) {
				t.Errorf("%s: what is only watched is denied: %v", name, g.ForbiddenTools)
			}
		}
		if !slices.Equal(g.Scope, sorted(want)) || g.MaxTokens != req.MaxTokens || g.Expires.Sub(g.NotBefore) != time.Duration(req.TTLSeconds)*time.Second {
			t.Errorf("%s: granted %+v", name, g)
		}
	}
	clean, err := decideIssue(fleetState(t, declared), operatorAsks, request(func(r *schemas.IssueRequest) { r.Scope = nil }), f)
	if err != nil || len(clean.Notes) > 0 || !slices.Contains(clean.ForbiddenTools, "bash") {
		t.Errorf("within the ceiling: %+v, %v", clean, err)
	}
	for name, change := range map[string]func(*schemas.IssueRequest){
		"a wildcard":      func(r *schemas.IssueRequest) { r.Scope = []string{"read:>"} },
		"a contradiction": func(r *schemas.IssueRequest) { r.Tools, r.ForbiddenTools = []string{"sql"}, []string{"sql"} },
		"a day and more":  func(r *schemas.IssueRequest) { r.TTLSeconds = 86401 },
		"a bad job":       func(r *schemas.IssueRequest) { r.Job = "a b" },
	} {
		if g, err := decideIssue(fleetState(t, declared), operatorAsks, request(change), f); err == nil {
			t.Errorf("%s: granted %+v", name, g)
		}
	}
	killed := schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "x"}
	if _, err := decideIssue(fleetState(t, declared, killed), operatorAsks, request(nil), f); err == nil {
		t.Error("a killed agent in observe mode gets a capability")
	}
}

// An agent that was only watched keeps nothing of what it got then, once it is
// held to ceiling and guard rails, also where those are the same as before.
func TestWhatWasObservedEndsWhereItIsEnforced(t *testing.T) {
	watched := aliceAs(nil)
	watched.Mode = schemas.ModeObserve
	held := issued(func(g *schemas.Grant) { g.Scope = []string{"write:report"} })
	rails := railsOf(t, noReports)
	if revoke := outdated(fleetState(t, declared(watched), held), rails, noon); len(revoke) > 0 {
		t.Errorf("while it is watched: %+v", revoke)
	}
	revoke := outdated(fleetState(t, declared(watched), held, declared(aliceAs(nil))), rails, noon)
	if len(revoke) != 1 || revoke[0].why != "guard rail no-reports forbids write:report" {
		t.Errorf("enforced: %+v", revoke)
	}
}

// What an agent issued ends when it loses the right to issue for the other: who
// was handed it could refresh it for ever, and do so in observe mode too.
func TestARightToIssueThatIsTakenBackEndsWhatWasIssued(t *testing.T) {
	child := func(parent, operation string, act ...string) schemas.Event {
		return issued(func(g *schemas.Grant) {
			g.Scope, g.ForbiddenTools, g.TraceID = []string{"call:pandas"}, []string{"bash", "http"}, "11111111111111111111111111111111"
			g.ParentAgent, g.ParentOperation, g.Act = parent, operation, act
			if operation != "" {
				g.Parent, g.Expires = "j-plan", noon.Truncate(time.Second).Add(5*time.Minute)
			}
		})
	}
	lowered := func(id string) schemas.Event {
		return declared(schemas.Principal{ID: id, Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{Scope: []string{"read:data.sales"}, Tools: []string{"pandas"}, MaxTokens: 50, ForbiddenTools: []string{"http"}}})
	}
	watched := aliceAs(nil)
	watched.Mode = schemas.ModeObserve
	for name, events := range map[string][]schemas.Event{
		"derived":            {planned(), child("planner", "plan", "planner")},
		"derived, observed":  {declared(watched), planned(), child("planner", "plan", "planner")},
		"by right":           {child("orchestrator", "", "orchestrator")},
		"by right, observed": {declared(watched), child("orchestrator", "", "orchestrator")},
	} {
		before := planState(t, events...)
		if g := before.Agents["alice"].Grants["op"]; g.Over(noon) != "" {
			t.Fatalf("%s: it does not count: %s", name, g.Over(noon))
		}
		if revoke := outdated(before, nil, noon); len(revoke) > 0 {
			t.Errorf("%s, before: %+v", name, revoke)
		}
		by := before.Agents["alice"].Grants["op"].ParentAgent
		revoke := outdated(planState(t, append(events, lowered(by))...), nil, noon)
		if len(revoke) != 1 || revoke[0].grant.Agent != "alice" || revoke[0].why != by+" may no longer issue for it" {
			t.Errorf("%s: %+v", name, revoke)
		}
	}
}

// An agent's credentials never become an operator's, whatever it asks while the
// fleet changes.
func TestAnAgentsIdStaysAnAgents(t *testing.T) {
	operator := schemas.Principal{ID: "alice", Kind: schemas.KindOperator, Role: schemas.RoleAdmin}
	_, err := decideApply(fleetState(t), "acme.example", schemas.ApplyRequest{TrustDomain: "acme.example", Actor: "root", Add: true, Principals: []schemas.Principal{operator}})
	refused(t, err, 409, "alice is of kind agent, and its credentials were made for that")
	removed := schemas.Event{Kind: schemas.AgentRemoved, Agent: "alice"}
	if _, err := decideApply(fleetState(t, removed), "acme.example", schemas.ApplyRequest{TrustDomain: "acme.example", Actor: "root", Add: true, Principals: []schemas.Principal{operator}}); err != nil {
		t.Errorf("after its removal: %v", err)
	}
	invited := schemas.Event{Kind: schemas.AgentInvited, Agent: "alice", JTI: "j-join", Expires: noon.Add(time.Hour)}
	_, err = decideJoin(fleetState(t, invited, declared(operator)), asker{agent: "alice"}, schemas.JoinRequest{ID: "j-join", PublicKey: anyKey}, noon)
	refused(t, err, 401, "alice is no agent or service")
	i := &Issuer{state: fleetState(t, declared(operator))}
	_, err = i.renewIdentity(t.Context(), asker{agent: "alice"}, schemas.RefreshRequest{PublicKey: anyKey})
	refused(t, err, 401, "alice is no agent or service")
}
