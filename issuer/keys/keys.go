// Package keys is the root of trust on disk: the folder keys/ of a data
// folder, how it is made, and how a service gets the part that it may see.
//
// Guarantees:
//
//   - Init makes a whole folder or none, and never overwrites one.
//   - Folders are 0700 and files 0600, the data folder among them. Whatever is
//     open to anybody else is an error, before anything of it is used.
//   - In a sealed folder (Seal, InitSealed) every secret is encrypted with age,
//     each under its name, and opened in memory alone.
//   - The operator's root key and the accounts' identity keys sign nothing
//     after Init (signing keys do, and the server insists on them); they lie
//     in keys/offline, to be taken away (ExportRoot, RemoveRoot).
//   - Every key of every agent's account is derived from one 32-byte master
//     secret (HKDF-SHA-256, RFC 5869), so that nothing about an agent has to be
//     stored, and a generation that was replaced is never derived again.
//   - No error holds key material.
//
// The folder:
//
//	trust.json               trust domain, public keys of the static accounts
//	operator.jwt             names the operator's signing key and SYS
//	operator-signing.seed    signs account JWTs: issuer only
//	accounts/NAME.jwt        SYS, CONTROL, DELIVER, MEMORY, AUTH
//	accounts/NAME.seed       signs the users of that account: issuer only
//	accounts/AUTH.xkey       opens what the server asks about connections: issuer only
//	accounts/AUTH-agents.seed signs agents' users in AUTH, until agents' accounts
//	                         are rotated: issuer only
//	master.secret            agents' account keys: issuer only
//	capability.keys          Ed25519, the one that signs capabilities and its successor: issuer only
//	ledger.note, ledger.pub  signs checkpoints (C2SP signed note): ledger only; ledger.next.note, .pub: its successor
//	ledger.policy            once it was replaced: which keys count for who verifies, and up to where
//	weights.note, .pub       signs the monitor's weights; made by the first signature
//	ledger.secret            wraps the ledger's per-agent keys: ledger only
//	creds/ROLE.creds         one NATS user per service
//	operator.creds           the operator's NATS user
//	tls/                     where TLS is on: package ca
//	offline/                 to be taken away
//	seal.age                 where the folder is sealed: under what
package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
)

// Dir is the folder's name inside a data folder.
const Dir = "keys"

// Names of the static accounts.
const (
	SYS     = "SYS"
	CONTROL = "CONTROL"
	DELIVER = "DELIVER"
	MEMORY  = "MEMORY"
	AUTH    = "AUTH"
)

// static are all of them, in the order in which they are made.
var static = []string{SYS, CONTROL, DELIVER, MEMORY, AUTH}

// ErrExists is matched where Init finds a folder that is there already.
var ErrExists = errors.New("keys exist already")

// ErrHistory is matched where a folder has no keys, and what was written with
// keys that it had.
var ErrHistory = errors.New("its keys are missing")

// ErrPermissions is matched where others than the owner may read a key.
var ErrPermissions = errors.New("keys are open to others")

// Trust is what everybody may know: enough to run a server and to verify.
type Trust struct {
	TrustDomain string            `json:"trust_domain"`
	Accounts    map[string]string `json:"accounts"`                   // public keys of the static accounts
	Rights      string            `json:"rights"`                     // of which rights the users and accounts were made: digest
	Formers     []string          `json:"former_operators,omitempty"` // keys that signed accounts once: their kills still count
	Operator    string            `json:"-"`                          // JWT
	JWTs        map[string]string `json:"-"`                          // account JWT, by public key
}

// Open checks the whole folder's permissions and reads its public part.
func Open(data string) (*Trust, error) {
	dir := filepath.Join(data, Dir)
	if err := errors.Join(checkClosed(data), CheckPermissions(dir)); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "trust.json"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no keys in %s; run writ init first: %w", data, err)
		}
		return nil, fmt.Errorf("read keys: %w", err)
	}
	t := &Trust{JWTs: map[string]string{}}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("keys/trust.json is damaged: %w", err)
	}
	if t.Operator, err = readText(dir, "operator.jwt"); err != nil {
		return nil, err
	}
	for _, name := range static {
		public := t.Accounts[name]
		if public == "" && name != SYS && name != CONTROL && name != DELIVER {
			continue // a folder from before it, until Upgrade
		}
		if !nkeys.IsValidPublicAccountKey(public) {
			return nil, fmt.Errorf("keys/trust.json names no account %s; restore it from a backup", name)
		}
		if t.JWTs[public], err = readText(dir, filepath.Join("accounts", name+".jwt")); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// CheckPermissions walks a folder of keys and fails at the first entry that
// others may read or write.
func CheckPermissions(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no keys at %s; run writ init first: %w", path, err)
			}
			return fmt.Errorf("check keys: %w", err)
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another process has replaced a key just now
		}
		if err != nil {
			return fmt.Errorf("check keys: %w", err)
		}
		return closed(path, info)
	})
}

// checkClosed fails where others may look into a data folder, or write there:
// what is beside the keys is for nobody else either, and who may write could
// put another folder of keys in place of this one.
func checkClosed(data string) error {
	info, err := os.Stat(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // without a folder there is nothing to read
	}
	if err != nil {
		return fmt.Errorf("check keys: %w", err)
	}
	return closed(data, info)
}

