package schemas

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ApprovalTTL is how long an approval admits the repetition of a held request.
const ApprovalTTL = 10 * time.Minute

// State is what intake, release, issuer and monitor all know of the fleet: a
// pure fold of events. It reads no clock; time arrives in events and
// questions. It is not safe for concurrent use.
type State struct {
	Seq         uint64 // last event folded
	TrustDomain string
	Policy      string         // digest of the fleet file in force
	Guardrails  string         // Cedar policies in force
	Signals     []SignalSource // who outside may say that agents are at risk
	Lockdown    string         // why nobody may act; "" where they may
	LockdownSeq uint64         // event that began or lifted it last
	Agents      map[string]*Agent
	routes      map[string]string       // prefix verb:resource → service
	reserved    map[uint64]*reservation // by the action's sequence
	lapses      []lapse
}

// An Agent is one agent or service in the state.
type Agent struct {
	Principal
	Lock       Lock
	LockSeq    uint64 // event that put the lock on, 0 if never locked
	LockReason string
	Generation int                  // of the account's keys: rises with suspend and kill
	Grants     map[string]*Live     // newest capability, by operation
	Spent      map[string]int64     // language-model tokens used, by operation, as answers say
	LastSeq    uint64               // newest event that concerns the agent
	Risk       int                  // as the newest verdict said
	RiskTime   time.Time            // when it did
	Held       map[uint64]*Event    // held actions that await a review, without bodies; Actor is who approved first of two
	Causes     map[uint64]*Event    // admitted actions whose verdict suspended the agent and that nobody vouched for, the newest MaxCauses, without bodies; Actor as of Held
	invited    map[string]time.Time // until when a join token can be used, by its id
	approvals  map[approvalKey]approval
	issues     *line               // what it issued without a capability hangs on this
	accounts   map[string]*account // budgets, by operation
	days       map[int64]int64     // tokens used and reserved, by day since 1970
}

// A Live is a grant with what has become of it.
type Live struct {
	Grant
	Seq   uint64
	Ended string // why it has ended itself; see Over for what it was derived from
	line  *line
	never bool // it was beyond what it was derived from, or that was unknown, and never counted
}

type approvalKey struct {
	operation, action string
	digest            Digest
	contentType       string // who is sent the same bytes as something else reads something else
}

type approval struct {
	seq     uint64 // the held action that was approved
	expires time.Time
}

// NewState is the state before the first event.
func NewState() *State {
	return &State{Agents: map[string]*Agent{}, routes: map[string]string{}, reserved: map[uint64]*reservation{}}
}

