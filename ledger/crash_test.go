package ledger

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestAPowerFailureLosesNothingThatWasHandedOn cuts the power at random points
// while events come in, keeps none, half or all of what was not synced, and
// opens what is left. Everything that was handed on before must be there, once,
// and the ledger must go on to the same root as one that never crashed.
func TestAPowerFailureLosesNothingThatWasHandedOn(t *testing.T) {
	const n = 700
	entries := benchEntries(n)
	for seed := range uint64(*seeds) {
		for _, percent := range []int{0, 50, 100} {
			crashOnce(t, seed, percent, entries)
		}
	}
}

func crashOnce(t *testing.T, seed uint64, percent int, entries []Entry) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, uint64(percent)))
	o := testOptions(t, newMem(t))
	// Two crashes in a row: the second one during or after recovery.
	for round := range 2 {
		handed, left := runUntilCrash(t, o, rng, percent, entries)
		o.FS = left
		l, err := Open(o)
		if err != nil {
			t.Fatalf("seed %d, %d %%, crash %d: %v", seed, percent, round, err)
		}
		if size := l.Head().Size; size < handed || l.target.Size > size {
			t.Fatalf("seed %d, %d %%, crash %d: %d records are left, %d were handed on, %d anchored", seed, percent, round, size, handed, l.target.Size)
		}
		if err := l.release(); err != nil { // as if the process ended here
			t.Fatal(err)
		}
	}
	l, err := Open(o)
	if err != nil {
		t.Fatalf("seed %d, %d %%: %v", seed, percent, err)
	}
	sink := &recorder{}
	from := l.Head().StreamSeq
	if err := feed(l, sink, entries[l.From()-1:]...); err != nil {
		t.Fatalf("seed %d, %d %%: %v", seed, percent, err)
	}
	for i, seq := range sink.seqs {
		if seq != from+uint64(i)+1 {
			t.Fatalf("seed %d, %d %%: hand-over %d is of %d", seed, percent, i, seq)
		}
	}
	// The oracle also checks that every record stands once, in order.
	root := oracle(t, l, uint64(len(entries)))
	if l.durable.get().root != root {
		t.Fatalf("seed %d, %d %%: root %v, oracle %v", seed, percent, l.durable.get().root, root)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, uint64(len(entries)))
}

// runUntilCrash feeds the ledger and clones the disk at a random moment. It
// gives how many were handed on before that moment.
func runUntilCrash(t *testing.T, o Options, rng *rand.Rand, percent int, entries []Entry) (handed uint64, left *vfs.MemFS) {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(rng.IntN(len(entries)))
	in := make(chan Entry, 64)
	ctx, cancel := context.WithCancel(context.Background())
	sink := &recorder{}
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, in, sink) }()
	for _, e := range entries[l.From()-1:] {
		if e.Seq >= at && left == nil {
			handed = sink.last() // before the clone: this much must be in it
			left = o.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		}
		in <- e
		if rng.IntN(40) == 0 {
			if _, err := l.Checkpoint(ctx, l.Head().Size); err != nil && !errors.Is(err, ErrUnconfirmed) {
				t.Fatal(err)
			}
		}
	}
	if left == nil {
		handed = sink.last()
		left = o.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	return handed, left
}
