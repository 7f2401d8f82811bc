package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/schemas"
)

func initialised(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	if err := Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	return data
}

func files(t *testing.T, data string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(data, Dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitMakesWhatEachServiceNeeds(t *testing.T) {
	data := initialised(t)
	if _, err := OpenSecrets(data); err != nil {
		t.Error(err)
	}
	l, err := OpenLedger(data)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(l.Verifier)
	if err != nil || v.Name() != "acme.example" || v.KeyHash() != l.Signer.KeyHash() {
		t.Errorf("ledger key %v, %v", v, err)
	}
	for role := range roles {
		if _, err := Creds(data, role); err != nil {
			t.Error(err)
		}
	}
}

// fromBefore makes a folder what another version left, as far as Upgrade looks
// at it: it was made for other rights, and some accounts it had not.
func fromBefore(t *testing.T, data string, without ...string) {
	t.Helper()
	path := filepath.Join(data, Dir, "trust.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var trust Trust
	if err := json.Unmarshal(b, &trust); err != nil {
		t.Fatal(err)
	}
	trust.Rights = ""
	for _, name := range without {
		delete(trust.Accounts, name)
	}
	if b, err = json.Marshal(trust); err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func userIn(t *testing.T, data string, role Role) (subject string, issued int64) {
	t.Helper()
	creds, err := Creds(data, role)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	return c.Subject, c.IssuedAt
}

// Who kept credentials of an older version, whose rights were wider or other,
// must not get in with them: also not where the upgrade was cut off and done
// again.
func TestUpgradeRevokesTheUsersThatItReplaces(t *testing.T) {
	data := initialised(t)
	if changed, err := Upgrade(data); changed || err != nil {
		t.Fatalf("a new folder: %t, %v", changed, err)
	}
	before, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	type user struct {
		role    Role
		subject string
		issued  int64
	}
	var replaced []user
	for range 2 { // the second time as if the first had been interrupted at its end
		fromBefore(t, data, MEMORY)
		for role := range roles {
			subject, issued := userIn(t, data, role)
			replaced = append(replaced, user{role, subject, issued})
		}
		if changed, err := Upgrade(data); !changed || err != nil {
			t.Fatalf("%t, %v", changed, err)
		}
		trust, err := Open(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{SYS, CONTROL, DELIVER} {
			if trust.Accounts[name] != before.Accounts[name] {
				t.Errorf("%s has another key", name)
			}
		}
		for _, old := range replaced {
			if roles[old.role].account == MEMORY {
				continue // its account is a new one, which knows none of them
			}
			account, err := jwt.DecodeAccountClaims(trust.JWTs[trust.Accounts[roles[old.role].account]])
			if err != nil {
				t.Fatal(err)
			}
			if !account.IsClaimRevoked(&jwt.UserClaims{ClaimsData: jwt.ClaimsData{Subject: old.subject, IssuedAt: old.issued}}) {
				t.Errorf("the old user of %s is let in", old.role)
			}
			if now, _ := userIn(t, data, old.role); now == old.subject {
				t.Errorf("%s has its old user", old.role)
			}
		}
	}
	if err := CheckPermissions(filepath.Join(data, Dir)); err != nil {
		t.Error(err)
	}
	if changed, err := Upgrade(data); changed || err != nil {
		t.Errorf("once more: %t, %v", changed, err)
	}
}

// A folder from before TLS gets the account that it needs, and keeps what
// agents' users are signed with.
func TestUpgradeMakesTheAccountThatConnectionsAreAskedAboutIn(t *testing.T) {
	data := initialised(t)
	if err := WriteTLS(data, map[string][]byte{"tls.json": []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	before, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	fromBefore(t, data, AUTH)
	if _, err := OpenSecrets(data); err == nil || !strings.Contains(err.Error(), "no account AUTH") {
		t.Errorf("without it: %v", err)
	}
	if changed, err := Upgrade(data); !changed || err != nil {
		t.Fatalf("%t, %v", changed, err)
	}
	after, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	account, err := jwt.DecodeAccountClaims(after.Trust.JWTs[after.Auth.Account])
	if err != nil {
		t.Fatal(err)
	}
	service, _ := userIn(t, data, RoleCallout)
	xkey, err := after.Auth.XKey.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := account.SigningKeys.GetScope(asking(t, after))
	if a := account.Authorization; len(a.AuthUsers) != 1 || a.AuthUsers[0] != service || a.XKey != xkey || !ok || asking(t, after) != asking(t, before) {
		t.Errorf("authorization %+v, signer %v", a, signer)
	}
	scope, ok := signer.(*jwt.UserScope)
	if !ok || len(scope.Template.Pub.Allow)+len(scope.Template.Sub.Allow) > 0 || !scope.Template.Pub.Deny.Contains(">") || !scope.Template.Sub.Deny.Contains(">") {
		t.Errorf("agents' users in AUTH may do something: %+v", scope)
	}
}

// asking is the key that signs agents' users in AUTH.
func asking(t *testing.T, s *Secrets) string {
	t.Helper()
	pairs, err := s.Asking()
	if err != nil {
		t.Fatal(err)
	}
	return pairs[0].Public()
}

// A folder that was bound has other keys than before, but for the account's own,
// and none but them sign.
func TestBoundAgentsHaveKeysOfTheirOwn(t *testing.T) {
	data := initialised(t)
	before, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteTLS(data, map[string][]byte{"tls.json": []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	after, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"analyst", schemas.MemoryID} {
		for _, role := range []KeyRole{AccountKey, IdentityKey, OperationKey, ServiceKey, JoinKey, OperatorKey} {
			a, aerr := before.Account(id, "", 1, role)
			b, berr := after.Account(id, "", 1, role)
			if aerr != nil || berr != nil {
				t.Fatal(aerr, berr)
			}
			if same := role == AccountKey || role == JoinKey || role == OperatorKey || id == schemas.MemoryID; (a.Public() == b.Public()) != same {
				t.Errorf("%s's key %s: the same %t", id, role, !same)
			}
		}
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	data := initialised(t)
	before, err := os.ReadFile(filepath.Join(data, Dir, "trust.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Init(data, "other.example"); !errors.Is(err, ErrExists) {
		t.Errorf("second init: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(data, Dir, "trust.json"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("keys changed, %v", err)
	}
	left, err := os.ReadDir(data)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestInitRefusesBadTrustDomains(t *testing.T) {
	for _, bad := range []string{"", "Acme.example", "acme example", "acme/example", "acme\n", "acme+x", strings.Repeat("a", 300)} {
		if err := Init(t.TempDir(), bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestAnyFileOrFolderThatOthersMayReadIsRefused(t *testing.T) {
	data := initialised(t)
	paths := append(files(t, data), filepath.Join(data, Dir), filepath.Join(data, Dir, "creds"), filepath.Join(data, Dir, "offline"))
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		for _, loose := range []fs.FileMode{0o040, 0o004, 0o020, 0o001} {
			if err := os.Chmod(path, want|loose); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(data); !errors.Is(err, ErrPermissions) {
				t.Errorf("%s with mode %o: %v", path, want|loose, err)
			}
		}
		if err := os.Chmod(path, want); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(data); err != nil {
		t.Error(err)
	}
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	data := initialised(t)
	for _, path := range files(t, data) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		secret := strings.TrimSpace(string(content))
		if err := os.WriteFile(path, []byte(secret+"damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, e1 := OpenSecrets(data)
		_, e2 := OpenLedger(data)
		for _, err := range []error{e1, e2} {
			if err != nil && strings.Contains(err.Error(), secret[:min(len(secret), 20)]) {
				t.Errorf("%s: %v", path, err)
			}
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeysOfAnAccountDifferByAgentRoleAndGeneration(t *testing.T) {
	s, err := OpenSecrets(initialised(t))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, id := range []string{"a", "b", "a-1"} {
		for _, role := range []KeyRole{AccountKey, IdentityKey, OperationKey, ServiceKey} {
			for gen := range 3 {
				pair, err := s.Account(id, "", gen, role)
				if err != nil {
					t.Fatal(err)
				}
				public := pair.Public()
				name := id + "/" + string(role)
				if role == OperationKey || role == ServiceKey {
					name += string(rune('0' + gen))
				}
				if other, ok := seen[public]; ok && other != name {
					t.Errorf("%s and %s share a key", other, name)
				}
				seen[public] = name
			}
		}
	}
	if len(seen) != 3*(2+2*3) {
		t.Errorf("%d keys", len(seen))
	}
}

func TestServerInsistsOnSigningKeys(t *testing.T) {
	trust, err := Open(initialised(t))
	if err != nil {
		t.Fatal(err)
	}
	op, err := jwt.DecodeOperatorClaims(trust.Operator)
	if err != nil {
		t.Fatal(err)
	}
	if !op.StrictSigningKeyUsage || op.SystemAccount != trust.Accounts[SYS] {
		t.Errorf("operator %+v", op.Operator)
	}
	for public, token := range trust.JWTs {
		c, err := jwt.DecodeAccountClaims(token)
		if err != nil {
			t.Fatal(err)
		}
		signers := 1
		if c.Name == AUTH {
			signers = 2 // the service's user, and agents' users, which have no rights
		}
		if c.Subject != public || c.Issuer == op.Subject || len(c.SigningKeys) != signers || c.Limits.LeafNodeConn != 0 {
			t.Errorf("account %+v", c)
		}
	}
}

func TestEveryRoleHasListsOfRights(t *testing.T) {
	for role, r := range roles {
		p := r.permissions(role)
		if len(p.Pub.Allow) == 0 || len(p.Sub.Allow) == 0 {
			t.Errorf("%s has an empty list, which means everything", role)
		}
		for _, s := range append(append([]string{}, p.Pub.Allow...), p.Sub.Allow...) {
			if s == ">" || strings.HasPrefix(s, "$SYS.>") || strings.HasPrefix(s, "*") {
				t.Errorf("%s may %s", role, s)
			}
		}
	}
}

// A folder whose keys are lost must not get new ones in silence: its ledger would
// look tampered with, and the real keys would have nowhere to go back to.
func TestInitMakesNoKeysBesideHistory(t *testing.T) {
	for _, name := range []string{"ledger", "anchor", "nats"} {
		data := t.TempDir()
		if err := os.MkdirAll(filepath.Join(data, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Init(data, "acme.example"); !errors.Is(err, ErrHistory) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(data, Dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: keys were made: %v", name, err)
		}
	}
}

func TestInitRemovesWhatAKilledOneLeft(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data") // closed to others
	left := filepath.Join(data, draftPrefix+"123", "creds")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(left)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unfinished folder of keys stays: %v", err)
	}
}

// The issuer replaces a key while somebody else opens the folder: what is gone by
// the time that it is looked at can be read by nobody, and keeps nobody out.
func TestAFolderOpensWhileAKeyIsReplaced(t *testing.T) {
	data := initialised(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := WriteSecret(data, "webhooks/siem.json", []byte("{}")); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 2000 {
		if _, err := Open(data); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
