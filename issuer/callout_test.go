package issuer_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

func TestACertificateAndItsAgentsCredentialsLetInWithTheAgentsRights(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	for name, nc := range map[string]*nats.Conn{
		"identity": p.mustConnect(p.enrolled("analyst-7")), "operation": p.mustConnect(p.granted(reportRequest())), "service": p.mustConnect(p.enrolled("pandas")),
	} {
		for subject, want := range map[string][3]bool{ // identity, operation, service
			"out.token.refresh":          {true, true, true},
			"out._r.0-1":                 {false, true, true},
			"out.report.call.pandas":     {false, true, false},
			"out.report.read.data.sales": {false, true, false},
			"out.report.call.bash":       {false, false, false},
			"out.other.call.pandas":      {false, false, false},
			"writ.in.analyst-7.call.x":   {false, false, false},
			keys.CalloutSubject:          {false, false, false},
			"$SYS._INBOX.x":              {false, false, false},
		} {
			if got, want := mayPublish(t, nc, subject), want[map[string]int{"identity": 0, "operation": 1, "service": 2}[name]]; got != want {
				t.Errorf("%s publishes %s: %t", name, subject, got)
			}
		}
		if maySubscribe(t, nc, ">") || maySubscribe(t, nc, keys.CalloutSubject) || maySubscribe(t, nc, "in.>") != (name != "identity") {
			t.Errorf("%s subscribes otherwise than its template", name)
		}
	}
}

// The attacker has stolen the whole credentials file of analyst-7, seed
// included, and whatever certificates it can get hold of or make.
func TestAValidJWTWithoutItsAgentsCertificateIsRefused(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	victim, mallory := p.granted(reportRequest()), p.enrolled("writer-2")
	authority, other := p.authority(), newAuthority(t, "other.example")
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		must(t, err)
		return []*url.URL{u}
	}
	own := uri("spiffe://acme.example/agent/analyst-7")
	now := time.Now()
	for name, cert := range map[string]tls.Certificate{
		"another agent's":            mallory.cert,
		"expired":                    authority.make(t, leafOf(own, now.Add(-time.Minute))),
		"no URI":                     authority.make(t, leafOf(nil, now.Add(time.Hour))),
		"two URIs":                   authority.make(t, leafOf(append(uri("spiffe://acme.example/agent/writer-2"), own...), now.Add(time.Hour))),
		"the agent's URI twice":      authority.make(t, leafOf(append(own, own...), now.Add(time.Hour))),
		"a common name alone":        authority.make(t, named(leafOf(nil, now.Add(time.Hour)), "analyst-7")),
		"another trust domain's":     other.make(t, leafOf(uri("spiffe://other.example/agent/analyst-7"), now.Add(time.Hour))),
		"the name, another's hand":   other.make(t, leafOf(own, now.Add(time.Hour))),
		"another domain, our hand":   authority.make(t, leafOf(uri("spiffe://other.example/agent/analyst-7"), now.Add(time.Hour))),
		"another path":               authority.make(t, leafOf(uri("spiffe://acme.example/service/analyst-7"), now.Add(time.Hour))),
		"a longer path":              authority.make(t, leafOf(uri("spiffe://acme.example/agent/analyst-7/x"), now.Add(time.Hour))),
		"another scheme":             authority.make(t, leafOf(uri("https://acme.example/agent/analyst-7"), now.Add(time.Hour))),
		"in capitals":                authority.make(t, leafOf(uri("spiffe://acme.example/agent/Analyst-7"), now.Add(time.Hour))),
		"not for clients":            authority.make(t, unused(leafOf(own, now.Add(time.Hour)))),
		"an authority's":             authority.make(t, signing(leafOf(own, now.Add(time.Hour)))),
		"made by another agent's":    chained(t, mallory.cert, leafOf(own, now.Add(time.Hour))),
		"its own, without its key":   {Certificate: victim.cert.Certificate, PrivateKey: mallory.cert.PrivateKey},
		"of an authority that it is": {Certificate: append(newAuthority(t, "acme.example").make(t, leafOf(own, now.Add(time.Hour))).Certificate, authority.cert.Raw), PrivateKey: mallory.cert.PrivateKey},
	} {
		if nc, err := p.connect(victim.creds, cert); err == nil {
			t.Errorf("%s: it is let in as %s", name, nc.Opts.Name)
		}
	}
	if _, err := p.connect(victim.creds); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("no certificate: %v", err)
	}
	if _, err := p.connect(victim.creds, mallory.cert); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("another agent's certificate: %v", err)
	}
	p.mustConnect(victim) // all of it was for nothing: the agent itself gets in
}