func closed(path string, info fs.FileInfo) error {
	mode := info.Mode()
	if mode&fs.ModeSymlink != 0 || mode.Perm()&0o077 == 0 {
		return nil
	}
	want := "600"
	if info.IsDir() {
		want = "700"
	}
	return fmt.Errorf("%w: %s has mode %o; run chmod %s %s, and replace the keys if others had access", ErrPermissions, path, mode.Perm(), want, path)
}

// CredsPath is where a role's NATS credentials lie.
func CredsPath(data string, role Role) string {
	return filepath.Join(data, Dir, credsName(role))
}

func credsName(role Role) string {
	if role == RoleOperator {
		return "operator.creds"
	}
	return filepath.Join("creds", string(role)+".creds")
}

// Creds reads a role's NATS credentials, which are a secret.
func Creds(data string, role Role) ([]byte, error) {
	return ReadSecret(data, credsName(role))
}

// Secrets are the issuer's. They must not leave its process.
type Secrets struct {
	Trust      *Trust
	Operator   *Pair // operator signing key
	Capability *Ring // signs capabilities
	Auth       *Auth // nil where TLS is off
	Masters    *Masters
	derived    sync.Map // *Pair, by what it was derived from
}

// OpenSecrets reads what the issuer alone needs.
func OpenSecrets(data string) (*Secrets, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	s := &Secrets{Trust: trust}
	seed, err := readSecret(dir, "operator-signing.seed")
	if err != nil {
		return nil, err
	}
	prefix, raw, err := nkeys.DecodeSeed(seed)
	if err != nil || prefix != nkeys.PrefixByteOperator {
		return nil, errors.New("keys/operator-signing.seed is damaged; restore it from a backup")
	}
	if s.Operator, err = newPair(prefix, raw); err != nil {
		return nil, errors.New("keys/operator-signing.seed is damaged; restore it from a backup")
	}
	if s.Masters, err = openMasters(dir); err != nil {
		return nil, err
	}
	if s.Capability, err = openRing(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, TLSDir)); err == nil {
		s.Auth, err = openAuth(dir, s.Masters)
		return s, err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return s, nil
}

// KeyRole tells the keys of one agent's account apart.
type KeyRole string

const (
	AccountKey   KeyRole = "account"   // the account's identity, one for each incarnation; signs nothing
	IdentityKey  KeyRole = "identity"  // signs users that may ask for capabilities
	OperationKey KeyRole = "operation" // signs users bound to one operation
	ServiceKey   KeyRole = "service"   // signs users of a service
	OperatorKey  KeyRole = "operator"  // signs users of an operator
	JoinKey      KeyRole = "join"      // signs users that may join
)

// Bound reports whether a principal's users of a role are bound to a
// certificate: with TLS, all of agents and services. The memory service is a
// part of the control plane, and who joins can have no certificate yet, nor
// do more than that.
func (s *Secrets) Bound(id string, role KeyRole) bool {
	return s.Auth != nil && id != schemas.MemoryID && (role == IdentityKey || role == OperationKey || role == ServiceKey)
}

// Account derives one key of a principal's account. The account's own key and
// the identity key are the same in all generations of one incarnation; the
// others are replaced with each. A bound principal's are others than its unbound ones, so that
// nobody gets past its certificate with what was signed before.
func (s *Secrets) Account(id, incarnation string, generation int, role KeyRole) (*Pair, error) {
	all, err := s.Trusted(id, incarnation, generation, role)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Trusted are the keys that count in one key's place: the one that signs first,
// and while the secret behind it is rotated its successor's or former one's.
func (s *Secrets) Trusted(id, incarnation string, generation int, role KeyRole) ([]*Pair, error) {
	from := s.Masters.trusted()
	if role == AccountKey {
		from = []string{s.Masters.names()}
	}
	var out []*Pair
	for _, master := range from {
		pair, err := s.derive(master, id, incarnation, generation, role)
		if err != nil {
			return nil, err
		}
		out = append(out, pair)
	}
	return out, nil
}

func (s *Secrets) derive(master, id, incarnation string, generation int, role KeyRole) (*Pair, error) {
	if role == AccountKey || role == IdentityKey {
		generation = 0
	}
	info := "writ account key v1/"
	if s.Bound(id, role) {
		info = "writ bound account key v1/"
	}
	info += id + "/" + strconv.Itoa(generation) + "/" + string(role)
	if incarnation != "" {
		info += "/" + incarnation
	}
	pair, err := s.derivedFrom(master, info)
	if err != nil {
		return nil, fmt.Errorf("derive the %s key of %s: %w", role, id, err)
	}
	return pair, nil
}

// derivedFrom is derive, once for each.
func (s *Secrets) derivedFrom(master, info string) (*Pair, error) {
	type source struct{ master, info string }
	if known, ok := s.derived.Load(source{master, info}); ok {
		return known.(*Pair), nil
	}
	pair, err := derive(master, info)
	if err == nil {
		s.derived.Store(source{master, info}, pair)
	}
	return pair, err
}
