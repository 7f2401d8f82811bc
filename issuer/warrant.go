package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
)

// warrant signs a death warrant, and logs that there is one.
func (i *Issuer) warrant(ctx context.Context, req schemas.WarrantRequest) (schemas.WarrantReply, error) {
	reply := schemas.WarrantReply{AgentID: req.AgentID}
	if err := i.overOperators(ctx, req.AgentID); err != nil {
		return reply, err
	}
	lock := schemas.LockRequest{AgentID: req.AgentID, Lock: schemas.Killed, Reason: req.Reason, Actor: req.Actor}
	defer i.locks.pass(req.AgentID)()
	i.mu.RLock()
	d, err := decideLock(i.state, lock)
	if err == nil {
		reply.Incarnation = i.state.Agents[req.AgentID].Incarnation
	}
	i.mu.RUnlock()
	switch {
	case err != nil:
		return reply, err
	case d.kind == "":
		return reply, schemas.Refuse(schemas.CodeConflict, "%s was killed already; a warrant is for one who lives", req.AgentID)
	}
	if reply.Account, err = i.maker.PublicKey(req.AgentID, reply.Incarnation); err != nil {
		return reply, err
	}
	reason := schemas.HeaderText(req.Reason)
	if reply.JWT, err = i.maker.Warrant(req.AgentID, reply.Incarnation, req.Actor, reason, i.Now()); err != nil {
		return reply, err
	}
	reply.Seq, err = i.append(ctx, &schemas.Event{Kind: schemas.AgentWarranted, Agent: req.AgentID, Actor: req.Actor, Reason: reason,
		ContentType: jsonType, Data: schemas.Marshal(reply.Warrant)})
	return reply, err
}

// heed looks what the servers have of a principal's account before another JWT
// takes its place. One that kills was served while no issuer saw it: the log is
// told, and the kill stands.
//
// A suspension does not wait for a server that is lost: it keeps the agent out
// of the others. What any of them has all have, and what it was killed with is
// issued a century ahead, so that it wins when they are together again.
func (i *Issuer) heed(ctx context.Context, id string) error {
	now := i.pushes.now(id)
	if now.Lock == schemas.Killed {
		return nil
	}
	public, err := i.maker.PublicKey(id, now.Incarnation)
	if err != nil {
		return err
	}
	tokens, answered, err := i.wire.lookup(ctx, public)
	for _, token := range tokens {
		if d, ok := i.maker.Kills(token, now); ok {
			return i.fulfil(ctx, id, d)
		}
	}
	if err != nil && !(cutsOff(now.Lock) && answered > 0) {
		return fmt.Errorf("account of %s: whether it was killed meanwhile is not known: %w", id, err)
	}
	return nil
}

// fulfil logs a kill that the servers have carried out.
func (i *Issuer) fulfil(ctx context.Context, id string, d accounts.Death) error {
	req := schemas.LockRequest{AgentID: id, Lock: schemas.Killed, Actor: "warrant", Reason: "its account is killed on the servers, which the log did not say"}
	if d.By != "" {
		req.Actor = clipTo(maxActor, "warrant/"+d.By)
		req.Reason = clipTo(schemas.MaxReason, d.Reason)
	}
	l, err := i.logLock(ctx, req)
	if err != nil {
		return err
	}
	i.Logger.Warn("an agent was killed by a death warrant", "agent_id", id, "seq", l.seq, "actor", req.Actor)
	if err := i.folded.Wait(ctx, l.seq, foldWait); err != nil {
		return err
	}
	i.pushes.unforce(id) // the state says it now
	return nil
}

func clipTo(most int, s string) string { return strings.ToValidUTF8(s[:min(most, len(s))], "") }

// honour fulfils what was served on this machine, whatever became of it on the
// servers meanwhile.
func (i *Issuer) honour(ctx context.Context) error {
	for _, token := range i.Served {
		if _, err := i.judge(ctx, token); err != nil {
			return err
		}
	}
	return nil
}

// judge fulfils a death warrant, if it is one of who is in the fleet now, and
// says whose.
func (i *Issuer) judge(ctx context.Context, token string) (id string, err error) {
	d, _, err := accounts.ReadDeath(token)
	if err != nil {
		return "", nil // nobody dies by it
	}
	i.mu.RLock()
	id = i.byKey[d.Account].id
	i.mu.RUnlock()
	if id == "" {
		return "", nil
	}
	now := i.pushes.now(id)
	if _, ok := i.maker.Kills(token, now); !ok || now.Lock == schemas.Killed {
		return "", nil
	}
	return id, i.fulfil(ctx, id, d)
}

// serveWarrants hears of warrants that are served while the issuer runs.
func (i *Issuer) serveWarrants(ctx context.Context) (*nats.Subscription, error) {
	sub, err := i.System.Subscribe("$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE", func(m *nats.Msg) {
		id, err := i.judge(ctx, string(m.Data))
		if id != "" && err == nil {
			_, err = i.pushes.one(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			i.Logger.Error("a death warrant was served, and the log does not say so yet; trying again with the account's renewal", "agent_id", id, "error", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("issuer: listen for death warrants: %w", err)
	}
	return sub, nil
}

// Served is what a death warrant did.
type Served struct {
	Nodes  []string // servers that took it
	Closed int      // connections
	Before bool     // every server had the account killed already, and nobody was in it: nothing was killed
}

// ServeWarrant kills by a death warrant, by the word of the servers alone: no
// issuer has to run. nc is of the role system. That the warrant counts on the
// servers is for the caller to look at beforehand: accounts.WarrantOf.
func ServeWarrant(ctx context.Context, nc *nats.Conn, token string) (Served, error) {
	var s Served
	d, _, err := accounts.ReadDeath(token)
	if err != nil {
		return s, err
	}
	w := &wire{nc: nc}
	if err := w.count(ctx); err != nil {
		return s, err
	}
	before, err := w.askClaims(d.Account)
	if err != nil {
		return s, err
	}
	list, err := w.connections(ctx, d.Account)
	if err != nil {
		return s, err
	}
	s.Closed = len(list)
	q, err := w.ask("$SYS.REQ.ACCOUNT."+d.Account+".CLAIMS.UPDATE", []byte(token))
	if err == nil {
		s.Nodes, err = w.pushed(ctx, q)
	}
	err = errors.Join(err, w.clear(ctx, d.Account))
	// What the servers had is asked first and read last: no kill waits for it.
	tokens, _, unheard := w.heardClaims(ctx, before)
	s.Before = unheard == nil && len(tokens) >= w.want() && s.Closed == 0
	for _, had := range tokens {
		was, _, dead := accounts.ReadDeath(had)
		s.Before = s.Before && dead == nil && was.Account == d.Account
	}
	return s, err
}
