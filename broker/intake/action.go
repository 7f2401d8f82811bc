package intake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Times that hold where the agent names none (Nats-TTL).
const (
	RequestDeadline    = 2 * time.Minute
	MaxRequestDeadline = time.Hour // the server keeps a reply no longer
	SendExpiry         = 24 * time.Hour
	MaxSendExpiry      = 7 * 24 * time.Hour
)

const (
	maxMsgID    = 256
	grantWait   = 250 * time.Millisecond // for a capability issued a moment ago to arrive here
	appendGrace = 10 * time.Second       // for what was judged to reach the log, also while stopping
)

// handle takes one message through to the log.
func (i *Intake) handle(ctx context.Context, ln *lane, a arrival) {
	running := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendGrace)
	defer cancel()
	e := i.read(a)
	if e == nil {
		return
	}
	var err error
	switch {
	case e.Kind == schemas.MessageDenied:
	case e.Kind == schemas.ResponseAccepted:
		err = i.decideAnswer(ctx, ln, e, a.msg)
	default:
		err = i.decide(ctx, ln, e)
	}
	if err == nil {
		err = i.append(ctx, ln, e)
	}
	if err == nil {
		err = i.awaitLock(running, e)
	}
	if err != nil {
		i.Logger.Error("not accepted", "agent", e.Agent, "operation", e.Operation, "action", e.Action, "error", err)
	}
}

// append puts the event into the log.
func (i *Intake) append(ctx context.Context, ln *lane, e *schemas.Event) error {
	seq, err := i.log.Append(ctx, e)
	if err != nil {
		return err
	}
	e.Seq = seq
	if len(e.Verdict) > 0 {
		ln.after = seq
	}
	switch e.Kind {
	case schemas.MessageAccepted:
		i.asked.remember(e)
	case schemas.ResponseAccepted:
		i.lanes.heard(e.To, seq)
	}
	return nil
}

// awaitLock holds the agent's next message back until a lock that this one put
// on is known here. While stopping nothing comes back from the log, and no
// next message is taken.
func (i *Intake) awaitLock(running context.Context, e *schemas.Event) error {
	if e.Lock == "" {
		return nil
	}
	if err := i.folded.Wait(running, e.Seq, appendGrace); err != nil && running.Err() == nil {
		return fmt.Errorf("the lock of event %d did not come back from the log: %w", e.Seq, err)
	}
	return nil
}

// read makes a draft event of what arrived. Kind is MessageDenied where it can
// go no further.
func (i *Intake) read(a arrival) *schemas.Event {
	m := a.msg
	e := &schemas.Event{
		Kind: schemas.MessageAccepted, Agent: schemas.OutAgent(m.Subject), ID: randomHex(16),
		Source: i.Source, Time: i.Now().UTC(), Digest: schemas.Sum(m.Data), Data: m.Data,
	}
	if strings.HasPrefix(m.Reply, "_R_.") {
		e.Reply = m.Reply
	}
	if schemas.CheckID("agent", e.Agent) != nil {
		return nil // no account of ours is named so
	}
	if a.shed > 0 {
		e.Data = nil
		return deny(e, schemas.Refuse(schemas.CodeRate, "over the rate of %s; %d messages were shed, slow down and send again", e.Agent, a.shed))
	}
	out, err := schemas.ParseOut(m.Subject)
	if err != nil {
		return deny(e, schemas.Refuse(schemas.CodeMalformed, "%v", err))
	}
	e.Operation, e.Action = out.Operation, out.Action
	if len(m.Data) > schemas.MaxPayload {
		e.Data = nil
		return deny(e, schemas.Refuse(schemas.CodeTooLarge, "the body has %d bytes; at most %d are allowed", len(m.Data), schemas.MaxPayload))
	}
	h, refusal := readHeaderBlock(m)
	if refusal != nil {
		return deny(e, refusal)
	}
	e.ContentType = h.contentType
	if out.Kind == schemas.OutResponse {
		e.Kind, e.Request, e.Ref = schemas.ResponseAccepted, out.Request, out.Seq
		e.Code, e.Reason, e.Tokens = h.code, h.reason, h.tokens
		return e
	}
	e.Request = randomHex(16)
	e.MsgID, e.Trace = h.msgID, h.trace
	ttl, longest := RequestDeadline, MaxRequestDeadline
	if !e.Action.Request() {
		ttl, longest = SendExpiry, MaxSendExpiry
	}
	if h.ttl > 0 {
		ttl = h.ttl
	}
	if ttl > longest {
		return deny(e, schemas.Refuse(schemas.CodeMalformed, "%s of %s is over the longest, %s", schemas.HeaderTTL, ttl, longest))
	}
	e.Expires = e.Time.Add(ttl)
	return e
}

