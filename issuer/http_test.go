package issuer_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/httpcap"
)

// An api is the issuer's HTTP face, and the document that every exchange in
// these tests is held against.
type api struct {
	*plane
	url    string
	doc    *document
	client *http.Client
}

func newAPI(t *testing.T) *api {
	t.Helper()
	p := newPlane(t, embed.Options{})
	p.apply()
	return p.api()
}

// api serves the issuer of a plane.
func (p *plane) api() *api {
	t := p.t.(*testing.T)
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	a := &api{plane: p, url: "http://" + s.Listener.Addr().String(), client: http.DefaultClient}
	h, err := p.issuer.Handler([]string{a.url})
	must(t, err)
	s.Config.Handler = h
	s.Start()
	t.Cleanup(s.Close)
	a.doc = readDocument(t)
	return a
}

// A caller is an agent with its identity, at the HTTP face.
type caller struct {
	*api
	jwt    string
	prover *dpop.Prover
	nonce  string
}

func (a *api) caller(id string) *caller {
	a.t.Helper()
	creds := []byte(call[schemas.EnrollReply](a.plane, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "alice"}).Creds)
	return a.callerOf(creds)
}

func (a *api) callerOf(creds []byte) *caller {
	a.t.Helper()
	token, err := jwt.ParseDecoratedJWT(creds)
	must(a.t, err)
	pair, err := jwt.ParseDecoratedNKey(creds)
	must(a.t, err)
	seed, err := pair.Seed()
	must(a.t, err)
	_, raw, err := nkeys.DecodeSeed(seed)
	must(a.t, err)
	prover, err := dpop.NewProver(ed25519.NewKeyFromSeed(raw))
	must(a.t, err)
	return &caller{api: a, jwt: token, prover: prover}
}

// request makes a good one: POST with a proof and the newest nonce.
func (c *caller) request(path string, body any) *http.Request {
	c.t.Helper()
	return c.signed("POST", path, bytes.NewReader(schemas.Marshal(body)))
}

func (c *caller) signed(method, path string, body io.Reader) *http.Request {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, body)
	must(c.t, err)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "DPoP "+c.jwt)
	c.prove(r, c.prover)
	return r
}

func (c *caller) prove(r *http.Request, p *dpop.Prover) {
	c.t.Helper()
	proof, err := p.Prove(r.Method, strings.SplitN(r.URL.String(), "?", 2)[0], c.jwt, c.nonce, c.clock.now())
	must(c.t, err)
	r.Header.Set(dpop.Header, proof)
}

// do sends a request and holds it and its answer against the document.
func (a *api) do(r *http.Request) (*http.Response, []byte) {
	a.t.Helper()
	var sent []byte
	if r.Body != nil {
		var err error
		sent, err = io.ReadAll(r.Body)
		must(a.t, err)
	}
	r.Body, r.GetBody, r.ContentLength = io.NopCloser(bytes.NewReader(sent)), nil, int64(len(sent))
	res, err := a.client.Do(r)
	must(a.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(a.t, err)
	res.Body = io.NopCloser(bytes.NewReader(body))
	if res.StatusCode < 300 && r.Method == "POST" {
		if err := a.doc.request(r, sent); err != nil {
			a.t.Errorf("%s %s was answered %s, and is not in the document: %v: %s", r.Method, r.URL, res.Status, err, sent)
		}
	}
	if _, err := a.doc.operation(r); r.Method == "POST" || err == nil || res.StatusCode < 300 {
		if err := a.doc.answer(r, res, body); err != nil {
			a.t.Errorf("%s %s: the answer %s is not in the document: %v: %s", r.Method, r.URL, res.Status, err, body)
		}
	}
	return res, body
}

// send posts, and takes the nonce where it is told to.
func (c *caller) send(path string, body any) (*http.Response, []byte) {
	c.t.Helper()
	return c.persist(func() *http.Request { return c.request(path, body) })
}

// get is send for what is read.
func (c *caller) get(path string) (*http.Response, []byte) {
	c.t.Helper()
	return c.persist(func() *http.Request { return c.signed("GET", path, nil) })
}

func (c *caller) persist(make func() *http.Request) (*http.Response, []byte) {
	c.t.Helper()
	res, b := c.do(make())
	if res.StatusCode == http.StatusUnauthorized && strings.Contains(res.Header.Get("WWW-Authenticate"), "use_dpop_nonce") {
		c.nonce = res.Header.Get(dpop.HeaderNonce)
		res, b = c.do(make())
	}
	return res, b
}

func (c *caller) ok(path string, body any) schemas.IssueReply {
	c.t.Helper()
	res, b := c.send(path, body)
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s: %s", path, res.Status, b)
	}
	var rep schemas.IssueReply
	must(c.t, schemas.Unmarshal(b, &rep))
	return rep
}

