package keys

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/schemas"
)

// A Role is one NATS user of the control plane. No service has two jobs under
// one user, also where all run in one process.
type Role string

const (
	RoleInit     Role = "init"    // makes the log and its consumers; used at start alone
	RoleRepair   Role = "repair"  // republishes a lost tail of the log; used then alone
	RoleIntake   Role = "intake"  // takes what agents publish
	RoleLedger   Role = "ledger"  // follows the log, and raises alarms in it
	RoleRelease  Role = "release" // answers agents, in CONTROL
	RoleDeliver  Role = "deliver" // delivers to agents: the one user of DELIVER
	RoleMonitor  Role = "monitor"
	RoleIssuer   Role = "issuer"   // in CONTROL
	RoleSystem   Role = "system"   // the issuer's, in SYS
	RoleMemory   Role = "memory"   // the memory service's bucket, in MEMORY
	RoleOperator Role = "operator" // who has the data folder

	RoleCallout Role = "callout" // the issuer's, in AUTH: says who may connect

	RoleInitMemory Role = "init-memory" // makes the bucket; used at start alone
)

// InboxPrefix is where a role awaits its answers; nobody else may listen
// there.
func InboxPrefix(role Role) string { return "_INBOX_" + string(role) }

// MemoryBucket is the key-value bucket of agents' memories.
const MemoryBucket = "MEMORY"

// rights are one user's: what it may publish and subscribe, beside its own
// inbox.
type rights struct {
	account string
	pub     []string
	sub     []string
}

// inboxOf gives the right to answer somebody.
func inboxOf(roles ...Role) []string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = InboxPrefix(r) + ".>"
	}
	return out
}

// kinds gives the right to append kinds of event, for whatever agent.
func kinds(ks ...schemas.Kind) []string {
	out := make([]string, len(ks))
	for i, k := range ks {
		out[i] = schemas.EventSubject("*", k)
	}
	return out
}

// asked gives the right to ask services on the subjects that named operators
// may ask on.
func asked(services ...string) []string {
	var out []string
	for _, subject := range schemas.RoleAdmin.Commands() {
		for _, s := range services {
			if strings.HasPrefix(subject, "writ.ctl."+s+".") {
				out = append(out, subject)
			}
		}
	}
	return out
}

// follow gives the right to read the log, through direct gets and through one
// consumer that Init made.
func follow(consumer string) []string {
	const s = schemas.Stream
	return []string{
		"$JS.API.STREAM.INFO." + s,
		"$JS.API.DIRECT.GET." + s, "$JS.API.DIRECT.GET." + s + ".>",
		"$JS.API.CONSUMER.INFO." + s + "." + consumer,
		"$JS.API.CONSUMER.MSG.NEXT." + s + "." + consumer,
		"$JS.ACK." + s + "." + consumer + ".>",
	}
}

