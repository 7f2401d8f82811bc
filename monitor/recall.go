package monitor

import (
	"context"
	"fmt"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// recallPage is how many records are asked for at once, and recallSave behind how
// many a snapshot is written meanwhile: a start that is broken off goes on from
// there.
const (
	recallPage = 1000
	recallSave = 10 * keepEvents
)

// recall folds what EVENTS has forgotten and no snapshot holds, as the ledger's
// service keeps it: after an upgrade of the model, a loss of the snapshot, or a
// standstill for longer than EVENTS keeps. So the model is the fold of the whole
// log, which a replay makes again, whenever it was started. Until the ledger has
// answered, nothing is judged: a monitor that knows nothing takes the strange for
// usual.
func (s *Service) recall(ctx context.Context) error {
	log, err := bus.NewReader(s.Conn)
	if err != nil {
		return err
	}
	for {
		first, err := log.First(ctx)
		if err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
		from := s.model.Seq() + 1
		if first <= from || first <= s.recalled {
			return nil
		}
		s.Logger.Warn("EVENTS has lost its beginning; what the monitor does not know of that time is folded from the ledger", "from", from, "to", first-1)
		if err := s.foldRecords(ctx, from, first-1); err != nil {
			return err
		}
		s.recalled = first // the log may have lost more meanwhile
	}
}

// foldRecords folds records of the ledger, in order. Those of erased agents are
// not there any more, for no replay either.
func (s *Service) foldRecords(ctx context.Context, from, to uint64) error {
	for from != 0 && from <= to {
		page, err := s.ledger(ctx, schemas.ReadRequest{From: from, To: to, Limit: recallPage})
		if err != nil {
			return err
		}
		if page.Pruned >= from {
			s.Logger.Error("the ledger's contents were pruned: behaviour from before is forgotten, and a replay from the first event makes other verdicts", "through", page.Pruned)
		}
		for _, r := range page.Records {
			e, err := r.Event()
			if err != nil {
				return fmt.Errorf("monitor: the ledger: %w", err)
			}
			if err := s.take(e); err != nil {
				return err
			}
		}
		if s.model.Seq() >= s.saved+recallSave {
			s.save()
		}
		from = page.Next
	}
	return ctx.Err()
}

// ledger asks the ledger's service for records, as much of their bodies as is
// read, until it answers.
func (s *Service) ledger(ctx context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) {
	req.Data, req.Begin = true, maxRead+1
	return bus.Insist[schemas.ReadReply](ctx, s.Conn, schemas.CtlRead, req, func(err error) {
		s.Logger.Warn("EVENTS has lost its beginning, and the ledger's service, which has it, does not answer; nothing is judged until then", "error", err)
	})
}
