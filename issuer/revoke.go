package issuer

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// revoke ends a capability, in one event; what was derived from it ends with
// it. The answer comes when release has worked through the log to there, and
// says what the log says.
func (i *Issuer) revoke(ctx context.Context, req schemas.RevokeRequest) (schemas.RevokeReply, error) {
	start := i.Now()
	if err := checkActor(req.Actor); err != nil {
		return schemas.RevokeReply{}, err
	}
	if err := checkReason(req.Reason); err != nil {
		return schemas.RevokeReply{}, err
	}
	t := newTrack("")
	g, err := i.logRevocation(ctx, req, t)
	defer i.forgetRevocation(req.JTI, t)
	if err != nil {
		return schemas.RevokeReply{}, err
	}
	reply := schemas.RevokeReply{JTI: g.JTI, AgentID: g.Agent, Revoked: []string{}, Cancelled: []uint64{}}
	wait, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	select {
	case <-t.done:
	case <-wait.Done():
		reply.Partial = true
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	reply.Seq = t.seq
	reply.Revoked = append(reply.Revoked, t.revoked...)
	reply.Cancelled = append(reply.Cancelled, t.cancelled...)
	slices.Sort(reply.Cancelled)
	reply.ElapsedMS = float64(i.Now().Sub(start).Microseconds()) / 1000
	return reply, nil
}

// logRevocation logs the revocation of a capability as it then is: no refresh
// can come in between.
func (i *Issuer) logRevocation(ctx context.Context, req schemas.RevokeRequest, t *track) (schemas.Grant, error) {
	find := func() (g schemas.Grant, err error) {
		i.mu.RLock()
		defer i.mu.RUnlock()
		live := i.state.LiveByJTI(req.JTI)
		if live == nil {
			return g, schemas.Refuse(schemas.CodeNotFound, "no capability that counts has the jti %s: it has ended, or a refresh replaced it; see writ tokens", clip(req.JTI))
		}
		if live.Ended != "" {
			return g, schemas.Refuse(schemas.CodeConflict, "the capability has ended already: %s", live.Ended)
		}
		return live.Grant, nil
	}
	g, err := find()
	if err != nil {
		return g, err
	}
	defer i.gates.pass(g.Agent)()
	if g, err = find(); err != nil {
		return g, err
	}
	i.mu.Lock()
	i.tracks.revoking[req.JTI] = append(i.tracks.revoking[req.JTI], t)
	i.mu.Unlock()
	e := endOf(g, req.Reason)
	e.ID, e.Kind, e.Actor = "issuer-revoked-"+g.JTI, schemas.TokenRevoked, req.Actor
	_, err = i.append(ctx, e)
	return g, err
}

func (i *Issuer) forgetRevocation(jti string, t *track) {
	i.mu.Lock()
	defer i.mu.Unlock()
	left := slices.DeleteFunc(i.tracks.revoking[jti], func(other *track) bool { return other == t })
	if len(left) == 0 {
		delete(i.tracks.revoking, jti)
		return
	}
	i.tracks.revoking[jti] = left
}

// tokens lists the capabilities that count.
func (i *Issuer) tokens(ctx context.Context, req schemas.TokensRequest) (schemas.TokensReply, error) {
	limit, err := pageLimit(req.Limit)
	if err != nil {
		return schemas.TokensReply{}, err
	}
	if req.AgentID != "" && !view(i, func(s *schemas.State) bool { return s.Agents[req.AgentID] != nil }) {
		return schemas.TokensReply{}, schemas.Refuse(schemas.CodeNotFound, "%s is no agent of this fleet; see writ status", clip(req.AgentID))
	}
	list := view(i, func(s *schemas.State) []schemas.TokenInfo { return liveTokens(s, req.AgentID, req.After, i.Now()) })
	reply := schemas.TokensReply{Tokens: list}
	if len(list) > limit {
		reply.Tokens = list[:limit]
		last := list[limit-1]
		reply.Next = last.AgentID + "." + last.OperationID
	}
	i.addSpent(ctx, reply.Tokens)
	return reply, nil
}

// liveTokens lists capabilities by agent and operation, those behind after,
// which has both, with a dot in between that neither can hold.
func liveTokens(s *schemas.State, only, after string, now time.Time) []schemas.TokenInfo {
	list := []schemas.TokenInfo{}
	afterAgent, afterOperation, _ := strings.Cut(after, ".")
	for id, a := range s.Agents {
		if only != "" && id != only || id < afterAgent {
			continue
		}
		for op, g := range a.Grants {
			if id == afterAgent && op <= afterOperation || g.Over(now) != "" {
				continue
			}
			list = append(list, schemas.TokenInfo{JTI: g.JTI, AgentID: id, OperationID: op, Scope: append([]string{}, g.Scope...), ExpiresAt: g.Expires,
				Parent: g.Grant.Parent, Act: append([]string{}, g.Act...), Depth: len(g.Act), IssuedBy: g.IssuedBy, TraceID: g.TraceID, MaxTokens: g.MaxTokens, Notes: g.Notes})
		}
	}
	slices.SortFunc(list, func(a, b schemas.TokenInfo) int {
		if c := strings.Compare(a.AgentID, b.AgentID); c != 0 {
			return c
		}
		return strings.Compare(a.OperationID, b.OperationID)
	})
	return list
}

// addSpent puts in what release says was used. Without it the list stands, for
// whoever looks for a capability to revoke.
func (i *Issuer) addSpent(ctx context.Context, list []schemas.TokenInfo) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, riskWait)
	defer cancel()
	req := schemas.BudgetsRequest{Of: make([]schemas.OperationRef, len(list))}
	for n, t := range list {
		req.Of[n] = schemas.OperationRef{AgentID: t.AgentID, OperationID: t.OperationID}
	}
	reply, err := bus.Call[schemas.BudgetsReply](ctx, i.Control, schemas.CtlBudgets, req)
	if err != nil || len(reply.Budgets) != len(list) {
		i.Logger.Warn("release does not say what was used", "error", err)
		return
	}
	for n := range list {
		spent := reply.Budgets[n].Spent
		list[n].Spent = &spent
	}
}
