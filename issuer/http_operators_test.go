package issuer_test

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability/dpop"
)

func decision(approve bool, reason string) map[string]any {
	return map[string]any{"approve": approve, "reason": reason}
}

func reviewPath(seq uint64) string { return "/v1/reviews/" + strconv.FormatUint(seq, 10) }

// answer is what a good request must get.
func answer[Rep any](c *caller, res *http.Response, body []byte) (rep Rep) {
	c.t.Helper()
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s", res.Status, body)
	}
	must(c.t, schemas.Unmarshal(body, &rep))
	return rep
}

func TestOperatorsDecideAndLockOverHTTP(t *testing.T) {
	p := withOperators(t)
	a := p.api()
	reviewer, viewer, op := a.caller("reviewer-1"), a.caller("viewer-1"), a.caller("operator-1")
	yes, no := p.hold("analyst-7"), p.hold("analyst-7")

	res, b := viewer.get("/v1/reviews?limit=1")
	list := answer[schemas.ReviewsReply](viewer, res, b)
	if len(list.Reviews) != 1 || list.Reviews[0].Seq != yes || list.Reviews[0].AgentID != "analyst-7" {
		t.Errorf("reviews %+v", list)
	}
	res, b = viewer.get("/v1/reviews?after=" + strconv.FormatUint(yes, 10))
	if list := answer[schemas.ReviewsReply](viewer, res, b); len(list.Reviews) != 1 || list.Reviews[0].Seq != no {
		t.Errorf("reviews behind the first: %+v", list)
	}
	res, b = reviewer.send(reviewPath(yes), decision(true, "looked at it"))
	if rep := answer[schemas.ReviewReply](reviewer, res, b); rep.State != "approved" || rep.Seq != yes {
		t.Errorf("%+v", rep)
	}
	if e := p.lastEvent("ev.analyst-7.review.approved"); e.Actor != "reviewer-1" || e.Ref != yes || e.Reason != "looked at it" {
		t.Errorf("event %+v", e)
	}
	res, b = reviewer.send(reviewPath(no), decision(false, "odd"))
	if rep := answer[schemas.ReviewReply](reviewer, res, b); rep.State != "denied" {
		t.Errorf("%+v", rep)
	}
	res, b = op.send("/v1/agents/analyst-7/lock", map[string]any{"lock": "suspended", "reason": "odd"})
	if r := answer[schemas.Receipt](op, res, b); r.State != schemas.Suspended || r.Seq == 0 || r.Checkpoint == "" {
		t.Errorf("receipt %+v", r)
	}
	if e := p.lastEvent("ev.analyst-7.agent.suspended"); e.Actor != "operator-1" {
		t.Errorf("the log names %q", e.Actor)
	}
	res, b = viewer.get("/v1/status?agent_id=analyst-7")
	if s := answer[schemas.StatusReply](viewer, res, b); len(s.Agents) != 1 || s.Agents[0].State != schemas.Suspended || s.Agents[0].Reason != "odd" {
		t.Errorf("status %+v", s)
	}
	cause := p.suspend("writer-2")
	res, b = viewer.get("/v1/status?agent_id=writer-2")
	if s := answer[schemas.StatusReply](viewer, res, b); len(s.Agents) != 1 || !slices.Equal(s.Agents[0].Causes, []uint64{cause}) {
		t.Errorf("status %+v", s)
	}
	res, b = op.send("/v1/agents/writer-2/lock", map[string]any{"lock": "active", "vouch": []uint64{cause}, "reason": "known"})
	if r := answer[schemas.Receipt](op, res, b); r.State != schemas.Active || !slices.Equal(r.Vouched, []uint64{cause}) {
		t.Errorf("receipt %+v", r)
	}
	if e := p.lastEvent("ev.writer-2.review.vouched"); e.Actor != "operator-1" || e.Ref != cause {
		t.Errorf("event %+v", e)
	}
	res, b = viewer.get("/v1/status?limit=2")
	if s := answer[schemas.StatusReply](viewer, res, b); len(s.Agents) != 2 || s.Next != s.Agents[1].AgentID {
		t.Errorf("status %+v", s)
	}
}