func (a *api) problem(what string, res *http.Response, body []byte, status int, word string) {
	a.t.Helper()
	var p httpcap.Problem
	if err := json.Unmarshal(body, &p); err != nil || res.StatusCode != status || p.Status != status || p.Code < 400 || status == 405 && p.Code != 405 || p.Reason != word && !strings.Contains(p.Detail, word) {
		a.t.Errorf("%s: %s %s (%v), want %d and %q", what, res.Status, body, err, status, word)
	}
}

// report is what analyst-7 asks for itself.
func report() map[string]any {
	return map[string]any{"operation_id": "report", "scope": []string{"read:data.sales"}, "tools": []string{"pandas"}, "task": "Summarise the sales"}
}

func (p *plane) verifier() *capability.Verifier {
	p.t.Helper()
	v, err := capability.NewVerifier("acme.example", p.issuer.JWKS())
	must(p.t, err)
	return v
}

func TestCapabilitiesAreIssuedRefreshedAndGivenUpOverHTTP(t *testing.T) {
	a := newAPI(t)
	c := a.caller("analyst-7")
	first := c.ok("/v1/tokens", report())
	claims, err := a.verifier().Verify(first.Token, capability.Expect{Time: time.Now(), Scope: "read:data.sales", Delivered: true})
	must(t, err)
	if claims.AgentID != "analyst-7" || claims.IssuedBy != "analyst-7" || claims.JTI != first.JTI || claims.Confirmation.JKT != "" {
		t.Errorf("claims %+v", claims)
	}
	if e := a.lastEvent("ev.analyst-7.token.issued"); e.Actor != "analyst-7" || e.JTI != first.JTI {
		t.Errorf("event %+v", e)
	}
	nc := a.mustClient(first.Creds)
	if !mayPublish(t, nc, "out.report.read.data.sales") || mayPublish(t, nc, "out.report.read.data.wages") {
		t.Error("the NATS user has other rights than the token")
	}
	next := c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report"})
	if next.JTI == first.JTI || next.Creds != "" || !slices.Equal(next.Scope, first.Scope) {
		t.Errorf("refreshed: %+v", next)
	}
	for _, over := range []string{first.Token, "garbage", ""} { // nothing to end
		if res, b := c.send("/v1/tokens/revoke", map[string]any{"token": over}); res.StatusCode != 200 || string(b) != "{}" {
			t.Errorf("%.10s…: %s %s", over, res.Status, b)
		}
	}
	res, b := c.send("/v1/tokens/revoke", map[string]any{"token": next.Token})
	if res.StatusCode != 200 || !strings.Contains(string(b), `"seq":`) {
		t.Errorf("%s %s", res.Status, b)
	}
	if e := a.lastEvent("ev.analyst-7.operation.ended"); e.JTI != next.JTI {
		t.Errorf("event %+v", e)
	}
	res, b = c.send("/v1/tokens/refresh", map[string]any{"operation_id": "report"})
	a.problem("refresh behind the end", res, b, 401, "ask for")
	if got := res.Header.Get("WWW-Authenticate"); got != httpcap.DPoPChallenge {
		t.Errorf("challenge %q", got)
	}
}

func TestAnOrchestratorIssuesForOthersOverHTTPWithinItsRights(t *testing.T) {
	a := newAPI(t)
	orchestrator, writer := a.caller("orchestrator"), a.caller("writer-2")
	child := report()
	child["agent_id"] = "analyst-7"
	if got := orchestrator.ok("/v1/tokens", child); got.AgentID != "analyst-7" {
		t.Errorf("%+v", got)
	}
	if e := a.lastEvent("ev.analyst-7.token.issued"); e.Actor != "orchestrator" {
		t.Errorf("issued by %s", e.Actor)
	}
	child["actor"] = "root" // a claim that must not count, and that the document doesn't know
	res, b := writer.send("/v1/tokens", child)
	a.problem("a stranger", res, b, 403, "may not issue for analyst-7")
	// What another holds, nobody else ends.
	token := a.caller("analyst-7").ok("/v1/tokens", report()).Token
	if res, b := writer.send("/v1/tokens/revoke", map[string]any{"token": token}); res.StatusCode != 200 || string(b) != "{}" {
		t.Errorf("%s %s", res.Status, b)
	}
	if got := call[schemas.StatusReply](a.plane, schemas.CtlStatus, schemas.StatusRequest{AgentID: "analyst-7"}); len(got.Agents[0].Operations) != 1 {
		t.Errorf("operations %v", got.Agents[0].Operations)
	}
}

