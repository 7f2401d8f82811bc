// Package proof verifies what the ledger claims, offline and without trusting
// its operator: it needs neither database nor network, only the public key
// under which the ledger signs.
//
// # What the ledger claims
//
// Every event is a [Record] of 180 bytes. A record's leaf hash is
// SHA-256(0x00 ‖ record) (RFC 6962, section 2.1). Each record holds the leaf
// hash of the one before, so the records are a chain, and the same hashes are
// the leaves of a Merkle tree. The ledger signs a [Checkpoint] of that tree
// each second (C2SP tlog-checkpoint: a signed note of origin, size and root).
//
// From a checkpoint and the public key follow, in O(log n):
//
//   - inclusion: this record stands at this index ([CheckInclusion]);
//   - consistency: the tree of an older checkpoint is a prefix of a newer
//     one's ([CheckConsistency]): nothing was edited, removed, inserted or
//     reordered in between;
//   - content: these headers and this payload are what the record committed
//     to ([Record.CheckContent]), once the record's salt is disclosed.
//
// # Evidence
//
// A [Bundle] holds all of that for several records in one file, and
// [Bundle.Verify] holds it against a [Policy]: the keys that count, which come
// from who verifies and never out of the bundle. The key in the bundle says
// which one of them it is under, and nothing else. The verifier demands, in
// this order:
//
//  1. the file is in its one encoding ([OpenBundle]); the bundle's key is in
//     the policy; the checkpoint is signed by it;
//  2. each record that the bundle lists is there, in order, stands at its index
//     under the checkpoint's root, and where the one before it is there too,
//     holds its hash;
//  3. headers and payload are what the record committed to, and decode to an
//     event with the record's sequence, time and trace. A record without
//     content needs a later redaction record of the same pseudonym in the
//     bundle, which says on whose authority it was erased;
//  4. no event is about one that comes later. An answer is to a message; one
//     that bears the random id which release hands to the recipient alone
//     shows that the message was delivered, so a record of it stood before;
//  5. no such answer is to a message that an agent sent after its kill, with
//     no record missing between the kill and the message. Enrolling anew ends
//     a kill.
//
// A ledger's key can be replaced: the key names its successor in a record of the
// ledger ([Handover]), and both sign the checkpoint that ends with it. Behind it
// the former key counts no more. A bundle brings all handovers, so that who
// pinned a former key is led to the one that signs now, by nobody but the
// holders of each; and who knows that a key was retired says so in the policy.
//
// From [Evidence.Complete] follows more: no record is missing between the first
// and the last, so what is not in the bundle is not in that part of the log.
// The records of a selection, by agent or trace, are each proven; that the
// selection is whole is not.
//
// # What it does not say
//
// That two readers see the same ledger: for that they must compare
// checkpoints, or ask witnesses. Who holds the signing key can sign two
// histories, and a bundle of either verifies. And nothing of records behind
// the checkpoint's size.
//
// A delivery leaves no record of its own. That a message was delivered shows
// where somebody answered it; that one was not delivered can't be shown, also
// not by its cancellation: the sender of a message that nobody answered could
// have been cut off too late, were release not to do as it should. The log says
// what was taken in and decided, in which order, and that it was on disk when it
// was signed; that nothing was released before it was on disk is how the ledger
// works, and no record can prove it.
//
// Who an event is of, what it says and when, is what the control plane wrote: a
// bundle proves that it was not changed since, not that it was true. A record's
// pseudonym can't be held against the agent's name: the key between the two
// stays with the ledger.
package proof

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/schemas"
)

// ErrProof is matched where a proof or a checkpoint does not hold.
var ErrProof = errors.New("the proof does not hold")

// A Checkpoint is a signed statement about the ledger: its first Size records
// have the Merkle root Root.
type Checkpoint struct {
	Origin string // names the ledger: its trust domain
	Size   uint64
	Root   Hash
}

// text is the note's text (C2SP tlog-checkpoint), without extension lines.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// Sign gives the checkpoint as a signed note. Signers must bear the
// checkpoint's origin as their name.
func (c Checkpoint) Sign(signers ...note.Signer) ([]byte, error) {
	for _, s := range signers {
		if s.Name() != c.Origin {
			return nil, fmt.Errorf("sign a checkpoint of %q: the key is named %q", c.Origin, s.Name())
		}
	}
	msg, err := note.Sign(&note.Note{Text: c.text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return msg, nil
}

// OpenCheckpoint verifies a signed checkpoint. Its origin must be the name of
// the key. Further signatures, by witnesses, are passed over. Errors match
// ErrProof.
func OpenCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %w", ErrProof, err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: the checkpoint is of %q, the key of %q", ErrProof, c.Origin, v.Name())
	}
	return c, nil
}

// parseCheckpoint accepts the canonical form alone. Extension lines are none
// of ours, and are refused: nobody would read what they say.
func parseCheckpoint(text string) (c Checkpoint, err error) {
	malformed := func(why string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("%w: malformed checkpoint: %s", ErrProof, why)
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return malformed("it is not of three lines")
	}
	c.Origin = lines[0]
	if c.Origin == "" {
		return malformed("it names no origin")
	}
	c.Size, err = strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(c.Size, 10) != lines[1] {
		return malformed("its size is no canonical decimal")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return malformed("its root is not the base64 of 32 bytes")
	}
	copy(c.Root[:], root)
	return c, nil
}

