package ledger

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
)

// Open opens a ledger for writing and recovers it, see the package's
// documentation. Errors match ErrTampered where what is stored can't be
// trusted.
func Open(o Options) (*Ledger, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if o.Signer == nil {
		return nil, errors.New("ledger: without a signing key it can only be verified")
	}
	l := &Ledger{o: o, guard: newGuard(o.Logger)}
	// Pebble may give up, or panic, on what is damaged.
	if err := l.guard.run(l.open); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrOpen, err), l.release())
	}
	return l, nil
}

func (l *Ledger) open() (err error) {
	o := &l.o
	if l.anchor, err = openAnchor(o.FS, o.AnchorDir); err != nil {
		return err
	}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("the database's folder: %w", err)
	}
	if l.subjects, err = openSubjects(o.FS, o.SubjectsDir, o.Secret, o.Lookup, true); err != nil {
		return err
	}
	if l.subjects.damaged > 0 {
		o.Logger.Warn("ledger: rows of the agents' keys are damaged; records that need them can't be opened", "rows", l.subjects.damaged)
	}
	db, err := pebble.Open(o.Dir, pebbleOptions(o.FS, l.guard))
	if err != nil {
		return tampered(0, "the database does not open (%v); restore it from a backup, or move it aside and let the ledger be rebuilt from EVENTS", err)
	}
	l.db = db
	if err := l.recover(); err != nil {
		return err
	}
	return l.loadPublished()
}

// recover finds the end of the chain and says what has to be fetched or
// compared before anything is signed.
func (l *Ledger) recover() error {
	h, found, err := readHead(l.db)
	if err != nil {
		return err
	}
	ring, err := readKeyring(l.db, l.o.Verifier)
	if err != nil {
		return err
	}
	l.ring.Store(ring)
	l.signs, l.vkey = l.o.Signer, l.o.Key
	anchored, note, hasAnchor, err := readAnchor(l.o.FS, l.o.AnchorDir, ring, l.o.Verifier)
	switch {
	case err != nil:
		return err
	case !found && !hasAnchor:
		return l.create()
	case !hasAnchor && h.size > 0:
		return tampered(0, "the anchor in %s is missing, and without it nobody can tell whether records were cut off; restore it", l.o.AnchorDir)
	case !found:
		if err := l.createHead(); err != nil {
			return err
		}
		h = head{streamID: l.o.StreamID}
	}
	if h.streamID != l.o.StreamID {
		return tampered(h.streamSeq, "EVENTS is not the stream that the ledger was written from (id %016x, now %016x): it was deleted and made anew", h.streamID, l.o.StreamID)
	}
	if !hasAnchor { // the process ended between making the database and the anchor
		anchored = proof.Checkpoint{Origin: l.o.Verifier.Name(), Root: proof.EmptyRoot}
		if note, err = anchored.Sign(l.o.Signer); err != nil {
			return err
		}
		if err := l.anchor.swap(note); err != nil {
			return err
		}
	}
	if err := l.rehash(h, anchored, note); err != nil {
		return err
	}
	if err := l.findPending(h, anchored.Size); err != nil {
		return err
	}
	if err := l.begin(h, anchored, note); err != nil || l.pending == nil || !l.trusted.Load() {
		return err
	}
	_, err = l.sign() // what a crash left half done
	return err
}

// create makes a ledger without records, whose anchor says so.
func (l *Ledger) create() error {
	if err := l.createHead(); err != nil {
		return err
	}
	l.chain.streamID = l.o.StreamID
	l.opened = head{streamID: l.o.StreamID}
	l.next = 1
	l.durable.now = summary{root: proof.EmptyRoot}
	l.trusted.Store(true)
	_, err := l.signNow(proof.Checkpoint{Origin: l.o.Verifier.Name(), Root: proof.EmptyRoot}, l.signs)
	return err
}

func (l *Ledger) createHead() error {
	it, err := l.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	rows := it.First()
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	if rows {
		return tampered(0, "the database holds records and no head")
	}
	h := head{streamID: l.o.StreamID}
	return l.db.Set(headKey, h.append(nil), pebble.Sync)
}

// rehash builds the tree up to the newest checkpoint, compares it with what was
// signed, hashes every record behind it again, and compares the end with the
// head.
func (l *Ledger) rehash(h head, anchored proof.Checkpoint, anchorNote []byte) error {
	base, err := l.newestCheckpoint(h)
	if err != nil {
		return err
	}
	if anchored.Size <= h.size && anchored.Size > base.Size {
		// The row was lost with the end of the log file. It is kept
		// again; what it signs is compared below.
		l.o.Logger.Warn("ledger: the anchored checkpoint is missing in the database", "size", anchored.Size)
		if err := l.db.Set(numberKey(keyCheckpoint, anchored.Size), anchorNote, pebble.Sync); err != nil {
			return err
		}
		base = anchored
	}
	if err := l.loadChain(base.Size, h.streamID); err != nil {
		return err
	}
	if root := l.chain.root(); root != base.Root {
		return tampered(l.chain.streamSeq, "the first %d records lead to the root %v, and %v was signed; run writ ledger verify to find the first that was changed", base.Size, root, base.Root)
	}
	if err := l.checkTail(h); err != nil {
		return err
	}
	if anchored.Size > h.size {
		return nil // compared when EVENTS has given back what is missing
	}
	t, err := loadTree(l.db, anchored.Size)
	if err != nil {
		return err
	}
	if root := t.root(); root != anchored.Root {
		return tampered(0, "the first %d records lead to the root %v, and the anchor says %v: this is another history", anchored.Size, root, anchored.Root)
	}
	return nil
}

