// Package release is the last station of the straight line, and the only one
// that speaks to agents: it delivers, answers, acknowledges and refuses, each
// after the event that allows it is on disk. The ledger hands it every durable
// batch, in log order (Durable).
//
// Release is a fold over the log (Core). Hence its guarantees, which anybody
// can check offline from the log: nothing of a killed agent with a sequence
// behind the kill is delivered; the first answer in log order is the answer;
// an approval admits one action; an idempotency key is carried out once.
// Whatever it ends by itself (cancellations, expiries) it logs first, and tells
// when that is durable.
//
// What a crash may do is deliver something a second time, under the same
// Writ-Seq: never something that is not in the log, and never nothing.
package release

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Bodies finds the body of an event that is in the ledger.
type Bodies interface {
	Event(seq uint64) (*schemas.Event, error)
}

// Options of a Release; all but Now and Keep are needed.
type Options struct {
	Control *nats.Conn // in CONTROL, as the user release: answers and its own events
	Deliver *nats.Conn // in DELIVER: the only connection that can reach agents
	Source  string
	Logger  *slog.Logger
	Bodies  Bodies
	Now     func() time.Time
	Keep    func(seq uint64, fold []byte) error // keeps the fold up to seq for Restore; nil: none is kept
}

// A Release carries out what Core decides.
type Release struct {
	Options
	log    *bus.Appender
	emits  chan emission
	folded *bus.Watermark // up to where the core has the log

	confirmed chan struct{} // closed by Confirm
	ended     chan struct{} // closed where Run ends

	mu      sync.Mutex // guards core, and that effects happen in its order
	core    *Core
	seq     uint64   // last event folded
	mark    uint64   // newest that was asked for
	pending []Effect // of the last run, not yet carried out

	kmu  sync.Mutex // guards the keeper's core; taken before mu, which guards its queue
	keep keeper
}

// An emission is work for the log: events, and the mark behind them.
type emission struct {
	events []*schemas.Event
	mark   uint64 // everything up to it has been carried out; 0: no mark
	urgent bool   // somebody waits for the mark
}

const (
	tick       = 50 * time.Millisecond
	markPause  = 50 * time.Millisecond
	retryPause = 100 * time.Millisecond
)

// New prepares a release. Restore, where a fold was kept, and Replay, then Run,
// then Confirm.
func New(o Options) (*Release, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	log, err := bus.NewAppender(o.Control)
	if err != nil {
		return nil, err
	}
	return &Release{Options: o, log: log, core: NewCore(), keep: keeper{core: NewCore()}, folded: bus.NewWatermark(),
		emits: make(chan emission, 4096), confirmed: make(chan struct{}), ended: make(chan struct{})}, nil
}

