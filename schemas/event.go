package schemas

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Kind names an event. It is the tail of the event's subject and, behind
// "sh.writ.", its CloudEvents type.
type Kind string

// The kinds of event, by the service that alone may append them.
const (
	// intake
	MessageAccepted  Kind = "message.accepted"
	MessageHeld      Kind = "message.held"
	MessageDenied    Kind = "message.denied"
	ResponseAccepted Kind = "response.accepted"
	ResponseHeld     Kind = "response.held"
	ResponseDenied   Kind = "response.denied"
	// release
	MessageCancelled Kind = "message.cancelled"
	MessageExpired   Kind = "message.expired"
	ReleaseMark      Kind = "release.mark"
	// issuer
	AgentDeclared  Kind = "agent.declared"
	AgentRemoved   Kind = "agent.removed"
	AgentEnrolled  Kind = "agent.enrolled"
	AgentPaused    Kind = "agent.paused"
	AgentResumed   Kind = "agent.resumed"
	AgentSuspended Kind = "agent.suspended"
	AgentKilled    Kind = "agent.killed"
	AgentViolation Kind = "agent.violation"
	TokenIssued    Kind = "token.issued"
	TokenRevoked   Kind = "token.revoked"
	ReviewApproved Kind = "review.approved"
	ReviewDenied   Kind = "review.denied"
	PolicyApplied  Kind = "policy.applied"
	OperationEnded Kind = "operation.ended"
	// monitor
	RiskChanged     Kind = "risk.changed"
	ReviewRequested Kind = "review.requested"
)

// A field is one header of an event.
type field uint32

const (
	fContentType field = 1 << iota
	fTrace
	fOperation
	fAction
	fTo
	fJTI
	fRequest
	fReply
	fExpires
	fMsgID
	fDigest
	fRef
	fCode
	fReason
	fTokens
	fLock
	fVerdict
	fFinal
	fActor
	fEmpty
	fInput
	fLatency
	fRisk
)

// A shape says which headers a kind must carry, and which it may.
type shape struct{ must, may field }

const (
	actionMust = fTrace | fOperation | fAction | fDigest
	actionMay  = fContentType | fTo | fJTI | fRequest | fReply | fExpires | fMsgID | fRef | fVerdict | fRisk | fLock | fCode | fReason | fEmpty
	answerMust = fTrace | fOperation | fAction | fDigest | fRequest | fRef
	answerMay  = fContentType | fTo | fCode | fReason | fTokens | fVerdict | fRisk | fLock | fFinal | fEmpty | fInput | fLatency
	controlMay = fContentType | fTrace | fOperation | fAction | fDigest | fRef | fCode | fReason | fLock | fVerdict | fRisk | fActor | fJTI | fEmpty | fTo
)

var kinds = map[Kind]shape{
	MessageAccepted:  {actionMust | fTo | fJTI | fRequest | fExpires, actionMay},
	MessageHeld:      {actionMust | fTo | fJTI | fRequest | fExpires, actionMay},
	MessageDenied:    {fDigest | fCode | fReason, actionMust | actionMay},
	ResponseAccepted: {answerMust | fTo, answerMay},
	ResponseHeld:     {answerMust | fTo, answerMay},
	ResponseDenied:   {fDigest | fCode | fReason, answerMust | answerMay},
	MessageCancelled: {fRef | fCode | fReason | fTrace, fOperation | fAction | fTo | fEmpty},
	MessageExpired:   {fRef | fCode | fReason | fTrace, fOperation | fAction | fTo | fEmpty},
	ReleaseMark:      {fRef, fEmpty},
	AgentDeclared:    {0, controlMay},
	AgentRemoved:     {0, controlMay},
	AgentEnrolled:    {0, controlMay},
	AgentPaused:      {fReason, controlMay},
	AgentResumed:     {fReason, controlMay},
	AgentSuspended:   {fReason, controlMay},
	AgentKilled:      {fReason, controlMay},
	AgentViolation:   {0, controlMay},
	TokenIssued:      {fOperation | fJTI | fTrace, controlMay},
	TokenRevoked:     {fJTI | fReason, controlMay},
	ReviewApproved:   {fRef, controlMay},
	ReviewDenied:     {fRef | fReason, controlMay},
	PolicyApplied:    {0, controlMay},
	OperationEnded:   {fOperation | fReason, controlMay},
	RiskChanged:      {fVerdict | fRisk, controlMay},
	ReviewRequested:  {fRef, controlMay},
}

