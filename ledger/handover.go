package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// Handover is the body of a handover record.
type Handover = proof.Handover

// A Successor is the key that is to sign next.
type Successor struct {
	Signer note.Signer
	Key    string // its note verifier key
}

// A pending handover has a record, and the files don't know of it yet. Its
// steps, each of which may be the last before a crash, and is done again by the
// next start:
//
//  1. the record, durable, in which the former key names its successor;
//  2. the handover's row;
//  3. the checkpoint that ends with the record, signed by both, in the database
//     and then in the anchor;
//  4. Options.Turn: the owner's files name the successor.
//
// Nothing is signed meanwhile, and behind it by the successor alone. Up to 3
// the former key is the one that the owner knows, and signs what is the
// newest; from 4 on it is the successor, and does.
type pending struct {
	size uint64
	next *Successor
	said Handover
}

// HandOver has another key sign from now on, durably and named by the one that
// signs now. Nobody waits for it but what is recorded meanwhile, for a moment.
// It gives the size of the checkpoint that both have signed.
func (l *Ledger) HandOver(to *Successor, reason, actor string, at time.Time) (size uint64, err error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if !l.trusted.Load() {
		return 0, fmt.Errorf("hand the ledger over: %w", ErrUnconfirmed)
	}
	if reason == "" || actor == "" || l.o.Turn == nil {
		return 0, errors.New("hand the ledger over: it needs a reason, an actor, and an owner who keeps its keys")
	}
	v, err := note.NewVerifier(to.Key)
	if err != nil {
		return 0, fmt.Errorf("hand the ledger over: the successor: %w", err)
	}
	if v.Name() != to.Signer.Name() || v.KeyHash() != to.Signer.KeyHash() || v.Name() != l.o.Verifier.Name() {
		return 0, errors.New("hand the ledger over: the successor's keys are not of one pair, or not named as the ledger is")
	}
	ring := l.keys()
	if len(ring.former) >= proof.MaxHandovers {
		return 0, schemas.Refuse(schemas.CodeConflict, "the ledger was handed over %d times, and every bundle brings all of them: no more are possible", len(ring.former))
	}
	for _, known := range ring.all() {
		if same(known, v) {
			return 0, errors.New("hand the ledger over: the successor signed before")
		}
	}
	u, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		return 0, err
	}
	former := l.signerKey()
	if former == "" {
		return 0, errors.New("hand the ledger over: it was opened without the text of its public key")
	}
	body := Handover{Former: former, Successor: to.Key, Reason: reason, Actor: actor}
	r := proof.Record{Kind: proof.KindHandover, StreamSeq: l.chain.streamSeq, Agent: u.pseudo, Time: at.UnixNano()}
	size = l.chain.size + 1
	l.smu.Lock()
	l.pending = &pending{size: size, next: to, said: body}
	l.smu.Unlock()
	return size, l.appendOwn(r, u, proof.HandoverSubject, schemas.Marshal(body))
}

// turn goes through what is left of a pending handover, and gives the
// checkpoint that both keys have signed. The caller holds smu.
func (l *Ledger) turn(now summary) (*signed, error) {
	p := l.pending
	c := proof.Checkpoint{Origin: l.o.Verifier.Name(), Size: p.size, Root: now.root}
	if now.size != p.size {
		t, err := loadTree(l.db, p.size)
		if err != nil {
			return nil, err
		}
		c.Root = t.root()
	}
	if err := l.keepHandover(p); err != nil {
		return nil, err
	}
	s, err := l.signNow(c, l.signs, p.next.Signer)
	if err != nil {
		return nil, err
	}
	if err := l.o.Turn(p.size, p.said); err != nil {
		return nil, fmt.Errorf("the ledger is handed over to %s, and its files don't say so yet; start it again, which finishes that: %w", p.said.Successor, err)
	}
	v, err := note.NewVerifier(p.next.Key)
	if err != nil {
		return nil, err
	}
	ring, err := readKeyring(l.db, v)
	if err != nil {
		return nil, err
	}
	l.ring.Store(ring)
	l.signs, l.vkey, l.pending = p.next.Signer, p.next.Key, nil
	return s, nil
}

// keepHandover writes the row that shows the record for ever.
func (l *Ledger) keepHandover(p *pending) (err error) {
	sc, err := openScanner(l.db, l.subjects)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sc.close()) }()
	b, err := l.handoverRecord(sc, p.size-1)
	if err != nil {
		return err
	}
	if _, said, err := proof.OpenHandover(b); err != nil || said != p.said {
		return tampered(0, "record %d is not the handover that was written (%v)", p.size-1, err)
	}
	return l.db.Set(numberKey(keyHandover, p.size), handoverRow(b), pebble.Sync)
}

// handoverRecord reads a handover's record with what opens it.
func (l *Ledger) handoverRecord(sc *scanner, index uint64) (*proof.BundleRecord, error) {
	r, err := sc.leaves.record(index)
	if err != nil {
		return nil, err
	}
	headers, payload, err := sc.open(&r)
	if err != nil {
		return nil, err
	}
	salt := l.subjects.saltOf(&r)
	if salt == nil {
		return nil, tampered(r.StreamSeq, "the key of the ledger's own records is missing")
	}
	return &proof.BundleRecord{Leaf: r.Append(nil), Salt: salt[:], Headers: headers, Payload: payload}, nil
}

// findPending finds a handover that a crash left half done. It is the last
// record under the anchor, or behind it: the former key signs nothing behind.
func (l *Ledger) findPending(h head, anchored uint64) error {
	ring := l.keys()
	at := uint64(0)
	if n := len(ring.former); n > 0 && !same(ring.current, l.o.Verifier) {
		at = ring.former[n-1].until
	}
	sc, err := openScanner(l.db, l.subjects)
	if err != nil {
		return err
	}
	defer sc.close()
	for i := max(anchored, 1) - 1; at == 0 && i < h.size; i++ {
		r, err := sc.leaves.record(i)
		if err != nil {
			return err
		}
		if r.Kind == proof.KindHandover && !ring.isHandover(i) {
			at = i + 1
		}
	}
	if at == 0 {
		return nil
	}
	b, err := l.handoverRecord(sc, at-1)
	if err != nil {
		return err
	}
	_, said, err := proof.OpenHandover(b)
	if err != nil {
		return tampered(0, "record %d: %v", at-1, err)
	}
	if l.o.Next == nil || l.o.Next.Key != said.Successor || l.o.Turn == nil {
		return fmt.Errorf("the ledger is being handed over to the key %s, whose secret is not here: restore keys/ledger.next.note and keys/ledger.next.pub, which the rotation made", said.Successor)
	}
	l.pending, l.vkey = &pending{size: at, next: l.o.Next, said: said}, said.Former
	return nil
}
