package issuer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// A parent is what a capability for another agent is derived from.
//
// An agent with a ceiling derives from a capability of its own that counts, and
// never hands on more than that holds: else who was given little could ask for
// more through another. An agent without a ceiling can hold nothing. Its
// may_issue_for is the right that the fleet file gives it, to hand out within
// the others' ceilings; what it issued hangs on it all the same, and ends when
// it is suspended or killed.
type parent struct {
	agent string
	grant *schemas.Live // nil: the agent's own right to issue
	free  int64         // tokens of it that are neither used nor reserved
}

// parentOf finds what a request is derived from; nil where an operator asks, or
// an agent for itself.
func parentOf(s *schemas.State, who asker, req schemas.IssueRequest, now time.Time) (*parent, error) {
	if who.agent == "" || who.agent == req.AgentID {
		if req.ParentOperation != "" {
			return nil, schemas.Refuse(schemas.CodeMalformed, "parent_operation %s: only a capability for another agent is derived from one's own; leave it out", clip(req.ParentOperation))
		}
		return nil, nil
	}
	by := s.Agents[who.agent]
	if by == nil {
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "%s is no agent of this fleet", who.agent)
	}
	if req.ParentOperation == "" && by.Ceiling == nil {
		return &parent{agent: by.ID}, nil
	}
	operation, err := parentOperation(by, req.ParentOperation, now)
	if err != nil {
		return nil, err
	}
	g := by.Grants[operation]
	switch {
	case g == nil:
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "%s holds no capability for operation %s, from which one for %s could be derived; it has: %s", by.ID, clip(operation), req.AgentID, orNone(liveOperations(by, now)))
	case g.Over(now) != "":
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "the capability of %s for operation %s no longer counts (%s), so that none can be derived from it", by.ID, operation, g.Over(now))
	case len(g.Act) >= schemas.MaxDepth:
		return nil, schemas.Refuse(schemas.CodeForbidden, "the capability of %s for operation %s was handed on %d times already, by %s; that is as far as it goes", by.ID, operation, len(g.Act), strings.Join(g.Act, ", "))
	case slices.Contains(g.Act, req.AgentID):
		return nil, schemas.Refuse(schemas.CodeForbidden, "%s handed on the capability of %s for operation %s itself; a delegation does not come back", req.AgentID, by.ID, operation)
	}
	return &parent{agent: by.ID, grant: g}, nil
}

