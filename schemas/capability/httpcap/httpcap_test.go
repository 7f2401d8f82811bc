package httpcap

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

const (
	domain  = "acme.example"
	service = "warehouse"
	origin  = "https://warehouse.example"
	nkey    = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
)

var issued = time.Unix(1_790_000_000, 0)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

// A world is a service behind a guard, an issuer, and a clock that the test
// moves.
type world struct {
	*testing.T
	now     time.Time
	fail    error // of the key set
	revoked map[string]bool
	prover  *dpop.Prover // the rightful holder's
	guard   *Guard
}

func newWorld(t *testing.T, change ...func(*Options)) *world {
	t.Helper()
	w := &world{T: t, now: issued.Add(time.Minute), revoked: map[string]bool{}}
	set, err := capability.MarshalJWKS(key(1).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return w.now }
	keys := jwks.New(jwks.Options{TrustDomain: domain, Now: clock, Source: func(context.Context) ([]byte, error) { return set, w.fail }})
	if w.prover, err = dpop.NewProver(key(7)); err != nil {
		t.Fatal(err)
	}
	o := Options{Service: service, TrustDomain: domain, Keys: keys, Origins: []string{origin}, Now: clock,
		Revoked: func(jti string) bool { return w.revoked[jti] }}
	for _, c := range change {
		c(&o)
	}
	if w.guard, err = New(o); err != nil {
		t.Fatal(err)
	}
	return w
}

// claims are those of a capability that was issued for the service, bound to
// the holder's DPoP key.
func (w *world) claims() capability.Claims {
	c := capability.FromGrant(schemas.Grant{JTI: "j-1", Agent: "analyst-7", Operation: "report", Scope: []string{"call:pandas", "read:data.sales"},
		ForbiddenTools: []string{"bash"}, NotBefore: issued, Expires: issued.Add(5 * time.Minute), MaxTokens: 100,
		TraceID: strings.Repeat("a", 32), PublicKey: nkey, IssuedBy: "test"}, domain, service, issued)
	c.Confirmation.JKT = w.prover.Thumbprint()
	return c
}

func (w *world) sign(c capability.Claims) string {
	w.Helper()
	s, err := capability.NewSigner(domain, key(1))
	if err != nil {
		w.Fatal(err)
	}
	token, err := s.Sign(c)
	if err != nil {
		w.Fatal(err)
	}
	return token
}

func (w *world) prove(p *dpop.Prover, method, url, token string) string {
	w.Helper()
	proof, err := p.Prove(method, url, token, w.guard.proofs.NonceFor(), w.now)
	if err != nil {
		w.Fatal(err)
	}
	return proof
}

// request is the rightful holder's for GET /sales.
func (w *world) request(token string) *http.Request {
	w.Helper()
	r := httptest.NewRequest("GET", "http://inside/sales?q=1", nil)
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set(dpop.Header, w.prove(w.prover, "GET", origin+"/sales", token))
	return r
}

var sales = Need{Scope: "read:data.sales"}

// serve gives what the service answers, and the problem where it refuses.
func (w *world) serve(need Need, r *http.Request) (*http.Response, Problem) {
	w.Helper()
	rec := httptest.NewRecorder()
	w.guard.Require(need, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		fmt.Fprint(out, From(r.Context()).AgentID)
	})).ServeHTTP(rec, r)
	res := rec.Result()
	var p Problem
	if res.StatusCode == http.StatusOK {
		if got := rec.Body.String(); got != "analyst-7" {
			w.Errorf("served %q", got)
		}
		return res, p
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
		w.Errorf("content type %q", ct)
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || p.Status != res.StatusCode {
		w.Errorf("problem %s: %v", rec.Body, err)
	}
	return res, p
}

// refused demands a status and a reason; it gives the challenge.
func (w *world) refused(what string, need Need, r *http.Request, status int, reason error) string {
	w.Helper()
	res, p := w.serve(need, r)
	if res.StatusCode != status || p.Reason != reason.Error() {
		w.Errorf("%s: %d %q (%s), want %d %q", what, res.StatusCode, p.Reason, p.Detail, status, reason)
	}
	return strings.Join(res.Header.Values("WWW-Authenticate"), "\n")
}