// roles is the whole of who may do what among the services.
var roles = map[Role]rights{
	RoleInit: {CONTROL, []string{"$JS.API.>"}, nil},
	RoleRepair: {CONTROL, []string{
		schemas.EventPrefix + ".>", "$JS.API.STREAM.INFO." + schemas.Stream,
		"$JS.API.DIRECT.GET." + schemas.Stream,
	}, nil},
	RoleIntake: {CONTROL, slices.Concat(
		kinds(schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied,
			schemas.ResponseAccepted, schemas.ResponseHeld, schemas.ResponseDenied),
		[]string{schemas.Assess},
		follow("intake"), inboxOf(RoleOperator, RoleIssuer)),
		[]string{schemas.OutPrefix + ".*.> intake", schemas.CtlHealth}},
	RoleLedger: {CONTROL, slices.Concat([]string{schemas.EventSubject(schemas.Fleet, schemas.LedgerAlarm), schemas.EventSubject(schemas.Fleet, schemas.PolicyRotated)}, follow("ledger"), inboxOf(RoleOperator, RoleIssuer, RoleMonitor)),
		[]string{"writ.ctl.ledger.>", schemas.CtlHealth}},
	RoleRelease: {CONTROL, slices.Concat([]string{"_R_.>"},
		kinds(schemas.MessageCancelled, schemas.MessageExpired, schemas.ReleaseMark), inboxOf(RoleOperator, RoleIssuer)),
		[]string{"writ.ctl.release.>", schemas.CtlHealth}},
	RoleDeliver: {DELIVER, []string{schemas.InPrefix + ".*.>"}, []string{"out._r.*"}},
	RoleMonitor: {CONTROL, slices.Concat(
		kinds(schemas.RiskChanged, schemas.RiskSignal, schemas.ReviewRequested),
		[]string{schemas.CtlRead}, // of the ledger, what EVENTS has forgotten
		follow("monitor"), inboxOf(RoleIntake, RoleOperator, RoleIssuer)),
		[]string{schemas.Assess, "writ.ctl.monitor.>", schemas.CtlHealth}},
	// What named operators ask comes to the issuer, which knows them and asks
	// on for them.
	RoleIssuer: {CONTROL, slices.Concat([]string{"_R_.>"}, asked("ledger", "monitor", "release"), []string{schemas.CtlHealth},
		kinds(schemas.AgentDeclared, schemas.AgentRemoved, schemas.AgentEnrolled, schemas.AgentPaused,
			schemas.AgentResumed, schemas.AgentSuspended, schemas.AgentKilled, schemas.AgentViolation, schemas.AgentCertified, schemas.AgentWarranted, schemas.AgentRenewed,
			schemas.TokenIssued, schemas.TokenRevoked, schemas.ReviewApproved, schemas.ReviewDenied, schemas.ReviewEndorsed, schemas.ReviewVouched,
			schemas.PolicyApplied, schemas.PolicyLockdown, schemas.PolicyLifted, schemas.PolicyRotated,
			schemas.AgentInvited, schemas.OperationEnded),
		follow("issuer"), inboxOf(RoleOperator, RoleIssuer)),
		[]string{schemas.OutPrefix + ".*.token.>", schemas.OpPrefix + ".*.>", "writ.ctl.issuer.>", schemas.CtlHealth}},
	RoleSystem: {SYS, []string{
		"$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.*.KICK",
		"$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.*.CONNZ", "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
		"$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE",
	}, []string{"$SYS.ACCOUNT.*.DISCONNECT", "$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE"}},
	// What is stored in the bucket is an agent's choice, and the server checks
	// no reply subject: JetStream publishes it wherever a reader says. So it
	// is in an account of its own, where nobody else is.
	RoleInitMemory: {MEMORY, []string{"$JS.API.>", "$KV." + MemoryBucket + ".>"}, nil},
	RoleMemory: {MEMORY, []string{
		"$KV." + MemoryBucket + ".>",
		"$JS.API.STREAM.INFO.KV_" + MemoryBucket,
		"$JS.API.DIRECT.GET.KV_" + MemoryBucket, "$JS.API.DIRECT.GET.KV_" + MemoryBucket + ".>",
		"$JS.API.CONSUMER.CREATE.KV_" + MemoryBucket + ".>", "$JS.API.CONSUMER.DELETE.KV_" + MemoryBucket + ".>",
		"$JS.FC.KV_" + MemoryBucket + ".>",
	}, nil},
	RoleOperator: {CONTROL, []string{"writ.ctl.>"}, nil},
	RoleCallout:  {AUTH, []string{"$SYS._INBOX.>"}, []string{CalloutSubject + " callout"}},
}

// CalloutSubject is where the server asks who may connect.
const CalloutSubject = "$SYS.REQ.USER.AUTH"

// permissions are a role's as the server enforces them. Every list has an
// entry, so that none is empty: an empty list would mean everything.
func (r rights) permissions(role Role) jwt.Permissions {
	var p jwt.Permissions
	p.Pub.Allow.Add(r.pub...)
	p.Sub.Allow.Add(InboxPrefix(role) + ".>")
	p.Sub.Allow.Add(r.sub...)
	return p
}

// digest is of all that stands in the users and static accounts, their keys
// aside: a folder that was made for other rights is upgraded.
func digest() string {
	type made struct {
		Account     *jwt.AccountClaims
		Permissions map[Role]jwt.Permissions
	}
	all := map[string]made{}
	for _, name := range static {
		m := made{staticAccount(name, name, name), map[Role]jwt.Permissions{}}
		for role, r := range roles {
			if r.account == name {
				m.Permissions[role] = r.permissions(role)
			}
		}
		all[name] = m
	}
	b, err := json.Marshal(all) // sorts keys
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
