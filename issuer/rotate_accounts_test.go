package issuer_test

import (
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func (p *plane) rotateAccounts(compromised bool) schemas.RotateReply {
	p.t.Helper()
	return call[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateAccounts, Compromised: compromised, Reason: "test", Actor: "alice"})
}

// asThief signs an identity with the keys that somebody copied from the folder.
func (p *plane) asThief(stolen *keys.Secrets, until time.Time) string {
	p.t.Helper()
	user, err := nkeys.CreateUser()
	must(p.t, err)
	public, err := user.PublicKey()
	must(p.t, err)
	token, err := accounts.NewMaker(stolen).Identity("analyst-7", public, p.stored("analyst-7").Keys, time.Now().Add(2*time.Second), until)
	must(p.t, err)
	creds, err := accounts.Creds(token, user)
	must(p.t, err)
	return creds
}

// Somebody copied master.secret. What agents hold goes on until it ends; what
// the thief signs with the copy ends with the former keys.
func TestFormerKeysOfAccountsCountUntilTheirLastCredentialHasEnded(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	stolen, err := keys.OpenSecrets(p.data)
	must(t, err)
	creds := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds
	nc := p.mustClient(creds)
	account := p.stored("analyst-7")

	r := p.rotateAccounts(false)
	if r.Key != schemas.RotateAccounts || r.KeyID == r.Replaced || r.Until.Before(time.Now().Add(24*time.Hour)) {
		t.Errorf("rotated: %+v", r)
	}
	if e := p.lastEvent("ev._fleet.policy.rotated"); e.Seq != r.Seq || e.Actor != "root/alice" {
		t.Errorf("logged: %+v", e)
	}
	must(t, nc.Flush())
	p.mustClient(creds) // from before, also for a connection to come
	p.mustClient(p.issue(reportRequest()).Creds)
	if after := p.stored("analyst-7"); after.Incarnation != account.Incarnation || p.storedAccount("analyst-7") == nil {
		t.Errorf("another account: %+v, %+v", account, after)
	}
	refusal[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateAccounts, Reason: "again", Actor: "alice"}, schemas.CodeConflict)
	refusal[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Key: "nonsense", Reason: "again", Actor: "alice"}, schemas.CodeMalformed)

	forged := p.asThief(stolen, time.Now().Add(365*24*time.Hour))
	thief := p.mustClient(forged)
	before := len(p.storedAccount("analyst-7").SigningKeys)
	p.clock.advance(r.Until.Sub(p.clock.now()) + time.Second)
	closed(thief)
	closed(nc)
	if _, err := p.client(forged); err == nil {
		t.Error("a copy of the former keys still signs")
	}
	if now := len(p.storedAccount("analyst-7").SigningKeys); before != 2*now || now == 0 {
		t.Errorf("%d signing keys while both counted, %d now", before, now)
	}
	p.mustClient(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds)
	p.rotateAccounts(false)
}

// The secret is known to be stolen: nothing that it signed counts, from now on.
func TestCompromisedKeysOfAccountsEndAtOnce(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	stolen, err := keys.OpenSecrets(p.data)
	must(t, err)
	thief := p.mustClient(p.asThief(stolen, time.Now().Add(time.Hour)))
	p.rotateAccounts(false)
	if r := p.rotateAccounts(true); !r.Compromised || !r.Until.IsZero() {
		t.Errorf("rotated: %+v", r)
	}
	closed(thief)
	if _, err := p.client(p.asThief(stolen, time.Now().Add(time.Hour))); err == nil {
		t.Error("the stolen keys still sign")
	}
	p.mustClient(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds)
}

// The issuer dies between the steps of a rotation; a start goes on with it.
func TestAnInterruptedRotationOfAccountsGoesOn(t *testing.T) {
	for name, until := range map[string]func(*keys.Masters) error{
		"with a successor": func(m *keys.Masters) error { return m.Succeed(false, "root/alice", "test") },
		"promoted, and not told": func(m *keys.Masters) error {
			if err := m.Succeed(false, "root/alice", "test"); err != nil {
				return err
			}
			return m.Promote(time.Now().Add(48 * time.Hour))
		},
		"compromised, and not told": func(m *keys.Masters) error { return m.Succeed(true, "root/alice", "test") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t, embed.Options{})
			p.apply()
			creds := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds
			p.stop()
			must(t, until(p.secrets.Masters))
			var err error
			p.secrets, err = keys.OpenSecrets(p.data)
			must(t, err)
			p.start()
			for p.newestEvent("ev._fleet.policy.rotated") == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if s := p.secrets.Masters.State(); s.Successor {
				t.Errorf("%+v", s)
			}
			_, err = p.client(creds)
			if out := err != nil; out != (name == "compromised, and not told") {
				t.Errorf("who was enrolled before: %v", err)
			}
			p.mustClient(p.issue(reportRequest()).Creds)
			p.stop()
			p.start()
			if s := p.secrets.Masters.State(); s.Untold != nil {
				t.Errorf("told, and still not known to be: %+v", s)
			}
		})
	}
}
