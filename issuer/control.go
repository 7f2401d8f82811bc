package issuer

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const (
	pageDefault = 100
	pageMost    = 1000
	asksOpen    = 64 // questions to the servers at once, for one status
)

// serveControl answers operators.
func (i *Issuer) serveControl() error {
	for _, serve := range []func() error{
		func() error { return take(i, schemas.CtlApply, i.apply) },
		func() error { return take(i, schemas.CtlEnroll, i.enroll) },
		func() error { return take(i, schemas.CtlIssue, i.issueForOperator) },
		func() error { return take(i, schemas.CtlLock, i.lock) },
		func() error { return take(i, schemas.CtlLockdown, i.lockdown) },
		func() error { return take(i, schemas.CtlRotate, i.rotate) },
		func() error { return take(i, schemas.CtlWarrant, i.warrant) },
		func() error { return take(i, schemas.CtlReview, i.review) },
		func() error { return take(i, schemas.CtlReviews, i.reviews) },
		func() error { return take(i, schemas.CtlStatus, i.Status) },
		func() error { return take(i, schemas.CtlTokens, i.tokens) },
		func() error { return take(i, schemas.CtlRevoke, i.revoke) },
		func() error { return take(i, schemas.CtlJWKS, i.publishKeys) },
		func() error { i.orders[schemas.CtlSignal] = i.signalFor; return nil },
		func() error { return bus.Handle(i.Control, i.Logger, schemas.CtlHealth, i.health) },
		i.serveOperators,
	} {
		if err := serve(); err != nil {
			return err
		}
	}
	return nil
}

func (i *Issuer) health(context.Context, struct{}) (schemas.Health, error) {
	return schemas.Health{Service: "issuer", OK: true, Seq: i.folded.At(), Warning: ownExpiring(i.expiring(i.Now()))}, nil
}

func (i *Issuer) publishKeys(context.Context, struct{}) (json.RawMessage, error) {
	return i.JWKS(), nil
}

func (i *Issuer) issueForOperator(ctx context.Context, req schemas.IssueRequest) (schemas.IssueReply, error) {
	return i.issue(ctx, asker{name: req.Actor}, req)
}

// review ends the review of a held action.
func (i *Issuer) review(ctx context.Context, req schemas.ReviewRequest) (schemas.ReviewReply, error) {
	agent := view(i, func(s *schemas.State) string {
		if held := heldAction(s, req.Seq); held != nil {
			return held.Agent
		}
		return ""
	})
	defer i.locks.pass(agent)()
	i.mu.RLock()
	e, err := decideReview(i.state, req)
	i.mu.RUnlock()
	if err != nil {
		return schemas.ReviewReply{}, err
	}
	if _, err := i.append(ctx, e); err != nil {
		return schemas.ReviewReply{}, err
	}
	state := map[schemas.Kind]string{schemas.ReviewApproved: "approved", schemas.ReviewDenied: "denied", schemas.ReviewEndorsed: "endorsed"}[e.Kind]
	return schemas.ReviewReply{Seq: req.Seq, AgentID: e.Agent, Action: e.Action.String(), State: state}, nil
}

// reviews lists what is held, oldest first.
func (i *Issuer) reviews(_ context.Context, req schemas.PageRequest) (schemas.ReviewsReply, error) {
	limit, err := pageLimit(req.Limit)
	if err != nil {
		return schemas.ReviewsReply{}, err
	}
	var after uint64
	if req.After != "" {
		if after, err = strconv.ParseUint(req.After, 10, 64); err != nil {
			return schemas.ReviewsReply{}, schemas.Refuse(schemas.CodeMalformed, "after %q is no sequence", clip(req.After))
		}
	}
	two := map[string]bool{}
	held := view(i, func(s *schemas.State) []*schemas.Event {
		held := heldActions(s, after)
		for _, e := range held {
			two[e.Agent] = s.Agents[e.Agent].TwoPerson
		}
		return held
	})
	if len(held) > limit {
		held = held[:limit]
	}
	reply := schemas.ReviewsReply{Reviews: []schemas.Review{}}
	for _, e := range held {
		r := schemas.Review{Seq: e.Seq, AgentID: e.Agent, Operation: e.Operation, Action: e.Action.String(),
			Risk: e.Risk, Factors: []schemas.Factor{}, Time: e.Time, Digest: e.Digest.String(),
			TwoPerson: two[e.Agent], Endorsed: e.Actor, Paused: e.Lock == ""}
		var v schemas.Verdict
		if len(e.Verdict) > 0 {
			if err := schemas.Unmarshal(e.Verdict, &v); err != nil {
				return reply, err
			}
			r.Factors = append(r.Factors, v.Factors...)
		}
		reply.Reviews = append(reply.Reviews, r)
	}
	return reply, nil
}

