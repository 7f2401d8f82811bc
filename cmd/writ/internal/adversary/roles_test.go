package adversary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

// What each service of the control plane is there for. Whatever is not named
// here, its credentials must not be able to do, or one that is hijacked would
// be all of them.
type job struct {
	deliver   bool     // publish deliveries to agents
	answer    bool     // publish answers to agents
	operate   bool     // ask as an operator does
	push      bool     // give servers account JWTs
	provision bool     // make, change and delete streams
	appends   []string // beginnings of the kinds it appends
	memory    bool     // read and write agents' memories
	hear      []string // beginnings of the subjects it listens to
}

var jobs = map[keys.Role]job{
	keys.RoleInit:     {provision: true},
	keys.RoleRepair:   {appends: []string{""}},
	keys.RoleIntake:   {appends: []string{"message.accepted", "message.held", "message.denied", "response."}, hear: []string{"writ.ctl.health"}},
	keys.RoleLedger:   {hear: []string{"writ.ctl.ledger.", "writ.ctl.health"}},
	keys.RoleRelease:  {answer: true, appends: []string{"message.cancelled", "message.expired", "release.mark"}, hear: []string{"writ.ctl.health"}},
	keys.RoleDeliver:  {deliver: true, hear: []string{"out._r.*"}},
	keys.RoleMonitor:  {appends: []string{"risk.", "review.requested"}, hear: []string{schemas.Assess, "writ.ctl.monitor.", "writ.ctl.health"}},
	keys.RoleIssuer:   {answer: true, appends: []string{"agent.", "token.", "review.approved", "review.denied", "review.endorsed", "policy.", "operation."}, hear: []string{"writ.out.*.token.", "writ.op.*.", "writ.ctl.issuer.", "writ.ctl.health"}},
	keys.RoleSystem:   {push: true, hear: []string{"$SYS.ACCOUNT.*.DISCONNECT", "$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE"}},
	keys.RoleMemory:   {memory: true},
	keys.RoleOperator: {operate: true},
	// In an account where there is nothing but the bucket.
	keys.RoleInitMemory: {provision: true, memory: true},
}

// permitted asks the server itself whether a connection may publish or
// subscribe: it answers in order, so that a flush brings its refusal.
type permitted struct {
	nc      *nats.Conn
	refused chan error
}

func (w *world) asRole(role keys.Role) *permitted {
	w.t.Helper()
	creds, err := keys.Creds(w.data, role)
	must(w.t, err)
	p := &permitted{refused: make(chan error, 1024)}
	p.nc = w.client(string(creds), nats.CustomInboxPrefix(keys.InboxPrefix(role)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { p.refused <- err }))
	return p
}

// A barrier that the server refuses always: when its refusal is here, all
// before it are.
const barrier = "$barrier.nobody.may"

func (p *permitted) drain(t *testing.T) (refused bool) {
	t.Helper()
	must(t, p.nc.Publish(barrier, nil))
	must(t, p.nc.Flush())
	for {
		select {
		case err := <-p.refused:
			if strings.Contains(err.Error(), barrier) {
				return refused
			}
			refused = true
		case <-time.After(within):
			t.Fatal("the server does not refuse what nobody may do")
		}
	}
}

func (p *permitted) publish(t *testing.T, m *nats.Msg) bool {
	t.Helper()
	must(t, p.nc.PublishMsg(m))
	return !p.drain(t)
}

func (p *permitted) subscribe(t *testing.T, subject string) bool {
	t.Helper()
	sub, err := p.nc.SubscribeSync(subject)
	must(t, err)
	ok := !p.drain(t)
	_ = sub.Unsubscribe()
	return ok
}

