package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

var pruneAt = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func prune(t *testing.T, l *Ledger, last uint64) Prune {
	t.Helper()
	p, err := l.Prune(Prune{LastSeq: last, Archives: []proof.Archive{{File: "a.bundle", SHA256: "00", FirstSeq: 1, LastSeq: last}},
		Reason: "retention", Actor: "op"}, pruneAt)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAPrunedLedgerVerifiesAndProvesAllThatItDid: what was proven before, and
// what is asked for after.
func TestAPrunedLedgerVerifiesAndProvesAllThatItDid(t *testing.T) {
	o, entries, fs := tamperOptions(t)
	l := mustOpen(t, o)
	early, err := l.Prove(t.Context(), 150)
	if err != nil {
		t.Fatal(err)
	}
	last, err := l.Prunable(time.Time{}, 450)
	if err != nil || last == 0 || last > 450 {
		t.Fatalf("prunable up to %d, %v", last, err)
	}
	p := prune(t, l, last)
	if p.Records == 0 || p.Records > 450 {
		t.Fatalf("%+v", p)
	}
	if _, err := l.Event(10); !errors.Is(err, ErrPruned) {
		t.Errorf("a pruned event is read: %v", err)
	}
	if _, err := l.Event(p.Records + 1); err != nil {
		t.Errorf("the first event that was kept: %v", err)
	}
	if err := l.Replay(1, func(*schemas.Event) error { return nil }); !errors.Is(err, ErrPruned) {
		t.Errorf("a fold from the first event passes over what is missing: %v", err)
	}
	rep, err := l.Read(schemas.ReadRequest{Limit: 1})
	if err != nil || rep.Pruned != p.Records || len(rep.Records) != 1 || rep.Records[0].Seq != p.Records+1 {
		t.Errorf("read: %+v, %v", rep, err)
	}
	if _, r, err := proof.CheckInclusion(early, o.Verifier); err != nil {
		t.Errorf("a proof from before: %v %v", r, err)
	}
	late, err := l.Prove(t.Context(), 150)
	if err != nil {
		t.Fatalf("a pruned event can't be proven: %v", err)
	}
	if _, _, err := proof.CheckInclusion(late, o.Verifier); err != nil {
		t.Error(err)
	}
	for _, size := range []uint64{1, 200, 400, 600} {
		if _, _, err := l.ProveConsistency(size); err != nil {
			t.Errorf("consistency with %d records: %v", size, err)
		}
	}
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	if rep, err := l.Verify(t.Context(), nil); err != nil || !rep.OK || rep.Records != 601 {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 601)
	// It opens, goes on, and is pruned again, from where it was.
	l = mustOpen(t, o)
	mustFeed(t, l, &recorder{}, benchEntries(700)[600:]...)
	if seq, err := l.Pruned(); err != nil || seq != p.Records {
		t.Errorf("pruned up to %d, %v", seq, err)
	}
	again := prune(t, l, 590)
	if again.Records <= p.Records {
		t.Errorf("%d, then %d", p.Records, again.Records)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 702)
	_, _ = entries, fs
}

// TestPruneRefusesWhatIsNotSigned, and what would leave nobody to ask.
func TestPruneRefusesWhatItMustNotDelete(t *testing.T) {
	o, _, _ := tamperOptions(t)
	l := mustOpen(t, o)
	defer l.Close()
	archives := []proof.Archive{{File: "a", SHA256: "0", FirstSeq: 1, LastSeq: 1}}
	for name, p := range map[string]Prune{
		"no archive": {LastSeq: 300, Reason: "r", Actor: "a"},
		"no reason":  {LastSeq: 300, Archives: archives, Actor: "a"},
		"no actor":   {LastSeq: 300, Archives: archives, Reason: "r"},
		"nothing":    {LastSeq: 0, Archives: archives, Reason: "r", Actor: "a"},
	} {
		if _, err := l.Prune(p, pruneAt); err == nil {
			t.Errorf("%s: pruned", name)
		}
	}
	l.trusted.Store(false)
	if _, err := l.Prune(Prune{LastSeq: 300, Archives: archives, Reason: "r", Actor: "a"}, pruneAt); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("with a tail that was not compared: %v", err)
	}
	l.trusted.Store(true)
	prune(t, l, 300)
	if _, err := l.Prune(Prune{LastSeq: 200, Archives: archives, Reason: "r", Actor: "a"}, pruneAt); err == nil {
		t.Error("pruned what is pruned")
	}
}