// The attack table of operators over HTTP: none of it decides anything.
func TestNobodyElseDecidesOverHTTP(t *testing.T) {
	p := withOperators(t)
	a := p.api()
	reviewer, viewer, agent := a.caller("reviewer-1"), a.caller("viewer-1"), a.caller("analyst-7")
	held := p.hold("analyst-7")
	path := reviewPath(held)
	viewer.get("/v1/reviews") // takes the nonce
	reviewer.nonce, agent.nonce = viewer.nonce, viewer.nonce
	raw := func(body string) func() *http.Request {
		return func() *http.Request { return reviewer.signed("POST", path, strings.NewReader(body)) }
	}
	lock := func(c *caller, id string, body any) func() *http.Request {
		return func() *http.Request { return c.request("/v1/agents/"+id+"/lock", body) }
	}
	kill := map[string]any{"lock": "killed", "reason": "x"}
	cause := p.suspend("writer-2")
	vouch := map[string]any{"lock": "active", "vouch": []uint64{cause}, "reason": "x"}
	op := a.caller("operator-1")
	op.nonce = viewer.nonce
	for _, at := range []struct {
		name   string
		make   func() *http.Request
		status int
		word   string
	}{
		{"a viewer approves", func() *http.Request { return viewer.request(path, decision(true, "")) }, 403, "viewer-1 is viewer"},
		{"a reviewer locks", lock(reviewer, "analyst-7", kill), 403, "reviewer-1 is reviewer"},
		{"an agent approves its own action", func() *http.Request { return agent.request(path, decision(true, "")) }, 401, "bad signature"},
		{"a viewer vouches", lock(viewer, "writer-2", vouch), 403, "viewer-1 is viewer"},
		{"a reviewer vouches", lock(reviewer, "writer-2", vouch), 403, "reviewer-1 is reviewer"},
		{"an agent vouches", lock(agent, "writer-2", vouch), 401, "bad signature"},
		{"a vouch for another agent's action", lock(op, "analyst-7", vouch), 404, "of another agent"},
		{"a vouch for nothing", lock(op, "writer-2", map[string]any{"lock": "active", "vouch": []uint64{0}, "reason": "x"}), 404, "event 0"},
		{"a vouch that locks", lock(op, "writer-2", map[string]any{"lock": "paused", "vouch": []uint64{cause}, "reason": "x"}), 400, "active alone"},
		{"an agent looks", func() *http.Request { return agent.signed("GET", "/v1/reviews", nil) }, 401, "bad signature"},
		{"an operator takes a capability", func() *http.Request { return op.request("/v1/tokens", report()) }, 401, "bad signature"},
		{"an operator kills an admin", lock(op, "admin-1", kill), 403, "admins alone"},
		{"a lock of nobody", lock(op, "nobody", kill), 404, "nobody"},
		{"a lock that is none", lock(op, "analyst-7", map[string]any{"lock": "frozen", "reason": "x"}), 400, "frozen"},
		{"a lock in another's name", lock(op, "analyst-7", map[string]any{"lock": "paused", "reason": "x", "actor": "admin-1"}), 400, "actor"},
		{"a lock of two", lock(op, "analyst-7", map[string]any{"lock": "paused", "reason": "x", "agent_id": "writer-2"}), 400, "agent_id"},
		{"a lock without a reason", lock(op, "analyst-7", map[string]any{"lock": "paused"}), 400, "reason"},
		{"stolen credential, own key", func() *http.Request {
			r := reviewer.request(path, decision(true, ""))
			reviewer.prove(r, viewer.prover)
			return r
		}, 401, "possession not proven"},
		{"stolen credential, no proof", func() *http.Request {
			r := reviewer.request(path, decision(true, ""))
			r.Header.Del(dpop.Header)
			return r
		}, 401, "proof missing"},
		{"a proof for another review", func() *http.Request {
			r := reviewer.request(path, decision(true, ""))
			r.Header.Set(dpop.Header, reviewer.request(reviewPath(held+1), nil).Header.Get(dpop.Header))
			return r
		}, 401, "proof for another URL"},
		{"a proof for looking", func() *http.Request {
			r := reviewer.request(path, decision(true, ""))
			r.Header.Set(dpop.Header, reviewer.signed("GET", path, nil).Header.Get(dpop.Header))
			return r
		}, 401, "proof for another method"},
		{"bearer", func() *http.Request {
			r := reviewer.request(path, decision(true, ""))
			r.Header.Set("Authorization", "Bearer "+reviewer.jwt)
			return r
		}, 401, "bearer token not taken"},
		{"a review that is none", func() *http.Request { return reviewer.request(reviewPath(held+1), decision(true, "")) }, 404, "no action is held"},
		{"no sequence", func() *http.Request { return reviewer.request("/v1/reviews/all", decision(true, "")) }, 400, "no sequence"},
		{"zero", func() *http.Request { return reviewer.request("/v1/reviews/0", decision(true, "")) }, 400, "no sequence"},
		{"another name in the body", raw(`{"approve":true,"actor":"admin-1"}`), 400, "actor"},
		{"another sequence in the body", raw(`{"approve":true,"seq":1}`), 400, "seq"},
		{"approve twice in the body", raw(`{"approve":false,"approve":true}`), 400, "twice"},
		{"approve by a look-alike", raw(`{"Approve":true}`), 400, "unknown"},
		{"nothing decided", raw(`{"reason":"x"}`), 400, "approve is missing"},
		{"approve null", raw(`{"approve":null}`), 400, "approve"},
		{"denied without a reason", raw(`{"approve":false}`), 400, "reason"},
		{"no JSON", raw("approve=true"), 400, "invalid character"},
		{"too long", raw(`{"reason":"` + strings.Repeat("x", 64<<10) + `"}`), 413, "65536"},
		{"a query that is not there", func() *http.Request { return viewer.signed("GET", "/v1/reviews?agent_id=x", nil) }, 400, "agent_id"},
		{"a limit twice", func() *http.Request { return viewer.signed("GET", "/v1/status?limit=1&limit=2", nil) }, 400, "2 times"},
		{"a limit of all", func() *http.Request { return viewer.signed("GET", "/v1/status?limit=100000", nil) }, 400, "1000"},
	} {
		res, b := a.do(at.make())
		a.problem(at.name, res, b, at.status, at.word)
	}
	for path, method := range map[string]string{"/v1/reviews": "POST", "/v1/reviews/7": "GET", "/v1/status": "DELETE", "/v1/agents/analyst-7/lock": "PUT"} {
		r, err := http.NewRequestWithContext(t.Context(), method, a.url+path, nil)
		must(t, err)
		res, err := http.DefaultClient.Do(r)
		must(t, err)
		b, err := io.ReadAll(res.Body)
		must(t, err)
		must(t, res.Body.Close())
		a.problem(method+" "+path, res, b, 405, "is possible here")
	}
	if e := call[schemas.ReviewsReply](p, schemas.CtlReviews, schemas.PageRequest{}); len(e.Reviews) != 1 || e.Reviews[0].Seq != held {
		t.Fatalf("held is %+v", e)
	}

	// The very request that decided decides nothing again, and the action is
	// decided once.
	r := reviewer.request(path, decision(true, ""))
	if res, b := a.do(r); res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, b)
	}
	r.Body = io.NopCloser(strings.NewReader(`{"approve":true}`))
	res, b := a.do(r)
	a.problem("the same request again", res, b, 401, "proof replayed")
	res, b = reviewer.send(path, decision(true, ""))
	a.problem("approved twice", res, b, 404, "was decided")
}

