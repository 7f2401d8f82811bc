// Package simulate asks of a recorded history which decisions another policy
// would have taken otherwise. It reads, and does nothing else: the same log and
// the same policy give the same report, byte for byte.
//
// # What a policy is
//
// A Policy is a fleet file (ceilings, forbidden tools, thresholds, what services
// serve and what class their tools are), thresholds for all agents, weights of
// the monitor, a budget for each operation; what is left out stays as it was.
// It is one pure function, decide(state, event), and the policy that was in
// force is the same function with nothing replaced.
//
// # What is compared
//
// Each decision in the log is taken three times: as it was recorded; by the
// policy in force, from the fold of the log before it; and by the given policy,
// from the fold of the same log with the policy's own declarations in it. Where
// the first two differ, the decision rests on what the log does not hold, and is
// counted as unexplained, never as a flip: a rate, a size, a monitor that was
// down, or an intake that was a moment behind. Where the second and the third
// differ, it flips.
//
// Decisions are: actions and agents' answers (accept, hold, deny), the locks that
// verdicts put on, and capabilities (issue, refuse). What people decided (reviews,
// resumes, kills) happened and stays. That another service would have got the
// message is no flip, and a wider ceiling admits nothing that no capability
// granted. A capability that lives longer than the ceiling allows ends when one
// of its longest would have; a refused request for one is not in the log. Services
// that the log never declared serve nothing.
//
// Verdicts: thresholds are held against the recorded risk. With weights or a
// fleet file, every action is judged anew by a model that folds this history and
// learns from its own verdicts; without weights, what another version of the
// model judged keeps the risk that it had.
//
// # One decision at a time, or with what follows
//
// By default each decision is taken by itself, on the history as it happened: an
// action that would have paused its agent changes nothing for the next one, and
// what a capability beyond the ceiling admitted is held against the ceiling action
// by action. So the list names what the policy itself objects to.
//
// With Cascade what would have happened counts from From on: who would have been
// paused stays paused until the log resumes the agent or approves that very
// action, a suspension ends the capabilities, a capability that would not have
// been issued admits nothing, and what was never delivered was never answered and
// spent no tokens; such answers are counted as void. What agents would have done
// then, or a reviewer, and what the monitor would have learnt from it, nobody
// knows: the monitor folds the history as it was.
package simulate

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// A Policy says what is to be otherwise than it was. The zero Policy is the one
// that was in force.
type Policy struct {
	Fleet      *fleet.File
	Rails      *guard.Rails        // the fleet file's
	Thresholds *schemas.Thresholds // of all agents, before those of the fleet file
	Weights    *monitor.Weights
	Budget     *int64 // language-model tokens of each operation
}

// Options of a simulation.
type Options struct {
	From, To     uint64    // the first decision that is taken again, and the last; 0 for all
	Since, Until time.Time // the same by time; zero for all
	Agent        string    // only decisions on this agent, "" for all
	Cascade      bool      // decisions have consequences
}

// A Flip is a decision that would have been another.
type Flip struct {
	Seq       uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Agent     string    `json:"agent_id"`
	Operation string    `json:"operation_id"`
	Action    string    `json:"action"` // or the kind of event, where it is no action
	Was       string    `json:"was"`
	Would     string    `json:"would"`
	Why       string    `json:"why"`
}

// A Report is what came out.
type Report struct {
	Events      uint64            `json:"events"`
	Decisions   uint64            `json:"decisions"`
	Unexplained uint64            `json:"unexplained"` // not those of the policy in force: what the log does not hold decided them
	Void        uint64            `json:"void"`        // answers to what would not have been delivered
	Flips       uint64            `json:"flips"`
	ByKind      map[string]uint64 `json:"by_kind"` // "was → would"
	ByAgent     map[string]uint64 `json:"by_agent"`
	List        []Flip            `json:"list"`
}