// Replay folds the ledger's records, in order, before anything new arrives.
// What the last mark covers has been carried out and is not repeated; what
// comes behind it is kept for Confirm: once more perhaps, and not before it is
// known that the ledger's tail is what the log says.
func (r *Release) Replay(records func(yield func(*schemas.Event) error) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var open []Effect
	err := records(func(e *schemas.Event) error {
		if err := r.shadow(e); err != nil {
			return err
		}
		effects, err := r.core.Step(e)
		if err != nil {
			return err
		}
		r.seq = e.Seq
		if e.Kind == schemas.ReleaseMark {
			open = behind(open, e.Ref)
			return nil
		}
		for _, f := range effects {
			if _, logged := f.(Emit); !logged {
				open = append(open, f)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("release: replay: %w", err)
	}
	r.folded.Set(r.seq)
	r.pending = append(open, r.core.Unfinished()...)
	return nil
}

// shadow gives an event to the keeper. Where many have come, those that a mark
// covers are folded at once.
func (r *Release) shadow(e *schemas.Event) error {
	if r.Keep == nil {
		return nil
	}
	if r.keep.take(e); e.Kind != schemas.ReleaseMark || len(r.keep.queue) < unmarkedMost {
		return nil
	}
	return r.keep.fold(r.keep.due())
}

// Confirm says that the ledger's tail is what the log says: what the last run
// left undone is carried out, and time begins to count. It is called once.
func (r *Release) Confirm() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.confirmed)
	return r.resume()
}

// resume carries out what the last run left undone.
func (r *Release) resume() error {
	if len(r.pending) == 0 {
		return nil
	}
	r.Logger.Info("release: carrying out what the last run did not mark as done", "effects", len(r.pending))
	pending := r.pending
	r.pending = nil
	return r.carryOut(context.Background(), pending, r.seq, false)
}

// behind keeps the effects of events behind a mark.
func behind(effects []Effect, mark uint64) []Effect {
	kept := effects[:0]
	for _, f := range effects {
		if f.seq() > mark {
			kept = append(kept, f)
		}
	}
	return kept
}

// Run works until the context ends: expiries, redeliveries, and what release
// itself logs.
func (r *Release) Run(ctx context.Context) error {
	absent, err := r.Deliver.Subscribe("out._r.*", r.absent)
	if err != nil {
		return fmt.Errorf("release: subscribe: %w", err)
	}
	if err := bus.Handle(r.Control, r.Logger, schemas.CtlHealth, r.health); err != nil {
		return err
	}
	if err := bus.Handle(r.Control, r.Logger, schemas.CtlBudgets, r.budgets); err != nil {
		return err
	}
	if err := bus.Handle(r.Control, r.Logger, schemas.CtlLocks, r.locks); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { close(r.ended) })
	g.Go(func() error { return r.emit(ctx) })
	g.Go(func() error { return r.watch(ctx) })
	g.Go(func() error { return r.keepLoop(ctx.Done()) })
	err = g.Wait()
	if uerr := absent.Unsubscribe(); err == nil && uerr != nil && r.Deliver.IsConnected() {
		err = uerr
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (r *Release) health(context.Context, struct{}) (schemas.Health, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return schemas.Health{Service: "release", OK: true, Seq: r.seq}, nil
}

const (
	budgetsMost = 1000 // in one question
	locksMost   = 1000 // in one answer
	foldWait    = 5 * time.Second
)

// budgets tells what operations have used: release alone decides about it, and
// so alone knows.
func (r *Release) budgets(ctx context.Context, req schemas.BudgetsRequest) (schemas.BudgetsReply, error) {
	if len(req.Of) > budgetsMost {
		return schemas.BudgetsReply{}, schemas.Refuse(schemas.CodeTooLarge, "%d budgets were asked for, %d are possible at once", len(req.Of), budgetsMost)
	}
	if err := r.folded.Wait(ctx, req.After, foldWait); err != nil {
		return schemas.BudgetsReply{}, schemas.Refuse(schemas.CodeUnavailable, "release has not worked through the log to %d", req.After)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	reply := schemas.BudgetsReply{Budgets: make([]schemas.BudgetInfo, len(req.Of))}
	for n, op := range req.Of {
		reply.Budgets[n] = r.core.state.BudgetOf(op.AgentID, op.OperationID, r.Now())
	}
	return reply, nil
}

// locks tells the locks that are on, also those that EVENTS has forgotten.
func (r *Release) locks(ctx context.Context, req schemas.LocksRequest) (reply schemas.LocksReply, err error) {
	if err := r.folded.Wait(ctx, req.Through, foldWait); err != nil {
		return reply, schemas.Refuse(schemas.CodeUnavailable, "release has not worked through the log to %d", req.Through)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	reply.Lockdown = r.core.state.Lockdown
	reply.Locks, reply.More = r.core.state.Locks(req.After, locksMost)
	return reply, nil
}

// Durable takes the ledger's next batch: every event in it is on disk. An
// error halts the ledger; nothing behind the batch is released then. Once Run
// has ended, the next start releases it.
func (r *Release) Durable(batch []*schemas.Event) error {
	select {
	case <-r.ended:
		return nil
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// What is new comes behind a tail that was compared with the log.
	if err := r.resume(); err != nil {
		return err
	}
	var effects []Effect
	urgent := false
	for _, e := range batch {
		more, err := r.core.Step(e)
		if err != nil {
			return fmt.Errorf("release: %w", err)
		}
		effects = append(effects, more...)
		r.seq = e.Seq
		urgent = urgent || awaited(e.Kind)
		if r.Keep != nil {
			r.keep.take(e)
		}
	}
	r.folded.Set(r.seq)
	if len(effects) == 0 && !urgent && r.seq < r.mark+unmarkedMost {
		return nil
	}
	r.mark = r.seq
	return r.carryOut(context.Background(), effects, r.seq, urgent)
}

// awaited says whether an operator waits for release to have seen an event.
func awaited(k schemas.Kind) bool {
	switch k {
	case schemas.AgentKilled, schemas.AgentSuspended, schemas.AgentPaused, schemas.AgentResumed, schemas.AgentEnrolled, schemas.TokenRevoked,
		schemas.PolicyLockdown, schemas.PolicyLifted:
		return true
	}
	return false
}

// carryOut does what the core decided, in its order.
func (r *Release) carryOut(ctx context.Context, effects []Effect, mark uint64, urgent bool) error {
	em := emission{mark: mark, urgent: urgent}
	for _, f := range effects {
		if e, ok := f.(Emit); ok {
			em.events = append(em.events, e.Event)
			continue
		}
		if err := r.publish(ctx, f); err != nil {
			return err
		}
	}
	select {
	case r.emits <- em:
	case <-r.ended: // without a mark it is carried out again
	}
	return nil
}

// publish sends one effect. Without a connection it waits for one: the log is
// patient, and nothing may be skipped.
func (r *Release) publish(ctx context.Context, f Effect) error {
	for {
		err := r.send(f)
		if err == nil || !(errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionReconnecting)) {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Release) send(f Effect) error {
	switch f := f.(type) {
	case Deliver:
		m, err := r.delivery(f)
		if err != nil {
			return err
		}
		return r.Deliver.PublishMsg(m)
	case Answer:
		if f.Reply == "" {
			return nil // it was published without a reply: nobody waits
		}
		if err := r.Control.PublishMsg(&nats.Msg{Subject: f.Reply, Header: nats.Header(f.Header), Data: f.Body}); err != nil {
			return err
		}
		if f.Final && (len(f.Header) > 0 || len(f.Body) > 0) {
			return r.Control.Publish(f.Reply, nil) // frees the server's reply entry
		}
		return nil
	case Cancel:
		return r.Deliver.Publish(schemas.CancelSubject(f.To, f.Ref), nil)
	}
	return fmt.Errorf("release: effect %T is unknown", f)
}

// delivery builds what the recipient sees.
func (r *Release) delivery(d Deliver) (*nats.Msg, error) {
	e := d.Event
	body := e.Data
	if body == nil && e.Digest != schemas.Sum(nil) {
		kept, err := r.Bodies.Event(e.Seq)
		if err != nil {
			return nil, fmt.Errorf("release: body of %d: %w", e.Seq, err)
		}
		body = kept.Data
	}
	if schemas.Sum(body) != e.Digest {
		return nil, fmt.Errorf("release: the body of %d does not have the digest that was logged", e.Seq)
	}
	h := nats.Header{
		schemas.HeaderFrom: {e.Agent}, schemas.HeaderOperation: {e.Operation},
		schemas.HeaderSeq:   {strconv.FormatUint(e.Seq, 10)},
		schemas.HeaderTrace: {schemas.Trace{ID: e.Trace.ID, Span: fmt.Sprintf("%016x", e.Seq)}.Traceparent()},
	}
	if d.Reserve > 0 {
		h[schemas.HeaderReserve] = []string{strconv.FormatInt(d.Reserve, 10)}
	}
	if d.Token != "" {
		h[schemas.HeaderToken] = []string{d.Token}
	}
	if e.ContentType != "" {
		h[schemas.HeaderType] = []string{e.ContentType}
	}
	return &nats.Msg{Subject: schemas.InSubject(d.To, e.Action, e.Agent), Header: h, Data: body,
		Reply: "out._r." + schemas.ResponseToken(e.Request, e.Seq)}, nil
}

// absent takes the server's notice that a delivery found no subscriber.
func (r *Release) absent(m *nats.Msg) {
	if m.Header.Get("Status") != "503" {
		return
	}
	request, seq, err := schemas.ParseResponseToken(strings.TrimPrefix(m.Subject, "out._r."))
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.carryOut(context.Background(), r.core.Absent(seq, request, r.Now()), 0, false); err != nil {
		r.Logger.Error("release: absent recipient", "seq", seq, "error", err)
	}
}

// watch looks at the clock for what is due.
func (r *Release) watch(ctx context.Context) error {
	select {
	case <-r.confirmed:
	case <-ctx.Done():
		return ctx.Err()
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		r.mu.Lock()
		effects := r.core.Due(r.Now())
		var err error
		if len(effects) > 0 {
			err = r.carryOut(ctx, effects, 0, false)
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// emit appends what release logs, in order, and a mark behind it. Marks are
// rare, for each is a record; a lock's is written at once.
func (r *Release) emit(ctx context.Context) error {
	var mark, marked uint64
	timer := time.NewTimer(markPause)
	defer timer.Stop()
	for {
		urgent := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case em := <-r.emits:
			if err := r.appendAll(ctx, em.events); err != nil {
				return err
			}
			mark, urgent = max(mark, em.mark), em.urgent
		case <-timer.C:
			urgent = true
			timer.Reset(markPause)
		}
		if urgent && mark > marked {
			if err := r.appendAll(ctx, []*schemas.Event{{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: mark}}); err != nil {
				return err
			}
			marked = mark
		}
	}
}

// appendAll appends events, trying again for as long as the log is away.
func (r *Release) appendAll(ctx context.Context, events []*schemas.Event) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for _, e := range events {
		e.ID = fmt.Sprintf("release-%s-%d", e.Kind, e.Ref) // the same after a crash
		e.Source, e.Time = r.Source, r.Now().UTC()
		g.Go(func() error { return r.appendOne(ctx, e) })
	}
	return g.Wait()
}

func (r *Release) appendOne(ctx context.Context, e *schemas.Event) error {
	for {
		_, err := r.log.Append(ctx, e)
		if err == nil || ctx.Err() != nil || !errors.Is(err, bus.ErrAppend) {
			return err
		}
		r.Logger.Warn("release: the log does not take an event; trying again", "kind", e.Kind, "ref", e.Ref, "error", err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
