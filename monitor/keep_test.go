package monitor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// age deletes all of the log but its newest event, as seven days do.
func (s *stand) age() {
	s.t.Helper()
	js, err := jetstream.New(s.connect(keys.RoleInit))
	if err != nil {
		s.t.Fatal(err)
	}
	stream, err := js.Stream(s.t.Context(), schemas.Stream)
	if err != nil {
		s.t.Fatal(err)
	}
	short := stream.CachedInfo().Config
	short.MaxMsgs = 1
	for _, cfg := range []jetstream.StreamConfig{short, stream.CachedInfo().Config} {
		if _, err := js.UpdateStream(s.t.Context(), cfg); err != nil {
			s.t.Fatal(err)
		}
	}
}

// tried is a log in which an agent has been refused things, and the bytes of the
// verdict on what it does next.
func (s *stand) tried() (last uint64, verdict string) {
	s.t.Helper()
	s.grant("op-1")
	for range 3 {
		s.put(keys.RoleIssuer, &schemas.Event{Kind: schemas.AgentResumed, Agent: "analyst", Reason: "looked at"})
	}
	last = s.grant("op-2")
	return last, s.verdict(last)
}

func (s *stand) verdict(after uint64) string {
	s.t.Helper()
	e := draft("op-1", "shell")
	v, err := s.assess(after, e)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(schemas.Marshal(v[0]))
}

func TestARestartedMonitorKnowsWhatTheLogHasForgotten(t *testing.T) {
	s := newStand(t)
	s.keep = filepath.Join(t.TempDir(), "monitor", "snapshot")
	stop := s.serve()
	last, before := s.tried()
	stop()
	if info, err := os.Stat(s.keep); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the snapshot: %v, %v", info, err)
	}
	s.age()
	stop = s.serve()
	if after := s.verdict(last); after != before {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
	stop()
	if strings.Contains(s.logged.String(), "anew") {
		t.Error(s.logged.String())
	}
}

// Who puts the snapshot of another log there must not have it taken for the log's own.
func TestASnapshotOfAnotherLogIsRefusedLoudly(t *testing.T) {
	other := newStand(t)
	other.keep = filepath.Join(t.TempDir(), "snapshot")
	stop := other.serve()
	other.n = 100 // ids of its own
	other.tried()
	stop()

	for name, prepare := range map[string]func(s *stand){
		"another log": func(s *stand) { s.keep = other.keep },
		"damaged": func(s *stand) {
			if err := os.WriteFile(s.keep, []byte("writ monitor snapshot 1\nand nonsense of some length, so that a sum could stand there"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t)
			s.keep = filepath.Join(t.TempDir(), "snapshot")
			stop := s.serve()
			last, before := s.tried()
			stop()
			prepare(s)
			stop = s.serve()
			if after := s.verdict(last); after != before {
				t.Errorf("before: %s\nafter: %s", before, after)
			}
			stop()
			if !strings.Contains(s.logged.String(), "folded anew") {
				t.Errorf("refused in silence: %q", s.logged.String())
			}
		})
	}
}