// A raw client leaves the nonce unsigned, or signs it with another key.
func TestCredentialsWithoutASignatureOfTheNonceAreRefused(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	victim := p.granted(reportRequest())
	token, err := jwt.ParseDecoratedJWT([]byte(victim.creds))
	must(t, err)
	right, err := jwt.ParseDecoratedUserNKey([]byte(victim.creds))
	must(t, err)
	wrong, err := nkeys.CreateUser()
	must(t, err)
	sign := func(k nkeys.KeyPair) func(nonce string) string {
		return func(nonce string) string {
			sig, err := k.Sign([]byte(nonce))
			must(t, err)
			return base64.RawURLEncoding.EncodeToString(sig)
		}
	}
	for name, c := range map[string]struct {
		sig func(nonce string) string
		in  bool
	}{
		"no signature":            {func(string) string { return "" }, false},
		"another key's":           {sign(wrong), false},
		"its key's, of the nonce": {sign(right), true},
	} {
		if got := p.rawConnect(victim.cert, token, c.sig); got != c.in {
			t.Errorf("%s: let in %t", name, got)
		}
	}
}

// rawConnect speaks the protocol itself, and reports whether it is let in.
func (p *plane) rawConnect(cert tls.Certificate, token string, sig func(nonce string) string) bool {
	p.t.Helper()
	u, err := url.Parse(p.srv.URL())
	must(p.t, err)
	conn, err := net.Dial("tcp", u.Host)
	must(p.t, err)
	defer conn.Close()
	must(p.t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	line, err := bufio.NewReaderSize(conn, 1).ReadString('\n')
	must(p.t, err)
	var info struct {
		Nonce string `json:"nonce"`
	}
	must(p.t, json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info))
	secure := tls.Client(conn, p.clientTLS(cert))
	connect, err := json.Marshal(map[string]any{"jwt": token, "sig": sig(info.Nonce), "protocol": 1, "tls_required": true, "lang": "raw", "version": "0"})
	must(p.t, err)
	_, err = secure.Write([]byte("CONNECT " + string(connect) + "\r\nPING\r\n"))
	must(p.t, err)
	for r := bufio.NewReader(secure); ; {
		line, err := r.ReadString('\n')
		if err != nil || strings.HasPrefix(line, "-ERR") {
			return false
		}
		if strings.HasPrefix(line, "PONG") {
			return true
		}
	}
}

// Users that were signed for an agent's account itself would pass the server
// without any question. Nobody is handed one, and who has one from before TLS
// was turned on, or makes one with a key from before, gets nowhere.
func TestNothingGetsPastTheCertificateIntoAnAgentsAccount(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	operation := p.issue(reportRequest()).Creds
	enroll := func(id string) string {
		return call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "alice"}).Creds
	}
	before := map[string]string{"operation": operation, "identity": enroll("analyst-7"), "service": enroll("pandas")}
	old := accounts.NewMaker(p.secrets)
	for _, creds := range before {
		p.mustClient(creds)
	}
	p.stop()
	p.srv.Stop()

	p.turnOn(ca.Config{})
	p.run(embed.Options{TLS: p.serverTLS()})
	for name, creds := range before {
		for _, certs := range [][]tls.Certificate{nil, {p.enrolled("analyst-7").cert}} {
			if _, err := p.connect(creds, certs...); !errors.Is(err, nats.ErrAuthorization) {
				t.Errorf("%s from before, with %d certificates: %v", name, len(certs), err)
			}
		}
	}
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	now := time.Now().Add(2 * time.Second)
	token, err := old.Identity("analyst-7", public, accounts.Keys{}, now, now.Add(time.Hour))
	must(t, err)
	creds, err := accounts.Creds(token, user)
	must(t, err)
	if _, err := p.connect(creds, p.enrolled("analyst-7").cert); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("made with a key from before: %v", err)
	}
	for name, creds := range map[string]string{"operation": p.granted(reportRequest()).creds, "identity": p.enrolled("analyst-7").creds, "service": p.enrolled("pandas").creds} {
		token, err := jwt.ParseDecoratedJWT([]byte(creds))
		must(t, err)
		c, err := jwt.DecodeUserClaims(token)
		must(t, err)
		if c.IssuerAccount != p.secrets.Auth.Account || c.BearerToken || len(c.Pub.Allow)+len(c.Sub.Allow) > 0 {
			t.Errorf("%s is handed a user of %s: %+v", name, c.IssuerAccount, c.User)
		}
	}
}