// Apply folds one event. Events must arrive in sequence order; kinds that do
// not bear on the state may be left out.
func (s *State) Apply(e *Event) error {
	if e.Seq <= s.Seq {
		return fmt.Errorf("event %d after %d: out of order", e.Seq, s.Seq)
	}
	s.Seq = e.Seq
	s.lapsed(e.Time)
	switch e.Kind {
	case PolicyApplied:
		var p Policy
		if err := Unmarshal(e.Data, &p); err != nil {
			return fmt.Errorf("event %d: %w", e.Seq, err)
		}
		s.TrustDomain, s.Policy, s.Guardrails, s.Signals = p.TrustDomain, p.Digest, p.Guardrails, p.Signals
		return nil
	case PolicyLockdown:
		if s.Lockdown == "" {
			s.LockdownSeq = e.Seq
		}
		s.Lockdown = e.Reason
		return nil
	case PolicyLifted:
		s.Lockdown, s.LockdownSeq = "", e.Seq
		return nil
	case AgentDeclared:
		return s.declare(e)
	}
	a := s.Agents[e.Agent]
	if a == nil {
		return nil // an event about nobody we know changes nothing
	}
	a.LastSeq = e.Seq
	switch e.Kind {
	case TokenIssued:
		g, err := ReadGrant(e.Data)
		if err != nil {
			return fmt.Errorf("event %d: %w", e.Seq, err)
		}
		if g.Agent != e.Agent || g.Operation != e.Operation || g.JTI != e.JTI {
			return fmt.Errorf("event %d: it grants to another agent, operation or jti than its headers say", e.Seq)
		}
		s.issued(a, e, g)
	case TokenRevoked:
		if g := a.ByJTI(e.JTI); g != nil {
			g.finish("revoked: " + e.Reason)
		}
	case OperationEnded:
		// Operations come and go; only what they spent is kept.
		if g := a.Grants[e.Operation]; g != nil && (e.JTI == "" || g.JTI == e.JTI) {
			g.finish("ended: " + e.Reason)
			delete(a.Grants, e.Operation)
			if acc := a.accounts[e.Operation]; acc != nil && *acc == (account{}) {
				delete(a.accounts, e.Operation)
			}
		}
	case AgentRemoved:
		s.withdraw(a)
		a.cutOff("removed from the fleet")
		for seq, r := range s.reserved {
			if r.agent == a {
				s.free(seq)
			}
		}
		s.unroute(a)
		delete(s.Agents, e.Agent)
	case AgentInvited:
		for id, until := range a.invited {
			if !e.Time.Before(until) {
				delete(a.invited, id)
			}
		}
		a.invited[e.JTI] = e.Expires
	case AgentEnrolled:
		delete(a.invited, e.JTI)
		var made Enrolment
		if len(e.Data) > 0 {
			if err := Unmarshal(e.Data, &made); err != nil {
				return fmt.Errorf("event %d: %w", e.Seq, err)
			}
			a.CredentialExpires = made.Expires
		}
		if a.Lock == Killed && e.Ref == a.LockSeq { // that very kill, by who knew of it
			a.Lock, a.LockSeq, a.LockReason = Active, e.Seq, "enrolled anew"
			a.Risk = 0 // of the one that was killed
			if made.Incarnation != "" {
				a.Incarnation = made.Incarnation
			}
		}
	case AgentRenewed:
		a.CredentialExpires = e.Expires
	case AgentPaused:
		a.lock(Paused, e)
		s.withdraw(a)
	case AgentSuspended:
		a.lock(Suspended, e)
		s.withdraw(a)
	case AgentKilled:
		a.lock(Killed, e)
		s.withdraw(a)
	case AgentResumed:
		if a.Lock != Killed {
			a.Lock, a.LockSeq, a.LockReason = Active, e.Seq, e.Reason
			a.Risk = 0
		}
	case MessageAccepted:
		s.reserve(a, e)
		if e.Ref != 0 {
			delete(a.approvals, keyOf(e))
		}
		a.judge(e)
	case MessageHeld, ResponseHeld:
		if e.Kind == MessageHeld && e.Ref != 0 {
			delete(a.approvals, keyOf(e)) // approved, and held again: the new review counts
		}
		if a.reviewable(e) {
			held := *e
			held.Data = nil
			a.Held[e.Seq] = &held
		}
		a.judge(e)
	case MessageDenied, ResponseAccepted, ResponseDenied, RiskChanged:
		if e.Kind == ResponseAccepted && (e.Tokens > 0 || e.Final) {
			s.settle(e)
		}
		a.suspect(e)
		a.judge(e)
	case MessageCancelled, MessageExpired:
		delete(a.Held, e.Ref)
		s.unanswered(e)
	case ReviewApproved:
		s.approve(a, e)
	case ReviewEndorsed:
		if held := a.Held[e.Ref]; held != nil { // events in the state are never changed
			endorsed := *held
			endorsed.Actor = e.Actor
			a.Held[e.Ref] = &endorsed
		}
		if cause := a.Causes[e.Ref]; cause != nil {
			endorsed := *cause
			endorsed.Actor = e.Actor
			a.Causes[e.Ref] = &endorsed
		}
	case ReviewVouched:
		delete(a.Causes, e.Ref)
	case ReviewDenied:
		if held := a.Held[e.Ref]; held != nil {
			delete(a.approvals, keyOf(held))
		}
		delete(a.Held, e.Ref)
	}
	return nil
}

