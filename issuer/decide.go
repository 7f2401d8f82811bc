package issuer

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// Bounds of what can be asked for.
const (
	defaultTTL = 300              // seconds, where neither request nor ceiling says
	maxTask    = 16 << 10         // bytes of a task's text
	maxScopes  = 120              // scopes, tools and forbidden tools of one capability
	maxActor   = 200              // bytes of an operator's name
	moment     = 10 * time.Second // within which a refresh that is asked for again is the same
	maxOpen    = 1000             // operations of one agent that one agent has opened
)

// An asker is who asks for a capability: an agent, known by the account that
// the server stamped, or an operator, known by the right to ask.
type asker struct {
	agent string // "" for an operator
	name  string // what stands in issued_by
	// certificate is the SHA-256, hex, of the one that its connection showed;
	// "" where none was seen.
	certificate string
	// incarnation is that of the account that the server stamped, or of the
	// credential that was shown.
	incarnation string
}

// stands refuses who bears the name no more: it asked, or its credential was
// read, a moment ago, and since then it was killed, and the name enrolled anew.
func (who asker) stands(s *schemas.State) error {
	if who.agent == "" {
		return nil
	}
	if a := s.Agents[who.agent]; a == nil || a.Incarnation != who.incarnation {
		return schemas.Refuse(schemas.CodeUnauthorized, "%s was enrolled anew; use the newer credential", who.agent)
	}
	return nil
}

// A fresh is what a decision must not make up by itself.
type fresh struct {
	now   time.Time
	jti   string
	trace string // used where the request names none
	free  int64  // tokens that are left of what the request is derived from
	rails *guard.Rails
	// signs reports whether a token says that the key signed it that signs now;
	// where it is nil, none does.
	signs func(token string) bool
}

// decideIssue says which capability a request gets: all of it, or none.
//
// In observe mode what ceilings and guard rails would refuse, all of it, is noted
// in the grant instead, which then is what the request asks for.
func decideIssue(s *schemas.State, who asker, req schemas.IssueRequest, f fresh) (schemas.Grant, error) {
	a, err := agentThatMayAct(s, req.AgentID)
	if err != nil {
		return schemas.Grant{}, err
	}
	ceiling := a.Ceiling
	if ceiling == nil {
		ceiling = &schemas.Ceiling{}
	}
	if err := mayIssueFor(s, who, a); err != nil {
		return schemas.Grant{}, err
	}
	from, err := parentOf(s, who, req, f.now)
	if err != nil {
		return schemas.Grant{}, err
	}
	scope, err := checkRequest(s, req, ceiling)
	if err != nil {
		return schemas.Grant{}, err
	}
	if err := room(a, who, req.OperationID); err != nil {
		return schemas.Grant{}, err
	}
	over := overCeiling(req, scope, ceiling, f.now)
	if len(over) > 0 && !a.Observed() {
		return schemas.Grant{}, over[0]
	}
	g := asked(who, a, ceiling, scope, req, f)
	if from != nil {
		from.free = f.free
		if err := from.derive(&g, req); err != nil {
			return g, err
		}
	}
	over = append(over, overLater(f.rails, s, a, ceiling, &g)...)
	if len(over) > 0 && !a.Observed() {
		return g, over[0]
	}
	for _, refusal := range over {
		g.Notes = append(g.Notes, "observe mode: "+refusal.Error())
	}
	return g, nil
}

// room refuses an agent one more operation that has very many already: all of the
// control plane remembers each, with its task, while it lasts.
func room(a *schemas.Agent, who asker, operation string) error {
	if who.agent == "" || len(a.Grants) < maxOpen || a.Grants[operation] != nil {
		return nil
	}
	open := 0
	for _, g := range a.Grants {
		if g.IssuedBy == who.name {
			open++
		}
	}
	if open < maxOpen {
		return nil
	}
	return schemas.Refuse(schemas.CodeRate, "%s has opened %d operations of %s that have not ended; give those up that are done (out.token.release), or wait until they expire", who.agent, open, a.ID)
}

