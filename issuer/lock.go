package issuer

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// releaseWait bounds how long a receipt waits for release and the ledger.
const releaseWait = 10 * time.Second

// lock puts a lock on, or takes it off, and returns the receipt when every
// part of the control plane has carried it out. What could not be done makes
// the receipt partial; the lock itself holds as soon as it is in the log.
func (i *Issuer) lock(ctx context.Context, req schemas.LockRequest) (schemas.Receipt, error) {
	start := i.Now()
	r := schemas.Receipt{AgentID: req.AgentID, State: req.Lock, Cancelled: []uint64{}, Nodes: []string{}}
	var before *question
	var err error
	if cutsOff(req.Lock) {
		if before, err = i.askConnections(req.AgentID); err != nil {
			return r, err
		}
	}
	d, err := i.logLock(ctx, req)
	if err != nil {
		return r, err
	}
	r.Seq = d.seq
	done, err := i.carryOut(ctx, d, req.AgentID, before)
	if err != nil {
		i.Logger.Error("lock not carried out in full", "agent_id", req.AgentID, "lock", req.Lock, "seq", r.Seq, "error", err)
		r.Partial = true
	}
	r.Nodes = append(r.Nodes, done.nodes...)
	r.ConnectionsClosed = len(done.closed)
	i.complete(ctx, &r)
	r.ElapsedMS = float64(i.Now().Sub(start).Microseconds()) / 1000
	return r, nil
}

func cutsOff(l schemas.Lock) bool { return l == schemas.Suspended || l == schemas.Killed }

// askConnections asks who is connected as a principal, before a lock closes
// them: the receipt counts those.
func (i *Issuer) askConnections(id string) (*question, error) {
	public, err := i.maker.PublicKey(id)
	if err != nil {
		return nil, err
	}
	return i.wire.askConnections(public)
}

// logLock decides and logs a lock, if it is not on already. A lock that cuts
// off does not wait for the own state: the servers come first.
func (i *Issuer) logLock(ctx context.Context, req schemas.LockRequest) (lockDecision, error) {
	defer i.locks.pass(req.AgentID)()
	i.mu.RLock()
	d, err := decideLock(i.state, req)
	i.mu.RUnlock()
	if err != nil || d.kind == "" {
		return d, err
	}
	e := &schemas.Event{Kind: d.kind, Agent: req.AgentID, Reason: schemas.HeaderText(req.Reason), Actor: req.Actor}
	if !cutsOff(d.lock) {
		d.seq, err = i.append(ctx, e)
		return d, err
	}
	i.stamp(e)
	d.seq, err = i.log.Append(ctx, e)
	i.pushes.force(req.AgentID, d.lock)
	if err == nil {
		return d, nil
	}
	// Fail closed: a lock that the log does not take holds on the servers all
	// the same.
	if _, werr := i.pushes.one(ctx, req.AgentID); werr != nil {
		err = errors.Join(err, werr)
	}
	return d, schemas.Refuse(schemas.CodeUnavailable, "the log did not take the lock of %s (%v); its credentials are cut off on the servers, but nothing is recorded: repeat the command", req.AgentID, err)
}

// carryOut takes a logged lock to the servers. One that cuts off is pushed at
// once; one that lets in again, when the own state has it.
func (i *Issuer) carryOut(ctx context.Context, d lockDecision, id string, before *question) (wired, error) {
	if !cutsOff(d.lock) {
		if forced := i.pushes.unforce(id); d.before != schemas.Suspended && !forced {
			return wired{}, nil
		}
		return i.pushes.one(ctx, id)
	}
	var g errgroup.Group
	var done wired
	var were []connection
	g.Go(func() (err error) {
		done, err = i.pushes.one(ctx, id)
		return err
	})
	g.Go(func() (err error) {
		were, err = i.wire.heardConnections(ctx, before)
		return err
	})
	g.Go(func() error {
		if err := i.folded.wait(ctx, d.seq); err != nil {
			return err
		}
		i.pushes.unforce(id) // the state says it now
		return nil
	})
	err := g.Wait()
	for _, c := range were {
		if done.closed == nil {
			done.closed = map[connection]bool{}
		}
		done.closed[c] = true
	}
	return done, err
}

// complete fills in what the log says of a lock once release has worked
// through to it, and the checkpoint that covers it.
func (i *Issuer) complete(ctx context.Context, r *schemas.Receipt) {
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	i.mu.RLock()
	t := i.tracks.newest[r.AgentID]
	i.mu.RUnlock()
	if t != nil && t.seq == r.Seq {
		select {
		case <-t.done:
		case <-ctx.Done():
			r.Partial = true
		}
		i.mu.RLock()
		r.LastAcceptedSeq = t.last
		r.Cancelled = append(r.Cancelled, t.cancelled...)
		i.mu.RUnlock()
		slices.Sort(r.Cancelled)
	}
	head, err := bus.Call[schemas.Head](ctx, i.Control, schemas.CtlHead, schemas.HeadRequest{Min: r.Seq})
	if err != nil {
		i.Logger.Warn("no checkpoint for a receipt", "agent_id", r.AgentID, "seq", r.Seq, "error", err)
		r.Partial = true
		return
	}
	r.Checkpoint = head.Checkpoint
}