func (s *State) declare(e *Event) error {
	var p Principal
	if err := Unmarshal(e.Data, &p); err != nil {
		return fmt.Errorf("event %d: %w", e.Seq, err)
	}
	if p.ID != e.Agent || p.Kind != KindAgent && p.Kind != KindService && p.Kind != KindOperator {
		return fmt.Errorf("event %d: it declares %q as %q under the name of %q", e.Seq, clip(p.ID), clip(p.Kind), e.Agent)
	}
	if p.Kind == KindOperator != (p.Role != "") || p.Role != "" && !p.Role.Valid() {
		return fmt.Errorf("event %d: it declares %s %s with the role %q", e.Seq, p.Kind, e.Agent, clip(string(p.Role)))
	}
	if p.Lock != "" {
		if err := p.Lock.check(); err != nil {
			return fmt.Errorf("event %d: %w", e.Seq, err)
		}
	}
	a := s.Agents[p.ID]
	if a == nil {
		a = newAgentState(p)
		s.Agents[p.ID] = a
	}
	s.unroute(a)
	if !p.Role.May(CtlReview) {
		s.withdraw(a)
	}
	if until := a.CredentialExpires; p.Incarnation == a.Incarnation && p.CredentialExpires.Before(until) {
		p.CredentialExpires = until // renewed while the declaration was on its way
	}
	a.Principal = p
	a.LastSeq = e.Seq
	for _, prefix := range p.Serves {
		s.routes[prefix] = p.ID
	}
	return nil
}

// withdraw takes back what an operator has endorsed and nobody approved yet: who
// may not decide any more has not decided, nor has who bears the name next.
func (s *State) withdraw(by *Agent) {
	if by.Kind != KindOperator {
		return
	}
	for _, a := range s.Agents {
		for _, under := range []map[uint64]*Event{a.Held, a.Causes} {
			for seq, e := range under {
				if e.Actor == by.ID {
					open := *e // events in the state are never changed
					open.Actor = ""
					under[seq] = &open
				}
			}
		}
	}
}

func (s *State) unroute(a *Agent) {
	for _, prefix := range a.Serves {
		if s.routes[prefix] == a.ID {
			delete(s.routes, prefix)
		}
	}
}

// lock puts a lock on; a weaker one never replaces a stronger one.
func (a *Agent) lock(l Lock, e *Event) {
	if strength(l) <= strength(a.Lock) {
		return
	}
	a.Lock, a.LockSeq, a.LockReason = l, e.Seq, e.Reason
	if l == Paused {
		return
	}
	a.Generation++
	a.cutOff(string(l) + ": " + e.Reason)
	clear(a.approvals)
	clear(a.invited)
	if l == Killed {
		clear(a.Causes)
	}
	clear(a.Held) // release cancels it, and who comes back has not done it
}

// MaxCauses is how many actions that suspended an agent can still be vouched for.
const MaxCauses = 8

// suspect keeps an action by which its agent was suspended, so that an operator
// can vouch for it. One that nobody would have received was refused for more than
// its risk.
func (a *Agent) suspect(e *Event) {
	if !Suspects(e) || strength(a.Lock) >= strength(Suspended) || a.Observed() {
		return // or it was suspended already
	}
	if len(a.Causes) >= MaxCauses {
		delete(a.Causes, slices.Min(slices.Collect(maps.Keys(a.Causes))))
	}
	cause := *e
	cause.Data = nil
	a.Causes[e.Seq] = &cause
}

// Suspects reports whether an event is an action, or an answer, that was refused
// for its risk alone and suspended its agent.
func Suspects(e *Event) bool {
	return (e.Kind == MessageDenied || e.Kind == ResponseDenied) && e.Lock == Suspended && e.To != ""
}

func strength(l Lock) int {
	return slices.Index([]Lock{Active, Paused, Suspended, Killed}, l)
}

// judge takes over what a verdict says: the lock that the event puts on.
func (a *Agent) judge(e *Event) {
	if e.Lock != "" && !a.Observed() {
		a.lock(e.Lock, e)
	}
	if len(e.Verdict) == 0 {
		return
	}
	a.Risk, a.RiskTime = e.Risk, e.Time
}

func keyOf(e *Event) approvalKey {
	return approvalKey{e.Operation, e.Action.String(), e.Digest, e.ContentType}
}

// Spend forgets the approval that an accepted action used up, for a reader who
// does not fold accepted actions.
func (s *State) Spend(e *Event) {
	if a := s.Agents[e.Agent]; a != nil && e.Ref != 0 && a.approvals[keyOf(e)].seq == e.Ref {
		delete(a.approvals, keyOf(e))
	}
}

