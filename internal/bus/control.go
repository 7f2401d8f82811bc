package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// Handle answers requests on one subject with JSON. A *schemas.Refusal is
// given to the caller as it is; any other error is logged here and told in
// words. What does not come from a service or an operator (FromService) is
// passed over. The subscription ends with the connection.
func Handle[Req, Rep any](nc *nats.Conn, log *slog.Logger, subject string, fn func(context.Context, Req) (Rep, error)) error {
	_, err := nc.Subscribe(subject, func(m *nats.Msg) {
		if !FromService(m) {
			log.Error("control request refused: nobody awaits its answer in an inbox of a service", "subject", m.Subject, "reply", m.Reply)
			return
		}
		// Handlers may wait for the log; each request has its own goroutine,
		// bounded by the time that its caller waits.
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			respond(ctx, m, log, fn)
		}()
	})
	if err != nil {
		return fmt.Errorf("serve %s: %w", subject, err)
	}
	return nil
}

// FromService reports whether a request inside CONTROL was sent by a user with
// the right to send it, and names an inbox of a service for the answer. The
// server checks no reply subject against its sender's rights: JetStream would
// publish its answers wherever a reader says, also here, but those carry no
// inbox; and an answer to anything but an inbox would be published with the
// rights of who answers.
func FromService(m *nats.Msg) bool { return strings.HasPrefix(m.Reply, "_INBOX_") }

// FromAgent reports whether a message under writ.out can have come through an
// agent's import: with no reply, or with one that the server made. JetStream
// also publishes what a reader asks for under such a subject.
func FromAgent(m *nats.Msg) bool { return m.Reply == "" || strings.HasPrefix(m.Reply, "_R_.") }

// FromStream reports whether a message carries the marks of what JetStream
// hands out of a stream: an agent has no use for them.
func FromStream(m *nats.Msg) bool {
	_, stored := m.Header[nats.JSStream]
	return stored
}

func respond[Req, Rep any](ctx context.Context, m *nats.Msg, log *slog.Logger, fn func(context.Context, Req) (Rep, error)) {
	answer := nats.NewMsg(m.Reply)
	rep, err := func() (rep Rep, err error) {
		var req Req
		if len(m.Data) > 0 {
			if err := schemas.Unmarshal(m.Data, &req); err != nil {
				return rep, schemas.Refuse(schemas.CodeMalformed, "%v", err)
			}
		}
		return fn(ctx, req)
	}()
	if err != nil {
		refusal := AsRefusal(err)
		if refusal.Code == schemas.CodeUnavailable {
			log.Error("control request failed", "subject", m.Subject, "error", err)
		}
		answer.Header, answer.Data = nats.Header(refusal.Header()), refusal.Body()
	} else if answer.Data, err = json.Marshal(rep); err != nil {
		log.Error("control answer does not encode", "subject", m.Subject, "error", err)
		return
	}
	if err := m.RespondMsg(answer); err != nil {
		log.Error("control answer not sent", "subject", m.Subject, "error", err)
	}
}

// AsRefusal is err as a refusal; what is none becomes 503.
func AsRefusal(err error) *schemas.Refusal {
	var r *schemas.Refusal
	if errors.As(err, &r) {
		return r
	}
	return schemas.Refuse(schemas.CodeUnavailable, "%v", err)
}

// Call asks on a control subject and decodes the answer. Refusals come back as
// *schemas.Refusal.
func Call[Rep any](ctx context.Context, nc *nats.Conn, subject string, req any) (rep Rep, err error) {
	var data []byte
	if req != nil {
		data = schemas.Marshal(req)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	m, err := nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return rep, schemas.Refuse(schemas.CodeUnavailable, "nobody answers %s: that service of the control plane is down", subject)
		}
		return rep, fmt.Errorf("ask %s: %w", subject, err)
	}
	if r := ReadRefusal(m); r != nil {
		return rep, r
	}
	if err := json.Unmarshal(m.Data, &rep); err != nil {
		return rep, fmt.Errorf("answer of %s: %w", subject, err)
	}
	return rep, nil
}

// insistPause lies between two questions to a service that is not there.
const insistPause = 500 * time.Millisecond

// Insist asks, as Call does, until that service is there. down is told once, why it
// waits.
func Insist[Rep any](ctx context.Context, nc *nats.Conn, subject string, req any, down func(error)) (Rep, error) {
	for told := false; ; told = true {
		rep, err := Call[Rep](ctx, nc, subject, req)
		var r *schemas.Refusal
		absent := errors.As(err, &r) && r.Code == schemas.CodeUnavailable || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
		if err == nil || !absent || ctx.Err() != nil {
			return rep, err
		}
		if !told {
			down(err)
		}
		select {
		case <-time.After(insistPause):
		case <-ctx.Done():
			return rep, ctx.Err()
		}
	}
}

// ReadRefusal is the refusal that an answer holds, nil where it holds none.
func ReadRefusal(m *nats.Msg) *schemas.Refusal {
	text := m.Header[schemas.HeaderErrorCode]
	if len(text) == 0 {
		return nil
	}
	code, err := strconv.Atoi(text[0])
	if err != nil {
		code = schemas.CodeUnavailable
	}
	r := &schemas.Refusal{Code: code}
	if why := m.Header[schemas.HeaderError]; len(why) > 0 {
		r.Text = why[0]
	}
	if seq := m.Header[schemas.HeaderSeq]; len(seq) > 0 {
		r.Seq, _ = strconv.ParseUint(seq[0], 10, 64)
	}
	return r
}