// heldActions lists what is held behind a sequence, in order. The events are
// never changed once they are in the state.
func heldActions(s *schemas.State, after uint64) []*schemas.Event {
	var out []*schemas.Event
	for _, a := range s.Agents {
		for seq, e := range a.Held {
			if seq > after {
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, func(a, b *schemas.Event) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	return out
}

func pageLimit(n int) (int, error) {
	switch {
	case n == 0:
		return pageDefault, nil
	case n < 1 || n > pageMost:
		return 0, schemas.Refuse(schemas.CodeMalformed, "limit %d: 1 to %d are possible", n, pageMost)
	}
	return n, nil
}

// Status tells of the fleet, by id: a page of it, or one principal.
func (i *Issuer) Status(ctx context.Context, req schemas.StatusRequest) (schemas.StatusReply, error) {
	limit, err := pageLimit(req.Limit)
	if err != nil {
		return schemas.StatusReply{}, err
	}
	reply := schemas.StatusReply{Lockdown: view(i, func(s *schemas.State) string { return s.Lockdown }), Agents: view(i, func(s *schemas.State) []schemas.AgentStatus {
		return i.statuses(s, req.AgentID, req.After)
	})}
	if req.AgentID != "" && len(reply.Agents) == 0 {
		return reply, schemas.Refuse(schemas.CodeNotFound, "%s is neither an agent nor a service of this fleet; see writ status", clip(req.AgentID))
	}
	if len(reply.Agents) > limit {
		reply.Agents = reply.Agents[:limit]
		reply.Next = reply.Agents[limit-1].AgentID
	}
	if req.AgentID == "" && req.After == "" {
		reply.Expiring = i.expiring(i.Now())
		reply.Expiring = reply.Expiring[:min(len(reply.Expiring), expiringMost)]
	}
	i.addRisks(ctx, reply.Agents)
	return reply, i.countConnections(ctx, reply.Agents)
}

// riskWait bounds how long a status waits for the monitor.
const riskWait = 2 * time.Second

// addRisks puts in what the monitor says now. Without it, the newest that the
// issuer itself folded stands: whoever looks for what is down must get an
// answer.
func (i *Issuer) addRisks(ctx context.Context, list []schemas.AgentStatus) {
	ctx, cancel := context.WithTimeout(ctx, riskWait)
	defer cancel()
	ids := make([]string, len(list))
	for n := range list {
		ids[n] = list[n].AgentID
	}
	rep, err := bus.Call[schemas.RisksReply](ctx, i.Control, schemas.CtlRisks, schemas.RisksRequest{AgentIDs: ids})
	if err != nil {
		i.Logger.Warn("the monitor does not say the agents' risks", "error", err)
		return
	}
	at := 0
	for _, r := range rep.Risks { // in the order of the list
		for at < len(list) && list[at].AgentID != r.AgentID {
			at++
		}
		if at < len(list) {
			list[at].Risk, list[at].LastSeq = r.Risk, max(list[at].LastSeq, r.Seq)
		}
	}
}

func (i *Issuer) statuses(s *schemas.State, only, after string) []schemas.AgentStatus {
	now := i.Now()
	out := []schemas.AgentStatus{}
	for id, a := range s.Agents {
		if only != "" && id != only || id <= after {
			continue
		}
		st := schemas.AgentStatus{AgentID: id, Kind: a.Kind, State: a.Lock, Risk: a.Risk, LastSeq: a.LastSeq, Operations: []string{}}
		if a.Lock != schemas.Active {
			st.Reason = a.LockReason
		}
		st.Causes = slices.Sorted(maps.Keys(a.Causes))
		if end, ok := i.svids[id]; ok {
			st.SVIDExpires = &end
		}
		for op, g := range a.Grants {
			if g.Over(now) == "" {
				st.Operations = append(st.Operations, op)
			}
		}
		slices.Sort(st.Operations)
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b schemas.AgentStatus) int { return strings.Compare(a.AgentID, b.AgentID) })
	return out
}

func (i *Issuer) countConnections(ctx context.Context, list []schemas.AgentStatus) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(asksOpen)
	var mu sync.Mutex
	for n := range list {
		g.Go(func() error {
			public, err := i.publicKey(list[n].AgentID)
			if err != nil {
				return err
			}
			conns, err := i.wire.connections(ctx, public)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			list[n].Connections = len(conns)
			return nil
		})
	}
	return g.Wait()
}