func TestTheIdentityIsRenewedOverHTTP(t *testing.T) {
	a := newAPI(t)
	c := a.caller("analyst-7")
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	rep := c.ok("/v1/tokens/refresh", map[string]any{"public_key": public})
	seed, err := user.Seed()
	must(t, err)
	creds, err := jwt.FormatUserConfig(rep.UserJWT, seed)
	must(t, err)
	a.callerOf(creds).ok("/v1/tokens", report())
}

// A token for a service over HTTP is bound to a key, whatever is asked.
func TestTokensForAServiceAreBoundToAKey(t *testing.T) {
	a := newAPI(t)
	c := a.caller("analyst-7")
	jkt := func(token string) string {
		t.Helper()
		claims, err := a.verifier().Verify(token, capability.Expect{Time: time.Now(), Audience: "pandas", Delivered: true})
		must(t, err)
		return claims.Confirmation.JKT
	}
	own := c.prover.Thumbprint()
	body := report()
	body["audience"], body["public_key"] = "pandas", publicOf(t, c.jwt)
	if got := jkt(c.ok("/v1/tokens", body).Token); got != own {
		t.Errorf("bound to %s, not to the NKey %s", got, own)
	}
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	if got := jkt(c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report", "public_key": public}).Token); got == own || len(got) != 43 {
		t.Errorf("refreshed for another NKey, and bound to %s", got)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	another, err := dpop.NewProver(private)
	must(t, err)
	if got := jkt(c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report", "dpop_jkt": another.Thumbprint()}).Token); got != another.Thumbprint() {
		t.Errorf("bound to %s", got)
	}
	if got := jkt(c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report", "public_key": publicOf(t, c.jwt)}).Token); got != another.Thumbprint() {
		t.Errorf("the DPoP key that was asked for was lost: %s", got)
	}
	body["dpop_jkt"] = "short"
	res, b := c.send("/v1/tokens", body)
	a.problem("no thumbprint", res, b, 400, "dpop_jkt short")
	delete(body, "audience")
	body["dpop_jkt"] = own
	res, b = c.send("/v1/tokens", body)
	a.problem("without an audience", res, b, 400, "goes with an audience")
}

func publicOf(t *testing.T, token string) string {
	t.Helper()
	c, err := jwt.DecodeUserClaims(token)
	must(t, err)
	return c.Subject
}

// The attack table of the issuer's HTTP face.
func TestNobodyElseGetsCapabilitiesOverHTTP(t *testing.T) {
	a := newAPI(t)
	c, other := a.caller("analyst-7"), a.caller("writer-2")
	good := c.ok("/v1/tokens", report())
	operation := a.callerOf([]byte(good.Creds))
	service := a.callerOf([]byte(call[schemas.EnrollReply](a.plane, schemas.CtlEnroll, schemas.EnrollRequest{ID: "pandas", Actor: "alice"}).Creds))
	forgedKey, err := nkeys.CreateAccount()
	must(t, err)
	forged := func(change func(*jwt.UserClaims)) string {
		claims, err := jwt.DecodeUserClaims(c.jwt)
		must(t, err)
		change(claims)
		out, err := claims.Encode(forgedKey)
		must(t, err)
		return out
	}
	for _, at := range []struct {
		name   string
		change func(r *http.Request)
		reason string
	}{
		{"nothing", func(r *http.Request) { r.Header.Del("Authorization") }, "no token"},
		{"a capability for an identity", func(r *http.Request) { c.as(r, good.Token) }, "malformed"},
		{"an operation's credential", func(r *http.Request) { operation.as(r, operation.jwt) }, "bad signature"},
		{"a service's credential", func(r *http.Request) { service.as(r, service.jwt) }, "bad signature"},
		{"bearer", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+c.jwt) }, "bearer token not taken"},
		{"stolen identity, no proof", func(r *http.Request) { r.Header.Del(dpop.Header) }, "proof missing"},
		{"stolen identity, own key", func(r *http.Request) { c.prove(r, other.prover) }, "possession not proven"},
		{"proof for another request", func(r *http.Request) {
			r.Header.Set(dpop.Header, c.request("/v1/tokens/refresh", nil).Header.Get(dpop.Header))
		}, "proof for another URL"},
		{"proof with another nonce", func(r *http.Request) {
			was := c.nonce
			defer func() { c.nonce = was }()
			c.nonce = "made-up"
			c.prove(r, c.prover)
		}, "proof without the nonce"},
		{"identity signed by a forger", func(r *http.Request) { c.as(r, forged(func(*jwt.UserClaims) {})) }, "bad signature"},
		{"identity of nobody's account", func(r *http.Request) {
			c.as(r, forged(func(u *jwt.UserClaims) { u.IssuerAccount, _ = forgedKey.PublicKey() }))
		}, "bad signature"},
		{"garbage", func(r *http.Request) { c.as(r, "e30.e30.e30") }, "malformed"},
		{"endless", func(r *http.Request) { c.as(r, strings.Repeat("a", 8000)) }, "malformed"},
	} {
		r := c.request("/v1/tokens", report())
		at.change(r)
		res, b := a.do(r)
		a.problem(at.name, res, b, 401, at.reason)
	}
	r := c.request("/v1/tokens", report())
	if res, b := a.do(r); res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, b)
	}
	r.Body = io.NopCloser(bytes.NewReader(schemas.Marshal(report())))
	res, b := a.do(r)
	a.problem("the same request again", res, b, 401, "proof replayed")
}

