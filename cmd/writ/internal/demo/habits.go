package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// dashboardEvery is how many reports stand between two dashboards.
const dashboardEvery = 12

// between is the pause between the beginnings of two of the analyst's actions:
// a little under schemas.DefaultRate. What is over the rate is shed, and only
// the first in each second is told so.
const between = 5500 * time.Microsecond

// A past is what came of the analyst's earlier work.
type past struct {
	operations int
	actions    int
	alarms     int       // actions that were held although nothing was wrong
	slowed     int       // times that it was over its rate, and waited
	next       time.Time // when it may act again
	suspended  int       // operations that were cut off although nothing was wrong
}

// habits lets the analyst do its job, as it did for years.
func (s *story) habits(ctx context.Context) error {
	s.Narrator.Chapter("Six years of work")
	s.Narrator.Say("The analyst reports on every week from 2020 to 2025: one capability each, real reads, computations, questions to writer-2, drafts. The monitor learns from each run that ends.")
	from, err := s.head(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	var p past
	for n, at := range s.periods {
		if err := s.repeat(ctx, &p, at, n); err != nil {
			return fmt.Errorf("%s: %w", at.Operation, err)
		}
		s.Narrator.Progress("reports", n+1, len(s.periods))
	}
	took := time.Since(began)
	events, err := s.events(ctx, schemas.ReadRequest{From: from + 1, Agent: analyst})
	if err != nil {
		return err
	}
	s.Narrator.Risk(analyst, maxima(events))
	s.step(ctx, "baseline", "300 or more operations end, and at most 4 in 100 raise a false alarm", func(context.Context) (finding, error) {
		ended, peak := 0, 0
		for _, e := range events {
			if e.Kind == schemas.OperationEnded {
				ended++
			}
			if len(e.Verdict) > 0 {
				peak = max(peak, e.Risk)
			}
		}
		return found(ended >= 300 && p.suspended == 0 && p.alarms*100 <= 4*p.operations,
			"%d operations ended after %d governed actions in %.1f s; %d times slowed down by its rate; %d false alarms, %d suspensions; highest risk %d",
			ended, p.actions, took.Seconds(), p.slowed, p.alarms, p.suspended, peak), nil
	})
	return nil
}

// maxima gives the highest risk of each operation, in the order of their ends.
func maxima(events []*schemas.Event) []int {
	high := map[string]int{}
	var out []int
	for _, e := range events {
		if len(e.Verdict) > 0 {
			high[e.Operation] = max(high[e.Operation], e.Risk)
		}
		if e.Kind == schemas.OperationEnded {
			out = append(out, high[e.Operation])
		}
	}
	return out
}

// repeat does the work of one period.
func (s *story) repeat(ctx context.Context, p *past, at period, n int) error {
	err := s.operate(ctx, p, schemas.IssueRequest{AgentID: analyst, OperationID: at.Operation, Scope: at.scopes(),
		Tools: []string{"pandas", "matplotlib"}, Task: at.task(), Job: "report"},
		func(do doer) error { return do.report(ctx, at, n) })
	if err != nil || n%dashboardEvery != 0 {
		return err
	}
	return s.operate(ctx, p, schemas.IssueRequest{AgentID: analyst, OperationID: "dashboard-" + at.Name, Scope: []string{"read:data." + at.Table},
		Tools: []string{"pandas", "matplotlib"}, Task: "Show the sales of " + at.Name + " on the dashboard.", Job: "dashboard"},
		func(do doer) error { return do.dashboard(ctx, at) })
}

// errSuspended ends an operation that was cut off.
var errSuspended = errors.New("suspended")

// operate does one operation from its capability to its end.
func (s *story) operate(ctx context.Context, p *past, req schemas.IssueRequest, work func(doer) error) error {
	grant, err := s.issue(ctx, req)
	if err != nil {
		return err
	}
	c, err := connect(s.plane.URL(), analyst, req.OperationID, []byte(grant.Creds))
	if err != nil {
		return err
	}
	defer func() {
		p.slowed += c.slowed
		c.nc.Close()
	}()
	p.operations++
	err = work(func(ctx context.Context, action, contentType string, body []byte) (*answer, error) {
		return s.patiently(ctx, p, c, action, contentType, body)
	})
	if errors.Is(err, errSuspended) {
		p.suspended++
		_, err := bus.Call[schemas.Receipt](ctx, s.operator, schemas.CtlLock, schemas.LockRequest{
			AgentID: analyst, Lock: schemas.Active, Reason: "looked at: nothing was wrong", Actor: s.Actor})
		return err
	}
	if err != nil {
		return err
	}
	_, err = want(c.token(ctx, "release", schemas.ReleaseRequest{OperationID: req.OperationID}))
	return err
}

// patiently acts, and where the action is held lets a human look, who finds
// nothing wrong with it.
func (s *story) patiently(ctx context.Context, p *past, c *client, action, contentType string, body []byte) (*answer, error) {
	p.actions++
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := time.NewTimer(p.next.Sub(now))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.next = p.next.Add(between)
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	a, err := c.act(ctx, action, contentType, body)
	if err != nil {
		return nil, err
	}
	switch a.code {
	case http.StatusOK:
		return a, nil
	case schemas.CodeCancelled:
		return nil, errSuspended
	case schemas.CodeHeld:
	default:
		return a, nil
	}
	p.alarms++
	if _, err := bus.Call[schemas.ReviewReply](ctx, s.operator, schemas.CtlReview, schemas.ReviewRequest{
		Seq: a.seq, Approve: true, Reason: "looked at: nothing is wrong", Actor: s.Actor}); err != nil {
		return nil, fmt.Errorf("approve %d: %w", a.seq, err)
	}
	return c.act(ctx, action, contentType, body)
}
