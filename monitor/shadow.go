package monitor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"

	"github.com/writ-sh/writ/schemas"
)

// A shadow is a second model, with other weights, that judges what the first
// judges and decides nothing. It folds the same log with its own verdicts in the
// place of those that count, so that it is calibrated by its own scores; what
// was held, denied and locked it takes as it happened.
type shadow struct {
	model *Model
	log   *slog.Logger

	judged, differ uint64
	newest         []schemas.ShadowDifference // of those that differ, oldest first
}

const maxDifferences = 256

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
		if len(s.model.pool.sorted) >= minPooled {
			s.judged++
		}
		if lock := lockOf(v.Decision); lock != e.Lock && len(s.model.pool.sorted) >= minPooled {
			s.note(schemas.ShadowDifference{Seq: e.Seq, Time: e.Time, AgentID: e.Agent, Action: e.Action.String(),
				Risk: e.Risk, Lock: e.Lock, ShadowRisk: v.Risk, ShadowLock: lock})
			s.log.Warn("the shadow weights decide otherwise", "event", e.Seq, "agent", e.Agent, "action", e.Action.String(),
				"risk", e.Risk, "lock", string(e.Lock), "shadow_risk", v.Risk, "shadow_lock", string(lock), "shadow_model", s.model.version)
		}
	}
	if err := s.model.Apply(&own); err != nil {
		s.log.Error("the shadow weights judge no longer", "error", errors.Join(err, s.model.Close()))
		s.model = nil
	}
}

func (s *shadow) note(d schemas.ShadowDifference) {
	s.differ++
	if len(s.newest) == maxDifferences {
		s.newest = slices.Delete(s.newest, 0, 1)
	}
	s.newest = append(s.newest, d)
}

// shades answers where the shadow would have decided otherwise.
func (s *Service) shades(_ context.Context, req schemas.ShadowRequest) (schemas.ShadowReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := known(s.model.fleet, req.AgentID); req.AgentID != "" && err != nil {
		return schemas.ShadowReply{}, err
	}
	return s.shadow.reply(req.AgentID), nil
}

func (s *shadow) reply(agent string) schemas.ShadowReply {
	r := schemas.ShadowReply{Judged: s.judged, Differ: s.differ, Differences: []schemas.ShadowDifference{}}
	if s.model != nil {
		r.Model = s.model.version
	}
	for _, d := range s.newest {
		if agent == "" || d.AgentID == agent {
			r.Differences = append(r.Differences, d)
		}
	}
	return r
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