// as shows a token with a proof for it.
func (c *caller) as(r *http.Request, token string) {
	c.t.Helper()
	was := c.jwt
	defer func() { c.jwt = was }()
	c.jwt = token
	r.Header.Set("Authorization", "DPoP "+token)
	c.prove(r, c.prover)
}

func TestIdentitiesEndOverHTTPAsTheyDoOverNATS(t *testing.T) {
	a := newAPI(t)
	c := a.caller("analyst-7")
	c.ok("/v1/tokens", report())
	a.lock(schemas.Paused, "analyst-7")
	res, b := c.send("/v1/tokens", report())
	a.problem("paused", res, b, 423, "is paused")
	a.lock(schemas.Suspended, "analyst-7")
	res, b = c.send("/v1/tokens", report())
	a.problem("suspended", res, b, 410, "is suspended")
	a.lock(schemas.Killed, "analyst-7")
	res, b = c.send("/v1/tokens", report())
	a.problem("killed", res, b, 401, "revoked")
	again := a.caller("analyst-7")
	res, b = c.send("/v1/tokens", report())
	a.problem("from before the kill", res, b, 401, "revoked")
	again.ok("/v1/tokens", report())
	a.clock.advance(24*time.Hour + 2*time.Second)
	res, b = again.send("/v1/tokens", report())
	a.problem("a day old", res, b, 401, "expired")
}

