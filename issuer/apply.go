package issuer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// appendsOpen bounds events of one command on their way to the log.
const appendsOpen = 64

// memoryService is built in: every fleet has it.
var memoryService = schemas.Principal{ID: schemas.MemoryID, Kind: schemas.KindService}

// A plan is what declaring a fleet comes to.
type plan struct {
	changes []schemas.Change
	declare []schemas.Principal // new or changed
	remove  []string
	policy  bool // the policy event is due
}

// A revocation ends a grant that what is declared no longer admits.
type revocation struct {
	grant schemas.Grant
	why   string
}

// decideApply compares a declaration with the fleet.
func decideApply(s *schemas.State, trustDomain string, req schemas.ApplyRequest) (plan, error) {
	if err := checkActor(req.Actor); err != nil {
		return plan{}, err
	}
	if req.TrustDomain != trustDomain && !(req.Add && req.TrustDomain == "") {
		return plan{}, schemas.Refuse(schemas.CodeConflict, "the file declares trust domain %s, and this control plane was initialised for %s; correct the file, or use another data folder", clip(req.TrustDomain), trustDomain)
	}
	if err := checkPrincipals(req); err != nil {
		return plan{}, err
	}
	rails, err := guard.Parse("guardrails", req.Guardrails)
	if err != nil {
		return plan{}, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if req.Add && req.Guardrails != "" {
		return plan{}, schemas.Refuse(schemas.CodeMalformed, "guard rails are declared with the whole fleet")
	}
	wanted := map[string]schemas.Principal{}
	for _, w := range req.Principals {
		wanted[w.ID] = w
	}
	var current []schemas.Principal
	for _, a := range s.Agents {
		if _, named := wanted[a.ID]; named || !req.Add {
			current = append(current, a.Principal)
		}
	}
	p := plan{changes: fleet.Diff(current, req.Principals)}
	for _, c := range p.changes {
		if c.Action == fleet.Remove {
			p.remove = append(p.remove, c.ID)
			continue
		}
		if a := s.Agents[c.ID]; a != nil && a.Kind != wanted[c.ID].Kind {
			return plan{}, schemas.Refuse(schemas.CodeConflict, "%s is of kind %s, and its credentials were made for that; to declare it as %s, apply a file without it with --prune first", a.ID, a.Kind, wanted[c.ID].Kind)
		}
		p.declare = append(p.declare, wanted[c.ID])
	}
	if s.Agents[schemas.MemoryID] == nil {
		p.declare = append(p.declare, memoryService)
	}
	if req.Add {
		if len(req.Signals) > 0 {
			return p, schemas.Refuse(schemas.CodeMalformed, "sources of signals are declared with the whole file alone")
		}
		return p, nil // the file in force stays in force
	}
	if s.Guardrails != req.Guardrails {
		p.changes = append(p.changes, schemas.Change{ID: "guardrails", Action: fleet.Modify, Detail: railsDetail(rails)})
	}
	p.changes = append(p.changes, fleet.DiffSignals(s.Signals, req.Signals)...)
	p.policy = s.Policy != req.Digest || s.Guardrails != req.Guardrails || s.TrustDomain != trustDomain || len(p.changes) > 0
	if len(p.remove) > 0 && !req.Prune && !req.DryRun {
		return p, schemas.Refuse(schemas.CodeConflict, "the file no longer declares %s; with --prune they are killed and removed", strings.Join(p.remove, ", "))
	}
	return p, nil
}

// railsDetail says how many policies are to be in force.
func railsDetail(rails *guard.Rails) string {
	enforced, shadow := rails.Policies()
	return fmt.Sprintf("%d enforced, %d in shadow mode", len(enforced), len(shadow))
}

// outdated lists the live grants that what is declared no longer admits: the
// ceiling, the guard rails, or the right of whoever issued them.
func outdated(s *schemas.State, rails *guard.Rails, now time.Time) []revocation {
	var out []revocation
	for _, a := range s.Agents {
		for _, g := range a.Grants {
			if g.Over(now) != "" {
				continue
			}
			if why := outdatedNow(s, a, g.Grant, rails, now); why != "" {
				out = append(out, revocation{g.Grant, why})
			}
		}
	}
	slices.SortFunc(out, func(a, b revocation) int { return strings.Compare(a.grant.JTI, b.grant.JTI) })
	return out
}

func outdatedNow(s *schemas.State, a *schemas.Agent, g schemas.Grant, rails *guard.Rails, now time.Time) string {
	if by := s.Agents[g.ParentAgent]; g.ParentAgent != "" && (by == nil || !slices.Contains(by.MayIssueFor, a.ID)) {
		return g.ParentAgent + " may no longer issue for it"
	}
	if a.Observed() {
		return ""
	}
	if what := Exceeds(g, a.Ceiling, now); what != "" {
		return "the ceiling no longer admits " + what
	}
	return OffRails(rails, a, g)
}

// checkPrincipals holds a declaration against the grammar: the file was
// checked by whoever read it, and that was not us.
func checkPrincipals(req schemas.ApplyRequest) error {
	seen := map[string]bool{}
	for _, p := range req.Principals {
		if err := checkPrincipal(p); err != nil {
			return schemas.Refuse(schemas.CodeMalformed, "%.80s: %v", p.ID, err)
		}
		if seen[p.ID] {
			return schemas.Refuse(schemas.CodeMalformed, "%s is declared twice", p.ID)
		}
		seen[p.ID] = true
	}
	return checkSources(req.Signals)
}

func checkSources(list []schemas.SignalSource) error {
	ids, issuers := map[string]bool{}, map[string]bool{}
	if len(list) > schemas.MaxSources {
		return schemas.Refuse(schemas.CodeMalformed, "%d sources of signals: %d are possible", len(list), schemas.MaxSources)
	}
	for _, s := range list {
		err := s.Check()
		if err == nil && s.JWKS != "" {
			_, err = secevent.Keys([]byte(s.JWKS))
		}
		if err != nil {
			return schemas.Refuse(schemas.CodeMalformed, "signals: %.80s: %v", s.ID, err)
		}
		if ids[s.ID] || s.Issuer != "" && issuers[s.Issuer] {
			return schemas.Refuse(schemas.CodeMalformed, "signals: %s, or its issuer, is declared twice", s.ID)
		}
		ids[s.ID], issuers[s.Issuer] = true, true
	}
	return nil
}

func checkPrincipal(p schemas.Principal) error {
	if err := schemas.CheckID("id", p.ID); err != nil {
		return err
	}
	switch {
	case p.ID == schemas.MemoryID:
		return fmt.Errorf("the id is reserved for the built-in service")
	case p.Kind != schemas.KindAgent && p.Kind != schemas.KindService && p.Kind != schemas.KindOperator:
		return fmt.Errorf("kind %.40q is none of agent, service, operator", p.Kind)
	case p.Kind == schemas.KindOperator && !p.Role.Valid():
		return fmt.Errorf("role %.40q is none of viewer, reviewer, operator, admin", p.Role)
	case p.Kind == schemas.KindOperator && (p.Ceiling != nil || len(p.Serves) > 0 || len(p.MayIssueFor) > 0):
		return fmt.Errorf("an operator holds no capability and serves nothing")
	case p.Kind != schemas.KindOperator && p.Role != "":
		return fmt.Errorf("operators alone have a role")
	case p.Mode != "" && (p.Mode != schemas.ModeObserve || p.Kind != schemas.KindAgent):
		return fmt.Errorf("mode %.40q: observe is possible, for agents", p.Mode)
	case p.TwoPerson && p.Kind != schemas.KindAgent:
		return fmt.Errorf("two_person is for agents")
	case p.Lock != "" || p.LockSeq != 0 || p.LockReason != "" || p.Generation != 0 || p.Incarnation != "" || !p.CredentialExpires.IsZero():
		return fmt.Errorf("a declaration can't set a lock; use writ pause, suspend or kill")
	}
	if p.Reserve < 0 || p.Reserve > capability.MaxMaxTokens {
		return fmt.Errorf("reserve %d is out of bounds", p.Reserve)
	}
	for _, id := range p.MayIssueFor {
		if err := schemas.CheckID("may_issue_for", id); err != nil {
			return err
		}
	}
	for _, prefix := range p.Serves {
		if _, err := schemas.ParseAction(prefix); err != nil {
			return fmt.Errorf("serves: %w", err)
		}
	}
	if t := p.Thresholds; t != nil && (t.Pause < 0 || t.Pause > t.Suspend || t.Suspend > 100) {
		return fmt.Errorf("thresholds: 0 ≤ pause ≤ suspend ≤ 100 must hold")
	}
	if c := p.Ceiling; c != nil {
		return checkCeiling(c)
	}
	return nil
}

func checkCeiling(c *schemas.Ceiling) error {
	for _, scope := range c.Scope {
		if err := schemas.CheckScope(scope); err != nil {
			return err
		}
	}
	for _, x := range c.Exceptions {
		if err := schemas.CheckScope(x.Scope); err != nil {
			return err
		}
		if x.Until.IsZero() || schemas.HeaderText(x.Reason) == "" {
			return fmt.Errorf("the exception for %s needs an end and a reason", x.Scope)
		}
	}
	for what, ids := range map[string][]string{"tool": c.Tools, "forbidden tool": c.ForbiddenTools, "job": c.Jobs, "operation": c.Operations} {
		for _, id := range ids {
			if err := schemas.CheckID(what, id); err != nil {
				return err
			}
		}
	}
	if c.TTLSeconds < 0 || c.TTLSeconds > 86400 {
		return fmt.Errorf("ttl of %d s: 1 to 86400 are possible", c.TTLSeconds)
	}
	if c.MaxTokens < 0 || c.MaxTokensPerDay < 0 {
		return fmt.Errorf("max_tokens %d or max_tokens_per_day %d is negative", c.MaxTokens, c.MaxTokensPerDay)
	}
	return nil
}

// apply declares the fleet, and returns when every account stands on every
// server.
func (i *Issuer) apply(ctx context.Context, req schemas.ApplyRequest) (schemas.ApplyReply, error) {
	i.applying.Lock()
	defer i.applying.Unlock()
	i.mu.RLock()
	p, err := decideApply(i.state, i.Secrets.Trust.TrustDomain, req)
	i.mu.RUnlock()
	reply := schemas.ApplyReply{Changes: p.changes}
	if err != nil || req.DryRun {
		return reply, err
	}
	if err := each(p.declare, func(d schemas.Principal) error { return i.declare(ctx, d, req.Actor) }); err != nil {
		return reply, err
	}
	for _, id := range p.remove {
		if err := i.remove(ctx, id, req.Actor); err != nil {
			return reply, err
		}
	}
	if p.policy {
		policy := schemas.Policy{TrustDomain: req.TrustDomain, Digest: req.Digest, Guardrails: req.Guardrails, Signals: req.Signals}
		if _, err := i.append(ctx, &schemas.Event{Kind: schemas.PolicyApplied, Agent: schemas.Fleet, Actor: req.Actor, ContentType: jsonType, Data: schemas.Marshal(policy)}); err != nil {
			return reply, err
		}
	}
	if err := i.revokeOutdated(ctx, req.Actor); err != nil {
		return reply, err
	}
	ids := make([]string, len(p.declare))
	for n, d := range p.declare {
		ids[n] = d.ID
	}
	return reply, persist(ctx, nil, ids, i.pushes.several)
}

// revokeOutdated ends what is no longer admitted, once all that is declared is
// in the log: whatever was decided before that, for whom it be, is in the log
// too when its turn is over. It looks at all grants, so that applying again
// makes good what was cut short.
func (i *Issuer) revokeOutdated(ctx context.Context, actor string) error {
	for _, id := range view(i, func(s *schemas.State) []string { return slices.Collect(maps.Keys(s.Agents)) }) {
		i.gates.pass(id)()
	}
	i.mu.RLock()
	list := outdated(i.state, i.rails, i.Now())
	i.mu.RUnlock()
	for _, r := range list {
		revoked := endOf(r.grant, r.why)
		revoked.ID, revoked.Kind, revoked.Actor = "issuer-revoked-"+r.grant.JTI, schemas.TokenRevoked, actor
		if err := i.end(ctx, r.grant, revoked, endOf(r.grant, "revoked: "+r.why)); err != nil {
			return err
		}
	}
	return nil
}

// declare logs the declaration of a principal. It carries the lock and the
// generation of its keys: whoever starts to read the log here must know them.
// A new principal's generation is the time, and its incarnation is new, so that
// keys of one that was removed before, under the same name, never count again.
// Where the log has forgotten a principal, it comes back under the lock that it
// was under.
func (i *Issuer) declare(ctx context.Context, p schemas.Principal, actor string) error {
	defer i.locks.pass(p.ID)()
	i.mu.RLock()
	if a := i.state.Agents[p.ID]; a != nil {
		p = a.Restated(p)
	} else {
		p.Lock, p.Generation, p.Incarnation = schemas.Active, int(i.Now().Unix()), newIncarnation()
		if l, ok := i.forgotten[p.ID]; ok {
			p.Lock, p.LockSeq, p.LockReason = l.Lock, l.Seq, l.Reason
		}
	}
	i.mu.RUnlock()
	_, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Actor: actor, ContentType: jsonType, Data: schemas.Marshal(p)})
	return err
}

