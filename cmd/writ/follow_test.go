package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A page of text that one writes and another reads.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// away reports whether the notes say last that the control plane is.
func (s *shared) away() bool {
	text := s.String()
	return strings.LastIndex(text, "plane is away") > strings.LastIndex(text, "plane is back")
}

// follows runs writ log --follow on a data folder, wherever its control plane
// listens.
func (l *living) follows(ctx context.Context) (out, notes *shared, ended <-chan error) {
	out, notes = new(shared), new(shared)
	done := make(chan error, 1)
	app := &App{globals: globals{Data: l.data, JSON: true}, terminal: newTerminal(out, notes), actor: "test"}
	app.json = true
	go func() { done <- (&logCmd{Follow: true}).Run(ctx, app) }()
	return out, notes, done
}

func (l *living) until(what string, ended <-chan error, is func() bool) {
	l.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			l.Fatalf("%s: following ended with %v", what, err)
		default:
		}
		if time.Now().After(end) {
			l.Fatalf("%s: not within a minute", what)
		}
	}
}

func seqsOf(t *testing.T, lines string) (seqs []uint64) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var l logLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, l.Seq)
	}
	return seqs
}

// The control plane restarts twice, and listens elsewhere each time.
func TestFollowingGoesOnBehindARestartWithEveryEventOnce(t *testing.T) {
	l := &living{T: t, ctx: t.Context()}
	data := filepath.Join(t.TempDir(), "data")
	stop := l.start(data)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	out, notes, ended := l.follows(ctx)
	for i, reason := range []string{"first", "second", "third"} {
		if i > 0 {
			stop()
			l.until("away", ended, notes.away)
			stop = l.start(data)
			l.until("back", ended, func() bool { return !notes.away() })
		}
		l.writ(nil, "pause", "victim", "--reason", reason)
		l.writ(nil, "resume", "victim", "--reason", "behind the "+reason)
		l.until(reason, ended, func() bool { return strings.Contains(out.String(), "behind the "+reason) })
	}
	end()
	if err := <-ended; err != nil {
		t.Fatalf("the interrupt is a failure: %v", err)
	}
	for i, seq := range seqsOf(t, out.String()) {
		if seq != uint64(i+1) {
			t.Fatalf("event %d where %d should be", seq, i+1)
		}
	}
}

// Another control plane stands where the first did: its log must not be shown as
// the rest of the one that was followed.
func TestFollowingNeverGoesOnInAnotherLog(t *testing.T) {
	l := &living{T: t, ctx: t.Context()}
	data := filepath.Join(t.TempDir(), "data")
	stop := l.start(data)
	out, notes, ended := l.follows(t.Context())
	l.writ(nil, "pause", "victim", "--reason", "the last of the first")
	l.until("first", ended, func() bool { return strings.Contains(out.String(), "the last of the first") })
	stop()
	l.until("away", ended, notes.away)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	l.start(data)
	for range 4 { // longer than the one before
		l.writ(nil, "pause", "victim", "--reason", "of the second")
		l.writ(nil, "resume", "victim", "--reason", "of the second")
	}
	select {
	case err := <-ended:
		if !errors.Is(err, errOtherLog) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on in another log")
	}
	if strings.Contains(out.String(), "of the second") {
		t.Error("it showed another log's events")
	}
}