func TestTheHolderIsServed(t *testing.T) {
	w := newWorld(t)
	token := w.sign(w.claims())
	for range 3 { // a token is used often, a proof once
		if res, p := w.serve(sales, w.request(token)); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %+v", res.StatusCode, p)
		}
	}
	r := w.request(token)
	r.Header.Set("Authorization", "dpop "+token) // schemes know no case
	if res, p := w.serve(Need{Tool: "pandas"}, r); res.StatusCode != http.StatusOK {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	if From(t.Context()) != nil {
		t.Error("claims without a guard")
	}
}

// The table of attacks over HTTP: who has the token, a proof, or both, and is
// not the holder.
func TestAttacks(t *testing.T) {
	thief, err := dpop.NewProver(key(9))
	if err != nil {
		t.Fatal(err)
	}
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	raw := func(sign ed25519.PrivateKey, head, payload string) string {
		input := b64(head) + "." + b64(payload)
		return input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(sign, []byte(input)))
	}
	kid, err := capability.KeyID(key(1).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	header := fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":%q}`, kid, capability.Type)
	payload := func(w *world) string { return string(schemas.Marshal(w.claims())) }
	forged := func(make func(w *world) string) func(*world) *http.Request {
		return func(w *world) *http.Request { return w.request(make(w)) }
	}
	changed := func(change func(*capability.Claims)) func(*world) *http.Request {
		return forged(func(w *world) string {
			c := w.claims()
			change(&c)
			return w.sign(c)
		})
	}
	with := func(change func(w *world, token string, r *http.Request)) func(*world) *http.Request {
		return func(w *world) *http.Request {
			token := w.sign(w.claims())
			r := w.request(token)
			change(w, token, r)
			return r
		}
	}
	for _, a := range []struct {
		name   string
		make   func(*world) *http.Request
		status int
		reason error
	}{
		{"stolen token, without a proof", with(func(_ *world, _ string, r *http.Request) { r.Header.Del(dpop.Header) }), 401, dpop.ErrMissing},
		{"stolen token, a proof with the thief's key", with(func(w *world, token string, r *http.Request) {
			r.Header.Set(dpop.Header, w.prove(thief, "GET", origin+"/sales", token))
		}), 401, capability.ErrPossession},
		{"stolen token as bearer", with(func(_ *world, token string, r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+token)
			r.Header.Del(dpop.Header)
		}), 401, ErrScheme},
		{"stolen token in the query", with(func(_ *world, token string, r *http.Request) {
			r.Header.Del("Authorization")
			r.URL.RawQuery = "access_token=" + token
		}), 401, ErrNoToken},
		{"two tokens", with(func(_ *world, token string, r *http.Request) { r.Header.Add("Authorization", "DPoP "+token) }), 401, ErrNoToken},
		{"basic", with(func(_ *world, token string, r *http.Request) { r.Header.Set("Authorization", "Basic "+token) }), 401, ErrNoToken},
		{"proof for another method", with(func(w *world, token string, r *http.Request) {
			r.Header.Set(dpop.Header, w.prove(w.prover, "POST", origin+"/sales", token))
		}), 401, dpop.ErrMethod},
		{"proof for another URL", with(func(w *world, token string, r *http.Request) {
			r.Header.Set(dpop.Header, w.prove(w.prover, "GET", origin+"/wages", token))
		}), 401, dpop.ErrURL},
		{"proof made for another service and relayed", with(func(w *world, token string, r *http.Request) {
			r.Host = "evil.example"
			r.Header.Set(dpop.Header, w.prove(w.prover, "GET", "https://evil.example/sales", token))
		}), 401, dpop.ErrURL},
		{"proof for another token", with(func(w *world, _ string, r *http.Request) {
			r.Header.Set(dpop.Header, w.prove(w.prover, "GET", origin+"/sales", "another"))
		}), 401, dpop.ErrToken},
		{"proof too old", with(func(w *world, _ string, _ *http.Request) { w.now = w.now.Add(dpop.MaxAge + time.Second) }), 401, dpop.ErrTime},
		{"proof from the future", with(func(w *world, _ string, _ *http.Request) { w.now = w.now.Add(-dpop.MaxSkew - time.Second) }), 401, dpop.ErrTime},
		{"expired at this very second", changed(func(c *capability.Claims) { c.Expires = issued.Add(time.Minute).Unix() }), 401, capability.ErrExpired},
		{"expired by a second", changed(func(c *capability.Claims) { c.Expires = issued.Add(time.Minute - time.Second).Unix() }), 401, capability.ErrExpired},
		{"not yet valid", changed(func(c *capability.Claims) {
			c.NotBefore, c.Expires = issued.Add(time.Hour).Unix(), issued.Add(2*time.Hour).Unix()
		}), 401, capability.ErrNotYetValid},
		{"for another service", changed(func(c *capability.Claims) { c.Audience = "accounts" }), 401, capability.ErrAudience},
		{"a Writ-Token that came with a delivery, forwarded", changed(func(c *capability.Claims) { c.Audience = domain }), 401, capability.ErrAudience},
		{"audience a look-alike", changed(func(c *capability.Claims) { c.Audience = "warehouse." }), 401, capability.ErrAudience},
		{"bound to the NKey alone", changed(func(c *capability.Claims) { c.Confirmation.JKT = "" }), 401, capability.ErrPossession},
		{"bound to a certificate too, none shown", changed(func(c *capability.Claims) { c.Confirmation.X5T = b64(strings.Repeat("x", 32)) }), 401, capability.ErrPossession},
		{"revoked", with(func(w *world, _ string, _ *http.Request) { w.revoked["j-1"] = true }), 401, capability.ErrRevoked},
		{"alg none", forged(func(w *world) string {
			return b64(strings.Replace(header, "EdDSA", "none", 1)) + "." + b64(payload(w)) + "."
		}), 401, capability.ErrMalformed},
		{"HS256 with the public key as secret", forged(func(w *world) string {
			input := b64(strings.Replace(header, "EdDSA", "HS256", 1)) + "." + b64(payload(w))
			m := hmac.New(sha256.New, key(1).Public().(ed25519.PublicKey))
			m.Write([]byte(input))
			return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
		}), 401, capability.ErrMalformed},
		{"RS256", forged(func(w *world) string { return raw(key(1), strings.Replace(header, "EdDSA", "RS256", 1), payload(w)) }), 401, capability.ErrMalformed},
		{"the forger's key embedded", forged(func(w *world) string {
			x := base64.RawURLEncoding.EncodeToString(key(9).Public().(ed25519.PublicKey))
			return raw(key(9), strings.Replace(header, `"typ"`, `"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+x+`"},"typ"`, 1), payload(w))
		}), 401, capability.ErrMalformed},
		{"signed by the forger under our kid", forged(func(w *world) string { return raw(key(9), header, payload(w)) }), 401, capability.ErrSignature},
		{"signed by the forger under its kid", forged(func(w *world) string { return raw(key(9), strings.Replace(header, kid, "forger", 1), payload(w)) }), 401, capability.ErrUnknownKey},
		{"a proof in place of a token", forged(func(w *world) string { return w.prove(w.prover, "GET", origin+"/sales", "x") }), 401, capability.ErrMalformed},
		{"duplicate claims", forged(func(w *world) string {
			return raw(key(1), header, strings.Replace(payload(w), `"aud"`, `"aud":"accounts","aud"`, 1))
		}), 401, capability.ErrMalformed},
		{"look-alike claim", forged(func(w *world) string {
			return raw(key(1), header, strings.Replace(payload(w), `"scope"`, `"ſcope":"read:wages","scope"`, 1))
		}), 401, capability.ErrMalformed},
		{"look-alike agent", forged(func(w *world) string {
			return raw(key(1), header, strings.ReplaceAll(payload(w), "analyst-7", "аnalyst-7"))
		}), 401, capability.ErrMalformed},
	} {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t)
			r := a.make(w)
			w.refused(a.name, sales, r, a.status, a.reason)
		})
	}
}

func TestAProofIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	token := w.sign(w.claims())
	r := w.request(token)
	if res, _ := w.serve(sales, r); res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	challenge := w.refused("the same request again", sales, r, 401, dpop.ErrReplay)
	if !strings.Contains(challenge, `DPoP algs="EdDSA ES256", error="invalid_dpop_proof"`) {
		t.Errorf("challenge %q", challenge)
	}
}

// A service, or who reads its log, has tokens without their keys, and makes proofs
// with keys of its own: none of them is remembered, so that they fill nothing.
func TestProofsOfAThiefTakeNoRoom(t *testing.T) {
	w := newWorld(t)
	thief, err := dpop.NewProver(key(9))
	if err != nil {
		t.Fatal(err)
	}
	token := w.sign(w.claims())
	r := w.request(token)
	r.Header.Set(dpop.Header, w.prove(thief, "GET", origin+"/sales", token))
	for range 2 {
		w.refused("a thief's proof", sales, r, 401, capability.ErrPossession)
	}
}

func TestChallengesAreThoseOfTheRFCs(t *testing.T) {
	w := newWorld(t)
	token := w.sign(w.claims())
	bare := httptest.NewRequest("GET", "/sales", nil)
	if c := w.refused("nothing", sales, bare, 401, ErrNoToken); c != `DPoP algs="EdDSA ES256"` {
		t.Errorf("without a token: %q", c)
	}
	if c := w.refused("scope", Need{Scope: "read:wages"}, w.request(token), 403, capability.ErrScope); !strings.Contains(c, `error="insufficient_scope"`) || !strings.Contains(c, `scope="read:wages"`) {
		t.Errorf("out of scope: %q", c)
	}
	if c := w.refused("tool", Need{Tool: "sql"}, w.request(token), 403, capability.ErrToolUnlisted); !strings.Contains(c, `scope="call:sql"`) {
		t.Errorf("tool not listed: %q", c)
	}
	w.refused("forbidden", Need{Tool: "bash"}, w.request(token), 403, capability.ErrForbidden)
	if c := w.refused("garbage", sales, w.request("a\\\"b"), 401, capability.ErrMalformed); !strings.Contains(c, `error="invalid_token", error_description="`) {
		t.Errorf("garbage: %q", c)
	}
	w.fail = errors.New("/etc/secret/path")
	w.now = w.now.Add(2 * jwks.MaxStale)
	r := w.request(token)
	res, p := w.serve(sales, r)
	if res.StatusCode != http.StatusServiceUnavailable || strings.Contains(p.Detail, "secret") {
		t.Errorf("without keys: %d %+v", res.StatusCode, p)
	}
	if q := quotable("a\"b\\c\nd\x7féf"); q != "a'b'c'd''f" {
		t.Errorf("quotable %q", q)
	}
}

