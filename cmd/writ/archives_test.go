package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
)

// copies gives a folder with the same files, for somebody to change.
func copies(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "archive")
	if err := copyTree(dir, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// pruned is a stopped control plane whose ledger begins behind what several
// archives hold.
func (l *living) pruned() (archive string) {
	l.Helper()
	stop := l.start(l.TempDir())
	endLoad := l.load()
	archive = filepath.Join(l.TempDir(), "archive")
	victim := l.connect("issue", "--agent", "victim", "--operation", "op", "--tool", "echo", "--ttl", "1h")
	var doc pruneDoc
	for range 2 {
		last := l.ask(victim, "out.op.call.echo", "a call that is pruned")
		l.agedOut(last + 50)
		l.writ(&doc, "ledger", "prune", "--keep", "1s", "--archive", archive)
		if doc.LastSeq < last {
			l.Fatalf("event %d is not pruned: %+v", last, doc)
		}
	}
	endLoad()
	stop()
	return archive
}

// What was pruned is decided again out of its archives, and the fold that a start
// needs is made of them. Somebody who can write the folder of archives leaves one
// out, changes a byte, or puts another ledger's there.
func TestArchivesStandForWhatWasPruned(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	l := &living{T: t, ctx: ctx}
	archive := l.pruned()
	data := l.data
	files, err := filepath.Glob(filepath.Join(archive, "*.bundle"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}

	if said := l.refused("replay"); !strings.Contains(said, "--archive") {
		t.Errorf("a replay that begins in the middle: %s", said)
	}
	var replayed replayDoc
	l.writ(&replayed, "replay", "--archive", archive)
	var last logLine
	l.writ(&last, "log", "--from", "1", "--limit", "1")
	if replayed.Mismatches != 0 || replayed.Decisions == 0 || replayed.Events <= last.Seq {
		t.Errorf("%+v, and the ledger begins with event %d", replayed, last.Seq)
	}

	// The kept folds are gone, as they are to a program that reads another version.
	if err := os.RemoveAll(filepath.Join(data, "release")); err != nil {
		t.Fatal(err)
	}
	starts := func() error {
		p, err := plane.Start(ctx, plane.Options{Data: data, Retention: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = p.Stop(ctx)
		}
		return err
	}
	if err := starts(); err == nil || !strings.Contains(err.Error(), "writ ledger refold --archive DIR") {
		t.Fatalf("a start without a fold: %v", err)
	}

	for name, attack := range map[string]func(dir string) error{
		"the first is left out": func(dir string) error { return os.Remove(filepath.Join(dir, filepath.Base(files[0]))) },
		"the last is left out":  func(dir string) error { return os.Remove(filepath.Join(dir, filepath.Base(files[len(files)-1]))) },
		"all are left out":      os.RemoveAll,
		"a byte is another": func(dir string) error {
			path := filepath.Join(dir, filepath.Base(files[0]))
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		},
	} {
		dir := copies(t, archive)
		if err := attack(dir); err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]string{{"ledger", "refold"}, {"replay"}} {
			if said := l.refused(append(command, "--archive", dir)...); !strings.Contains(said, "archives in ") {
				t.Errorf("%s, %v: %s", name, command, said)
			}
		}
		if _, err := os.Stat(filepath.Join(data, "release")); err == nil {
			t.Fatalf("%s: a fold was kept", name)
		}
	}

	var folded refoldDoc
	l.writ(&folded, "ledger", "refold", "--archive", archive)
	if folded.LastSeq+1 != last.Seq {
		t.Errorf("%+v, and the ledger begins with event %d", folded, last.Seq)
	}
	fold, err := os.ReadFile(filepath.Join(data, "release", "fold"))
	if err != nil || bytes.Contains(fold, []byte("victim")) {
		t.Errorf("the fold is not sealed: %v", err)
	}
	l.start(data)
	l.works()
	// Of what came before the restart: EVENTS aged out meanwhile, and the issuer
	// declares the fleet anew then.
	var running replayDoc
	l.writ(&running, "replay", "--archive", archive, "--to", strconv.FormatUint(replayed.Events, 10))
	if !reflect.DeepEqual(running, replayed) {
		t.Errorf("of the running control plane %+v, and of the stopped one %+v", running, replayed)
	}
}
