package issuer_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/httpcap"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// secureAPI is the HTTP face of a plane with TLS on, as it is served.
func (p *plane) secureAPI() *api {
	t := p.t.(*testing.T)
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	a := &api{plane: p, url: "https://" + s.Listener.Addr().String(), client: &http.Client{}, doc: readDocument(t)}
	h, err := p.issuer.Handler([]string{a.url})
	must(t, err)
	s.Config.Handler = h
	s.Config.ErrorLog = nil
	s.Listener = tls.NewListener(s.Listener, p.serverTLS())
	s.Start()
	t.Cleanup(s.Close)
	return a
}

// over is the face as a client with these certificates sees it, over
// connections of its own.
func (a *api) over(certs ...tls.Certificate) *api {
	transport := &http.Transport{TLSClientConfig: a.clientTLS(certs...)}
	transport.TLSClientConfig.Time = a.clock.now
	a.t.Cleanup(transport.CloseIdleConnections)
	b := *a
	b.client = &http.Client{Transport: transport}
	return &b
}

// holder is an agent with all that it has in hand.
func (a *api) holder(h held) *caller { return a.over(h.cert).callerOf([]byte(h.creds)) }

func x5t(cert tls.Certificate) string {
	sum := sha256.Sum256(cert.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestOverHTTPSCapabilitiesAreForWhoHoldsKeyAndCertificate(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	a := p.secureAPI()
	h := p.enrolled("analyst-7")
	c := a.holder(h)
	first := c.ok("/v1/tokens", report())
	p.mustConnect(held{first.Creds, h.cert}) // what it got is good over NATS, with the same certificate
	next := c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report"})
	if next.JTI == first.JTI {
		t.Error("not refreshed")
	}
	if res, b := c.send("/v1/tokens/revoke", map[string]any{"token": next.Token}); res.StatusCode != 200 || !strings.Contains(string(b), `"seq":`) {
		t.Errorf("%s %s", res.Status, b)
	}
	child := report()
	child["agent_id"] = "analyst-7"
	if got := a.holder(p.enrolled("orchestrator")).ok("/v1/tokens", child); got.AgentID != "analyst-7" {
		t.Errorf("%+v", got)
	}
	// The certificate is renewed over HTTPS, with the one before.
	key, csr := newCSR(t)
	renewed := c.ok("/v1/tokens/refresh", map[string]any{"public_key": publicOf(t, c.jwt), "csr": csr})
	c.api = a.over(certificateOf(t, key, renewed.SVID))
	c.ok("/v1/tokens", report())
	// Keys are for everybody.
	res, err := a.over().client.Get(a.url + "/.well-known/jwks.json")
	must(t, err)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != string(p.issuer.JWKS()) {
		t.Errorf("%s, %v", b, err)
	}
}

// The thief has the whole .creds file of analyst-7, seed included, sees its
// requests, and has whatever certificates it can get hold of or make; or the
// certificate with its key, and no credentials.
func TestOverHTTPSNobodyPassesTheCertificateBy(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	before := []byte(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds)
	p.stop()
	p.srv.Stop()
	p.turnOn(ca.Config{})
	p.run(embed.Options{TLS: p.serverTLS()})
	a := p.secureAPI()

	victim, mallory, service := p.enrolled("analyst-7"), p.enrolled("writer-2"), p.enrolled("pandas")
	operation := p.granted(reportRequest())
	own := []*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/analyst-7"}}
	c := a.holder(victim)
	c.ok("/v1/tokens", report()) // it works, and the nonce is known
	other := a.holder(mallory)
	other.nonce = c.nonce
	with := func(creds string, certs ...tls.Certificate) *caller {
		stolen := a.over(certs...).callerOf([]byte(creds))
		stolen.nonce = c.nonce
		return stolen
	}
	plain := func(h *caller) func() (*caller, *http.Request) {
		return func() (*caller, *http.Request) { return h, h.request("/v1/tokens", report()) }
	}
	changed := func(h *caller, change func(*http.Request)) func() (*caller, *http.Request) {
		return func() (*caller, *http.Request) {
			r := h.request("/v1/tokens", report())
			change(r)
			return h, r
		}
	}
	header := func(name, value string) func() (*caller, *http.Request) {
		return changed(with(victim.creds), func(r *http.Request) { r.Header.Set(name, value) })
	}
	der := victim.cert.Certificate[0]
	text := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	for _, at := range []struct {
		name   string
		make   func() (*caller, *http.Request)
		reason string
	}{
		{"its credentials, no certificate", plain(with(victim.creds)), "no certificate was shown"},
		{"its credentials, another agent's certificate", plain(with(victim.creds, mallory.cert)), "certificate of another agent"},
		{"its credentials, a service's certificate", plain(with(victim.creds, service.cert)), "certificate of another agent"},
		{"no URI", plain(with(victim.creds, p.authority().make(t, leafOf(nil, time.Now().Add(time.Hour))))), "certificate of no agent"},
		{"two URIs", plain(with(victim.creds, p.authority().make(t, leafOf(append(own, own...), time.Now().Add(time.Hour))))), "certificate of no agent"},
		{"another agent's credentials, its certificate", plain(with(mallory.creds, victim.cert)), "certificate of another agent"},
		{"its certificate in Envoy's header", header("X-Forwarded-Client-Cert", `Cert="`+text+`";URI=spiffe://acme.example/agent/analyst-7`), "no certificate was shown"},
		{"its certificate in nginx's header", header("Ssl-Client-Cert", text), "no certificate was shown"},
		{"its certificate in RFC 9440's header", header("Client-Cert", ":"+base64.StdEncoding.EncodeToString(der)+":"), "no certificate was shown"},
		{"its certificate, its identity, another key's proof", changed(c, func(r *http.Request) { c.prove(r, other.prover) }), "possession not proven"},
		{"its certificate and identity, no proof", changed(c, func(r *http.Request) { r.Header.Del(dpop.Header) }), "proof missing"},
		{"its certificate, its identity as bearer", changed(c, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+c.jwt) }), "bearer token not taken"},
		{"its certificate alone", changed(c, func(r *http.Request) { r.Header.Del("Authorization") }), "no token"},
		{"its identity from before TLS", plain(with(string(before), victim.cert)), "bad signature"},
		{"an operation's credentials", plain(with(operation.creds, operation.cert)), "malformed"},
		{"a service's credentials", plain(with(service.creds, service.cert)), "malformed"},
		{"a capability", changed(c, func(r *http.Request) { c.as(r, p.issue(reportRequest()).Token) }), "malformed"},
		{"endless", changed(c, func(r *http.Request) { c.as(r, strings.Repeat("a", 8000)) }), "malformed"},
	} {
		h, r := at.make()
		res, b := h.do(r)
		a.problem(at.name, res, b, 401, at.reason)
	}
	r := c.request("/v1/tokens", report())
	if res, b := c.do(r); res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, b)
	}
	r.Body = io.NopCloser(strings.NewReader(string(schemas.Marshal(report()))))
	res, b := c.do(r)
	a.problem("the same request again, over the same connection", res, b, 401, "proof replayed")

	// What leads to no authority that counts, is over, or is not for clients, gets
	// no connection.
	stranger := newAuthority(t, "acme.example")
	for name, at := range map[string]struct {
		cert tls.Certificate
		says string
	}{
		"another authority's": {stranger.make(t, leafOf(own, time.Now().Add(time.Hour))), "unknown certificate authority"},
		"expired":             {p.authority().make(t, leafOf(own, time.Now().Add(-time.Second))), "expired certificate"},
		"not for clients":     {p.authority().make(t, unused(leafOf(own, time.Now().Add(time.Hour)))), "bad certificate"},
		"without its key":     {tls.Certificate{Certificate: victim.cert.Certificate, PrivateKey: mallory.cert.PrivateKey}, "remote error: tls: "},
	} {
		conn, err := (&tls.Dialer{Config: p.clientTLS(at.cert)}).DialContext(t.Context(), "tcp", strings.TrimPrefix(a.url, "https://"))
		if err == nil { // in TLS 1.3 a client knows when it reads
			must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
			_, err = conn.Read(make([]byte, 1))
			must(t, conn.Close())
		}
		if err == nil || !strings.Contains(err.Error(), at.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A proxy that ends TLS and speaks HTTP to the issuer hides who is there:
// nobody counts then, whatever it says of certificates.
func TestBehindAProxyThatEndsTLSNobodyCounts(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	h := p.enrolled("analyst-7")
	c := p.api().callerOf([]byte(h.creds))
	r := c.request("/v1/tokens", report())
	r.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://acme.example/agent/analyst-7")
	res, b := c.do(r)
	c.problem("in clear", res, b, 401, "no certificate was shown")
}

// Identities, certificates and connections end over HTTPS when they do over NATS,
// also on a connection that is open.
func TestOverHTTPSIdentitiesEndWithTheirCertificateToo(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	a := p.secureAPI()
	old := p.enrolled("analyst-7")
	c := a.holder(old)
	c.ok("/v1/tokens", report())
	p.lock(schemas.Suspended, "analyst-7")
	res, b := c.send("/v1/tokens", report())
	a.problem("suspended", res, b, 410, "is suspended")
	p.lock(schemas.Killed, "analyst-7")
	res, b = c.send("/v1/tokens", report())
	a.problem("killed", res, b, 401, "revoked")
	fresh := p.enrolled("analyst-7")
	res, b = c.send("/v1/tokens", report())
	a.problem("credentials from before the kill", res, b, 401, "revoked")
	mixed := a.over(old.cert).callerOf([]byte(fresh.creds))
	res, b = mixed.send("/v1/tokens", report())
	a.problem("the certificate from before the kill, with the credentials from behind it", res, b, 401, "certificate from before the enrolment")
	again := a.holder(fresh)
	again.ok("/v1/tokens", report())

	p.clock.advance(ca.TTL + 2*time.Second)
	res, b = again.send("/v1/tokens", report())
	a.problem("an hour old, over a connection from before", res, b, 401, "certificate of no agent")
	key, csr := newCSR(t)
	rep := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice",
		CertificateRequest: schemas.CertificateRequest{CSR: csr, SVIDTTLSeconds: 24 * 3600}})
	last := held{rep.Creds, certificateOf(t, key, rep.SVID)}
	idle := a.holder(held{fresh.creds, last.cert})
	idle.ok("/v1/tokens", report())
	p.clock.advance(23 * time.Hour)
	res, b = idle.send("/v1/tokens", report())
	a.problem("an identity of a day", res, b, 401, "expired")
}