func TestLocksHoldForBoundAgents(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	identity, operation := p.enrolled("analyst-7"), p.granted(reportRequest())
	first, second := p.mustConnect(identity), p.mustConnect(operation)
	if r := p.lock(schemas.Suspended, "analyst-7"); r.Partial || r.ConnectionsClosed != 2 {
		t.Errorf("receipt of the suspension: %+v", r)
	}
	closed(first)
	closed(second)
	if _, err := p.connect(operation.creds, operation.cert); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("suspended: %v", err)
	}
	p.mustConnect(identity) // to be told why
	p.lock(schemas.Active, "analyst-7")
	if _, err := p.connect(operation.creds, operation.cert); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("resumed, with credentials from before: %v", err)
	}
	fresh := p.granted(reportRequest())
	p.mustConnect(fresh)
	p.lock(schemas.Killed, "analyst-7")
	for name, h := range map[string]held{"identity": identity, "operation": fresh} {
		if _, err := p.connect(h.creds, h.cert); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("killed, %s: %v", name, err)
		}
	}
	again := p.enrolled("analyst-7")
	for name, h := range map[string]held{"identity": identity, "operation": fresh} {
		if _, err := p.connect(h.creds, h.cert); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("enrolled anew, %s from before: %v", name, err)
		}
	}
	p.mustConnect(again)
}

// Without the issuer nobody new gets in, and who is in works on.
func TestWithoutTheCalloutNobodyGetsInAndNobodyIsCutOff(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	h := p.enrolled("writer-2")
	there := p.mustConnect(h)
	p.stop()
	if _, err := p.connect(h.creds, h.cert); err == nil {
		t.Error("somebody got in with nobody to say who it is")
	}
	if err := there.Flush(); err != nil || !there.IsConnected() {
		t.Errorf("who was in: %v", err)
	}
	p.start()
	p.mustConnect(h)
}

// A connection ends with the certificate that it was let in with.
func TestNobodyStaysBeyondItsCertificate(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	key, csr := newCSR(t)
	rep := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "writer-2", Actor: "alice",
		CertificateRequest: schemas.CertificateRequest{CSR: csr, SVIDTTLSeconds: 5}})
	h := held{rep.Creds, certificateOf(t, key, rep.SVID)}
	nc := p.mustConnect(h)
	closed(nc)
	if leaf := parsed(t, h.cert); time.Now().Before(leaf.NotAfter) {
		t.Errorf("closed before %s", leaf.NotAfter)
	}
	if _, err := p.connect(h.creds, h.cert); err == nil {
		t.Error("an expired certificate lets in")
	}
}

