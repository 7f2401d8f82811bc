package schemas

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxDepth is how many hops a delegation may have: as many agents may stand
// between who was given a right and who uses it.
const MaxDepth = 5

// A line is one capability through its refreshes. What is derived from a
// capability hangs on its line, so that a refresh keeps it, and what ends the
// line ends it, in the same event and without another.
type line struct {
	now    *Live // the newest
	parent *line // nil where it was derived from none
	own    bool  // an agent's own right to issue: it has neither scope nor budget
	purse
}

// Exceeds says in what a grant goes beyond the one that it was derived from,
// "" where it is within in everything. Scopes are compared as they are written:
// send:bob of a child is a message of the child's own, memory:get is of its own
// memory, and both must stand in the parent.
func (g *Grant) Exceeds(parent *Grant) string {
	for _, scope := range g.Scope {
		if !slices.Contains(parent.Scope, scope) {
			return scope
		}
		if tool, call := strings.CutPrefix(scope, VerbCall+":"); call && slices.Contains(parent.ForbiddenTools, tool) {
			return scope
		}
	}
	for _, tool := range parent.ForbiddenTools {
		if !slices.Contains(g.ForbiddenTools, tool) {
			return "tool " + tool + ", which is forbidden"
		}
	}
	switch {
	case g.MaxTokens > parent.MaxTokens:
		return fmt.Sprintf("max_tokens %d of %d", g.MaxTokens, parent.MaxTokens)
	case g.Expires.After(parent.Expires):
		return "its end at " + g.Expires.Format(time.RFC3339)
	}
	return ""
}

// Parent is the newest of the capability that this one was derived from; nil
// where there is none, or where it is an agent's own right to issue.
func (l *Live) Parent() *Live {
	if l.line == nil || l.line.parent == nil || l.line.parent.own {
		return nil
	}
	return l.line.parent.now
}

// Admitted reports whether a capability is the one that admitted an action, or
// the next of it: what intake let through a moment before a refresh counts.
func (l *Live) Admitted(e *Event) bool { return l.JTI == e.JTI || l.Refreshes == e.JTI }

// Newest is what a capability has become through its refreshes, whatever ended
// it since, and whatever else was issued for its operation.
func (l *Live) Newest() *Live {
	if l.line == nil {
		return l
	}
	return l.line.now
}

// Over says why a capability does not count at a time: it, or one that it was
// derived from, has ended or expired. It is "" while it counts. The cost is
// that of the delegation's depth.
func (l *Live) Over(at time.Time) string {
	if l.Ended != "" {
		return l.Ended
	}
	if !at.Before(l.Expires) {
		return "it expired at " + l.Expires.Format(time.RFC3339)
	}
	return l.orphaned(at)
}

// orphaned is the part of Over that concerns what it was derived from.
func (l *Live) orphaned(at time.Time) string {
	if l.line == nil {
		return ""
	}
	for p := l.line.parent; p != nil; p = p.parent {
		switch {
		case p.now.Ended != "" && p.own:
			return fmt.Sprintf("%s, which issued it, is %s", p.now.Agent, p.now.Ended)
		case p.now.Ended != "":
			return fmt.Sprintf("the capability of %s for operation %s, from which it was derived, has ended: %s", p.now.Agent, p.now.Operation, p.now.Ended)
		case !p.own && !at.Before(p.now.Expires):
			return fmt.Sprintf("the capability of %s for operation %s, from which it was derived, expired at %s", p.now.Agent, p.now.Operation, p.now.Expires.Format(time.RFC3339))
		}
	}
	return ""
}

// narrowed refuses what one of those that it was derived from no longer holds:
// a refresh can have narrowed it.
func (l *Live) narrowed(action Action) *Refusal {
	for p := l.line.parent; p != nil && !p.own; p = p.parent {
		if action.Verb == VerbCall && slices.Contains(p.now.ForbiddenTools, action.Resource) {
			return Refuse(CodeForbidden, "tool %s is forbidden to %s, from whose capability for operation %s this one was derived", action.Resource, p.now.Agent, p.now.Operation)
		}
		if !slices.Contains(p.now.Scope, action.Scope()) {
			return Refuse(CodeForbidden, "%s is no longer in the scope of %s for operation %s, from which this capability was derived; left: %s",
				action.Scope(), p.now.Agent, p.now.Operation, strings.Join(p.now.Scope, " "))
		}
	}
	return nil
}

// DerivesFrom reports whether a capability is another, before or after a
// refresh, or was derived from it.
func (l *Live) DerivesFrom(other *Live) bool {
	for p := l.line; p != nil && other.line != nil; p = p.parent {
		if p == other.line {
			return true
		}
	}
	return false
}

// DerivesFromAgent reports whether a capability is an agent's, or was derived
// from one of its own.
func (l *Live) DerivesFromAgent(id string) bool {
	for p := l.line; p != nil; p = p.parent {
		if p.now.Agent == id {
			return true
		}
	}
	return false
}