// Operators have no certificate, and need none; with an agent's they are who
// they were, and an agent with its own is no operator.
func TestOperatorsDecideOverHTTPSWithoutACertificate(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	call[schemas.ApplyReply](p, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "amy", Principals: []schemas.Principal{person("reviewer-1", schemas.RoleReviewer)}})
	a := p.secureAPI()
	agent := p.enrolled("analyst-7")
	creds := []byte(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "reviewer-1", Actor: "amy"}).Creds)
	held, denied := p.hold("analyst-7"), p.hold("analyst-7")
	reviewer := a.over().callerOf(creds)
	res, b := reviewer.send(reviewPath(held), decision(true, "looked at it"))
	if rep := answer[schemas.ReviewReply](reviewer, res, b); rep.State != "approved" {
		t.Errorf("%+v", rep)
	}
	if e := p.lastEvent("ev.analyst-7.review.approved"); e.Actor != "reviewer-1" || e.Ref != held {
		t.Errorf("event %+v", e)
	}
	same := a.over(agent.cert).callerOf(creds)
	res, b = same.send(reviewPath(denied), decision(false, "odd"))
	if rep := answer[schemas.ReviewReply](same, res, b); rep.State != "denied" {
		t.Errorf("%+v", rep)
	}
	res, b = a.holder(agent).get("/v1/reviews")
	a.problem("an agent looks", res, b, 401, "bad signature")
	res, b = reviewer.send("/v1/tokens", report())
	a.problem("an operator takes a capability", res, b, 401, "bad signature")
}

