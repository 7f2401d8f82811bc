package issuer

import (
	"context"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// recall learns the locks whose events have aged out of EVENTS: while a control
// plane stands still nobody repeats declarations. Release, which folds the whole
// log, knows them. Until it has answered, the issuer does nothing: who was
// killed could be declared anew, and nobody would know.
//
// Locks are all that it takes over from there: they let nobody do more. The
// fleet itself, which does, comes from the log or from an operator.
func (i *Issuer) recall(ctx context.Context, last uint64) error {
	first, err := i.reader.First(ctx)
	if err != nil || first <= 1 {
		return err
	}
	forgotten := map[string]schemas.LockInfo{}
	ask := schemas.LocksRequest{Through: last}
	for {
		page, err := i.askLocks(ctx, ask)
		if err != nil {
			return err
		}
		for _, l := range page.Locks {
			forgotten[l.AgentID], ask.After = l, l.AgentID
		}
		if page.More && len(page.Locks) > 0 {
			continue
		}
		i.mu.Lock()
		i.forgotten = forgotten
		unlocked := i.state.Lockdown == ""
		i.mu.Unlock()
		if page.Lockdown == "" || !unlocked {
			return nil
		}
		_, err = i.append(ctx, &schemas.Event{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Reason: page.Lockdown})
		return err
	}
}

// askLocks asks until release answers.
func (i *Issuer) askLocks(ctx context.Context, req schemas.LocksRequest) (schemas.LocksReply, error) {
	return bus.Insist[schemas.LocksReply](ctx, i.Control, schemas.CtlLocks, req, func(err error) {
		i.Logger.Warn("EVENTS has lost its beginning, and the ledger's service, which knows the locks of that time, does not answer; waiting for it", "error", err)
	})
}