func TestBadRequestsOverHTTP(t *testing.T) {
	a := newAPI(t)
	c := a.caller("analyst-7")
	c.ok("/v1/tokens", report())
	raw := func(body string) func(*http.Request) {
		return func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(body)) }
	}
	for _, at := range []struct {
		name   string
		change func(*http.Request)
		status int
		word   string
	}{
		{"no JSON", raw("operation_id=x"), 400, "invalid character"},
		{"unknown key", raw(`{"operation_id":"x","surprise":1}`), 400, "surprise"},
		{"key twice", raw(`{"operation_id":"x","operation_id":"y"}`), 400, "twice"},
		{"look-alike key", raw(`{"operation_id":"x","ſcope":["call:bash"]}`), 400, "unknown"},
		{"empty", raw(""), 400, "EOF"},
		{"a form", func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, 400, "Content-Type"},
		{"no type", func(r *http.Request) { r.Header.Del("Content-Type") }, 400, "Content-Type"},
		{"too long", raw(`{"task":"` + strings.Repeat("x", 64<<10) + `"}`), 413, "65536"},
		{"a wildcard", raw(`{"operation_id":"x","scope":["read:data.*"]}`), 400, "read:data.*"},
		{"beyond the ceiling", raw(`{"operation_id":"x","scope":["read:data.wages"]}`), 403, "beyond the ceiling"},
		{"forbidden", raw(`{"operation_id":"x","tools":["bash"]}`), 403, "forbidden"},
		{"nobody", raw(`{"agent_id":"nobody","operation_id":"x"}`), 404, "nobody"},
	} {
		r := c.request("/v1/tokens", report())
		at.change(r)
		res, b := a.do(r)
		a.problem(at.name, res, b, at.status, at.word)
		if cors := res.Header.Get("Access-Control-Allow-Origin"); cors != "" {
			t.Errorf("%s: pages of %s may read it", at.name, cors)
		}
	}
	for method, path := range map[string]string{"GET": "/v1/tokens", "PUT": "/v1/tokens/refresh", "OPTIONS": "/v1/tokens/revoke"} {
		r, err := http.NewRequestWithContext(t.Context(), method, a.url+path, nil)
		must(t, err)
		res, b := a.do(r)
		a.problem(method, res, b, 405, "POST")
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.url+"/v1/tokens/mint", nil)
	must(t, err)
	res, b := a.do(r)
	a.problem("no such path", res, b, 404, "openapi.json")
}

func TestKeysAndDescriptionAreServed(t *testing.T) {
	a := newAPI(t)
	for path, want := range map[string][]byte{"/.well-known/jwks.json": a.issuer.JWKS(), "/openapi.json": nil} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", a.url+path, nil)
		must(t, err)
		res, b := a.do(r)
		if want == nil {
			want, err = os.ReadFile("openapi.json")
			must(t, err)
		}
		if res.StatusCode != 200 || !bytes.Equal(b, want) {
			t.Errorf("%s: %s %.100s", path, res.Status, b)
		}
	}
}

// One agent that floods over both ways is held to one rate, and leaves others
// theirs.
func TestOneRateForBothWays(t *testing.T) {
	a := newAPI(t)
	c, writer := a.caller("analyst-7"), a.caller("writer-2")
	nc := a.mustClient(c.ok("/v1/tokens", report()).Creds)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() { // over NATS; nobody waits for the answers
		for {
			select {
			case <-stop:
				return
			default:
				_ = nc.PublishRequest("out.token.release", "_INBOX.x", []byte(`{"operation_id":"none"}`))
				time.Sleep(time.Millisecond)
			}
		}
	})
	defer flood.Wait()
	defer close(stop)
	for until := time.Now().Add(time.Minute); ; {
		res, b := c.send("/v1/tokens/revoke", map[string]any{"token": "x"})
		if res.StatusCode != 200 {
			a.problem("over the rate", res, b, 429, "requests for capabilities in a second")
			break
		}
		if time.Now().After(until) {
			t.Fatal("the flood over NATS leaves the rate over HTTP as it was")
		}
	}
	if got := writer.ok("/v1/tokens", map[string]any{"operation_id": "desk"}); got.AgentID != "writer-2" {
		t.Errorf("%+v", got)
	}
}

// slowly begins requests whose bodies don't come, and gives the statuses that they
// have come to, 100 where the body is awaited. end ends them.
func (c *caller) slowly(path string, many int) (statuses map[int]int, end func()) {
	c.t.Helper()
	c.send(path, map[string]any{}) // for the nonce
	held, release := io.Pipe()
	begun := make(chan int, 2*many)
	var all sync.WaitGroup
	for range many {
		r := c.signed("POST", path, io.NopCloser(held))
		r.Header.Set("Expect", "100-continue")
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { begun <- 100 }}))
		all.Go(func() {
			res, err := c.client.Do(r)
			if err != nil {
				return // cut off at the end
			}
			_ = res.Body.Close()
			begun <- res.StatusCode
		})
	}
	statuses = map[int]int{}
	for range many {
		statuses[<-begun]++
	}
	return statuses, func() {
		must(c.t, release.CloseWithError(io.ErrUnexpectedEOF))
		all.Wait()
	}
}

