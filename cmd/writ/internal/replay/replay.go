// Package replay takes the decisions in a log again, each from the fold of the
// log before it, and compares them with what was logged. The monitor's verdicts
// are compared by package monitor; here it is what was done about them, and all
// else that is decided:
//
//   - ends: what release cancels, in log order and exactly. Each cancellation in
//     the log is one that the fold decided, each that it decided stands in the
//     log by the time that a release.mark says so, and an expiry is not before
//     its time. So nothing behind a kill, a suspension or a denial goes on
//     without an end.
//   - decisions: what intake held and denied early, what a verdict made of an
//     action, what capabilities were issued, and what operators decided of held
//     actions, and of those that they vouched for: where two must approve, two have. Intake and issuer follow the log
//     by a moment, so theirs must be what some state of the last 16,384 events
//     decides; what intake accepted is decided exactly, by the above.
//   - locks: the lock that an event carries is the one its verdict decides, and
//     an agent that the issuer declares again has the lock and the generation of
//     keys that the fold says.
//
// What the log does not hold is counted as unchecked, not compared: refusals for
// rate, size, form and missing verdicts, answers to nothing, and that a recipient
// was not connected. Texts of refusals are words for people, and are not compared.
package replay

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
)

// A Report says whether a log's decisions are those that its events make.
type Report struct {
	Decisions  uint64 // compared
	Ends       uint64 // compared
	Locks      uint64 // compared
	Unchecked  uint64 // resting on what the log does not hold
	Open       uint64 // ends that were decided and are not in the log yet
	Mismatches uint64
	First      uint64 // sequence of the first mismatch, 0 where there is none
	Reason     string // of the first
}

// window is how far behind the log intake and issuer may be.
const window = 1 << 14

// A Check takes a log again, event by event, in order and from its start.
type Check struct {
	core   *release.Core
	wanted map[uint64]want           // ends that were decided, by the action's sequence
	open   map[uint64]*schemas.Event // what may end
	ended  map[uint64]*schemas.Event // what ended or answered it, within the window: an end may be sent twice, or have been on its way

	rails   rails
	behind  *schemas.State   // the fold, window events behind
	queue   []*schemas.Event // between the two
	pending map[uint64]*claim
	order   []uint64          // of pending, rising
	reviews map[uint64]uint64 // the newest review of what was held, where it is not folded yet

	only   func(*schemas.Event) bool
	report Report
}

type want struct {
	end *schemas.Event
	at  uint64 // the event that decided it
}

// A claim is a decision that some state of the window must explain.
type claim struct {
	e    *schemas.Event
	what string // the mismatch if none does
	by   func(*schemas.State) bool
}

// NewCheck is a check before the first event. Only decisions that only admits
// are counted and compared; nil admits all.
func NewCheck(only func(*schemas.Event) bool) *Check {
	return &Check{core: release.NewCore(), wanted: map[uint64]want{}, open: map[uint64]*schemas.Event{}, ended: map[uint64]*schemas.Event{},
		behind: schemas.NewState(), pending: map[uint64]*claim{}, reviews: map[uint64]uint64{}, only: only}
}

// Step takes the next event. An error means that it can't be folded.
func (c *Check) Step(e *schemas.Event) error {
	slim := *e
	slim.Data = nil
	switch e.Kind {
	case schemas.AgentDeclared, schemas.TokenIssued, schemas.PolicyApplied:
		slim.Data = e.Data
	}
	if err := c.exactly(&slim); err != nil {
		return err
	}
	c.verdict(&slim)
	if cl := c.claimOf(&slim); cl != nil && c.asked(&slim) {
		c.report.Decisions++
		if !cl.by(c.behind) {
			c.pending[e.Seq] = cl
			c.order = append(c.order, e.Seq)
		}
	}
	c.queue = append(c.queue, &slim)
	if len(c.queue) > window {
		return c.fold()
	}
	return nil
}

