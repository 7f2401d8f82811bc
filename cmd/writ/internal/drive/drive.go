// Package drive runs recorded agents through a real control plane: one enrolled
// agent per suite, one operation per run, each recorded call a governed call by
// a stock NATS client to a stub service. What the control plane did is then
// counted in its log, not in what the client saw.
package drive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/monitor/traces"
	"github.com/writ-sh/writ/schemas"
)

// Options say what to run, and against which control plane.
type Options struct {
	Traces     string  // file of recorded runs
	Tools      string  // manifest of tools
	Runs       int     // the first so many runs; all where 0
	Rate       float64 // calls a second; as fast as they go where 0
	Capability bool    // tokens list what an ideal token would
	Baseline   string  // file of recorded runs whose harmless ones are learned first; see attacked
	Model      string  // with a baseline: the recorded model whose runs are driven then, and not learned
	URL        string  // of the NATS server, for the agents
	Operator   *nats.Conn
	Actor      string
	Progress   func(done, of int)
}

// Report says what came of the calls. Lost counts those that were accepted and
// are neither delivered, held nor cancelled by the log: it must be 0.
type Report struct {
	Runs     int   `json:"runs"`
	Calls    int   `json:"calls"`
	Accepted int   `json:"accepted"`
	Held     int   `json:"held"`
	Denied   int   `json:"denied"`
	Lost     int   `json:"lost"`
	P50      int64 `json:"p50_us"` // of accepted calls, from request to answer
	P99      int64 `json:"p99_us"`

	*Attacked
}

const (
	callTimeout = 15 * time.Second
	settleTries = 20
)

