package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// rotateAccounts has other keys sign agents', services' and operators' users.
// Every server trusts them before they sign anything, and the former until the
// last credential that they signed has ended; so nobody is cut off. Each step
// is on disk first: what was interrupted goes on by itself.
func (i *Issuer) rotateAccounts(ctx context.Context, req schemas.RotateRequest) (schemas.RotateReply, error) {
	i.turning.Lock()
	defer i.turning.Unlock()
	m := i.Secrets.Masters
	if err := m.Succeed(req.Compromised, req.Actor, req.Reason); err != nil {
		return schemas.RotateReply{}, err
	}
	turn, seq, err := i.turn(ctx, i.Now())
	if err != nil {
		return schemas.RotateReply{}, fmt.Errorf("the rotation has begun, and goes on by itself: %w", err)
	}
	return schemas.RotateReply{Rotation: turn.Rotation, Seq: seq}, nil
}

// turn takes a rotation as far as it comes. i.turning is held.
func (i *Issuer) turn(ctx context.Context, now time.Time) (turn keys.Turn, seq uint64, err error) {
	m := i.Secrets.Masters
	if m.State().Successor {
		err := i.pushAsked(ctx)
		if err == nil {
			err = i.pushes.all(ctx)
		}
		if err != nil {
			return turn, 0, fmt.Errorf("not every server trusts the new keys yet: %w", err)
		}
		if err := m.Promote(i.lastEnd(now)); err != nil {
			return turn, 0, err
		}
	}
	// With the keys of now: what is not trusted any more ends here.
	err = errors.Join(i.pushAsked(ctx), i.pushes.all(ctx), m.Forget())
	untold := m.State().Untold
	if untold == nil {
		return turn, 0, err
	}
	seq, terr := i.logTurn(ctx, *untold)
	if terr != nil {
		return *untold, 0, terr
	}
	if terr := m.Told(); terr != nil {
		return *untold, seq, terr
	}
	return *untold, seq, err
}

// pushAsked gives the servers AUTH as it has to be now, where TLS is on.
// i.turning is held, or nobody else knows the issuer yet.
func (i *Issuer) pushAsked(ctx context.Context) error {
	epoch := i.Secrets.Masters.Epoch()
	if i.Secrets.Auth == nil || i.asked.Load() == epoch+1 {
		return nil
	}
	token, err := i.maker.AskedAccount(i.Now())
	if err != nil {
		return fmt.Errorf("account AUTH: %w", err)
	}
	q, err := i.wire.push(token)
	if err == nil {
		_, err = i.wire.pushed(ctx, q)
	}
	if err != nil {
		return fmt.Errorf("account AUTH: %w", err)
	}
	i.asked.Store(epoch + 1)
	return nil
}

// tendAccounts goes on with a rotation that was interrupted, and ends trust in
// keys behind whose last credential the clock is.
func (i *Issuer) tendAccounts(ctx context.Context, now time.Time) {
	m := i.Secrets.Masters
	s := m.State()
	over := !s.Until.IsZero() && now.After(s.Until)
	behind := i.Secrets.Auth != nil && i.asked.Load() != m.Epoch()+1
	if !s.Successor && s.Untold == nil && !over && !behind || !i.turning.TryLock() {
		return
	}
	defer i.turning.Unlock()
	var err error
	if over {
		err = m.Drop()
	}
	if err == nil {
		_, _, err = i.turn(ctx, now)
	}
	if err != nil && ctx.Err() == nil {
		i.Logger.Warn("rotation of the keys of agents' accounts not finished; trying again", "error", err)
	}
}

// tellOffline logs rotations that happened while no issuer ran: of the
// operator's signing key, and of that of weights.
func (i *Issuer) tellOffline(ctx context.Context) {
	for ctx.Err() == nil {
		turn, told, err := i.Secrets.Untold()
		if err == nil && turn == nil {
			return
		}
		if err == nil {
			if _, err = i.logTurn(ctx, *turn); err == nil {
				err = told()
			}
		}
		if err != nil {
			i.Logger.Warn("a rotation of keys not logged; trying again with the next start", "error", err)
			return
		}
	}
}

// lastEnd is when the last credential ends that was signed up to now. Of one of
// which the log says nothing, it is as late as it can be.
func (i *Issuer) lastEnd(now time.Time) time.Time {
	i.mu.RLock()
	defer i.mu.RUnlock()
	last := now.Add(identityTTL)
	later := func(t time.Time) {
		if t.After(last) {
			last = t
		}
	}
	for _, a := range i.state.Agents {
		if a.CredentialExpires.IsZero() {
			later(now.Add(credentialTTL(a.Kind)))
		}
		later(a.CredentialExpires)
		for _, g := range a.Grants {
			later(g.Expires)
		}
	}
	// Renewals that the log does not say moved an end by less than this, and
	// join tokens last a day at most.
	return last.Add(max(renewedNoted, maxJoin-identityTTL) + time.Minute)
}
