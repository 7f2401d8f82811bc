package keys

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/schemas"
)

func ringOf(t *testing.T, data string) *Ring {
	t.Helper()
	r, err := openRing(filepath.Join(data, Dir))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ids(r *Ring, now time.Time) string {
	var out []string
	for _, k := range r.Public(now) {
		out = append(out, keyID(k))
	}
	return strings.Join(out, " ")
}

// A thief of the folder, or of a backup of it, finds no private key that was
// rotated away; and what it signed counts no longer than a token can.
func TestARotatedKeyVerifiesUntilItsLastTokenHasExpiredAndSignsNothing(t *testing.T) {
	data := initialised(t)
	r := ringOf(t, data)
	now := time.Now()
	old, next, seed := r.Current.id(), r.Next.id(), r.Current.Seed
	if err := r.Rotate(now, false, "ada", "each quarter"); err != nil {
		t.Fatal(err)
	}
	if again := ringOf(t, data); again.Current.id() != next || again.Next.id() == next || ids(again, now) != next+" "+again.Next.id()+" "+old {
		t.Errorf("from disk: %s", ids(again, now))
	}
	for _, path := range files(t, data) {
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte(seed)) {
			t.Errorf("%s holds the old private key (%v)", path, err)
		}
	}
	end := now.Add(24*time.Hour + time.Minute)
	if !strings.Contains(ids(r, end.Add(-time.Second)), old) || strings.Contains(ids(r, end), old) {
		t.Error("the old key verifies too short or too long")
	}
	if gone, err := r.Prune(end); !gone || err != nil || len(ringOf(t, data).Retired) != 0 {
		t.Errorf("not taken out: %t, %v", gone, err)
	}
}

// Who rotates too often would have tokens refused by verifiers that have not
// yet seen the key, or have more keys published than verifiers read.
func TestNoKeySignsBeforeVerifiersCanKnowIt(t *testing.T) {
	r := ringOf(t, initialised(t))
	now := time.Now()
	for n := range ringMost {
		if err := r.Rotate(now, false, "ada", "again"); err != nil {
			t.Fatal(n, err)
		}
		var refused *schemas.Refusal
		if err := r.Rotate(now.Add(RingLead-time.Second), false, "ada", "again"); !errors.As(err, &refused) || refused.Code != schemas.CodeConflict || !strings.Contains(err.Error(), "may not know") {
			t.Fatalf("too early: %v", err)
		}
		now = now.Add(RingLead)
	}
	before := ids(r, now)
	if err := r.Rotate(now, false, "ada", "again"); err == nil || !strings.Contains(err.Error(), "old keys still verify") || ids(r, now) != before {
		t.Errorf("one more: %v", err)
	}
	if err := r.Rotate(now.Add(25*time.Hour), false, "ada", "again"); err != nil {
		t.Errorf("when they are gone: %v", err)
	}
}

// A thief has all that was there, the successor too.
func TestNothingStaysOfCompromisedKeys(t *testing.T) {
	data := initialised(t)
	r := ringOf(t, data)
	if err := r.Rotate(time.Now(), false, "ada", "quarter"); err != nil {
		t.Fatal(err)
	}
	stolen := strings.Fields(ids(r, time.Now()))
	if err := r.Rotate(time.Now(), true, "ada", "stolen"); err != nil {
		t.Fatal(err)
	}
	for _, id := range stolen {
		if strings.Contains(ids(ringOf(t, data), time.Now()), id) {
			t.Errorf("%s still verifies", id)
		}
	}
}

