package simulate

import (
	"fmt"
	"slices"
	"time"

	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/schemas"
)

// What can be decided.
const (
	accept = "accept"
	hold   = "hold"
	deny   = "deny"
	issue  = "issue"
	refuse = "refuse"
	stand  = "stand" // of a change of risk: nothing but its lock
)

// An outcome is one decision: what becomes of the action, and the lock that
// its verdict puts on.
type outcome struct {
	Verdict string
	Lock    schemas.Lock
	Code    int // of a denial
	Why     string
}

func (o outcome) same(other outcome) bool { return o.Verdict == other.Verdict && o.Lock == other.Lock }

func (o outcome) String() string {
	if o.Lock != "" {
		return o.Verdict + ", " + string(o.Lock)
	}
	return o.Verdict
}

// decides says whether an event is a decision that a policy takes.
func decides(e *schemas.Event) bool {
	switch e.Kind {
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied,
		schemas.ResponseAccepted, schemas.ResponseHeld, schemas.ResponseDenied, schemas.RiskChanged, schemas.TokenIssued:
		return true
	}
	return false
}

func answersOrEnds(k schemas.Kind) bool {
	return isAnswer(k) || k == schemas.MessageCancelled || k == schemas.MessageExpired
}

func isAnswer(k schemas.Kind) bool {
	return k == schemas.ResponseAccepted || k == schemas.ResponseHeld || k == schemas.ResponseDenied
}

// recordedOf is what the log says was decided.
func recordedOf(e *schemas.Event) outcome {
	o := outcome{Lock: e.Lock}
	switch e.Kind {
	case schemas.MessageAccepted, schemas.ResponseAccepted:
		o.Verdict = accept
	case schemas.MessageHeld, schemas.ResponseHeld:
		o.Verdict = hold
	case schemas.MessageDenied, schemas.ResponseDenied:
		o.Verdict, o.Code = deny, e.Code
	case schemas.TokenIssued:
		o.Verdict = issue
	default:
		o.Verdict = stand
	}
	return o
}

// event is e as it would have been logged.
func (o outcome) event(e *schemas.Event) *schemas.Event {
	c := *e
	c.Lock = o.Lock
	kinds := map[string][2]schemas.Kind{accept: {schemas.MessageAccepted, schemas.ResponseAccepted},
		hold: {schemas.MessageHeld, schemas.ResponseHeld}, deny: {schemas.MessageDenied, schemas.ResponseDenied}}
	if k, ok := kinds[o.Verdict]; ok {
		c.Kind = k[0]
		if isAnswer(e.Kind) {
			c.Kind = k[1]
		}
	}
	if c.Lock != "" && c.Reason == "" {
		c.Reason = o.Why
	}
	return &c
}

// inForce is the policy that was in force: nothing is replaced.
var inForce = &Policy{}

// decide takes one decision, from the fold of all that came before it. With
// strict, a capability that the policy would not have issued admits nothing;
// without, what it admitted is held against the ceiling by itself.
func (p *Policy) decide(s *schemas.State, e *schemas.Event, strict bool) outcome {
	switch {
	case e.Kind == schemas.TokenIssued:
		return p.decideGrant(s, e, strict)
	case e.Kind == schemas.RiskChanged:
		return judged(s, e, outcome{Verdict: stand})
	case isAnswer(e.Kind):
		return judged(s, e, decideAnswer(s, e))
	}
	o := outcome{Verdict: accept}
	ad, r := s.Admit(e)
	if r == nil {
		r = p.admits(s, e, ad, strict)
	}
	switch {
	case r != nil:
		o = outcome{Verdict: deny, Code: r.Code, Why: r.Text}
	case ad.Hold:
		o = outcome{Verdict: hold, Why: "the agent is paused"}
	}
	return judged(s, e, o)
}

// judged adds what the verdict says.
func judged(s *schemas.State, e *schemas.Event, o outcome) outcome {
	if len(e.Verdict) == 0 || s.Agents[e.Agent] != nil && s.Agents[e.Agent].Observed() {
		return o
	}
	switch th := s.ThresholdsOf(e.Agent); {
	case e.Risk >= th.Suspend:
		o.Lock, o.Why = schemas.Suspended, fmt.Sprintf("risk %d, suspended from %d on", e.Risk, th.Suspend)
		if o.Verdict != stand {
			o.Verdict, o.Code = deny, schemas.CodeCancelled
		}
	case e.Risk >= th.Pause:
		o.Lock = schemas.Paused
		if o.Verdict == accept {
			o.Verdict = hold
		}
		if o.Verdict != deny {
			o.Why = fmt.Sprintf("risk %d, paused from %d on", e.Risk, th.Pause)
		}
	case o.Why == "":
		o.Why = fmt.Sprintf("risk %d, paused from %d on", e.Risk, th.Pause)
	}
	return o
}

func decideAnswer(s *schemas.State, e *schemas.Event) outcome {
	lock := schemas.Killed
	if a := s.Agents[e.Agent]; a != nil {
		lock = a.Lock
	}
	switch lock {
	case schemas.Active:
		return outcome{Verdict: accept}
	case schemas.Paused:
		return outcome{Verdict: hold, Why: "who answers is paused"}
	}
	return outcome{Verdict: deny, Code: schemas.CodeCancelled, Why: fmt.Sprintf("%s is %s", e.Agent, lock)}
}

