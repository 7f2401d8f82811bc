package ledger

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

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
		return nil, errors.Join(fmt.Errorf("read the ledger: %w", err), r.Close())
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	l := r.l
	if l.subjects, err = openSubjects(l.o.FS, l.o.SubjectsDir, l.o.Secret, false); err != nil {
		return err
	}
	if r.lock, err = pebble.LockDirectory(l.o.Dir, l.o.FS); err != nil {
		return fmt.Errorf("%w; ask the running control plane, or read a copy: %w", errInUse, err)
	}
	po := pebbleOptions(l.o.FS, l.guard)
	po.ReadOnly, po.Lock = true, r.lock
	if l.db, err = pebble.Open(l.o.Dir, po); err != nil {
		return tampered(0, "the database does not open: %v", err)
	}
	h, found, err := readHead(l.db)
	if err != nil || !found {
		return errors.Join(err, tampered(0, "the database has no head"))
	}
	l.durable.now = summary{size: h.size, streamSeq: h.streamSeq}
	return nil
}

// Read gives a page of events as they were taken.
func (r *Reader) Read(q schemas.ReadRequest) (rep schemas.ReadReply, err error) {
	err = r.l.guard.run(func() error {
		rep, err = r.l.Read(q)
		return err
	})
	return rep, err
}

// Head is the end of what is stored. Its checkpoint is the anchor's, which may
// cover a little less.
func (r *Reader) Head() (schemas.Head, error) {
	s := r.l.durable.get()
	c, msg, found, err := readAnchor(r.l.o.FS, r.l.o.AnchorDir, r.l.o.Verifier)
	if err != nil || !found {
		return schemas.Head{}, errors.Join(err, tampered(0, "there is no anchor in %s", r.l.o.AnchorDir))
	}
	h := schemas.Head{Size: s.size, StreamSeq: s.streamSeq, Checkpoint: string(msg)}
	if c.Size == s.size {
		h.Root = hex.EncodeToString(c.Root[:])
	}
	return h, nil
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
