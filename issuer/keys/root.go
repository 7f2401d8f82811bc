package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
)

const (
	offlineDir = "offline"
	seedExt    = ".seed"
	rootSeed   = offlineDir + "/operator" + seedExt
)

// ErrNoRoot is matched where the operator's root key is not in the folder.
var ErrNoRoot = errors.New("the operator's root key is not on this machine")

// A root is what an export of keys/offline holds: JSON, encrypted with age, in
// its armor. age alone, and no Writ, opens it.
type root struct {
	TrustDomain string            `json:"trust_domain"`
	Operator    string            `json:"operator"` // public key
	Seeds       map[string]string `json:"seeds"`    // operator, and the static accounts
}

// String keeps the seeds out of logs.
func (root) String() string { return "the operator's root key" }

// ExportRoot encrypts what lies in keys/offline: the operator's root key and
// the identity keys of the static accounts.
func ExportRoot(data string, with *Opener) ([]byte, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	r, err := offlineOf(data, trust)
	if err == nil {
		err = r.check(trust)
	}
	if err != nil {
		return nil, err
	}
	return r.encrypt(with)
}

func (r *root) encrypt(with *Opener) ([]byte, error) {
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, with.recipient)
	if err == nil {
		_, err = w.Write(schemas.Marshal(r))
	}
	if err == nil {
		err = errors.Join(w.Close(), text.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the operator's root key: %w", err)
	}
	return out.Bytes(), nil
}

// offlineOf reads keys/offline.
func offlineOf(data string, trust *Trust) (*root, error) {
	entries, err := os.ReadDir(filepath.Join(data, Dir, offlineDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	r := &root{TrustDomain: trust.TrustDomain, Seeds: map[string]string{}}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), seedExt)
		if !ok {
			continue
		}
		seed, err := ReadSecret(data, filepath.Join(offlineDir, e.Name()))
		if err != nil {
			return nil, err
		}
		r.Seeds[id] = string(seed)
	}
	if r.Seeds["operator"] == "" {
		return nil, fmt.Errorf("%w: there is no keys/%s", ErrNoRoot, rootSeed)
	}
	if r.Operator, err = publicOf(r.Seeds["operator"]); err != nil {
		return nil, fmt.Errorf("keys/%s: %w", rootSeed, err)
	}
	return r, nil
}

func publicOf(seed string) (string, error) {
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return "", errors.New("it is damaged; restore it from a backup") // the cause might quote it
	}
	return pair.PublicKey()
}

// check holds each seed against the public key that it must be the half of.
func (r *root) check(trust *Trust) error {
	operator, err := jwt.DecodeOperatorClaims(trust.Operator)
	if err != nil {
		return errors.New("keys/operator.jwt is damaged; restore it from a backup")
	}
	if r.TrustDomain != trust.TrustDomain || r.Operator != operator.Subject {
		return fmt.Errorf("it is the root key of %q (%s), and the keys here are of %q (%s)", r.TrustDomain, r.Operator, trust.TrustDomain, operator.Subject)
	}
	if r.Seeds["operator"] == "" {
		return errors.New("it holds no root key")
	}
	for id, seed := range r.Seeds {
		want := trust.Accounts[id]
		if id == "operator" {
			want = operator.Subject
		}
		public, err := publicOf(seed)
		if err != nil {
			return fmt.Errorf("the seed of %.40q: %w", id, err)
		}
		if public != want {
			return fmt.Errorf("the seed of %.40q is not this control plane's: it belongs to %s", id, public)
		}
	}
	return nil
}

// readRoot opens an export, and holds it against the keys here.
func readRoot(trust *Trust, export []byte, with *Opener) (*root, error) {
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(export)), with.identity)
	if none := new(age.NoIdentityMatchError); errors.As(err, &none) {
		return nil, errors.New("this is not the passphrase, or the identity, of the export")
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(plain)
	}
	if err != nil {
		return nil, errors.New("it is no export of a root key, or it is damaged")
	}
	r := new(root)
	if schemas.Unmarshal(text, r) != nil { // the cause might quote a seed
		return nil, errors.New("it is no export of a root key")
	}
	return r, r.check(trust)
}

// CheckRoot reports what an export lacks: it opens, and holds all that lies in
// keys/offline.
func CheckRoot(data string, export []byte, with *Opener) error {
	trust, err := Open(data)
	if err != nil {
		return err
	}
	r, err := readRoot(trust, export, with)
	if err != nil {
		return err
	}
	here, err := offlineOf(data, trust)
	if err != nil {
		return err
	}
	for id, seed := range here.Seeds {
		if r.Seeds[id] != seed {
			return fmt.Errorf("it lacks keys/%s/%s%s", offlineDir, id, seedExt)
		}
	}
	return nil
}

// RemoveRoot removes keys/offline, of which an export holds everything. What a
// disk keeps of a file that was removed is beyond it.
func RemoveRoot(data string, export []byte, with *Opener) error {
	if err := CheckRoot(data, export, with); err != nil {
		return err
	}
	dir := filepath.Join(data, Dir, offlineDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove keys/%s: %w", offlineDir, err)
	}
	for _, e := range entries {
		if e.Name() != "README" && filepath.Ext(e.Name()) != seedExt {
			return fmt.Errorf("keys/%s/%s is not in the export, so nothing was removed; move it away", offlineDir, e.Name())
		}
	}
	if err := errors.Join(os.RemoveAll(dir), syncDir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("remove keys/%s: %w", offlineDir, err)
	}
	return nil
}

// ImportRoot puts an export back into keys/offline, for what needs the root
// key.
func ImportRoot(data string, export []byte, with *Opener) error {
	trust, err := Open(data)
	if err != nil {
		return err
	}
	r, err := readRoot(trust, export, with)
	if err != nil {
		return err
	}
	d := &draft{dir: filepath.Join(data, Dir), replace: true}
	for id, seed := range r.Seeds {
		d.write(filepath.Join(offlineDir, id+seedExt), []byte(seed))
	}
	d.write(offlineDir+"/README", []byte(strings.TrimSpace(offlineReadme)))
	if d.err != nil {
		return fmt.Errorf("import the operator's root key: %w", d.err)
	}
	return nil
}
