package ledger

import (
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

var (
	seeds = flag.Int("seeds", 12, "seeds of the crash test")
	flips = flag.Int("flips", 90, "bits flipped in the damage test; 0 flips one bit of every byte")
)

// testOptions are of a ledger in a memory file system, with fixed keys.
func testOptions(t testing.TB, fs vfs.FS) Options {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	signer, verifier, err := proof.Keys("acme.example", key)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Dir: "data/ledger", AnchorDir: "data/anchor", FS: fs, Signer: signer, Verifier: verifier,
		Secret: [32]byte{1, 2, 3}, StreamID: proof.StreamID("CONTROL", "EVENTS", 42)}
}

func newMem(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	makeDirs(t, fs)
	return fs
}

// makeDirs makes the folders durable, as writ init does.
func makeDirs(t testing.TB, fs vfs.FS) {
	t.Helper()
	for _, dir := range []string{"data", "data/ledger", "data/anchor"} {
		if err := fs.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"", "data", "data/ledger", "data/anchor"} {
		if err := syncDir(fs, dir); err != nil {
			t.Fatal(err)
		}
	}
}

func mustOpen(t testing.TB, o Options) *Ledger {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A recorder is a sink that keeps the sequences it was given.
type recorder struct {
	mu   sync.Mutex
	seqs []uint64
	fail error
}

func (r *recorder) Durable(batch []*schemas.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	for _, e := range batch {
		r.seqs = append(r.seqs, e.Seq)
	}
	return nil
}

func (r *recorder) last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seqs) == 0 {
		return 0
	}
	return r.seqs[len(r.seqs)-1]
}

// feed runs the ledger over entries until all are taken.
func feed(l *Ledger, sink Sink, entries ...Entry) error {
	in := make(chan Entry, len(entries))
	for _, e := range entries {
		in <- e
	}
	close(in)
	return l.Run(context.Background(), in, sink)
}

func mustFeed(t testing.TB, l *Ledger, sink Sink, entries ...Entry) {
	t.Helper()
	if err := feed(l, sink, entries...); err != nil {
		t.Fatal(err)
	}
}

// build makes a closed ledger of n events.
func build(t testing.TB, fs vfs.FS, n int) (Options, []Entry) {
	t.Helper()
	o, entries := testOptions(t, fs), benchEntries(n)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return o, entries
}

func verify(t testing.TB, o Options) schemas.VerifyReply {
	t.Helper()
	rep, err := Verify(context.Background(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func mustVerify(t testing.TB, o Options, n uint64) schemas.VerifyReply {
	t.Helper()
	rep := verify(t, o)
	if !rep.OK || rep.Records != n {
		t.Fatalf("a whole ledger of %d records does not verify: %+v", n, rep)
	}
	return rep
}

func haltSeq(t testing.TB, err error) uint64 {
	t.Helper()
	var halt *HaltError
	if !errors.As(err, &halt) || !errors.Is(err, ErrHalted) {
		t.Fatalf("error %v is no halt", err)
	}
	return halt.Seq
}

var discard = slog.New(slog.DiscardHandler)

func clonerng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
