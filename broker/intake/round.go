package intake

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const (
	rounds     = 2         // in progress at once: while all are, what arrives gathers for the next
	roundMax   = 256       // messages of one round
	roundBytes = 512 << 10 // of their bodies
	patientMax = 256       // tasks that wait for something by themselves
)

// A step is where a task goes next.
type step uint8

const (
	dropped  step = iota // it is nobody's
	toLog                // decided
	toJudge              // the monitor gives a verdict
	tooEarly             // something that it needs may still be on its way here
)

// round takes messages of as many lanes through to the log together: one
// question to the monitor, one run of appends. A task that has to wait for
// something leaves the round, and waits without the others.
func (i *Intake) round(running context.Context, tasks []task) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(running), appendGrace)
	defer cancel()
	var ready, judged []*task
	for n := range tasks {
		t := &tasks[n]
		switch i.prepare(t) {
		case dropped:
			i.lanes.done(t)
		case toLog:
			ready = append(ready, t)
		case toJudge:
			judged = append(judged, t)
		case tooEarly:
			i.patiently(running, t, i.await)
		}
	}
	if len(judged) > 0 {
		for n, s := range i.assess(ctx, judged, false) {
			if s == tooEarly {
				i.patiently(running, judged[n], nil)
			} else {
				ready = append(ready, judged[n])
			}
		}
	}
	i.append(ctx, running, ready)
}

// patiently takes one task through by itself: it awaits what was not here yet,
// or, where that is nil, asks the monitor to.
func (i *Intake) patiently(running context.Context, t *task, await func(context.Context, *task) step) {
	alone := *t // the round's array need not live on
	i.waits.Go(func() error {
		i.patient <- struct{}{}
		defer func() { <-i.patient }()
		if running.Err() != nil { // stopping: what was not begun is the next replica's
			i.lanes.done(&alone)
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(running), appendGrace)
		defer cancel()
		next := toJudge
		if await != nil {
			next = await(ctx, &alone)
		}
		if next == toJudge {
			next = i.assess(ctx, []*task{&alone}, true)[0]
		}
		if next != toLog {
			i.lanes.done(&alone)
			return nil
		}
		i.append(ctx, running, []*task{&alone})
		return nil
	})
}

// append puts events into the log and frees their lanes.
func (i *Intake) append(ctx, running context.Context, tasks []*task) {
	if len(tasks) == 0 {
		return
	}
	events := make([]*schemas.Event, len(tasks))
	for n, t := range tasks {
		events[n] = t.event
	}
	i.asked.remember(events)
	seqs, errs := i.log.AppendAll(ctx, events)
	free := tasks[:0]
	for n, t := range tasks {
		e := t.event
		if errs[n] != nil {
			i.failed(e, errs[n])
			free = append(free, t)
			continue
		}
		e.Seq = seqs[n]
		if len(e.Verdict) > 0 {
			t.lane.after = e.Seq
		}
		if e.Kind == schemas.ResponseAccepted {
			i.lanes.heard(e.To, e.Seq)
		} else if e.Kind == schemas.MessageAccepted && e.Ref != 0 {
			i.spend(e)
		}
		if e.Lock != "" {
			i.awaitLock(running, t)
			continue
		}
		free = append(free, t)
	}
	i.asked.settle(events, errs)
	i.lanes.done(free...)
}

// awaitLock holds the agent's next message back until a lock that this one put
// on is known here. While stopping nothing comes back from the log, and no
// next message is taken.
func (i *Intake) awaitLock(running context.Context, t *task) {
	alone := *t
	i.waits.Go(func() error {
		if err := i.folded.Wait(running, alone.event.Seq, appendGrace); err != nil && running.Err() == nil {
			i.failed(alone.event, fmt.Errorf("the lock of event %d did not come back from the log: %w", alone.event.Seq, err))
		}
		i.lanes.done(&alone)
		return nil
	})
}

func (i *Intake) failed(e *schemas.Event, err error) {
	i.Logger.Error("not accepted", "agent", e.Agent, "operation", e.Operation, "action", e.Action, "error", err)
}

