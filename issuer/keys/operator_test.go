package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// consistent fails where a folder's operator trusts another key than the one
// that signs, or an account is signed by another.
func consistent(t *testing.T, data string) (signing string) {
	t.Helper()
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	operator, err := jwt.DecodeOperatorClaims(s.Trust.Operator)
	if err != nil {
		t.Fatal(err)
	}
	signing = s.Operator.Public()
	if len(operator.SigningKeys) != 1 || operator.SigningKeys[0] != signing || operator.SystemAccount != s.Trust.Accounts[SYS] || !operator.StrictSigningKeyUsage {
		t.Errorf("%s signs, and the operator trusts %v", signing, operator.SigningKeys)
	}
	for public, token := range s.Trust.JWTs {
		c, err := jwt.DecodeAccountClaims(token)
		if err != nil || c.Issuer != signing || c.Subject != public {
			t.Errorf("account %s is signed by %s: %v", public, c.Issuer, err)
		}
	}
	if exists(filepath.Join(data, Dir), operatorNext) {
		t.Error("the successor lies beside the key that it is")
	}
	return signing
}

func TestTheOperatorsSigningKeyIsReplacedByTheRootKeyAlone(t *testing.T) {
	data := initialised(t)
	before := consistent(t, data)
	first, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	r, err := RotateOperator(data, "root/ada", "each year")
	if err != nil {
		t.Fatal(err)
	}
	after := consistent(t, data)
	trust, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	if before == after || r.KeyID != after || r.Replaced != before || len(trust.Formers) != 1 || trust.Formers[0] != before {
		t.Errorf("%s to %s: %+v, formers %v", before, after, r, trust.Formers)
	}
	for public, token := range trust.JWTs {
		was, _ := jwt.DecodeAccountClaims(first.JWTs[public])
		now, err := jwt.DecodeAccountClaims(token)
		if err != nil || len(now.SigningKeys) != len(was.SigningKeys) || len(now.Exports) != len(was.Exports) || len(now.Authorization.AuthUsers) != len(was.Authorization.AuthUsers) {
			t.Errorf("account %s is another: %+v, %v", was.Name, now, err)
		}
	}
	if _, err := RotateOperator(data, "root/ada", "again"); err == nil {
		t.Error("rotated again before the log knows")
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	if turn, _, err := s.Untold(); err != nil || turn == nil || turn.Rotation.KeyID != after || turn.Reason != "each year" {
		t.Errorf("for the log: %+v, %v", turn, err)
	}
	if _, told, err := s.Untold(); err != nil || told() != nil {
		t.Fatal("the log can't be told", err)
	}
	if err := os.RemoveAll(filepath.Join(data, Dir, offlineDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateOperator(data, "root/ada", "again"); !errors.Is(err, ErrNoRoot) {
		t.Errorf("without the root key: %v", err)
	}
	if consistent(t, data) != after {
		t.Error("a refused rotation changed something")
	}
}

// copied is a copy of a data folder with keys, as closed as that.
func copied(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	err := os.CopyFS(filepath.Join(to, Dir), os.DirFS(filepath.Join(from, Dir)))
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			mode := fs.FileMode(0o600)
			if d.IsDir() {
				mode = 0o700
			}
			return os.Chmod(path, mode)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// The machine stops behind any of the files that a rotation writes.
func TestAnInterruptedRotationOfTheOperatorsKeyIsDoneAgain(t *testing.T) {
	first := initialised(t)
	dir := filepath.Join(first, Dir)
	d := &draft{dir: dir, replace: true}
	d.pair(nkeys.PrefixByteOperator, operatorNext)
	if d.err != nil {
		t.Fatal(d.err)
	}
	whole := copied(t, first)
	done, err := RotateOperator(whole, "root/ada", "test")
	if err != nil {
		t.Fatal(err)
	}
	written := []string{operatorTurn, "trust.json"}
	for _, name := range static {
		written = append(written, "accounts/"+name+".jwt")
	}
	written = append(written, operatorFile, "operator.jwt")
	for n := range len(written) + 1 {
		part := halfway(t, first, whole, written[:n])
		if _, err := RotateOperator(part, "root/ada", "test"); err != nil {
			t.Fatalf("behind %v: %v", written[:n], err)
		}
		if got := consistent(t, part); got != done.KeyID {
			t.Errorf("behind %v: %s signs, want %s", written[:n], got, done.KeyID)
		}
		s, err := OpenSecrets(part)
		if err != nil {
			t.Fatal(err)
		}
		if turn, _, err := s.Untold(); err != nil || turn == nil || turn.Rotation.Replaced != done.Replaced || len(s.Trust.Formers) != 1 {
			t.Errorf("behind %v: for the log %+v, %v; formers %v", written[:n], turn, err, s.Trust.Formers)
		}
	}
}
