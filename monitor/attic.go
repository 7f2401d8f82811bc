package monitor

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync"
)

// An attic keeps what is known of agents and jobs that do nothing just now, so
// that memory holds those at work alone. It is a file without a name: nobody
// else can open it, and a crash leaves nothing behind. It is no state either:
// a restart makes the same anew from snapshot and log. What comes back otherwise
// than it was put away ends the fold, and no verdict rests on it.
//
// One model writes and frees; forks of it may read meanwhile.
type attic struct {
	folder string

	mu   sync.Mutex
	file *os.File // nil before the first record
	err  error    // the first failure

	end   int64
	free  map[int64][]int64 // places of records taken out, by the room they have
	lent  bool              // to a fork: what it may still read is not written over
	later []shelf           // taken out meanwhile
}

// ErrAttic is matched where what was put away is lost or damaged. A model that
// met it judges no longer.
var ErrAttic = errors.New("what the monitor put aside did not come back as it was")

// A shelf is where a record lies, and what it must be. The zero value is none.
type shelf struct {
	at  int64
	n   int
	sum id
}

// room is what n bytes take: a quarter more at most, so that records that grow
// find old places.
func room(n int) int64 {
	step := int64(1) << max(bits.Len(uint(n))-3, 8)
	return (int64(n) + step - 1) / step * step
}

// put stores a record.
func (a *attic) put(b []byte) shelf {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return shelf{}
	}
	if a.file == nil {
		if a.err = a.open(); a.err != nil {
			return shelf{}
		}
	}
	s, r := shelf{at: a.end, n: len(b), sum: idOf(b)}, room(len(b))
	if old := a.free[r]; len(old) > 0 {
		s.at, a.free[r] = old[len(old)-1], old[:len(old)-1]
	} else {
		a.end += r
	}
	if _, err := a.file.WriteAt(b, s.at); err != nil {
		a.err = fmt.Errorf("%w: %w", ErrAttic, err)
	}
	return s
}

func (a *attic) open() error {
	if err := os.MkdirAll(a.folder, 0o700); err != nil {
		return fmt.Errorf("%w: %w", ErrAttic, err)
	}
	f, err := os.CreateTemp(a.folder, "idle-")
	if err == nil {
		a.file, err = f, os.Remove(f.Name())
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAttic, err)
	}
	return nil
}

// get reads a record, nil where it can't, into the room that it is given, if that is
// enough.
func (a *attic) get(s shelf, room []byte) []byte {
	a.mu.Lock()
	f, err := a.file, a.err
	a.mu.Unlock()
	if err != nil {
		return nil
	}
	b := slices.Grow(room[:0], s.n)[:s.n]
	if f == nil {
		err = os.ErrNotExist
	} else {
		_, err = f.ReadAt(b, s.at)
	}
	if err == nil && idOf(b) != s.sum {
		err = errors.New("it is damaged")
	}
	if err != nil {
		a.fail(err)
		return nil
	}
	return b
}

func (a *attic) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = fmt.Errorf("%w: %w", ErrAttic, err)
	}
}

// failed is the first failure; nil where there was none, or there is no attic.
func (a *attic) failed() error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// drop takes a record out.
func (a *attic) drop(s shelf) {
	if s == (shelf{}) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lent {
		a.later = append(a.later, s)
		return
	}
	a.reuse(s)
}

func (a *attic) reuse(s shelf) {
	if a.free == nil {
		a.free = map[int64][]int64{}
	}
	a.free[room(s.n)] = append(a.free[room(s.n)], s.at)
}

// lend says whether a fork may read.
func (a *attic) lend(to bool) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lent = to; to {
		return
	}
	for _, s := range a.later {
		a.reuse(s)
	}
	a.later = nil
}

func (a *attic) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	if a.err == nil {
		a.err = fmt.Errorf("%w: %w", ErrAttic, os.ErrClosed)
	}
	return a.file.Close()
}
