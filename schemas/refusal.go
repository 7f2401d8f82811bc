package schemas

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// The codes of refusals. They follow HTTP's where HTTP has one.
const (
	CodeMalformed    = 400 // the message or its subject can't be read
	CodeUnauthorized = 401 // no live capability for the operation
	CodeBudget       = 402 // the operation's token budget is spent
	CodeForbidden    = 403 // not in scope, or forbidden
	CodeNotFound     = 404 // nobody serves it
	CodeConflict     = 409 // an idempotency key was used for another message
	CodeCancelled    = 410 // cancelled: a lock, a revocation, the operation's end
	CodeTooLarge     = 413 // body over 1 MiB
	CodeHeld         = 423 // held for review
	CodeRate         = 429 // over the agent's rate
	CodeUnavailable  = 503 // a part of the control plane is down; nothing was done
	CodeNoAnswer     = 504 // no answer before the deadline
)

// A Refusal says why an action was not carried out: which rule, and what would
// be allowed.
type Refusal struct {
	Code int
	Text string
	Seq  uint64 // the event under which it was logged, 0 where there is none
}

func (r *Refusal) Error() string { return fmt.Sprintf("%d %s", r.Code, r.Text) }

// Refuse builds a refusal.
func Refuse(code int, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Text: HeaderText(fmt.Sprintf(format, args...))}
}

// Header names of answers. The first two are those of the NATS micro protocol
// (ADR-32), so that stock service clients see an error as an error.
const (
	HeaderErrorCode = "Nats-Service-Error-Code"
	HeaderError     = "Nats-Service-Error"
	HeaderFrom      = "Writ-From"
	HeaderOperation = "Writ-Operation"
	HeaderSeq       = "Writ-Seq"
	HeaderToken     = "Writ-Token"
	HeaderTrace     = "traceparent"
	HeaderUsage     = "Writ-Usage-Tokens" // a metered service's answer: tokens used
	HeaderReserve   = "Writ-Max-Tokens"   // an action's to a metered service, and its delivery's: tokens that it may use
	HeaderMsgID     = "Nats-Msg-Id"
	HeaderTTL       = "Nats-TTL"
	HeaderType      = "content-type"
)

// Header is the header block of the refusal.
func (r *Refusal) Header() Header {
	h := Header{HeaderErrorCode: {strconv.Itoa(r.Code)}, HeaderError: {r.Text}}
	if r.Seq != 0 {
		h[HeaderSeq] = []string{strconv.FormatUint(r.Seq, 10)}
	}
	return h
}

// Ack is the body of an acknowledgement or refusal in the form of a JetStream
// publish acknowledgement (ADR-1), so that a stock JetStream publish
// understands both.
type Ack struct {
	Stream    string    `json:"stream,omitempty"`
	Seq       uint64    `json:"seq,omitempty"`
	Duplicate bool      `json:"duplicate,omitempty"`
	Error     *AckError `json:"error,omitempty"`
}

// AckError is the error of an Ack. ErrCode is the code plus 20,000, outside
// of what JetStream itself uses.
type AckError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// Body is the refusal as a JetStream-shaped body.
func (r *Refusal) Body() []byte {
	b, err := json.Marshal(Ack{Error: &AckError{Code: r.Code, ErrCode: 20000 + r.Code, Description: r.Text}})
	if err != nil {
		panic(err) // three scalars always encode
	}
	return b
}