// end logs the end of a grant, unless another has taken its place meanwhile.
func (i *Issuer) end(ctx context.Context, g schemas.Grant, events ...*schemas.Event) error {
	defer i.gates.pass(g.Agent)()
	newest := view(i, func(s *schemas.State) bool {
		a := s.Agents[g.Agent]
		return a != nil && a.Grants[g.Operation] != nil && a.Grants[g.Operation].JTI == g.JTI
	})
	if !newest {
		return nil
	}
	for _, e := range events {
		if _, err := i.append(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// each does something for all elements, several at once.
func each[T any](list []T, do func(T) error) error {
	var g errgroup.Group
	g.SetLimit(appendsOpen)
	for _, x := range list {
		g.Go(func() error { return do(x) })
	}
	return g.Wait()
}

// remove kills a principal and takes it out of the fleet.
func (i *Issuer) remove(ctx context.Context, id, actor string) error {
	defer i.locks.pass(id)()
	killed := view(i, func(s *schemas.State) bool { return s.Agents[id] == nil || s.Agents[id].Lock == schemas.Killed })
	if !killed {
		if _, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentKilled, Agent: id, Reason: "removed from the fleet", Actor: actor}); err != nil {
			return err
		}
	}
	if _, err := i.pushes.one(ctx, id); err != nil {
		return err
	}
	_, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentRemoved, Agent: id, Actor: actor})
	return err
}
