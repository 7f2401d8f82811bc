package issuer_test

import (
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
)

// Somebody has stolen an agent's certificate with its key, for which the agent
// was killed. It is enrolled anew, and the thief gets hold of its new credentials,
// too: the old certificate, which is valid for hours yet, is no way in.
func TestACertificateFromBeforeAKillIsNoWayIn(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	refused := func(what string, creds string, old held) {
		t.Helper()
		if _, err := p.connect(creds, old.cert); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", what, err)
		}
	}
	first := p.enrolled("analyst-7")
	p.mustConnect(p.granted(reportRequest()))
	p.lock(schemas.Killed, "analyst-7")
	second := p.enrolled("analyst-7")
	p.mustConnect(second)
	operation := p.granted(reportRequest())
	p.mustConnect(operation)
	refused("the new identity", second.creds, first)
	refused("a new operation", operation.creds, first)

	p.lock(schemas.Killed, "analyst-7") // at once, and once more: each of them ends what was before
	third := p.enrolled("analyst-7")
	p.mustConnect(third)
	refused("the third, with the first", third.creds, first)
	refused("the third, with the second", third.creds, second)

	p.stop()
	p.start() // what is void is in the log
	refused("behind a restart", third.creds, second)
	p.mustConnect(third)

	// No lock but a kill voids certificates.
	p.lock(schemas.Suspended, "analyst-7")
	p.lock(schemas.Active, "analyst-7")
	p.mustConnect(third)
}

// A name that was removed, and is another's now, takes no certificate along.
func TestACertificateFromBeforeARemovalIsNoWayIn(t *testing.T) {
	p := boundPlane(t, ca.Config{})
	old, other := p.enrolled("analyst-7"), p.enrolled("writer-2")
	p.mustConnect(old)
	smaller := fleetOf()
	smaller.Principals, smaller.Prune = smaller.Principals[1:], true
	call[schemas.ApplyReply](p, schemas.CtlApply, smaller)
	p.apply()
	again := p.enrolled("analyst-7")
	p.mustConnect(again)
	if _, err := p.connect(again.creds, old.cert); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("removed, and declared again: %v", err)
	}
	p.mustConnect(other) // who stayed, stays
}

// SPIRE's certificates say from when they are valid, and nobody here has seen
// them issued: one that was valid before the enrolment is from before it.
func TestASPIREServersCertificateFromBeforeAKillIsNoWayIn(t *testing.T) {
	spire := newAuthority(t, "acme.example")
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	must(t, os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: spire.cert.Raw}), 0o600))
	p := boundPlane(t, ca.Config{SPIREBundle: bundle})
	own := []*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/analyst-7"}}
	old := spire.make(t, leafOf(own, time.Now().Add(time.Hour)))
	_, err := p.connect(p.granted(reportRequest()).creds, old)
	must(t, err) // one that was valid before the agent was declared is its own all the same
	p.lock(schemas.Killed, "analyst-7")
	creds := p.enrolled("analyst-7").creds
	if _, err := p.connect(creds, old); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("from before: %v", err)
	}
	p.clock.advance(2 * time.Minute)
	next := leafOf(own, time.Now().Add(time.Hour))
	next.NotBefore = p.clock.now().Add(-time.Minute)
	if _, err := p.connect(creds, spire.make(t, next)); err != nil {
		t.Errorf("from behind it: %v", err)
	}
}