// Run simulates a policy on a log, given in order and from its start.
func Run(events iter.Seq2[*schemas.Event, error], p *Policy, o Options) (Report, error) {
	s := run{policy: p, o: o, was: schemas.NewState(), would: schemas.NewState(), undone: map[uint64]bool{},
		report: Report{ByKind: map[string]uint64{}, ByAgent: map[string]uint64{}, List: []Flip{}}}
	for e, err := range s.twice(events) {
		if err == nil {
			err = s.step(e)
		}
		if err != nil {
			return s.report, fmt.Errorf("simulate: %w", err)
		}
	}
	return s.report, nil
}

type run struct {
	policy     *Policy
	o          Options
	originals  []*schemas.Event // read, and not yet come out of the model
	was, would *schemas.State
	undone     map[uint64]bool // with Cascade: actions that would not have been delivered
	report     Report
}

// twice gives the log as the policy would have had it written: declarations
// and budgets are the policy's, and so are verdicts where they may differ.
func (s *run) twice(events iter.Seq2[*schemas.Event, error]) iter.Seq2[*schemas.Event, error] {
	rewritten := func(yield func(*schemas.Event, error) bool) {
		for e, err := range events {
			if err == nil {
				s.originals = append(s.originals, e)
				e, err = s.policy.rewrite(e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
	if s.policy.Weights == nil && s.policy.Fleet == nil {
		return rewritten
	}
	return monitor.Rejudge(rewritten, monitor.Options{Weights: s.policy.Weights})
}

var errOrder = errors.New("the model gave events in another order")

// step takes one event: e as the policy would have it.
func (s *run) step(e *schemas.Event) error {
	original := s.originals[0]
	s.originals[0] = nil
	s.originals = s.originals[1:]
	if original.Seq != e.Seq {
		return errOrder
	}
	s.report.Events++
	if err := s.judge(original, e); err != nil {
		return err
	}
	return s.was.Apply(original)
}

// judge compares, and folds what the policy would have made of it.
func (s *run) judge(original, e *schemas.Event) error {
	active := s.o.begun(e)
	if s.o.Cascade && s.undone[e.Ref] && answersOrEnds(e.Kind) {
		if decides(e) && s.asked(e) {
			s.report.Void++
		}
		return nil
	}
	if !decides(e) {
		return s.would.Apply(e)
	}
	recorded := recordedOf(original)
	was, would := inForce.decide(s.was, original, false), s.policy.decide(s.would, e, s.o.Cascade && active)
	explained := was.same(recorded) && was.Code == recorded.Code
	if s.asked(e) {
		s.count(original, recorded, would, explained)
	}
	if !s.o.Cascade || !active || !explained {
		return s.would.Apply(e)
	}
	if recorded.Verdict == accept && would.Verdict != accept {
		s.undone[e.Seq] = true
	}
	if would.Verdict == refuse {
		return nil
	}
	return s.would.Apply(would.event(e))
}

// begun says whether the span that is asked about has begun.
func (o *Options) begun(e *schemas.Event) bool { return e.Seq >= o.From && !e.Time.Before(o.Since) }

// asked says whether a decision is one of those that are asked about.
func (s *run) asked(e *schemas.Event) bool {
	return s.o.begun(e) && (s.o.To == 0 || e.Seq <= s.o.To) && (s.o.Until.IsZero() || !e.Time.After(s.o.Until)) &&
		(s.o.Agent == "" || e.Agent == s.o.Agent)
}

func (s *run) count(e *schemas.Event, was, would outcome, explained bool) {
	s.report.Decisions++
	if !explained {
		s.report.Unexplained++
		return
	}
	if was.same(would) {
		return
	}
	f := Flip{Seq: e.Seq, Time: e.Time, Agent: e.Agent, Operation: e.Operation, Action: string(e.Kind),
		Was: was.String(), Would: would.String(), Why: would.Why}
	if e.Action != (schemas.Action{}) {
		f.Action = e.Action.String()
	}
	s.report.Flips++
	s.report.ByKind[f.Was+" → "+f.Would]++
	s.report.ByAgent[f.Agent]++
	s.report.List = append(s.report.List, f)
}
