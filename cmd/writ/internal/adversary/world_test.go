package adversary

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// The world of the matrix: principals of which each is attacker and victim, a
// mailer who talks to all of them, and a reflector that all may call.
var (
	agents   = []string{"alice", "bob", "carol"}
	services = []string{"shop", "vault"}
	victims  = slices.Concat(agents, services)
)

func worldFleet() string {
	var b strings.Builder
	b.WriteString("trust_domain: world.example\nagents:\n")
	// The attackers' thresholds are as high as they go: the matrix tests what
	// stops an attack, and not the lock that it earns.
	for _, id := range agents {
		fmt.Fprintf(&b, "  - id: %s\n    thresholds: {pause: 100, suspend: 100}\n    rate: {per_second: 100000, burst: 100000}\n", id)
		b.WriteString("    ceiling:\n      scope: [memory:get, memory:put, memory:list, memory:delete]\n      tools: [reflect]\n      forbidden_tools: [bash]\n      ttl: 1h\n")
	}
	b.WriteString("  - id: mailer\n    rate: {per_second: 100000, burst: 100000}\n    ceiling:\n      ttl: 1h\n      scope: [memory:put")
	for _, id := range agents {
		fmt.Fprintf(&b, ", send:%s, ask:%s", id, id)
	}
	b.WriteString("]\n      tools: [shop, vault]\nservices:\n")
	for _, id := range append([]string{"reflect"}, services...) {
		fmt.Fprintf(&b, "  - id: %s\n    serves: [call:%s]\n    tools: {%s: {class: read, description: \"%s\"}}\n", id, id, id, id)
	}
	return b.String()
}

// A world is a rig with everybody connected.
type world struct {
	*rig
	mailer  *nats.Conn
	mail    tap // what the mailer receives: answers to its requests
	inbox   map[string]*tap
	conn    map[string]*nats.Conn
	reflect impostors
	asked   map[string]*schemas.Event // an unanswered request at each victim
	roles   map[keys.Role]*tap        // what arrives at a service's inboxes
}

// impostors are callers whose canary names another than the stamped sender.
type impostors struct {
	mu  sync.Mutex
	got []string
}

const (
	canary = "canary:" // …<attacker>:<number>
	secret = "secret-of-"
)

func secretOf(id string) string { return secret + id + "-" }

func newWorld(t *testing.T) *world {
	w := &world{rig: start(t, worldFleet()), inbox: map[string]*tap{}, conn: map[string]*nats.Conn{},
		asked: map[string]*schemas.Event{}, roles: map[keys.Role]*tap{}}
	for _, id := range services { // a service's thresholds, as high as an agent's
		call[schemas.ApplyReply](w.rig, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "rig", Principals: []schemas.Principal{{ID: id, Kind: schemas.KindService,
			Serves: []string{"call:" + id}, Tools: map[string]schemas.Tool{id: {Class: "read"}}, Thresholds: &schemas.Thresholds{Pause: 100, Suspend: 100}}}})
	}
	w.serve(w.client(w.enroll("reflect")), "in.call.reflect", w.reflected)
	for _, id := range victims {
		w.conn[id] = w.client(w.credsOf(id))
		w.inbox[id] = &tap{}
		w.inbox[id].listen(w.conn[id], "", "in.>", "_INBOX.>")
		must(t, w.conn[id].Flush())
	}
	for _, id := range agents {
		_, refusal := ask(t, w.conn[id], &nats.Msg{Subject: "out.op.memory.put.diary.today", Data: []byte(secretOf(id) + "memory")})
		if refusal != nil {
			t.Fatal(refusal)
		}
	}
	g := w.issue(schemas.IssueRequest{AgentID: "mailer", OperationID: "mail", Tools: []string{"shop", "vault"},
		Scope: []string{"send:alice", "send:bob", "send:carol", "ask:alice", "ask:bob", "ask:carol", "memory:put"}})
	w.mailer = w.client(g.Creds)
	w.mail.listen(w.mailer, "", "_INBOX.>")
	for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer, keys.RoleMemory, keys.RoleOperator, keys.RoleRelease, keys.RoleDeliver} {
		w.roles[role] = &tap{}
		nc := w.role(role)
		w.roles[role].listen(nc, "", keys.InboxPrefix(role)+".>")
		must(t, nc.Flush())
	}
	w.post("first")
	for _, id := range victims {
		until(t, id+" was asked", func() bool { return len(w.inbox[id].holding(secretOf(id)+"asked")) > 0 })
	}
	for _, e := range w.log() {
		if e.Kind == schemas.MessageAccepted && e.Agent == "mailer" && slices.Contains(victims, e.To) && e.Action.Request() {
			w.asked[e.To] = e
		}
	}
	return w
}