// Each role × each power of another role: refused by the server, and nothing
// comes of it. Bodies are such that what is allowed does no harm.
func TestServicesHaveTheirOwnJobAndNoOther(t *testing.T) {
	w := newWorld(t)
	v := target{id: "alice", account: w.account("alice"), out: w.out("alice", "")}
	attempts := 0
	for role, job := range jobs {
		p := w.asRole(role)
		a := &attacker{id: string(role), as: "role"}
		check := func(what, subject string, allowed bool, data []byte) {
			t.Helper()
			if allowed {
				return // what it is there for
			}
			attempts++
			if p.publish(t, &nats.Msg{Subject: subject, Data: data}) {
				t.Errorf("%s may %s: publish %s", role, what, subject)
			}
		}
		for _, s := range []string{"writ.in.alice.send.bob", "writ.in.alice.cancel.1", "writ.in.shop.call.shop"} {
			check("deliver", s, job.deliver, a.mark())
		}
		for _, s := range []string{"_R_.x", w.asked["alice"].Reply} {
			check("answer agents", s, job.answer, a.mark())
		}
		for _, s := range []string{w.out("alice", "op.call.reflect"), w.out("alice", "_r.x"), w.out("alice", "token.issue"), "in.call.shop", "out.op.call.reflect", "_INBOX.mailer.alice"} {
			check("speak as an agent", s, false, a.mark())
		}
		for _, s := range []string{schemas.CtlApply, schemas.CtlEnroll, schemas.CtlIssue, schemas.CtlLock, schemas.CtlReview, schemas.CtlStatus, schemas.CtlRead, schemas.CtlVerify, schemas.CtlProve, schemas.CtlShow, schemas.CtlRisk, schemas.CtlRisks, schemas.CtlHead, schemas.CtlHealth} {
			// What named operators ask of other services, the issuer asks on.
			on := role == keys.RoleIssuer && !strings.HasPrefix(s, "writ.ctl.issuer.")
			past := role == keys.RoleMonitor && s == schemas.CtlRead // what EVENTS has forgotten
			check("act as an operator", s, job.operate || on || past, a.mark())
		}
		for _, s := range []string{"writ.op.alice.issuer.lock", "writ.op.root.ledger.head"} {
			check("be taken for a named operator", s, false, a.mark())
		}
		check("ask for a verdict", schemas.Assess, role == keys.RoleIntake, nil)
		for _, s := range []string{"$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT." + v.account + ".CLAIMS.UPDATE", "$SYS.REQ.SERVER.x.KICK"} {
			check("change accounts", s, job.push, []byte("x"))
		}
		for _, s := range []string{"$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.SERVER.x.RELOAD", "$SYS.REQ.SERVER.x.LDM", "$SYS.REQ.CLAIMS.LIST"} {
			check("run the server", s, false, nil)
		}
		for _, s := range []string{"$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.UPDATE.EVENTS", "$JS.API.STREAM.MSG.DELETE.EVENTS", "$JS.API.STREAM.CREATE.X",
			"$JS.API.CONSUMER.DELETE.EVENTS.ledger", "$JS.API.CONSUMER.CREATE.EVENTS", "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.x", "$JS.API.STREAM.SNAPSHOT.EVENTS", "$JS.API.STREAM.RESTORE.EVENTS",
			"$JS.API.CONSUMER.PAUSE.EVENTS.ledger", "$JS.API.CONSUMER.UNPIN.EVENTS.ledger", "$JS.API.STREAM.LEADER.STEPDOWN.EVENTS", "$JS.API.STREAM.DELETE.KV_MEMORY", "$JS.API.STREAM.PURGE.KV_MEMORY"} {
			check("change streams", s, job.provision, nil)
		}
		for consumer := range map[string]bool{"intake": true, "ledger": true, "monitor": true, "issuer": true} {
			check("read another's consumer", "$JS.API.CONSUMER.MSG.NEXT.EVENTS."+consumer, job.provision || string(role) == consumer, []byte(`{"no_wait":true}`))
		}
		for _, s := range []string{"$KV.MEMORY.alice.diary.today", "$JS.API.DIRECT.GET.KV_MEMORY.$KV.MEMORY.alice.diary.today", "$JS.API.CONSUMER.CREATE.KV_MEMORY.x"} {
			check("touch memories", s, job.memory || job.provision && strings.HasPrefix(s, "$JS"), a.mark())
		}
		for _, kind := range schemas.Kinds() {
			mine := slices.ContainsFunc(job.appends, func(begin string) bool { return strings.HasPrefix(string(kind), begin) })
			check("append what is not its own", schemas.EventSubject("alice", kind), mine, a.mark())
		}
		for other := range jobs {
			// Whoever answers a role may publish to its inboxes: that is
			// each service to operator and issuer, the monitor to intake, and
			// the ledger to the monitor.
			answers := other == role || (other == keys.RoleOperator || other == keys.RoleIssuer) && slices.Contains([]keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleRelease, keys.RoleMonitor, keys.RoleIssuer}, role) ||
				other == keys.RoleIntake && role == keys.RoleMonitor || other == keys.RoleMonitor && role == keys.RoleLedger
			check("write into the inbox of "+string(other), keys.InboxPrefix(other)+".x", answers, a.mark())
		}
		for _, s := range slices.Concat(overhear(victims), []string{"writ.ctl.issuer.>", "writ.ctl.ledger.>", "writ.ctl.monitor.>", "writ.op.>", "writ.op.*.issuer.lock", "writ.out.*.token.>", "out._r.*", "ev._fleet.>"}) {
			attempts++
			mine := slices.ContainsFunc(job.hear, func(begin string) bool { return strings.HasPrefix(s, begin) })
			if !mine && p.subscribe(t, s) {
				t.Errorf("%s may listen to %s", role, s)
			}
		}
		for other := range jobs {
			attempts++
			if other != role && p.subscribe(t, keys.InboxPrefix(other)+".>") {
				t.Errorf("%s may listen to the inboxes of %s", role, other)
			}
		}
		p.nc.Close()
	}
	for _, b := range w.breaches(nil) {
		t.Errorf("breach: %s", b)
	}
	w.unharmed("")
	t.Logf("%d attempts by %d roles", attempts, len(jobs))
	if attempts < 1000 {
		t.Errorf("only %d attempts", attempts)
	}
}