// A folder of an older version keeps the key that signs, wherever its upgrade
// was interrupted.
func TestUpgradeMakesARingOfOneKey(t *testing.T) {
	data := initialised(t)
	dir := filepath.Join(data, Dir)
	old := newRingKey(time.Time{})
	write := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, ringOld), []byte(old.Seed+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		fromBefore(t, data)
	}
	write()
	if err := os.Remove(filepath.Join(dir, ringFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSecrets(data); err == nil || !strings.Contains(err.Error(), "writ provision") {
		t.Errorf("before the upgrade: %v", err)
	}
	var first string
	for range 2 { // the second time with both files there
		if changed, err := Upgrade(data); !changed || err != nil {
			t.Fatalf("%t, %v", changed, err)
		}
		r := ringOf(t, data)
		if first == "" {
			first = ids(r, time.Now())
		}
		if hex.EncodeToString(r.Signer().Seed()) != old.Seed || ids(r, time.Now()) != first {
			t.Error("another key signs than before")
		}
		if _, err := os.Stat(filepath.Join(dir, ringOld)); !os.IsNotExist(err) {
			t.Errorf("the old file: %v", err)
		}
		if err := r.Rotate(time.Now(), false, "ada", "at once"); err == nil {
			t.Error("a successor that nobody can know signs")
		}
		write()
	}
}

func TestADamagedRingIsNeverQuoted(t *testing.T) {
	data := initialised(t)
	path := filepath.Join(data, Dir, ringFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := ringOf(t, data).Current.Seed
	for _, broken := range []string{"", "{}", seed, string(whole[:len(whole)/2]), strings.Replace(string(whole), seed, seed[1:], 1),
		strings.Replace(string(whole), seed, "x"+seed[1:], 1), strings.Replace(string(whole), `"current"`, `"current":{},"current"`, 1),
		strings.Replace(string(whole), `"retired":[]`, `"retired":[{"public":"AAAA","until":"2026-01-01T00:00:00Z"}]`, 1)} {
		if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenSecrets(data); err == nil || !strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), seed[2:10]) {
			t.Errorf("%.20q: %v", broken, err)
		}
	}
}

// The list is shown to people and programs: no secret is in it.
func TestTheListOfKeysHoldsEveryKeyAndNoSecret(t *testing.T) {
	data := initialised(t)
	r := ringOf(t, data)
	if err := r.Rotate(time.Now(), false, "ada", "quarter"); err != nil {
		t.Fatal(err)
	}
	all, err := List(data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	listed := string(schemas.Marshal(all))
	for _, want := range append(strings.Fields(ids(r, time.Now())), `"operator root"`, `"operator signing"`, `"account CONTROL"`, `"user intake"`, "operator-signing.seed", "AUTH-agents.seed", "acme.example+", "master.secret", "ledger.secret") {
		if !strings.Contains(listed, want) {
			t.Errorf("%s is missing in %s", want, listed)
		}
	}
	for _, path := range files(t, data) {
		if b, err := os.ReadFile(path); err == nil && (strings.HasSuffix(path, ".seed") || strings.HasSuffix(path, ".secret")) && strings.Contains(listed, strings.TrimSpace(string(b))) {
			t.Errorf("the content of %s is listed", path)
		}
	}
	if strings.Contains(listed, r.Current.Seed) || strings.Contains(listed, r.Next.Seed) {
		t.Error("a seed is listed")
	}
	if err := os.RemoveAll(filepath.Join(data, Dir, "offline")); err != nil {
		t.Fatal(err)
	}
	if all, err = List(data, time.Now()); err != nil || all[0].Where != "" {
		t.Errorf("the root is said to be in %q, %v", all[0].Where, err)
	}
}

// Credentials that were copied from the folder are worth nothing behind it.
func TestRenewReplacesEveryServicesUserAndRevokesTheOld(t *testing.T) {
	data := initialised(t)
	type user struct {
		subject string
		issued  int64
	}
	before := map[Role]user{}
	for role := range roles {
		subject, issued := userIn(t, data, role)
		before[role] = user{subject, issued}
	}
	if err := Renew(data); err != nil {
		t.Fatal(err)
	}
	for role, old := range before {
		trust, err := Open(data)
		if err != nil {
			t.Fatal(err)
		}
		account, err := jwt.DecodeAccountClaims(trust.JWTs[trust.Accounts[roles[role].account]])
		if err != nil {
			t.Fatal(err)
		}
		revoked := func(u user) bool {
			return account.IsClaimRevoked(&jwt.UserClaims{ClaimsData: jwt.ClaimsData{Subject: u.subject, IssuedAt: u.issued}})
		}
		subject, issued := userIn(t, data, role)
		if now := (user{subject, issued}); now.subject == old.subject || !revoked(old) || revoked(now) {
			t.Errorf("%s: another %t, the old revoked %t, the new revoked %t", role, now.subject != old.subject, revoked(old), revoked(now))
		}
	}
}