// LiveByJTI finds the newest capability of an operation by its jti.
func (s *State) LiveByJTI(jti string) *Live {
	for _, a := range s.Agents {
		if l := a.ByJTI(jti); l != nil {
			return l
		}
	}
	return nil
}

// ByJTI finds the newest capability of one of an agent's operations.
func (a *Agent) ByJTI(jti string) *Live {
	for _, g := range a.Grants {
		if g.JTI == jti {
			return g
		}
	}
	return nil
}

// GrantOf is the newest capability of an operation, nil where there is none.
func (s *State) GrantOf(agent, operation string) *Live {
	if a := s.Agents[agent]; a != nil {
		return a.Grants[operation]
	}
	return nil
}

// issued takes a grant over: as the next of its line, where it refreshes what
// counts, or as the first of a new one. One that was derived must still be
// within what it was derived from here, in log order; else it never counts.
func (s *State) issued(a *Agent, e *Event, g Grant) {
	live := &Live{Grant: g, Seq: e.Seq}
	var parent *line
	switch {
	case a.Lock == Suspended || a.Lock == Killed:
		// Issued in a race with the lock: what a resumed agent may do, it
		// asks for anew.
		live.Ended = string(a.Lock) + ": " + a.LockReason
	case g.ParentAgent != "":
		parent, live.Ended = s.parentOf(&g, e.Time)
		live.never = live.Ended != ""
	}
	old := a.Grants[g.Operation]
	a.Grants[g.Operation] = live
	// Where the log's oldest part has aged out, a reader can miss what the one
	// before was derived from; the next stands for itself.
	refreshes := old != nil && g.Refreshes != "" && old.JTI == g.Refreshes && !old.never
	if refreshes && live.Ended == "" {
		live.Ended = old.Ended
		if live.Ended == "" && old.line.parent != parent {
			live.Ended = "it was derived from another capability than the one that it replaces"
		}
	}
	if refreshes && live.Ended == "" {
		live.line = old.line
		live.line.renew(live)
		return
	}
	if old != nil {
		old.finish("another was issued for the operation")
	}
	live.line = &line{now: live, parent: parent, purse: purse{account: a.account(g.Operation)}}
	if live.Ended != "" {
		live.line.parent, live.line.closed = nil, true
		return
	}
	live.line.open()
}

// parentOf finds the line from which a grant says that it was derived, and says
// why it could not be.
func (s *State) parentOf(g *Grant, at time.Time) (*line, string) {
	by := s.Agents[g.ParentAgent]
	switch {
	case by == nil || by.Kind != KindAgent:
		return nil, g.ParentAgent + ", which issued it, is no agent of this fleet"
	case by.Lock == Suspended || by.Lock == Killed:
		return nil, fmt.Sprintf("%s, which issued it, is %s: %s", by.ID, by.Lock, by.LockReason)
	case len(g.Act) > MaxDepth:
		return nil, fmt.Sprintf("it was delegated over %d hops; %d are possible", len(g.Act), MaxDepth)
	case slices.Contains(g.Act, g.Agent):
		return nil, "it was delegated in a circle, back to " + g.Agent
	}
	if g.ParentOperation == "" {
		if !slices.Equal(g.Act, []string{by.ID}) {
			return nil, "its actors are not those who delegated it"
		}
		return by.right(), ""
	}
	p := by.Grants[g.ParentOperation]
	switch {
	case p == nil:
		return nil, fmt.Sprintf("%s holds no capability for operation %s", by.ID, g.ParentOperation)
	case p.JTI != g.Parent && p.Refreshes != g.Parent:
		return nil, "the capability from which it was derived was replaced"
	case !slices.Equal(g.Act, append([]string{by.ID}, p.Act...)):
		return nil, "its actors are not those who delegated it"
	}
	if why := p.Over(at); why != "" {
		return nil, "what it was derived from does not count: " + why
	}
	if what := g.Exceeds(&p.Grant); what != "" {
		return nil, "it goes beyond what it was derived from: " + what
	}
	return p.line, ""
}

// right is an agent's own right to issue, on which hangs what it issued without
// a capability. It ends when the agent is suspended, killed or removed.
func (a *Agent) right() *line {
	if a.issues == nil {
		a.issues = &line{own: true, now: &Live{Grant: Grant{Agent: a.ID}}}
	}
	return a.issues
}

// cutOff ends all that an agent holds, and all that it issued.
func (a *Agent) cutOff(why string) {
	for _, g := range a.Grants {
		g.finish(why)
	}
	if a.issues != nil {
		a.issues.now.Ended = why
		a.issues = nil
	}
}

// finish ends a capability; what ended first, counts.
func (l *Live) finish(why string) {
	if l.Ended == "" {
		l.Ended = why
		l.line.close()
	}
}

// renew puts a refreshed capability in the place of the one before.
func (l *line) renew(live *Live) {
	before := l.claim()
	l.now = live
	l.pass(before)
}
