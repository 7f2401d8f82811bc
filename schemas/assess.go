package schemas

import (
	"fmt"
	"time"
)

// Assess is where intake asks the monitor for verdicts: an AssessRequest in,
// an AssessReply out, both in CBOR (RFC 8949). One request asks about many
// agents' drafts, so that a busy intake costs few messages.
const Assess = "writ.assess"

// MaxJudged is how much of a body the monitor reads, in bytes. Drafts carry
// one byte more of a longer one, which tells that there was more.
const MaxJudged = 64 << 10

// AssessRequest asks for a verdict on each draft.
type AssessRequest struct {
	_ struct{} `cbor:",toarray"`
	// After is the sequence up to which the monitor must have folded before it
	// judges: what the senders did, were granted and were told before.
	After uint64
	// Patient lets the monitor wait a moment for a capability that it does not
	// know yet. Without it such drafts come back as unknown, so that nobody
	// waits for another's.
	Patient bool
	Drafts  []Draft
}

// A Draft is what of an event bears on its verdict. Bodies are cut behind
// MaxJudged+1 bytes.
type Draft struct {
	_         struct{} `cbor:",toarray"`
	Kind      Kind
	Agent     string
	Operation string
	Action    string
	To        string
	JTI       string
	Trace     string // "" or <id>-<span>
	Ref       uint64
	Code      int
	Tokens    int64
	Latency   time.Duration
	Time      int64 // nanoseconds since 1970, UTC
	Body      []byte
}

// AssessReply holds one ruling for each draft, in their order.
type AssessReply struct {
	_       struct{} `cbor:",toarray"`
	Rulings []Ruling
}

// A Ruling is the monitor's answer to one draft.
type Ruling struct {
	_        struct{} `cbor:",toarray"`
	Verdict  []byte   // JSON of a Verdict, as it stands in the event; empty where Unknown
	Risk     int      // its risk, 0 to 100
	Decision string   // its decision
	// Unknown says that the capability which the draft was admitted under is
	// not known to the monitor yet: ask again, patiently.
	Unknown bool
}

// DraftOf is the part of an event that the monitor judges.
func DraftOf(e *Event) Draft {
	d := Draft{Kind: e.Kind, Agent: e.Agent, Operation: e.Operation, To: e.To, JTI: e.JTI, Ref: e.Ref,
		Code: e.Code, Tokens: e.Tokens, Latency: e.Latency, Time: e.Time.UnixNano(), Body: e.Data}
	if e.Action != (Action{}) {
		d.Action = e.Action.String()
	}
	if e.Trace != (Trace{}) {
		d.Trace = e.Trace.String()
	}
	if len(d.Body) > MaxJudged+1 {
		d.Body = d.Body[:MaxJudged+1]
	}
	return d
}

// Event is the draft as an event. It fails where a field is not what it would
// have to be in the log.
func (d *Draft) Event() (*Event, error) {
	switch d.Kind {
	case MessageAccepted, MessageHeld, MessageDenied, ResponseAccepted, ResponseHeld, ResponseDenied:
	default:
		return nil, eventError("%s is neither an action nor an answer, and is not judged", clip(string(d.Kind)))
	}
	e := &Event{Kind: d.Kind, Agent: d.Agent, Operation: d.Operation, To: d.To, JTI: d.JTI, Ref: d.Ref,
		Code: d.Code, Tokens: d.Tokens, Latency: d.Latency, Time: time.Unix(0, d.Time).UTC(), Data: d.Body}
	if err := CheckID("agent", d.Agent); err != nil {
		return nil, eventError("%w", err)
	}
	for _, f := range []struct {
		bit field
		v   string
	}{{fOperation, d.Operation}, {fAction, d.Action}, {fTo, d.To}, {fTrace, d.Trace}} {
		if f.v == "" {
			continue
		}
		if err := e.setField(f.bit, f.v); err != nil {
			return nil, eventError("%w", err)
		}
	}
	if len(d.Body) > MaxJudged+1 {
		return nil, eventError("a draft carries %d bytes of its body; at most %d are judged", len(d.Body), MaxJudged+1)
	}
	return e, nil
}

// Check reports a ruling that can't be acted on.
func (r *Ruling) Check() error {
	if r.Unknown {
		return nil
	}
	if len(r.Verdict) == 0 || r.Risk < 0 || r.Risk > 100 {
		return fmt.Errorf("a verdict of %d bytes with risk %d is none", len(r.Verdict), r.Risk)
	}
	return nil
}
