package monitor

import (
	"errors"
	"log/slog"
	"os"

	"github.com/writ-sh/writ/schemas"
)

// A shadow is a second model, with other weights, that judges what the first
// judges and decides nothing. It folds the same log with its own verdicts in the
// place of those that count, so that it is calibrated by its own scores; what
// was held, denied and locked it takes as it happened.
type shadow struct {
	model *Model
	log   *slog.Logger
}

// apply takes one event, and tells where the two decide differently. It judges
// right before the event; the first model may have judged a little earlier.
func (s *shadow) apply(e *schemas.Event) {
	if s.model == nil {
		return
	}
	own := *e
	if len(e.Verdict) > 0 {
		v := s.model.Assess(e)
		own.Verdict, own.Risk = schemas.Marshal(v), v.Risk
		if lock := lockOf(v.Decision); lock != e.Lock && len(s.model.pool.sorted) >= minPooled {
			s.log.Warn("the shadow weights decide otherwise", "event", e.Seq, "agent", e.Agent, "action", e.Action.String(),
				"risk", e.Risk, "lock", string(e.Lock), "shadow_risk", v.Risk, "shadow_lock", string(lock), "shadow_model", s.model.version)
		}
	}
	if err := s.model.Apply(&own); err != nil {
		s.log.Error("the shadow weights judge no longer", "error", errors.Join(err, s.model.Close()))
		s.model = nil
	}
}

// shadowFile is where the shadow's snapshot lies, beside the model's.
func (s *Service) shadowFile() string { return s.Snapshot + ".shadow" }

// resumeShadow takes up the shadow's snapshot, where it stands exactly where the
// model stands: one of other weights, or of another moment, begins anew.
func (s *Service) resumeShadow() error {
	if s.Shadow == nil {
		return nil
	}
	m, err := readSnapshot(s.shadowFile(), s.options(s.Shadow))
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrSnapshot) {
		return err
	}
	if err != nil || m.seq != s.model.seq || m.lastID != s.model.lastID {
		s.Logger.Warn("the shadow weights have learned nothing yet", "from", s.model.seq)
		return nil
	}
	s.shadow.model = m
	return nil
}