func TestTwoPersonsApproveOverHTTPWhereTheFleetAsksForIt(t *testing.T) {
	careful := analyst
	careful.ID, careful.TwoPerson = "careful", true
	p := withOperators(t, careful, person("second", schemas.RoleReviewer))
	a := p.api()
	held := p.hold("careful")
	one, two := a.caller("reviewer-1"), a.caller("second")
	res, b := one.send(reviewPath(held), decision(true, ""))
	if rep := answer[schemas.ReviewReply](one, res, b); rep.State != "endorsed" {
		t.Errorf("first approval: %+v", rep)
	}
	res, b = one.send(reviewPath(held), decision(true, ""))
	a.problem("the same person over HTTP", res, b, 409, "second operator's approval")
	if _, r := command[schemas.ReviewReply](t, p.enroll("reviewer-1"), schemas.CtlReview, schemas.ReviewRequest{Seq: held, Approve: true}); r == nil || r.Code != schemas.CodeConflict {
		t.Errorf("the same person over NATS: %v", r)
	}
	res, b = two.get("/v1/reviews")
	if l := answer[schemas.ReviewsReply](two, res, b); !l.Reviews[0].TwoPerson || l.Reviews[0].Endorsed != "reviewer-1" {
		t.Errorf("reviews %+v", l)
	}
	res, b = two.send(reviewPath(held), decision(true, ""))
	if rep := answer[schemas.ReviewReply](two, res, b); rep.State != "approved" {
		t.Errorf("second approval: %+v", rep)
	}
}