// assess asks the monitor about tasks and does what its verdicts say; for each
// it gives the next step. Where there is no verdict, nothing is accepted.
func (i *Intake) assess(ctx context.Context, tasks []*task, patient bool) []step {
	req := schemas.AssessRequest{Patient: patient, Drafts: make([]schemas.Draft, len(tasks))}
	for n, t := range tasks {
		req.Drafts[n] = schemas.DraftOf(t.event)
		req.After = max(req.After, i.lanes.after(t.lane))
	}
	next := make([]step, len(tasks))
	ctx, cancel := context.WithTimeout(ctx, assessTimeout)
	defer cancel()
	rulings, err := bus.AskVerdicts(ctx, i.Conn, &req)
	for n, t := range tasks {
		switch {
		case malformed(err) && !patient:
			next[n] = tooEarly // nobody is refused for another's sake
			continue
		case err == nil && !rulings[n].Unknown:
			rule(t.event, &rulings[n], i.observed(t.event.Agent))
		case err == nil && !patient:
			next[n] = tooEarly
			continue
		default:
			i.Logger.Error("no verdict", "agent", t.event.Agent, "error", err)
			unjudged(t.event)
		}
		next[n] = toLog
	}
	return next
}

// unjudged refuses what the monitor gave no verdict on.
func unjudged(e *schemas.Event) {
	r := schemas.Refuse(schemas.CodeUnavailable, "the monitor gave no verdict; nothing was done, try again")
	if e.Kind == schemas.ResponseAccepted || e.Kind == schemas.ResponseHeld {
		e.Kind, e.Code, e.Reason = schemas.ResponseDenied, r.Code, r.Text
		return
	}
	deny(e, r)
	e.Trace, e.JTI = schemas.Trace{}, ""
}

// malformed reports whether the monitor could not read a question.
func malformed(err error) bool {
	var r *schemas.Refusal
	return errors.As(err, &r) && r.Code == schemas.CodeMalformed
}

const assessTimeout = 3 * time.Second

// observed reports whether an agent's verdicts are logged and not enforced.
func (i *Intake) observed(agent string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[agent]
	return a != nil && a.Observed()
}

// rule does what the verdict says, or, in observe mode, says what it would have
// done.
func rule(e *schemas.Event, v *schemas.Ruling, observed bool) {
	e.Verdict, e.Risk = v.Verdict, v.Risk
	if observed {
		if v.Decision != schemas.Pass && e.Reason == "" {
			e.Reason = fmt.Sprintf("observe mode: risk %d would have brought %s", v.Risk, v.Decision)
		}
		return
	}
	answer := e.Kind == schemas.ResponseAccepted || e.Kind == schemas.ResponseHeld
	switch v.Decision {
	case schemas.Pass:
	case schemas.Pause:
		e.Lock = schemas.Paused
		if e.Kind == schemas.MessageAccepted { // also one that was approved: an accepted action puts no lock on
			e.Kind = schemas.MessageHeld
			e.Code, e.Reason = schemas.CodeHeld, fmt.Sprintf("risk %d: held for review, and the agent is paused", v.Risk)
		} else if e.Kind == schemas.ResponseAccepted {
			e.Kind = schemas.ResponseHeld
		} else if e.Kind == schemas.MessageDenied { // its refusal isn't what pauses the agent
			e.Reason = schemas.HeaderText(fmt.Sprintf("%s; and at risk %d the agent is paused", e.Reason, v.Risk))
		}
	default: // also what we don't know: fail closed
		e.Lock = schemas.Suspended
		if answer {
			e.Kind = schemas.ResponseDenied
		} else {
			e.Kind = schemas.MessageDenied
		}
		e.Code, e.Reason = schemas.CodeCancelled, fmt.Sprintf("risk %d: the agent is suspended", v.Risk)
	}
	if e.Lock != "" && e.Reason == "" {
		e.Reason = fmt.Sprintf("risk %d", v.Risk)
	}
}