// asked is the grant of what is asked for. In observe mode a tool of it can be
// one that the ceiling forbids: the denial would enforce what is only watched.
func asked(who asker, a *schemas.Agent, ceiling *schemas.Ceiling, scope []string, req schemas.IssueRequest, f fresh) schemas.Grant {
	forbidden := slices.DeleteFunc(sorted(slices.Concat(ceiling.ForbiddenTools, req.ForbiddenTools)), func(tool string) bool {
		return slices.Contains(scope, schemas.VerbCall+":"+tool)
	})
	ttl := req.TTLSeconds
	if ttl == 0 {
		ttl = ceilingTTL(ceiling)
	}
	trace := req.TraceID
	if trace == "" {
		trace = f.trace
	}
	start := f.now.UTC().Truncate(time.Second)
	return schemas.Grant{
		JTI: f.jti, Agent: a.ID, Operation: req.OperationID,
		Scope: scope, ForbiddenTools: forbidden,
		NotBefore: start, Expires: start.Add(time.Duration(ttl) * time.Second),
		MaxTokens: req.MaxTokens, Task: req.Task, Job: req.Job, TraceID: trace,
		PublicKey: req.PublicKey, IssuedBy: who.name,
	}
}

// overLater lists what can be refused once the whole grant is known: what
// outlives an exception that it rests on, and what guard rails forbid. Those in
// shadow mode are noted.
func overLater(rails *guard.Rails, s *schemas.State, a *schemas.Agent, ceiling *schemas.Ceiling, g *schemas.Grant) (over []error) {
	if x := outlived(ceiling, *g); x != nil {
		over = append(over, schemas.Refuse(schemas.CodeForbidden, "%s is an exception of %s until %s (%s); ask for a ttl that ends before", x.Scope, a.ID, x.Until.Format(time.RFC3339), x.Reason))
	}
	forbidden, shadow := rails.Decide(railQuestion(s.Principal, a, *g))
	for _, f := range forbidden {
		over = append(over, schemas.Refuse(schemas.CodeForbidden, "%s to %s", f, a.ID))
	}
	for _, f := range shadow {
		g.Notes = append(g.Notes, "shadow: "+f.String())
	}
	return over
}

// OffRails says which guard rail forbids a grant, "" where none does. others are
// the principals of the fleet, nil for who is none.
func OffRails(rails *guard.Rails, others func(id string) *schemas.Principal, a *schemas.Agent, g schemas.Grant) string {
	forbidden, _ := rails.Decide(railQuestion(others, a, g))
	if len(forbidden) == 0 {
		return ""
	}
	return forbidden[0].String()
}

func railQuestion(others func(id string) *schemas.Principal, a *schemas.Agent, g schemas.Grant) guard.Question {
	self := known(a.Principal)
	return guard.Question{Agent: a.ID, Owner: self.Owner, Jobs: self.Jobs, Scope: g.Scope, Operation: g.Operation, Job: g.Job, Task: g.Task,
		TTLSeconds: int64(g.Expires.Sub(g.NotBefore) / time.Second), MaxTokens: g.MaxTokens, IssuedBy: g.IssuedBy, Chain: g.Act,
		Others: func(id string) *guard.Agent {
			p := others(id)
			if p == nil {
				return nil
			}
			return known(*p)
		}}
}

func known(p schemas.Principal) *guard.Agent {
	a := &guard.Agent{Owner: p.Owner}
	if p.Ceiling != nil {
		a.Jobs = p.Ceiling.Jobs
	}
	return a
}

// outlived finds an exception that ends before a grant that rests on it. Of
// several for one scope the last counts.
func outlived(c *schemas.Ceiling, g schemas.Grant) *schemas.Exception {
	lasting := ceilingScopes(c)
	for _, scope := range g.Scope {
		if slices.Contains(lasting, scope) {
			continue
		}
		var last *schemas.Exception
		for n, x := range c.Exceptions {
			if x.Scope == scope && (last == nil || x.Until.After(last.Until)) {
				last = &c.Exceptions[n]
			}
		}
		if last != nil && g.Expires.After(last.Until) {
			return last
		}
	}
	return nil
}