// The memory service, hijacked, stores what it likes and has JetStream publish
// it where it likes: the server checks no reply subject. In its own account
// that reaches nobody: no reader of orders, no agent, and above all not the
// log, where a forged event would count like any other.
func TestWhatTheMemoryServiceHasPublishedReachesNothing(t *testing.T) {
	w := newWorld(t)
	// Release marks what it has done a moment later.
	before := len(w.log())
	until(t, "the log rests", func() bool {
		time.Sleep(200 * time.Millisecond)
		was := before
		before = len(w.log())
		return before == was
	})
	memory := w.role(keys.RoleMemory)
	n := 0
	order := func(subject string, data []byte, header nats.Header) {
		t.Helper()
		n++
		key := fmt.Sprintf("$KV.MEMORY.theft.order%d", n)
		m, err := memory.RequestMsg(&nats.Msg{Subject: key, Data: data, Header: header}, within)
		must(t, err)
		if !strings.Contains(string(m.Data), `"seq"`) {
			t.Fatalf("the order was not stored: %s", m.Data)
		}
		for _, fetch := range []*nats.Msg{
			{Subject: "$JS.API.DIRECT.GET.KV_MEMORY." + key},
			{Subject: "$JS.API.STREAM.INFO.KV_MEMORY"},
			{Subject: "$KV.MEMORY.theft.other", Data: []byte("x")},
			// A consumer of one's own that pushes, without so much as a mark.
			{Subject: fmt.Sprintf("$JS.API.CONSUMER.CREATE.KV_MEMORY.push%d.%s", n, key), Data: fmt.Appendf(nil,
				`{"stream_name":"KV_MEMORY","config":{"name":"push%d","deliver_subject":%q,"filter_subject":%q,"deliver_policy":"all","ack_policy":"none","mem_storage":true}}`, n, subject, key)},
		} {
			if !strings.Contains(fetch.Subject, "CONSUMER") {
				fetch.Reply = subject
			}
			must(t, memory.PublishMsg(fetch))
		}
		must(t, memory.Flush())
	}
	for _, forged := range forgedEvents() {
		subject, header, body, err := forged.Encode()
		must(t, err)
		order(subject, body, nats.Header(header))
	}
	order(schemas.CtlLock, schemas.Marshal(schemas.LockRequest{AgentID: "alice", Lock: schemas.Killed, Reason: "forged", Actor: "forger"}), nil)
	order(schemas.CtlEnroll, schemas.Marshal(schemas.EnrollRequest{ID: "alice", Actor: "forger"}), nil)
	order(schemas.CtlIssue, schemas.Marshal(schemas.IssueRequest{AgentID: "alice", OperationID: "forged", Tools: []string{"reflect"}, Actor: "forger"}), nil)
	order(schemas.Assess, []byte(canary+"memory:0"), nil)
	order(w.out("alice", "op.call.reflect"), []byte(canary+"memory:1"), nil)
	order(w.out("alice", "token.issue"), schemas.Marshal(schemas.IssueRequest{AgentID: "alice", OperationID: "forged", Tools: []string{"reflect"}}), nil)
	order("writ.in.alice.send.bob", []byte(canary+"memory:2"), nil)
	order("_INBOX.mailer.alice", []byte(canary+"memory:3"), nil)
	order(keys.InboxPrefix(keys.RoleIssuer)+".x", []byte(canary+"memory:4"), nil)
	order("$SYS.REQ.CLAIMS.UPDATE", []byte(canary+"memory:5"), nil)
	// All of it has been published before this answer.
	_, err := memory.Request("$JS.API.STREAM.INFO.KV_MEMORY", nil, within)
	must(t, err)
	for _, e := range w.log()[before:] {
		t.Errorf("%d: %s of %s by %s", e.Seq, e.Kind, e.Agent, e.Source)
	}
	w.settled("")
	for _, b := range w.breaches(nil) {
		t.Errorf("breach: %s", b)
	}
	w.unharmed("")
}