// A capability is bound to the certificate of the connection where it is asked
// for over HTTPS without another, and to the DPoP key beside it where one is named.
func TestOverHTTPSACapabilityIsBoundToTheCertificateThatIsShown(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	a := p.secureAPI()
	h := p.enrolled("analyst-7")
	c := a.holder(h)
	confirmed := func(what, token, audience, wantX5T, wantJKT string) {
		t.Helper()
		claims, err := p.verifier().Verify(token, capability.Expect{Time: p.clock.now(), Audience: audience, Delivered: true})
		if err != nil || claims.Confirmation.X5T != wantX5T || claims.Confirmation.JKT != wantJKT {
			t.Errorf("%s: %+v, %v; want x5t %q and jkt %q", what, claims, err, wantX5T, wantJKT)
		}
	}
	ask := func(change map[string]any) schemas.IssueReply {
		t.Helper()
		body := report()
		for k, v := range change {
			body[k] = v
		}
		return c.ok("/v1/tokens", body)
	}
	refresh := map[string]any{"operation_id": "report"}
	own := c.prover.Thumbprint()
	confirmed("unbound", ask(nil).Token, "", "", "")
	bound := ask(map[string]any{"certificate_bound": true})
	confirmed("bound", bound.Token, "", x5t(h.cert), "")
	p.mustConnect(held{bound.Creds, h.cert})
	if _, err := p.connect(bound.Creds, p.enrolled("analyst-7").cert); err == nil {
		t.Error("another certificate of the agent is good for it")
	}
	confirmed("refreshed", c.ok("/v1/tokens/refresh", refresh).Token, "", x5t(h.cert), "")
	confirmed("for a service", ask(map[string]any{"certificate_bound": true, "audience": "pandas"}).Token, "pandas", x5t(h.cert), "")
	confirmed("for a service, refreshed", c.ok("/v1/tokens/refresh", refresh).Token, "pandas", x5t(h.cert), "")
	both := map[string]any{"certificate_bound": true, "audience": "pandas", "dpop_jkt": own}
	confirmed("both", ask(both).Token, "pandas", x5t(h.cert), own)
	both["public_key"] = publicOf(t, c.jwt) // its own key, which stays required
	confirmed("both, of its own key", ask(both).Token, "pandas", x5t(h.cert), own)
	confirmed("both, refreshed", c.ok("/v1/tokens/refresh", refresh).Token, "pandas", x5t(h.cert), own)
	key, csr := newCSR(t)
	next := c.ok("/v1/tokens/refresh", map[string]any{"operation_id": "report", "csr": csr})
	confirmed("both, refreshed with another certificate", next.Token, "pandas", x5t(certificateOf(t, key, next.SVID)), own)

	other := p.enrolled("analyst-7") // a connection with another certificate of its own
	again := a.holder(other).ok("/v1/tokens/refresh", map[string]any{"operation_id": "report", "certificate_bound": true})
	confirmed("bound anew, over another connection", again.Token, "pandas", x5t(other.cert), own)

	child := report()
	child["agent_id"], child["certificate_bound"] = "analyst-7", true
	orchestrator := a.holder(p.enrolled("orchestrator"))
	res, b := orchestrator.send("/v1/tokens", child)
	a.problem("another's capability, bound to the asker's certificate", res, b, 400, "certificate_bound")
}

