package ledger

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/schemas"
)

// Backup copies the ledger as it is now, while it goes on, into folders that
// must not be there yet: the database, with its log synced, and beside it the
// anchor and the agents' keys of the same moment. Tables are hard links where
// the file system has them. The copy is a ledger by itself, which Verify
// verifies and Open opens.
func (l *Ledger) Backup(dir, anchorDir string) (schemas.Head, error) {
	l.wmu.Lock() // nothing is appended, and nobody erased, meanwhile
	defer l.wmu.Unlock()
	if err := l.guard.err(); err != nil {
		return schemas.Head{}, err
	}
	if err := l.settle(); err != nil {
		return schemas.Head{}, fmt.Errorf("backup: %w", err)
	}
	l.smu.Lock() // and nothing is signed
	defer l.smu.Unlock()
	fs, cur := l.o.FS, l.current.Load()
	err := l.guard.run(func() error { return l.db.Checkpoint(dir, pebble.WithFlushedWAL()) })
	if err != nil {
		return schemas.Head{}, fmt.Errorf("backup: %w", err)
	}
	keys, err := readFile(fs, fs.PathJoin(l.subjects.folder, subjectsFile))
	if err == nil {
		err = fs.MkdirAll(anchorDir, 0o700)
	}
	err = errors.Join(err,
		writeFile(fs, fs.PathJoin(anchorDir, subjectsFile), keys),
		writeFile(fs, fs.PathJoin(anchorDir, anchorFile), bytes.Clone(cur.note)))
	if err == nil {
		err = syncDir(fs, anchorDir)
	}
	if err != nil {
		return schemas.Head{}, fmt.Errorf("backup: %w", err)
	}
	return headOf(l.durable.get(), cur), nil
}

// settle signs all that is written, also what is on its way to disk: a copy whose
// end bore no signature would need EVENTS to confirm it, which may forget it
// first. The caller holds wmu.
func (l *Ledger) settle() error {
	if l.trusted.Load() {
		if err := l.db.LogData(nil, pebble.Sync); err != nil { // and all before it
			return l.guard.halt(&HaltError{Err: fmt.Errorf("sync the database's log: %w", err)})
		}
		l.durable.publish(summary{size: l.chain.size, streamSeq: l.chain.streamSeq, root: l.chain.root()})
	}
	_, err := l.sign()
	return err
}

// StreamID names the stream that a stored ledger was written from.
func (r *Reader) StreamID() (uint64, error) {
	h, _, err := readHead(r.l.db)
	return h.streamID, err
}

// PrefixOf is Ledger.PrefixOf of what is stored.
func (r *Reader) PrefixOf(size uint64) (p Prefix, err error) {
	err = r.l.guard.run(func() error {
		p, err = r.l.PrefixOf(size)
		return err
	})
	return p, err
}

// Pruned is the beginning whose contents are in archives alone; of size 0 where
// nothing was pruned.
func (r *Reader) Pruned() (p Prefix, err error) {
	err = r.l.guard.run(func() error {
		row, err := readPruned(r.l.db)
		if err != nil || row.records == 0 {
			return err
		}
		p, err = r.l.PrefixOf(row.records)
		return err
	})
	return p, err
}

// Erased reports whether an agent has no key, so that its contents, if there
// were any, can't be opened any more.
func (r *Reader) Erased(agent string) bool { return r.l.subjects.find(agent) == nil }
