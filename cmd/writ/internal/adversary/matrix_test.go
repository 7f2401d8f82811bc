package adversary

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A target is who is attacked, with all that the attacker could ever learn of
// it: the matrix gives away what in truth is random.
type target struct {
	id      string
	account string
	out     string         // before what it publishes, as the server stamps it
	request *schemas.Event // delivered to it and unanswered; nil for a service of the control plane
	oldJWT  string         // its account as it was
}

// reach are the subjects by which one could try to get at a target. All of
// them are published to, and all are named as the reply of something allowed.
func (v target) reach(from string) []string {
	s := []string{
		"in.call." + v.id, "in.send." + from, "in.ask." + from, "in.memory.get.diary.today", "in.cancel.1",
		"writ.in." + v.id + ".send." + from, "writ.in." + v.id + ".ask." + from, "writ.in." + v.id + ".call." + v.id, "writ.in." + v.id + ".cancel.1",
		v.out + "op.call.reflect", v.out + "token.issue", v.out + "op.memory.put.diary.today",
		"out." + v.id + ".op.call.reflect", "out.op.send." + v.id, "out.op.ask." + v.id, "out.op.call." + v.id, "out.op.call.bash", "out.mail.send." + v.id, "out.mail.ask." + v.id,
		"out.op.memory.put." + v.id + ".diary.today",
		"_INBOX." + v.id, "_INBOX_" + v.id + ".x", keys.InboxPrefix(keys.RoleOperator) + ".x", keys.InboxPrefix(keys.RoleIntake) + ".x",
		"$KV.MEMORY." + v.id + ".diary.today", "$JS.API.DIRECT.GET.KV_MEMORY.$KV.MEMORY." + v.id + ".diary.today",
		"ev." + v.id + ".message.accepted", "ev." + v.id + ".response.accepted",
		"$SYS.REQ.ACCOUNT." + v.account + ".CONNZ", "$SYS.ACCOUNT." + v.account + ".DISCONNECT", "$SYS.REQ.USER.INFO",
		"writ.ctl.ledger.read", schemas.Assess,
	}
	if v.request != nil {
		token := schemas.ResponseToken(v.request.Request, v.request.Seq)
		s = append(s, "out._r."+token, v.out+"_r."+token, "_INBOX.mailer."+v.id, v.request.Reply, v.request.Reply+".x")
	}
	return s
}

// orders are messages that would change something by their very content.
func (v target) orders(t *testing.T) []*nats.Msg {
	kill := schemas.Event{Kind: schemas.AgentKilled, Agent: v.id, ID: nats.NewInbox(), Source: "writ/issuer/1", Time: time.Now(), Reason: "forged", Actor: "forger"}
	subject, header, body, err := kill.Encode()
	must(t, err)
	return []*nats.Msg{
		{Subject: subject, Header: nats.Header(header), Data: body},
		{Subject: schemas.CtlLock, Data: schemas.Marshal(schemas.LockRequest{AgentID: v.id, Lock: schemas.Killed, Reason: "forged", Actor: "forger"})},
		{Subject: schemas.CtlEnroll, Data: schemas.Marshal(schemas.EnrollRequest{ID: v.id, Actor: "forger"})},
		{Subject: schemas.CtlIssue, Data: schemas.Marshal(schemas.IssueRequest{AgentID: v.id, OperationID: "op", Actor: "forger"})},
		{Subject: schemas.CtlRead, Data: schemas.Marshal(schemas.ReadRequest{Data: true})},
		{Subject: "out.token.issue", Data: schemas.Marshal(schemas.IssueRequest{AgentID: v.id, OperationID: "forged", Tools: []string{"reflect"}})},
		{Subject: "$SYS.REQ.CLAIMS.UPDATE", Data: []byte(v.oldJWT)},
		{Subject: "$SYS.REQ.ACCOUNT." + v.account + ".CLAIMS.UPDATE", Data: []byte(v.oldJWT)},
		{Subject: "$JS.API.STREAM.DELETE." + schemas.Stream}, {Subject: "$JS.API.STREAM.PURGE." + schemas.Stream},
		{Subject: "$JS.API.STREAM.MSG.DELETE." + schemas.Stream, Data: []byte(`{"seq":1}`)},
		{Subject: "$JS.API.CONSUMER.DELETE." + schemas.Stream + ".ledger"}, {Subject: "$JS.API.STREAM.DELETE.KV_MEMORY"},
		{Subject: "$JS.API.STREAM.CREATE.THEFT", Data: []byte(`{"name":"THEFT","subjects":["writ.out.>"]}`)},
		{Subject: "$JS.API.DIRECT.GET." + schemas.Stream, Data: []byte(`{"seq":1,"batch":1000}`)},
		{Subject: "$JS.API.CONSUMER.MSG.NEXT." + schemas.Stream + ".ledger", Data: []byte(`1000`)},
		{Subject: "$JS.API.CONSUMER.CREATE." + schemas.Stream, Data: []byte(`{"stream_name":"EVENTS","config":{"deliver_subject":"_INBOX.theft","ack_policy":"none"}}`)},
	}
}