// Kinds lists every kind of event, unordered.
func Kinds() []Kind {
	out := make([]Kind, 0, len(kinds))
	for k := range kinds {
		out = append(out, k)
	}
	return out
}

// An Event is one entry of the log. Metadata travels in headers that are all
// ours (CloudEvents 1.0, binary mode over NATS), the body as it was received.
// Which fields a kind needs and admits is part of the codec: Encode and
// Decode refuse all else.
type Event struct {
	Kind   Kind
	Agent  string    // stamped sender, or the agent it is about, or Fleet
	ID     string    // ce-id: unique for ever
	Source string    // ce-source: role/instance that appended it
	Time   time.Time // ce-time: stamped by the appender, UTC, to the nanosecond

	ContentType string
	Trace       Trace
	Operation   string
	Action      Action
	To          string    // recipient: an agent or a service
	JTI         string    // capability under which the action was admitted
	Request     string    // 32 hex digits: the random id that binds an answer
	Reply       string    // where CONTROL's server awaits the answer
	Expires     time.Time // a request's deadline, a send's expiry
	MsgID       string    // idempotency key given by the agent
	Digest      Digest    // SHA-256 of the body as received
	Input       Digest    // an answer's: SHA-256 of the request's body
	Ref         uint64    // sequence of the event that this one is about
	Code        int       // refusal, see Refusal
	Reason      string
	Tokens      int64         // language-model tokens used, as a metered service says
	Latency     time.Duration // from request to answer, microseconds on the wire
	Lock        Lock          // the lock that this event itself puts on Agent
	Verdict     []byte        // JSON of a Verdict, parsed by those who need it
	Risk        int           // 0 to 100: of the agent, as Verdict says; only with a Verdict
	Final       bool          // an answer's last part
	Actor       string        // the operator, agent or service that caused it

	Data []byte // body; empty bodies are flagged on the wire, and stand as one byte

	Seq uint64 // position in the log; set on read, never on the wire
}

// A Digest is a SHA-256 sum; its text form is 64 hex digits.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether the digest was never set.
func (d Digest) IsZero() bool { return d == Digest{} }

// Sum is the digest of a body.
func Sum(body []byte) Digest { return sha256.Sum256(body) }

// A Trace places an event in the request of a user: W3C trace id, and the
// span of the event that caused this one.
type Trace struct {
	ID   string // 32 hex digits
	Span string // 16 hex digits
}

func (t Trace) String() string { return t.ID + "-" + t.Span }

// Traceparent is the W3C header of the trace.
func (t Trace) Traceparent() string { return "00-" + t.ID + "-" + t.Span + "-01" }

// ParseTraceparent reads a W3C traceparent (version 00).
func ParseTraceparent(s string) (Trace, error) {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' || !lowerHex(s[53:], 2) {
		return Trace{}, nameError("traceparent", s, "is not of the form 00-<32 hex>-<16 hex>-<2 hex>")
	}
	t := Trace{ID: s[3:35], Span: s[36:52]}
	return t, t.check()
}

func (t Trace) check() error {
	if err := CheckTrace(t.ID); err != nil {
		return err
	}
	if !lowerHex(t.Span, 16) || t.Span == "0000000000000000" {
		return nameError("span id", t.Span, "is not 16 lower-case hex digits")
	}
	return nil
}

