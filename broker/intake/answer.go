package intake

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// decideAnswer checks that an answer fits a request that was delivered to its
// sender, and completes the event with what the request says. The request is
// found by the sequence in the answer's subject; the random id beside it, which
// only the recipient was given, binds the two.
func (i *Intake) decideAnswer(ctx context.Context, ln *lane, e *schemas.Event, m *nats.Msg) error {
	asked, err := i.asked.find(ctx, e.Ref)
	if err != nil {
		return err
	}
	e.Reply = ""
	if asked == nil || asked.request != e.Request || asked.to != e.Agent {
		e.Kind, e.Code, e.Reason = schemas.ResponseDenied, schemas.CodeNotFound, "it answers nothing that was delivered to "+e.Agent
		e.Ref, e.Request, e.Tokens = 0, "", 0
		e.Data = nil // no rate bounds answers: what is nobody's must not fill the log
		return nil
	}
	e.Operation, e.Action, e.To = asked.operation, asked.action, asked.from
	e.Input, e.Trace = asked.digest, schemas.Trace{ID: asked.trace, Span: spanOf(asked.seq)}
	if d := e.Time.Sub(asked.time); d >= time.Microsecond {
		e.Latency = d
	}
	lock, streams, agent, metered := i.responder(e.Agent)
	e.Final = !streams || len(m.Data) == 0
	if !metered {
		e.Tokens = 0
	}
	switch lock {
	case schemas.Active:
	case schemas.Paused:
		e.Kind = schemas.ResponseHeld
	default:
		e.Kind, e.Code, e.Reason = schemas.ResponseDenied, schemas.CodeCancelled, fmt.Sprintf("%s is %s", e.Agent, lock)
		return nil
	}
	if !agent || e.Action.Verb == schemas.VerbSend {
		return nil // a service's answer is no act of its own; an answer to a send goes nowhere
	}
	return i.assess(ctx, ln, e)
}

// responder says what is known of who answers.
func (i *Intake) responder(id string) (lock schemas.Lock, streams, agent, metered bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[id]
	if a == nil {
		return schemas.Killed, false, false, false
	}
	return a.Lock, a.Streams, a.Kind == schemas.KindAgent, a.Meter == "tokens"
}

// asked is what an answer must fit.
type asked struct {
	seq       uint64
	request   string
	from, to  string
	operation string
	action    schemas.Action
	digest    schemas.Digest
	trace     string
	time      time.Time
}

const rememberMax = 1 << 16

// requests finds requests by sequence: in memory what this replica appended
// itself, else in the log.
type requests struct {
	nc *nats.Conn

	mu    sync.Mutex
	bySeq map[uint64]*asked
	order []uint64 // oldest first
}

func newRequests(nc *nats.Conn) *requests {
	return &requests{nc: nc, bySeq: map[uint64]*asked{}}
}

func (r *requests) remember(e *schemas.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bySeq[e.Seq] = askedOf(e)
	r.order = append(r.order, e.Seq)
	if len(r.order) > rememberMax {
		delete(r.bySeq, r.order[0])
		r.order = r.order[1:]
	}
}

func askedOf(e *schemas.Event) *asked {
	return &asked{seq: e.Seq, request: e.Request, from: e.Agent, to: e.To, operation: e.Operation,
		action: e.Action, digest: e.Digest, trace: e.Trace.ID, time: e.Time}
}

// find returns the request under seq, nil where none stands there.
func (r *requests) find(ctx context.Context, seq uint64) (*asked, error) {
	r.mu.Lock()
	known := r.bySeq[seq]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
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

// newest is the sequence of the newest capability event of an agent in the
// log, 0 where there is none.
func (r *requests) newest(ctx context.Context, agent string) (uint64, error) {
	subject := schemas.EventSubject(agent, schemas.TokenIssued)
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

// judge asks the monitor for verdicts.
type judge struct{ nc *nats.Conn }

func newJudge(nc *nats.Conn) *judge { return &judge{nc: nc} }

// ask returns the verdict, decoded and as it will stand in the event. The
// monitor is told the agent's previous action, so that it judges with it.
func (j *judge) ask(ctx context.Context, e *schemas.Event, after uint64) (v ruling, raw []byte, err error) {
	subject, header, data, err := e.Encode()
	if err != nil {
		return v, nil, err
	}
	header[schemas.HeaderSubject] = []string{subject}
	header[schemas.HeaderAfter] = []string{strconv.FormatUint(after, 10)}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	m, err := j.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: schemas.Assess, Header: nats.Header(header), Data: data})
	if err != nil {
		return v, nil, fmt.Errorf("ask the monitor: %w", err)
	}
	if code := m.Header.Get(schemas.HeaderErrorCode); code != "" {
		return v, nil, fmt.Errorf("the monitor refused: %s %s", code, m.Header.Get(schemas.HeaderError))
	}
	v, err = rulingOf(m.Data)
	return v, m.Data, err
}
