package ledger

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A summary is what is durable.
type summary struct {
	size      uint64
	streamSeq uint64
	root      proof.Hash
}

// durable is where readers learn what is on disk.
type durable struct {
	mu      sync.Mutex
	now     summary
	changed chan struct{} // closed at the next change; nil while nobody waits
}

func (d *durable) get() summary {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

// publish never goes back: the ledger's own records may overtake a batch.
func (d *durable) publish(s summary) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.size <= d.now.size {
		return
	}
	d.now = s
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// wait returns when at least size records are durable.
func (d *durable) wait(ctx context.Context, size uint64, halted <-chan struct{}) error {
	for {
		d.mu.Lock()
		if d.now.size >= size {
			d.mu.Unlock()
			return nil
		}
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed, now := d.changed, d.now.size
		d.mu.Unlock()
		select {
		case <-changed:
		case <-halted:
			return ErrHalted
		case <-ctx.Done():
			return fmt.Errorf("the ledger has %d records, not yet %d: %w", now, size, ctx.Err())
		}
	}
}

// sign signs what is durable, keeps the checkpoint in the database, then in
// the anchor, and only then publishes it. An error halts the ledger, save
// ErrUnconfirmed.
func (l *Ledger) sign() (*signed, error) {
	if err := l.guard.err(); err != nil {
		return nil, err
	}
	if !l.trusted.Load() {
		return nil, fmt.Errorf("%w: EVENTS must be read from sequence %d on first", ErrUnconfirmed, l.From())
	}
	l.smu.Lock()
	defer l.smu.Unlock()
	now, cur := l.durable.get(), l.current.Load()
	if p := l.pending; p != nil && now.size >= p.size {
		var err error
		if cur, err = l.turn(now); err != nil {
			return nil, l.guard.halt(&HaltError{Err: err})
		}
	}
	if now.size == cur.Size {
		return cur, nil
	}
	c, err := l.signNow(proof.Checkpoint{Origin: l.o.Verifier.Name(), Size: now.size, Root: now.root}, l.signs)
	if err != nil {
		return nil, l.guard.halt(&HaltError{Err: err})
	}
	return c, nil
}

func (l *Ledger) signNow(c proof.Checkpoint, by ...note.Signer) (*signed, error) {
	msg, err := c.Sign(by...)
	if err != nil {
		return nil, err
	}
	if err := l.db.Set(numberKey(keyCheckpoint, c.Size), msg, pebble.Sync); err != nil {
		return nil, fmt.Errorf("keep the checkpoint: %w", err)
	}
	if err := l.anchor.swap(msg); err != nil {
		return nil, err
	}
	s := &signed{Checkpoint: c, note: msg}
	l.current.Store(s)
	return s, nil
}

// Head is the durable end, with the newest checkpoint.
func (l *Ledger) Head() schemas.Head {
	cur := l.current.Load() // first: it may only cover less than what is durable
	h := headOf(l.durable.get(), cur)
	h.Verified = l.verified.Load()
	h.Published = l.published.state(time.Now())
	return h
}

func headOf(s summary, cur *signed) schemas.Head {
	return schemas.Head{Size: s.size, StreamSeq: s.streamSeq, Root: hex.EncodeToString(s.root[:]), Checkpoint: string(cur.note)}
}

// Checkpoint gives a head whose checkpoint covers at least size records. It
// waits until they are durable, and signs at once if it must.
func (l *Ledger) Checkpoint(ctx context.Context, size uint64) (schemas.Head, error) {
	if err := l.guard.err(); err != nil {
		return schemas.Head{}, err
	}
	cur := l.current.Load()
	if cur.Size < size || !l.trusted.Load() {
		if err := l.durable.wait(ctx, size, l.guard.halted); err != nil {
			return schemas.Head{}, err
		}
		var err error
		if cur, err = l.sign(); err != nil {
			return schemas.Head{}, err
		}
	}
	return headOf(l.durable.get(), cur), nil
}