// Report ends the check.
func (c *Check) Report() (Report, error) {
	for len(c.queue) > 0 {
		if err := c.fold(); err != nil {
			return c.report, err
		}
	}
	for _, w := range c.wanted {
		if c.asked(w.end) {
			c.report.Open++
		}
	}
	return c.report, nil
}

func (c *Check) asked(e *schemas.Event) bool { return c.only == nil || c.only(e) }

func (c *Check) mismatch(e *schemas.Event, format string, args ...any) {
	if !c.asked(e) {
		return
	}
	c.report.Mismatches++
	if c.report.First == 0 || e.Seq < c.report.First {
		c.report.First, c.report.Reason = e.Seq, fmt.Sprintf(format, args...)
	}
}

// exactly folds an event as release does, and compares the ends.
func (c *Check) exactly(e *schemas.Event) error {
	switch e.Kind {
	case schemas.MessageCancelled, schemas.MessageExpired:
		c.end(e)
	case schemas.ReleaseMark:
		c.marked(e)
	}
	effects, err := c.core.Step(e)
	if err != nil {
		return err
	}
	switch e.Kind {
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.ResponseHeld:
		c.open[e.Seq] = e
	case schemas.ResponseAccepted:
		if asked := c.open[e.Ref]; asked != nil && e.Final && asked.To == e.Agent && asked.Request == e.Request {
			c.ended[e.Ref] = e
		}
	case schemas.ReviewApproved:
		if held := c.open[e.Ref]; held != nil && held.Agent == e.Agent && (held.Kind == schemas.ResponseHeld || held.Action.Request()) {
			c.ended[e.Ref] = e
		}
	}
	for _, f := range effects {
		if emit, ok := f.(release.Emit); ok {
			c.wanted[emit.Event.Ref] = want{emit.Event, e.Seq}
		}
	}
	return nil
}

// end compares a cancellation or an expiry.
func (c *Check) end(e *schemas.Event) {
	if c.asked(e) {
		c.report.Ends++
	}
	w, decided := c.wanted[e.Ref]
	of := c.open[e.Ref]
	if last := c.ended[e.Ref]; last != nil && sameEnd(last, e) {
		return // release sent it again after a crash
	}
	switch {
	case decided && sameEnd(w.end, e):
	case e.Kind == schemas.MessageExpired && of != nil && e.Code == schemas.CodeNoAnswer && of.Agent == e.Agent:
		if e.Time.Before(deadline(of)) {
			if of.Kind != schemas.MessageAccepted || !of.Action.Request() {
				c.mismatch(e, "%s expires before its time", of.Kind)
			} else if c.asked(e) {
				c.report.Unchecked++ // its recipient was not connected
			}
		}
	case decided:
		c.mismatch(e, "%s with code %d, and %s with code %d was decided at %d", e.Kind, e.Code, w.end.Kind, w.end.Code, w.at)
	default:
		c.mismatch(e, "nothing before it decides this end of %d", e.Ref)
	}
	delete(c.wanted, e.Ref)
	c.ended[e.Ref] = e
}

func sameEnd(a, b *schemas.Event) bool {
	return a.Kind == b.Kind && a.Ref == b.Ref && a.Agent == b.Agent && a.Code == b.Code &&
		a.Operation == b.Operation && a.Action == b.Action && a.To == b.To
}

// deadline is when an action may expire, as the core schedules it.
func deadline(e *schemas.Event) time.Time {
	if e.Kind == schemas.ResponseHeld || e.Kind == schemas.MessageHeld && e.Action.Request() {
		return e.Time.Add(release.ResponseHold)
	}
	return e.Expires
}

// marked demands that what was decided up to a mark is in the log.
func (c *Check) marked(e *schemas.Event) {
	for ref, w := range c.wanted {
		if w.at <= e.Ref {
			at := *w.end
			at.Seq = w.at
			c.mismatch(&at, "%s of %d was decided here, and is not in the log", w.end.Kind, ref)
			delete(c.wanted, ref)
		}
	}
}

