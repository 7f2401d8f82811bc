package schemas

import (
	"time"
)

// The operators' interface: requests over NATS inside CONTROL, JSON both ways,
// errors as refusals in headers. Only operators' users may publish there.
const (
	CtlApply    = "writ.ctl.issuer.apply"    // ApplyRequest → ApplyReply
	CtlEnroll   = "writ.ctl.issuer.enroll"   // EnrollRequest → EnrollReply
	CtlIssue    = "writ.ctl.issuer.issue"    // IssueRequest → IssueReply
	CtlLock     = "writ.ctl.issuer.lock"     // LockRequest → Receipt
	CtlReview   = "writ.ctl.issuer.review"   // ReviewRequest → ReviewReply
	CtlReviews  = "writ.ctl.issuer.reviews"  // PageRequest → ReviewsReply
	CtlStatus   = "writ.ctl.issuer.status"   // StatusRequest → StatusReply
	CtlLockdown = "writ.ctl.issuer.lockdown" // LockdownRequest → LockdownReply
	CtlRotate   = "writ.ctl.issuer.rotate"   // RotateRequest → RotateReply
	CtlWarrant  = "writ.ctl.issuer.warrant"  // WarrantRequest → WarrantReply
	CtlTokens   = "writ.ctl.issuer.tokens"   // TokensRequest → TokensReply
	CtlRevoke   = "writ.ctl.issuer.revoke"   // RevokeRequest → RevokeReply
	CtlBudgets  = "writ.ctl.release.budgets" // BudgetsRequest → BudgetsReply
	CtlLocks    = "writ.ctl.release.locks"   // LocksRequest → LocksReply
	CtlJWKS     = "writ.ctl.issuer.jwks"     // nothing → KeySet, a JWK Set
	CtlHead     = "writ.ctl.ledger.head"     // HeadRequest → Head
	CtlVerify   = "writ.ctl.ledger.verify"   // nothing → VerifyReply
	CtlProve    = "writ.ctl.ledger.prove"    // ProveRequest → Proof
	CtlRead     = "writ.ctl.ledger.read"     // ReadRequest → ReadReply
	CtlShow     = "writ.ctl.ledger.show"     // ShowRequest → ShowReply
	CtlErase    = "writ.ctl.ledger.erase"    // EraseRequest → EraseReply
	CtlBackup   = "writ.ctl.ledger.backup"   // BackupRequest → BackupReply
	CtlPrune    = "writ.ctl.ledger.prune"    // PruneRequest → PruneReply
	CtlHandOver = "writ.ctl.ledger.handover" // HandOverRequest → HandOverReply
	CtlRisk     = "writ.ctl.monitor.risk"    // RiskRequest → RiskReply
	CtlRisks    = "writ.ctl.monitor.risks"   // RisksRequest → RisksReply
	CtlShadow   = "writ.ctl.monitor.shadow"  // ShadowRequest → ShadowReply
	CtlSignal   = "writ.ctl.monitor.signal"  // SignalRequest → SignalReply
	CtlToken    = "writ.ctl.monitor.token"   // TokenRequest → TokenReply
	CtlHealth   = "writ.ctl.health"          // nothing → Health, one answer of each service
)

// ApplyRequest declares the whole fleet. Without Prune, principals that are
// missing are an error that names them; with it they are killed and removed.
type ApplyRequest struct {
	TrustDomain string         `json:"trust_domain"`
	Digest      string         `json:"digest"` // SHA-256 of the file, hex
	Principals  []Principal    `json:"principals"`
	Guardrails  string         `json:"guardrails,omitempty"` // Cedar policies; none where empty
	Signals     []SignalSource `json:"signals,omitempty"`    // with Add none: those that are there stay
	DryRun      bool           `json:"dry_run,omitempty"`
	Prune       bool           `json:"prune,omitempty"`
	// Add declares principals beside those that are there, and leaves the
	// trust domain and all others as they are.
	Add   bool   `json:"add,omitempty"`
	Actor string `json:"actor"`
}

// Change is one difference between the fleet and the file.
type Change struct {
	ID     string `json:"id"`
	Action string `json:"action"` // add, change or remove
	Detail string `json:"detail,omitempty"`
}

// By is where the request names who asks; so have all that do.
func (r *ApplyRequest) By() *string    { return &r.Actor }
func (r *EnrollRequest) By() *string   { return &r.Actor }
func (r *IssueRequest) By() *string    { return &r.Actor }
func (r *LockRequest) By() *string     { return &r.Actor }
func (r *RevokeRequest) By() *string   { return &r.Actor }
func (r *ReviewRequest) By() *string   { return &r.Actor }
func (r *LockdownRequest) By() *string { return &r.Actor }
func (r *RotateRequest) By() *string   { return &r.Actor }
func (r *WarrantRequest) By() *string  { return &r.Actor }

