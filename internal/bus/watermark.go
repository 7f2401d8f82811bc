package bus

import (
	"context"
	"sync"
	"time"
)

// A Watermark is a sequence that rises and can be waited for. It is safe for
// concurrent use.
type Watermark struct {
	mu      sync.Mutex
	seq     uint64
	changed chan struct{}
}

// NewWatermark is one that stands at 0.
func NewWatermark() *Watermark { return &Watermark{changed: make(chan struct{})} }

// At is where it stands.
func (w *Watermark) At() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seq
}

// Set raises it.
func (w *Watermark) Set(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seq <= w.seq {
		return
	}
	w.seq = seq
	close(w.changed)
	w.changed = make(chan struct{})
}

// Wait returns nil when it has reached seq; otherwise the context's error, or
// context.DeadlineExceeded where that took longer than atMost.
func (w *Watermark) Wait(ctx context.Context, seq uint64, atMost time.Duration) error {
	if w.At() >= seq {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, atMost)
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
