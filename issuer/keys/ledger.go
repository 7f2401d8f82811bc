package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/schemas"
)

const (
	ledgerNote = "ledger.note"
	ledgerPub  = "ledger.pub"
	ledgerNext = "ledger.next.note" // prepared, and signs nothing yet
	nextPub    = "ledger.next.pub"
)

// LedgerPolicy is where the keys stand that count for who verifies the ledger,
// once its key was replaced.
const LedgerPolicy = "ledger.policy"

// Ledger is what the ledger alone needs.
type Ledger struct {
	Origin   string // of checkpoints: the trust domain
	Signer   note.Signer
	Verifier string     // public: verifies checkpoints
	Next     *LedgerKey // prepared for a rotation; nil where none is
	Secret   [32]byte   // root of the per-agent keys
	Lookup   []byte     // what hung on the first one; nil where it was never replaced
}

// A LedgerKey is a key that is to sign checkpoints.
type LedgerKey struct {
	Signer   note.Signer
	Verifier string
}

// OpenLedger reads the ledger's keys.
func OpenLedger(data string) (*Ledger, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	l := &Ledger{Origin: trust.TrustDomain}
	if l.Verifier, err = readText(dir, ledgerPub); err != nil {
		return nil, err
	}
	if l.Next, err = openNext(dir); err != nil {
		return nil, err
	}
	if l.Next != nil && l.Next.Verifier == l.Verifier { // half turned: SettleLedger
		l.Signer, l.Next = l.Next.Signer, nil
	} else if l.Signer, err = openNote(dir, ledgerNote); err != nil {
		return nil, err
	}
	c, err := openContents(dir)
	if err != nil {
		return nil, err
	}
	if c.Former != "" {
		return nil, ErrHalfRotated
	}
	l.Secret, l.Lookup, err = c.decode()
	return l, err
}

func openNote(dir, name string) (note.Signer, error) {
	skey, err := readSecret(dir, name)
	if err != nil {
		return nil, err
	}
	s, err := note.NewSigner(string(skey))
	if err != nil {
		return nil, fmt.Errorf("keys/%s is damaged; restore it from a backup", name) // the cause might quote it
	}
	return s, nil
}

// openNext gives nil where no successor is prepared.
func openNext(dir string) (*LedgerKey, error) {
	s, err := openNote(dir, ledgerNext)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k := &LedgerKey{Signer: s}
	k.Verifier, err = readText(dir, nextPub)
	return k, err
}

// NextLedger gives the ledger key's successor, and makes one where there is
// none: it signs nothing before the ledger has named it. So witnesses and who
// else verifies can know it before it counts.
func NextLedger(data string) (*LedgerKey, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	if k, err := openNext(dir); k != nil || err != nil {
		return k, err
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, trust.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("make a key of the ledger: %w", err)
	}
	d := &draft{dir: dir, replace: true}
	d.write(nextPub, []byte(vkey)) // a secret is there with its public half, or not at all
	d.write(ledgerNext, []byte(skey))
	if d.err != nil {
		return nil, fmt.Errorf("make a key of the ledger: %w", d.err)
	}
	return openNext(dir)
}

// TurnLedger puts the ledger key's successor in its place, once the ledger has
// named it. What was interrupted is done again: by TurnLedger where ledger.pub
// is the former's still, else by SettleLedger.
func TurnLedger(data string, size uint64, actor, reason string) error {
	dir := filepath.Join(data, Dir)
	next, err := openNext(dir)
	if err != nil {
		return err
	}
	if next == nil {
		return errors.New("no successor of the ledger's key is prepared")
	}
	former, err := readText(dir, ledgerPub)
	if err != nil {
		return err
	}
	policy, err := turnedPolicy(dir, former, next.Verifier, size)
	if err != nil {
		return err
	}
	d := &draft{dir: dir, replace: true}
	d.turn(ledgerTurn, Turn{Actor: actor, Reason: reason, Rotation: schemas.Rotation{Key: schemas.RotateLedger, KeyID: next.Verifier, Replaced: former}})
	d.write(LedgerPolicy, policy)
	d.write(ledgerPub, []byte(next.Verifier))
	if d.err != nil {
		return fmt.Errorf("replace the ledger's key: %w", d.err)
	}
	return SettleLedger(data)
}