func (w *world) credsOf(id string) string {
	if slices.Contains(services, id) {
		return w.enroll(id)
	}
	return w.issue(schemas.IssueRequest{AgentID: id, OperationID: "op", Tools: []string{"reflect"}, ForbiddenTools: []string{"bash"},
		Scope: []string{"memory:get", "memory:put", "memory:list", "memory:delete"}}).Creds
}

// reflected gives back what was called with, and holds the sender that release
// names against the one who wrote the canary.
func (w *world) reflected(m *nats.Msg) {
	if who, found := attackerIn(m.Data); found && who != m.Header.Get(schemas.HeaderFrom) {
		w.reflect.mu.Lock()
		w.reflect.got = append(w.reflect.got, fmt.Sprintf("%s called in the name of %s: %s", who, m.Header.Get(schemas.HeaderFrom), m.Data))
		w.reflect.mu.Unlock()
	}
	_ = m.Respond(m.Data)
}

// attackerIn finds who wrote a canary.
func attackerIn(body []byte) (string, bool) {
	_, rest, found := strings.Cut(string(body), canary)
	who, _, _ := strings.Cut(rest, ":")
	return who, found
}

// post makes the mailer send everybody something secret, and ask everybody
// something that stays unanswered.
func (w *world) post(round string) {
	w.t.Helper()
	for _, id := range victims {
		what := "ask." + id
		if slices.Contains(services, id) {
			what = "call." + id
		} else {
			_, refusal := ask(w.t, w.mailer, &nats.Msg{Subject: "out.mail.send." + id, Data: []byte(secretOf(id) + "sent-" + round)})
			if refusal != nil {
				w.t.Fatal(refusal)
			}
		}
		must(w.t, w.mailer.PublishMsg(&nats.Msg{Subject: "out.mail." + what, Reply: "_INBOX.mailer." + id,
			Header: nats.Header{schemas.HeaderTTL: {"30m"}}, Data: []byte(secretOf(id) + "asked-" + round)}))
	}
	must(w.t, w.mailer.Flush())
}

// An attacker is one connection with what it may do and whose it is.
type attacker struct {
	id  string // the principal or role whose credentials these are
	as  string // identity, operation, service, and what was stolen
	nc  *nats.Conn
	ear *tap
	n   int
	// own is an action of its own that is answered with its own words; ""
	// where it has none.
	own   string
	creds func() string // fresh ones
}

// mark is a canary of its own.
func (a *attacker) mark() []byte {
	a.n++
	return fmt.Appendf(nil, "%s%s:%s-%d", canary, a.id, strings.ReplaceAll(a.as, " ", "-"), a.n)
}

// words are a canary in a form that a's own action is answered with.
func (a *attacker) words() []byte {
	if a.own == "out.token.release" { // the refusal names the operation
		return schemas.Marshal(schemas.ReleaseRequest{OperationID: string(a.mark())})
	}
	return a.mark()
}

// attackersOf are all that somebody can be who has hijacked a principal:
// honest credentials of each kind, users signed with a stolen operation key, and
// users who may do everything inside the account, as if no template held.
func (w *world) attackersOf(id string) (all []*attacker) {
	add := func(as, own string, creds func() string) {
		a := &attacker{id: id, as: as, ear: &tap{}, own: own, creds: creds}
		w.join(a)
		all = append(all, a)
	}
	own := "out.op.call.reflect"
	if slices.Contains(services, id) {
		own = "out.token.release"
		add("service", own, func() string { return w.enroll(id) })
	} else {
		add("identity", "out.token.release", func() string { return w.enroll(id) })
		add("operation", own, func() string { return w.credsOf(id) })
		add("stolen operation key", own, func() string { return w.stolenOperation(id) })
	}
	add("all of its account", own, func() string { return w.widened(id) })
	return all
}

// stolenOperation claims every scope there could be, for two operations.
func (w *world) stolenOperation(id string) string {
	return userOf(w.t, w.account(id), w.key(id, keys.OperationKey), func(c *jwt.UserClaims) {
		c.SetScoped(true)
		c.Tags.Add("op:op", "op:mail", "deny:_none")
		for _, v := range victims {
			c.Tags.Add("scope:send."+v, "scope:ask."+v, "scope:call."+v, "scope:call.reflect", "scope:call.bash")
		}
	})
}

// join connects an attacker. One whom its risk had locked out is let in again
// by an operator, for what is tested is what stops the next attack.
func (w *world) join(a *attacker) {
	w.t.Helper()
	for try := 1; ; try++ {
		w.pardon(a.id)
		nc, err := w.dial(a.creds())
		if err == nil {
			a.nc = nc
			return
		}
		if try == 20 {
			w.t.Fatalf("%s of %s does not connect: %v", a.as, a.id, err)
		}
	}
}

