package monitor

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// Other weights judge beside those that count: they decide nothing and change
// no byte of what counts, and where they decide otherwise is told.
func TestTheShadowDecidesNothingAndIsHeard(t *testing.T) {
	blind := Reference
	for ev := range blind.Of {
		if evidence(ev) != evCredit {
			blind.Of[ev] = 0
		}
	}
	var heard bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&heard, nil))
	shade := shadow{model: New(Options{Weights: &blind}), log: log}
	same := shadow{model: New(Options{}), log: slog.New(slog.DiscardHandler)}
	live, locks := New(Options{}), map[uint64]schemas.Lock{}
	for _, e := range recordedRuns(t, 60) {
		before := schemas.Marshal(e)
		shade.apply(e)
		same.apply(e)
		if err := live.Apply(e); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, schemas.Marshal(e)) {
			t.Fatalf("the shadow changed event %d", e.Seq)
		}
		locks[e.Seq] = e.Lock
	}
	lines := strings.Split(strings.TrimSpace(heard.String()), "\n")
	if len(lines) < 3 {
		t.Fatalf("weights that see nothing differ from ours in %d actions only", len(lines))
	}
	for _, line := range lines {
		var d struct {
			Event  uint64       `json:"event"`
			Lock   schemas.Lock `json:"lock"`
			Shadow schemas.Lock `json:"shadow_lock"`
			Model  string       `json:"shadow_model"`
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatal(err)
		}
		if d.Lock != locks[d.Event] || d.Shadow == d.Lock || d.Model != blind.Version() {
			t.Errorf("%s", line)
		}
	}
	all := shade.reply("")
	if all.Model != blind.Version() || int(all.Differ) != len(lines) || all.Judged <= all.Differ || len(all.Differences) != min(len(lines), maxDifferences) {
		t.Errorf("%d of %d verdicts are told to differ, %d are listed, and %d were logged", all.Differ, all.Judged, len(all.Differences), len(lines))
	}
	for _, d := range all.Differences {
		if d.Lock != locks[d.Seq] || d.ShadowLock == d.Lock || d.AgentID == "" || d.Time.IsZero() {
			t.Errorf("%+v", d)
		}
	}
	if n := len(shade.reply("analyst").Differences) + len(shade.reply("writer").Differences); n != len(all.Differences) {
		t.Errorf("%d differences are somebody's", n)
	}
	if r := same.reply(""); r.Differ != 0 || r.Judged == 0 {
		t.Errorf("the same weights differ: %+v", r)
	}
	if shade.model.pool.sorted[len(shade.model.pool.sorted)-1] == live.pool.sorted[len(live.pool.sorted)-1] {
		t.Error("the shadow is calibrated by scores that are not its own")
	}
	if same.model.seq != live.seq || len(same.model.agents) != len(live.agents) {
		t.Error("a shadow of the same weights stands elsewhere")
	}
}

// An event that the shadow can't read ends the shadow, not the monitor.
func TestAShadowThatFailsIsLeftOut(t *testing.T) {
	var heard strings.Builder
	s := shadow{model: New(Options{}), log: slog.New(slog.NewTextHandler(&heard, nil))}
	s.apply(&schemas.Event{Seq: 1, Kind: schemas.TokenIssued, Agent: "a", Data: []byte("{")})
	s.apply(&schemas.Event{Seq: 2, Kind: schemas.ReleaseMark})
	if s.model != nil || strings.Count(heard.String(), "no longer") != 1 {
		t.Errorf("%q", heard.String())
	}
}

// The shadow goes on after a restart where it stood with the model, and begins
// anew where it did not.
func TestTheShadowOutlivesARestartBesideItsModel(t *testing.T) {
	other := Reference
	other.Base += one / 2
	var heard strings.Builder
	s := &Service{ServiceOptions: ServiceOptions{Snapshot: filepath.Join(t.TempDir(), "snapshot"), Shadow: &other,
		Logger: slog.New(slog.NewTextHandler(&heard, nil))}, model: New(Options{})}
	s.shadow = shadow{model: New(Options{Weights: &other}), log: s.Logger}
	for _, e := range recordedRuns(t, 5) {
		if err := s.model.Apply(e); err != nil {
			t.Fatal(err)
		}
		s.shadow.apply(e)
	}
	s.save()
	stood := s.shadow.model.Snapshot()
	resume := func() []byte {
		t.Helper()
		s.shadow.model = New(Options{Weights: &other})
		if err := s.resumeShadow(); err != nil {
			t.Fatal(err)
		}
		return s.shadow.model.Snapshot()
	}
	if !bytes.Equal(resume(), stood) || strings.Contains(heard.String(), "nothing yet") {
		t.Errorf("it did not go on: %q", heard.String())
	}
	if err := os.WriteFile(s.shadowFile(), s.model.Snapshot(), 0o600); err != nil { // of other weights
		t.Fatal(err)
	}
	if bytes.Equal(resume(), stood) || !strings.Contains(heard.String(), "nothing yet") {
		t.Error("the model's own snapshot was taken for the shadow's")
	}
}
