package ledger

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// A guard is where the database reports what it can't go on with. By itself it
// would end the process, from whatever goroutine; here the ledger halts, and
// its owner ends the process in order.
type guard struct {
	log    *slog.Logger
	halted chan struct{} // closed at the first halt
	fatal  chan struct{} // closed when the database gave up

	mu  sync.Mutex
	why error
	end bool
}

func newGuard(log *slog.Logger) *guard {
	return &guard{log: log, halted: make(chan struct{}), fatal: make(chan struct{})}
}

// halt keeps the first reason and gives back the one that counts.
func (g *guard) halt(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.why == nil {
		g.why = err
		close(g.halted)
	}
	return g.why
}

func (g *guard) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.why
}

func (g *guard) isFatal() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.end
}

func (g *guard) giveUp(err error) {
	_ = g.halt(err)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.end {
		g.end = true
		close(g.fatal)
	}
}

// run calls fn on a goroutine of its own and waits for it, so that a database
// that gives up, or panics on damaged bytes, ends in an error.
func (g *guard) run(fn func() error) (err error) {
	done := make(chan error, 1)
	go func() {
		finished := false
		defer func() {
			if finished {
				return
			}
			if p := recover(); p != nil {
				done <- tampered(0, "the database can't be read: %v", p)
				return
			}
			done <- g.err() // Fatalf ended the goroutine
		}()
		err := fn()
		finished = true
		done <- err
	}()
	return <-done
}

// listener sets DataCorruption: unset, Pebble would end the process.
func (g *guard) listener() *pebble.EventListener {
	return &pebble.EventListener{
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			_ = g.halt(tampered(0, "the file %s of the database is corrupt (%v); restore it from a backup, or let the ledger be rebuilt from EVENTS", info.Path, info.Details))
		},
		BackgroundError: func(err error) {
			g.log.Error("ledger: database", "error", err)
		},
	}
}

// Infof implements pebble.Logger. Its chatter is of no use to operators.
func (g *guard) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (g *guard) Errorf(format string, args ...any) {
	g.log.Error("ledger: database", "error", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. Pebble takes for granted that it does not
// return.
func (g *guard) Fatalf(format string, args ...any) {
	err := &HaltError{Err: fmt.Errorf("the database gave up: "+format, args...)}
	g.giveUp(err)
	g.log.Error("ledger: database", "error", err)
	runtime.Goexit()
}
