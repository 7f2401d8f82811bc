package issuer

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

const (
	anyKey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
	traceA = "0af7651916cd43dd8448eb211c80319c"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC)

// fleetState is a state in which alice may do some things, orchestrator may
// issue for her, and warehouse is a service.
func fleetState(t testing.TB, events ...schemas.Event) *schemas.State {
	t.Helper()
	s := schemas.NewState()
	seq := uint64(0)
	apply := func(e schemas.Event) {
		seq++
		e.Seq = seq
		if e.Time.IsZero() {
			e.Time = noon
		}
		if err := s.Apply(&e); err != nil {
			t.Fatal(err)
		}
	}
	declare := func(p schemas.Principal) {
		apply(schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)})
	}
	declare(aliceAs(nil))
	declare(schemas.Principal{ID: "orchestrator", Kind: schemas.KindAgent, MayIssueFor: []string{"alice"}})
	declare(schemas.Principal{ID: "stranger", Kind: schemas.KindAgent})
	declare(schemas.Principal{ID: "warehouse", Kind: schemas.KindService, Serves: []string{"read:data"}})
	apply(schemas.Event{Kind: schemas.PolicyApplied, Agent: schemas.Fleet, Data: schemas.Marshal(schemas.Policy{TrustDomain: "acme.example", Digest: "ab"})})
	for _, e := range events {
		apply(e)
	}
	return s
}

// aliceAs declares alice with a changed ceiling.
func aliceAs(change func(*schemas.Ceiling)) schemas.Principal {
	c := schemas.Ceiling{Scope: []string{"read:data.sales", "write:report", "memory:get"}, Tools: []string{"pandas", "sql"},
		ForbiddenTools: []string{"bash"}, TTLSeconds: 600, MaxTokens: 100, Jobs: []string{"report"}}
	if change != nil {
		change(&c)
	}
	return schemas.Principal{ID: "alice", Kind: schemas.KindAgent, Ceiling: &c}
}

func request(change func(*schemas.IssueRequest)) schemas.IssueRequest {
	req := schemas.IssueRequest{AgentID: "alice", OperationID: "op", Scope: []string{"write:report", "read:data.sales"}, Tools: []string{"pandas"},
		ForbiddenTools: []string{"http"}, TTLSeconds: 60, MaxTokens: 100, Task: "do it", Job: "report", PublicKey: anyKey}
	if change != nil {
		change(&req)
	}
	return req
}

var (
	operatorAsks = asker{name: "root"}
	now          = fresh{now: noon, jti: "j-1", trace: traceA}
)

func TestDecideIssueGrantsExactlyWhatWasAsked(t *testing.T) {
	g, err := decideIssue(fleetState(t), asker{agent: "orchestrator", name: "orchestrator"}, request(nil), now)
	if err != nil {
		t.Fatal(err)
	}
	want := schemas.Grant{JTI: "j-1", Agent: "alice", Operation: "op", Scope: []string{"call:pandas", "read:data.sales", "write:report"},
		ForbiddenTools: []string{"bash", "http"}, NotBefore: noon.Truncate(time.Second), Expires: noon.Truncate(time.Second).Add(time.Minute),
		MaxTokens: 100, Task: "do it", Job: "report", TraceID: traceA, PublicKey: anyKey, IssuedBy: "orchestrator",
		ParentAgent: "orchestrator", Act: []string{"orchestrator"}}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
}

