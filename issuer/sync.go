package issuer

import (
	"context"
	"sync"
	"time"
)

// A watermark is the last sequence that was folded.
type watermark struct {
	mu      sync.Mutex
	seq     uint64
	changed chan struct{}
}

func newWatermark() *watermark { return &watermark{changed: make(chan struct{})} }

func (w *watermark) set(seq uint64) {
	w.mu.Lock()
	w.seq = seq
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
}

func (w *watermark) at() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seq
}

// foldWait bounds how long a command waits for its own event.
const foldWait = 5 * time.Second

// wait returns when seq has been folded, or with an error that says why not.
func (w *watermark) wait(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, foldWait)
	defer cancel()
	for {
		w.mu.Lock()
		reached, changed := w.seq >= seq, w.changed
		w.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gates let one command at a time change a principal. A gate exists while
// somebody is at it.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	sync.Mutex
	users int
}

func newGates() *gates { return &gates{open: map[string]*gate{}} }

// pass waits for its turn at a principal and returns what ends it.
func (g *gates) pass(id string) (leave func()) {
	g.mu.Lock()
	at := g.open[id]
	if at == nil {
		at = &gate{}
		g.open[id] = at
	}
	at.users++
	g.mu.Unlock()
	at.Lock()
	return func() {
		at.Unlock()
		g.mu.Lock()
		if at.users--; at.users == 0 {
			delete(g.open, id)
		}
		g.mu.Unlock()
	}
}