// deny turns a draft into a refusal, keeping what a refusal may say.
func deny(e *schemas.Event, r *schemas.Refusal) *schemas.Event {
	e.Kind = schemas.MessageDenied
	e.Code, e.Reason = r.Code, r.Text
	if e.Action.Verb == "" || schemas.CheckID("operation", e.Operation) != nil {
		e.Operation, e.Action = "", schemas.Action{}
	} else if _, err := schemas.ParseAction(e.Action.String()); err != nil {
		e.Operation, e.Action = "", schemas.Action{}
	}
	return e
}

// decide checks the capability and asks the monitor.
func (i *Intake) decide(ctx context.Context, ln *lane, e *schemas.Event) error {
	ad, refusal := i.admit(e)
	if refusal != nil && refusal.Code == schemas.CodeUnauthorized {
		i.awaitGrant(ctx, e.Agent)
		ad, refusal = i.admit(e)
	}
	claimed := e.Trace
	e.Trace = schemas.Trace{}
	if g := ad.Grant; g != nil {
		// The trace is the capability's: an agent can't write itself into
		// the trace of another's request.
		e.JTI = g.JTI
		e.Trace = schemas.Trace{ID: g.TraceID, Span: spanOf(g.Seq)}
		if claimed.ID == g.TraceID {
			e.Trace.Span = claimed.Span
		}
	}
	e.To = ad.To
	if ad.Grant != nil {
		ln.after = max(ln.after, ad.Grant.Seq) // the monitor must know the task too
	}
	if refusal != nil {
		deny(e, refusal)
		if e.Code == schemas.CodeCancelled || ad.Grant == nil && e.Code != schemas.CodeUnauthorized {
			return nil // locked or unknown: there is no behaviour to judge
		}
	} else if ad.Hold {
		e.Kind = schemas.MessageHeld
		e.Code, e.Reason = schemas.CodeHeld, "the agent is paused; a reviewer decides"
	} else if ad.Approval != 0 {
		e.Ref = ad.Approval
	}
	return i.assess(ctx, ln, e)
}

func (i *Intake) admit(e *schemas.Event) (schemas.Admission, *schemas.Refusal) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.state.Admit(e.Agent, e.Operation, e.Action, e.Digest, e.Time)
}

// awaitGrant waits until the fold has reached what the log says of the agent
// now: a capability used within a millisecond of its issue is a good one.
func (i *Intake) awaitGrant(ctx context.Context, agent string) {
	seq, err := i.asked.newest(ctx, agent)
	if err == nil {
		// Where it does not come in time, the refusal stands.
		_ = i.folded.Wait(ctx, seq, grantWait)
	}
}