// A certificate of SPIRE's is as good over HTTPS, also to bind a capability to,
// and no better.
func TestOverHTTPSASPIREServersCertificateCounts(t *testing.T) {
	spire := newAuthority(t, "acme.example")
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	must(t, os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: spire.cert.Raw}), 0o600))
	p := boundPlane(t, ca.Config{SPIREBundle: bundle})
	a := p.secureAPI()
	of := func(path string) tls.Certificate {
		return spire.make(t, leafOf([]*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: path}}, time.Now().Add(time.Hour)))
	}
	creds := p.enrolled("analyst-7").creds
	cert := of("/agent/analyst-7")
	body := report()
	body["certificate_bound"] = true
	rep := a.holder(held{creds, cert}).ok("/v1/tokens", body)
	claims, err := p.verifier().Verify(rep.Token, capability.Expect{Time: p.clock.now(), Delivered: true})
	if err != nil || claims.Confirmation.X5T != x5t(cert) {
		t.Errorf("%+v, %v", claims, err)
	}
	p.mustConnect(held{rep.Creds, cert})
	for path, reason := range map[string]string{"/agent/writer-2": "certificate of another agent", "/ns/agents/sa/analyst-7": "certificate of no agent"} {
		res, b := a.holder(held{creds, of(path)}).send("/v1/tokens", report())
		a.problem(path, res, b, 401, reason)
	}
}