// The private key stays with the agent, and nothing of the request but its
// public key comes back; the log tells who was given what, and no key.
func TestACertificateIsRenewedOverNATSForTheSenderAlone(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	nc := p.mustConnect(p.enrolled("analyst-7"))
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	key, csr := newCSR(t)
	rep, err := bus.Call[schemas.IssueReply](t.Context(), nc, "out.token.refresh", schemas.RefreshRequest{PublicKey: public, CertificateRequest: schemas.CertificateRequest{CSR: csr}})
	must(t, err)
	cert := certificateOf(t, key, rep.SVID)
	leaf := parsed(t, cert)
	if k, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !k.Equal(key.Public()) {
		t.Error("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://acme.example/agent/analyst-7" || leaf.Subject.CommonName != "" || len(leaf.DNSNames) > 0 {
		t.Errorf("it names %v, %q, %v", leaf.URIs, leaf.Subject, leaf.DNSNames)
	}
	creds, err := accounts.Creds(rep.UserJWT, user)
	must(t, err)
	p.mustConnect(held{creds, cert})

	// Shows 6: a SPIFFE library that is not ours takes it.
	td := spiffeid.RequireTrustDomainFromString("acme.example")
	bundle, err := x509bundle.Parse(td, []byte(rep.Bundle))
	must(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	svid, err := x509svid.Parse([]byte(rep.SVID), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	must(t, err)
	id, _, err := x509svid.Verify(svid.Certificates, bundle)
	if err != nil || id.String() != "spiffe://acme.example/agent/analyst-7" || svid.ID != id {
		t.Errorf("go-spiffe: %s, %v", id, err)
	}

	e := p.lastEvent("ev.analyst-7.agent.certified")
	var c schemas.Certificate
	must(t, schemas.Unmarshal(e.Data, &c))
	if want := ca.Fingerprint(cert.Certificate[0]); c.Fingerprint != want || c.Serial != leaf.SerialNumber.Text(16) || !c.Expires.Equal(leaf.NotAfter) || c.URI != id.String() || e.Actor != "analyst-7" {
		t.Errorf("the log says %+v by %s", c, e.Actor)
	}
	if bytes.Contains(e.Data, []byte("PRIVATE")) {
		t.Error("a key stands in the log")
	}

	orchestrator := p.mustConnect(p.enrolled("orchestrator"))
	_, err = bus.Call[schemas.IssueReply](t.Context(), orchestrator, "out.token.issue", schemas.IssueRequest{AgentID: "analyst-7", OperationID: "x", CertificateRequest: schemas.CertificateRequest{CSR: csr}})
	var refused *schemas.Refusal
	if !errors.As(err, &refused) || refused.Code != schemas.CodeForbidden {
		t.Errorf("a certificate for another: %v", err)
	}
}

// Bound to one certificate, a capability counts with no other of the same
// agent; refreshed, it stays bound, to the same or to the one that is asked for
// with it.
func TestACapabilityIsBoundToOneCertificateWhereThatIsAskedFor(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	another := p.enrolled("analyst-7").cert
	key, csr := newCSR(t)
	req := reportRequest()
	req.CSR, req.CertificateBound = csr, true
	rep := p.issue(req)
	own := held{rep.Creds, certificateOf(t, key, rep.SVID)}
	if _, err := p.connect(own.creds, another); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("another certificate of the same agent: %v", err)
	}
	nc := p.mustConnect(own)
	jwks := call[json.RawMessage](p, schemas.CtlJWKS, nil)
	verifier, err := capability.NewVerifier("acme.example", jwks)
	must(t, err)
	bound := func(token string, cert tls.Certificate) {
		t.Helper()
		sum := sha256.Sum256(cert.Certificate[0])
		c, err := verifier.Verify(token, capability.Expect{Time: p.clock.now(), Delivered: true})
		if err != nil || c.Confirmation.X5T != base64.RawURLEncoding.EncodeToString(sum[:]) {
			t.Errorf("the token says %+v, %v", c, err)
		}
	}
	bound(rep.Token, own.cert)
	seed, err := jwt.ParseDecoratedUserNKey([]byte(own.creds))
	must(t, err)
	refresh := func(r schemas.CertificateRequest) schemas.IssueReply {
		t.Helper()
		rep, err := bus.Call[schemas.IssueReply](t.Context(), nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report", CertificateRequest: r})
		must(t, err)
		rep.Creds, err = accounts.Creds(rep.UserJWT, seed)
		must(t, err)
		return rep
	}
	same := refresh(schemas.CertificateRequest{})
	bound(same.Token, own.cert)
	if _, err := p.connect(same.Creds, another); err == nil {
		t.Error("a refresh loosens the binding")
	}
	key, csr = newCSR(t)
	next := refresh(schemas.CertificateRequest{CSR: csr})
	cert := certificateOf(t, key, next.SVID)
	bound(next.Token, cert)
	p.mustConnect(held{next.Creds, cert})
	if _, err := p.connect(next.Creds, own.cert); err == nil {
		t.Error("the certificate before still counts with the newer capability")
	}
}

func TestABadRequestForACertificateGrantsNothing(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	_, csr := newCSR(t)
	block, _ := pem.Decode([]byte(csr))
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	weak, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, small)
	must(t, err)
	encode := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	for name, req := range map[string]schemas.CertificateRequest{
		"no PEM":            {CSR: "x"},
		"another's block":   {CSR: strings.ReplaceAll(csr, "CERTIFICATE REQUEST", "CERTIFICATE")},
		"two":               {CSR: csr + csr},
		"a wrong signature": {CSR: encode(forged)},
		"a weak key":        {CSR: encode(weak)},
		"too long":          {CSR: csr, SVIDTTLSeconds: 86401},
		"bound to nothing":  {CertificateBound: true},
		"for no time":       {CSR: csr, SVIDTTLSeconds: -1},
	} {
		q := reportRequest()
		q.CertificateRequest = req
		refusal[schemas.IssueReply](p, schemas.CtlIssue, q, schemas.CodeMalformed)
		if got := p.stateOf("analyst-7").Operations; len(got) > 0 {
			t.Errorf("%s: granted all the same: %v", name, got)
		}
	}
	off := newPlane(t, embed.Options{})
	off.apply()
	q := reportRequest()
	q.CSR = csr
	if r := refusal[schemas.IssueReply](off, schemas.CtlIssue, q, schemas.CodeMalformed); !strings.Contains(r.Error(), "TLS is off") {
		t.Errorf("without TLS: %v", r)
	}
}

func (p *plane) stateOf(id string) schemas.AgentStatus {
	p.t.Helper()
	rep := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{AgentID: id})
	if len(rep.Agents) != 1 {
		p.t.Fatalf("status of %s: %+v", id, rep)
	}
	return rep.Agents[0]
}

// SVIDs of a SPIRE server of the same trust domain count where its bundle is
// trusted, also behind a change of the bundle, and nowhere else.
func TestASPIREServersCertificatesCountWhereItsBundleIsTrusted(t *testing.T) {
	spire, next := newAuthority(t, "acme.example"), newAuthority(t, "acme.example")
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	must(t, os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: spire.cert.Raw}), 0o600))
	p := boundPlane(t, ca.Config{SPIREBundle: bundle})
	creds := p.granted(reportRequest()).creds
	own := []*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/analyst-7"}}
	if _, err := p.connect(creds, spire.make(t, leafOf(own, time.Now().Add(time.Hour)))); err != nil {
		t.Errorf("SPIRE's: %v", err)
	}
	rotated := next.make(t, leafOf(own, time.Now().Add(time.Hour)))
	if _, err := p.connect(creds, rotated); err == nil {
		t.Error("an authority that is not in the bundle yet")
	}
	must(t, os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: next.cert.Raw}), 0o600))
	if _, err := p.connect(creds, rotated); err != nil {
		t.Errorf("behind the change: %v", err)
	}
	if _, err := p.connect(creds, spire.make(t, leafOf(own, time.Now().Add(time.Hour)))); err == nil {
		t.Error("an authority that is no longer in the bundle")
	}
}

