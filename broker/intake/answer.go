package intake

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// decideAnswer checks that an answer fits a request that was delivered to its
// sender, and completes the event with what the request says. The request is
// found by the sequence and the random id in the answer's subject; the id,
// which only the recipient was given, binds the two.
func (i *Intake) decideAnswer(t *task, asked *asked) step {
	e := t.event
	e.Reply = ""
	if asked == nil || asked.request != e.Request || asked.to != e.Agent {
		i.stray(t, schemas.Refuse(schemas.CodeNotFound, "it answers nothing that was delivered to %s", e.Agent))
		return toLog
	}
	if asked.answered.Load() {
		// Its content is evidence, as far as the account's rate goes.
		if i.lanes.owing(t.lane, i.Now()) {
			return dropped
		}
		e.Operation, e.Action, e.To = asked.operation, asked.action, asked.from
		e.Kind, e.Code, e.Reason = schemas.ResponseDenied, schemas.CodeConflict, "it was answered already; the first answer is the answer"
		e.Tokens = 0
		e.Trace = schemas.Trace{ID: asked.trace, Span: spanOf(e.Ref)}
		i.lanes.astray(t.lane, i.Now())
		return toLog
	}
	t.lane.after = max(t.lane.after, i.newsOf(e.Agent))
	e.Operation, e.Action, e.To = asked.operation, asked.action, asked.from
	e.Input, e.Trace = asked.digest, schemas.Trace{ID: asked.trace, Span: spanOf(e.Ref)}
	if d := e.Time.Sub(asked.time); d >= time.Microsecond {
		e.Latency = d
	}
	lock, streams, agent, metered := i.responder(e.Agent)
	e.Final = !streams || len(t.msg.Data) == 0
	if !metered {
		e.Tokens = 0
	}
	switch lock {
	case schemas.Active:
	case schemas.Paused:
		e.Kind = schemas.ResponseHeld
	default:
		e.Kind, e.Code, e.Reason = schemas.ResponseDenied, schemas.CodeCancelled, fmt.Sprintf("%s is %s", e.Agent, lock)
		return toLog
	}
	if !agent || e.Action.Verb == schemas.VerbSend {
		return toLog // a service's answer is no act of its own; an answer to a send goes nowhere
	}
	return toJudge
}

// stray refuses an answer that fits nothing.
func (i *Intake) stray(t *task, r *schemas.Refusal) {
	e := t.event
	e.Kind, e.Code, e.Reason, e.Reply = schemas.ResponseDenied, r.Code, r.Text, ""
	e.Ref, e.Request, e.Tokens = 0, "", 0
	e.Data = nil // no rate bounds answers: what is nobody's must not fill the log
	i.lanes.astray(t.lane, i.Now())
}

// responder says what is known of who answers.
func (i *Intake) responder(id string) (lock schemas.Lock, streams, agent, metered bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[id]
	if a == nil {
		return schemas.Killed, false, false, false
	}
	return a.Lock, a.Streams, a.Kind == schemas.KindAgent, a.Meter == schemas.MeterTokens
}

// asked is what an answer must fit.
type asked struct {
	seq       uint64 // 0 until the log has acknowledged it
	request   string
	from, to  string
	operation string
	action    schemas.Action
	digest    schemas.Digest
	trace     string
	time      time.Time
	answered  atomic.Bool // finally, as the log has acknowledged
}

const rememberMax = 1 << 16

// requests finds requests: in memory what this replica appended itself, else
// in the log.
type requests struct {
	nc *nats.Conn

	mu    sync.Mutex
	byID  map[string]*asked
	order []string // oldest first
}

func newRequests(nc *nats.Conn) *requests {
	return &requests{nc: nc, byID: map[string]*asked{}}
}

// remember takes requests that are about to be appended: the answer may be
// here before the acknowledgement of the log. Until then only release can hold
// the sequence that an answer names against the request's id, and does.
func (r *requests) remember(events []*schemas.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.Kind != schemas.MessageAccepted {
			continue
		}
		r.byID[e.Request] = askedOf(e)
		r.order = append(r.order, e.Request)
		if len(r.order) > rememberMax {
			delete(r.byID, r.order[0])
			r.order = r.order[1:]
		}
	}
}

func askedOf(e *schemas.Event) *asked {
	return &asked{seq: e.Seq, request: e.Request, from: e.Agent, to: e.To, operation: e.Operation,
		action: e.Action, digest: e.Digest, trace: e.Trace.ID, time: e.Time}
}

// settle notes what the log acknowledged: where requests stand, and which were
// answered. A request that it did not take was delivered to nobody.
func (r *requests) settle(events []*schemas.Event, errs []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range events {
		a := r.byID[e.Request]
		switch {
		case a == nil:
		case e.Kind == schemas.MessageAccepted && errs[i] == nil:
			a.seq = e.Seq
		case e.Kind == schemas.MessageAccepted:
			delete(r.byID, e.Request)
		case e.Kind == schemas.ResponseAccepted && e.Final && errs[i] == nil:
			a.answered.Store(true)
		}
	}
}

// known returns the request with an id that stands, or is about to stand,
// under seq; nil where this replica remembers none.
func (r *requests) known(id string, seq uint64) *asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.byID[id]; a != nil && (a.seq == 0 || a.seq == seq) {
		return a
	}
	return nil
}

// find returns the request under seq in the log, nil where none stands there.
func (r *requests) find(ctx context.Context, seq uint64) (*asked, error) {
	body := []byte(`{"seq":` + strconv.FormatUint(seq, 10) + `}`)
	e, err := r.get(ctx, "$JS.API.DIRECT.GET."+schemas.Stream, body)
	if err != nil || e == nil {
		return nil, err
	}
	switch e.Kind {
	case schemas.MessageAccepted, schemas.MessageHeld: // a held send is delivered once approved
		return askedOf(e), nil
	}
	return nil, nil
}

// newest is the sequence of an agent's newest event of a kind in the log, 0 where
// there is none.
func (r *requests) newest(ctx context.Context, agent string, kind schemas.Kind) (uint64, error) {
	subject := schemas.EventSubject(agent, kind)
	e, err := r.get(ctx, "$JS.API.DIRECT.GET."+schemas.Stream+"."+subject, nil)
	if err != nil || e == nil {
		return 0, err
	}
	return e.Seq, nil
}

func (r *requests) get(ctx context.Context, subject string, body []byte) (*schemas.Event, error) {
	m, err := r.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	if status := m.Header.Get("Status"); status == "404" {
		return nil, nil
	} else if status != "" {
		return nil, fmt.Errorf("read the log: %s %s", status, m.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read the log: sequence: %w", err)
	}
	e, err := schemas.Decode(m.Header.Get("Nats-Subject"), schemas.Header(m.Header), m.Data)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	e.Seq = seq
	return e, nil
}