// newestCheckpoint is the newest in the database, verified; of size 0 where
// there is none.
func (l *Ledger) newestCheckpoint(h head) (c proof.Checkpoint, err error) {
	cur, err := openCursor(l.db, keyCheckpoint)
	if err != nil {
		return c, err
	}
	defer cur.close()
	if !cur.it.Last() {
		return proof.Checkpoint{Root: proof.EmptyRoot}, cur.it.Error()
	}
	return checkpointRow(cur.it, h.size, l.keys())
}

// loadChain sets the writer's end behind the first size records.
func (l *Ledger) loadChain(size, streamID uint64) error {
	t, err := loadTree(l.db, size)
	if err != nil {
		return err
	}
	c := &l.chain
	c.size, c.frontier, c.parts, c.numbers = t.size, t.frontier, t.parts, t.numbers
	c.streamID = streamID
	if size == 0 {
		return nil
	}
	cur, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return err
	}
	defer cur.close()
	last, err := cur.record(size - 1)
	if err != nil {
		return err
	}
	c.streamSeq = last.StreamSeq
	c.last = proof.LeafHash(last.Append(nil))
	first, err := cur.record((size - 1) &^ (segmentSize - 1))
	c.segmentFirst = first.Prev
	return err
}

// checkTail chains the stored records behind the writer's end again, and
// compares tiles, indexes and the head with what comes out.
func (l *Ledger) checkTail(h head) error {
	cur, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return err
	}
	defer cur.close()
	c := &l.chain
	var bad error
	emit := func(level int, n uint64, tile []byte) {
		stored, err := fullTile(l.db, level, n)
		if err == nil && !bytes.Equal(stored, tile) {
			err = tampered(c.streamSeq, "tile %d of level %d is not that of its records", n, level)
		}
		bad = firstError(bad, err)
	}
	index := newIndexCheck(l.db, h.size-c.size)
	for i := c.size; i < h.size && bad == nil; i++ {
		r, err := cur.record(i)
		if err != nil {
			return err
		}
		if r.Prev != c.last || r.StreamID != c.streamID || !follows(c.streamSeq, &r) {
			return tampered(r.StreamSeq, "record %d does not follow the one before it", i)
		}
		index.expect(&r)
		c.link(&r, nil, emit)
		if c.size%segmentSize == 0 {
			bad = firstError(bad, l.checkSegmentRow())
		}
	}
	if bad == nil {
		bad = index.compare()
	}
	if bad == nil && (c.last != h.last || c.streamSeq != h.streamSeq || c.root() != h.frontier.root(h.size)) {
		bad = tampered(h.streamSeq, "the head is not that of the %d records", h.size)
	}
	return bad
}

func (l *Ledger) checkSegmentRow() error {
	n := l.chain.size>>segmentBits - 1
	b, err := get(l.db, numberKey(keySegment, n))
	if err == nil && !bytes.Equal(b, l.chain.segmentRow()) {
		err = tampered(l.chain.streamSeq, "the row of segment %d is not that of its records", n)
	}
	return err
}

// follows reports whether a record's sequence continues the one before.
func follows(last uint64, r *proof.Record) bool {
	switch r.Kind {
	case proof.KindEvent:
		return r.StreamSeq == last+1
	case proof.KindGap:
		return r.StreamSeq > last
	}
	return r.StreamSeq == last
}

// begin says what Run has to do first.
func (l *Ledger) begin(h head, anchored proof.Checkpoint, note []byte) error {
	l.opened, l.target = h, anchored
	l.durable.now = summary{size: h.size, streamSeq: h.streamSeq, root: l.chain.root()}
	l.current.Store(&signed{Checkpoint: anchored, note: note})
	l.confirm, l.next = h.size, h.streamSeq+1
	switch {
	case anchored.Size > h.size:
		l.catching = true
		l.o.Logger.Warn("ledger: records are missing and will be taken from EVENTS again; nothing is signed or handed on until then",
			"records", h.size, "anchored", anchored.Size)
	case anchored.Size < h.size:
		l.confirm = anchored.Size
		cur, err := openCursor(l.db, keyLeaves)
		if err != nil {
			return err
		}
		defer cur.close()
		l.next = 1
		if anchored.Size > 0 {
			last, err := cur.record(anchored.Size - 1)
			if err != nil {
				return err
			}
			l.next = last.StreamSeq + 1
		}
		l.o.Logger.Info("ledger: the tail bears no signature yet and will be compared with EVENTS", "records", h.size-anchored.Size)
	default:
		l.trusted.Store(true)
	}
	return nil
}
