package issuer

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

const (
	sweepPause   = time.Second
	countPause   = 30 * time.Second // between questions how many servers there are
	declarePause = time.Minute
	// endGrace is how long after a capability's expiry its operation ends:
	// what was accepted before the expiry is in the log by then.
	endGrace = 2 * time.Second
	// restateMost bounds declarations repeated at once.
	restateMost = 500
)

// sweepLoop does what time brings about, until the context ends.
func (i *Issuer) sweepLoop(ctx context.Context) error {
	tick := time.NewTicker(sweepPause)
	defer tick.Stop()
	var counted, stated, warned time.Time
	said := map[schemas.Expiry]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := i.Now()
		i.endOperations(ctx, now)
		i.tendKeys(ctx, now)
		i.tendAccounts(ctx, now)
		i.tendCA(ctx, now)
		if now.Sub(warned) >= declarePause {
			warned = now
			said = i.warnExpiring(now, said)
		}
		if now.Sub(counted) >= countPause {
			counted = now
			if err := i.wire.count(ctx); err != nil && ctx.Err() == nil {
				i.Logger.Warn("servers not counted", "error", err)
			}
		}
		if now.Sub(stated) >= min(declarePause, i.Retention/8) {
			stated = now
			i.restate(ctx, now)
		}
	}
}

// endOperations logs the end of operations whose last capability has expired,
// was revoked, or fell to a lock.
func (i *Issuer) endOperations(ctx context.Context, now time.Time) {
	over := view(i, func(s *schemas.State) []revocation { return overdue(s, now) })
	err := each(over, func(r revocation) error { return i.end(ctx, r.grant, endOf(r.grant, r.why)) })
	if err != nil && ctx.Err() == nil {
		i.Logger.Warn("ends of operations not logged; trying again", "count", len(over), "error", err)
	}
}

// overdue lists the grants whose end the log has not been told.
func overdue(s *schemas.State, now time.Time) []revocation {
	var out []revocation
	for _, a := range s.Agents {
		for _, g := range a.Grants {
			if why := overdueNow(g, now); why != "" {
				out = append(out, revocation{g.Grant, why})
			}
		}
	}
	return out
}

// overdueNow says why an operation is to end, "" where it goes on. One whose
// parent was narrowed by a refresh ends too: its token would say more than
// counts.
func overdueNow(g *schemas.Live, now time.Time) string {
	if g.Ended != "" {
		return g.Ended
	}
	if !now.Before(g.Expires.Add(endGrace)) {
		return "expired"
	}
	if why := g.Over(now.Add(-endGrace)); why != "" {
		return why
	}
	if from := g.Parent(); from != nil {
		if what := g.Exceeds(&from.Grant); what != "" {
			return "what it was derived from no longer admits " + what
		}
	}
	return ""
}

// restate repeats declarations that are older than half of the log's
// retention, with the lock and the keys' generation as they are: before the
// old ones age out.
func (i *Issuer) restate(ctx context.Context, now time.Time) {
	if i.Retention == 0 {
		return
	}
	i.applying.Lock()
	defer i.applying.Unlock()
	for _, id := range i.stale(now) {
		if err := i.restateOne(ctx, id); err != nil && ctx.Err() == nil {
			i.Logger.Warn("declaration not repeated; trying again", "agent_id", id, "error", err)
		}
	}
}

func (i *Issuer) restateOne(ctx context.Context, id string) error {
	if id == schemas.Fleet {
		return i.restateFleet(ctx)
	}
	p := view(i, func(s *schemas.State) *schemas.Principal {
		if a := s.Agents[id]; a != nil {
			copied := a.Principal
			return &copied
		}
		return nil
	})
	if p == nil {
		return nil
	}
	return i.declare(ctx, *p, "")
}

// restateFleet repeats what holds for all. No lockdown begins or is lifted
// meanwhile: one that was lifted must not come back.
func (i *Issuer) restateFleet(ctx context.Context) error {
	defer i.locks.pass(schemas.Fleet)()
	i.mu.RLock()
	policy := schemas.Policy{TrustDomain: i.state.TrustDomain, Digest: i.state.Policy, Guardrails: i.state.Guardrails, Signals: i.state.Signals}
	lockdown := i.state.Lockdown
	i.mu.RUnlock()
	if policy.TrustDomain != "" {
		if _, err := i.append(ctx, &schemas.Event{Kind: schemas.PolicyApplied, Agent: schemas.Fleet, ContentType: jsonType, Data: schemas.Marshal(policy)}); err != nil {
			return err
		}
	}
	if lockdown == "" {
		return nil
	}
	_, err := i.append(ctx, &schemas.Event{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Reason: lockdown})
	return err
}

// stale lists whose declaration is due to be repeated, oldest first.
func (i *Issuer) stale(now time.Time) []string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var ids []string
	for id, at := range i.told {
		if now.Sub(at) >= i.Retention/2 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int {
		if c := i.told[a].Compare(i.told[b]); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	return ids[:min(len(ids), restateMost)]
}