// ErrEvent is matched by every error of the event codec.
var ErrEvent = errors.New("invalid event")

func eventError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrEvent}, args...)...)
}

const (
	typePrefix = "sh.writ."
	emptyBody  = "\x00"
)

// A Header is a NATS header block: case-sensitive keys.
type Header map[string][]string

// fieldNames is the order in which headers are written, and the only names
// that are read.
var fieldNames = [...]struct {
	name string
	bit  field
}{
	{"content-type", fContentType}, {"Writ-Trace", fTrace}, {"Writ-Operation", fOperation},
	{"Writ-Action", fAction}, {"Writ-To", fTo}, {"Writ-Jti", fJTI}, {"Writ-Request", fRequest},
	{"Writ-Reply", fReply}, {"Writ-Expires", fExpires}, {"Writ-Msg-Id", fMsgID},
	{"Writ-Digest", fDigest}, {"Writ-Ref", fRef}, {"Writ-Code", fCode}, {"Writ-Reason", fReason},
	{"Writ-Tokens", fTokens}, {"Writ-Lock", fLock}, {"Writ-Verdict", fVerdict},
	{"Writ-Final", fFinal}, {"Writ-Actor", fActor}, {"Writ-Empty", fEmpty},
	{"Writ-Input", fInput}, {"Writ-Latency", fLatency},
	{"Writ-Risk", fRisk},
}

var fieldByName = func() map[string]field {
	m := make(map[string]field, len(fieldNames))
	for _, f := range fieldNames {
		m[f.name] = f.bit
	}
	return m
}()

func fieldName(bit field) string {
	for _, f := range fieldNames {
		if f.bit == bit {
			return f.name
		}
	}
	return "?"
}

// Encode gives the event's subject, headers and body on the wire. It fails
// where a field is malformed, missing or foreign to the kind: such an event
// would halt every reader of the log.
func (e *Event) Encode() (subject string, h Header, body []byte, err error) {
	sh, ok := kinds[e.Kind]
	if !ok {
		return "", nil, nil, eventError("kind %q is unknown", e.Kind)
	}
	if e.Agent != Fleet {
		if err := CheckID("agent", e.Agent); err != nil {
			return "", nil, nil, eventError("%w", err)
		}
	}
	h = make(Header, 16)
	backing := make([]string, 0, 20)
	put := func(k, v string) {
		backing = append(backing, v)
		h[k] = backing[len(backing)-1 : len(backing) : len(backing)]
	}
	put("ce-specversion", "1.0")
	put("ce-type", typePrefix+string(e.Kind))
	put("ce-source", e.Source)
	put("ce-id", e.ID)
	put("ce-time", formatTime(e.Time))
	var set field
	text := func(bit field, name, v string) {
		if v != "" {
			put(name, v)
			set |= bit
		}
	}
	text(fContentType, "content-type", e.ContentType)
	if e.Trace != (Trace{}) {
		text(fTrace, "Writ-Trace", e.Trace.String())
	}
	text(fOperation, "Writ-Operation", e.Operation)
	if e.Action != (Action{}) {
		text(fAction, "Writ-Action", e.Action.String())
	}
	text(fTo, "Writ-To", e.To)
	text(fJTI, "Writ-Jti", e.JTI)
	text(fRequest, "Writ-Request", e.Request)
	text(fReply, "Writ-Reply", e.Reply)
	if !e.Expires.IsZero() {
		text(fExpires, "Writ-Expires", formatTime(e.Expires))
	}
	text(fMsgID, "Writ-Msg-Id", e.MsgID)
	if !e.Digest.IsZero() {
		text(fDigest, "Writ-Digest", e.Digest.String())
	}
	if !e.Input.IsZero() {
		text(fInput, "Writ-Input", e.Input.String())
	}
	if e.Ref != 0 {
		text(fRef, "Writ-Ref", strconv.FormatUint(e.Ref, 10))
	}
	if e.Code != 0 {
		text(fCode, "Writ-Code", strconv.Itoa(e.Code))
	}
	text(fReason, "Writ-Reason", e.Reason)
	if e.Tokens != 0 {
		text(fTokens, "Writ-Tokens", strconv.FormatInt(e.Tokens, 10))
	}
	if e.Latency != 0 {
		text(fLatency, "Writ-Latency", strconv.FormatInt(e.Latency.Microseconds(), 10))
	}
	text(fLock, "Writ-Lock", string(e.Lock))
	if len(e.Verdict) > 0 {
		text(fVerdict, "Writ-Verdict", string(e.Verdict))
		text(fRisk, "Writ-Risk", strconv.Itoa(e.Risk))
	}
	if e.Final {
		text(fFinal, "Writ-Final", "1")
	}
	text(fActor, "Writ-Actor", e.Actor)
	body = e.Data
	if len(body) == 0 {
		text(fEmpty, "Writ-Empty", "1")
		body = []byte(emptyBody)
	}
	if err := e.check(sh, set); err != nil {
		return "", nil, nil, err
	}
	for name, v := range h {
		if !headerValue(v[0]) {
			return "", nil, nil, eventError("header %s holds a byte that no header may hold, or a space at an end", name)
		}
	}
	return EventSubject(e.Agent, e.Kind), h, body, nil
}

