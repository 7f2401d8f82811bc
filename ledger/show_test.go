package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// bundleOf makes a bundle, as a file, and verifies it with package proof alone.
func bundleOf(t *testing.T, ask Show, q schemas.ShowRequest) *proof.Evidence {
	t.Helper()
	key, err := note.NewEd25519VerifierKey("acme.example", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := proof.TrustKey(key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := Collect(t.Context(), ask, key, q)
	if err != nil {
		t.Fatal(err)
	}
	data, err := made.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := proof.OpenBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := b.Verify(policy)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func seqsOf(ev *proof.Evidence) (seqs []uint64) {
	for _, e := range ev.Entries {
		seqs = append(seqs, e.Record.StreamSeq)
	}
	return seqs
}

// large is an event whose body does not fit into one page.
func large(t *testing.T, e Entry, size int) Entry {
	t.Helper()
	ev, err := schemas.DecodeAt(e.Seq, e.Subject, e.Header, e.Data)
	if err != nil {
		t.Fatal(err)
	}
	ev.Data = bytes.Repeat([]byte{7, 0, 9}, size/3)
	ev.Digest = schemas.Sum(ev.Data)
	if e.Subject, e.Header, e.Data, err = ev.Encode(); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestABundleOfARealLedgerVerifies(t *testing.T) {
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(1300)
	entries[40] = large(t, entries[40], schemas.MaxPayload)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[:700]...)
	if err := l.Erase("agent-5", "data protection officer", "request 17", time.Unix(2, 0)); err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, &recorder{}, entries[700:]...)
	check := func(t *testing.T, ask Show) {
		all := bundleOf(t, ask, schemas.ShowRequest{})
		if len(all.Entries) != 1301 || !all.Complete || all.Redacted != 11 || all.Checkpoint.Size != 1301 {
			t.Errorf("all: %d records, %+v, %d redacted", len(all.Entries), all.Checkpoint, all.Redacted)
		}
		if e := all.Entries[40].Event; e == nil || !bytes.Equal(e.Data, entries[40].Data) {
			t.Error("a large body came out changed")
		}
		if e := all.Entries[5]; e.Event != nil || e.Redacted == nil || e.Redacted.Reason != "request 17" {
			t.Errorf("an erased record: %+v", e)
		}
		some := bundleOf(t, ask, schemas.ShowRequest{From: 3, To: 8})
		if want := []uint64{3, 4, 5, 6, 7, 8, 700}; !slices.Equal(seqsOf(some), want) || !some.Complete || some.Redacted != 1 || some.First != 3 || some.Last != 8 {
			t.Errorf("a range: %v, spanning %d to %d", seqsOf(some), some.First, some.Last)
		}
		agent := bundleOf(t, ask, schemas.ShowRequest{Agent: "agent-7", To: 200})
		if want := []uint64{8, 72, 136, 200}; !slices.Equal(seqsOf(agent), want) || agent.Complete {
			t.Errorf("an agent: %v", seqsOf(agent))
		}
		trace := bundleOf(t, ask, schemas.ShowRequest{Trace: "00000000000000000000000000000003"})
		if want := []uint64{9, 10, 11, 12}; !slices.Equal(seqsOf(trace), want) {
			t.Errorf("a trace: %v", seqsOf(trace))
		}
		both := bundleOf(t, ask, schemas.ShowRequest{Trace: "00000000000000000000000000000003", Agent: "agent-9"})
		if want := []uint64{10}; !slices.Equal(seqsOf(both), want) {
			t.Errorf("an agent in a trace: %v", seqsOf(both))
		}
		if b, err := Collect(t.Context(), ask, "", schemas.ShowRequest{From: 5000}); err != nil || len(b.Records) != 0 {
			t.Errorf("nothing: %+v, %v", b, err)
		}
	}
	t.Run("running", func(t *testing.T) { check(t, l.Show) })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	o.Signer = nil
	r, err := OpenReader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Run("on disk", func(t *testing.T) { check(t, r.Show) })
}

// Pages are proven against the checkpoint of the first, whatever is recorded
// and signed in between.
func TestABundleOfAGrowingLedgerIsOfOneCheckpoint(t *testing.T) {
	entries := benchEntries(1400)
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	next := 1200
	mustFeed(t, l, &recorder{}, entries[:next]...)
	pages := 0
	ev := bundleOf(t, func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
		rep, err := l.Show(ctx, q)
		pages++
		mustFeed(t, l, &recorder{}, entries[next:next+10]...)
		next += 10
		if _, err := l.sign(); err != nil {
			t.Fatal(err)
		}
		return rep, err
	}, schemas.ShowRequest{})
	if pages < 3 || len(ev.Entries) != 1200 || ev.Checkpoint.Size != 1200 {
		t.Errorf("%d pages, %d records, checkpoint of %d", pages, len(ev.Entries), ev.Checkpoint.Size)
	}
	var refused *schemas.Refusal
	if _, err := l.Show(t.Context(), schemas.ShowRequest{Size: 1199}); !errors.As(err, &refused) || refused.Code != schemas.CodeNotFound {
		t.Errorf("a checkpoint that was never signed: %v", err)
	}
}

func TestCollectEndsWhereALedgerLeadsNowhere(t *testing.T) {
	calls := 0
	loop := func(context.Context, schemas.ShowRequest) (schemas.ShowReply, error) {
		calls++
		return schemas.ShowReply{More: true, Index: 3, Offset: 5}, nil
	}
	if _, err := Collect(t.Context(), loop, "", schemas.ShowRequest{}); err == nil || calls != 2 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	grows := func(_ context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
		return schemas.ShowReply{More: true, Index: q.Index + 1, Records: []schemas.Shown{{Index: q.Index, Payload: make([]byte, proof.MaxBundle/2)}}}, nil
	}
	if _, err := Collect(t.Context(), grows, "", schemas.ShowRequest{}); !errors.Is(err, ErrTooMuch) {
		t.Errorf("more than a bundle: %v", err)
	}
}