// SettleLedger ends what TurnLedger began, where it was interrupted: the public
// key is the successor's, so its secret has to be in its place.
func SettleLedger(data string) error {
	dir := filepath.Join(data, Dir)
	public, err := readText(dir, ledgerPub)
	if err != nil {
		return err
	}
	skey, err := readSecret(dir, ledgerNext)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if next, err := readText(dir, nextPub); err != nil || next != public {
		return err // one that is prepared
	}
	d := &draft{dir: dir, replace: true}
	d.write(ledgerNote, skey)
	if d.err == nil {
		// The secret first: without it there is no successor.
		d.err = errors.Join(os.Remove(filepath.Join(dir, ledgerNext)), syncDir(dir))
	}
	if d.err == nil {
		d.err = errors.Join(os.Remove(filepath.Join(dir, nextPub)), syncDir(dir))
	}
	if d.err != nil {
		return fmt.Errorf("replace the ledger's key: %w", d.err)
	}
	return nil
}

// turnedPolicy is the policy with the successor, and the former as retired.
func turnedPolicy(dir, former, next string, size uint64) ([]byte, error) {
	retired, err := retiredLedger(dir)
	if err != nil {
		return nil, err
	}
	out := []byte("# Keys of this ledger that count, for who verifies (docs/evidence.md).\n")
	out = fmt.Appendf(out, "log %s\nlog %s until %d", next, former, size)
	for _, r := range retired {
		if r.key != former {
			out = fmt.Appendf(out, "\nlog %s until %d", r.key, r.size)
		}
	}
	return out, nil
}

type retiredKey struct {
	key  string
	size uint64
}

// retiredLedger reads the former keys of the ledger, the newest first.
func retiredLedger(dir string) (out []retiredKey, err error) {
	text, err := readText(dir, LedgerPolicy)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 4 || words[0] != "log" || words[2] != "until" {
			continue
		}
		size, err := strconv.ParseUint(words[3], 10, 63)
		if err != nil {
			return nil, errors.New("keys/" + LedgerPolicy + " is damaged; restore it from a backup")
		}
		out = append(out, retiredKey{words[1], size})
	}
	return out, nil
}

// ledgerKeys lists them.
func ledgerKeys(dir string) ([]Key, error) {
	text, err := readText(dir, ledgerPub)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, errors.New("keys/ledger.pub is damaged; restore it from a backup")
	}
	out := []Key{{ID: noteID(v), Kind: "checkpoints of " + v.Name(), Where: ledgerNote}}
	if next, err := readText(dir, nextPub); err == nil && next != text && exists(dir, ledgerNext) {
		n, err := note.NewVerifier(next)
		if err != nil {
			return nil, errors.New("keys/ledger.next.pub is damaged; restore it from a backup")
		}
		out = append(out, Key{ID: noteID(n), Kind: "checkpoints of " + n.Name() + ", next", Where: ledgerNext})
	}
	retired, err := retiredLedger(dir)
	if err != nil {
		return nil, err
	}
	for _, r := range retired {
		f, err := note.NewVerifier(r.key)
		if err != nil {
			return nil, errors.New("keys/" + LedgerPolicy + " is damaged; restore it from a backup")
		}
		if noteID(f) != noteID(v) {
			out = append(out, Key{ID: noteID(f), Kind: fmt.Sprintf("checkpoints of %s up to %d records, verifies only", f.Name(), r.size), Where: LedgerPolicy})
		}
	}
	return out, nil
}

// noteID names a key of signed notes.
func noteID(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }
