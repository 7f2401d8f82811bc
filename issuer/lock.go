package issuer

import (
	"context"
	"errors"
	"slices"
	"sync"
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
	r := schemas.Receipt{AgentID: req.AgentID, State: req.Lock, Cancelled: []uint64{}, Revoked: []string{}, Nodes: []string{}}
	if err := i.overOperators(ctx, req.AgentID); err != nil {
		return r, err
	}
	i.mu.RLock()
	_, err := decideLock(i.state, req) // decided again in its turn; nothing is done for what can't be
	i.mu.RUnlock()
	if err != nil {
		return r, err
	}
	var c *census
	if cutsOff(req.Lock) {
		if c, err = i.takeCensus(ctx, req.AgentID); err != nil {
			return r, err
		}
		defer c.count()
	}
	d, nodes, partial, err := i.enforce(ctx, req, c)
	if err != nil {
		return r, err
	}
	r.Seq, r.State, r.Nodes, r.Partial = d.seq, d.lock, nodes, partial
	for _, e := range d.vouch {
		r.Seq = max(r.Seq, e.Seq)
		if e.Kind == schemas.ReviewEndorsed {
			r.Endorsed = append(r.Endorsed, e.Ref)
		} else {
			r.Vouched = append(r.Vouched, e.Ref)
		}
	}
	r.Already = d.kind == "" && len(d.vouch) == 0
	i.complete(ctx, &r)
	if c != nil {
		r.ConnectionsClosed = c.count()
	}
	r.ElapsedMS = float64(i.Now().Sub(start).Microseconds()) / 1000
	return r, nil
}

// enforce logs a lock and carries it out on the servers; those that took it
// are named.
func (i *Issuer) enforce(ctx context.Context, req schemas.LockRequest, c *census) (d lockDecision, nodes []string, partial bool, err error) {
	defer i.pushes.mine(req.AgentID)()
	if d, err = i.logLock(ctx, req); err != nil {
		return d, []string{}, true, err
	}
	if c != nil {
		i.wire.cut(c.settle())
	}
	nodes, err = i.carryOut(ctx, d, req.AgentID)
	if err != nil {
		i.Logger.Error("lock not carried out in full", "agent_id", req.AgentID, "lock", req.Lock, "seq", d.seq, "error", err)
	}
	return d, append([]string{}, nodes...), err != nil, nil
}

func cutsOff(l schemas.Lock) bool { return l == schemas.Suspended || l == schemas.Killed }

// A census counts the connections that a lock closes: those that are there
// while it is being logged; where the servers tell that too late, those that
// they then say were closed.
type census struct {
	watch *watch
	group errgroup.Group
	heard chan struct{}
	list  []connection // read once heard is closed
	late  bool
	count func() int
}

// censusWait is how long the push waits for the census: the lock is in the log
// by then, and nothing is released any more. Where that was not enough,
// noticeWait is how long the receipt waits for the servers' notices.
const (
	censusWait = 20 * time.Millisecond
	noticeWait = 200 * time.Millisecond
)

func (i *Issuer) takeCensus(ctx context.Context, id string) (*census, error) {
	public, err := i.publicKey(id)
	if err != nil {
		return nil, err
	}
	w, err := i.wire.watchClosing(public)
	if err != nil {
		return nil, err
	}
	q, err := i.wire.askConnections(public)
	if err != nil {
		w.stop()
		return nil, err
	}
	c := &census{watch: w, heard: make(chan struct{})}
	c.count = sync.OnceValue(c.finish)
	c.group.Go(func() error {
		defer close(c.heard)
		list, err := i.wire.heardConnections(ctx, q)
		if err != nil {
			i.Logger.Warn("connections before a lock not known", "agent_id", id, "error", err)
		}
		c.list = list
		return err
	})
	return c, nil
}

// settle gives the connections that are known when it is time to push.
func (c *census) settle() []connection {
	timer := time.NewTimer(censusWait)
	defer timer.Stop()
	select {
	case <-c.heard:
		return c.list
	case <-timer.C:
		c.late = true
		return nil
	}
}

// finish waits for the census and gives the count; c.count does so once.
func (c *census) finish() int {
	_ = c.group.Wait() // a server that does not answer closes nothing that could be counted
	if !c.late {
		c.watch.stop()
		return len(c.list)
	}
	time.Sleep(noticeWait)
	return c.watch.stop()
}

// logLock decides and logs a lock, if it is not on already. A lock that cuts
// off does not wait for the own state: the servers come first.
func (i *Issuer) logLock(ctx context.Context, req schemas.LockRequest) (lockDecision, error) {
	defer i.locks.pass(req.AgentID)()
	i.mu.RLock()
	d, err := decideLock(i.state, req)
	i.mu.RUnlock()
	if err != nil {
		return d, err
	}
	for _, e := range d.vouch { // before it goes on: what it does next is judged with that
		if _, err := i.append(ctx, e); err != nil {
			return d, err
		}
	}
	if d.kind == "" {
		return d, nil
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
func (i *Issuer) carryOut(ctx context.Context, d lockDecision, id string) (nodes []string, err error) {
	if !cutsOff(d.lock) {
		if forced := i.pushes.unforce(id); d.before != schemas.Suspended && !forced {
			return nil, nil
		}
		return i.pushes.one(ctx, id)
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		nodes, err = i.pushes.one(ctx, id)
		return err
	})
	g.Go(func() error {
		if err := i.folded.Wait(ctx, d.seq, foldWait); err != nil {
			return err
		}
		i.pushes.unforce(id) // the state says it now
		return nil
	})
	err = g.Wait()
	return nodes, err
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
		r.Cancelled = append(r.Cancelled, t.cancelled...)
		r.Revoked = append(r.Revoked, t.revoked...)
		i.mu.RUnlock()
		slices.Sort(r.Cancelled)
		last, err := i.reader.Newest(ctx, schemas.EventSubject(r.AgentID, schemas.MessageAccepted), r.Seq)
		if err != nil {
			i.Logger.Warn("last accepted action not known for a receipt", "agent_id", r.AgentID, "seq", r.Seq, "error", err)
			r.Partial = true
		}
		r.LastAcceptedSeq = last
	}
	head, err := bus.Call[schemas.Head](ctx, i.Control, schemas.CtlHead, schemas.HeadRequest{Min: r.Seq})
	if err != nil {
		i.Logger.Warn("no checkpoint for a receipt", "agent_id", r.AgentID, "seq", r.Seq, "error", err)
		r.Partial = true
		return
	}
	r.Checkpoint = head.Checkpoint
}