// admits holds an admitted action against the policy's ceiling.
func (p *Policy) admits(s *schemas.State, e *schemas.Event, ad schemas.Admission, strict bool) *schemas.Refusal {
	if p.Fleet == nil {
		return nil
	}
	ceiling, known := p.ceiling(e.Agent)
	if !known {
		return schemas.Refuse(schemas.CodeUnauthorized, "%s is no agent of this fleet", e.Agent)
	}
	if strict {
		if what := p.beyond(ad.Grant.Grant, ceiling); what != "" {
			return schemas.Refuse(schemas.CodeUnauthorized, "its capability would not have been issued: %s is beyond the ceiling", what)
		}
		return nil
	}
	if what := p.beyond(schemas.Grant{Agent: e.Agent, Scope: []string{e.Action.Scope()}, Operation: e.Operation, NotBefore: e.Time, Expires: e.Time}, ceiling); what != "" {
		return schemas.Refuse(schemas.CodeForbidden, "%s is beyond the ceiling", what)
	}
	return nil
}

// decideGrant says whether a capability would have been issued.
func (p *Policy) decideGrant(s *schemas.State, e *schemas.Event, strict bool) outcome {
	o := outcome{Verdict: issue, Why: "within the ceiling"}
	a := s.Agents[e.Agent]
	if a == nil {
		return outcome{Verdict: refuse, Why: e.Agent + " is no agent of this fleet"}
	}
	if s.Lockdown != "" {
		return outcome{Verdict: refuse, Why: "the fleet is locked down"}
	}
	if strict && a.Lock != schemas.Active {
		return outcome{Verdict: refuse, Why: fmt.Sprintf("%s is %s", e.Agent, a.Lock)}
	}
	if p.Fleet == nil {
		return o
	}
	ceiling, known := p.ceiling(e.Agent)
	if !known {
		return outcome{Verdict: refuse, Why: e.Agent + " is no agent of this fleet"}
	}
	var g schemas.Grant
	if err := schemas.Unmarshal(e.Data, &g); err != nil {
		return outcome{Verdict: refuse, Why: err.Error()} // the fold says so too, and ends
	}
	if what := p.beyond(g, ceiling); what != "" {
		return outcome{Verdict: refuse, Why: what + " is beyond the ceiling"}
	}
	if q := p.principal(e.Agent); !q.Observed() {
		if why := issuer.OffRails(p.Rails, p.principal, &schemas.Agent{Principal: *q}, g); why != "" {
			return outcome{Verdict: refuse, Why: why}
		}
	}
	return o
}

// beyond says what of a capability the issuer would have refused under a
// ceiling. It adds the ceiling's forbidden tools by itself, and a budget that
// the policy sets was not asked for.
func (p *Policy) beyond(g schemas.Grant, ceiling *schemas.Ceiling) string {
	if q := p.principal(g.Agent); q != nil && q.Observed() {
		return ""
	}
	g.ForbiddenTools = slices.Concat(g.ForbiddenTools, ceiling.ForbiddenTools)
	if p.Budget != nil {
		g.MaxTokens = 0
	}
	return issuer.Exceeds(g, ceiling, g.NotBefore)
}

// principal finds who the policy's fleet file declares.
func (p *Policy) principal(id string) *schemas.Principal {
	i := slices.IndexFunc(p.Fleet.Principals, func(q schemas.Principal) bool { return q.ID == id })
	if i < 0 {
		return nil
	}
	return &p.Fleet.Principals[i]
}

func (p *Policy) ceiling(agent string) (*schemas.Ceiling, bool) {
	q := p.principal(agent)
	if q == nil || q.Kind != schemas.KindAgent {
		return nil, false
	}
	if q.Ceiling == nil {
		return &schemas.Ceiling{}, true
	}
	return q.Ceiling, true
}

// rewrite is an event as the policy would have had it written: declarations
// are the fleet file's, thresholds and budgets the policy's.
func (p *Policy) rewrite(e *schemas.Event) (*schemas.Event, error) {
	switch e.Kind {
	case schemas.AgentDeclared:
		if p.Fleet == nil && p.Thresholds == nil {
			return e, nil
		}
		var q schemas.Principal
		if err := schemas.Unmarshal(e.Data, &q); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.Seq, err)
		}
		p.declare(&q)
		c := *e
		c.Data = schemas.Marshal(q)
		return &c, nil
	case schemas.TokenIssued:
		if p.Budget == nil && p.Fleet == nil {
			return e, nil
		}
		var g schemas.Grant
		if err := schemas.Unmarshal(e.Data, &g); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.Seq, err)
		}
		p.bound(&g)
		c := *e
		c.Data = schemas.Marshal(g)
		return &c, nil
	}
	return e, nil
}

// bound cuts a capability's lifetime to the ceiling's: what lives longest is
// what a request gets that names none. The budget is the policy's.
func (p *Policy) bound(g *schemas.Grant) {
	if p.Fleet != nil {
		if c, known := p.ceiling(g.Agent); known && c.TTLSeconds > 0 {
			if last := g.NotBefore.Add(time.Duration(c.TTLSeconds) * time.Second); last.Before(g.Expires) {
				g.Expires = last
			}
		}
	}
	if p.Budget != nil {
		g.MaxTokens = *p.Budget
	}
}

// declare makes a declaration the policy's. Locks and generations are history,
// and stay. Who is not in the fleet file serves nobody, and is refused.
func (p *Policy) declare(q *schemas.Principal) {
	if p.Fleet != nil && q.ID != schemas.MemoryID {
		lock, generation := q.Lock, q.Generation
		if mine := p.principal(q.ID); mine != nil {
			*q = *mine
		} else {
			q.Serves = nil
		}
		q.Lock, q.Generation = lock, generation
	}
	if p.Thresholds != nil {
		q.Thresholds = p.Thresholds
	}
}