// Void forgets the approvals of an action, whatever its body: release said
// that one of them was used already. It is for a reader who does not fold
// accepted actions; what was not used is reviewed once more.
func (s *State) Void(agent, operation string, action Action) {
	a := s.Agents[agent]
	if a == nil {
		return
	}
	for k := range a.approvals {
		if k.operation == operation && k.action == action.String() {
			delete(a.approvals, k)
		}
	}
}

// reviewable reports whether a held action can still be decided on. What was
// overtaken by a lock that cancels, or by another capability for the operation,
// is cancelled: who holds that one, perhaps enrolled anew, has not done it.
func (a *Agent) reviewable(e *Event) bool {
	if a.Lock == Suspended || a.Lock == Killed {
		return false
	}
	g := a.Grants[e.Operation]
	return e.Kind != MessageHeld || g == nil || g.Admitted(e)
}

func (s *State) approve(a *Agent, e *Event) {
	held := a.Held[e.Ref]
	if held == nil {
		return
	}
	delete(a.Held, e.Ref)
	if held.Kind == MessageHeld && held.Action.Request() {
		a.approvals[keyOf(held)] = approval{seq: e.Ref, expires: e.Time.Add(ApprovalTTL)}
	}
	if a.Lock == Paused && a.LockSeq == e.Ref {
		a.Lock, a.LockSeq, a.LockReason = Active, e.Seq, "the action that paused it was approved"
		a.Risk = 0
	}
}

// Invited reports whether a join token can be used: it was made for this agent,
// has not been used, nor been voided by a lock, nor expired.
func (a *Agent) Invited(id string, at time.Time) bool {
	until, ok := a.invited[id]
	return ok && at.Before(until)
}

// InvitedUntil is when the first join token of an agent ends that nobody used;
// zero where there is none at a time.
func (a *Agent) InvitedUntil(at time.Time) (first time.Time) {
	for _, until := range a.invited {
		if at.Before(until) && (first.IsZero() || until.Before(first)) {
			first = until
		}
	}
	return first
}

// An Admission is what State.Admit found for an action.
type Admission struct {
	Grant    *Live
	To       string // who receives it
	Approval uint64 // held action whose approval admits this one, 0 where none was needed
	Reserve  int64  // tokens that it reserves of a metered service, 0 where it is none
	Hold     bool   // the agent is paused: log and hold
}

