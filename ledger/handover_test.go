package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// keyNumber makes a key of the test ledger, the same for each number.
func keyNumber(t testing.TB, n byte) *Successor {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	signer, _, err := proof.Keys("acme.example", key)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := note.NewEd25519VerifierKey("acme.example", key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return &Successor{Signer: signer, Key: vkey}
}

// An owner keeps the keys of a ledger, as package issuer/keys does on disk.
type owner struct {
	t      testing.TB
	mu     sync.Mutex
	signs  *Successor
	next   *Successor
	turned []uint64
	fail   error // of Turn, before it does anything
}

func (w *owner) turn(size uint64, to Handover) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if w.next == nil || to.Successor != w.next.Key {
		return fmt.Errorf("%s is not the key that was prepared", to.Successor)
	}
	w.signs, w.next, w.turned = w.next, nil, append(w.turned, size)
	return nil
}

// options are what a start finds.
func (w *owner) options(fs vfs.FS) Options {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	o := testOptions(w.t, fs)
	v, err := note.NewVerifier(w.signs.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	o.Signer, o.Verifier, o.Key, o.Next, o.Turn = w.signs.Signer, v, w.signs.Key, w.next, w.turn
	return o
}

// handOver prepares a key and has it sign.
func (w *owner) handOver(l *Ledger, n byte) (uint64, error) {
	next := keyNumber(w.t, n)
	w.mu.Lock()
	w.next = next
	w.mu.Unlock()
	return l.HandOver(next, "routine", "local:dana", time.Unix(1_700_000_000, 0))
}

func (w *owner) mustHandOver(l *Ledger, n byte) uint64 {
	w.t.Helper()
	size, err := w.handOver(l, n)
	if err != nil {
		w.t.Fatal(err)
	}
	return size
}

// bundled is a bundle of all of a ledger, as a file.
func bundled(t testing.TB, show Show, key string) []byte {
	t.Helper()
	b, err := Collect(context.Background(), show, key, schemas.ShowRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func policyOf(t testing.TB, lines ...string) *proof.Policy {
	t.Helper()
	p, err := proof.ParsePolicy([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func judge(t testing.TB, data []byte, p *proof.Policy) (*proof.Evidence, error) {
	t.Helper()
	b, err := proof.OpenBundle(data)
	if err != nil {
		return nil, err
	}
	return b.Verify(p)
}

// Events flow while the key is replaced three times: each is handed on once and
// in order, the whole ledger verifies under the newest key alone, and who pinned
// any of the keys is led to the newest.
func TestAKeyIsReplacedWhileEventsFlow(t *testing.T) {
	const n = 3000
	w := &owner{t: t, signs: keyNumber(t, 0)}
	fs := newMem(t)
	l := mustOpen(t, w.options(fs))
	entries := benchEntries(n)
	mustFeed(t, l, &recorder{}, entries[:100]...)
	before := bundled(t, l.Show, w.signs.Key)

	sink, in := &recorder{}, make(chan Entry, 64)
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context(), in, sink) }()
	var sizes []uint64
	for i, e := range entries[100:] {
		if i%900 == 450 {
			sizes = append(sizes, w.mustHandOver(l, byte(len(sizes)+1)))
		}
		in <- e
	}
	close(in)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(sink.seqs) != n-100 {
		t.Fatalf("%d events were handed on of %d", len(sink.seqs), n-100)
	}
	for i, seq := range sink.seqs {
		if seq != uint64(100+i+1) {
			t.Fatalf("hand-over %d is of %d", i, seq)
		}
	}
	if len(sizes) != 3 || fmt.Sprint(sizes) != fmt.Sprint(w.turned) {
		t.Fatalf("handed over at %v, the owner was told %v", sizes, w.turned)
	}
	check := func(t *testing.T, show Show) {
		data := bundled(t, show, w.signs.Key)
		for i := range byte(4) {
			ev, err := judge(t, data, policyOf(t, "log "+keyNumber(t, i).Key))
			if err != nil || ev.Checkpoint.Size != n+3 || !ev.Complete {
				t.Errorf("who pinned key %d: %v", i, err)
			}
		}
		if _, err := judge(t, data, policyOf(t, "log "+keyNumber(t, 9).Key)); !errors.Is(err, proof.ErrUntrusted) {
			t.Errorf("who pinned a key that is none of the ledger's: %v", err)
		}
	}
	check(t, l.Show)
	if rep, err := l.Verify(t.Context(), nil); err != nil || !rep.OK {
		t.Errorf("the running ledger: %+v, %v", rep, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, w.options(fs), n+3)
	if rep, err := VerifyLeaves(t.Context(), w.options(fs), nil); err != nil || !rep.OK {
		t.Errorf("without secrets: %+v, %v", rep, err)
	}
	r, err := OpenReader(w.options(fs))
	if err != nil {
		t.Fatal(err)
	}
	check(t, r.Show)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// What was made before verifies for ever, under the key of its time.
	old := policyOf(t, "log "+w.signs.Key, fmt.Sprintf("log %s until %d", keyNumber(t, 0).Key, sizes[0]))
	if _, err := judge(t, before, old); err != nil {
		t.Errorf("a bundle from before: %v", err)
	}
	l = mustOpen(t, w.options(fs))
	defer l.Close()
	if _, err := w.handOver(l, 2); err == nil || !strings.Contains(err.Error(), "signed before") {
		t.Errorf("back to a key that was retired: %v", err)
	}
	w.next = nil
	if _, err := l.HandOver(keyNumber(t, 7), "", "local:dana", time.Now()); err == nil {
		t.Error("without a reason")
	}
	foreign, _, err := proof.Keys("evil.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.HandOver(&Successor{foreign, keyNumber(t, 8).Key}, "routine", "local:dana", time.Now()); err == nil {
		t.Error("to a key that is not named as the ledger is")
	}
}

// The contents of old records are pruned, and the handovers among them still
// lead from key to key.
func TestAHandoverIsPrunedByNobody(t *testing.T) {
	w := &owner{t: t, signs: keyNumber(t, 0)}
	fs := newMem(t)
	l := mustOpen(t, w.options(fs))
	entries := benchEntries(400)
	mustFeed(t, l, &recorder{}, entries[:10]...)
	size := w.mustHandOver(l, 1)
	mustFeed(t, l, &recorder{}, entries[10:]...)
	if _, err := l.sign(); err != nil {
		t.Fatal(err)
	}
	p, err := l.Prune(Prune{LastSeq: 300, Archives: []proof.Archive{{File: "a"}}, Reason: "age", Actor: "local:dana"}, time.Now())
	if err != nil || p.Records < size {
		t.Fatalf("%d pruned, the handover is the last of %d: %v", p.Records, size, err)
	}
	b, err := Collect(t.Context(), l.Show, w.signs.Key, schemas.ShowRequest{From: 390})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verify(policyOf(t, "log "+keyNumber(t, 0).Key)); err != nil {
		t.Errorf("who pinned the former key: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, w.options(fs), 402)
}

// Somebody cuts the power at each write and sync of a handover, and keeps
// nothing, half or all of what was not synced. The next start ends it, or knows
// nothing of it; then the ledger goes on, and verifies under the key that the
// owner's files name.
func TestAHandoverThatCrashesAnywhereIsEndedByTheNextStart(t *testing.T) {
	entries := benchEntries(60)
	steps, ended, untouched := 0, 0, 0
	for step := 1; ; step++ {
		w := &owner{t: t, signs: keyNumber(t, 0)}
		mem := newMem(t)
		l := mustOpen(t, w.options(mem))
		mustFeed(t, l, &recorder{}, entries[:40]...)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		count, armed := 0, false
		var left *vfs.MemFS
		var found Options
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !armed || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
				return nil
			}
			if count++; count == step {
				left = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: step % 3 * 50, RNG: clonerng(uint64(step))})
				found = w.options(left)
			}
			return nil
		}))
		l = mustOpen(t, w.options(fs))
		mu.Lock()
		armed = true
		mu.Unlock()
		w.mustHandOver(l, 1)
		mu.Lock()
		armed = false
		mu.Unlock()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if left == nil {
			break // the handover has no more steps
		}
		steps++
		// The owner's files are those of that moment, and so is what turns them.
		again := &owner{t: t, signs: &Successor{found.Signer, found.Key}, next: found.Next}
		l, err := Open(again.options(left))
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		mustFeed(t, l, &recorder{}, entries[l.From()-1:]...)
		if _, err := l.sign(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		records := uint64(60)
		if again.next == nil {
			records++
			ended++
			if ring := l.keys(); len(ring.former) != 1 || again.signs.Key != keyNumber(t, 1).Key {
				t.Fatalf("step %d: %d keys were replaced, %s signs", step, len(ring.former), again.signs.Key)
			}
		} else {
			untouched++
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, again.options(left), records)
		// And what was not begun can be begun anew.
		l = mustOpen(t, again.options(left))
		again.mustHandOver(l, 2)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, again.options(left), records+1)
	}
	t.Logf("%d steps: %d ended by the next start, %d not begun", steps, ended, untouched)
	if steps < 6 || ended == 0 || untouched == 0 {
		t.Errorf("%d steps, %d of them ended, %d not begun: the test shows nothing", steps, ended, untouched)
	}
}

// Where the owner's files can't be written, nothing is signed behind the
// handover: not with the key that is retired, nor with one that a start does
// not know.
func TestNothingIsSignedBehindAHandoverThatTheFilesDontKnow(t *testing.T) {
	w := &owner{t: t, signs: keyNumber(t, 0)}
	fs := newMem(t)
	l := mustOpen(t, w.options(fs))
	entries := benchEntries(20)
	mustFeed(t, l, &recorder{}, entries[:10]...)
	w.fail = errors.New("the disk is full")
	if _, err := w.handOver(l, 1); !errors.Is(err, ErrHalted) || !strings.Contains(err.Error(), "the disk is full") {
		t.Fatal(err)
	}
	if err := feed(l, &recorder{}, entries[10:]...); err == nil {
		t.Error("it went on")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lost := w.options(fs)
	lost.Next = nil
	if _, err := Open(lost); err == nil || !strings.Contains(err.Error(), "ledger.next.note") {
		t.Errorf("without the successor's secret: %v", err)
	}
	w.fail = nil
	l = mustOpen(t, w.options(fs))
	mustFeed(t, l, &recorder{}, entries[10:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if w.next != nil || len(w.turned) != 1 {
		t.Errorf("next %v, turned %v", w.next, w.turned)
	}
	mustVerify(t, w.options(fs), 21)
}
