package hooks

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// named are the events that a webhook can ask for, and their kinds in the log.
// Where a verdict puts a lock on, that stands in the event of the action.
var named = []struct {
	name  string
	kinds []schemas.Kind
	lock  schemas.Lock
}{
	{"held", []schemas.Kind{schemas.MessageHeld, schemas.ResponseHeld}, ""},
	{"decided", []schemas.Kind{schemas.ReviewApproved, schemas.ReviewDenied, schemas.ReviewEndorsed, schemas.ReviewVouched}, ""},
	{"paused", []schemas.Kind{schemas.AgentPaused}, schemas.Paused},
	{"suspended", []schemas.Kind{schemas.AgentSuspended}, schemas.Suspended},
	{"killed", []schemas.Kind{schemas.AgentKilled}, schemas.Killed},
	{"resumed", []schemas.Kind{schemas.AgentResumed}, ""},
	{"lockdown", []schemas.Kind{schemas.PolicyLockdown, schemas.PolicyLifted}, ""},
	{"alarm", []schemas.Kind{schemas.LedgerAlarm}, ""},
}

// locking are the kinds of which an event may put a lock on by itself.
var locking = []schemas.Kind{schemas.MessageHeld, schemas.MessageDenied, schemas.ResponseHeld, schemas.ResponseDenied}

// Names are the events that a webhook can ask for.
func Names() []string {
	out := make([]string, len(named))
	for i, n := range named {
		out[i] = n.name
	}
	return out
}

// filters are the subjects of the log that hold what a webhook asks for.
func (h Hook) filters() []string {
	var out []string
	for _, n := range named {
		if !slices.Contains(h.Events, n.name) {
			continue
		}
		of := n.kinds
		if n.lock != "" {
			of = slices.Concat(of, locking)
		}
		for _, k := range of {
			if s := schemas.EventSubject("*", k); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// wants says under which name an event is told; "" where it is not.
func (h Hook) wants(e *schemas.Event) string {
	for _, n := range named {
		if slices.Contains(h.Events, n.name) && (slices.Contains(n.kinds, e.Kind) || n.lock != "" && e.Lock == n.lock) {
			return n.name
		}
	}
	return ""
}

// A message is what is sent: type, timestamp and data, as the standard advises.
type message struct {
	Type string    `json:"type"`
	Time time.Time `json:"timestamp"` // of the event
	Data facts     `json:"data"`
}

type facts struct {
	Seq       uint64       `json:"seq"`
	Kind      schemas.Kind `json:"kind"`
	Agent     string       `json:"agent_id"`
	Operation string       `json:"operation_id,omitempty"`
	Action    string       `json:"action,omitempty"`
	Digest    string       `json:"payload_sha256,omitempty"`
	Trace     string       `json:"trace_id,omitempty"`
	Risk      int          `json:"risk,omitempty"`
	Factors   []string     `json:"factors,omitempty"` // their ids, the verdict's order
	Lock      schemas.Lock `json:"lock,omitempty"`
	Review    uint64       `json:"review,omitempty"` // sequence of the held action
	Link      string       `json:"link,omitempty"`   // where it is decided over HTTP
	Actor     string       `json:"actor,omitempty"`
	Reason    string       `json:"reason,omitempty"` // an operator's or the ledger's; none of what quotes agents
}

// compose says what is told of an event.
func compose(name string, e *schemas.Event, base string) ([]byte, error) {
	f := facts{Seq: e.Seq, Kind: e.Kind, Agent: e.Agent, Operation: e.Operation, Trace: e.Trace.ID, Risk: e.Risk, Lock: e.Lock, Actor: e.Actor}
	if e.Action != (schemas.Action{}) {
		f.Action = e.Action.String()
	}
	if !e.Digest.IsZero() {
		f.Digest = e.Digest.String()
	}
	if len(e.Verdict) > 0 {
		var v schemas.Verdict
		if err := schemas.Unmarshal(e.Verdict, &v); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.Seq, err)
		}
		for _, one := range v.Factors {
			f.Factors = append(f.Factors, one.ID)
		}
	}
	switch e.Kind {
	case schemas.MessageHeld, schemas.ResponseHeld:
		f.Review, f.Link = e.Seq, base+"/v1/reviews/"+strconv.FormatUint(e.Seq, 10)
	case schemas.MessageDenied, schemas.ResponseDenied:
	case schemas.ReviewApproved, schemas.ReviewDenied, schemas.ReviewEndorsed, schemas.ReviewVouched:
		f.Review, f.Reason = e.Ref, e.Reason
	default:
		f.Reason = e.Reason
	}
	return schemas.Marshal(message{name, e.Time, f}), nil
}

// messageID is the same in every attempt, and no other event's, of whatever
// log.
func messageID(e *schemas.Event) string {
	sum := schemas.Sum([]byte(e.Source + "\x00" + e.ID))
	return "evt_" + strconv.FormatUint(e.Seq, 10) + "_" + hex.EncodeToString(sum[:8])
}