// agentThatMayAct finds an agent that may hold a capability.
func agentThatMayAct(s *schemas.State, id string) (*schemas.Agent, error) {
	if err := schemas.CheckID("agent_id", id); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if s.Lockdown != "" {
		return nil, schemas.Refuse(schemas.CodeCancelled, "the fleet is locked down: %s; nobody gets a capability until an operator lifts it", s.Lockdown)
	}
	a := s.Agents[id]
	if a == nil || a.Kind != schemas.KindAgent {
		return nil, schemas.Refuse(schemas.CodeNotFound, "%s is no agent of this fleet; declare it in the fleet file and run writ apply", id)
	}
	return a, lockRefusal(a)
}

// lockRefusal says why an agent under a lock gets nothing.
func lockRefusal(a *schemas.Agent) error {
	switch a.Lock {
	case schemas.Killed:
		return schemas.Refuse(schemas.CodeCancelled, "%s was killed: %s; an operator may enrol it anew", a.ID, a.LockReason)
	case schemas.Suspended:
		return schemas.Refuse(schemas.CodeCancelled, "%s is suspended: %s; an operator must resume it", a.ID, a.LockReason)
	case schemas.Paused:
		until := "an operator resumes it (writ resume)"
		if a.Held[a.LockSeq] != nil {
			until = fmt.Sprintf("its action %d is approved (writ review approve), or an operator resumes it", a.LockSeq)
		}
		return schemas.Refuse(schemas.CodeHeld, "%s is paused: %s; it gets no capability until %s", a.ID, a.LockReason, until)
	}
	return nil
}

func mayIssueFor(s *schemas.State, who asker, a *schemas.Agent) error {
	if who.agent == "" {
		return checkActor(who.name)
	}
	by := s.Agents[who.agent]
	if by == nil {
		return schemas.Refuse(schemas.CodeUnauthorized, "%s is no agent of this fleet", who.agent)
	}
	if who.agent == a.ID {
		if a.DelegatedOnly {
			return schemas.Refuse(schemas.CodeForbidden, "%s may not ask for itself (delegated_only); an agent that may issue for it, or an operator, gives it what it needs", a.ID)
		}
		return nil
	}
	if err := lockRefusal(by); err != nil {
		return err
	}
	if !slices.Contains(by.MayIssueFor, a.ID) {
		may := "nobody but itself"
		if len(by.MayIssueFor) > 0 {
			may = strings.Join(by.MayIssueFor, " ")
		}
		return schemas.Refuse(schemas.CodeForbidden, "%s may not issue for %s (may_issue_for: %s)", by.ID, a.ID, may)
	}
	return nil
}

func checkActor(name string) error {
	if name == "" || len(name) > maxActor || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return schemas.Refuse(schemas.CodeMalformed, "actor %.40q: it must be 1 to %d printable characters without spaces", name, maxActor)
	}
	return nil
}

// checkRequest holds a request against the grammar and what can be granted at
// all, and turns what it asks for into exact scopes.
func checkRequest(s *schemas.State, req schemas.IssueRequest, ceiling *schemas.Ceiling) (scope []string, err error) {
	if err := schemas.CheckID("operation_id", req.OperationID); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if req.Job != "" && schemas.CheckID("job", req.Job) != nil { // no ceiling can admit it
		return nil, beyondJob(req, ceiling)
	}
	if req.TraceID != "" {
		if err := schemas.CheckTrace(req.TraceID); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
	}
	if len(req.Task) > maxTask {
		return nil, schemas.Refuse(schemas.CodeTooLarge, "the task has %d bytes, %d are possible", len(req.Task), maxTask)
	}
	if req.Audience != "" && req.Audience != s.TrustDomain {
		if to := s.Agents[req.Audience]; to == nil || to.Kind != schemas.KindService {
			return nil, schemas.Refuse(schemas.CodeNotFound, "audience %s is no service of this fleet; leave it out for the whole trust domain", clip(req.Audience))
		}
	}
	if req.PublicKey != "" && !nkeys.IsValidPublicUserKey(req.PublicKey) {
		return nil, schemas.Refuse(schemas.CodeMalformed, "public_key %s is not a public user NKey; leave it out to have one made", clip(req.PublicKey))
	}
	if err := checkDPoPKey(req.DPoPKey, req.Audience != "" && req.Audience != s.TrustDomain); err != nil {
		return nil, err
	}
	switch {
	case req.TTLSeconds < 0 || req.TTLSeconds > capability.MaxTTL:
		return nil, beyondTTL(req, ceiling)
	case req.MaxTokens < 0:
		return nil, beyondTokens(req, ceiling)
	}
	return checkScope(req)
}

