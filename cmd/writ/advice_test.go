package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/ledger"
)

// Somebody who runs a command as another user needs no backup, and a ledger that
// halts no doctor.
func TestTheAdviceFitsTheFault(t *testing.T) {
	data := t.TempDir()
	denied := fmt.Errorf("read: %w", &fs.PathError{Op: "open", Path: data + "/keys", Err: syscall.EACCES})
	if got := adviceKeys(data, denied); !strings.Contains(got, "as the user whom") || strings.Contains(got, "backup") {
		t.Errorf("keys of another user: %q", got)
	}
	if got := adviceKeys(data, fs.ErrNotExist); !strings.HasPrefix(got, "writ init") {
		t.Errorf("no keys: %q", got)
	}
	for fault, want := range map[error]string{
		denied: "as the user whom",
		fmt.Errorf("%w at sequence 7: %w", ledger.ErrHalted, ledger.ErrTampered): "writ ledger verify --data COPY",
		fmt.Errorf("%w: the database does not open", ledger.ErrOpen):             "writ ledger verify --data COPY",
		fmt.Errorf("%w: in use", plane.ErrListenHTTP):                            "--http",
		fmt.Errorf("%w: line 1", plane.ErrWitnesses):                             "--witness-policy",
	} {
		var a *advised
		if err := whyNot(data, fault); !errors.As(err, &a) || !strings.Contains(a.next, want) {
			t.Errorf("%v: %v, want %q", fault, a, want)
		}
	}
	if other := errors.New("another"); whyNot(data, other) != other {
		t.Error("what is not known is advised about")
	}
}
