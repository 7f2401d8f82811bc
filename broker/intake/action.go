package intake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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
	grantWait   = 250 * time.Millisecond // for what was issued or allowed a moment ago to arrive here
	appendGrace = 10 * time.Second       // for what was judged to reach the log, also while stopping
)

// prepare reads a message and decides about it, as far as that can be done
// without waiting.
func (i *Intake) prepare(t *task) step {
	t.event = i.read(t.arrival)
	switch {
	case t.event == nil:
		return dropped
	case t.event.Kind == schemas.MessageDenied:
		return toLog
	case i.former(t):
		return tooEarly
	case t.event.Kind == schemas.ResponseAccepted:
		asked := i.asked.known(t.event.Request, t.event.Ref)
		if asked == nil {
			if i.lanes.owing(t.lane, i.Now()) {
				return dropped
			}
			return tooEarly
		}
		return i.decideAnswer(t, asked)
	}
	return i.decide(t, false)
}

// await waits for what prepare lacked, and decides.
func (i *Intake) await(ctx context.Context, t *task) step {
	e := t.event
	if i.former(t) {
		i.awaitNewest(ctx, e.Agent, schemas.AgentEnrolled, schemas.AgentDeclared)
		if i.former(t) {
			return i.void(t)
		}
	}
	if e.Kind != schemas.ResponseAccepted {
		i.awaitNews(ctx, e.Agent)
		return i.decide(t, true)
	}
	if i.lanes.owing(t.lane, i.Now()) {
		return dropped
	}
	asked, err := i.asked.find(ctx, e.Ref)
	if err != nil {
		i.failed(e, err)
		return dropped
	}
	return i.decideAnswer(t, asked)
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
	e.MsgID, e.Trace, e.Reserve = h.msgID, h.trace, h.reserve
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

// decide checks the capability. Unless it must come to an end now, a
// capability that is not known here may still be on its way, and so may what lets a
// paused agent go on.
func (i *Intake) decide(t *task, final bool) step {
	e := t.event
	ad, refusal := i.admit(e)
	if ad.Reserve == 0 && refusal == nil {
		e.Reserve = 0 // it goes to nobody who counts tokens
	}
	if !final && (refusal != nil && refusal.Code == schemas.CodeUnauthorized || ad.Hold) {
		return tooEarly
	}
	// What was decided about the agent here the monitor must know too: that it was
	// resumed, or this action approved.
	t.lane.after = max(t.lane.after, i.newsOf(e.Agent))
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
		t.lane.after = max(t.lane.after, g.Seq) // the monitor must know the task too
	}
	e.To = ad.To
	if refusal != nil {
		deny(e, refusal)
		if e.Code == schemas.CodeCancelled || ad.Grant == nil && e.Code != schemas.CodeUnauthorized {
			return toLog // locked or unknown: there is no behaviour to judge
		}
	} else if ad.Hold {
		e.Kind = schemas.MessageHeld
		e.Code, e.Reason = schemas.CodeHeld, "the agent is paused; a reviewer decides"
	} else if ad.Approval != 0 {
		e.Ref = ad.Approval
	}
	return toJudge
}

func (i *Intake) admit(e *schemas.Event) (schemas.Admission, *schemas.Refusal) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.state.Admit(e.Agent, e.Operation, e.Action, e.Digest, e.Reserve, e.Time)
}

// newsOf is the newest event that decided something about an agent.
func (i *Intake) newsOf(agent string) uint64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if a := i.state.Agents[agent]; a != nil {
		return a.LastSeq
	}
	return 0
}

func (i *Intake) paused(agent string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[agent]
	return a != nil && a.Lock == schemas.Paused
}

// awaitNews waits until the fold has reached what the log says of the agent
// now: a capability used within a millisecond of its issue is a good one, and who
// was let go on a millisecond ago goes on.
func (i *Intake) awaitNews(ctx context.Context, agent string) {
	if i.paused(agent) {
		i.awaitNewest(ctx, agent, schemas.ReviewApproved, schemas.AgentResumed)
		return
	}
	i.awaitNewest(ctx, agent, schemas.TokenIssued)
}

// awaitNewest waits until the fold has reached the newest events of these kinds
// about an agent.
func (i *Intake) awaitNewest(ctx context.Context, agent string, kinds ...schemas.Kind) {
	for _, kind := range kinds {
		if seq, err := i.asked.newest(ctx, agent, kind); err == nil {
			// Where it does not come in time, the decision stands.
			_ = i.folded.Wait(ctx, seq, grantWait)
		}
	}
}

// former reports whether a message is of another incarnation of the agent than
// the one that bears the name. Unless it is that of the next, on its way here, it
// was sent before a kill, and lay in some buffer meanwhile.
func (i *Intake) former(t *task) bool {
	agent, incarnation, _ := schemas.OutSender(t.msg.Subject)
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[agent]
	return a != nil && a.Incarnation != incarnation
}

// void refuses what a former incarnation sent. There is no behaviour to judge:
// who bears the name now did not do it.
func (i *Intake) void(t *task) step {
	e := t.event
	r := schemas.Refuse(schemas.CodeCancelled, "it was sent with a former credential of %s, which was killed or removed and enrolled anew since; connect with the new one", e.Agent)
	e.Trace = schemas.Trace{}
	if e.Kind == schemas.ResponseAccepted {
		i.stray(t, r)
		return toLog
	}
	deny(e, r)
	return toLog
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
	reserve     int64
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
	"writ-max-tokens": func(h *headers, v string) (err error) {
		h.reserve, err = strconv.ParseInt(v, 10, 64)
		if err == nil && (h.reserve < 1 || h.reserve > 1<<53) {
			err = errors.New("it is out of bounds")
		}
		return err
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