// checkScope turns what is asked into exact scopes. What contradicts itself is
// refused as a whole.
func checkScope(req schemas.IssueRequest) ([]string, error) {
	if n := len(req.Scope) + len(req.Tools) + len(req.ForbiddenTools); n > maxScopes {
		return nil, schemas.Refuse(schemas.CodeTooLarge, "%d scopes, tools and forbidden tools were asked for, %d fit one capability; use two operations", n, maxScopes)
	}
	for _, tool := range req.ForbiddenTools {
		if err := schemas.CheckID("forbidden tool", tool); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
	}
	scope := slices.Clone(req.Scope)
	for _, tool := range req.Tools {
		scope = append(scope, schemas.VerbCall+":"+tool)
	}
	for _, one := range scope {
		if err := schemas.CheckScope(one); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		if tool, call := strings.CutPrefix(one, schemas.VerbCall+":"); call && slices.Contains(req.ForbiddenTools, tool) {
			return nil, denied(tool, req.AgentID)
		}
	}
	return sorted(scope), nil
}

// overCeiling lists what of a request a ceiling does not admit. It is refused,
// not clamped: a clamped capability would fail later, far from the cause.
func overCeiling(req schemas.IssueRequest, scope []string, c *schemas.Ceiling, now time.Time) (over []error) {
	id := req.AgentID
	if len(c.Operations) > 0 && !slices.Contains(c.Operations, req.OperationID) {
		over = append(over, beyond(id, "operation %s", "%s", req.OperationID, strings.Join(c.Operations, " ")))
	}
	if req.Job != "" && !slices.Contains(c.Jobs, req.Job) {
		over = append(over, beyondJob(req, c))
	}
	var wide []string
	for _, one := range scope {
		if tool, call := strings.CutPrefix(one, schemas.VerbCall+":"); call && slices.Contains(c.ForbiddenTools, tool) {
			over = append(over, denied(tool, id))
		} else if !covers(c, one, now) {
			wide = append(wide, clip(one))
		}
	}
	if len(wide) > 0 {
		over = append(over, beyond(id, "%s", "%s", strings.Join(wide, " "), orNone(scopesAt(c, now))))
	}
	if req.TTLSeconds > ceilingTTL(c) {
		over = append(over, beyondTTL(req, c))
	}
	if req.MaxTokens > c.MaxTokens {
		over = append(over, beyondTokens(req, c))
	}
	return over
}

func denied(tool, id string) error {
	return schemas.Refuse(schemas.CodeForbidden, "tool %s is forbidden to %s; a denial always wins", tool, id)
}

func beyondJob(req schemas.IssueRequest, c *schemas.Ceiling) error {
	return beyond(req.AgentID, "job %s", "%s", clip(req.Job), orNone(c.Jobs))
}

func beyondTTL(req schemas.IssueRequest, c *schemas.Ceiling) error {
	return beyond(req.AgentID, "ttl %d s", "1 to %d s", req.TTLSeconds, ceilingTTL(c))
}

func beyondTokens(req schemas.IssueRequest, c *schemas.Ceiling) error {
	return beyond(req.AgentID, "max_tokens %d", "at most %d", req.MaxTokens, c.MaxTokens)
}

