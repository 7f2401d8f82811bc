package ledger

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/schemas"
)

// watching runs the watch; stop ends it, before the ledger is closed.
func watching(t *testing.T, l *Ledger) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.watch(ctx, 1, time.Millisecond) }()
	return func() {
		cancel()
		<-done
	}
}

func waitVerified(t *testing.T, l *Ledger, until func(schemas.Verified) bool) schemas.Verified {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		v := l.Head().Verified
		if v != nil && until(*v) {
			return *v
		}
		if time.Now().After(end) {
			t.Fatalf("the continuous verification says %+v", v)
		}
	}
}

// TestAChangedRecordIsAlarmedWhileTheLedgerGoesOn: somebody with the database
// changes an old record while the plane is down. A start reads the tail alone.
func TestAChangedRecordIsAlarmedWhileTheLedgerGoesOn(t *testing.T) {
	o, _, _ := tamperOptions(t)
	more := benchEntries(700)
	forge(t, o, func(f *forger) { f.changeByte(137, 90) })
	l := mustOpen(t, o)
	defer l.Close()
	defer watching(t, l)()
	v := waitVerified(t, l, func(v schemas.Verified) bool { return !v.OK })
	if v.FirstBadSeq != 137 || v.Error == "" {
		t.Errorf("found %+v, changed 137", v)
	}
	if err := l.alarm(); !errors.Is(err, ErrTampered) {
		t.Errorf("health: %v", err)
	}
	sink := &recorder{}
	mustFeed(t, l, sink, more[600:]...)
	if sink.last() != 700 {
		t.Errorf("handed on up to %d", sink.last())
	}
}

func TestAWholeLedgerIsVerifiedAgainAndAgain(t *testing.T) {
	o, _, _ := tamperOptions(t)
	l := mustOpen(t, o)
	defer l.Close()
	defer watching(t, l)()
	v := waitVerified(t, l, func(v schemas.Verified) bool { return v.Pass >= 3 })
	if !v.OK || v.Records != 600 || l.alarm() != nil {
		t.Errorf("%+v", v)
	}
}

// TestAFlippedByteOnDiskHaltsALiveLedger: the disk loses a bit under a running
// control plane. Nothing may be handed on, and the place is named.
func TestAFlippedByteOnDiskHaltsALiveLedger(t *testing.T) {
	o, _, fs := tamperOptions(t)
	names, err := fs.List(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, ".sst") })
	if at < 0 {
		t.Fatal("no table")
	}
	path := fs.PathJoin(o.Dir, names[at])
	table, err := readFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, o)
	in, ran := make(chan Entry), make(chan error, 1)
	sink := &recorder{}
	go func() { ran <- l.Run(context.Background(), in, sink) }()
	// The leaf of record 150, which opening did not read.
	leaf := bytes.Index(table, []byte("WRIT\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x96"))
	if leaf < 0 {
		t.Fatal("no leaf in the table")
	}
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{table[leaf+50] ^ 1}, int64(leaf+50)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	stop := watching(t, l)
	select {
	case err := <-ran:
		if !errors.Is(err, ErrHalted) || !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), names[at]) {
			t.Errorf("halted by %v; it should name %s", err, names[at])
		}
	case <-time.After(time.Minute):
		t.Fatalf("a flipped byte under a live ledger is passed over: %+v", l.Head().Verified)
	}
	if sink.last() != 0 {
		t.Errorf("%d was handed on", sink.last())
	}
	stop()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestThePaceRestsForItsShare: at a quarter, three times as long as it works.
func TestThePaceRestsForItsShare(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := pace(ctx, 0.25)
	start := time.Now()
	for time.Since(start) < 20*time.Millisecond {
	}
	worked := time.Since(start)
	p(1, 2)
	if rested := time.Since(start) - worked; rested < 2*worked {
		t.Errorf("worked %s, rested %s", worked, rested)
	}
	cancel()
	p(2, 2) // does not wait
}
