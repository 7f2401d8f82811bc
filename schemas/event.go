package schemas

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
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
	AgentCertified Kind = "agent.certified"
	AgentRenewed   Kind = "agent.renewed"
	AgentWarranted Kind = "agent.warranted"
	TokenIssued    Kind = "token.issued"
	TokenRevoked   Kind = "token.revoked"
	ReviewApproved Kind = "review.approved"
	ReviewDenied   Kind = "review.denied"
	ReviewEndorsed Kind = "review.endorsed" // the first of two approvals
	ReviewVouched  Kind = "review.vouched"  // for an action that suspended its agent; it stays cancelled
	PolicyApplied  Kind = "policy.applied"
	PolicyLockdown Kind = "policy.lockdown" // nobody acts until it is lifted
	PolicyLifted   Kind = "policy.lifted"
	PolicyRotated  Kind = "policy.rotated" // another key signs capabilities
	AgentInvited   Kind = "agent.invited"  // a join token was made
	OperationEnded Kind = "operation.ended"
	// monitor
	RiskChanged     Kind = "risk.changed"
	RiskSignal      Kind = "risk.signal" // somebody outside said something about an agent
	ReviewRequested Kind = "review.requested"
	// ledger
	LedgerAlarm Kind = "ledger.alarm"
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
	fReserve
	fAct
)

// A shape says which headers a kind must carry, and which it may.
type shape struct{ must, may field }

const (
	actionMust = fTrace | fOperation | fAction | fDigest
	actionMay  = fContentType | fTo | fJTI | fRequest | fReply | fExpires | fMsgID | fRef | fVerdict | fRisk | fLock | fCode | fReason | fEmpty | fReserve
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
	AgentCertified:   {0, controlMay},
	AgentRenewed:     {fExpires, controlMay | fExpires},
	AgentWarranted:   {fReason | fActor, controlMay},
	TokenIssued:      {fOperation | fJTI | fTrace, controlMay | fAct},
	TokenRevoked:     {fJTI | fReason, controlMay},
	ReviewApproved:   {fRef, controlMay},
	ReviewDenied:     {fRef | fReason, controlMay},
	ReviewEndorsed:   {fRef | fActor, controlMay},
	ReviewVouched:    {fRef | fActor | fReason | fDigest, controlMay},
	PolicyApplied:    {0, controlMay},
	PolicyLockdown:   {fReason, controlMay},
	PolicyLifted:     {fReason, controlMay},
	PolicyRotated:    {fReason | fActor, controlMay},
	AgentInvited:     {fJTI | fExpires, controlMay | fExpires},
	OperationEnded:   {fOperation | fReason, controlMay},
	RiskChanged:      {fVerdict | fRisk, controlMay},
	RiskSignal:       {fActor | fReason, controlMay},
	ReviewRequested:  {fRef, controlMay},
	LedgerAlarm:      {fReason, controlMay},
}

// A HeaderRule is the headers that an event of one kind must and may carry
// beside the five of CloudEvents.
type HeaderRule struct {
	Kind      Kind
	Must, May []string
}

// HeaderRules is the codec's table, sorted by kind.
func HeaderRules() []HeaderRule {
	rules := make([]HeaderRule, 0, len(kinds))
	for k, sh := range kinds {
		r := HeaderRule{Kind: k}
		for _, f := range fieldNames {
			switch {
			case sh.must&f.bit != 0:
				r.Must = append(r.Must, f.name)
			case (sh.may|fEmpty)&f.bit != 0:
				r.May = append(r.May, f.name)
			}
		}
		rules = append(rules, r)
	}
	slices.SortFunc(rules, func(a, b HeaderRule) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
	return rules
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
	Reserve     int64         // language-model tokens that the action will use at most, as its sender says
	Latency     time.Duration // from request to answer, microseconds on the wire
	Lock        Lock          // the lock that this event itself puts on Agent
	Verdict     []byte        // JSON of a Verdict, parsed by those who need it
	Risk        int           // 0 to 100: of the agent, as Verdict says; only with a Verdict
	Final       bool          // an answer's last part
	Actor       string        // the operator, agent or service that caused it
	Act         []string      // of a grant: the agents that handed it on, the newest first

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
