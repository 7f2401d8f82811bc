package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

const (
	batchSize    = 512             // records in a batch, at most
	batchBytes   = 4 << 20         // or as many bytes of bodies
	inFlight     = 2               // batches written and not yet synced
	parallelFrom = 32              // entries from which on preparing is shared out
	signPause    = time.Second     // between checkpoints
	signRecords  = 65_536          // or as many records
	maxUnsigned  = 2 * signRecords // more records without signature are an offence
)

// A commit is a batch on its way to disk.
type commit struct {
	batch  *pebble.Batch
	events []*schemas.Event
	head   summary
}

// Run takes entries until the channel is closed or the context ends, then
// waits for what it has written, and signs. The first entry must be From().
// Entries below are skipped, a gap ends Run. What is pending is committed at
// once: batches grow only while two are on their way to disk. Give the channel
// a buffer of 1,024 or more, or they can't.
//
// It returns nil where the channel was closed, the context's error, the
// sink's, or a *HaltError. After the last the ledger takes nothing more.
func (l *Ledger) Run(ctx context.Context, in <-chan Entry, sink Sink) error {
	if !l.running.CompareAndSwap(false, true) {
		return errors.New("ledger: it is running already")
	}
	defer l.running.Store(false)
	if err := l.guard.err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- l.run(ctx, in, sink) }()
	select {
	case err := <-done:
		return err
	case <-l.guard.fatal:
		// The database's goroutines are gone, and ours may wait for them
		// for ever: the process has to end.
		return l.guard.err()
	}
}

func (l *Ledger) run(ctx context.Context, in <-chan Entry, sink Sink) error {
	commits := make(chan commit, inFlight)
	slots := make(chan struct{}, inFlight)
	ended, grown := make(chan struct{}), make(chan struct{}, 1)
	rctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	g, gctx := errgroup.WithContext(rctx)
	g.Go(func() error {
		defer close(commits)
		return l.take(gctx, in, slots, commits)
	})
	g.Go(func() error {
		defer close(ended)
		return l.hand(commits, slots, sink, grown, stop)
	})
	g.Go(func() error { return l.signer(ended, grown) })
	err := g.Wait()
	if halt := l.guard.err(); halt != nil {
		return halt
	}
	// A gap or a bad event halts the ledger, but casts no doubt on what is
	// durable.
	if l.trusted.Load() && !errors.Is(err, ErrTampered) {
		_, serr := l.sign()
		err = firstError(err, serr)
	}
	if errors.Is(err, ErrHalted) {
		return l.guard.halt(err)
	}
	return err
}

// take gathers entries to batches and writes them. What comes before a bad
// entry is written.
func (l *Ledger) take(ctx context.Context, in <-chan Entry, slots chan struct{}, commits chan<- commit) error {
	batch := make([]Entry, 0, batchSize)
	for more := true; more; {
		var err error
		clear(batch) // of what the one before held on to
		if batch, more, err = gather(ctx, l.guard.halted, batch[:0], in, slots); err != nil {
			return err
		}
		if len(batch) == 0 {
			return nil
		}
		if err := l.commit(batch, slots, commits); err != nil {
			return err
		}
	}
	return nil
}

// gather waits for a first entry, goes on taking while no slot is free, and
// then takes what is pending. It appends to batch, which is empty, and returns
// entries and a slot, or neither.
func gather(ctx context.Context, halted <-chan struct{}, batch []Entry, in <-chan Entry, slots chan<- struct{}) (_ []Entry, more bool, err error) {
	bytes, more := 0, true
	add := func(e Entry, ok bool) {
		if more = ok; ok {
			batch, bytes = append(batch, e), bytes+len(e.Data)
		}
	}
	room := func() bool { return more && len(batch) < batchSize && bytes < batchBytes }
	pending := func() {
		for room() {
			select {
			case e, ok := <-in:
				add(e, ok)
			default:
				return
			}
		}
	}
	for more || len(batch) > 0 {
		from, slot := in, slots
		if !room() {
			from = nil
		}
		if len(batch) == 0 {
			slot = nil
		}
		select {
		case e, ok := <-from:
			add(e, ok)
			pending() // one by one, waiting would cost more than taking
		case slot <- struct{}{}:
			pending()
			return batch, more, nil
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		case <-halted:
			return nil, false, nil
		}
	}
	return nil, false, nil
}