func TestAnOperatorsRightsEndOverHTTPAsTheyDoOverNATS(t *testing.T) {
	p := withOperators(t)
	a := p.api()
	held := p.hold("analyst-7")
	lowered, paused, suspended, killed := a.caller("admin-1"), a.caller("reviewer-1"), a.caller("operator-1"), a.caller("viewer-1")
	lowered.get("/v1/status")
	call[schemas.ApplyReply](p, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "amy", Principals: []schemas.Principal{person("admin-1", schemas.RoleViewer)}})
	res, b := lowered.send(reviewPath(held), decision(true, ""))
	if res.StatusCode != 401 && res.StatusCode != 403 {
		t.Errorf("a lowered role: %s %s", res.Status, b)
	}
	again := a.caller("admin-1")
	res, b = again.send(reviewPath(held), decision(true, ""))
	a.problem("a lowered role, enrolled anew", res, b, 403, "admin-1 is viewer")

	p.lock(schemas.Paused, "reviewer-1")
	res, b = paused.send(reviewPath(held), decision(true, ""))
	a.problem("paused", res, b, 401, "reviewer-1 is paused")
	p.lock(schemas.Suspended, "operator-1")
	res, b = suspended.get("/v1/reviews")
	if res.StatusCode != 401 {
		t.Errorf("suspended: %s %s", res.Status, b)
	}
	p.lock(schemas.Active, "operator-1")
	res, b = suspended.get("/v1/reviews")
	a.problem("from before the suspension", res, b, 401, "bad signature")
	p.lock(schemas.Killed, "viewer-1")
	res, b = killed.get("/v1/reviews")
	if res.StatusCode != 401 {
		t.Errorf("killed: %s %s", res.Status, b)
	}
	fresh := a.caller("viewer-1")
	res, b = killed.get("/v1/reviews")
	if res.StatusCode != 401 {
		t.Errorf("from before the kill: %s %s", res.Status, b)
	}
	res, b = fresh.get("/v1/reviews")
	if l := answer[schemas.ReviewsReply](fresh, res, b); len(l.Reviews) != 1 {
		t.Errorf("reviews %+v", l)
	}
	p.clock.advance(31 * 24 * time.Hour)
	res, b = fresh.get("/v1/reviews")
	a.problem("a month old", res, b, 401, "expired")
}

// One operator who floods is held to a rate, and leaves others theirs.
func TestOperatorsHaveARateOverHTTP(t *testing.T) {
	p := withOperators(t)
	a := p.api()
	viewer, reviewer := a.caller("viewer-1"), a.caller("reviewer-1")
	nc := p.enroll("viewer-1")
	for until := time.Now().Add(time.Minute); ; {
		for range 500 { // over NATS, as fast as it goes; nobody waits for the answers
			must(t, nc.PublishRequest(schemas.CtlJWKS, "_INBOX.x", nil))
		}
		must(t, nc.Flush())
		res, b := viewer.get("/v1/reviews")
		if res.StatusCode != 200 {
			a.problem("over the rate", res, b, 429, "commands in a second")
			break
		}
		if time.Now().After(until) {
			t.Fatal("the flood over NATS leaves the rate over HTTP as it was")
		}
	}
	if res, b := reviewer.get("/v1/reviews"); res.StatusCode != 200 {
		t.Errorf("another: %s %s", res.Status, b)
	}
}