// forgedEvents are what somebody would append who could.
func forgedEvents() []schemas.Event {
	now := time.Now()
	return []schemas.Event{
		{Kind: schemas.AgentKilled, Agent: "alice", ID: nats.NewInbox(), Source: "writ/issuer/1", Time: now, Reason: "forged", Actor: "rig"},
		{Kind: schemas.AgentPaused, Agent: "bob", ID: nats.NewInbox(), Source: "writ/issuer/1", Time: now, Reason: "forged", Actor: "rig"},
	}
}

// Those who read the log and those who answer, hijacked: JetStream, and whoever
// answers a control request, would publish under a subject where they have no
// right themselves. What takes orders must not take these.
func TestAnswersOfJetStreamAreNobodysOrders(t *testing.T) {
	w := newWorld(t)
	// An agent's memory is the body of an event, and so is what it says.
	orders := map[string]any{
		schemas.CtlLock:               schemas.LockRequest{AgentID: "alice", Lock: schemas.Killed, Reason: "forged", Actor: "forger"},
		schemas.CtlEnroll:             schemas.EnrollRequest{ID: "alice", Actor: "forger"},
		schemas.CtlIssue:              schemas.IssueRequest{AgentID: "alice", OperationID: "forged", Tools: []string{"reflect"}, Actor: "forger"},
		w.out("alice", "token.issue"): schemas.IssueRequest{AgentID: "alice", OperationID: "forged", Tools: []string{"reflect"}},
	}
	for subject, order := range orders {
		if _, refusal := ask(t, w.conn["bob"], &nats.Msg{Subject: "out.op.memory.put.order", Data: schemas.Marshal(order)}); refusal != nil {
			t.Fatal(refusal)
		}
		for _, e := range w.log() {
			if e.Agent != "bob" || e.Kind != schemas.MessageAccepted || string(e.Data) != string(schemas.Marshal(order)) {
				continue
			}
			for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer, keys.RoleRepair} {
				nc := w.role(role)
				must(t, nc.PublishRequest("$JS.API.DIRECT.GET."+schemas.Stream, subject, fmt.Appendf(nil, `{"seq":%d}`, e.Seq)))
				must(t, nc.PublishRequest("$JS.API.DIRECT.GET."+schemas.Stream, w.out("alice", "op.call.reflect"), fmt.Appendf(nil, `{"seq":%d}`, e.Seq)))
				must(t, nc.Flush())
			}
		}
	}
	// And those who answer: an answer under a subject of the log would be an
	// event that nobody can read.
	operator := w.role(keys.RoleOperator)
	for _, s := range []string{"ev.alice.agent.killed", "ev.alice.risk.changed", w.out("alice", "op.call.reflect")} {
		for _, ask := range []string{schemas.CtlStatus, schemas.CtlJWKS, schemas.CtlRisk, schemas.CtlHead} {
			must(t, operator.PublishRequest(ask, s, nil))
		}
	}
	must(t, operator.Flush())
	intake := w.role(keys.RoleIntake)
	must(t, intake.PublishRequest(schemas.Assess, "ev.alice.risk.changed", []byte("x")))
	must(t, intake.Flush())
	w.settled("")
	for _, b := range w.breaches(nil) {
		t.Errorf("breach: %s", b)
	}
	for _, e := range w.log() {
		if e.Operation == "forged" && e.Kind == schemas.TokenIssued {
			t.Errorf("breach: %d issues a capability that nobody asked for", e.Seq)
		}
	}
	w.unharmed("")
}

