// Package ledger keeps the log for ever, so that anyone can verify that
// nothing in it was edited, removed, inserted, reordered or cut off.
//
// # The line
//
// One writer takes the events of the stream EVENTS in order ([Ledger.Run]),
// chains them into records (package ledger/proof has their form), commits them
// to Pebble in groups, waits for the sync, and only then hands each batch on
// ([Sink]). What the sink was given is on disk. Sequences without gap: a gap
// or an undecodable event halts the ledger, and says at which sequence.
//
// # In the database
//
// Every key begins with a letter and, where there is one, the segment: 65,536
// records, the leaves under one full tile of level 1. Numbers are big-endian.
//
//	l|index             leaves: up to 64 records of 180 bytes
//	p|index             contents: headers and payloads of up to 64 records, sealed
//	a|segment|agent|low index, by agent: distances between the agent's records
//	t|segment|trace|low index, by trace
//	T|level|n           full Merkle tiles of 256 hashes (C2SP tlog-tiles)
//	s|segment           root, first and last hash of a full segment
//	c|size              signed checkpoints (C2SP tlog-checkpoint)
//	h|size              handovers to another key: the last of so many records, with its content
//	m|head              size, sequence, last hash and frontier of the tree
//	m|pruned            how many records have no content any more, and which record says so
//
// The head stands in every batch, so records and position commit together:
// each event is recorded exactly once.
//
// # Outside of it
//
// The anchor is the newest signed checkpoint, in a folder of its own, swapped
// by rename and only ever forward. It is what a truncated or rolled-back
// database can't take with it: Pebble does not notice when the end of its log
// file is damaged, and drops records that were acknowledged.
//
// The subjects file holds one wrapped random key for each agent. From it hang
// the salts of the agent's commitments, the key that seals its contents, and
// its pseudonym. To destroy it erases the agent's contents everywhere, also
// from backups ([Ledger.Erase]); every proof still holds.
//
// # Opening
//
// [Open] hashes again from the last checkpoint and compares tree, head, tiles
// and indexes. A head behind the anchor means that records were lost: they are
// taken from EVENTS again, nothing is signed or handed on meanwhile, and at
// the anchor the roots must agree. Records past the anchor (up to a second's,
// after a crash) bear no signature yet: they are compared with EVENTS before
// anything is signed. [Ledger.From] says where to read EVENTS from, for both.
// History is never repaired.
//
// # Pruning
//
// Old contents can be moved to archives ([Ledger.Prune]). The leaves of their
// records stay, 180 bytes each, with tiles and indexes: so the chain is verified
// from its first record on, and every proof can be made, for ever. A signed
// record says what was pruned, and a ledger whose contents are missing without
// one does not verify.
//
// # Keys
//
// The key that signs can be replaced while events flow ([Ledger.HandOver]): it
// names its successor in a record, and both sign the checkpoint that ends with
// it. Which key signs a checkpoint follows from its size, so that one who holds
// a key that was replaced can neither go on with the log nor write its past
// anew: what the owner knows is the newest key, and the anchor must bear it.
//
// # Witnesses
//
// Where a policy says so, a signed checkpoint is shown to witnesses, and counts
// as published once enough of them have cosigned it ([Ledger.Publish]). The
// order is always: durable, signed, anchored, witnessed, published. What was
// recorded is handed on without waiting for witnesses: an unreachable witness
// stops nobody's work, and is told of instead. A witness that refuses has seen
// another history: that raises an alarm, and the ledger's health fails.
//
// # What it does not do
//
// It knows nothing of routing. It doesn't itself keep somebody who holds the
// signing key from signing two histories: witnesses do. It can't tell from the
// database and the anchor alone that records past the anchor were cut off:
// EVENTS can.
package ledger

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

// Entry is an event as it stands in EVENTS.
type Entry = bus.Entry

// Sink takes over what is durable: batches in log order, one at a time. An
// error ends Run.
type Sink interface {
	Durable(batch []*schemas.Event) error
}

// Options of a ledger.
type Options struct {
	Dir         string        // the database
	AnchorDir   string        // the signed head: best on another disk
	SubjectsDir string        // the agents' keys; AnchorDir where empty. Not for backups
	FS          vfs.FS        // vfs.Default where nil
	Signer      note.Signer   // named after the trust domain; not needed to verify
	Verifier    note.Verifier // of the signer
	Key         string        // the same as a note verifier key; needed to hand over
	Next        *Successor    // that was prepared for a handover; nil where none was
	// Turn makes the owner's keys name the successor, durably: it signs what is
	// of more records than size. It is called again where it failed. Nil: the
	// key can't be replaced.
	Turn     func(size uint64, to Handover) error
	Secret   [32]byte // root of the agents' keys
	Lookup   []byte   // finds them: what hung on the first secret, where that was replaced; nil: hangs on Secret
	StreamID uint64   // of EVENTS, see proof.StreamID; 0 where verifying: any one
	Logger   *slog.Logger

	Witnesses *witness.Policy // whose cosignatures publish a checkpoint; nil: nobody's are asked for
}

func (o *Options) fill() error {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SubjectsDir == "" {
		o.SubjectsDir = o.AnchorDir
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Dir == "" || o.AnchorDir == "":
		return errors.New("ledger: both the database's and the anchor's folder must be given")
	case o.Verifier == nil:
		return errors.New("ledger: without the public key nothing can be verified")
	case o.Signer != nil && (o.Signer.Name() != o.Verifier.Name() || o.Signer.KeyHash() != o.Verifier.KeyHash()):
		return errors.New("ledger: the signing key and the public key are not of one pair")
	}
	return nil
}

var (
	// ErrHalted is matched by errors after which the ledger takes nothing
	// more, until somebody has looked into it.
	ErrHalted = errors.New("the ledger has halted")
	// ErrOpen is matched where Open fails over what it finds on disk.
	ErrOpen = errors.New("open the ledger")
	// ErrTampered is matched where what is stored contradicts itself, a
	// signature or the anchor.
	ErrTampered = errors.New("the ledger was damaged or tampered with")
	// ErrGap is matched where EVENTS lacks a sequence.
	ErrGap = errors.New("EVENTS has a gap")
	// ErrUnconfirmed is matched where nothing can be signed yet, because
	// records have to be fetched from or compared with EVENTS first.
	ErrUnconfirmed = errors.New("the ledger's tail is not confirmed yet")
	// ErrNotFound is matched where the ledger has no such event.
	ErrNotFound = errors.New("not in the ledger")
	// ErrPruned is matched where the content was moved to an archive.
	ErrPruned = errors.New("pruned: the content was moved to an archive")
	// ErrErased is matched where the agent's key was destroyed.
	ErrErased = errors.New("erased: the agent's key was destroyed")
)

// A HaltError says at which sequence of EVENTS the ledger halted, 0 where it
// was at none, and why.
type HaltError struct {
	Seq uint64
	Err error
}

func (e *HaltError) Error() string {
	if e.Seq == 0 {
		return fmt.Sprintf("%v: %v", ErrHalted, e.Err)
	}
	return fmt.Sprintf("%v at sequence %d: %v", ErrHalted, e.Seq, e.Err)
}

func (e *HaltError) Unwrap() []error { return []error{ErrHalted, e.Err} }

func tampered(seq uint64, format string, args ...any) error {
	return &HaltError{Seq: seq, Err: fmt.Errorf("%w: "+format, append([]any{ErrTampered}, args...)...)}
}

// A Ledger is open for writing. Its methods may be called concurrently, Run by
// one at a time.
type Ledger struct {
	o        Options
	db       *pebble.DB
	guard    *guard
	subjects *subjects
	anchor   *anchor
	running  atomic.Bool
	durable  durable

	wmu      sync.Mutex // guards what follows: the writer's end
	chain    chain
	next     uint64 // sequence wanted next
	confirm  uint64 // index of the next record to compare with EVENTS
	opened   head   // as the ledger was opened
	target   proof.Checkpoint
	scratch  scratch
	trusted  atomic.Bool // nothing is left to fetch or compare
	catching bool        // below target: nothing is handed on; owned by Run's last stage

	smu     sync.Mutex // guards signing, and what follows
	signs   note.Signer
	vkey    string   // of who signs
	pending *pending // nil where no handover is under way
	ring    atomic.Pointer[keyring]
	current atomic.Pointer[signed]

	verified  atomic.Pointer[schemas.Verified] // by Watch; nil before its first pass
	published publication
}

// A signed checkpoint.
type signed struct {
	proof.Checkpoint
	note []byte
}

func (l *Ledger) keys() *keyring { return l.ring.Load() }

// signerKey is the note verifier key of who signs.
func (l *Ledger) signerKey() string {
	l.smu.Lock()
	defer l.smu.Unlock()
	return l.vkey
}

// From is the first sequence of EVENTS that Run wants. It lies at or before
// the head where the tail has to be compared; what comes before it is skipped.
func (l *Ledger) From() uint64 {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.next
}

// Signs reports whether the ledger's tail is confirmed, so that it signs.
func (l *Ledger) Signs() bool { return l.trusted.Load() }

// Err is why the ledger halted, nil while it has not.
func (l *Ledger) Err() error { return l.guard.err() }

// Close signs what is not signed yet and closes the database. Run must have
// ended.
func (l *Ledger) Close() error {
	var err error
	if l.guard.err() == nil && l.trusted.Load() {
		_, err = l.sign()
	}
	if l.guard.err() == nil {
		// What is in tables has checksums, and is not read at the next start.
		err = errors.Join(err, l.guard.run(l.db.Flush))
	}
	return errors.Join(err, l.release())
}

// release gives everything back, signing nothing.
func (l *Ledger) release() error {
	var errs []error
	// A database that gave up may hold locks that are never freed.
	if l.db != nil && !l.guard.isFatal() {
		errs = append(errs, l.db.Close())
	}
	if l.subjects != nil {
		errs = append(errs, l.subjects.close())
	}
	if l.anchor != nil {
		errs = append(errs, l.anchor.close())
	}
	return errors.Join(errs...)
}
