package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A Reader reads a ledger that nobody has open, best a copy of the data
// folder, and changes nothing in it. It checks what it reads against the
// commitments beside it, not that the whole is unchanged: that is Verify's.
type Reader struct {
	l    *Ledger
	lock *pebble.Lock
}

// OpenReader opens a ledger for reading. It needs no signing key.
func OpenReader(o Options) (*Reader, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if _, err := o.FS.Stat(o.Dir); isNotExist(err) {
		return nil, fmt.Errorf("read the ledger: there is none in %s", o.Dir)
	}
	r := &Reader{l: &Ledger{o: o, guard: newGuard(o.Logger)}}
	if err := r.l.guard.run(r.open); err != nil {
		return nil, errors.Join(fmt.Errorf("read the ledger: %w", unhalted(err)), r.Close())
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	l := r.l
	if l.subjects, err = openSubjects(l.o.FS, l.o.SubjectsDir, l.o.Secret, l.o.Lookup, false); err != nil {
		return err
	}
	if r.lock, err = lockToRead(&l.o); err != nil {
		return err
	}
	po := pebbleOptions(l.o.FS, l.guard)
	po.ReadOnly, po.Lock = true, r.lock
	if l.db, err = pebble.Open(l.o.Dir, po); err != nil {
		if pebble.IsCorruptionError(err) {
			return tampered(0, "the database does not open: %v", err)
		}
		return fmt.Errorf("the database does not open: %w", err)
	}
	h, found, err := readHead(l.db)
	if err != nil || !found {
		return errors.Join(err, tampered(0, "the database has no head"))
	}
	l.durable.now = summary{size: h.size, streamSeq: h.streamSeq}
	ring, err := readKeyring(l.db, l.o.Verifier)
	l.ring.Store(ring)
	return err
}

// Read gives a page of events as they were taken.
func (r *Reader) Read(q schemas.ReadRequest) (rep schemas.ReadReply, err error) {
	err = r.l.guard.run(func() error {
		rep, err = r.l.Read(q)
		return err
	})
	return rep, unhalted(err)
}

// unhalted is an error of a ledger that nobody runs: it can't be read, and
// nothing has halted.
func unhalted(err error) error {
	var h *HaltError
	if !errors.As(err, &h) {
		return err
	}
	if h.Seq == 0 {
		return h.Err
	}
	return fmt.Errorf("at sequence %d: %w", h.Seq, h.Err)
}

// Head is the end of what is stored. Its checkpoint is the anchor's, which may
// cover a little less. Errors match ErrTampered where the database is not one
// that the anchor can have been signed over.
func (r *Reader) Head() (h schemas.Head, err error) {
	err = r.l.guard.run(func() error {
		_, msg, err := r.anchored()
		if err != nil {
			return err
		}
		s := r.l.durable.get()
		t, err := loadTree(r.l.db, s.size)
		if err != nil {
			return err
		}
		s.root = t.root()
		h = headOf(s, &signed{note: msg})
		return nil
	})
	return h, unhalted(err)
}

// Prove proves that the ledger holds an event, against the anchor's checkpoint.
// Nothing is signed here: errors match ErrUnconfirmed for the events of a last
// second that the ledger had no time to sign, and ErrNotFound as Ledger.Prove's
// do.
func (r *Reader) Prove(seq uint64) (p schemas.Proof, err error) {
	err = r.l.guard.run(func() error {
		record, err := r.l.find(seq)
		if err != nil {
			return err
		}
		c, msg, err := r.anchored()
		if err != nil {
			return err
		}
		if record.Index >= c.Size {
			return fmt.Errorf("prove sequence %d: %w: it is record %d, and the first %d are signed", seq, ErrUnconfirmed, record.Index, c.Size)
		}
		p, err = r.l.prove(record, &signed{Checkpoint: c, note: msg})
		return err
	})
	return p, refusal(unhalted(err))
}

// Show is Ledger.Show against the anchor's checkpoint.
func (r *Reader) Show(_ context.Context, q schemas.ShowRequest) (rep schemas.ShowReply, err error) {
	err = r.l.guard.run(func() error {
		c, msg, err := r.anchored()
		if err != nil {
			return err
		}
		if q.Size != 0 && q.Size != c.Size {
			return fmt.Errorf("the anchor's checkpoint is over %d records, and not %d", c.Size, q.Size)
		}
		if p := r.l.readPublished(); p != nil && p.Checkpoint == c {
			msg = p.note // the same, cosigned
		}
		rep, err = r.l.show(q, &signed{Checkpoint: c, note: msg})
		return err
	})
	return rep, refusal(unhalted(err))
}

// Signed opens a checkpoint of this ledger, under the key that signs those of
// its size.
func (r *Reader) Signed(msg []byte) (proof.Checkpoint, error) { return r.l.keys().open(msg) }

// anchored is the anchor's checkpoint, held against the records.
func (r *Reader) anchored() (proof.Checkpoint, []byte, error) {
	o := &r.l.o
	c, msg, found, err := readAnchor(o.FS, o.AnchorDir, r.l.keys(), o.Verifier)
	if err != nil || !found {
		return c, nil, errors.Join(err, tampered(0, "there is no anchor in %s", o.AnchorDir))
	}
	if size := r.l.durable.get().size; c.Size > size {
		return c, nil, tampered(0, "%d records are stored, and the anchor was signed over %d: the end is missing", size, c.Size)
	}
	t, err := loadTree(r.l.db, c.Size)
	if err != nil {
		return c, nil, err
	}
	if root := t.root(); root != c.Root {
		return c, nil, tampered(0, "the first %d records lead to the root %v, and the anchor says %v: this is another history", c.Size, root, c.Root)
	}
	return c, msg, nil
}

// Close lets the ledger go.
func (r *Reader) Close() error {
	var errs []error
	if r.l.db != nil && !r.l.guard.isFatal() {
		errs = append(errs, r.l.db.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}
