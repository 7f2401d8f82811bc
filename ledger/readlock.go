package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// errNoLock is matched where the ledger can't be read, because whoever wants to may
// not lock it against writers.
var errNoLock = errors.New("it can't be locked against writers")

// lockToRead keeps writers out of a database that is only read. Errors match
// errInUse where one has it, and errNoLock where that is not known.
func lockToRead(o *Options) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(o.Dir, unwritable{o.FS})
	var path *fs.PathError // of the lock file, which nobody got to lock
	switch {
	case err == nil:
		return lock, nil
	case errors.As(err, &path):
		return nil, fmt.Errorf("%w: %w", errNoLock, err)
	}
	return nil, fmt.Errorf("%w; ask the running control plane, or read a copy: %w", errInUse, err)
}

// unwritable is a file system on which nothing is locked that nobody can write.
type unwritable struct{ vfs.FS }

func (u unwritable) Lock(name string) (io.Closer, error) {
	lock, err := u.FS.Lock(name)
	if errors.Is(err, syscall.EROFS) {
		return io.NopCloser(nil), nil
	}
	return lock, err
}
