package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// forged is an agent's certificate that a thief of an authority made, for as
// long as it likes, and which may say that another authority signed it.
func forged(t *testing.T, by own, until time.Time, says []byte) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	domain, err := spiffeid.TrustDomainFromString("acme.example")
	must(t, err)
	id, err := spiffeid.FromSegments(domain, "agent", "analyst")
	must(t, err)
	parent := *by.Cert.Certificate
	if says != nil {
		parent.SubjectKeyId = says
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	c.URIs = append(c.URIs, id.URL())
	der, err := x509.CreateCertificate(rand.Reader, c, &parent, k.Public(), by.Key)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	return c
}

func counts(a *Authority, c *x509.Certificate, at time.Time) bool {
	who, err := a.Agent([]*x509.Certificate{c}, at)
	return err == nil && who == "analyst"
}

func authoritiesIn(t *testing.T, bundle []byte) (ids []string) {
	t.Helper()
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return ids
		}
		ids = append(ids, Fingerprint(block.Bytes))
	}
}

// Nothing that was signed before a rotation counts behind the former authority's
// end, also where a thief signed it for longer, and before that everything does;
// the bundle is ahead of who signs.
func TestAFormerAuthorityCountsUntilItsLastCertificateHasEnded(t *testing.T) {
	data := enabled(t, Config{})
	a := opened(t, data)
	was, now := a.ring.Current, time.Now()
	if got := authoritiesIn(t, a.Bundle()); len(got) != 2 || got[1] != a.ring.Next.id() {
		t.Fatalf("the successor is not in the bundle: %v", got)
	}
	theft := forged(t, was, now.Add(365*24*time.Hour), nil)
	next := a.ring.Next.id()
	must(t, a.Rotate(now, false, "root/alice", "test"))
	if a.ring.Current.id() != next || !counts(a, theft, now) {
		t.Error("another than the successor signs, or what the former signed counts no more at once")
	}
	disguised := forged(t, was, now.Add(365*24*time.Hour), a.ring.Current.Cert.SubjectKeyId)
	until := a.ring.Former.Until
	for name, c := range map[string]*x509.Certificate{"forged": theft, "in the new one's name": disguised} {
		if !a.Ends(c).Equal(until) {
			t.Errorf("%s: who gets in with it stays until %s, and the former authority ends at %s", name, a.Ends(c), until)
		}
		if !counts(a, c, until.Add(-time.Second)) || counts(a, c, until) {
			t.Errorf("%s: it counts not until the end of the former authority, or beyond it", name)
		}
	}
	if until.Before(now.Add(MaxTTL)) {
		t.Errorf("the longest certificate ends behind %s", until)
	}
	b, err := os.ReadFile(filepath.Join(data, "keys", "tls", ringFile))
	must(t, err)
	raw, err := was.Key.MarshalText()
	must(t, err)
	quoted, err := json.Marshal(string(raw))
	must(t, err)
	if bytes.Contains(b, quoted) {
		t.Error("the former authority's key is still there")
	}
	must(t, a.Tend(until))
	file, err := os.ReadFile(BundlePath(data))
	must(t, err)
	if got := authoritiesIn(t, file); len(got) != 2 || strings.Contains(strings.Join(got, " "), was.id()) || !bytes.Equal(file, a.Bundle()) {
		t.Errorf("the bundle after it: %v", got)
	}
	if again := opened(t, data); counts(again, theft, now) {
		t.Error("after a restart it counts again")
	}
}

// A successor that somebody may not trust yet signs nothing.
func TestNoAuthoritySignsBeforeEverybodyCanTrustIt(t *testing.T) {
	a := opened(t, enabled(t, Config{}))
	now := time.Now().UTC().Truncate(time.Second)
	must(t, a.Rotate(now, false, "root/alice", "test"))
	var refused *schemas.Refusal
	if err := a.Rotate(now.Add(Overlap-time.Second), false, "root/alice", "again"); !errors.As(err, &refused) || refused.Code != schemas.CodeConflict {
		t.Errorf("too early: %v", err)
	}
	must(t, a.Rotate(now.Add(Overlap), false, "root/alice", "again"))
}

// Somebody has the folder: neither what signs nor its successor counts.
func TestNothingStaysOfACompromisedAuthority(t *testing.T) {
	data := enabled(t, Config{})
	a := opened(t, data)
	now, ring := time.Now(), a.ring
	must(t, a.Rotate(now, false, "root/alice", "test"))
	stolen := []own{ring.Current, ring.Next, a.ring.Next}
	must(t, a.Rotate(now, true, "root/alice", "theft"))
	for n, o := range stolen {
		if c := forged(t, o, now.Add(time.Hour), nil); counts(a, c, now) || counts(opened(t, data), c, now) {
			t.Errorf("what authority %d signs counts", n)
		}
		if strings.Contains(strings.Join(authoritiesIn(t, a.Bundle()), " "), o.id()) {
			t.Errorf("authority %d is in the bundle", n)
		}
	}
}

// Each step is on disk before anybody sees it, and what is on disk holds after a
// restart; a bundle that could not be written is written then.
func TestAnInterruptedRotationOfTheAuthorityGoesOn(t *testing.T) {
	data := enabled(t, Config{})
	a := opened(t, data)
	must(t, os.Remove(BundlePath(data)))
	must(t, os.Mkdir(BundlePath(data), 0o700)) // nothing can be put in its place
	must(t, a.Rotate(time.Now(), false, "root/alice", "test"))
	if !a.Due(time.Now()) || a.Tend(time.Now()) == nil {
		t.Error("the bundle is not written, and nobody says so")
	}
	again := opened(t, data)
	if turn := again.Untold(); turn == nil || turn.Rotation.KeyID != a.ring.Current.id() || turn.Reason != "test" {
		t.Errorf("the rotation is forgotten: %+v", turn)
	}
	must(t, os.Remove(BundlePath(data)))
	must(t, Prepare(data, "acme.example", time.Now()))
	if b, err := os.ReadFile(BundlePath(data)); err != nil || !bytes.Equal(b, again.Bundle()) {
		t.Errorf("the bundle after a restart: %v", err)
	}
	must(t, again.Told())
	if again.Untold() != nil || opened(t, data).Untold() != nil {
		t.Error("told, and still not known to be")
	}
}

// A folder of an older version has one authority, which goes on; the successor
// may sign when everybody can have seen it.
func TestAnOlderFoldersAuthorityStays(t *testing.T) {
	data := enabled(t, Config{})
	r, err := readRing(data)
	must(t, err)
	cert, err := r.Current.Cert.MarshalText()
	must(t, err)
	key, err := r.Current.Key.MarshalText()
	must(t, err)
	must(t, keys.WriteTLS(data, map[string][]byte{oldCert: cert, oldKey: key}))
	must(t, os.Remove(filepath.Join(dir(data), ringFile)))
	now := time.Now().UTC()
	must(t, Prepare(data, "acme.example", now))
	a := opened(t, data)
	if a.ring.Current.id() != r.Current.id() {
		t.Error("another authority")
	}
	if err := a.Rotate(now.Add(time.Hour), false, "root/alice", "test"); err == nil {
		t.Error("a successor signs that nobody knows")
	}
	for _, name := range []string{oldCert, oldKey} {
		if _, err := os.Stat(filepath.Join(dir(data), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}