// commit prepares a batch, chains it and gives it to the database. It has one
// slot, and takes another where the batch goes over the end of a segment.
func (l *Ledger) commit(entries []Entry, slots chan struct{}, commits chan<- commit) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	entries, gap := l.inOrder(entries)
	ready, bad := l.prepareAll(entries)
	ready, err := l.compare(ready)
	if err == nil {
		err = l.apply(ready, slots, commits)
	}
	if err == nil {
		l.next += uint64(len(entries))
	}
	clear(l.scratch.ready) // it holds on to no event
	return firstError(err, bad, gap)
}

// inOrder drops what was seen already, and what comes behind a gap.
func (l *Ledger) inOrder(entries []Entry) ([]Entry, error) {
	kept := entries[:0]
	want := l.next
	for _, e := range entries {
		if e.Seq < want {
			continue
		}
		if e.Seq > want {
			return kept, &HaltError{Seq: want, Err: fmt.Errorf("%w: %d follows %d; if what lies between is lost for good, an operator must record the gap", ErrGap, e.Seq, want-1)}
		}
		kept = append(kept, e)
		want++
	}
	return kept, nil
}

// prepareAll prepares entries, in parallel where they are many. With an error
// it gives those before the bad one.
func (l *Ledger) prepareAll(entries []Entry) ([]sealedEvent, error) {
	l.scratch.ready = slices.Grow(l.scratch.ready[:0], len(entries))[:len(entries)]
	ready := l.scratch.ready
	// part prepares [from, to), and gives where it stopped.
	part := func(from, to int) (int, error) {
		for i := from; i < to; i++ {
			var err error
			if ready[i], err = l.subjects.prepare(l.chain.streamID, entries[i]); err != nil {
				return i, &HaltError{Seq: entries[i].Seq, Err: fmt.Errorf("the event can't be taken: %w", err)}
			}
		}
		return to, nil
	}
	workers := max(1, min(runtime.GOMAXPROCS(0), len(entries)/parallelFrom))
	if workers == 1 {
		n, err := part(0, len(entries))
		return ready[:n], err
	}
	ends, errs := make([]int, workers), make([]error, workers)
	var g errgroup.Group
	for i := range workers {
		g.Go(func() error {
			ends[i], errs[i] = part(i*len(entries)/workers, (i+1)*len(entries)/workers)
			return nil
		})
	}
	_ = g.Wait() // errors are kept by part
	for i, err := range errs {
		if err != nil {
			return ready[:ends[i]], err
		}
	}
	return ready, nil
}

// compare holds what EVENTS says of the tail that bears no signature yet
// against what is stored, and drops it. With the last of it the tail is
// confirmed.
func (l *Ledger) compare(ready []sealedEvent) ([]sealedEvent, error) {
	if l.confirm >= l.opened.size {
		return ready, nil
	}
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for l.confirm < l.opened.size {
		stored, err := c.record(l.confirm)
		if err != nil {
			return nil, err
		}
		if stored.Kind == proof.KindEvent {
			if len(ready) == 0 {
				return nil, nil
			}
			rebuilt := ready[0].record
			rebuilt.Index, rebuilt.Prev = stored.Index, stored.Prev
			if rebuilt != stored {
				return nil, tampered(rebuilt.StreamSeq, "behind the last signature, the ledger holds another event than EVENTS")
			}
			ready = ready[1:]
		}
		l.confirm++
	}
	l.trusted.Store(true)
	return ready, nil
}

