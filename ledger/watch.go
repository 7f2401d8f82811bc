package ledger

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// watchPause is how long a pass that found everything whole is rested upon.
const watchPause = time.Minute

// Watch verifies the open ledger again and again, in at most a share of one
// core (more than 0, at most 1), until the context ends. What it found stands
// in the head. Records that do not hold are an alarm, and stop nothing: what
// stood before a record does not change what follows it. Where the database
// itself reports damage, the ledger halts, as on any read.
func (l *Ledger) Watch(ctx context.Context, share float64) error {
	return l.watch(ctx, share, watchPause)
}

func (l *Ledger) watch(ctx context.Context, share float64, pause time.Duration) error {
	for pass := uint64(1); ; pass++ {
		start := time.Now()
		rep, err := l.verify(ctx, 1, pace(ctx, share))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			l.o.Logger.Error("ledger: it could not be verified", "error", err)
		default:
			l.watched(pass, rep, time.Since(start))
		}
		select {
		case <-time.After(pause):
		case <-l.guard.halted:
			return l.guard.err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watched tells what a pass found.
func (l *Ledger) watched(pass uint64, rep schemas.VerifyReply, took time.Duration) {
	v := &schemas.Verified{OK: rep.OK, Pass: pass, Time: time.Now().UTC(), TookMS: took.Milliseconds(),
		Records: rep.Records, FirstBadSeq: rep.FirstBadSeq, Error: rep.Error}
	if !rep.OK {
		l.o.Logger.Error("ALARM: the ledger is not whole; keep a copy of the data folder, and see docs/operations.md", "first_bad_seq", rep.FirstBadSeq, "error", rep.Error)
	}
	l.verified.Store(v)
}

// pace lets a single worker rest after each step, so that it takes no more
// than its share of one core: the clock counts for it what others take away.
func pace(ctx context.Context, share float64) Progress {
	last := time.Now()
	return func(uint64, uint64) {
		rest := time.Duration(float64(time.Since(last)) * (1 - share) / share)
		if rest > 0 {
			t := time.NewTimer(rest)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
		}
		last = time.Now()
	}
}

// Verify verifies the open ledger as of now, while it goes on.
func (l *Ledger) Verify(ctx context.Context, progress Progress) (schemas.VerifyReply, error) {
	return l.verify(ctx, runtime.GOMAXPROCS(0), progress)
}

func (l *Ledger) verify(ctx context.Context, workers int, progress Progress) (schemas.VerifyReply, error) {
	cur := l.current.Load()   // before the snapshot: the snapshot reaches it
	known := l.keys().current // likewise
	snap := l.db.NewSnapshot()
	v := &verification{r: snap, subjects: l.subjects, streamID: l.o.StreamID, contents: true, workers: workers,
		anchored: cur.Checkpoint, anchorNote: cur.note, guard: l.guard, progress: progress}
	err := l.guard.run(func() (err error) {
		if v.ring, err = readKeyring(snap, known); err != nil {
			return err
		}
		return v.all(ctx)
	})
	rep, err := v.reply(err)
	return rep, errors.Join(err, snap.Close())
}

// alarm is what the last pass of Watch found wrong, nil where it found nothing.
func (l *Ledger) alarm() error {
	if v := l.verified.Load(); v != nil && !v.OK {
		return tampered(v.FirstBadSeq, "%s", v.Error)
	}
	return nil
}