// verdict holds what an event does against its verdict.
func (c *Check) verdict(e *schemas.Event) {
	if len(e.Verdict) == 0 {
		if e.Lock != "" && decision(e.Kind) {
			c.mismatch(e, "it puts the lock %s on without a verdict", e.Lock)
		}
		return
	}
	var v struct {
		Decision string `json:"decision"`
	}
	if err := json.Unmarshal(e.Verdict, &v); err != nil {
		c.mismatch(e, "its verdict can't be read: %v", err)
		return
	}
	if c.asked(e) {
		c.report.Locks++
	}
	var lock schemas.Lock
	passes := e.Kind == schemas.MessageAccepted || e.Kind == schemas.ResponseAccepted
	switch v.Decision {
	case schemas.Pass:
	case schemas.Pause:
		lock = schemas.Paused
	default:
		lock = schemas.Suspended
	}
	switch {
	case e.Lock != lock:
		c.mismatch(e, "its verdict says %s, and it puts the lock %q on", v.Decision, e.Lock)
	case lock != "" && passes,
		lock == schemas.Suspended && e.Kind != schemas.RiskChanged && e.Kind != schemas.MessageDenied && e.Kind != schemas.ResponseDenied:
		c.mismatch(e, "its verdict says %s, and it is %s", v.Decision, e.Kind)
	}
}

func decision(k schemas.Kind) bool {
	switch k {
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied,
		schemas.ResponseAccepted, schemas.ResponseHeld, schemas.ResponseDenied, schemas.RiskChanged:
		return true
	}
	return false
}

// claimOf is what the fold must explain of an event, nil where that is nothing.
func (c *Check) claimOf(e *schemas.Event) *claim {
	switch e.Kind {
	case schemas.MessageHeld, schemas.ResponseHeld:
		if e.Lock != "" {
			return nil // its verdict holds it
		}
		return &claim{e, "it is held, and nothing had paused the agent", func(s *schemas.State) bool { return lockOf(s, e.Agent) == schemas.Paused }}
	case schemas.MessageDenied:
		return c.denial(e)
	case schemas.ResponseDenied:
		if e.Lock != "" {
			return nil
		}
		if e.Code != schemas.CodeCancelled {
			c.unchecked(e)
			return nil
		}
		return &claim{e, "the answer is refused for a lock, and the agent had none", func(s *schemas.State) bool {
			return lockOf(s, e.Agent) == schemas.Suspended || lockOf(s, e.Agent) == schemas.Killed
		}}
	case schemas.TokenIssued:
		return grant(e, &c.rails)
	case schemas.AgentDeclared:
		return declaration(e)
	case schemas.ReviewEndorsed, schemas.ReviewApproved, schemas.ReviewDenied, schemas.ReviewVouched:
		return c.review(e)
	}
	return nil
}

// review demands that what was reviewed was held, or had suspended its agent where it
// is vouched for, and where two operators must
// approve, that two have. The issuer decides no review before it has folded the
// one before of the same.
func (c *Check) review(e *schemas.Event) *claim {
	since := c.reviews[e.Ref]
	c.reviews[e.Ref] = e.Seq
	return &claim{e, fmt.Sprintf("it is %s, and what it is of was not held, or did not suspend the agent, or has not the approvals that it needs", e.Kind), func(s *schemas.State) bool {
		return s.Seq >= since && issuer.Reviewed(s, e)
	}}
}

func lockOf(s *schemas.State, agent string) schemas.Lock {
	if a := s.Agents[agent]; a != nil {
		return a.Lock
	}
	return schemas.Killed
}

func (c *Check) unchecked(e *schemas.Event) {
	if c.asked(e) {
		c.report.Unchecked++
	}
}