// apply writes events in batches that end where a segment does.
func (l *Ledger) apply(ready []sealedEvent, slots chan struct{}, commits chan<- commit) error {
	if len(ready) == 0 {
		<-slots
		return nil
	}
	for first := true; len(ready) > 0; first = false {
		if !first {
			slots <- struct{}{}
		}
		n := min(uint64(len(ready)), segmentSize-l.chain.size%segmentSize)
		b, sum, err := l.writeRun(ready[:n])
		if err != nil {
			<-slots
			return err
		}
		events := make([]*schemas.Event, n)
		for i := range events {
			events[i] = ready[i].event
			l.subjects.giveRoom(ready[i].sealed) // the batch has its own copy
		}
		commits <- commit{batch: b, events: events, head: sum}
		ready = ready[n:]
	}
	return nil
}

// writeRun writes one batch, without waiting for the sync.
func (l *Ledger) writeRun(run []sealedEvent) (*pebble.Batch, summary, error) {
	b := l.db.NewBatch()
	if err := l.write(b, run); err != nil {
		return nil, summary{}, errors.Join(err, b.Close())
	}
	if err := l.db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		return nil, summary{}, &HaltError{Err: fmt.Errorf("write to the database: %w", err)}
	}
	return b, summary{size: l.chain.size, streamSeq: l.chain.streamSeq, root: l.chain.root()}, nil
}

// hand waits for each batch's sync and hands it on. After a failure it goes on
// waiting, and hands nothing on.
func (l *Ledger) hand(commits <-chan commit, slots <-chan struct{}, sink Sink, grown chan<- struct{}, stop func(error)) error {
	var failed error
	for c := range commits {
		err := synced(c.batch)
		<-slots
		if failed != nil {
			continue
		}
		if failed = err; failed == nil {
			failed = l.handOne(c, sink, grown)
		}
		if failed != nil {
			stop(failed)
		}
	}
	return failed
}

func synced(b *pebble.Batch) error {
	if err := b.SyncWait(); err != nil {
		return &HaltError{Err: fmt.Errorf("sync the database's log: %w", err)}
	}
	return b.Close()
}

func (l *Ledger) handOne(c commit, sink Sink, grown chan<- struct{}) error {
	if err := l.guard.err(); err != nil {
		return err
	}
	l.durable.publish(c.head)
	if c.head.size >= l.current.Load().Size+signRecords {
		select {
		case grown <- struct{}{}:
		default: // it was told already
		}
	}
	if l.catching {
		if c.head.size < l.target.Size {
			return nil
		}
		// The anchor's root was reached: what was held back may go on,
		// and the anchored checkpoint stands for it again.
		cur := l.current.Load()
		if err := l.db.Set(numberKey(keyCheckpoint, cur.Size), cur.note, pebble.Sync); err != nil {
			return &HaltError{Err: fmt.Errorf("keep the checkpoint: %w", err)}
		}
		l.catching = false
		l.trusted.Store(true)
		return l.handStored(l.opened.size, c.head.size, sink)
	}
	if err := sink.Durable(c.events); err != nil {
		return fmt.Errorf("hand over sequences %d to %d: %w", c.events[0].Seq, c.events[len(c.events)-1].Seq, err)
	}
	return nil
}

// handStored hands on records [from, to) as they are stored.
func (l *Ledger) handStored(from, to uint64, sink Sink) error {
	var batch []*schemas.Event
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := sink.Durable(batch)
		batch = nil
		return err
	}
	err := l.events(from, to, func(e *schemas.Event) error {
		if batch = append(batch, e); len(batch) < batchSize {
			return nil
		}
		return flush()
	})
	return firstError(err, flush())
}

// signer signs each second, and when many records came.
func (l *Ledger) signer(ended <-chan struct{}, grown <-chan struct{}) error {
	tick := time.NewTicker(signPause)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return nil
		case <-tick.C:
		case <-grown:
		}
		if !l.trusted.Load() {
			continue
		}
		if _, err := l.sign(); err != nil {
			return err
		}
	}
}