// pardon resumes a principal that is locked.
func (w *world) pardon(id string) {
	w.t.Helper()
	status := call[schemas.StatusReply](w.rig, schemas.CtlStatus, schemas.StatusRequest{AgentID: id})
	if len(status.Agents) == 1 && status.Agents[0].State != schemas.Active {
		call[schemas.Receipt](w.rig, schemas.CtlLock, schemas.LockRequest{AgentID: id, Lock: schemas.Active, Reason: "the test goes on", Actor: "rig"})
	}
}

// breaches are the effects of successful attacks that can be seen now.
func (w *world) breaches(attackers []*attacker) []string {
	w.t.Helper()
	var out []string
	note := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for id, inbox := range w.inbox {
		for _, got := range inbox.holding(canary) {
			if who, _ := attackerIn([]byte(got)); who != id { // what one sends oneself is no attack
				note("%s received %.300s", id, got)
			}
		}
	}
	for _, got := range w.mail.holding(canary) {
		note("the mailer received %.300s", got)
	}
	for role, inbox := range w.roles {
		for _, got := range inbox.holding(canary) {
			if strings.Contains(got, "ce-type:") {
				continue // an event of the log, which services read
			}
			note("the service %s received %.300s", role, got)
		}
	}
	w.reflect.mu.Lock()
	out = append(out, w.reflect.got...)
	w.reflect.mu.Unlock()
	for _, a := range attackers {
		for _, id := range victims {
			if id == a.id {
				continue
			}
			for _, got := range a.ear.holding(secretOf(id)) {
				note("%s (%s) overheard %s: %.300s", a.id, a.as, id, got)
			}
		}
	}
	return append(out, w.traces(attackers)...)
}

// traces are what only a successful attack leaves in the log.
func (w *world) traces(attackers []*attacker) []string {
	w.t.Helper()
	var out []string
	for _, e := range w.log() {
		who, marked := attackerIn(e.Data)
		switch {
		case e.Actor != "" && e.Actor != "root/rig" && e.Actor != "writ" && e.Actor != "root/writ" && !slices.Contains(agents, e.Actor) && e.Kind != schemas.AgentViolation:
			out = append(out, fmt.Sprintf("%d: %s of %s by %q", e.Seq, e.Kind, e.Agent, e.Actor))
		case lockKinds[e.Kind] && e.Actor != "root/rig",
			// A lock by verdict is one's own fault, and nobody else's.
			e.Lock != "" && !slices.ContainsFunc(attackers, func(a *attacker) bool { return a.id == e.Agent }):
			out = append(out, fmt.Sprintf("%d: %s puts the lock %q on %s: %s", e.Seq, e.Kind, e.Lock, e.Agent, e.Reason))
		case marked && e.Kind == schemas.MessageAccepted && (e.Agent != who || e.To != "reflect" && e.To != schemas.MemoryID):
			out = append(out, fmt.Sprintf("%d: accepted for %s from %s, with the canary of %s", e.Seq, e.To, e.Agent, who))
		case marked && e.Kind == schemas.ResponseAccepted && e.Agent != "reflect" && e.Agent != schemas.MemoryID:
			out = append(out, fmt.Sprintf("%d: an answer of %s to %s, with the canary of %s", e.Seq, e.Agent, e.To, who))
		}
	}
	return out
}

var lockKinds = map[schemas.Kind]bool{schemas.AgentPaused: true, schemas.AgentSuspended: true, schemas.AgentKilled: true,
	schemas.AgentResumed: true, schemas.AgentRemoved: true, schemas.TokenRevoked: true, schemas.ReviewApproved: true}

// unharmed demands that everybody but the attacker still has what was theirs.
func (w *world) unharmed(attacker string) {
	w.t.Helper()
	for _, id := range agents {
		if id == attacker {
			continue
		}
		answer, refusal := ask(w.t, w.conn[id], &nats.Msg{Subject: "out.op.memory.get.diary.today"})
		if refusal != nil || string(answer.Data) != secretOf(id)+"memory" {
			w.t.Errorf("the memory of %s holds %q, %v", id, answer.Data, refusal)
		}
		works(w.t, w.conn[id], "out.op.call.reflect")
	}
	for _, id := range victims { // whoever was asked can still answer
		if id == attacker {
			continue
		}
		token := schemas.ResponseToken(w.asked[id].Request, w.asked[id].Seq)
		must(w.t, w.conn[id].Publish("out._r."+token, []byte("the true answer of "+id)))
		until(w.t, id+" answered", func() bool { return len(w.mail.holding("the true answer of "+id)) > 0 })
	}
	w.sound()
}
