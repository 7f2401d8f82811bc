package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
)

const (
	anchorFile = "head"
	anchorTemp = "head.new"
	anchorLock = "lock"
)

// errAnchorMoved is matched where somebody else swapped the anchor: two
// ledgers sign under one key.
var errAnchorMoved = errors.New("the anchor is not the one that this ledger wrote last: another ledger writes it; stop one of the two")

// An anchor keeps the newest signed checkpoint outside of the database. One
// process has it, by file lock.
type anchor struct {
	fs   vfs.FS
	dir  string
	lock io.Closer
	note []byte // as last read or written; nil where there is none
}

// openAnchor locks the folder and reads the anchor.
func openAnchor(fs vfs.FS, dir string) (*anchor, error) {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("anchor: %w", err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, anchorLock))
	if err != nil {
		return nil, fmt.Errorf("anchor: %s is in use by another ledger: %w", dir, err)
	}
	a := &anchor{fs: fs, dir: dir, lock: lock}
	if a.note, err = readFile(fs, fs.PathJoin(dir, anchorFile)); err != nil {
		return nil, errors.Join(fmt.Errorf("anchor: %w", err), lock.Close())
	}
	return a, nil
}

// readAnchor verifies the anchor; ok says whether there is one. It must bear
// the signature of the key that the owner knows: the thief of a former one could
// else sign a past of his own, which ends with a handover to that key.
func readAnchor(fs vfs.FS, dir string, ring *keyring, v note.Verifier) (c proof.Checkpoint, msg []byte, ok bool, err error) {
	msg, err = readFile(fs, fs.PathJoin(dir, anchorFile))
	if err != nil || msg == nil {
		return c, nil, false, err
	}
	if c, err = ring.stored(msg); err == nil {
		_, err = proof.OpenCheckpoint(msg, v)
	}
	if err != nil {
		return c, nil, false, tampered(0, "the anchor: %v", err)
	}
	return c, msg, true, nil
}

// swap replaces the anchor, if it still is what was read or written last, and
// returns when the new one is on disk.
func (a *anchor) swap(msg []byte) error {
	path := a.fs.PathJoin(a.dir, anchorFile)
	now, err := readFile(a.fs, path)
	if err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	if !bytes.Equal(now, a.note) {
		return errAnchorMoved
	}
	temp := a.fs.PathJoin(a.dir, anchorTemp)
	if err := writeFile(a.fs, temp, msg); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	if err := a.fs.Rename(temp, path); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	if err := syncDir(a.fs, a.dir); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	a.note = msg
	return nil
}

func (a *anchor) close() error { return a.lock.Close() }

// readFile gives nil where there is no such file.
func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

func writeFile(fs vfs.FS, path string, b []byte) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	// The file system may change the slice that it writes.
	_, err = f.Write(bytes.Clone(b))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