// Who may read the log can have JetStream store what it reads once more, under
// another's name: the server checks no reply subject. Such a copy bears marks.
// The ledger halts at it, and hands on neither the copy nor what is behind it.
func TestACopyOutOfTheLogIsNeverHandedOn(t *testing.T) {
	for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer} {
		t.Run(string(role), func(t *testing.T) {
			r := start(t, stormy)
			lock := schemas.Event{Kind: schemas.AgentPaused, Agent: "flooder", ID: nats.NewInbox(), Source: "writ/issuer/1", Time: time.Now(), Reason: "its own doing", Actor: "rig"}
			subject, header, body, err := lock.Encode()
			must(t, err)
			// Without a message id: the log would refuse a copy of what it
			// took less than half a minute ago.
			m, err := r.role(keys.RoleIssuer).RequestMsg(&nats.Msg{Subject: subject, Header: nats.Header(header), Data: body}, within)
			must(t, err)
			var ack struct{ Seq uint64 }
			must(t, json.Unmarshal(m.Data, &ack))
			r.recorded()
			thief := r.role(role)
			must(t, thief.PublishRequest("$JS.API.DIRECT.GET."+schemas.Stream, schemas.EventSubject("alice", schemas.AgentPaused), fmt.Appendf(nil, `{"seq":%d}`, ack.Seq)))
			must(t, thief.Flush())

			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			if err := r.plane.Wait(ctx); err == nil || !errors.Is(err, schemas.ErrEvent) {
				t.Errorf("the control plane goes on: %v", err)
			}
			o, err := plane.LedgerOptions(r.data)
			must(t, err)
			must(t, r.plane.Stop(t.Context()))
			led, err := ledger.OpenReader(o)
			must(t, err)
			defer led.Close()
			page, err := led.Read(schemas.ReadRequest{Limit: 1000})
			must(t, err)
			if page.Head < ack.Seq || page.Next != 0 {
				t.Errorf("the ledger goes up to %d; what was copied is %d", page.Head, ack.Seq)
			}
			for _, rec := range page.Records {
				if rec.Subject == schemas.EventSubject("alice", schemas.AgentPaused) {
					t.Errorf("the copy stands in the ledger as %d", rec.Seq)
				}
			}
		})
	}
}
