package compare

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

const origin = "acme.example"

func keys(t testing.TB) (note.Signer, note.Verifier) {
	t.Helper()
	s, v, err := proof.Keys(origin, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

// body is 256 bytes that no compression shortens.
func body(i int) []byte {
	b := make([]byte, 0, 256)
	for j := range 256 / sha256.Size {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(8*i+j)))
		b = append(b, sum[:]...)
	}
	return b
}

func entries(t testing.TB, n int) []ledger.Entry {
	t.Helper()
	out := make([]ledger.Entry, n)
	at := time.Unix(1_700_000_000, 0).UTC()
	for i := range out {
		data := body(i)
		e := schemas.Event{Kind: schemas.MessageAccepted, Agent: fmt.Sprintf("agent-%d", i%64), ID: fmt.Sprintf("%032x", i+1),
			Source: "intake/1", Time: at.Add(time.Duration(i) * time.Microsecond),
			Trace:     schemas.Trace{ID: fmt.Sprintf("%032x", i/4+1), Span: fmt.Sprintf("%016x", i+1)},
			Operation: "report", Action: schemas.Action{Verb: schemas.VerbSend, Resource: "writer-2"}, To: "writer-2",
			JTI: fmt.Sprintf("%032x", i%64+1), Request: fmt.Sprintf("%032x", i+1), Expires: at.Add(24 * time.Hour),
			Digest: schemas.Sum(data), Data: data}
		subject, h, wire, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = ledger.Entry{Seq: uint64(i + 1), Subject: subject, Header: h, Data: wire}
	}
	return out
}

func open(t testing.TB, dir string) *ledger.Ledger {
	t.Helper()
	s, v := keys(t)
	l, err := ledger.Open(ledger.Options{Dir: filepath.Join(dir, "ledger"), AnchorDir: filepath.Join(dir, "anchor"),
		Signer: s, Verifier: v, Secret: [32]byte{1}, StreamID: 1})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// seen tells up to which sequence events are durable.
type seen chan uint64

func (s seen) Durable(batch []*schemas.Event) error {
	s <- batch[len(batch)-1].Seq
	return nil
}

func (s seen) wait(seq uint64) {
	for at := range s {
		if at >= seq {
			return
		}
	}
}

// running feeds a ledger through a channel until stop is called.
func running(t testing.TB, l *ledger.Ledger) (in chan ledger.Entry, s seen, stop func()) {
	in, s = make(chan ledger.Entry, 2048), make(seen, 1<<16)
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background(), in, s) }()
	return in, s, func() {
		close(in)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