// CheckInclusion verifies a proof and gives the record that it proves, with
// the checkpoint that it was proved against. Errors match ErrProof.
func CheckInclusion(p schemas.Proof, v note.Verifier) (Record, Checkpoint, error) {
	fail := func(err error) (Record, Checkpoint, error) {
		return Record{}, Checkpoint{}, fmt.Errorf("%w: sequence %d: %w", ErrProof, p.Seq, err)
	}
	c, err := OpenCheckpoint([]byte(p.Checkpoint), v)
	if err != nil {
		return fail(err)
	}
	leaf, err := base64.StdEncoding.Strict().DecodeString(p.Leaf)
	if err != nil {
		return fail(fmt.Errorf("leaf: %w", err))
	}
	r, err := ParseRecord(leaf)
	if err != nil {
		return fail(err)
	}
	if r.Index != p.Index || r.StreamSeq != p.Seq {
		return fail(fmt.Errorf("the leaf is record %d, sequence %d; the proof speaks of record %d", r.Index, r.StreamSeq, p.Index))
	}
	path := make([][]byte, len(p.Hashes))
	for i, s := range p.Hashes {
		if path[i], err = base64.StdEncoding.Strict().DecodeString(s); err != nil || len(path[i]) != len(Hash{}) {
			return fail(fmt.Errorf("hash %d of the path is not the base64 of 32 bytes", i))
		}
	}
	h := LeafHash(leaf)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, c.Size, h[:], path, c.Root[:]); err != nil {
		return fail(err)
	}
	return r, c, nil
}

// CheckConsistency verifies that the tree of old is a prefix of that of new.
// Errors match ErrProof.
func CheckConsistency(old, new Checkpoint, path []Hash) error {
	if old.Origin != new.Origin {
		return fmt.Errorf("%w: the checkpoints are of %q and %q", ErrProof, old.Origin, new.Origin)
	}
	hashes := make([][]byte, len(path))
	for i := range path {
		hashes[i] = path[i][:]
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, new.Size, hashes, old.Root[:], new.Root[:]); err != nil {
		return fmt.Errorf("%w: from %d to %d records: %w", ErrProof, old.Size, new.Size, err)
	}
	if old.Size == 0 && old.Root != EmptyRoot {
		return fmt.Errorf("%w: the root of no records is wrong", ErrProof)
	}
	return nil
}

// EmptyRoot is the root of a tree without leaves (RFC 6962).
var EmptyRoot Hash = sha256.Sum256(nil)

// CheckChain verifies that encoded records follow one another: indexes without
// gap, each holding the hash of the one before, the first that of prev. It
// gives the hash of the last. Errors match ErrProof and name the first record
// that does not fit.
func CheckChain(prev Hash, leaves [][]byte) (Hash, error) {
	var first uint64
	for i, leaf := range leaves {
		r, err := ParseRecord(leaf)
		if err != nil {
			return prev, fmt.Errorf("%w: record %d of the chain: %w", ErrProof, i, err)
		}
		if i == 0 {
			first = r.Index
		}
		if r.Index != first+uint64(i) {
			return prev, fmt.Errorf("%w: record %d stands where %d should", ErrProof, r.Index, first+uint64(i))
		}
		if r.Prev != prev {
			return prev, fmt.Errorf("%w: record %d does not follow the one before it", ErrProof, r.Index)
		}
		prev = LeafHash(leaf)
	}
	return prev, nil
}

// Keys makes a signer and its verifier, in the form of signed notes, from an
// Ed25519 key. Origin names both.
func Keys(origin string, key ed25519.PrivateKey) (note.Signer, note.Verifier, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, nil, fmt.Errorf("ledger key: %d bytes instead of %d", len(key), ed25519.PrivateKeySize)
	}
	v, err := Verifier(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, nil, err
	}
	// The form of a private key is fixed by package note, which has no
	// constructor for it: the algorithm's number, 1, then the seed.
	seed := append([]byte{1}, key.Seed()...)
	s, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", origin, v.KeyHash(), base64.StdEncoding.EncodeToString(seed)))
	if err != nil {
		return nil, nil, fmt.Errorf("ledger key: %w", err)
	}
	return s, v, nil
}

// Verifier makes the verifier alone.
func Verifier(origin string, key ed25519.PublicKey) (note.Verifier, error) {
	text, err := note.NewEd25519VerifierKey(origin, key)
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	return v, nil
}

// MarshalPath gives a path of hashes as it stands in schemas.Proof.
func MarshalPath(path []Hash) []string {
	out := make([]string, len(path))
	for i, h := range path {
		out[i] = base64.StdEncoding.EncodeToString(h[:])
	}
	return out
}

// SaltInput is what a record's salt is the HMAC of, under the agent's key:
// deterministic, so that a lost tail can be rebuilt byte for byte. The
// ledger's own records share the sequence of the event before them, and add
// their index.
func (r *Record) SaltInput() []byte {
	b := make([]byte, 0, 24)
	b = binary.BigEndian.AppendUint64(b, r.StreamID)
	b = binary.BigEndian.AppendUint64(b, r.StreamSeq)
	if r.Kind != KindEvent {
		b = binary.BigEndian.AppendUint64(b, r.Index)
	}
	return b
}
