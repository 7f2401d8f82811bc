package schemas

import (
	"encoding/json"
	"fmt"
	"time"
)

// Lock is the state of an agent: active → paused → active; active or paused →
// suspended → active; any → killed, for good.
type Lock string

const (
	Active    Lock = "active"
	Paused    Lock = "paused"
	Suspended Lock = "suspended"
	Killed    Lock = "killed"
)

func (l Lock) check() error {
	switch l {
	case Active, Paused, Suspended, Killed:
		return nil
	}
	return nameError("lock", string(l), "is none of active, paused, suspended, killed")
}

// Kinds of principal.
const (
	KindAgent    = "agent"
	KindService  = "service"
	KindOperator = "operator" // a person who gives commands
)

// MeterTokens marks a service whose answers state what they used of a language
// model.
const MeterTokens = "tokens"

// ModeObserve enforces nothing of an agent but its identity, the operators' locks
// and what it asked for itself: how a team starts.
const ModeObserve = "observe"

// Observed reports whether an agent is in observe mode.
func (p *Principal) Observed() bool { return p.Mode == ModeObserve }

// A Principal is an agent, a service or an operator as the fleet file declares
// it: the body of agent.declared.
type Principal struct {
	ID          string          `json:"id"`
	Kind        string          `json:"kind"` // agent, service or operator
	Owner       string          `json:"owner,omitempty"`
	Ceiling     *Ceiling        `json:"ceiling,omitempty"`
	MayIssueFor []string        `json:"may_issue_for,omitempty"`
	Serves      []string        `json:"serves,omitempty"` // prefixes verb:resource
	Tools       map[string]Tool `json:"tools,omitempty"`  // a service's tools, by name
	Streams     bool            `json:"streams,omitempty"`
	Meter       string          `json:"meter,omitempty"`   // "tokens": its answers state usage
	Reserve     int64           `json:"reserve,omitempty"` // tokens that an action reserves of it which states none; all that is left where 0
	// DelegatedOnly keeps an agent from asking for itself: it works with what
	// operators and other agents give it.
	DelegatedOnly bool        `json:"delegated_only,omitempty"`
	Rate          *Rate       `json:"rate,omitempty"`
	Thresholds    *Thresholds `json:"thresholds,omitempty"`
	MemoryBytes   int64       `json:"memory_bytes,omitempty"` // quota of the agent's memory
	Role          Role        `json:"role,omitempty"`         // an operator's
	// TwoPerson demands that two operators approve what the agent does under
	// review.
	TwoPerson bool `json:"two_person,omitempty"`
	// Mode is ModeObserve where rules are held against what the agent does and
	// logged, and not enforced.
	Mode string `json:"mode,omitempty"`
	// Incarnation tells apart those who bore the name one after the other: it is
	// another where the name is declared anew, or enrolled behind a kill. Empty
	// in logs from before it.
	Incarnation string `json:"incarnation,omitempty"`
	// CredentialExpires is when the newest credential with which it asks, or
	// serves, or commands ends; zero where the log does not say.
	CredentialExpires time.Time `json:"credential_expires,omitzero"`
	// What follows is set where the issuer repeats a declaration, so
	// that the log's oldest part can age out.
	Lock       Lock   `json:"lock,omitempty"`
	LockSeq    uint64 `json:"lock_seq,omitempty"` // event that put it on
	LockReason string `json:"lock_reason,omitempty"`
	Generation int    `json:"generation,omitempty"`
}

// A Ceiling bounds what can ever be granted to an agent.
type Ceiling struct {
	Scope          []string `json:"scope,omitempty"` // exact verb:resource
	Tools          []string `json:"tools,omitempty"` // sugar for call:<tool>
	ForbiddenTools []string `json:"forbidden_tools,omitempty"`
	TTLSeconds     int64    `json:"ttl_seconds,omitempty"` // 1 to 86,400; 300 where unset
	MaxTokens      int64    `json:"max_tokens,omitempty"`  // 0: no metered service may be used
	// MaxTokensPerDay bounds what all of the agent's operations use in a day
	// of UTC; no bound where 0.
	MaxTokensPerDay int64    `json:"max_tokens_per_day,omitempty"`
	Jobs            []string `json:"jobs,omitempty"`
	Operations      []string `json:"operations,omitempty"` // empty: any
	// Exceptions are further scopes, for a time.
	Exceptions []Exception `json:"exceptions,omitempty"`
}