// End to end: what the issuer bound is worth nothing to a thief at the service
// that takes it.
func TestABoundTokenIsWorthNothingToAThiefAtTheService(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	a := p.secureAPI()
	h, mallory := p.enrolled("analyst-7"), p.enrolled("writer-2")
	c := a.holder(h)
	body := report()
	body["audience"], body["certificate_bound"] = "pandas", true
	bearer := c.ok("/v1/tokens", body).Token
	body["operation_id"], body["dpop_jkt"] = "both", c.prover.Thumbprint()
	both := c.ok("/v1/tokens", body).Token

	keys := jwks.New(jwks.Options{TrustDomain: "acme.example", Now: p.clock.now, Source: func(context.Context) ([]byte, error) { return p.issuer.JWKS(), nil }})
	s := httptest.NewUnstartedServer(nil)
	at := "https://" + s.Listener.Addr().String()
	guard, err := httpcap.New(httpcap.Options{Service: "pandas", TrustDomain: "acme.example", Keys: keys, Origins: []string{at}, Certificates: true, Now: p.clock.now})
	must(t, err)
	s.Config.Handler = guard.Require(httpcap.Need{Scope: "call:pandas"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, httpcap.From(r.Context()).AgentID)
	}))
	s.Listener = tls.NewListener(s.Listener, p.serverTLS())
	s.Start()
	t.Cleanup(s.Close)
	ask := func(scheme, token string, proof bool, header string, certs ...tls.Certificate) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", at+"/frames", nil)
		must(t, err)
		r.Header.Set("Authorization", scheme+" "+token)
		if proof {
			made, err := c.prover.Prove("GET", at+"/frames", token, "", p.clock.now())
			must(t, err)
			r.Header.Set(dpop.Header, made)
		}
		if header != "" {
			r.Header.Set(header, base64.StdEncoding.EncodeToString(h.cert.Certificate[0]))
		}
		res, err := a.over(certs...).client.Do(r)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, string(b)
	}
	for name, x := range map[string]struct {
		scheme, token string
		proof         bool
		header        string
		certs         []tls.Certificate
		status        int
		says          string
	}{
		"over its certificate's connection":          {"Bearer", bearer, false, "", []tls.Certificate{h.cert}, 200, "analyst-7"},
		"stolen, over another's connection":          {"Bearer", bearer, false, "", []tls.Certificate{mallory.cert}, 401, "the certificate that was shown is not"},
		"stolen, without a certificate":              {"Bearer", bearer, false, "", nil, 401, "no certificate was shown; it is bound to"},
		"stolen, with a proxy's header":              {"Bearer", bearer, false, "Client-Cert", nil, 401, "no certificate was shown; it is bound to"},
		"stolen, with a proxy's header over another": {"Bearer", bearer, false, "X-Forwarded-Client-Cert", []tls.Certificate{mallory.cert}, 401, "the certificate that was shown is not"},
		"bound to both, both shown":                  {"DPoP", both, true, "", []tls.Certificate{h.cert}, 200, "analyst-7"},
		"bound to both, the certificate alone":       {"Bearer", both, false, "", []tls.Certificate{h.cert}, 401, "no DPoP key was shown; it is bound to"},
		"bound to both, the key alone":               {"DPoP", both, true, "", nil, 401, "no certificate was shown; it is bound to"},
		"bound to both, another's certificate":       {"DPoP", both, true, "", []tls.Certificate{mallory.cert}, 401, "the certificate that was shown is not"},
	} {
		status, b := ask(x.scheme, x.token, x.proof, x.header, x.certs...)
		if status != x.status || !strings.Contains(b, x.says) || status == 401 && !strings.Contains(b, `"reason":"possession not proven"`) {
			t.Errorf("%s: %d %s", name, status, b)
		}
	}
}