// forged are headers by which a message could pass for another.
func forged(v target) []nats.Header {
	return []nats.Header{
		{"Writ-From": {v.id}, "writ-from": {v.id}, "WRIT-FROM": {v.id}, "Writ-Operation": {"mail"}},
		{"Nats-Request-Info": {`{"acc":"` + v.account + `","user":"` + v.id + `"}`}},
		{"Writ-Reply": {"_R_.x"}, "Writ-To": {v.id}, "Writ-Lock": {"killed"}, "Writ-Verdict": {"{}"}, "Writ-Risk": {"0"}, "ce-type": {"sh.writ.agent.killed"}, "ce-source": {"x"}},
		{"Nats-Trace-Dest": {"in.send." + v.id}}, {"Nats-Trace-Dest": {"writ.in." + v.id + ".send.x"}, "Nats-Trace-Only": {"true"}},
		{"Nats-Expected-Last-Sequence": {"0"}, "Nats-Expected-Stream": {"OTHER"}, "Nats-Rollup": {"all"}},
		{"Status": {"409"}, "Description": {"Consumer Deleted"}}, {"Nats-Stream": {"EVENTS"}, "Nats-Sequence": {"1"}},
	}
}

// overhear are the subscriptions by which one could try to listen to others.
func overhear(victims []string) []string {
	s := []string{">", "*", "*.>", "*.*.>", "in.>", "out.>", "out.*.>", "writ.>", "writ.in.>", "writ.out.>", "writ.out.*.>", "writ.ctl.>", schemas.Assess, "ev.>", "ev.*.>",
		"_INBOX.>", "_INBOX_*.>", "_R_.>", "_R_.*", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$KV.>", "$SYS.>", "$SYS.ACCOUNT.*.DISCONNECT", "$SYS.REQ.>", "$SRV.>", "_GR_.>", "$NRG.>"}
	for _, id := range victims {
		s = append(s, "writ.in."+id+".>", "writ.out."+id+".>", "ev."+id+".>", "$KV.MEMORY."+id+".>")
	}
	return s
}

func (w *world) targets() []target {
	maker := accounts.NewMaker(w.secrets)
	var all []target
	add := func(id string) {
		old, err := maker.Account(accounts.Account{ID: id, Lock: schemas.Active, Keys: w.keys(id)}, time.Now().Add(-accounts.TTL-time.Minute))
		must(w.t, err)
		all = append(all, target{id: id, account: w.account(id), out: w.out(id, ""), request: w.asked[id], oldJWT: old})
	}
	for _, id := range victims {
		add(id)
	}
	for role := range w.roles {
		all = append(all, target{id: string(role), out: "writ.out." + string(role) + ".", account: w.secrets.Trust.Accounts[keys.CONTROL], oldJWT: w.secrets.Trust.JWTs[w.secrets.Trust.Accounts[keys.CONTROL]]})
	}
	return all
}

// strike tries every way from one attacker at one target, and counts.
func (w *world) strike(a *attacker, v target) (attempts int) {
	inbox := "_INBOX." + a.id + ".stolen"
	fire := func(m *nats.Msg) {
		if a.nc.PublishMsg(m) == nil { // else it is cut off, and this was no attempt
			attempts++
		}
	}
	for _, subject := range v.reach(a.id) {
		fire(&nats.Msg{Subject: subject, Data: a.mark()})
		fire(&nats.Msg{Subject: subject, Reply: inbox, Data: a.mark()})
		if a.own != "" { // the answer to something allowed, sent where it hurts
			fire(&nats.Msg{Subject: a.own, Reply: subject, Data: a.words()})
		}
	}
	for _, m := range v.orders(w.t) {
		m.Reply = inbox
		fire(m)
		if a.own != "" {
			fire(&nats.Msg{Subject: a.own, Reply: m.Subject, Header: m.Header, Data: m.Data})
		}
	}
	for _, h := range forged(v) {
		for _, subject := range []string{a.own, "out.op.send." + v.id, "out.op.memory.get.diary.today", "out.token.issue"} {
			if subject != "" {
				fire(&nats.Msg{Subject: subject, Reply: inbox, Header: h, Data: a.mark()})
			}
		}
	}
	return attempts
}

// worked waits until intake has seen all that an attacker has sent, so that none
// of it is shed for being too much at once: false where it is cut off.
func (w *world) worked(a *attacker) bool {
	if a.own != "out.op.call.reflect" {
		return true
	}
	for deadline := time.Now().Add(within); time.Now().Before(deadline) && a.nc.IsConnected(); {
		if _, err := a.nc.Request(a.own, []byte("next"), time.Second); err == nil {
			return true
		}
	}
	return false
}

// eavesdrop makes the attacker listen wherever it can, alone and in the queue
// groups of others, in more connections than one for the limit of them.
func (w *world) eavesdrop(a *attacker) (attempts int) {
	subjects := overhear(victims)
	for _, queue := range []string{"", "intake", "memory"} {
		a.ear.listen(a.nc, queue, subjects...)
		attempts += len(subjects)
	}
	_ = a.nc.Flush() // a connection that is cut off hears nothing
	return attempts
}

// attack tries every ordered pair.
func (w *world) attack(attackers []*attacker, targets []target) (attempts int) {
	for _, a := range attackers {
		attempts += w.eavesdrop(a)
	}
	w.post("second") // for those who listen now
	for _, a := range attackers {
		for _, v := range targets {
			if v.id == a.id {
				continue
			}
			for try := 1; ; try++ {
				attempts += w.strike(a, v)
				if a.nc.FlushTimeout(within) == nil && w.worked(a) {
					break
				}
				if try == 10 {
					w.t.Fatalf("%s (%s) can't be kept connected for an attack at %s", a.id, a.as, v.id)
				}
				w.join(a)
				attempts += w.eavesdrop(a)
			}
		}
	}
	return attempts
}

// heard reports whether what an agent sends now is answered. A message that is
// over its rate is shed without an answer, and so are those behind it.
func heard(nc *nats.Conn) bool {
	m, err := nc.Request("out.op.call.reflect", []byte("the last"), time.Second)
	return err == nil && bus.ReadRefusal(m) == nil
}

// settled waits until what was fired has been worked through: what everybody
// sends behind it has been answered. The attacker's own lane may end in a lock.
func (w *world) settled(id string) {
	w.t.Helper()
	if slices.Contains(agents, id) {
		until(w.t, id+" was heard to the end", func() bool {
			w.pardon(id)
			nc, err := w.dial(w.credsOf(id))
			if err != nil {
				return false
			}
			defer nc.Close()
			return heard(nc)
		})
	}
	for _, other := range agents {
		if other != id {
			works(w.t, w.conn[other], "out.op.call.reflect")
		}
	}
	if _, refusal := ask(w.t, w.mailer, &nats.Msg{Subject: "out.mail.memory.put.last", Data: []byte("x")}); refusal != nil {
		w.t.Fatal(refusal)
	}
}

func TestAdversarialMatrix(t *testing.T) {
	total := 0
	for _, id := range victims {
		t.Run(id, func(t *testing.T) {
			w := newWorld(t)
			attackers := w.attackersOf(id)
			attempts := w.attack(attackers, w.targets())
			w.settled(id)
			for _, b := range w.breaches(attackers) {
				t.Errorf("breach: %s", b)
			}
			w.unharmed(id)
			total += attempts
			t.Logf("%d attempts with %d kinds of credentials at %d targets", attempts, len(attackers), len(w.targets())-1)
		})
	}
	if total < 10_000 {
		t.Errorf("only %d attempts: the matrix has holes", total)
	}
	t.Logf("%d attempts", total)
}

// The negative control: rights that are too wide, one at a time, as a mistake
// in a template or an import would make them. Each must be found by the same
// ways and the same detection.
func TestTheMatrixFindsRightsThatAreTooWide(t *testing.T) {
	imports := func(w *world, more ...*jwt.Import) *attacker {
		return &attacker{id: "alice", as: "too wide", nc: w.client(w.widened("alice", more...)), ear: &tap{}, own: "out.op.call.reflect"}
	}
	static := func(account string, change func(*jwt.UserClaims)) func(*world) *attacker {
		return func(w *world) *attacker {
			nc := w.client(userOf(w.t, w.secrets.Trust.Accounts[account], w.staticKey(account), change))
			return &attacker{id: "intake", as: "too wide", nc: nc, ear: &tap{}}
		}
	}
	for name, widen := range map[string]func(*world) *attacker{
		"an import of another's deliveries": func(w *world) *attacker {
			return imports(w, &jwt.Import{Name: "theft", Type: jwt.Stream, Account: w.secrets.Trust.Accounts[keys.DELIVER],
				Subject: "writ.in.bob.>", LocalSubject: "writ.in.bob.>"})
		},
		"an import in another's name": func(w *world) *attacker {
			return imports(w, &jwt.Import{Name: "forgery", Type: jwt.Service, Account: w.secrets.Trust.Accounts[keys.CONTROL],
				Subject: jwt.Subject(w.out("bob", ">")), LocalSubject: jwt.RenamingSubject(w.out("bob", ">"))})
		},
		"a user of DELIVER for somebody else than release": static(keys.DELIVER, everything),
		"a service that reads all of CONTROL": static(keys.CONTROL, func(c *jwt.UserClaims) {
			c.Sub.Allow.Add(">")
			c.Pub.Allow.Add("nothing")
		}),
		"a service that appends what is not its own": static(keys.CONTROL, func(c *jwt.UserClaims) {
			c.Pub.Allow.Add("ev.>")
			c.Sub.Allow.Add("_INBOX_intake.>")
		}),
		"a service that answers agents":   static(keys.CONTROL, func(c *jwt.UserClaims) { c.Pub.Allow.Add("_R_.>"); c.Sub.Allow.Add("_INBOX_x.>") }),
		"a service that acts as operator": static(keys.CONTROL, func(c *jwt.UserClaims) { c.Pub.Allow.Add("writ.ctl.>"); c.Sub.Allow.Add("_INBOX_x.>") }),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := widen(w)
			w.harmless(a)
			if found := w.breaches([]*attacker{a}); len(found) == 0 {
				t.Error("the matrix finds nothing wrong with it")
			} else {
				t.Logf("%d breaches, such as: %.300s", len(found), found[0])
			}
		})
	}
}

// harmless strikes at the victims with ways that leave the log readable, until
// something is found or every way was tried.
func (w *world) harmless(a *attacker) {
	subjects := overhear(victims)
	a.ear.listen(a.nc, "", subjects[:min(len(subjects), 60)]...)
	must(w.t, a.nc.Flush())
	w.post("second")
	for _, v := range w.targets() {
		if v.id == a.id || !slices.Contains(victims, v.id) {
			continue
		}
		for _, subject := range v.reach(a.id) {
			if len(subject) > 3 && subject[:3] == "ev." {
				continue // would halt the log, which is seen, but not as a breach
			}
			_ = a.nc.PublishMsg(&nats.Msg{Subject: subject, Data: a.mark()})
		}
		for _, m := range v.orders(w.t)[:2] {
			m.Reply = fmt.Sprintf("%s.forger", keys.InboxPrefix(keys.RoleOperator))
			_ = a.nc.PublishMsg(m)
		}
	}
	_ = a.nc.FlushTimeout(within) // may be cut off for its trouble
	deadline := time.Now().Add(within)
	for len(w.breaches([]*attacker{a})) == 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
}