// An Exception widens a ceiling by one scope until a time. No capability that
// holds the scope outlives it.
type Exception struct {
	Scope  string    `json:"scope"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// A Tool tells the monitor what a call can do: class read, write or egress;
// unknown counts as egress.
type Tool struct {
	Class       string `json:"class,omitempty"`
	Description string `json:"description,omitempty"`
}

// Rate bounds an agent's actions, by token bucket.
type Rate struct {
	PerSecond float64 `json:"per_second"`
	Burst     int     `json:"burst"`
}

// Thresholds of risk, 0 to 100, at which an agent is paused and suspended.
type Thresholds struct {
	Pause   int `json:"pause"`
	Suspend int `json:"suspend"`
}

// DefaultThresholds hold where the fleet file says nothing.
var DefaultThresholds = Thresholds{Pause: 70, Suspend: 90}

// DefaultRate holds where the fleet file says nothing.
var DefaultRate = Rate{PerSecond: 200, Burst: 400}

// A Policy is the fleet as a whole: the body of policy.applied.
type Policy struct {
	TrustDomain string `json:"trust_domain"`
	Digest      string `json:"digest"` // SHA-256 of the fleet file, hex
	// Guardrails are Cedar policies that bound what may be granted, whatever
	// the ceilings say.
	Guardrails string `json:"guardrails,omitempty"`
	// Signals are who outside may say that agents are at risk.
	Signals []SignalSource `json:"signals,omitempty"`
}

// A Grant is a capability as issued: the body of token.issued. The token
// itself says the same, signed.
type Grant struct {
	JTI            string    `json:"jti"`
	Agent          string    `json:"agent_id"`
	Operation      string    `json:"operation_id"`
	Scope          []string  `json:"scope"` // exact, tools included as call:<tool>
	ForbiddenTools []string  `json:"forbidden_tools,omitempty"`
	NotBefore      time.Time `json:"not_before"`
	Expires        time.Time `json:"expires"`
	MaxTokens      int64     `json:"max_tokens,omitempty"`
	Task           string    `json:"task,omitempty"`
	Job            string    `json:"job,omitempty"`
	TraceID        string    `json:"trace_id"`
	PublicKey      string    `json:"public_key"`                   // user NKey that proves possession
	Certificate    string    `json:"certificate_sha256,omitempty"` // the one that it counts with alone, hex; any of the agent's where empty
	// Parent is the jti of the capability that this one was derived from, as it
	// was then; ParentAgent and ParentOperation say whose it is. An agent's own
	// right to issue has neither jti nor operation. Act names all agents that
	// handed it on, the newest first.
	Parent          string   `json:"parent,omitempty"`
	ParentAgent     string   `json:"parent_agent,omitempty"`
	ParentOperation string   `json:"parent_operation,omitempty"`
	Act             []string `json:"act,omitempty"`
	TTLSeconds      int64    `json:"ttl_seconds,omitempty"` // of a derived one: what was asked for, which its parent's end may cut
	IssuedBy        string   `json:"issued_by"`
	Refreshes       string   `json:"refreshes,omitempty"` // jti that this one replaces
	Notes           []string `json:"notes,omitempty"`     // what would have been refused but for observe or shadow mode
	Token           string   `json:"token"`               // for recipients to verify; worthless without the key
}

// A Violation is what the server itself refused: the body of agent.violation.
type Violation struct {
	Subject string `json:"subject"`
	What    string `json:"what"`  // publish, subscribe, FloodOfBytes or FloodOfMessages
	Count   int    `json:"count"` // how many within the second
}

// String says in words what was refused.
func (v Violation) String() string {
	switch v.What {
	case FloodOfBytes:
		return fmt.Sprintf("it sent %d MiB within half a second", v.Count)
	case FloodOfMessages:
		return fmt.Sprintf("it sent %d messages within half a second", v.Count)
	}
	s := "the server refused to let it " + v.What
	if v.What == "subscribe" {
		s += " to"
	}
	s += " " + v.Subject
	if v.Count > 1 {
		s += fmt.Sprintf(" (%d times within a second)", v.Count)
	}
	return s
}

// An Enrolment is the body of agent.enrolled: when the credential ends that was
// made, and which incarnation begins where it brings a killed principal back.
type Enrolment struct {
	Incarnation string    `json:"incarnation,omitempty"`
	Expires     time.Time `json:"expires,omitzero"`
}

// A Warrant is a death warrant without its signature: the body of
// agent.warranted. It kills that incarnation and no other.
type Warrant struct {
	Account     string `json:"account"` // NKey
	Incarnation string `json:"incarnation"`
}

// A Certificate is what an agent was given to connect with, without any key:
// the body of agent.certified.
type Certificate struct {
	URI         string    `json:"uri"`    // spiffe://<trust-domain>/agent/<id>
	Serial      string    `json:"serial"` // hex
	Fingerprint string    `json:"sha256"` // of the certificate, hex
	NotBefore   time.Time `json:"not_before"`
	Expires     time.Time `json:"expires"`
}

// What of a violation that no permission stops: more than the server can take
// without harm to others, within half a second. Its Count is in MiB, or of
// messages.
const (
	FloodOfBytes    = "flood"
	FloodOfMessages = "storm"
)

// An Alarm says why the ledger's head is not vouched for: the body of
// ledger.alarm.
type Alarm struct {
	What        string `json:"what"`                   // forked, shortened or unwitnessed
	Witness     string `json:"witness,omitempty"`      // who refuses, by its name in the policy
	Size        uint64 `json:"size"`                   // of the checkpoint that was shown
	WitnessSize uint64 `json:"witness_size,omitempty"` // cosigned by the witness last
	Detail      string `json:"detail"`
}

// What of an Alarm: a witness has cosigned another history; a longer one; too
// few witnesses cosign, for too long.
const (
	AlarmForked      = "forked"
	AlarmShortened   = "shortened"
	AlarmUnwitnessed = "unwitnessed"
)

// A Verdict is the monitor's judgement of one action. It is a pure function of
// the events up to AsOf, the action and the action's time; all numbers are
// integers, so that replay is exact to the bit.
type Verdict struct {
	Risk         int      `json:"risk"`          // 0 to 100: of the agent, after this action
	ActionRisk   int      `json:"action_risk"`   // 0 to 100: of this action alone
	PPM          int64    `json:"p_ppm"`         // conformal p-value in millionths
	NCalibration int      `json:"n_calibration"` // benign runs behind it
	AsOf         uint64   `json:"as_of"`         // last sequence folded
	Baseline     uint64   `json:"baseline_version"`
	Model        string   `json:"model_version"`
	Decision     string   `json:"decision"` // pass, pause or suspend
	Score        int64    `json:"score"`    // sum of the points, in 1/65536
	Factors      []Factor `json:"factors,omitempty"`
}

// Decisions of a verdict.
const (
	Pass    = "pass"
	Pause   = "pause"
	Suspend = "suspend"
)

// A Factor is one evidence in a verdict. Bits, weights and points are fixed
// point in units of 1/65536; the points of all factors sum to the score.
type Factor struct {
	ID       string `json:"id"`
	Bits     int64  `json:"bits"`
	Weight   int64  `json:"weight"`
	Points   int64  `json:"points"`
	Observed string `json:"observed,omitempty"`
	Expected string `json:"expected,omitempty"`
	Support  int    `json:"support,omitempty"`
}

// Marshal encodes the body of an event. Bodies are plain structs that always
// encode.
func Marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("schemas: %T does not encode: %v", v, err))
	}
	return b
}

// Keys that a Rotation can be of.
const (
	RotateCapability = "capability"
	RotateOperator   = "operator" // that signs accounts
	RotateAccounts   = "accounts" // those that sign agents' users on NATS
	RotateCA         = "ca"       // the authority that signs certificates
	RotateLedger     = "ledger"   // that signs the ledger's checkpoints
	RotateWeights    = "weights"  // that signs the monitor's weights
	RotateContents   = "contents" // under which the ledger's keys of agents are wrapped
)

// Rotation is the body of policy.rotated: which key signs from that event on.
type Rotation struct {
	Key         string    `json:"key,omitempty"`         // what it is for: RotateCapability where it says nothing
	KeyID       string    `json:"kid"`                   // RFC 7638 thumbprint; of an authority, the SHA-256 of its certificate; of the ledger, a note verifier key; of weights, its name and hash
	Replaced    string    `json:"replaced"`              // the key that signed before
	Until       time.Time `json:"until,omitzero"`        // how long what that signed can verify
	Compromised bool      `json:"compromised,omitempty"` // nothing signed before verifies any more
}