// A hijacked agent, a mob of them, or a viewer's credential, begins as many requests
// as it likes and ends none: the others are served meanwhile.
func TestWhoSendsSlowlyDelaysNobodyElse(t *testing.T) {
	a := newAPI(t)
	fleet := []schemas.Principal{{ID: "vera", Kind: schemas.KindOperator, Role: schemas.RoleViewer}, {ID: "olga", Kind: schemas.KindOperator, Role: schemas.RoleOperator}}
	for n := range 9 {
		fleet = append(fleet, schemas.Principal{ID: fmt.Sprint("mob-", n), Kind: schemas.KindAgent})
	}
	call[schemas.ApplyReply](a.plane, schemas.CtlApply, fleetOf(fleet...))
	others := func() {
		t.Helper()
		if got := a.caller("writer-2").ok("/v1/tokens", map[string]any{"operation_id": "desk"}); got.AgentID != "writer-2" {
			t.Errorf("%+v", got)
		}
		if res, b := a.caller("olga").send("/v1/agents/writer-2/lock", map[string]any{"lock": "paused", "reason": "because"}); res.StatusCode != http.StatusOK {
			t.Errorf("%s %s", res.Status, b)
		}
		a.lock(schemas.Active, "writer-2")
	}
	for id, path := range map[string]string{"analyst-7": "/v1/tokens", "vera": "/v1/agents/writer-2/lock"} {
		statuses, end := a.caller(id).slowly(path, 70)
		if statuses[http.StatusTooManyRequests] == 0 {
			t.Errorf("%s has as many requests in progress as it likes: %v", id, statuses)
		}
		others()
		end()
	}
	for n := range 9 {
		statuses, end := a.caller(fmt.Sprint("mob-", n)).slowly("/v1/tokens", 8)
		defer end()
		if statuses[100] != 8 {
			t.Fatalf("%d: %v", n, statuses)
		}
	}
	others()
}

// Whoever stole a credential without its key, from a log, makes proofs with keys of
// its own: none of them is remembered, so that they fill nothing.
func TestProofsOfAThiefTakeNoRoom(t *testing.T) {
	a := newAPI(t)
	c, thief := a.caller("analyst-7"), a.caller("writer-2")
	c.send("/v1/tokens", map[string]any{}) // for the nonce
	r := c.request("/v1/tokens", report())
	c.prove(r, thief.prover)
	for range 2 {
		again := r.Clone(t.Context())
		again.Body = io.NopCloser(bytes.NewReader(schemas.Marshal(report())))
		res, b := a.do(again)
		a.problem("a thief's proof", res, b, http.StatusUnauthorized, "possession not proven")
	}
}

// A hijacked agent shows its identity and holds the body of its request back, until
// it was killed and enrolled anew: what it asks for then is not the next one's. The
// same for an operator who is locked meanwhile.
func TestWhoIsKilledBeforeItsRequestIsWholeGetsNothing(t *testing.T) {
	a := newAPI(t)
	call[schemas.ApplyReply](a.plane, schemas.CtlApply, fleetOf(schemas.Principal{ID: "olga", Kind: schemas.KindOperator, Role: schemas.RoleOperator}))
	_, public, err := accounts.NewUser()
	must(t, err)
	for path, body := range map[string]any{
		"/v1/tokens":               schemas.IssueRequest{OperationID: "op", Scope: []string{"memory:get"}, PublicKey: public},
		"/v1/tokens/refresh":       schemas.RefreshRequest{PublicKey: public},
		"/v1/agents/writer-2/lock": map[string]any{"lock": "paused", "reason": "because"},
	} {
		t.Run(path, func(t *testing.T) {
			id := "analyst-7"
			if strings.HasPrefix(path, "/v1/agents/") {
				id = "olga"
			}
			c := a.caller(id)
			c.send(path, map[string]any{}) // for the nonce
			held, release := io.Pipe()
			read := make(chan struct{}) // the server has looked who asks, and waits for the body
			r := c.signed("POST", path, held)
			r.Header.Set("Expect", "100-continue")
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(read) }}))
			go func() {
				<-read
				a.lock(schemas.Killed, id)
				call[schemas.EnrollReply](a.plane, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "alice"})
				_, err := release.Write(schemas.Marshal(body))
				if err := errors.Join(err, release.Close()); err != nil {
					t.Error(err)
				}
			}()
			res, err := a.client.Do(r)
			must(t, err)
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			must(t, err)
			a.problem(path, res, b, http.StatusUnauthorized, "identity: ")
		})
	}
	if e := a.newestEvent("ev.writer-2.agent.paused"); e != nil {
		t.Errorf("who was locked has locked: %+v", e)
	}
}