// assess asks the monitor, and does what its verdict says.
func (i *Intake) assess(ctx context.Context, ln *lane, e *schemas.Event) error {
	v, raw, err := i.judge.ask(ctx, e, i.lanes.after(ln))
	if err != nil {
		deny(e, schemas.Refuse(schemas.CodeUnavailable, "the monitor gave no verdict; nothing was done, try again"))
		i.Logger.Error("no verdict", "agent", e.Agent, "error", err)
		e.Trace, e.JTI = schemas.Trace{}, ""
		return nil
	}
	e.Verdict, e.Risk = raw, v.Risk
	answer := e.Kind == schemas.ResponseAccepted || e.Kind == schemas.ResponseHeld
	switch v.Decision {
	case schemas.Pass:
	case schemas.Pause:
		e.Lock = schemas.Paused
		if e.Kind == schemas.MessageAccepted && e.Ref == 0 {
			e.Kind = schemas.MessageHeld
			e.Code, e.Reason = schemas.CodeHeld, fmt.Sprintf("risk %d: held for review, and the agent is paused", v.Risk)
		} else if e.Kind == schemas.ResponseAccepted {
			e.Kind = schemas.ResponseHeld
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
	return nil
}

func spanOf(seq uint64) string { return fmt.Sprintf("%016x", seq) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the program instead
	return hex.EncodeToString(b)
}

// headers are what an agent may say beside the body.
type headers struct {
	contentType string
	trace       schemas.Trace
	msgID       string
	ttl         time.Duration
	code        int
	reason      string
	tokens      int64
}

// readHeaderBlock refuses a block that the library could not read, and which
// would pass for none: an idempotency key in it would be lost.
func readHeaderBlock(m *nats.Msg) (h headers, refusal *schemas.Refusal) {
	if m.Header == nil && m.Size() > len(m.Subject)+len(m.Reply)+len(m.Data) {
		return h, schemas.Refuse(schemas.CodeMalformed, "the header block can't be read")
	}
	if bus.FromStream(m) {
		return h, schemas.Refuse(schemas.CodeMalformed, "header %s is not allowed here", nats.JSStream)
	}
	return readHeaders(m.Header)
}

// readHeaders reads the few headers that mean something, and passes over the
// rest. Names are compared without case; a name twice is refused, for two
// readers could choose differently.
func readHeaders(in nats.Header) (h headers, refusal *schemas.Refusal) {
	seen := map[string]bool{}
	for name, values := range in {
		key := strings.ToLower(strings.TrimSpace(name))
		if key == "nats-trace-dest" {
			return h, schemas.Refuse(schemas.CodeMalformed, "header %s is not allowed here", name)
		}
		set, known := headerSetters[key]
		if !known {
			continue
		}
		if seen[key] || len(values) != 1 {
			return h, schemas.Refuse(schemas.CodeMalformed, "header %s stands more than once", key)
		}
		seen[key] = true
		if err := checkHeaderValue(values[0]); err != nil {
			return h, schemas.Refuse(schemas.CodeMalformed, "header %s: %v", key, err)
		}
		if err := set(&h, values[0]); err != nil {
			return h, schemas.Refuse(schemas.CodeMalformed, "header %s: %v", key, err)
		}
	}
	return h, nil
}

func checkHeaderValue(v string) error {
	if v == "" || v != schemas.HeaderText(v) || !utf8.ValidString(v) {
		return errors.New("it is empty, over 1,000 bytes, not UTF-8, or holds control bytes or spaces at an end")
	}
	return nil
}

var headerSetters = map[string]func(*headers, string) error{
	"content-type": func(h *headers, v string) error {
		h.contentType = v
		return nil
	},
	"traceparent": func(h *headers, v string) (err error) {
		h.trace, err = schemas.ParseTraceparent(v)
		return err
	},
	"nats-msg-id": func(h *headers, v string) error {
		if len(v) > maxMsgID {
			return fmt.Errorf("it is over %d bytes", maxMsgID)
		}
		h.msgID = v
		return nil
	},
	"nats-ttl": func(h *headers, v string) (err error) {
		h.ttl, err = parseTTL(v)
		return err
	},
	"nats-service-error-code": func(h *headers, v string) (err error) {
		h.code, err = strconv.Atoi(v)
		if err == nil && (h.code < 100 || h.code > 999) {
			err = errors.New("it is not of three digits")
		}
		return err
	},
	"nats-service-error": func(h *headers, v string) error {
		h.reason = v
		return nil
	},
	"writ-usage-tokens": func(h *headers, v string) (err error) {
		h.tokens, err = strconv.ParseInt(v, 10, 64)
		if err == nil && (h.tokens < 0 || h.tokens > 1<<53) {
			err = errors.New("it is out of bounds")
		}
		return err
	},
}

// parseTTL reads Nats-TTL as JetStream does: seconds, or a Go duration.
func parseTTL(v string) (time.Duration, error) {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil && n > 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < time.Millisecond {
		return 0, errors.New("it is neither a number of seconds nor a duration like 30s")
	}
	return d, nil
}

// A ruling is the part of a verdict that intake acts on. The event carries the
// whole, as the monitor wrote it.
type ruling struct {
	Risk     int    `json:"risk"`
	Decision string `json:"decision"`
}

// rulingOf reads the ruling of a verdict. One that can't be read, or is out of
// bounds, is none.
func rulingOf(raw []byte) (r ruling, err error) {
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("verdict: %w", err)
	}
	if r.Risk < 0 || r.Risk > 100 {
		return r, fmt.Errorf("verdict: risk %d is not within 0 to 100", r.Risk)
	}
	return r, nil
}
