package ledger

import (
	"bytes"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Somebody copied the ledger's secret, and not yet the agents' keys. The secret
// is replaced, twice: with what they have nothing opens any more, everything
// recorded before verifies and reads as it did, and what was erased stays so.
func TestACopyOfTheLedgersSecretOpensNothingOnceItIsReplaced(t *testing.T) {
	fs := newMem(t)
	o := testOptions(t, fs)
	entries := benchEntries(60)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[:30]...)
	gone := mustEvent(t, entries[0]).Agent
	if err := l.Erase(gone, "court", "order", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	before := bundled(t, l.Show, ledgerVKey(t))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	table := func() []byte {
		b, err := readFile(fs, "data/anchor/subjects")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	stolen, lookup, had := o.Secret, LookupOf(o.Secret), table()
	now := o
	now.Lookup = lookup
	for round := range byte(2) {
		to := [32]byte{9, 9, round}
		if _, err := Rewrap(fs, "data/anchor", [32]byte{7}, to); err == nil {
			t.Error("rewrapped from a secret that is none")
		}
		n, err := Rewrap(fs, "data/anchor", now.Secret, to)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		again := table()
		if m, err := Rewrap(fs, "data/anchor", now.Secret, to); err != nil || m != n || !bytes.Equal(again, table()) {
			t.Errorf("done again, as behind a crash: %d of %d, %v", m, n, err)
		}
		now.Secret = to
		l = mustOpen(t, now)
		if l.subjects.damaged != 0 || l.subjects.find(gone) != nil {
			t.Fatalf("%d damaged, the erased one: %v", l.subjects.damaged, l.subjects.find(gone))
		}
		part := entries[30+15*int(round) : 45+15*int(round)]
		mustFeed(t, l, &recorder{}, part...) // known agents keep their keys, new ones get some
		if round == 1 {
			after := bundled(t, l.Show, ledgerVKey(t))
			for _, data := range [][]byte{before, after} {
				if ev, err := judge(t, data, policyOf(t, "log "+ledgerVKey(t))); err != nil || ev.Redacted == 0 {
					t.Error(err)
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, now, 46+15*uint64(round))
	}
	for i := 0; i < len(had); i += rowSize {
		row := had[i : i+rowSize]
		if !bytes.Equal(row, make([]byte, rowSize)) && bytes.Contains(table(), row[rowSealed:]) {
			t.Errorf("row %d is left as it was under the former secret", i/rowSize)
		}
	}
	thief := now
	thief.Secret = stolen
	s, err := openSubjects(fs, "data/anchor", stolen, lookup, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.byLookup) != 0 || s.damaged == 0 {
		t.Errorf("with the stolen secret %d keys open", len(s.byLookup))
	}
	if rep := verify(t, thief); rep.OK {
		t.Error("the contents open with the stolen secret")
	}
}

func mustEvent(t testing.TB, e Entry) *schemas.Event {
	t.Helper()
	ev, err := schemas.DecodeAt(e.Seq, e.Subject, e.Header, e.Data)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}
