package ledger

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

func TestEveryEventIsHandedOnOnceInOrderAndVerifies(t *testing.T) {
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(3000)
	l := mustOpen(t, o)
	sink := &recorder{}
	mustFeed(t, l, sink, entries[:1000]...)
	mustFeed(t, l, sink, entries[900:]...) // the overlap is skipped
	for i, seq := range sink.seqs {
		if seq != uint64(i+1) {
			t.Fatalf("hand-over %d is of sequence %d", i, seq)
		}
	}
	if len(sink.seqs) != len(entries) {
		t.Fatalf("%d of %d handed on", len(sink.seqs), len(entries))
	}
	online, err := l.Verify(context.Background(), nil)
	if err != nil || !online.OK {
		t.Fatalf("online: %+v, %v", online, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := mustVerify(t, o, 3000); rep.Root != online.Root {
		t.Errorf("root %s offline, %s online", rep.Root, online.Root)
	}
	if rep, err := VerifyLeaves(context.Background(), o, nil); err != nil || !rep.OK {
		t.Errorf("leaves alone: %+v, %v", rep, err)
	}
}

// oracle computes chain and root of events by other means: the public record
// form and another library's tree.
func oracle(t testing.TB, l *Ledger, n uint64) proof.Hash {
	t.Helper()
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	var prev proof.Hash
	for i := range n {
		leaf, err := c.leaf(i)
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.ParseRecord(leaf)
		if err != nil || r.Prev != prev || r.Index != i {
			t.Fatalf("record %d: %+v, %v", i, r, err)
		}
		copy(prev[:], rfc6962.DefaultHasher.HashLeaf(leaf))
		if err := tree.Append(bytes.Clone(prev[:]), nil); err != nil {
			t.Fatal(err)
		}
	}
	var root proof.Hash
	b, err := tree.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		b = rfc6962.DefaultHasher.EmptyRoot()
	}
	copy(root[:], b)
	return root
}

func TestRootsAgreeWithAnotherLibrary(t *testing.T) {
	entries := benchEntries(1100)
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	sizes := []int{0, 1, 2, 3, 63, 64, 65, 255, 256, 257, 511, 513, 1024, 1100}
	for i := 1; i < len(sizes); i++ {
		mustFeed(t, l, &recorder{}, entries[sizes[i-1]:sizes[i]]...)
		n := uint64(sizes[i])
		root := oracle(t, l, n)
		if h := l.Head(); h.Root != hex.EncodeToString(root[:]) || h.Size != n || h.StreamSeq != n {
			t.Fatalf("%d records: head %+v, oracle %x", n, h, root)
		}
		tree, err := loadTree(l.db, n)
		if err != nil || tree.root() != root {
			t.Fatalf("%d records: rebuilt root %v, oracle %v (%v)", n, tree.root(), root, err)
		}
	}
}

func TestProofsVerifyOffline(t *testing.T) {
	entries := benchEntries(1500)
	o := testOptions(t, newMem(t))
	l := mustOpen(t, o)
	defer l.Close()
	mustFeed(t, l, &recorder{}, entries[:700]...)
	old := l.current.Load().Checkpoint
	mustFeed(t, l, &recorder{}, entries[700:]...)
	for _, seq := range []uint64{1, 2, 255, 256, 257, 700, 701, 1024, 1499, 1500} {
		p, err := l.Prove(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		r, c, err := proof.CheckInclusion(p, o.Verifier)
		if err != nil || r.StreamSeq != seq || c.Size < seq {
			t.Fatalf("sequence %d: %+v, %+v, %v", seq, r, c, err)
		}
		ev, err := l.Event(seq)
		if err != nil || ev.Time.UnixNano() != r.Time {
			t.Fatalf("sequence %d: event %+v, %v", seq, ev, err)
		}
		p.Leaf = p.Leaf[:20] + "B" + p.Leaf[21:]
		if _, _, err := proof.CheckInclusion(p, o.Verifier); !errors.Is(err, proof.ErrProof) {
			t.Fatalf("sequence %d: a changed leaf was believed: %v", seq, err)
		}
	}
	path, now, err := l.ProveConsistency(old.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.CheckConsistency(old, now, path); err != nil {
		t.Error(err)
	}
	old.Root[0] ^= 1
	if err := proof.CheckConsistency(old, now, path); !errors.Is(err, proof.ErrProof) {
		t.Errorf("another history was believed: %v", err)
	}
	if _, err := l.Prove(context.Background(), 1501); !errors.Is(err, ErrNotFound) {
		t.Errorf("a proof of nothing: %v", err)
	}
}

func TestAGapHaltsAndNamesTheSequence(t *testing.T) {
	entries := benchEntries(20)
	o := testOptions(t, newMem(t))
	l := mustOpen(t, o)
	sink := &recorder{}
	err := feed(l, sink, append(slices.Clone(entries[:9]), entries[12:]...)...)
	if !errors.Is(err, ErrGap) || haltSeq(t, err) != 10 {
		t.Fatalf("a gap at 10: %v", err)
	}
	if sink.last() != 9 {
		t.Errorf("handed on up to %d, want what comes before the gap", sink.last())
	}
	if err := feed(l, sink, entries[9:]...); !errors.Is(err, ErrHalted) {
		t.Errorf("it went on after halting: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	if err := l.RecordGap(12, "lost with the disk", "operator", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, sink, entries[12:]...)
	if ev, err := l.Event(14); err != nil || ev.Seq != 14 {
		t.Errorf("event behind the gap: %+v, %v", ev, err)
	}
	if _, err := l.Event(11); !errors.Is(err, ErrNotFound) {
		t.Errorf("a lost event: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 18)
}

func TestAnUndecodableEventHaltsAndWhatIsBeforeItIsKept(t *testing.T) {
	entries := benchEntries(100)
	bad := entries[70]
	bad.Header = schemas.Header{"ce-id": {"x"}}
	entries[70] = bad
	o := testOptions(t, newMem(t))
	l := mustOpen(t, o)
	sink := &recorder{}
	err := feed(l, sink, entries...)
	if !errors.Is(err, schemas.ErrEvent) || haltSeq(t, err) != 71 || sink.last() != 70 {
		t.Fatalf("bad event at 71: %v; handed on up to %d", err, sink.last())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 70)
}

func TestASinkThatFailsEndsRunAndGetsNothingMore(t *testing.T) {
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	broken := errors.New("broken")
	if err := feed(l, &recorder{fail: broken}, benchEntries(5000)...); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

func TestTransportHeadersAreNoPartOfTheRecord(t *testing.T) {
	entries := benchEntries(5)
	roots := map[string]bool{}
	fs := newMem(t)
	o := testOptions(t, fs)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries...)
	roots[l.Head().Root] = true
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The database is lost, the agents' keys are not: EVENTS was published
	// again meanwhile, with other transport headers.
	if err := fs.RemoveAll("data/ledger"); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		e.Header["Nats-Expected-Last-Sequence"] = []string{"7"}
	}
	l = mustOpen(t, o)
	defer l.Close()
	sink := &recorder{}
	mustFeed(t, l, sink, entries...)
	roots[l.Head().Root] = true
	if len(roots) != 1 {
		t.Errorf("roots differ: %v", roots)
	}
	if sink.last() != 5 {
		t.Errorf("handed on up to %d after the anchor was reached", sink.last())
	}
}

func TestReadFiltersByAgentTraceAndRange(t *testing.T) {
	entries := benchEntries(1000)
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	mustFeed(t, l, &recorder{}, entries...)
	var all []uint64
	for from := uint64(1); from != 0; {
		rep, err := l.Read(schemas.ReadRequest{From: from, Agent: "agent-7", Limit: 3, Data: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rep.Records {
			e := entries[r.Seq-1]
			if r.Subject != e.Subject || !bytes.Equal(r.Data, e.Data) || len(r.Header) != len(e.Header) {
				t.Fatalf("sequence %d reads back as %+v", r.Seq, r)
			}
			all = append(all, r.Seq)
		}
		from = rep.Next
	}
	var want []uint64
	for i := 8; i <= 1000; i += 64 {
		want = append(want, uint64(i))
	}
	if !slices.Equal(all, want) {
		t.Errorf("agent-7: %v, want %v", all, want)
	}
	trace := "00000000000000000000000000000010" // events 61 to 64
	rep, err := l.Read(schemas.ReadRequest{Trace: trace})
	if err != nil || len(rep.Records) != 4 || rep.Records[0].Seq != 61 || rep.Records[0].Data != nil || rep.Next != 0 {
		t.Errorf("trace: %+v, %v", rep, err)
	}
	rep, err = l.Read(schemas.ReadRequest{Trace: trace, Agent: "agent-61"})
	if err != nil || len(rep.Records) != 1 || rep.Records[0].Seq != 62 {
		t.Errorf("trace and agent: %+v, %v", rep, err)
	}
	rep, err = l.Read(schemas.ReadRequest{From: 990, To: 993})
	if err != nil || len(rep.Records) != 4 || rep.Head != 1000 {
		t.Errorf("range: %+v, %v", rep, err)
	}
	if rep, err = l.Read(schemas.ReadRequest{Agent: "nobody"}); err != nil || len(rep.Records) != 0 {
		t.Errorf("nobody: %+v, %v", rep, err)
	}
	for _, q := range []schemas.ReadRequest{{Data: true, Begin: -1}, {Data: true, Begin: pageBytes + 1}} {
		if _, err = l.Read(q); err == nil {
			t.Errorf("read %+v", q)
		}
	}
	if _, err = l.Read(schemas.ReadRequest{Limit: 1001}); err == nil {
		t.Error("a page without bounds")
	}
	var replayed []uint64
	if err := l.Replay(995, func(e *schemas.Event) error { replayed = append(replayed, e.Seq); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(replayed, []uint64{995, 996, 997, 998, 999, 1000}) {
		t.Errorf("replayed %v", replayed)
	}
}

func TestACheckpointCoversWhatIsAskedFor(t *testing.T) {
	o := testOptions(t, newMem(t))
	l := mustOpen(t, o)
	defer l.Close()
	in := make(chan Entry, 64)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, in, &recorder{}) }()
	for _, e := range benchEntries(10) {
		in <- e
	}
	h, err := l.Checkpoint(context.Background(), 10)
	if err != nil {
		t.Fatal(err)
	}
	c, err := proof.OpenCheckpoint([]byte(h.Checkpoint), o.Verifier)
	if err != nil || c.Size != 10 || hex.EncodeToString(c.Root[:]) != h.Root {
		t.Fatalf("%+v, %+v, %v", h, c, err)
	}
	gone, stop := context.WithCancel(context.Background())
	stop()
	if _, err := l.Checkpoint(gone, 11); !errors.Is(err, context.Canceled) {
		t.Errorf("a checkpoint of what is not there: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

func TestALoneEventIsNotHeldBackForABatch(t *testing.T) {
	in, slots := make(chan Entry, 8), make(chan struct{}, inFlight)
	in <- Entry{Seq: 1}
	batch, more, err := gather(context.Background(), nil, nil, in, slots)
	if err != nil || !more || len(batch) != 1 || len(slots) != 1 {
		t.Fatalf("%v, %v, %v", batch, more, err)
	}
}

func TestErasedContentsCantBeOpenedAndEveryProofHolds(t *testing.T) {
	entries := benchEntries(300)
	fs := newMem(t)
	o := testOptions(t, fs)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[:200]...)
	before, err := l.Prove(context.Background(), 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Erase("agent-5", "data protection officer", "request 17", time.Unix(2, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Event(6); !errors.Is(err, ErrErased) {
		t.Errorf("an erased event: %v", err)
	}
	mustFeed(t, l, &recorder{}, entries[200:]...)
	if ev, err := l.Event(262); err != nil || ev.Agent != "agent-5" {
		t.Errorf("the agent's next event: %+v, %v", ev, err)
	}
	seen := 0
	if err := l.Replay(0, func(*schemas.Event) error { seen++; return nil }); err != nil || seen != 300-4 {
		t.Errorf("replay: %d events, %v", seen, err)
	}
	after, err := l.Prove(context.Background(), 6)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []schemas.Proof{before, after} {
		if _, _, err := proof.CheckInclusion(p, o.Verifier); err != nil {
			t.Error(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 301)
}

func TestAKeyThatIsMissingWithoutARecordIsFound(t *testing.T) {
	fs := newMem(t)
	o, _ := build(t, fs, 100)
	s, err := openSubjects(fs, o.AnchorDir, o.Secret, o.Lookup, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.destroy("agent-5"), s.close()); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, o); rep.OK || rep.FirstBadSeq != 6 {
		t.Errorf("%+v", rep)
	}
	l := mustOpen(t, o)
	defer l.Close()
	if err := l.Replay(0, func(*schemas.Event) error { return nil }); !errors.Is(err, ErrTampered) {
		t.Errorf("replay went on without the events: %v", err)
	}
}

func TestRepairGivesEventsBackUnderTheirSequences(t *testing.T) {
	entries := benchEntries(50)
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	mustFeed(t, l, &recorder{}, entries...)
	last := uint64(40)
	n, err := l.RepairTail(context.Background(), 40, func(_ context.Context, e Entry) (uint64, error) {
		want := entries[last]
		if e.Seq != want.Seq || e.Subject != want.Subject || !bytes.Equal(e.Data, want.Data) {
			t.Errorf("published %+v", e)
		}
		last++
		return last, nil
	})
	if err != nil || n != 10 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := l.RepairTail(context.Background(), 40, func(context.Context, Entry) (uint64, error) { return 99, nil }); err == nil {
		t.Error("another sequence was accepted")
	}
	if n, err := l.RepairTail(context.Background(), 50, nil); n != 0 || err != nil {
		t.Errorf("nothing was lost: %d, %v", n, err)
	}
}

func TestARecreatedStreamIsRefused(t *testing.T) {
	o, _ := build(t, newMem(t), 10)
	o.StreamID++
	if _, err := Open(o); !errors.Is(err, ErrTampered) {
		t.Error(err)
	}
}

func TestTwoLedgersOverOneFolderAreRefused(t *testing.T) {
	o := testOptions(t, newMem(t))
	l := mustOpen(t, o)
	defer l.Close()
	if _, err := Open(o); err == nil {
		t.Error("a second ledger was opened")
	}
	if _, err := Verify(context.Background(), o, nil); !errors.Is(err, errInUse) {
		t.Errorf("verify of a ledger in use: %v", err)
	}
}

func TestAnAnchorThatSomebodyElseWroteHaltsTheLedger(t *testing.T) {
	fs := newMem(t)
	o := testOptions(t, fs)
	l := mustOpen(t, o)
	other, err := proof.Checkpoint{Origin: "acme.example", Size: 7}.Sign(o.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(fs, "data/anchor/head", other); err != nil {
		t.Fatal(err)
	}
	if err := feed(l, &recorder{}, benchEntries(5)...); !errors.Is(err, errAnchorMoved) {
		t.Errorf("run: %v", err)
	}
	if _, err := l.Checkpoint(context.Background(), 5); !errors.Is(err, ErrHalted) {
		t.Errorf("it signed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestAReaderHasTheHeadAndTheProofsOfTheLedgerItself(t *testing.T) {
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(700)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries...)
	var want []schemas.Proof
	for _, seq := range []uint64{1, 255, 700} {
		p, err := l.Prove(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, p)
	}
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	o.Signer = nil
	r, err := OpenReader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := r.Head(); err != nil || got != head {
		t.Errorf("head %+v (%v), the ledger said %+v", got, err, head)
	}
	for _, p := range want {
		got, err := r.Prove(p.Seq)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("sequence %d: %+v (%v), the ledger said %+v", p.Seq, got, err, p)
		}
	}
	var refused *schemas.Refusal
	if _, err := r.Prove(701); !errors.As(err, &refused) || refused.Code != schemas.CodeNotFound {
		t.Errorf("a proof of nothing: %v", err)
	}
}

func TestAReaderRefusesADatabaseThatTheAnchorWasNotSignedOver(t *testing.T) {
	fs := newMem(t)
	o, _ := build(t, fs, 300)
	for name, c := range map[string]proof.Checkpoint{
		"cut":     {Origin: "acme.example", Size: 301, Root: proof.Hash{1}},
		"another": {Origin: "acme.example", Size: 299, Root: proof.Hash{1}},
	} {
		msg, err := c.Sign(o.Signer)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(fs, "data/anchor/head", msg); err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Head(); !errors.Is(err, ErrTampered) || errors.Is(err, ErrHalted) || strings.Contains(err.Error(), "halted") {
			t.Errorf("%s: head: %v", name, err)
		}
		if _, err := r.Prove(7); !errors.Is(err, ErrTampered) {
			t.Errorf("%s: proof: %v", name, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody runs what is only read: it has not halted, and where it just does not
// open nobody tampered with it.
func TestAReaderSaysWhatIsTrueOfALedgerThatDoesNotOpen(t *testing.T) {
	fs := newMem(t)
	o, _ := build(t, fs, 20)
	missing := o
	missing.Dir = "data/elsewhere"
	if err := fs.MkdirAll(missing.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := OpenReader(missing)
	if err == nil || errors.Is(err, ErrTampered) || strings.Contains(err.Error(), "halted") {
		t.Errorf("an empty folder: %v", err)
	}
	r, err := OpenReader(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