type ApplyReply struct {
	Changes []Change `json:"changes"`
}

// EnrollRequest makes an identity, or, with JoinTTL, a token with which the
// principal registers a key of its own.
type EnrollRequest struct {
	ID             string `json:"id"`
	JoinTTLSeconds int64  `json:"join_ttl_seconds,omitempty"` // 1 to 86,400
	Actor          string `json:"actor"`
	CertificateRequest
}

// JoinRequest, over out.token.join, is made with the credentials that a join
// token holds: once.
type JoinRequest struct {
	ID        string `json:"id"`         // of the join token
	PublicKey string `json:"public_key"` // user NKey, whose seed stays with the sender
	CertificateRequest
}

// EnrollReply holds the content of a .creds file: it is a secret.
type EnrollReply struct {
	AgentID   string `json:"agent_id"`
	PublicKey string `json:"public_key"`
	Creds     string `json:"creds"`
	// JoinID and ExpiresAt are a join token's: Creds then may do nothing but
	// join.
	JoinID    string     `json:"join_id,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	CertificateReply
}

// CertificateRequest asks for a certificate (X.509-SVID) beside what else is
// asked for. Of the request nothing counts but its public key.
type CertificateRequest struct {
	CSR            string `json:"csr,omitempty"`              // PKCS #10, PEM; none is asked for where empty
	SVIDTTLSeconds int64  `json:"svid_ttl_seconds,omitempty"` // an hour where 0, a day at most
	// CertificateBound makes the capability that is asked for one that counts
	// with this very certificate alone (RFC 8705), and what it is refreshed to;
	// without CSR with the one that the asker's connection shows over HTTPS.
	CertificateBound bool `json:"certificate_bound,omitempty"`
}

// CertificateReply holds what was asked for: the certificate, and by whom the
// server is trusted, both PEM and public.
type CertificateReply struct {
	SVID   string `json:"svid,omitempty"`
	Bundle string `json:"bundle,omitempty"`
}

// IssueRequest asks for a capability. Over out.token.issue, Actor and Creds
// are ignored: the stamped sender is the actor.
type IssueRequest struct {
	AgentID        string   `json:"agent_id"`
	OperationID    string   `json:"operation_id"`
	Scope          []string `json:"scope,omitempty"`
	Tools          []string `json:"tools,omitempty"`
	ForbiddenTools []string `json:"forbidden_tools,omitempty"`
	TTLSeconds     int64    `json:"ttl_seconds,omitempty"` // the ceiling's where 0
	MaxTokens      int64    `json:"max_tokens,omitempty"`
	Task           string   `json:"task,omitempty"`
	Job            string   `json:"job,omitempty"`
	TraceID        string   `json:"trace_id,omitempty"`   // a new one where empty
	Audience       string   `json:"audience,omitempty"`   // the trust domain where empty
	PublicKey      string   `json:"public_key,omitempty"` // user NKey; a fresh one where empty
	// ParentOperation names the asker's own operation from whose capability
	// that of another agent is derived. It can be left out where the asker
	// holds one capability alone.
	ParentOperation string `json:"parent_operation,omitempty"`
	// DPoPKey, with an audience, is the RFC 7638 thumbprint of the key that whoever
	// shows the token to the service must prove to hold (RFC 9449, section 10);
	// where empty, that of the user NKey.
	DPoPKey string `json:"dpop_jkt,omitempty"`
	Actor   string `json:"actor,omitempty"`
	CertificateRequest
}

// IssueReply holds the capability and, where the issuer made the key, the
// content of a .creds file with its seed, which is a secret; otherwise the
// user JWT alone.
type IssueReply struct {
	Token       string    `json:"token"`
	JTI         string    `json:"jti"`
	AgentID     string    `json:"agent_id"`
	OperationID string    `json:"operation_id"`
	Scope       []string  `json:"scope"`
	ExpiresAt   time.Time `json:"expires_at"`
	TraceID     string    `json:"trace_id"`
	UserJWT     string    `json:"user_jwt"`
	Creds       string    `json:"creds,omitempty"`
	Seq         uint64    `json:"seq"`
	CertificateReply
}

// RefreshRequest, over out.token.refresh, renews the capability of one of the
// sender's operations: never wider, for the same key or for a new one.
type RefreshRequest struct {
	OperationID string `json:"operation_id"`
	PublicKey   string `json:"public_key,omitempty"`
	DPoPKey     string `json:"dpop_jkt,omitempty"` // as in IssueRequest; as it was where empty
	CertificateRequest
}

// ReleaseRequest, over out.token.release, gives a capability up.
type ReleaseRequest struct {
	OperationID string `json:"operation_id"`
}

type LockRequest struct {
	AgentID string `json:"agent_id"`
	Lock    Lock   `json:"lock"` // active resumes
	// Vouch, with active, names actions that suspended the agent, by their events,
	// and that the asker takes for harmless: they stay cancelled, and the monitor
	// learns them. Where two operators must approve, the agent stays as it is
	// until a second one asks for the same.
	Vouch  []uint64 `json:"vouch,omitempty"`
	Reason string   `json:"reason"`
	Actor  string   `json:"actor"`
}

// LockdownRequest locks the whole fleet, or lifts that.
type LockdownRequest struct {
	Lift   bool   `json:"lift,omitempty"`
	Reason string `json:"reason"`
	Actor  string `json:"actor"`
}

// LockdownReply says what it did, as a Receipt does for one agent.
type LockdownReply struct {
	Locked          bool     `json:"locked"`
	Seq             uint64   `json:"seq"`
	LastAcceptedSeq uint64   `json:"last_accepted_seq"`
	Cancelled       []uint64 `json:"cancelled"`
	ElapsedMS       float64  `json:"elapsed_ms"`
	Checkpoint      string   `json:"checkpoint"` // signed; covers Seq
	Partial         bool     `json:"partial"`
	Already         bool     `json:"already,omitempty"` // it was so since Seq, and nothing was logged
}

// RotateRequest has another key sign capabilities, or agents' users, from now
// on.
type RotateRequest struct {
	Key string `json:"key,omitempty"` // RotateCapability where it says nothing
	// Compromised says that a thief may have the keys: nothing that was signed
	// before verifies any more.
	Compromised bool   `json:"compromised,omitempty"`
	Reason      string `json:"reason"`
	Actor       string `json:"actor"`
}

// RotateReply says which key signs from the event on.
type RotateReply struct {
	Rotation
	Seq uint64 `json:"seq"`
}

// WarrantRequest asks for a death warrant: what kills an agent without the
// issuer.
type WarrantRequest struct {
	AgentID string `json:"agent_id"`
	Reason  string `json:"reason"`
	Actor   string `json:"actor"`
}

// WarrantReply holds the warrant: an account JWT without keys, imports and
// connections.
type WarrantReply struct {
	AgentID string `json:"agent_id"`
	Warrant
	JWT string `json:"jwt"`
	Seq uint64 `json:"seq"`
}

// A Receipt proves what a lock did. It is complete when release has worked
// through the log up to Seq.
type Receipt struct {
	AgentID           string   `json:"agent_id"`
	State             Lock     `json:"state"`
	Seq               uint64   `json:"seq"`
	LastAcceptedSeq   uint64   `json:"last_accepted_seq"`
	Cancelled         []uint64 `json:"cancelled"`
	ConnectionsClosed int      `json:"connections_closed"`
	ElapsedMS         float64  `json:"elapsed_ms"`
	Checkpoint        string   `json:"checkpoint"` // signed; covers Seq
	Nodes             []string `json:"nodes"`      // servers that acknowledged
	Partial           bool     `json:"partial"`    // a server did not
	Revoked           []string `json:"revoked"`    // capabilities that it ended, those derived from the agent's included
	Effect            string   `json:"effect,omitempty"`
	Already           bool     `json:"already,omitempty"`  // it was so since Seq, and nothing was logged
	Vouched           []uint64 `json:"vouched,omitempty"`  // actions that suspended it, and that the monitor has now learned
	Endorsed          []uint64 `json:"endorsed,omitempty"` // those for which a second operator must vouch before it is resumed
}

// TokensRequest asks for the capabilities that count, sorted by agent and
// operation; After is what the page before gave as Next.
type TokensRequest struct {
	AgentID string `json:"agent_id,omitempty"`
	PageRequest
}

// TokenInfo tells of one capability.
type TokenInfo struct {
	JTI         string    `json:"jti"`
	AgentID     string    `json:"agent_id"`
	OperationID string    `json:"operation_id"`
	Scope       []string  `json:"scope"`
	ExpiresAt   time.Time `json:"expires_at"`
	Parent      string    `json:"parent"` // jti; empty where it was derived from none
	Act         []string  `json:"act"`    // agents that handed it on, the newest first
	Depth       int       `json:"depth"`
	IssuedBy    string    `json:"issued_by"`
	TraceID     string    `json:"trace_id"`
	Spent       *int64    `json:"spent"` // tokens used by the operation; null where release did not say
	MaxTokens   int64     `json:"max_tokens"`
	Notes       []string  `json:"notes,omitempty"` // what would have been refused but for observe or shadow mode
}

// TokensReply is a page; Next is the After of the following one.
type TokensReply struct {
	Tokens []TokenInfo `json:"tokens"`
	Next   string      `json:"next,omitempty"`
}

// RevokeRequest ends a capability and all that was derived from it.
type RevokeRequest struct {
	JTI    string `json:"jti"`
	Reason string `json:"reason"`
	Actor  string `json:"actor"`
}

// RevokeReply says what a revocation did, as the log has it. It is complete
// when release has worked through the log up to Seq.
type RevokeReply struct {
	JTI       string   `json:"jti"`
	AgentID   string   `json:"agent_id"`
	Seq       uint64   `json:"seq"`
	Revoked   []string `json:"revoked"`   // the capability first, then those derived from it
	Cancelled []uint64 `json:"cancelled"` // actions
	ElapsedMS float64  `json:"elapsed_ms"`
	Partial   bool     `json:"partial"` // release has not worked through the log in time
}

// BudgetsRequest asks release for budgets, 1,000 at most, once it has worked
// through the log up to After.
type BudgetsRequest struct {
	Of    []OperationRef `json:"of"`
	After uint64         `json:"after,omitempty"`
}

type OperationRef struct {
	AgentID     string `json:"agent_id"`
	OperationID string `json:"operation_id"`
}

// BudgetsReply holds a budget for each operation, in the order of the request.
type BudgetsReply struct {
	Budgets []BudgetInfo `json:"budgets"`
}

// BudgetInfo is an operation's budget, in language-model tokens.
type BudgetInfo struct {
	Spent int64 `json:"spent"` // settled, of its own actions
	Used  int64 `json:"used"`  // the same, with reservations and all that was derived from it
	Free  int64 `json:"free"`  // that may be reserved or delegated now
}

// LocksRequest asks release for the locks that are on, by agent, once it has
// worked through the log up to Through.
type LocksRequest struct {
	After   string `json:"after,omitempty"` // the agent that the page before ended with
	Through uint64 `json:"through,omitempty"`
}

// LocksReply is a page of the locks that are on. Release folds the whole log,
// and so knows of those whose events have aged out of EVENTS.
type LocksReply struct {
	Lockdown string     `json:"lockdown,omitempty"` // why nobody may act
	Locks    []LockInfo `json:"locks"`
	More     bool       `json:"more,omitempty"`
}

// LockInfo says which lock an agent is under, since which event, and why.
type LockInfo struct {
	AgentID string `json:"agent_id"`
	Lock    Lock   `json:"lock"`
	Seq     uint64 `json:"seq"`
	Reason  string `json:"reason"`
}

type ReviewRequest struct {
	Seq     uint64 `json:"seq"`
	Approve bool   `json:"approve"`
	Reason  string `json:"reason,omitempty"`
	Actor   string `json:"actor"`
}

type ReviewReply struct {
	Seq     uint64 `json:"seq"`
	AgentID string `json:"agent_id"`
	Action  string `json:"action"`
	State   string `json:"state"` // approved, denied, or endorsed: a second operator must approve
}

type PageRequest struct {
	Limit int    `json:"limit,omitempty"` // 1 to 1,000; 100 where 0
	After string `json:"after,omitempty"`
}

type Review struct {
	Seq       uint64    `json:"seq"`
	AgentID   string    `json:"agent_id"`
	Operation string    `json:"operation_id"`
	Action    string    `json:"action"`
	Risk      int       `json:"risk"`
	Factors   []Factor  `json:"factors"`
	Time      time.Time `json:"time"`
	Digest    string    `json:"payload_sha256"`
	TwoPerson bool      `json:"two_person,omitempty"`  // two operators must approve
	Endorsed  string    `json:"endorsed_by,omitempty"` // who did so first
	Paused    bool      `json:"paused,omitempty"`      // held for the agent was paused before, whatever the risk
}

type ReviewsReply struct {
	Reviews []Review `json:"reviews"`
}

type StatusRequest struct {
	AgentID string `json:"agent_id,omitempty"`
	PageRequest
}

type AgentStatus struct {
	AgentID     string   `json:"agent_id"`
	Kind        string   `json:"kind"`
	State       Lock     `json:"state"`
	Reason      string   `json:"reason,omitempty"`
	Risk        int      `json:"risk"`
	LastSeq     uint64   `json:"last_seq"`
	Connections int      `json:"connections"`
	Operations  []string `json:"operations"` // with a live capability
	// Causes are actions that suspended it and that an operator can vouch for, by
	// their events, oldest first.
	Causes []uint64 `json:"causes,omitempty"`
	// SVIDExpires is when the newest certificate that the issuer gave it ends.
	SVIDExpires *time.Time `json:"svid_expires_at,omitempty"`
}

// An Expiry is a credential or key that ends soon, and how it is renewed.
type Expiry struct {
	Kind    string    `json:"kind"`
	ID      string    `json:"id"` // whose it is
	Expires time.Time `json:"expires_at"`
	Renew   string    `json:"renew"`
}

type StatusReply struct {
	Lockdown string        `json:"lockdown,omitempty"` // why nobody may act
	Agents   []AgentStatus `json:"agents"`
	Next     string        `json:"next,omitempty"`
	// Expiring are those that end soon, the first of them first: of all, with the
	// first page of all.
	Expiring []Expiry `json:"expiring,omitempty"`
}

// ShadowRequest asks where the weights that judge beside the monitor's own would
// have decided otherwise.
type ShadowRequest struct {
	AgentID string `json:"agent_id,omitempty"` // of all agents where empty
}

// ShadowReply counts and lists since the monitor started; of what differs the newest
// 256, oldest first.
type ShadowReply struct {
	Model       string             `json:"model,omitempty"` // version of the shadow; empty where none judges
	Judged      uint64             `json:"judged"`          // verdicts compared
	Differ      uint64             `json:"differ"`          // of them
	Differences []ShadowDifference `json:"differences"`
}

// A ShadowDifference is a verdict that the shadow would have made another lock of.
type ShadowDifference struct {
	Seq        uint64    `json:"seq"` // of the event
	Time       time.Time `json:"time"`
	AgentID    string    `json:"agent_id"`
	Action     string    `json:"action"`
	Risk       int       `json:"risk"`
	Lock       Lock      `json:"lock,omitempty"` // none where it passed
	ShadowRisk int       `json:"shadow_risk"`
	ShadowLock Lock      `json:"shadow_lock,omitempty"`
}

type RiskRequest struct {
	AgentID string `json:"agent_id"`
}

// RisksRequest asks for the present risk of several agents, 10,000 at most.
type RisksRequest struct {
	AgentIDs []string `json:"agent_ids"`
}

// RisksReply holds an entry for each agent of which the monitor knows, in the
// order of the request.
type RisksReply struct {
	Risks []AgentRisk `json:"risks"`
}

// AgentRisk is an agent's present risk, and the newest action behind it.
type AgentRisk struct {
	AgentID string `json:"agent_id"`
	Risk    int    `json:"risk"`
	Seq     uint64 `json:"seq"`
}

// MaxReason is how many bytes an operator's reason may have.
const MaxReason = 500

// RiskReply explains an agent's present risk.
type RiskReply struct {
	AgentID string    `json:"agent_id"`
	Risk    int       `json:"risk"`
	Seq     uint64    `json:"seq"` // the action that set it
	Time    time.Time `json:"time"`
	Action  string    `json:"action"`
	Verdict
	History []RiskPoint `json:"history,omitempty"` // oldest first, bounded
	// Causes are actions that suspended the agent and that an operator can vouch
	// for, by their events, oldest first.
	Causes  []uint64     `json:"causes,omitempty"`
	Signals []RiskSaying `json:"signals,omitempty"` // what counts of what is said from outside
}

// A RiskSaying is a signal from outside that counts at present.
type RiskSaying struct {
	Source string    `json:"source"`
	Event  string    `json:"event"`
	Reason string    `json:"reason"`
	Points int       `json:"points"` // of risk when it was said; below 0 where it speaks for the agent
	Now    int       `json:"now"`    // what is left of them, without sign
	Time   time.Time `json:"time"`   // when it was said
}

type RiskPoint struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Risk int       `json:"risk"`
}

type Health struct {
	Service string `json:"service"`
	OK      bool   `json:"ok"`
	Seq     uint64 `json:"seq"` // last event folded
	Error   string `json:"error,omitempty"`
	Warning string `json:"warning,omitempty"` // it works, and something should be looked into
}
