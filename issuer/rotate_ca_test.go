package issuer_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func (p *plane) rotateCA(compromised bool) schemas.RotateReply {
	p.t.Helper()
	return call[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateCA, Compromised: compromised, Reason: "test", Actor: "alice"})
}

// bundle is what somebody trusts the server by who reads it now.
func (p *plane) bundle() *x509.CertPool {
	p.t.Helper()
	b, err := os.ReadFile(ca.BundlePath(p.data))
	must(p.t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		p.t.Fatal("the bundle holds no certificate")
	}
	return pool
}

// trusting connects at the time that the issuer knows, with a bundle from whenever.
func (p *plane) trusting(bundle *x509.CertPool, h held) error {
	p.t.Helper()
	c := &tls.Config{RootCAs: bundle, MinVersion: tls.VersionTLS13, ServerName: "localhost", Time: p.clock.now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &h.cert, nil }}
	nc, err := nats.Connect(p.srv.URL(), nats.UserCredentialBytes([]byte(h.creds)), nats.Secure(c), nats.MaxReconnects(0), nats.Timeout(20*time.Second))
	if err != nil {
		return err
	}
	defer nc.Close()
	return nc.FlushTimeout(20 * time.Second)
}

// forgedBy is a certificate of analyst-7 for a year by somebody's copy of an
// authority, with a key of the thief's own.
func forgedBy(t *testing.T, a *testAuthority) tls.Certificate {
	t.Helper()
	return a.make(t, leafOf([]*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/analyst-7"}}, time.Now().Add(365*24*time.Hour)))
}

// Somebody copied the authority's key, and has an agent's credentials. What the
// copy signs counts as long as the former authority, and no longer. Who has the
// bundle and the certificate of before gets in until then.
func TestTheFormerAuthorityCountsUntilItsLastCertificateHasEnded(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	before, bundle := p.enrolled("analyst-7"), p.bundle()
	nc := p.mustConnect(before)
	stolen := p.authority()

	r := p.rotateCA(false)
	if r.Key != schemas.RotateCA || r.KeyID == r.Replaced || r.Until.Before(time.Now().Add(ca.MaxTTL)) {
		t.Errorf("rotated: %+v", r)
	}
	if e := p.lastEvent("ev._fleet.policy.rotated"); e.Seq != r.Seq || e.Actor != "root/alice" {
		t.Errorf("logged: %+v", e)
	}
	must(t, nc.Flush())
	must(t, p.trusting(bundle, before))
	after := p.enrolled("analyst-7")
	must(t, p.trusting(bundle, after))
	must(t, p.trusting(p.bundle(), before))
	if now := p.authority(); ca.Fingerprint(now.cert.Raw) != r.KeyID || parsed(t, after.cert).CheckSignatureFrom(now.cert) != nil {
		t.Errorf("certificates are signed by another than %s", r.KeyID)
	}
	refusal[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateCA, Reason: "again", Actor: "alice"}, schemas.CodeConflict)

	theft := forgedBy(t, stolen)
	must(t, p.trusting(bundle, held{after.creds, theft})) // whoever has the key is an authority until then
	p.clock.advance(r.Until.Sub(p.clock.now()) + time.Second)
	after = p.enrolled("analyst-7")
	if err := p.trusting(p.bundle(), held{after.creds, theft}); err == nil {
		t.Error("the former authority lets somebody in behind its end")
	}
	must(t, p.trusting(p.bundle(), after))
	for p.ca.Due(p.clock.now()) {
		time.Sleep(10 * time.Millisecond)
	}
	b, err := os.ReadFile(ca.BundlePath(p.data))
	must(t, err)
	if !bytes.Equal(b, p.ca.Bundle()) || strings.Count(string(b), "BEGIN CERTIFICATE") != 2 {
		t.Errorf("the bundle behind it:\n%s", b)
	}
	p.rotateCA(false)
	must(t, p.trusting(p.bundle(), after))
}

// The authority is known to be stolen: what it signed, and what its successor
// does, counts no more, and who got in with it is out.
func TestACompromisedAuthorityEndsAtOnce(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	victim, old := p.enrolled("analyst-7"), p.bundle()
	stolen := p.authority()
	thief := p.mustConnect(held{victim.creds, forgedBy(t, stolen)})
	if r := p.rotateCA(true); !r.Compromised || !r.Until.IsZero() {
		t.Errorf("rotated: %+v", r)
	}
	closed(thief)
	again := p.enrolled("analyst-7")
	for name, h := range map[string]held{
		"the thief":                       {victim.creds, forgedBy(t, stolen)},
		"with credentials from behind it": {again.creds, forgedBy(t, stolen)},
		"the victim, with what it had":    victim,
		"with a certificate alone":        {victim.creds, again.cert},
	} {
		if err := p.trusting(p.bundle(), h); err == nil {
			t.Errorf("%s gets in", name)
		}
	}
	must(t, p.trusting(p.bundle(), again))
	var unknown x509.UnknownAuthorityError
	if err := p.trusting(old, again); !errors.As(err, &unknown) {
		t.Errorf("who trusts the stolen authority still gets to the server: %v", err)
	}
}

// The issuer dies before the log knows of a rotation; a start tells it.
func TestAnInterruptedRotationOfTheAuthorityIsTold(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	before, bundle := p.enrolled("analyst-7"), p.bundle()
	p.stop()
	must(t, p.ca.Rotate(time.Now(), false, "root/alice", "test"))
	p.start()
	for p.ca.Untold() != nil {
		time.Sleep(10 * time.Millisecond)
	}
	if e := p.lastEvent("ev._fleet.policy.rotated"); e.Reason != "test" || !strings.Contains(string(e.Data), ca.Fingerprint(p.authority().cert.Raw)) {
		t.Errorf("logged: %s", e.Data)
	}
	must(t, p.trusting(bundle, before))
}

// askedBy is who signs a user of AUTH.
func askedBy(t *testing.T, creds string) string {
	t.Helper()
	token, err := jwt.ParseDecoratedJWT([]byte(creds))
	must(t, err)
	c, err := jwt.DecodeUserClaims(token)
	must(t, err)
	return c.Issuer
}

// Somebody copied the key that signs users of AUTH. It counts until the last
// credential that it signed has ended, and then neither the server nor the issuer
// takes what it signs; at once, where it is compromised.
func TestTheFormerKeyOfBoundUsersCountsUntilTheirLastHasEnded(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	before := p.enrolled("analyst-7")
	stolen, err := keys.OpenSecrets(p.data)
	must(t, err)
	nc := p.mustConnect(before)
	r := p.rotateAccounts(false)
	must(t, nc.Flush())
	must(t, p.trusting(p.bundle(), before))
	after := p.enrolled("analyst-7")
	must(t, p.trusting(p.bundle(), after))
	if askedBy(t, after.creds) == askedBy(t, before.creds) {
		t.Error("the same key signs")
	}
	forged := p.asThief(stolen, time.Now().Add(365*24*time.Hour))
	must(t, p.trusting(p.bundle(), held{forged, after.cert}))
	p.clock.advance(r.Until.Sub(p.clock.now()) + time.Second)
	closed(nc)
	after = p.enrolled("analyst-7")
	must(t, p.trusting(p.bundle(), after))
	p.signsNoMore("the former key", held{forged, after.cert})
	onDisk, err := keys.Open(p.data)
	must(t, err)
	next, err := jwt.DecodeAccountClaims(onDisk.JWTs[p.secrets.Auth.Account])
	must(t, err)
	for name, c := range map[string]*jwt.AccountClaims{"takes": p.accountFile(p.secrets.Auth.Account), "takes after a restart": next} {
		if s := scopedIn(c); len(s) != 1 || s[0] != askedBy(t, after.creds) {
			t.Errorf("the server %s users of %v", name, s)
		}
	}
	if _, err := os.Stat(p.data + "/keys/accounts/AUTH-agents.seed"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the former key is still there: %v", err)
	}

	again, err := keys.OpenSecrets(p.data) // as it is after a restart, and as a thief has it
	must(t, err)
	must(t, p.trusting(p.bundle(), held{p.asThief(again, time.Now().Add(365*24*time.Hour)), after.cert}))
	p.rotateAccounts(true)
	p.signsNoMore("the compromised key", held{p.asThief(again, time.Now().Add(365*24*time.Hour)), after.cert})
	must(t, p.trusting(p.bundle(), p.enrolled("analyst-7")))
}

// signsNoMore holds both against what a key signed: the server, which does not
// know the key, and the issuer, whatever the server knows.
func (p *plane) signsNoMore(what string, h held) {
	p.t.Helper()
	if err := p.trusting(p.bundle(), h); err == nil {
		p.t.Errorf("the server takes a user of %s", what)
	}
	token, err := jwt.ParseDecoratedJWT([]byte(h.creds))
	must(p.t, err)
	if _, err := accounts.NewMaker(p.secrets).Ask(token, p.clock.now()); !errors.Is(err, accounts.ErrNotSigned) {
		p.t.Errorf("the issuer takes a user of %s: %v", what, err)
	}
}

// scopedIn are the keys that sign users who may do no more than their template.
func scopedIn(c *jwt.AccountClaims) (out []string) {
	for public, scope := range c.SigningKeys {
		if scope != nil {
			out = append(out, public)
		}
	}
	return out
}

// The issuer dies between the steps; a start goes on, and nobody is cut off.
func TestAnInterruptedRotationOfTheKeyOfBoundUsersGoesOn(t *testing.T) {
	for name, until := range map[string]func(*keys.Masters) error{
		"with a successor": func(m *keys.Masters) error { return m.Succeed(false, "root/alice", "test") },
		"promoted, and the server does not know it": func(m *keys.Masters) error {
			return errors.Join(m.Succeed(false, "root/alice", "test"), m.Promote(time.Now().Add(48*time.Hour)))
		},
		"compromised": func(m *keys.Masters) error { return m.Succeed(true, "root/alice", "test") },
	} {
		t.Run(name, func(t *testing.T) {
			p := boundPlane(t, ca.Config{})
			before := p.enrolled("analyst-7")
			p.stop()
			must(t, until(p.secrets.Masters))
			var err error
			p.secrets, err = keys.OpenSecrets(p.data)
			must(t, err)
			p.start()
			for p.newestEvent("ev._fleet.policy.rotated") == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if err := p.trusting(p.bundle(), before); (err != nil) != (name == "compromised") {
				t.Errorf("who was enrolled before: %v", err)
			}
			after := p.enrolled("analyst-7")
			must(t, p.trusting(p.bundle(), after))
			if askedBy(t, after.creds) == askedBy(t, before.creds) {
				t.Error("the same key signs")
			}
		})
	}
}