// Decode reads an event as it stands in the log. Headers that the server adds
// ("Nats-…") are passed over; every other header must be one of ours, once,
// in canonical form, and fit the kind.
func Decode(subject string, h Header, body []byte) (*Event, error) {
	agent, kind, err := ParseEventSubject(subject)
	if err != nil {
		return nil, eventError("%w", err)
	}
	e := &Event{Kind: kind, Agent: agent, Data: body}
	var set field
	envelope := 0
	for name, values := range h {
		if strings.HasPrefix(name, "Nats-") {
			continue
		}
		if len(values) != 1 {
			return nil, eventError("header %s stands %d times", name, len(values))
		}
		v := values[0]
		if strings.HasPrefix(name, "ce-") {
			envelope++
			if err := e.setEnvelope(name, v); err != nil {
				return nil, err
			}
			continue
		}
		bit, ok := fieldByName[name]
		if !ok {
			return nil, eventError("header %q is none of ours", clip(name))
		}
		if v == "" || !headerValue(v) {
			return nil, eventError("header %s is empty or holds a byte that no header may hold", name)
		}
		if err := e.setField(bit, v); err != nil {
			return nil, eventError("header %s: %w", name, err)
		}
		set |= bit
	}
	if envelope != 5 {
		return nil, eventError("%d of the 5 CloudEvents headers are there", envelope)
	}
	if set&fEmpty != 0 {
		if string(body) != emptyBody {
			return nil, eventError("the body is flagged empty, and is not")
		}
		e.Data = nil
	} else if len(body) == 0 {
		return nil, eventError("the body is empty, and not flagged so")
	}
	if err := e.check(kinds[kind], set); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Event) setEnvelope(name, v string) error {
	switch name {
	case "ce-specversion":
		if v != "1.0" {
			return eventError("ce-specversion %q is not 1.0", clip(v))
		}
	case "ce-type":
		if v != typePrefix+string(e.Kind) {
			return eventError("ce-type %q does not fit the subject", clip(v))
		}
	case "ce-source":
		e.Source = v
	case "ce-id":
		e.ID = v
	case "ce-time":
		t, err := parseTime(v)
		if err != nil {
			return eventError("ce-time: %w", err)
		}
		e.Time = t
	default:
		return eventError("header %q is none of ours", clip(name))
	}
	return nil
}