func covers(c *schemas.Ceiling, scope string, now time.Time) bool {
	return slices.Contains(scopesAt(c, now), scope)
}

// scopesAt are all scopes that a ceiling admits at a time, with the exceptions
// that have not ended.
func scopesAt(c *schemas.Ceiling, now time.Time) []string {
	wider := *c
	for _, x := range c.Exceptions {
		if now.Before(x.Until) {
			wider.Scope = append(slices.Clip(wider.Scope), x.Scope)
		}
	}
	return ceilingScopes(&wider)
}

// ceilingScopes are all scopes that a ceiling admits without exceptions, tools
// as calls.
func ceilingScopes(c *schemas.Ceiling) []string {
	out := slices.Clone(c.Scope)
	for _, tool := range c.Tools {
		out = append(out, schemas.VerbCall+":"+tool)
	}
	return slices.DeleteFunc(sorted(out), func(s string) bool {
		tool, call := strings.CutPrefix(s, schemas.VerbCall+":")
		return call && slices.Contains(c.ForbiddenTools, tool)
	})
}

func ceilingTTL(c *schemas.Ceiling) int64 {
	if c.TTLSeconds == 0 {
		return defaultTTL
	}
	return c.TTLSeconds
}

// beyond refuses what exceeds a ceiling, and says what would be allowed.
func beyond(id, what, allowed string, args ...any) error {
	n := strings.Count(what, "%")
	return schemas.Refuse(schemas.CodeForbidden, "%s is beyond the ceiling of %s; allowed: %s",
		fmt.Sprintf(what, args[:n]...), id, fmt.Sprintf(allowed, args[n:]...))
}