// BenchmarkConnect is one stock client that connects and is told that it may:
// in clear, with TLS, and with TLS, certificate and callout.
func BenchmarkConnect(b *testing.B) {
	run := func(name string, connect func() (*nats.Conn, error)) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				nc, err := connect()
				must(b, err)
				nc.Close()
			}
		})
	}
	clear := newPlane(b, embed.Options{})
	clear.apply()
	creds := clear.issue(reportRequest()).Creds
	run("clear", func() (*nats.Conn, error) {
		return nats.Connect(clear.srv.URL(), nats.UserCredentialBytes([]byte(creds)))
	})

	bound := boundPlane(b, ca.Config{})
	h := bound.granted(reportRequest())
	secure := newPlane(b, embed.Options{TLS: bound.serverTLS()}) // another's certificate, and nobody asks for clients'
	secure.apply()
	direct := secure.issue(reportRequest()).Creds
	run("tls", func() (*nats.Conn, error) {
		return nats.Connect(secure.srv.URL(), nats.UserCredentialBytes([]byte(direct)), nats.Secure(bound.clientTLS(h.cert)))
	})
	run("callout", func() (*nats.Conn, error) {
		return nats.Connect(bound.srv.URL(), nats.UserCredentialBytes([]byte(h.creds)), nats.Secure(bound.clientTLS(h.cert)))
	})
}