// Run drives the recorded runs, in file order.
func Run(ctx context.Context, o Options) (*Report, error) {
	runs, manifest, err := load(o)
	if err != nil {
		return nil, err
	}
	d := &driver{Options: o, manifest: manifest, out: map[string][]byte{}, delivered: map[uint64]bool{}, received: map[string]int{}, accepted: map[string]int{}}
	head, err := bus.Call[schemas.Head](ctx, o.Operator, schemas.CtlHead, schemas.HeadRequest{})
	if err != nil {
		return nil, err
	}
	if err := d.declare(ctx, runs); err != nil {
		return nil, err
	}
	stop, err := d.serve(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	drive := d.run
	if o.Baseline != "" {
		drive = d.recorded
	}
	for i, run := range runs {
		if err := drive(ctx, run); err != nil {
			return nil, fmt.Errorf("run %s: %w", run.ID, err)
		}
		if o.Progress != nil {
			o.Progress(i+1, len(runs))
		}
	}
	d.report.Runs = len(runs)
	if o.Baseline != "" {
		if d.report.Attacked, err = d.attacked(ctx, runs, head.StreamSeq+1); err != nil {
			return nil, err
		}
	}
	d.report.Lost, err = d.lost(ctx, head.StreamSeq+1)
	d.report.P50, d.report.P99 = quantile(d.latency, .5), quantile(d.latency, .99)
	return &d.report, err
}

func load(o Options) ([]*traces.Run, map[string]traces.Tool, error) {
	manifest, err := traces.Manifest(o.Tools)
	if err != nil {
		return nil, nil, err
	}
	var runs []*traces.Run
	if o.Baseline != "" {
		runs, err = loadAttacked(o)
		return runs, manifest, err
	}
	for run, err := range traces.Open(o.Traces) {
		if err != nil {
			return nil, nil, err
		}
		runs = append(runs, run)
		if len(runs) == o.Runs {
			break
		}
	}
	if len(runs) == 0 {
		return nil, nil, fmt.Errorf("%s holds no runs", o.Traces)
	}
	return runs, manifest, nil
}

type driver struct {
	Options
	manifest   map[string]traces.Tool
	report     Report
	principals []schemas.Principal
	latency    []time.Duration
	next       time.Time // of the next call, with a rate

	mu        sync.Mutex
	out       map[string][]byte // what the tools answer next, by operation
	delivered map[uint64]bool   // what the stub service was given
	received  map[string]int    // how many calls it was given, by operation

	learned  []*traces.Run  // harmless runs, whole
	vouched  int            // suspensions that were vouched for
	accepted map[string]int // calls that were answered, by operation
	stopped  map[string]int // index of the first call that was not, for its risk; by run
}

func (d *driver) declare(ctx context.Context, runs []*traces.Run) error {
	d.principals = principals(runs, d.manifest)
	var th *schemas.Thresholds
	if d.Baseline != "" {
		th = vouchedThresholds
	}
	return d.thresholds(ctx, th)
}

// connect opens a stock client with credentials from the issuer.
func (d *driver) connect(name, creds string) (*nats.Conn, error) {
	nc, err := nats.Connect(d.URL, nats.Name(name), nats.UserCredentialBytes([]byte(creds)), nats.MaxReconnects(0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, fmt.Errorf("connect as %s: %w", name, err)
	}
	return nc, nil
}

// serve connects the stub service.
func (d *driver) serve(ctx context.Context) (stop func(), err error) {
	e, err := bus.Call[schemas.EnrollReply](ctx, d.Operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: ServiceID, Actor: d.Actor})
	if err != nil {
		return nil, fmt.Errorf("enroll the stub service: %w", err)
	}
	nc, err := d.connect(ServiceID, e.Creds)
	if err != nil {
		return nil, err
	}
	_, err = nc.Subscribe("in.call.*", func(m *nats.Msg) {
		seq, _ := strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64)
		d.mu.Lock()
		d.delivered[seq] = true
		d.received[m.Header.Get(schemas.HeaderOperation)]++
		body := d.out[m.Header.Get(schemas.HeaderOperation)]
		d.mu.Unlock()
		if err := m.Respond(body); err != nil {
			return // the caller will count it as lost
		}
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("stub service: %w", err)
	}
	return nc.Close, nil
}

// run drives one recorded run as one operation.
func (d *driver) run(ctx context.Context, run *traces.Run) error {
	d.report.Calls += len(run.Calls)
	if len(run.Calls) == 0 {
		return nil
	}
	grant, err := d.issue(ctx, run)
	if err != nil {
		var r *schemas.Refusal
		if errors.As(err, &r) && r.Code == schemas.CodeMalformed && len(toolsOf(run, d.Capability)) == 0 {
			d.report.Denied += len(run.Calls) // nothing that could be granted
			return nil
		}
		return fmt.Errorf("issue: %w", err)
	}
	nc, err := d.connect(run.Suite, grant.Creds)
	if err != nil {
		return err
	}
	defer nc.Close()
	for i, c := range run.Calls {
		d.mu.Lock()
		d.out[grant.OperationID] = run.Output(i)
		d.mu.Unlock()
		if _, err := d.call(ctx, nc, grant.OperationID, &c); err != nil {
			return fmt.Errorf("call %d: %w", i, err)
		}
	}
	if err := d.settle(ctx, run.Suite); err != nil {
		return err
	}
	return d.giveUp(ctx, nc, grant.OperationID)
}

// issue asks for the run's capability. A lock that the last run's end brought
// about may show only now: it is settled like any other.
func (d *driver) issue(ctx context.Context, run *traces.Run) (schemas.IssueReply, error) {
	for try := 1; ; try++ {
		grant, err := bus.Call[schemas.IssueReply](ctx, d.Operator, schemas.CtlIssue, schemas.IssueRequest{
			AgentID: run.Suite, OperationID: "run-" + run.ID, Tools: toolsOf(run, d.Capability), TTLSeconds: 3600,
			Task: run.Task(), Job: jobOf(run), Actor: d.Actor})
		var r *schemas.Refusal
		locked := errors.As(err, &r) && (r.Code == schemas.CodeCancelled || r.Code == schemas.CodeHeld)
		if !locked || try == settleTries {
			return grant, err
		}
		if err := d.settle(ctx, run.Suite); err != nil {
			return grant, err
		}
	}
}

func jobOf(run *traces.Run) string {
	if schemas.CheckID("job", run.UserTask) != nil {
		return ""
	}
	return run.UserTask
}

// denied is what came of a call that was refused without an answer: because no
// subject can name it, or because the connection was closed.
var denied = &schemas.Refusal{Code: schemas.CodeCancelled}

// call makes one governed call and counts what came of it: nil where it was
// answered.
func (d *driver) call(ctx context.Context, nc *nats.Conn, operation string, c *traces.Call) (*schemas.Refusal, error) {
	if schemas.CheckID("tool", c.Tool) != nil {
		d.report.Denied++ // no subject can name it
		return denied, nil
	}
	if err := d.pace(ctx); err != nil {
		return nil, err
	}
	refused := make(chan struct{}, 1)
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			select {
			case refused <- struct{}{}:
			default:
			}
		}
	})
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	go func() { // the server's own refusal comes beside the request
		select {
		case <-refused:
			cancel()
		case <-ctx.Done():
		}
	}()
	began := time.Now()
	m, err := nc.RequestWithContext(ctx, "out."+operation+".call."+c.Tool, c.Payload())
	if err != nil {
		if nc.IsClosed() || errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrConnectionClosed) {
			d.report.Denied++
			return denied, nil
		}
		return nil, fmt.Errorf("no answer to %s: %w", c.Tool, err)
	}
	r := bus.ReadRefusal(m)
	switch {
	case r == nil:
		d.report.Accepted++
		d.latency = append(d.latency, time.Since(began))
	case r.Code == schemas.CodeHeld:
		d.report.Held++
	default:
		d.report.Denied++
	}
	return r, nil
}