// parentOperation is the operation that a request names, or the only one that
// there is: with several, a guess could hand on too much.
func parentOperation(by *schemas.Agent, named string, now time.Time) (string, error) {
	if named != "" {
		if err := schemas.CheckID("parent_operation", named); err != nil {
			return "", schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		return named, nil
	}
	switch live := liveOperations(by, now); len(live) {
	case 0:
		return "", schemas.Refuse(schemas.CodeUnauthorized, "%s holds no capability that counts, so that it has nothing to hand on; ask for one of its own first", by.ID)
	case 1:
		return live[0], nil
	default:
		return "", schemas.Refuse(schemas.CodeMalformed, "%s holds several capabilities; name the one to derive from with parent_operation: %s", by.ID, strings.Join(live, " "))
	}
}

func liveOperations(a *schemas.Agent, now time.Time) []string {
	var out []string
	for op, g := range a.Grants {
		if g.Over(now) == "" {
			out = append(out, op)
		}
	}
	slices.Sort(out)
	return out
}

// derive puts a grant under its parent. What goes beyond it is refused as a
// whole; what only narrows (the end, forbidden tools, trace and task) is taken
// over.
func (p *parent) derive(g *schemas.Grant, req schemas.IssueRequest) error {
	g.ParentAgent, g.Act = p.agent, []string{p.agent}
	if p.grant == nil {
		return nil
	}
	from := p.grant
	g.Parent, g.ParentOperation = from.JTI, from.Operation
	g.Act = append(g.Act, from.Act...)
	g.TTLSeconds = int64(g.Expires.Sub(g.NotBefore) / time.Second)
	if req.TTLSeconds == 0 && g.Expires.After(from.Expires) {
		g.Expires = from.Expires
	}
	if req.TraceID != "" && req.TraceID != from.TraceID {
		return p.beyond("trace "+req.TraceID, from.TraceID)
	}
	g.TraceID = from.TraceID
	if g.Task == "" {
		g.Task = from.Task
	}
	for _, scope := range g.Scope {
		if tool, call := strings.CutPrefix(scope, schemas.VerbCall+":"); call && slices.Contains(from.ForbiddenTools, tool) {
			return schemas.Refuse(schemas.CodeForbidden, "tool %s is forbidden to %s in operation %s, and so to whom it hands on; a denial always wins", tool, p.agent, from.Operation)
		}
	}
	g.ForbiddenTools = sorted(slices.Concat(g.ForbiddenTools, from.ForbiddenTools))
	if what := g.Exceeds(&from.Grant); what != "" {
		return p.beyond(what, fmt.Sprintf("%s; max_tokens %d; until %s", orNone(from.Scope), from.MaxTokens, from.Expires.Format(time.RFC3339)))
	}
	if g.MaxTokens > p.free {
		return schemas.Refuse(schemas.CodeBudget, "max_tokens %d is more than operation %s of %s has left to reserve: %d of %d", g.MaxTokens, from.Operation, p.agent, p.free, from.MaxTokens)
	}
	if !g.Expires.After(g.NotBefore) {
		return schemas.Refuse(schemas.CodeUnauthorized, "the capability of %s for operation %s ends within this second; refresh it first", p.agent, from.Operation)
	}
	return nil
}

func (p *parent) beyond(what, allowed string) error {
	return schemas.Refuse(schemas.CodeForbidden, "%s is beyond the capability of %s for operation %s, from which it is to be derived; allowed: %s", what, p.agent, p.grant.Operation, allowed)
}

// within keeps a renewed grant within what it was derived from as that is now.
func within(g *schemas.Grant, old *schemas.Live) {
	from := old.Parent()
	if from == nil {
		return
	}
	g.Parent = from.JTI
	g.Scope = slices.DeleteFunc(g.Scope, func(s string) bool { return !slices.Contains(from.Scope, s) })
	g.ForbiddenTools = sorted(slices.Concat(g.ForbiddenTools, from.ForbiddenTools))
	g.MaxTokens = min(g.MaxTokens, from.MaxTokens)
	if g.Expires.After(from.Expires) {
		g.Expires = from.Expires
	}
}

// budgetLeft asks release what is left of the budget from which a request wants
// some: release alone knows what was used. It must know of all that was issued
// until now, too.
func (i *Issuer) budgetLeft(ctx context.Context, who asker, req schemas.IssueRequest) (int64, error) {
	if req.MaxTokens == 0 || who.agent == "" || who.agent == req.AgentID {
		return 0, nil
	}
	var of schemas.OperationRef
	err := view(i, func(s *schemas.State) error {
		p, err := parentOf(s, who, req, i.Now())
		if p != nil && p.grant != nil {
			of = schemas.OperationRef{AgentID: p.agent, OperationID: p.grant.Operation}
		}
		return err
	})
	if err != nil || of.AgentID == "" {
		return 0, err
	}
	reply, err := bus.Call[schemas.BudgetsReply](ctx, i.Control, schemas.CtlBudgets, schemas.BudgetsRequest{Of: []schemas.OperationRef{of}, After: i.folded.At()})
	if err != nil || len(reply.Budgets) != 1 {
		i.Logger.Warn("release does not say what is left of a budget", "agent_id", of.AgentID, "operation", of.OperationID, "error", err)
		return 0, schemas.Refuse(schemas.CodeUnavailable, "what is left of the budget of %s is not known now; ask again, or for no tokens", of.AgentID)
	}
	return reply.Budgets[0].Free, nil
}
