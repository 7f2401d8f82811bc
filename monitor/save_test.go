package monitor

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A snapshot that is written while the service goes on is of one moment, and
// costs the service nothing of what it learns meanwhile.
func TestSnapshotsAreTakenWhileTheFoldGoesOn(t *testing.T) {
	log := recordedRuns(t, 30)
	straight := New(Options{})
	at := map[uint64][]byte{}
	s := &Service{ServiceOptions: ServiceOptions{Snapshot: filepath.Join(t.TempDir(), "snapshot"), Logger: slog.New(slog.DiscardHandler)}, model: New(Options{})}
	var saving sync.WaitGroup
	for i, e := range log {
		if err := straight.Apply(e); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		if len(e.Verdict) > 0 {
			s.model.Assess(e)
		}
		err := s.model.Apply(e)
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if i%40 == 0 {
			at[e.Seq] = straight.Snapshot()
			saving.Wait()
			if b, err := os.ReadFile(s.Snapshot); err == nil {
				m, err := Restore(Options{}, b)
				if err != nil {
					t.Fatal(err)
				}
				if at[m.seq] != nil && !bytes.Equal(at[m.seq], b) {
					t.Fatalf("the snapshot of %d is not the fold up to there", m.seq)
				}
			}
			saving.Go(s.save)
		}
	}
	saving.Wait()
	if s.saved == 0 || !bytes.Equal(s.model.Snapshot(), straight.Snapshot()) {
		t.Error("saving changed what the service knows")
	}
	info, err := os.Stat(s.Snapshot + ".tmp")
	if err == nil {
		t.Errorf("a draft was left behind: %v", info.Name())
	}
}
