package ledger

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A gate is a sink that waits until it is opened.
type gate struct {
	open    chan struct{}
	entered chan struct{}
	once    sync.Once
}

func (g *gate) Durable([]*schemas.Event) error {
	g.once.Do(func() { close(g.entered) })
	<-g.open
	return nil
}

// A backup that is made while batches are on their way to disk is signed to its
// end: restored when EVENTS has forgotten them, nothing could confirm it.
func TestABackupIsSignedToItsEnd(t *testing.T) {
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(2)
	l := mustOpen(t, o)
	in, ended := make(chan Entry, len(entries)), make(chan error, 1)
	sink := &gate{open: make(chan struct{}), entered: make(chan struct{})}
	go func() { ended <- l.Run(context.Background(), in, sink) }()
	in <- entries[0]
	<-sink.entered
	in <- entries[1]
	for end := time.Now().Add(time.Minute); l.From() != 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the second event is not written")
		}
	}
	b := o
	b.Dir, b.AnchorDir = "backup/ledger", "backup/anchor"
	if err := fs.MkdirAll("backup", 0o700); err != nil {
		t.Fatal(err)
	}
	head, err := l.Backup(b.Dir, b.AnchorDir)
	close(sink.open)
	close(in)
	if err := errors.Join(err, <-ended, l.Close()); err != nil {
		t.Fatal(err)
	}
	if head.Size != 2 {
		t.Errorf("%d records are backed up", head.Size)
	}
	copied := mustOpen(t, b)
	if _, err := copied.Checkpoint(t.Context(), 2); err != nil {
		t.Errorf("the end of the backup: %v", err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}
}
