package ledger

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/schemas"
)

// lockless is a file system whose lock files can't be made, for one reason.
type lockless struct {
	vfs.FS
	why error
}

func (l lockless) Lock(name string) (io.Closer, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: l.why}
}

// Evidence is looked at on a mount that can't be written: it is read there all the
// same. Who may not look is told so, and not that the ledger is in use or damaged.
func TestALedgerIsReadWhereNothingCanBeWritten(t *testing.T) {
	o, _ := build(t, newMem(t), 10)
	under := o.FS
	o.FS = lockless{under, syscall.EROFS}
	if rep, err := Verify(context.Background(), o, nil); err != nil || !rep.OK || rep.Records == 0 {
		t.Errorf("verified on a read-only mount: %+v, %v", rep, err)
	}
	r, err := OpenReader(o)
	if err != nil {
		t.Fatal(err)
	}
	if page, err := r.Read(schemas.ReadRequest{From: 1, Limit: 3}); err != nil || len(page.Records) != 3 {
		t.Errorf("read on a read-only mount: %d records, %v", len(page.Records), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	o.FS = lockless{under, syscall.EACCES}
	if rep, err := Verify(context.Background(), o, nil); !errors.Is(err, errNoLock) || !errors.Is(err, fs.ErrPermission) || errors.Is(err, errInUse) {
		t.Errorf("another user's ledger: %+v, %v", rep, err)
	}
	if _, err := OpenReader(o); !errors.Is(err, errNoLock) || errors.Is(err, errInUse) {
		t.Errorf("another user's ledger: %v", err)
	}
}
