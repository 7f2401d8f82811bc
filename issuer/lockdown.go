package issuer

import (
	"context"
	"fmt"
	"slices"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// lockdown locks the whole fleet, or lifts that: from its event on nothing is
// accepted, issued or released, and everything that is open is cancelled. Keys
// and connections stay, so that lifting it needs nobody's help.
func (i *Issuer) lockdown(ctx context.Context, req schemas.LockdownRequest) (schemas.LockdownReply, error) {
	start := i.Now()
	r := schemas.LockdownReply{Locked: !req.Lift, Cancelled: []uint64{}}
	defer i.locks.pass(schemas.Fleet)()
	i.mu.RLock()
	e, err := decideLockdown(i.state, req)
	r.Seq = i.state.LockdownSeq
	i.mu.RUnlock()
	if err != nil {
		return r, err
	}
	r.Already = e == nil
	if e != nil {
		if r.Seq, err = i.append(ctx, e); err != nil {
			return r, err
		}
	}
	i.reckon(ctx, &r)
	r.ElapsedMS = float64(i.Now().Sub(start).Microseconds()) / 1000
	return r, nil
}

// decideLockdown says which event a request comes to; nil where it is so
// already.
func decideLockdown(s *schemas.State, req schemas.LockdownRequest) (*schemas.Event, error) {
	if err := checkActor(req.Actor); err != nil {
		return nil, err
	}
	if err := checkReason(req.Reason); err != nil {
		return nil, err
	}
	e := &schemas.Event{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Reason: schemas.HeaderText(req.Reason), Actor: req.Actor}
	if req.Lift {
		e.Kind = schemas.PolicyLifted
	}
	if req.Lift == (s.Lockdown == "") {
		return nil, nil
	}
	return e, nil
}

// reckon fills in what the log says of a lockdown once release has worked
// through to it.
func (i *Issuer) reckon(ctx context.Context, r *schemas.LockdownReply) {
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	i.mu.RLock()
	t := i.tracks.newest[schemas.Fleet]
	i.mu.RUnlock()
	if t == nil || t.seq != r.Seq {
		return // begun before this issuer was
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		r.Partial = true
	}
	i.mu.RLock()
	r.Cancelled = append(r.Cancelled, t.cancelled...)
	i.mu.RUnlock()
	slices.Sort(r.Cancelled)
	var err error
	if r.LastAcceptedSeq, err = i.reader.Newest(ctx, schemas.EventSubject("*", schemas.MessageAccepted), r.Seq); err != nil {
		i.Logger.Warn("last accepted action not known for a lockdown", "seq", r.Seq, "error", err)
		r.Partial = true
	}
	head, err := bus.Call[schemas.Head](ctx, i.Control, schemas.CtlHead, schemas.HeadRequest{Min: r.Seq})
	if err != nil {
		i.Logger.Warn("no checkpoint for a lockdown", "seq", r.Seq, "error", fmt.Errorf("head: %w", err))
		r.Partial = true
		return
	}
	r.Checkpoint = head.Checkpoint
}