func (d *driver) pace(ctx context.Context) error {
	if d.Rate <= 0 {
		return nil
	}
	now := time.Now()
	if d.next.Before(now) {
		d.next = now
	}
	wait := time.NewTimer(d.next.Sub(now))
	defer wait.Stop()
	d.next = d.next.Add(time.Duration(float64(time.Second) / d.Rate))
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// settle does what an operator would after a run that was stopped: what is
// held is denied, and the agent may go on with its next task.
func (d *driver) settle(ctx context.Context, agent string) error {
	status, err := d.statusOf(ctx, agent)
	if err != nil || status.State == schemas.Active {
		return err
	}
	reviews, err := bus.Call[schemas.ReviewsReply](ctx, d.Operator, schemas.CtlReviews, schemas.PageRequest{Limit: 1000})
	if err != nil {
		return fmt.Errorf("reviews: %w", err)
	}
	for _, r := range reviews.Reviews {
		if r.AgentID != agent {
			continue
		}
		if _, err := bus.Call[schemas.ReviewReply](ctx, d.Operator, schemas.CtlReview, schemas.ReviewRequest{
			Seq: r.Seq, Reason: "recorded run: denied", Actor: d.Actor}); err != nil && !over(err) {
			return fmt.Errorf("deny %d: %w", r.Seq, err)
		}
	}
	return d.resume(ctx, agent, nil)
}

func (d *driver) resume(ctx context.Context, agent string, vouch []uint64) error {
	_, err := bus.Call[schemas.Receipt](ctx, d.Operator, schemas.CtlLock, schemas.LockRequest{
		AgentID: agent, Lock: schemas.Active, Vouch: vouch, Reason: "recorded run is over", Actor: d.Actor})
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	return nil
}

func (d *driver) statusOf(ctx context.Context, agent string) (s schemas.AgentStatus, err error) {
	status, err := bus.Call[schemas.StatusReply](ctx, d.Operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: agent})
	if err != nil {
		return s, fmt.Errorf("status: %w", err)
	}
	if len(status.Agents) != 1 {
		return s, fmt.Errorf("status of %s: %d agents", agent, len(status.Agents))
	}
	return status.Agents[0], nil
}

// over reports whether an action is no longer held: a suspension, or its expiry,
// cancelled it between the list and the decision.
func over(err error) bool {
	var r *schemas.Refusal
	return errors.As(err, &r) && r.Code == schemas.CodeNotFound
}

// giveUp ends the operation, so that the monitor learns from it. An agent that
// was suspended can't, and need not: its capabilities ended then.
func (d *driver) giveUp(ctx context.Context, nc *nats.Conn, operation string) error {
	if nc.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		m, err := nc.RequestWithContext(ctx, "out.token.release", schemas.Marshal(schemas.ReleaseRequest{OperationID: operation}))
		if err != nil {
			if nc.IsClosed() {
				return nil
			}
			return fmt.Errorf("give up %s: %w", operation, err)
		}
		r := bus.ReadRefusal(m)
		if r == nil || r.Code == schemas.CodeNotFound {
			return nil
		}
		if r.Code != schemas.CodeRate { // short runs end faster than an agent may ask
			return fmt.Errorf("give up %s: %w", operation, r)
		}
		select {
		case <-time.After(ratePause):
		case <-ctx.Done():
			return fmt.Errorf("give up %s: %w", operation, ctx.Err())
		}
	}
}

const ratePause = 50 * time.Millisecond

// lost counts, in the ledger, actions that were accepted and came to no end.
func (d *driver) lost(ctx context.Context, from uint64) (int, error) {
	open := map[uint64]bool{}
	err := d.events(ctx, from, func(seq uint64, e *schemas.Event) error {
		switch e.Kind {
		case schemas.MessageAccepted:
			if e.To == ServiceID {
				open[seq] = true
			}
		case schemas.MessageCancelled, schemas.MessageExpired:
			delete(open, e.Ref)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for seq := range open {
		if d.delivered[seq] {
			delete(open, seq)
		}
	}
	return len(open), nil
}

// events reads the ledger from a sequence to its end.
func (d *driver) events(ctx context.Context, from uint64, each func(seq uint64, e *schemas.Event) error) error {
	for from != 0 {
		page, err := bus.Call[schemas.ReadReply](ctx, d.Operator, schemas.CtlRead, schemas.ReadRequest{From: from, Limit: 1000})
		if err != nil {
			return fmt.Errorf("read the ledger: %w", err)
		}
		for _, rec := range page.Records {
			e, err := rec.Event()
			if err != nil {
				return fmt.Errorf("read the ledger: %w", err)
			}
			if err := each(rec.Seq, e); err != nil {
				return fmt.Errorf("read the ledger: %w", err)
			}
		}
		from = page.Next
	}
	return nil
}

// quantile of unsorted durations, in microseconds; 0 without any.
func quantile(d []time.Duration, q float64) int64 {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))].Microseconds()
}