func (e *Event) setField(bit field, v string) (err error) {
	switch bit {
	case fContentType:
		e.ContentType = v
	case fTrace:
		id, span, _ := strings.Cut(v, "-")
		e.Trace = Trace{ID: id, Span: span}
		return e.Trace.check()
	case fOperation:
		e.Operation = v
		return CheckID("operation", v)
	case fAction:
		e.Action, err = ParseAction(v)
	case fTo:
		e.To = v
		return CheckID("recipient", v)
	case fJTI:
		e.JTI = v
	case fRequest:
		e.Request = v
		if !lowerHex(v, 32) {
			return nameError("request id", v, "is not 32 lower-case hex digits")
		}
	case fReply:
		e.Reply = v
	case fExpires:
		e.Expires, err = parseTime(v)
	case fMsgID:
		e.MsgID = v
	case fDigest:
		e.Digest, err = parseDigest(v)
	case fInput:
		e.Input, err = parseDigest(v)
	case fRef:
		e.Ref, err = parseUint(v)
	case fCode:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n < 100 || n > 999) {
			return nameError("code", v, "is not of three digits")
		}
		e.Code = int(n)
	case fReason:
		e.Reason = v
	case fTokens:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n == 0 || n > 1<<53) {
			return nameError("token count", v, "is out of bounds")
		}
		e.Tokens = int64(n)
	case fLatency:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n == 0 || n > 1<<53) {
			return nameError("latency", v, "is out of bounds")
		}
		e.Latency = time.Duration(n) * time.Microsecond
	case fLock:
		e.Lock = Lock(v)
		return e.Lock.check()
	case fVerdict:
		e.Verdict = []byte(v)
	case fRisk:
		var n uint64
		n, err = parseUint(v)
		if err == nil && n > 100 {
			return nameError("risk", v, "is over 100")
		}
		e.Risk = int(n)
	case fFinal:
		e.Final = true
		return flag(v)
	case fActor:
		e.Actor = v
	case fEmpty:
		return flag(v)
	}
	return err
}

func flag(v string) error {
	if v != "1" {
		return nameError("flag", v, "is not 1")
	}
	return nil
}

func (e *Event) check(sh shape, set field) error {
	if e.ID == "" || e.Source == "" || e.Time.IsZero() {
		return eventError("%s has no id, source or time", e.Kind)
	}
	if missing := sh.must &^ set; missing != 0 {
		return eventError("%s lacks %s", e.Kind, fieldName(missing&-missing))
	}
	if set&fVerdict != 0 != (set&fRisk != 0) {
		return eventError("%s carries a verdict without a risk, or a risk without a verdict", e.Kind)
	}
	if foreign := set &^ (sh.must | sh.may | fEmpty); foreign != 0 {
		return eventError("%s may not carry %s", e.Kind, fieldName(foreign&-foreign))
	}
	return nil
}

// headerValue reports whether a value survives a NATS header block unchanged.
func headerValue(s string) bool {
	if s == "" {
		return true
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return s[0] != ' ' && s[len(s)-1] != ' '
}

// HeaderText makes any text fit for a header: control bytes become spaces, the
// ends are trimmed, and it is cut at 1,000 bytes.
func HeaderText(s string) string {
	if len(s) > 1000 {
		s = strings.ToValidUTF8(s[:1000], "")
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s))
}

// formatTime is RFC 3339 in UTC with nine digits always: of fixed length, and
// text order is time order.
func formatTime(t time.Time) string { return t.UTC().Format(timeLayout) }

const timeLayout = "2006-01-02T15:04:05.000000000Z"

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(timeLayout, s)
	if err != nil || formatTime(t) != s {
		return time.Time{}, nameError("time", s, "is not RFC 3339 in UTC with nine digits")
	}
	return t, nil
}

func parseDigest(s string) (d Digest, err error) {
	if !lowerHex(s, 2*len(d)) {
		return d, nameError("digest", s, "is not 64 lower-case hex digits")
	}
	_, err = hex.Decode(d[:], []byte(s))
	return d, err
}