// Admit decides whether the agent of an event may carry out its action at the
// event's time, using at most as many tokens as it reserves (0 where it states
// none). It is the one place that decides: intake asks it early, release asks it
// again, in log order, and release's answer counts.
func (s *State) Admit(e *Event) (Admission, *Refusal) {
	var ad Admission
	agent, operation, action, at := e.Agent, e.Operation, e.Action, e.Time
	a := s.Agents[agent]
	if a == nil || a.Kind != KindAgent {
		return ad, Refuse(CodeUnauthorized, "%s is no agent of this fleet; declare it in the fleet file and run writ apply", agent)
	}
	if s.Lockdown != "" {
		return ad, Refuse(CodeCancelled, "the fleet is locked down: %s; nobody acts until an operator lifts it", s.Lockdown)
	}
	switch a.Lock {
	case Killed:
		return ad, Refuse(CodeCancelled, "%s was killed: %s", agent, a.LockReason)
	case Suspended:
		return ad, Refuse(CodeCancelled, "%s is suspended: %s; an operator must resume it", agent, a.LockReason)
	}
	g := a.Grants[operation]
	switch {
	case g == nil:
		return ad, Refuse(CodeUnauthorized, "%s holds no capability for operation %s: none was issued, or it has ended; ask for one (out.token.issue or writ issue)", agent, operation)
	case g.Ended != "":
		return ad, Refuse(CodeUnauthorized, "the capability for operation %s is no longer valid (%s)", operation, g.Ended)
	case !at.Before(g.Expires):
		return ad, Refuse(CodeUnauthorized, "the capability for operation %s expired at %s; refresh it before it does", operation, g.Expires.Format(time.RFC3339))
	case at.Before(g.NotBefore.Add(-time.Second)):
		return ad, Refuse(CodeUnauthorized, "the capability for operation %s is not valid before %s", operation, g.NotBefore.Format(time.RFC3339))
	}
	if why := g.orphaned(at); why != "" {
		return ad, Refuse(CodeUnauthorized, "the capability for operation %s is no longer valid (%s)", operation, why)
	}
	ad.Grant = g
	if action.Verb == VerbCall && slices.Contains(g.ForbiddenTools, action.Resource) {
		return ad, Refuse(CodeForbidden, "tool %s is forbidden to %s in operation %s; allowed: %s", action.Resource, agent, operation, strings.Join(g.Scope, " "))
	}
	if !slices.Contains(g.Scope, action.Scope()) {
		return ad, Refuse(CodeForbidden, "%s is not in the scope of operation %s; allowed: %s", action.Scope(), operation, strings.Join(g.Scope, " "))
	}
	if r := g.narrowed(action); r != nil {
		return ad, r
	}
	to := s.Route(action)
	if to == "" {
		return ad, Refuse(CodeNotFound, "nobody in the fleet serves %s", action)
	}
	ad.To = to
	if r := s.Agents[to]; r != nil {
		if r.Lock == Killed || r.Lock == Suspended {
			return ad, Refuse(CodeNotFound, "%s is %s and receives nothing", to, r.Lock)
		}
		if r.Meter == MeterTokens {
			n, refusal := g.toReserve(a, r, e.Reserve, at)
			if refusal != nil && (!a.Observed() || g.Parent() != nil) { // a parent's budget is not the observed agent's
				return ad, refusal
			}
			ad.Reserve = n // none where it is over and only observed
		}
	}
	if ap, ok := a.approvals[keyOf(e)]; ok && at.Before(ap.expires) {
		ad.Approval = ap.seq
		return ad, nil
	}
	ad.Hold = a.Lock == Paused
	return ad, nil
}

// Accept decides about an action that intake let through, by the state at its
// place in the log: Admit, and that what intake found still holds.
func (s *State) Accept(e *Event) (Admission, *Refusal) {
	ad, r := s.Admit(e)
	switch {
	case r != nil:
	case !ad.Grant.Admitted(e):
		r = Refuse(CodeUnauthorized, "the capability that admitted it was replaced")
	case ad.To != e.To:
		r = Refuse(CodeNotFound, "%s is now served by %s; send again", e.Action, ad.To)
	case e.Ref != ad.Approval && (e.Ref != 0 || s.Agents[e.Agent].Lock == Paused):
		r = Refuse(CodeHeld, "the approval of %d was used already, or is void", e.Ref)
	case ad.Hold:
		r = Refuse(CodeHeld, "the agent was paused a moment before; send again to have it reviewed")
	}
	return ad, r
}

// Route names who receives an action, "" where nobody does. Services are found
// by the longest prefix that they declared.
func (s *State) Route(action Action) string {
	switch action.Verb {
	case VerbSend, VerbAsk:
		if a := s.Agents[action.Resource]; a != nil && a.Kind == KindAgent {
			return a.ID
		}
		return ""
	case VerbMemory:
		return MemoryID
	}
	for prefix := action.String(); ; {
		if to, ok := s.routes[prefix]; ok {
			return to
		}
		cut := strings.LastIndexByte(prefix, '.')
		if cut < 0 {
			return ""
		}
		prefix = prefix[:cut]
	}
}

// Principal is how a principal is declared; nil for who is none.
func (s *State) Principal(id string) *Principal {
	if a := s.Agents[id]; a != nil {
		return &a.Principal
	}
	return nil
}

// Source finds a source of signals; nil where none is declared so.
func (s *State) Source(id string) *SignalSource {
	for i := range s.Signals {
		if s.Signals[i].ID == id {
			return &s.Signals[i]
		}
	}
	return nil
}

// ThresholdsOf gives the thresholds that hold for an agent.
func (s *State) ThresholdsOf(agent string) Thresholds {
	if a := s.Agents[agent]; a != nil && a.Thresholds != nil {
		return *a.Thresholds
	}
	return DefaultThresholds
}