// decideRefresh renews the capability of an operation: never wider than it
// was, never wider than the ceiling is now.
func decideRefresh(s *schemas.State, agent string, req schemas.RefreshRequest, f fresh) (schemas.Grant, error) {
	a, err := agentThatMayAct(s, agent)
	if err != nil {
		return schemas.Grant{}, err
	}
	if err := schemas.CheckID("operation_id", req.OperationID); err != nil {
		return schemas.Grant{}, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	old := a.Grants[req.OperationID]
	switch {
	case old == nil:
		return schemas.Grant{}, schemas.Refuse(schemas.CodeUnauthorized, "no capability was issued to %s for operation %s, or it has ended; ask for one (out.token.issue)", agent, req.OperationID)
	case old.Ended != "":
		return schemas.Grant{}, schemas.Refuse(schemas.CodeUnauthorized, "the capability for operation %s is no longer valid (%s); ask for a new one", req.OperationID, old.Ended)
	case !f.now.Before(old.Expires):
		return schemas.Grant{}, schemas.Refuse(schemas.CodeUnauthorized, "the capability for operation %s expired at %s; ask for a new one", req.OperationID, old.Expires.Format(time.RFC3339))
	case old.Over(f.now) != "":
		return schemas.Grant{}, schemas.Refuse(schemas.CodeUnauthorized, "the capability for operation %s is no longer valid (%s); ask for a new one", req.OperationID, old.Over(f.now))
	}
	if req.PublicKey != "" && !nkeys.IsValidPublicUserKey(req.PublicKey) {
		return schemas.Grant{}, schemas.Refuse(schemas.CodeMalformed, "public_key %s is not a public user NKey", clip(req.PublicKey))
	}
	if err := checkDPoPKey(req.DPoPKey, bindingOf(old.Grant).key != ""); err != nil {
		return schemas.Grant{}, err
	}
	ceiling := a.Ceiling
	if ceiling == nil {
		ceiling = &schemas.Ceiling{}
	}
	if len(ceiling.Operations) > 0 && !slices.Contains(ceiling.Operations, req.OperationID) {
		return schemas.Grant{}, beyond(agent, "operation %s", "%s", req.OperationID, strings.Join(ceiling.Operations, " "))
	}
	if a.Observed() {
		ceiling = &schemas.Ceiling{Scope: old.Scope, TTLSeconds: capability.MaxTTL, MaxTokens: old.MaxTokens}
	}
	g := renew(old, ceiling, req.PublicKey, f)
	if !a.Observed() {
		g.Scope = f.rails.Without(railQuestion(s.Principal, a, g))
	}
	if !g.Expires.After(g.NotBefore) {
		return schemas.Grant{}, schemas.Refuse(schemas.CodeUnauthorized, "the capability for operation %s can't be renewed: that of %s, from which it was derived, ends within this second", req.OperationID, g.ParentAgent)
	}
	if req == (schemas.RefreshRequest{OperationID: req.OperationID}) && f.signs != nil && f.signs(old.Token) && repeats(g, old.Grant) {
		return old.Grant, nil
	}
	return g, nil
}

// repeats says of what a refresh would grant that the last refresh granted as
// much, a moment ago: whoever asked got no answer in time, and asks again. Two
// refreshes in a row would void what was sent under the first of the three.
func repeats(g, last schemas.Grant) bool {
	life := last.Expires.Sub(last.NotBefore)
	if last.Refreshes == "" || g.NotBefore.Sub(last.NotBefore) > min(life/10, moment) || g.Expires.Sub(g.NotBefore) != life {
		return false
	}
	g.JTI, g.Refreshes, g.NotBefore, g.Expires, g.Token, g.Notes = last.JTI, last.Refreshes, last.NotBefore, last.Expires, last.Token, last.Notes
	return reflect.DeepEqual(g, last)
}

// renew is the grant that replaces an old one under the present ceiling.
func renew(old *schemas.Live, ceiling *schemas.Ceiling, publicKey string, f fresh) schemas.Grant {
	g := old.Grant
	g.JTI, g.Refreshes, g.Token = f.jti, old.JTI, ""
	g.ForbiddenTools = sorted(slices.Concat(old.ForbiddenTools, ceiling.ForbiddenTools))
	g.Scope = slices.DeleteFunc(slices.Clone(old.Scope), func(s string) bool { return !covers(ceiling, s, f.now) })
	g.Notes = nil
	g.MaxTokens = min(old.MaxTokens, ceiling.MaxTokens)
	asked := old.Expires.Sub(old.NotBefore)
	if old.TTLSeconds > 0 { // its parent's end may have cut it
		asked = time.Duration(old.TTLSeconds) * time.Second
	}
	ttl := min(asked, time.Duration(ceilingTTL(ceiling))*time.Second)
	g.NotBefore = f.now.UTC().Truncate(time.Second)
	g.Expires = g.NotBefore.Add(ttl)
	for x := outlived(ceiling, g); x != nil; x = outlived(ceiling, g) {
		g.Expires = x.Until.UTC().Truncate(time.Second)
	}
	if publicKey != "" {
		g.PublicKey = publicKey
	}
	within(&g, old)
	return g
}

// Exceeds says what of a live grant a ceiling no longer admits, "" where all
// of it is within.
func Exceeds(g schemas.Grant, c *schemas.Ceiling, now time.Time) string {
	if c == nil {
		c = &schemas.Ceiling{}
	}
	for _, scope := range g.Scope {
		if !covers(c, scope, now) {
			return scope
		}
	}
	if x := outlived(c, g); x != nil {
		return x.Scope + " for so long"
	}
	for _, tool := range c.ForbiddenTools {
		if !slices.Contains(g.ForbiddenTools, tool) {
			return "calling " + tool
		}
	}
	switch {
	case g.MaxTokens > c.MaxTokens:
		return fmt.Sprintf("max_tokens %d", g.MaxTokens)
	case g.Expires.Sub(g.NotBefore) > time.Duration(ceilingTTL(c))*time.Second:
		return "its lifetime"
	case len(c.Operations) > 0 && !slices.Contains(c.Operations, g.Operation):
		return "operation " + g.Operation
	case g.Job != "" && !slices.Contains(c.Jobs, g.Job):
		return "job " + g.Job
	}
	return ""
}

func sorted[T cmp.Ordered](list []T) []T {
	out := slices.Clone(list)
	slices.Sort(out)
	return slices.Compact(out)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
