package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// A Delivery is what another agent sent or asked, verified.
type Delivery struct {
	From      string // the agent
	Operation string // its operation
	Seq       uint64 // the event of the log: the same where it is delivered again
	Trace     string // traceparent
	Data      []byte
	Claims    *capability.Claims // the sender's capability, as it was when it sent
}

// OnSend has messages from other agents handled, one after the other. One that
// the handler returns an error for comes again, as does one whose handler was
// cut off, or for which no key set was to be had.
func (op *Operation) OnSend(handle func(context.Context, Delivery) error) error {
	return op.on("in.send.*", func(_ *link, m *nats.Msg) {
		d, err := op.verified(m)
		if errors.Is(err, jwks.ErrUnavailable) {
			op.o.Logger.Warn("message not verified, and left to come again", "seq", d.Seq, "error", err)
			return // a refusal would be an answer, and the message lost
		}
		if err != nil {
			op.refuse(m, err)
			return
		}
		if err := handle(op.ctx, d); err != nil {
			op.o.Logger.Warn("message not handled", "from", d.From, "seq", d.Seq, "error", err)
			return // no answer: it comes again
		}
		op.answer(m, nil)
	})
}

// OnAsk answers what other agents ask, each in its own goroutine. A
// *schemas.Refusal is given to who asked; of any other error it learns no more
// than that there was one.
func (op *Operation) OnAsk(handle func(context.Context, Delivery) ([]byte, error)) error {
	return op.on("in.ask.*", func(l *link, m *nats.Msg) {
		d, err := op.verified(m)
		if err != nil {
			op.refuse(m, err)
			return
		}
		l.calls.Go(func() {
			answer, err := handle(op.ctx, d)
			if err != nil {
				op.refuse(m, err)
				return
			}
			op.answer(m, answer)
		})
	})
}

func (op *Operation) on(subject string, serve func(*link, *nats.Msg)) error {
	op.change.Lock()
	defer op.change.Unlock()
	if err := op.Err(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	op.mu.Lock()
	l := op.now
	op.mu.Unlock()
	h := handler{subject, serve}
	if err := l.subscribe(h); err != nil {
		return err
	}
	op.handlers = append(op.handlers, h)
	return nil
}

// verified holds a delivery against the capability that it carries.
func (op *Operation) verified(m *nats.Msg) (Delivery, error) {
	d := Delivery{From: m.Header.Get(schemas.HeaderFrom), Operation: m.Header.Get(schemas.HeaderOperation),
		Trace: m.Header.Get(schemas.HeaderTrace), Data: m.Data}
	var err error
	if d.Seq, err = strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64); err != nil {
		return d, fmt.Errorf("%s %q is no sequence", schemas.HeaderSeq, m.Header.Get(schemas.HeaderSeq))
	}
	token := m.Header.Get(schemas.HeaderToken)
	want := capability.Expect{Time: op.o.Now(), Leeway: capability.MaxLeeway, Delivered: true}
	d.Claims, err = op.o.Keys.Verify(op.ctx, token, want)
	if errors.Is(err, capability.ErrExpired) && d.Claims != nil {
		want.Time = time.Unix(d.Claims.Expires-1, 0) // it was in force when it sent: intake saw to that
		d.Claims, err = op.o.Keys.Verify(op.ctx, token, want)
	}
	if err != nil {
		return d, err
	}
	if d.Claims.AgentID != d.From || d.Claims.OperationID != d.Operation {
		return d, fmt.Errorf("the capability is of %s in operation %s, the delivery of %.70s in operation %.70s",
			d.Claims.AgentID, d.Claims.OperationID, d.From, d.Operation)
	}
	return d, nil
}

// refuse answers with a refusal: what was wrong with a delivery is the control
// plane's to know, not the sender's.
func (op *Operation) refuse(m *nats.Msg, err error) {
	var r *schemas.Refusal
	if !errors.As(err, &r) {
		op.o.Logger.Error("delivery refused", "subject", m.Subject, "from", m.Header.Get(schemas.HeaderFrom), "error", err)
		r = schemas.Refuse(schemas.CodeForbidden, "refused by the recipient")
	}
	out := nats.NewMsg(m.Reply)
	out.Header, out.Data = nats.Header(r.Header()), r.Body()
	op.respond(m, out)
}

func (op *Operation) answer(m *nats.Msg, data []byte) {
	out := nats.NewMsg(m.Reply)
	out.Data = data
	op.respond(m, out)
}

func (op *Operation) respond(m *nats.Msg, out *nats.Msg) {
	if m.Reply == "" {
		return
	}
	if err := m.RespondMsg(out); err != nil {
		op.o.Logger.Warn("answer not sent", "subject", m.Subject, "error", err)
	}
}