func TestANonceIsDemandedAndTold(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Nonce = true })
	token := w.sign(w.claims())
	r := w.request(token)
	without, err := w.prover.Prove("GET", origin+"/sales", token, "", w.now)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(dpop.Header, without)
	res, p := w.serve(sales, r)
	nonce := res.Header.Get(dpop.HeaderNonce)
	if res.StatusCode != 401 || p.Reason != dpop.ErrNonce.Error() || nonce == "" || !strings.Contains(res.Header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
		t.Fatalf("%d %+v %v", res.StatusCode, p, res.Header)
	}
	if res, p := w.serve(sales, w.request(token)); res.StatusCode != http.StatusOK || res.Header.Get(dpop.HeaderNonce) != nonce {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
}

func TestBudgets(t *testing.T) {
	used := int64(99)
	w := newWorld(t, func(o *Options) { o.Spent = func(*http.Request, *capability.Claims) int64 { return used } })
	need := Need{Tool: "pandas", Metered: true}
	token := w.sign(w.claims())
	if res, p := w.serve(need, w.request(token)); res.StatusCode != http.StatusOK {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	used = 100
	w.refused("spent", need, w.request(token), 402, capability.ErrBudget)
	w = newWorld(t)
	w.refused("nobody counts", need, w.request(token), 402, capability.ErrBudget)
}

// Certificates over a real TLS handshake.
func TestTokensBoundToACertificate(t *testing.T) {
	mine, x5t := certified(t, 3)
	another, _ := certified(t, 4)
	w := newWorld(t, func(o *Options) { o.Certificates = true })
	s := httptest.NewUnstartedServer(w.guard.Require(sales, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, From(r.Context()).JTI)
	})))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	bound := w.claims()
	bound.Confirmation.JKT, bound.Confirmation.X5T = "", x5t
	both := w.claims()
	both.Confirmation.X5T = x5t
	for _, c := range []struct {
		name  string
		token capability.Claims
		cert  *tls.Certificate
		proof bool
		want  string // reason; "" where it is served
		as    string // a header in which a proxy would say so, with the right certificate
	}{
		{"bound, and shown", bound, &mine, false, "", ""},
		{"bound, another's shown", bound, &another, false, capability.ErrPossession.Error(), ""},
		{"bound, none shown", bound, nil, false, capability.ErrPossession.Error(), ""},
		{"bound to a DPoP key, as bearer", w.claims(), &mine, false, capability.ErrPossession.Error(), ""},
		{"bound to both, as bearer", both, &mine, false, capability.ErrPossession.Error(), ""},
		{"bound to both, both shown", both, &mine, true, "", ""},
		{"bound to both, another's certificate", both, &another, true, capability.ErrPossession.Error(), ""},
		{"bound to the certificate, a proof shown", bound, &mine, true, capability.ErrPossession.Error(), ""},
		{"bound, a proxy's word for it", bound, nil, false, capability.ErrPossession.Error(), "X-Forwarded-Client-Cert"},
		{"bound, RFC 9440's header over another's", bound, &another, false, capability.ErrPossession.Error(), "Client-Cert"},
		{"bound, nginx's header", bound, nil, false, capability.ErrPossession.Error(), "Ssl-Client-Cert"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := s.Client()
			transport := client.Transport.(*http.Transport).Clone()
			if c.cert != nil {
				transport.TLSClientConfig.Certificates = []tls.Certificate{*c.cert}
			}
			token := w.sign(c.token)
			r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/sales", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+token)
			if c.as != "" {
				r.Header.Set(c.as, ":"+base64.StdEncoding.EncodeToString(mine.Certificate[0])+":")
			}
			if c.proof {
				r.Header.Set("Authorization", "DPoP "+token)
				r.Header.Set(dpop.Header, w.prove(w.prover, "GET", origin+"/sales", token))
			}
			res, err := (&http.Client{Transport: transport}).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var p Problem
			if res.StatusCode != http.StatusOK {
				if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
					t.Fatal(err)
				}
				if len(res.Header.Values("WWW-Authenticate")) != 2 {
					t.Errorf("challenges %q", res.Header.Values("WWW-Authenticate"))
				}
			}
			if p.Reason != c.want {
				t.Errorf("%d %q (%s), want %q", res.StatusCode, p.Reason, p.Detail, c.want)
			}
		})
	}
}

func certified(t *testing.T, b byte) (tls.Certificate, string) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(int64(b)), Subject: pkix.Name{CommonName: "client"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key(b).Public(), key(b))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key(b)}, base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestAGuardIsMadeForOneService(t *testing.T) {
	keys := jwks.New(jwks.Options{})
	for name, o := range map[string]Options{
		"no service":       {Keys: keys, Origins: []string{origin}},
		"the trust domain": {Service: "acme", TrustDomain: "acme", Keys: keys, Origins: []string{origin}},
		"no keys":          {Service: service, Origins: []string{origin}},
		"no address":       {Service: service, Keys: keys},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
}
