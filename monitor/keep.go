package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// A snapshot is written once so many events came since the last, or so much
// time passed in which any came; and in an orderly stop.
const (
	keepEvents = 50_000
	keepEvery  = 5 * time.Minute
	keepLook   = 5 * time.Second
)

// resume takes up the newest snapshot, if the log holds the very event that it
// ends with. Another log would make a model that no replay can.
func (s *Service) resume(ctx context.Context) error {
	if s.Snapshot == "" {
		return nil
	}
	m, err := readSnapshot(s.Snapshot, s.options(s.Weights))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = s.ownLog(ctx, m); err != nil {
			err = errors.Join(err, m.Close())
		}
	}
	if errors.Is(err, ErrSnapshot) {
		s.Logger.Warn("the whole log is folded anew", "snapshot", s.Snapshot, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	s.model, s.saved = m, m.seq
	return s.resumeShadow()
}

func (s *Service) ownLog(ctx context.Context, m *Model) error {
	e, err := s.logged(ctx, m.seq)
	if err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("%w: the log has no event %d, with which it ends", ErrSnapshot, m.seq)
	}
	if e.ID != m.lastID {
		return fmt.Errorf("%w: event %d of the log is another than the one that it ends with", ErrSnapshot, m.seq)
	}
	return nil
}

// logged is an event of the log, out of the ledger where EVENTS has lost it; nil
// where there is none.
func (s *Service) logged(ctx context.Context, seq uint64) (*schemas.Event, error) {
	log, err := bus.NewReader(s.Conn)
	if err != nil {
		return nil, err
	}
	entry, found, err := log.At(ctx, seq)
	if err != nil {
		return nil, err
	}
	if found {
		return entry.Event()
	}
	first, err := log.First(ctx)
	if err != nil || first <= seq {
		return nil, err
	}
	page, err := s.ledger(ctx, schemas.ReadRequest{From: seq, To: seq, Limit: 1})
	if err != nil || len(page.Records) == 0 {
		return nil, err
	}
	return page.Records[0].Event()
}

// keep writes snapshots from time to time, and an alarm once when it is raised.
func (s *Service) keep(ctx context.Context) error {
	look := time.NewTicker(keepLook)
	defer look.Stop()
	told := ""
	for last := s.Now(); ; {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		s.mu.Lock()
		since, alarm := s.model.Seq()-s.saved, strings.Join(s.model.Alarms(), "; ")
		s.mu.Unlock()
		if alarm != "" && told == "" {
			s.Logger.Warn("behaviour, or what is taken for harmless, has moved", "alarm", alarm)
		}
		told = alarm
		if now := s.Now(); since >= keepEvents || since > 0 && now.Sub(last) >= keepEvery {
			s.save()
			last = now
		}
	}
}

// save writes a snapshot while the service goes on with a fork: an agent is
// copied only when the fold changes it meanwhile.
func (s *Service) save() {
	s.mu.Lock()
	still, shade := s.model, s.shadow.model
	if s.Snapshot == "" || still.seq == s.saved {
		s.mu.Unlock()
		return
	}
	s.model = goOn(still)
	if shade != nil {
		s.shadow.model = goOn(shade)
	}
	s.mu.Unlock()
	err := writeSnapshot(s.Snapshot, still)
	if err == nil && shade != nil {
		err = writeSnapshot(s.shadowFile(), shade)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model.alone()
	if s.shadow.model != nil {
		s.shadow.model.alone()
	}
	if err != nil {
		s.Logger.Error("snapshot not written: after a restart the monitor folds from the one before", "error", err)
		return
	}
	s.saved = still.seq
}

// goOn gives the fork that goes on while a model stands still.
func goOn(still *Model) *Model {
	f := still.Fork()
	still.fleet = schemas.StateOf(still.fleet.Declared())
	return f
}

// options of the models that the service keeps. What they put aside lies beside
// their snapshots.
func (s *Service) options(w *Weights) Options {
	o := Options{Weights: w}
	if s.Snapshot != "" {
		o.Folder = filepath.Dir(s.Snapshot)
	}
	return o
}