// TestContentsThatAreMissingWithoutARecordAreFound: somebody with the database
// deletes what happened, and calls it pruned.
func TestContentsThatAreMissingWithoutARecordAreFound(t *testing.T) {
	for name, attack := range map[string]func(f *forger, end, by uint64){
		"no row":                      func(f *forger, end, by uint64) {},
		"a row that names an event":   func(f *forger, end, by uint64) { f.set(prunedKey, prunedRow{end, by}.append(nil)) },
		"a row that names nothing":    func(f *forger, end, by uint64) { f.set(prunedKey, prunedRow{end, 10_000}.append(nil)) },
		"a row that is cut":           func(f *forger, end, by uint64) { f.set(prunedKey, []byte{1}) },
		"a row that names the future": func(f *forger, end, by uint64) { f.set(prunedKey, prunedRow{end, 5}.append(nil)) },
	} {
		o, _, _ := tamperOptions(t)
		forge(t, o, func(f *forger) {
			f.deleteContents(0, 128)
			attack(f, 128, 500)
		})
		if rep := verify(t, o); rep.OK {
			t.Errorf("%s: %+v", name, rep)
		}
	}
	// More than the record says: its row is raised.
	o, _, _ := tamperOptions(t)
	l := mustOpen(t, o)
	p := prune(t, l, 200)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	forge(t, o, func(f *forger) {
		f.deleteContents(p.Records, p.Records+128)
		f.set(prunedKey, prunedRow{p.Records + 128, 600}.append(nil))
	})
	if rep := verify(t, o); rep.OK {
		t.Errorf("more is missing than was pruned: %+v", rep)
	}
	// And a pruned content that is put back is no part of the ledger.
	o, _, _ = tamperOptions(t)
	l = mustOpen(t, o)
	prune(t, l, 200)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	forge(t, o, func(f *forger) { f.set(numberKey(keyContents, 0), []byte{0}) })
	if rep := verify(t, o); rep.OK {
		t.Errorf("a row that no record accounts for: %+v", rep)
	}
}

// deleteContents removes the blocks of contents that begin in [from, to).
func (f *forger) deleteContents(from, to uint64) {
	f.t.Helper()
	if err := f.db.DeleteRange(numberKey(keyContents, from), numberKey(keyContents, to), pebble.Sync); err != nil {
		f.t.Fatal(err)
	}
}

// TestABackupOfALedgerUnderLoadIsALedger: it verifies, opens, and reaches the
// anchor that was made with it.
func TestABackupOfALedgerUnderLoadIsALedger(t *testing.T) {
	o, _, fs := tamperOptions(t)
	l := mustOpen(t, o)
	entries := benchEntries(4000)
	in, ran := make(chan Entry, 1024), make(chan error, 1)
	go func() { ran <- l.Run(t.Context(), in, &recorder{}) }()
	go func() {
		defer close(in)
		for _, e := range entries[600:] {
			in <- e
		}
	}()
	var backups []Options
	for i := range 3 {
		b := o
		b.Dir, b.AnchorDir = fmt.Sprintf("backup%d/ledger", i), fmt.Sprintf("backup%d/anchor", i)
		if err := fs.MkdirAll(fmt.Sprintf("backup%d", i), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Backup(b.Dir, b.AnchorDir); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Backup(b.Dir, b.AnchorDir); err == nil {
			t.Error("a backup went over another")
		}
		backups = append(backups, b)
	}
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	whole := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		rep := verify(t, b)
		if !rep.OK || rep.Records < 600 {
			t.Fatalf("%+v", rep)
		}
		// What came after it is taken from EVENTS, and leads to the same root.
		r := mustOpen(t, b)
		mustFeed(t, r, &recorder{}, entries[r.From()-1:]...)
		if got := r.Head(); got.Root != whole.Root || got.Size != whole.Size {
			t.Errorf("restored and caught up: %+v, want %+v", got, whole)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOldBackupUnderANewerAnchorIsRefused: a backup must not be the way to
// roll a ledger back.
func TestAnOldBackupUnderANewerAnchorIsRefused(t *testing.T) {
	o, _, fs := tamperOptions(t)
	l := mustOpen(t, o)
	old := o
	old.Dir, old.AnchorDir = "old/ledger", "old/anchor"
	if err := fs.MkdirAll("old", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Backup(old.Dir, old.AnchorDir); err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, &recorder{}, benchEntries(700)[600:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old.AnchorDir = o.AnchorDir
	if rep := verify(t, old); rep.OK || rep.FirstBadSeq != 601 {
		t.Errorf("%+v", rep)
	}
	r, err := Open(old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.sign(); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("it signs: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNothingOfAnErasedAgentIsLeftInTheDatabase: contents are sealed from the
// first byte, and the key is overwritten where it stood.
func TestNothingOfAnErasedAgentIsLeftOnTheDisk(t *testing.T) {
	fs := newMem(t)
	o := testOptions(t, fs)
	l := mustOpen(t, o)
	entries := benchEntries(200)
	mustFeed(t, l, &recorder{}, entries...)
	table, err := readFile(fs, fs.PathJoin(o.AnchorDir, subjectsFile))
	if err != nil {
		t.Fatal(err)
	}
	id := l.subjects.id("agent-7")
	if !bytes.Contains(table, id[:]) {
		t.Fatal("the agent has no row")
	}
	if err := l.Erase("agent-7", "data protection officer", "article 17", pruneAt); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{o.Dir, o.AnchorDir} {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := readFile(fs, fs.PathJoin(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, entries[7].Data[:32]) || bytes.Contains(b, id[:]) || strings.Contains(string(b), "agent-7") {
				t.Errorf("%s holds something of the erased agent", name)
			}
		}
	}
	mustVerify(t, o, 201)
}