func (c *Check) denial(e *schemas.Event) *claim {
	if e.Lock == schemas.Suspended {
		return nil // its verdict denies it
	}
	switch e.Code {
	case schemas.CodeUnauthorized, schemas.CodeBudget, schemas.CodeForbidden, schemas.CodeNotFound, schemas.CodeCancelled:
		if e.Action != (schemas.Action{}) {
			return &claim{e, fmt.Sprintf("it is denied with code %d, and what came before it does not deny it so", e.Code), func(s *schemas.State) bool {
				_, r := s.Admit(e.Agent, e.Operation, e.Action, e.Digest, e.Reserve, e.Time)
				return r != nil && r.Code == e.Code
			}}
		}
	}
	c.unchecked(e)
	return nil
}

// rails keeps the guard rails that were read last: they seldom change.
type rails struct {
	text string
	read *guard.Rails
}

func (r *rails) of(text string) *guard.Rails {
	if r.read == nil || r.text != text {
		read, err := guard.Parse("guardrails", text)
		if err != nil {
			read = guard.Broken(err)
		}
		r.text, r.read = text, read
	}
	return r.read
}

// grant demands that a capability is within ceiling and guard rails of an agent
// without a lock, and the fleet not locked down.
func grant(e *schemas.Event, rails *rails) *claim {
	var g schemas.Grant
	if err := schemas.Unmarshal(e.Data, &g); err != nil {
		return nil // the fold refuses it
	}
	return &claim{e, "a capability was issued that the ceiling, a lock or a lockdown did not allow", func(s *schemas.State) bool {
		a := s.Agents[e.Agent]
		if a == nil || s.Lockdown != "" || a.Lock != schemas.Active {
			return false
		}
		return a.Observed() || issuer.Exceeds(g, a.Ceiling, e.Time) == "" && issuer.OffRails(rails.of(s.Guardrails), a, g) == ""
	}}
}

// declaration demands that an agent that is declared again is as it was.
func declaration(e *schemas.Event) *claim {
	var p schemas.Principal
	if err := schemas.Unmarshal(e.Data, &p); err != nil || p.Lock == "" {
		return nil
	}
	return &claim{e, fmt.Sprintf("it is declared as %s, generation %d, and the fold says otherwise", p.Lock, p.Generation), func(s *schemas.State) bool {
		a := s.Agents[e.Agent]
		return a != nil && a.Lock == p.Lock && a.Generation == p.Generation
	}}
}

// fold moves the state on by one event, and looks whether it explains what is
// not explained yet.
func (c *Check) fold() error {
	e := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	if cl := c.pending[e.Seq]; cl != nil {
		// The first declaration in a log says where an agent begins.
		if e.Kind != schemas.AgentDeclared || c.behind.Agents[e.Agent] != nil {
			c.mismatch(e, "%s", cl.what)
		}
		delete(c.pending, e.Seq)
	}
	if c.reviews[e.Ref] == e.Seq {
		delete(c.reviews, e.Ref)
	}
	if c.ended[e.Ref] == e {
		delete(c.ended, e.Ref)
		delete(c.open, e.Ref)
	}
	if err := c.behind.Apply(e); err != nil {
		return err
	}
	if len(c.pending) > 0 && changes(e) {
		c.explain()
	} else if len(c.pending) == 0 {
		c.order = c.order[:0]
	}
	return nil
}

func (c *Check) explain() {
	left := c.order[:0]
	for _, seq := range c.order {
		cl := c.pending[seq]
		if cl == nil {
			continue
		}
		if cl.by(c.behind) {
			delete(c.pending, seq)
			continue
		}
		left = append(left, seq)
	}
	c.order = left
}

// changes says whether an event can change what the state decides.
func changes(e *schemas.Event) bool {
	switch e.Kind {
	case schemas.MessageCancelled, schemas.MessageExpired, schemas.ReleaseMark, schemas.AgentViolation:
		return false
	case schemas.MessageAccepted:
		return e.Ref != 0 || e.Lock != ""
	case schemas.ResponseAccepted:
		return e.Tokens > 0 || e.Lock != ""
	case schemas.MessageDenied, schemas.ResponseDenied:
		return e.Lock != ""
	}
	return true
}