func TestDecideIssueGrantsNothingThatWasNotAsked(t *testing.T) {
	g, err := decideIssue(fleetState(t), operatorAsks, schemas.IssueRequest{AgentID: "alice", OperationID: "op"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Scope) != 0 || g.MaxTokens != 0 || g.Job != "" || g.Expires.Sub(g.NotBefore) != 10*time.Minute {
		t.Errorf("got %+v", g)
	}
}

func lockedBy(kind schemas.Kind, agent string) schemas.Event {
	return schemas.Event{Kind: kind, Agent: agent, Reason: "why"}
}

func TestDecideIssueRefuses(t *testing.T) {
	type change = func(*schemas.IssueRequest)
	for _, c := range []struct {
		name   string
		who    asker
		change change
		events []schemas.Event
		code   int
		text   string
	}{
		{"unknown agent", operatorAsks, func(r *schemas.IssueRequest) { r.AgentID = "nobody" }, nil, 404, "no agent of this fleet"},
		{"a service", operatorAsks, func(r *schemas.IssueRequest) { r.AgentID = "warehouse" }, nil, 404, "no agent of this fleet"},
		{"a bad id", operatorAsks, func(r *schemas.IssueRequest) { r.AgentID = "Alice" }, nil, 400, "agent_id"},
		{"a paused agent", operatorAsks, nil, []schemas.Event{lockedBy(schemas.AgentPaused, "alice")}, 423, "alice is paused: why"},
		{"a suspended agent", operatorAsks, nil, []schemas.Event{lockedBy(schemas.AgentSuspended, "alice")}, 410, "alice is suspended: why"},
		{"a killed agent", operatorAsks, nil, []schemas.Event{lockedBy(schemas.AgentKilled, "alice")}, 410, "alice was killed: why"},
		{"by a stranger", asker{agent: "stranger", name: "stranger"}, nil, nil, 403, "stranger may not issue for alice (may_issue_for: nobody but itself)"},
		{"by nobody", asker{agent: "ghost", name: "ghost"}, nil, nil, 401, "ghost is no agent"},
		{"by a paused orchestrator", asker{agent: "orchestrator", name: "orchestrator"}, nil, []schemas.Event{lockedBy(schemas.AgentPaused, "orchestrator")}, 423, "orchestrator is paused"},
		{"an operator without a name", asker{}, nil, nil, 400, "actor"},
		{"an operator with a space", asker{name: "a b"}, nil, nil, 400, "actor"},
		{"no operation", operatorAsks, func(r *schemas.IssueRequest) { r.OperationID = "" }, nil, 400, "operation_id"},
		{"operation a wildcard", operatorAsks, func(r *schemas.IssueRequest) { r.OperationID = "*" }, nil, 400, "operation_id"},
		{"operation token", operatorAsks, func(r *schemas.IssueRequest) { r.OperationID = "token" }, nil, 400, "reserved"},
		{"scope beyond", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.other"} }, nil, 403, "read:data.other is beyond the ceiling of alice; allowed: call:pandas call:sql memory:get read:data.sales write:report"},
		{"scope a prefix", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = []string{"read:data"} }, nil, 403, "beyond the ceiling"},
		{"scope longer", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.sales.x"} }, nil, 403, "beyond the ceiling"},
		{"scope a wildcard", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = []string{"read:data.*"} }, nil, 400, ""},
		{"tool beyond", operatorAsks, func(r *schemas.IssueRequest) { r.Tools = []string{"http2"} }, nil, 403, "call:http2 is beyond"},
		{"tool beyond, as scope", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = []string{"call:http2"} }, nil, 403, "call:http2 is beyond"},
		{"forbidden tool", operatorAsks, func(r *schemas.IssueRequest) { r.Tools = []string{"bash"} }, nil, 403, "tool bash is forbidden to alice"},
		{"asked and forbidden", operatorAsks, func(r *schemas.IssueRequest) { r.ForbiddenTools = []string{"pandas"} }, nil, 403, "a denial always wins"},
		{"forbidden tool a wildcard", operatorAsks, func(r *schemas.IssueRequest) { r.ForbiddenTools = []string{"*"} }, nil, 400, ""},
		{"ttl beyond", operatorAsks, func(r *schemas.IssueRequest) { r.TTLSeconds = 601 }, nil, 403, "ttl 601 s is beyond the ceiling of alice; allowed: 1 to 600 s"},
		{"ttl negative", operatorAsks, func(r *schemas.IssueRequest) { r.TTLSeconds = -1 }, nil, 403, "ttl -1 s"},
		{"budget beyond", operatorAsks, func(r *schemas.IssueRequest) { r.MaxTokens = 101 }, nil, 403, "max_tokens 101 is beyond the ceiling of alice; allowed: at most 100"},
		{"budget negative", operatorAsks, func(r *schemas.IssueRequest) { r.MaxTokens = -1 }, nil, 403, "max_tokens -1"},
		{"job beyond", operatorAsks, func(r *schemas.IssueRequest) { r.Job = "other" }, nil, 403, "job other is beyond the ceiling of alice; allowed: report"},
		{"trace malformed", operatorAsks, func(r *schemas.IssueRequest) { r.TraceID = "x" }, nil, 400, "trace"},
		{"audience unknown", operatorAsks, func(r *schemas.IssueRequest) { r.Audience = "evil.example" }, nil, 404, "audience evil.example"},
		{"audience an agent", operatorAsks, func(r *schemas.IssueRequest) { r.Audience = "stranger" }, nil, 404, "audience stranger"},
		{"key of an account", operatorAsks, func(r *schemas.IssueRequest) { r.PublicKey = "A" + anyKey[1:] }, nil, 400, "public_key"},
		{"task too long", operatorAsks, func(r *schemas.IssueRequest) { r.Task = strings.Repeat("x", maxTask+1) }, nil, 413, "task"},
		{"too many scopes", operatorAsks, func(r *schemas.IssueRequest) { r.Scope = make([]string, maxScopes+1) }, nil, 413, "two operations"},
		{"operation not in the ceiling", operatorAsks, nil, []schemas.Event{{Kind: schemas.AgentDeclared, Agent: "alice",
			Data: schemas.Marshal(aliceAs(func(c *schemas.Ceiling) { c.Operations = []string{"other"} }))}}, 403, "operation op is beyond the ceiling of alice; allowed: other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := decideIssue(fleetState(t, c.events...), c.who, request(c.change), now)
			refused(t, err, c.code, c.text)
			if !reflect.DeepEqual(g, schemas.Grant{}) {
				t.Errorf("and yet %+v", g)
			}
		})
	}
}

func refused(t *testing.T, err error, code int, text string) {
	t.Helper()
	var r *schemas.Refusal
	if !errors.As(err, &r) || r.Code != code || !strings.Contains(r.Text, text) {
		t.Errorf("got %v, want %d …%s…", err, code, text)
	}
}

// issued is the event of a grant to alice that ends at noon and five minutes.
func issued(change func(*schemas.Grant)) schemas.Event {
	g := schemas.Grant{JTI: "j-0", Agent: "alice", Operation: "op", Scope: []string{"call:pandas", "read:data.sales"}, ForbiddenTools: []string{"bash", "http"},
		NotBefore: noon, Expires: noon.Add(5 * time.Minute), MaxTokens: 50, Task: "do it", Job: "report", TraceID: traceA, PublicKey: anyKey, IssuedBy: "orchestrator", Token: "t"}
	if change != nil {
		change(&g)
	}
	return schemas.Event{Kind: schemas.TokenIssued, Agent: g.Agent, Operation: g.Operation, JTI: g.JTI, Data: schemas.Marshal(g)}
}

func declared(p schemas.Principal) schemas.Event {
	return schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)}
}

// A hijacked agent opens operations without an end, each with a task as long as
// they may be: beyond a bound it is refused, and nobody else.
func TestNoAgentOpensOperationsWithoutEnd(t *testing.T) {
	var open []schemas.Event
	for n := range maxOpen {
		open = append(open, issued(func(g *schemas.Grant) {
			g.JTI, g.Operation, g.IssuedBy = fmt.Sprint("j-", n), fmt.Sprint("op-", n), "alice"
		}))
	}
	alice := asker{agent: "alice", name: "alice"}
	more := request(func(r *schemas.IssueRequest) { r.OperationID = "one-more" })
	if _, err := decideIssue(fleetState(t, open[1:]...), alice, more, now); err != nil {
		t.Errorf("the last that fits: %v", err)
	}
	s := fleetState(t, open...)
	_, err := decideIssue(s, alice, more, now)
	refused(t, err, 429, "has opened 1000 operations of alice")
	for name, c := range map[string]struct {
		who asker
		op  string
	}{"one that it has": {alice, "op-7"}, "another's": {asker{agent: "orchestrator", name: "orchestrator"}, "one-more"}, "an operator's": {operatorAsks, "one-more"}} {
		if _, err := decideIssue(s, c.who, request(func(r *schemas.IssueRequest) { r.OperationID = c.op }), now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended := schemas.Event{Kind: schemas.OperationEnded, Agent: "alice", Operation: "op-7", JTI: "j-7"}
	if _, err := decideIssue(fleetState(t, append(open, ended)...), alice, more, now); err != nil {
		t.Errorf("behind an end: %v", err)
	}
}

func TestDecideRefreshIsNeverWider(t *testing.T) {
	later := fresh{now: noon.Add(4 * time.Minute), jti: "j-1"}
	for _, c := range []struct {
		name    string
		ceiling func(*schemas.Ceiling)
		want    func(*schemas.Grant)
	}{
		{"under the same ceiling", nil, func(*schemas.Grant) {}},
		{"under a wider ceiling", func(c *schemas.Ceiling) {
			c.Scope = append(c.Scope, "read:more")
			c.MaxTokens, c.TTLSeconds = 1000, 86400
		}, func(*schemas.Grant) {}},
		{"scope lowered", func(c *schemas.Ceiling) { c.Scope = nil }, func(g *schemas.Grant) { g.Scope = []string{"call:pandas"} }},
		{"tool forbidden", func(c *schemas.Ceiling) { c.ForbiddenTools = append(c.ForbiddenTools, "pandas") }, func(g *schemas.Grant) {
			g.Scope, g.ForbiddenTools = []string{"read:data.sales"}, []string{"bash", "http", "pandas"}
		}},
		{"ttl lowered", func(c *schemas.Ceiling) { c.TTLSeconds = 60 }, func(g *schemas.Grant) { g.Expires = g.NotBefore.Add(time.Minute) }},
		{"budget lowered", func(c *schemas.Ceiling) { c.MaxTokens = 10 }, func(g *schemas.Grant) { g.MaxTokens = 10 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fleetState(t, issued(nil), declared(aliceAs(c.ceiling)))
			got, err := decideRefresh(s, "alice", schemas.RefreshRequest{OperationID: "op"}, later)
			if err != nil {
				t.Fatal(err)
			}
			want := s.Agents["alice"].Grants["op"].Grant
			want.JTI, want.Refreshes, want.Token = "j-1", "j-0", ""
			want.NotBefore = later.now.Truncate(time.Second)
			want.Expires = want.NotBefore.Add(5 * time.Minute)
			c.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestDecideRefreshRefuses(t *testing.T) {
	soon := fresh{now: noon.Add(time.Minute), jti: "j-1"}
	for _, c := range []struct {
		name   string
		agent  string
		at     fresh
		events []schemas.Event
		code   int
		text   string
	}{
		{"nothing was issued", "alice", soon, nil, 401, "no capability was issued"},
		{"another's operation", "stranger", soon, []schemas.Event{issued(nil)}, 401, "no capability was issued to stranger"},
		{"expired", "alice", fresh{now: noon.Add(5 * time.Minute)}, []schemas.Event{issued(nil)}, 401, "expired"},
		{"given up", "alice", soon, []schemas.Event{issued(nil), {Kind: schemas.OperationEnded, Agent: "alice", Operation: "op", JTI: "j-0", Reason: "given up"}}, 401, "no capability was issued"},
		{"revoked", "alice", soon, []schemas.Event{issued(nil), {Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j-0", Reason: "no"}}, 401, "revoked: no"},
		{"paused", "alice", soon, []schemas.Event{issued(nil), lockedBy(schemas.AgentPaused, "alice")}, 423, "paused"},
		{"suspended", "alice", soon, []schemas.Event{issued(nil), lockedBy(schemas.AgentSuspended, "alice")}, 410, "suspended"},
		{"after a suspension", "alice", soon, []schemas.Event{issued(nil), lockedBy(schemas.AgentSuspended, "alice"), lockedBy(schemas.AgentResumed, "alice")}, 401, "suspended: why"},
		{"operation left the ceiling", "alice", soon, []schemas.Event{issued(nil), declared(aliceAs(func(c *schemas.Ceiling) { c.Operations = []string{"x"} }))}, 403, "operation op"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decideRefresh(fleetState(t, c.events...), c.agent, schemas.RefreshRequest{OperationID: "op"}, c.at)
			refused(t, err, c.code, c.text)
		})
	}
}

func TestLocksFollowTheStatesOfAnAgent(t *testing.T) {
	kinds := map[schemas.Lock]schemas.Kind{schemas.Paused: schemas.AgentPaused, schemas.Suspended: schemas.AgentSuspended, schemas.Killed: schemas.AgentKilled}
	all := []schemas.Lock{schemas.Active, schemas.Paused, schemas.Suspended, schemas.Killed}
	possible := map[schemas.Lock]string{ // to, by from: y possible, - nothing to do, n refused
		schemas.Active: "-yyy", schemas.Paused: "y-yy", schemas.Suspended: "yn-y", schemas.Killed: "nnn-",
	}
	for from, row := range possible {
		for n, to := range all {
			var events []schemas.Event
			if from != schemas.Active {
				events = append(events, lockedBy(kinds[from], "alice"))
			}
			d, err := decideLock(fleetState(t, events...), schemas.LockRequest{AgentID: "alice", Lock: to, Reason: "r", Actor: "root"})
			got := byte('y')
			switch {
			case err != nil:
				got = 'n'
				refused(t, err, 409, "alice")
			case d.kind == "":
				got = '-'
			}
			if got != row[n] {
				t.Errorf("%s to %s: got %c, want %c (%v)", from, to, got, row[n], err)
			}
		}
	}
}

func TestLockRequestsAreChecked(t *testing.T) {
	good := schemas.LockRequest{AgentID: "alice", Lock: schemas.Killed, Reason: "r", Actor: "root"}
	for name, c := range map[string]struct {
		change func(*schemas.LockRequest)
		code   int
	}{
		"unknown":      {func(r *schemas.LockRequest) { r.AgentID = "nobody" }, 404},
		"bad id":       {func(r *schemas.LockRequest) { r.AgentID = "*" }, 400},
		"no reason":    {func(r *schemas.LockRequest) { r.Reason = " \n" }, 400},
		"long reason":  {func(r *schemas.LockRequest) { r.Reason = strings.Repeat("x", schemas.MaxReason+1) }, 400},
		"no actor":     {func(r *schemas.LockRequest) { r.Actor = "" }, 400},
		"unknown lock": {func(r *schemas.LockRequest) { r.Lock = "dead" }, 400},
	} {
		req := good
		c.change(&req)
		_, err := decideLock(fleetState(t), req)
		refused(t, err, c.code, "")
		if err == nil {
			t.Error(name)
		}
	}
}

// cause is an action of alice's that suspended her.
func cause(change func(*schemas.Event)) schemas.Event {
	e := schemas.Event{Kind: schemas.MessageDenied, Agent: "alice", Operation: "op", Action: schemas.Action{Verb: "write", Resource: "report"}, To: "lab",
		Digest: schemas.Sum([]byte("x")), Lock: schemas.Suspended, Code: schemas.CodeCancelled, Reason: "risk 95"}
	if change != nil {
		change(&e)
	}
	return e
}

// Who resumes an agent vouches for that very action, once, and for no other. Each
// row is somebody who wants the monitor to learn more than an operator looked at.
func TestDecideVouch(t *testing.T) {
	for name, c := range map[string]struct {
		events []schemas.Event // behind the cause
		ask    func(*schemas.LockRequest)
		code   int // 0: it is vouched for
		text   string
	}{
		"what suspended it":      {nil, nil, 0, ""},
		"an agent resumed since": {[]schemas.Event{lockedBy(schemas.AgentResumed, "alice")}, nil, 0, ""},
		"twice in one request":   {nil, func(r *schemas.LockRequest) { r.Vouch = append(r.Vouch, r.Vouch[0]) }, 0, ""},
		"an event of no agent":   {nil, func(r *schemas.LockRequest) { r.Vouch[0] = 1 }, 404, "can be vouched for"},
		"one of the future":      {nil, func(r *schemas.LockRequest) { r.Vouch[0] += 1000 }, 404, "can be vouched for"},
		"one good, one bad":      {nil, func(r *schemas.LockRequest) { r.Vouch = append(r.Vouch, 1) }, 404, "can be vouched for"},
		"another agent's":        {nil, func(r *schemas.LockRequest) { r.AgentID = "orchestrator" }, 404, "of another agent"},
		"a second time":          {[]schemas.Event{{Kind: schemas.ReviewVouched, Agent: "alice", Ref: 0}}, nil, 404, "has been vouched for"},
		"behind a kill":          {[]schemas.Event{lockedBy(schemas.AgentKilled, "alice")}, nil, 409, "killed"},
		"behind a kill and an enrolment": {[]schemas.Event{lockedBy(schemas.AgentKilled, "alice"), {Kind: schemas.AgentEnrolled, Agent: "alice"}},
			nil, 404, "can be vouched for"},
		"with another lock": {nil, func(r *schemas.LockRequest) { r.Lock = schemas.Suspended }, 400, "lock active alone"},
		"without a reason":  {nil, func(r *schemas.LockRequest) { r.Reason = "" }, 400, "reason"},
	} {
		before := fleetState(t)
		at := before.Seq + 1
		events := append([]schemas.Event{cause(nil)}, c.events...)
		for i := range events {
			switch events[i].Kind {
			case schemas.ReviewVouched:
				events[i].Ref = at
			case schemas.AgentEnrolled:
				events[i].Ref = at + 1
			}
		}
		req := schemas.LockRequest{AgentID: "alice", Lock: schemas.Active, Vouch: []uint64{at}, Reason: "known", Actor: "ada"}
		if c.ask != nil {
			c.ask(&req)
		}
		d, err := decideLock(fleetState(t, events...), req)
		if c.code != 0 {
			if err == nil {
				t.Errorf("%s: it is vouched for", name)
			}
			refused(t, err, c.code, c.text)
			continue
		}
		if err != nil || len(d.vouch) != 1 {
			t.Errorf("%s: %+v, %v", name, d, err)
			continue
		}
		if e := d.vouch[0]; e.Kind != schemas.ReviewVouched || e.Ref != at || e.Digest != schemas.Sum([]byte("x")) || e.Actor != "ada" || e.Reason != "known" || e.Operation != "op" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// What was refused for more than its risk, or not at all, is nobody's to vouch for.
func TestOnlyWhatSuspendedAnAgentCanBeVouchedFor(t *testing.T) {
	for name, change := range map[string]func(*schemas.Event){
		"refused by its capability": func(e *schemas.Event) { e.To = "" },
		"paused":                    func(e *schemas.Event) { e.Lock = schemas.Paused },
		"refused, and no lock":      func(e *schemas.Event) { e.Lock = "" },
		"held":                      func(e *schemas.Event) { e.Kind, e.Lock = schemas.MessageHeld, schemas.Paused },
		"a change of risk":          func(e *schemas.Event) { e.Kind = schemas.RiskChanged },
	} {
		s := fleetState(t, cause(change))
		_, err := decideLock(s, schemas.LockRequest{AgentID: "alice", Lock: schemas.Active, Vouch: []uint64{s.Seq}, Reason: "known", Actor: "ada"})
		if err == nil {
			t.Errorf("%s: it can be vouched for", name)
			continue
		}
		refused(t, err, 404, "can be vouched for")
	}
}

func heldEvent() schemas.Event {
	return schemas.Event{Kind: schemas.MessageHeld, Agent: "alice", Operation: "op", Action: schemas.Action{Verb: "write", Resource: "report"}, Digest: schemas.Sum([]byte("x"))}
}

func TestDecideReview(t *testing.T) {
	s := fleetState(t, heldEvent())
	held := s.Seq
	e, err := decideReview(s, schemas.ReviewRequest{Seq: held, Approve: true, Actor: "root"})
	if err != nil || e.Kind != schemas.ReviewApproved || e.Ref != held || e.Agent != "alice" {
		t.Errorf("approve: %+v, %v", e, err)
	}
	e, err = decideReview(s, schemas.ReviewRequest{Seq: held, Reason: "no\nway", Actor: "root"})
	if err != nil || e.Kind != schemas.ReviewDenied || e.Reason != "no way" {
		t.Errorf("deny: %+v, %v", e, err)
	}
	_, err = decideReview(s, schemas.ReviewRequest{Seq: held, Actor: "root"})
	refused(t, err, 400, "reason")
	_, err = decideReview(s, schemas.ReviewRequest{Seq: held + 1, Approve: true, Actor: "root"})
	refused(t, err, 404, "no action is held")
	decided := fleetState(t, heldEvent(), schemas.Event{Kind: schemas.ReviewDenied, Agent: "alice", Ref: held})
	_, err = decideReview(decided, schemas.ReviewRequest{Seq: held, Approve: true, Actor: "root"})
	refused(t, err, 404, "no action is held")
}

func TestDecideEnrollUndoesTheKillThatItNames(t *testing.T) {
	s := fleetState(t, lockedBy(schemas.AgentKilled, "alice"))
	e, err := decideEnroll(s, schemas.EnrollRequest{ID: "alice", Actor: "root"}, "anew", noon)
	if err != nil || e.Ref != s.Seq {
		t.Errorf("got %+v, %v", e, err)
	}
	_, err = decideEnroll(fleetState(t, lockedBy(schemas.AgentSuspended, "alice")), schemas.EnrollRequest{ID: "alice", Actor: "root"}, "anew", noon)
	refused(t, err, 409, "resume it first")
	_, err = decideEnroll(s, schemas.EnrollRequest{ID: "nobody", Actor: "root"}, "anew", noon)
	refused(t, err, 404, "declare it")
}

func TestLoweredCeilingRevokesWhatExceedsIt(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*schemas.Ceiling)
		why    string
	}{
		"same":           {nil, ""},
		"wider":          {func(c *schemas.Ceiling) { c.Scope = append(c.Scope, "read:x") }, ""},
		"scope":          {func(c *schemas.Ceiling) { c.Scope = nil }, "the ceiling no longer admits read:data.sales"},
		"tool":           {func(c *schemas.Ceiling) { c.Tools = nil }, "the ceiling no longer admits call:pandas"},
		"forbidden":      {func(c *schemas.Ceiling) { c.ForbiddenTools = append(c.ForbiddenTools, "new") }, "the ceiling no longer admits calling new"},
		"forbidden tool": {func(c *schemas.Ceiling) { c.ForbiddenTools = append(c.ForbiddenTools, "pandas") }, "the ceiling no longer admits call:pandas"},
		"budget":         {func(c *schemas.Ceiling) { c.MaxTokens = 49 }, "the ceiling no longer admits max_tokens 50"},
		"ttl":            {func(c *schemas.Ceiling) { c.TTLSeconds = 299 }, "the ceiling no longer admits its lifetime"},
		"job":            {func(c *schemas.Ceiling) { c.Jobs = nil }, "the ceiling no longer admits job report"},
		"operation":      {func(c *schemas.Ceiling) { c.Operations = []string{"x"} }, "the ceiling no longer admits operation op"},
	} {
		t.Run(name, func(t *testing.T) {
			s := fleetState(t, issued(nil), schemas.Event{Kind: schemas.AgentDeclared, Agent: "alice", Data: schemas.Marshal(aliceAs(c.change))})
			revoke := outdated(s, nil, noon)
			switch {
			case c.why == "" && len(revoke) > 0:
				t.Errorf("revoked: %v", revoke)
			case c.why != "" && (len(revoke) != 1 || revoke[0].why != c.why):
				t.Errorf("got %+v, want %q", revoke, c.why)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	good := schemas.ApplyRequest{TrustDomain: "acme.example", Digest: "cd", Actor: "root", Principals: []schemas.Principal{aliceAs(nil),
		{ID: "orchestrator", Kind: schemas.KindAgent}, {ID: "stranger", Kind: schemas.KindAgent}, {ID: "warehouse", Kind: schemas.KindService}}}
	for name, c := range map[string]struct {
		change func(*schemas.ApplyRequest)
		code   int
		text   string
	}{
		"another trust domain": {func(r *schemas.ApplyRequest) { r.TrustDomain = "evil.example" }, 409, "trust domain evil.example"},
		"a silent removal":     {func(r *schemas.ApplyRequest) { r.Principals = r.Principals[:2] }, 409, "stranger, warehouse; with --prune"},
		"twice":                {func(r *schemas.ApplyRequest) { r.Principals = append(r.Principals, r.Principals[0]) }, 400, "declared twice"},
		"the built-in service": {func(r *schemas.ApplyRequest) { r.Principals[1].ID = "memory" }, 400, "reserved"},
		"a lock":               {func(r *schemas.ApplyRequest) { r.Principals[1].Lock = schemas.Active }, 400, "can't set a lock"},
		"a generation":         {func(r *schemas.ApplyRequest) { r.Principals[1].Generation = 1 }, 400, "can't set a lock"},
		"a bad id":             {func(r *schemas.ApplyRequest) { r.Principals[1].ID = "a.b" }, 400, "a.b"},
		"a bad kind":           {func(r *schemas.ApplyRequest) { r.Principals[1].Kind = "god" }, 400, "kind"},
		"a wildcard scope":     {func(r *schemas.ApplyRequest) { r.Principals[1].Ceiling = &schemas.Ceiling{Scope: []string{"read:>"}} }, 400, "scope"},
		"a wildcard prefix":    {func(r *schemas.ApplyRequest) { r.Principals[1].Serves = []string{"read:*"} }, 400, "serves"},
		"thresholds": {func(r *schemas.ApplyRequest) {
			r.Principals[1].Thresholds = &schemas.Thresholds{Pause: 95, Suspend: 90}
		}, 400, "thresholds"},
		"ttl":      {func(r *schemas.ApplyRequest) { r.Principals[1].Ceiling = &schemas.Ceiling{TTLSeconds: 86401} }, 400, "ttl"},
		"no actor": {func(r *schemas.ApplyRequest) { r.Actor = "" }, 400, "actor"},
	} {
		t.Run(name, func(t *testing.T) {
			req := good
			req.Principals = append([]schemas.Principal{}, good.Principals...)
			c.change(&req)
			_, err := decideApply(fleetState(t), "acme.example", req)
			refused(t, err, c.code, c.text)
		})
	}
	if _, err := decideApply(fleetState(t), "acme.example", good); err != nil {
		t.Error(err)
	}
}

func TestOperationsEndOnceTheirLastCapabilityIsOver(t *testing.T) {
	at := func(d time.Duration) time.Time { return noon.Add(5*time.Minute + d) }
	for _, c := range []struct {
		name   string
		events []schemas.Event
		now    time.Time
		want   string
	}{
		{"live", []schemas.Event{issued(nil)}, at(-time.Second), ""},
		{"within the grace", []schemas.Event{issued(nil)}, at(endGrace - 1), ""},
		{"expired", []schemas.Event{issued(nil)}, at(endGrace), "expired"},
		{"refreshed", []schemas.Event{issued(nil), issued(func(g *schemas.Grant) { g.JTI, g.Expires = "j-1", at(time.Hour) })}, at(endGrace), ""},
		{"revoked", []schemas.Event{issued(nil), {Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j-0", Reason: "no"}}, noon, "revoked: no"},
		{"suspended", []schemas.Event{issued(nil), lockedBy(schemas.AgentSuspended, "alice")}, noon, "suspended: why"},
		{"ended", []schemas.Event{issued(nil), {Kind: schemas.OperationEnded, Agent: "alice", Operation: "op", JTI: "j-0", Reason: "given up"}}, at(time.Hour), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			over := overdue(fleetState(t, c.events...), c.now)
			switch {
			case c.want == "" && len(over) > 0:
				t.Errorf("ended: %+v", over)
			case c.want != "" && (len(over) != 1 || over[0].why != c.want):
				t.Errorf("got %+v, want %q", over, c.want)
			}
		})
	}
}

func TestTracksCountWhatALockCancelled(t *testing.T) {
	tr := newTracks()
	at := func(seq uint64, kind schemas.Kind, agent string, ref uint64) *schemas.Event {
		return &schemas.Event{Seq: seq, Kind: kind, Agent: agent, Ref: ref}
	}
	tr.fold(at(1, schemas.MessageAccepted, "alice", 0), false, nil)
	tr.fold(at(2, schemas.MessageAccepted, "bob", 0), false, nil)
	tr.fold(at(3, schemas.AgentKilled, "alice", 0), true, nil)
	killed := tr.newest["alice"]
	tr.fold(at(4, schemas.MessageAccepted, "alice", 0), false, nil) // in flight: behind the kill
	tr.fold(at(5, schemas.ReleaseMark, schemas.Fleet, 2), false, nil)
	tr.fold(at(6, schemas.MessageCancelled, "alice", 1), false, nil)
	toAlice := at(7, schemas.MessageCancelled, "bob", 2)
	toAlice.To = "alice"
	tr.fold(toAlice, false, nil)
	tr.fold(at(8, schemas.MessageCancelled, "carol", 9), false, nil)
	select {
	case <-killed.done:
		t.Fatal("complete before release was through")
	default:
	}
	tr.fold(at(9, schemas.ReleaseMark, schemas.Fleet, 3), false, nil)
	<-killed.done
	tr.fold(at(10, schemas.MessageCancelled, "alice", 4), false, nil)
	if !reflect.DeepEqual(killed.cancelled, []uint64{1, 2}) {
		t.Errorf("got %+v", killed)
	}
}

func TestOnlyAnAgentFarOverItsRateFloods(t *testing.T) {
	agent := func(rate float64, lock schemas.Lock) *schemas.Agent {
		a := &schemas.Agent{Principal: schemas.Principal{ID: "a", Kind: schemas.KindAgent}, Lock: lock}
		if rate > 0 {
			a.Rate = &schemas.Rate{PerSecond: rate, Burst: 1}
		}
		return a
	}
	bytes, messages := schemas.Violation{What: schemas.FloodOfBytes, Count: 128}, func(n int) schemas.Violation {
		return schemas.Violation{What: schemas.FloodOfMessages, Count: n}
	}
	for name, c := range map[string]struct {
		a    *schemas.Agent
		v    schemas.Violation
		want bool
	}{
		"a hundred times the default rate": {agent(0, schemas.Active), messages(10_000), true},
		"one message less":                 {agent(0, schemas.Active), messages(9_999), false},
		"while paused":                     {agent(0, schemas.Paused), messages(10_000), true},
		"suspended already":                {agent(0, schemas.Suspended), messages(10_000), false},
		"within a rate of its own":         {agent(1e6, schemas.Active), messages(10_000), false},
		"over a small rate of its own":     {agent(1, schemas.Active), messages(10_000), true},
		"bytes, whatever the rate":         {agent(1e6, schemas.Active), bytes, true},
		"a service":                        {&schemas.Agent{Principal: schemas.Principal{Kind: schemas.KindService}, Lock: schemas.Active}, bytes, false},
		"nobody of the fleet":              {nil, bytes, false},
	} {
		if got := floods(c.a, c.v); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What the server's template would let through while a push is on its way, the
// state refuses.
func TestAnOperatorsRightsAreThoseOfTheState(t *testing.T) {
	op := func(role schemas.Role, lock schemas.Lock) schemas.Agent {
		return schemas.Agent{Principal: schemas.Principal{ID: "amy", Kind: schemas.KindOperator, Role: role}, Lock: lock}
	}
	for _, c := range []struct {
		name    string
		a       schemas.Agent
		subject string
		code    int
	}{
		{"nobody", schemas.Agent{}, schemas.CtlStatus, schemas.CodeUnauthorized},
		{"an agent", schemas.Agent{Principal: schemas.Principal{ID: "amy", Kind: schemas.KindAgent}, Lock: schemas.Active}, schemas.CtlStatus, schemas.CodeUnauthorized},
		{"a viewer looks", op(schemas.RoleViewer, schemas.Active), schemas.CtlStatus, 0},
		{"a viewer locks", op(schemas.RoleViewer, schemas.Active), schemas.CtlLock, schemas.CodeForbidden},
		{"a reviewer locks", op(schemas.RoleReviewer, schemas.Active), schemas.CtlLock, schemas.CodeForbidden},
		{"an operator applies", op(schemas.RoleOperator, schemas.Active), schemas.CtlApply, schemas.CodeForbidden},
		{"an admin applies", op(schemas.RoleAdmin, schemas.Active), schemas.CtlApply, 0},
		{"a paused admin", op(schemas.RoleAdmin, schemas.Paused), schemas.CtlStatus, schemas.CodeUnauthorized},
		{"a killed admin", op(schemas.RoleAdmin, schemas.Killed), schemas.CtlStatus, schemas.CodeUnauthorized},
		{"no role", op("", schemas.Active), schemas.CtlStatus, schemas.CodeForbidden},
		{"no such role", op("root", schemas.Active), schemas.CtlStatus, schemas.CodeForbidden},
		{"no such command", op(schemas.RoleAdmin, schemas.Active), "writ.ctl.ledger.sign", schemas.CodeForbidden},
	} {
		_, err := decideAsk(c.a, "amy", c.subject)
		var r *schemas.Refusal
		if errors.As(err, &r) != (c.code != 0) || r != nil && r.Code != c.code {
			t.Errorf("%s: %v, want %d", c.name, err, c.code)
		}
	}
}
