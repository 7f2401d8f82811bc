package issuer_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func (p *plane) warrant(agent string) schemas.WarrantReply {
	p.t.Helper()
	return call[schemas.WarrantReply](p, schemas.CtlWarrant, schemas.WarrantRequest{AgentID: agent, Reason: "in case", Actor: "alice"})
}

func (p *plane) serveWarrant(token string) issuer.Served {
	p.t.Helper()
	served, err := issuer.ServeWarrant(p.t.Context(), p.role(keys.RoleSystem), token)
	must(p.t, err)
	return served
}

// killed waits for the event of a kill, and until the issuer has it.
func (p *plane) killed(agent string) *schemas.Event {
	p.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		e := p.newestEvent("ev." + agent + ".agent.killed")
		if e != nil && p.stateOf(agent).State == schemas.Killed { // the issuer reads its log as others do
			return e
		}
	}
	p.t.Fatalf("the log says of no kill of %s", agent)
	return nil
}

// A hijacked agent is to be stopped, and whoever attacked it has taken the
// issuer down first.
func TestAWarrantKillsWithoutTheIssuerAndIsNeverUndone(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	if e := p.lastEvent("ev.analyst-7.agent.warranted"); e.Seq != w.Seq || e.Actor != "root/alice" || e.Reason != "in case" {
		t.Errorf("it is logged as %+v", e)
	}
	issued, other := p.issue(reportRequest()), p.enroll("writer-2")
	identity := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds
	nc := p.mustClient(issued.Creds)
	p.stop()

	served := p.serveWarrant(w.JWT)
	closed(nc)
	if len(served.Nodes) != 1 || served.Closed != 1 {
		t.Errorf("served: %+v", served)
	}
	outside := func(when string) {
		t.Helper()
		for name, creds := range map[string]string{"capability": issued.Creds, "identity": identity} {
			if _, err := p.client(creds); err == nil {
				t.Errorf("%s, the %s lets it in", when, name)
			}
		}
	}
	outside("with the issuer down")
	if !other.IsConnected() {
		t.Error("it closed another agent's connection")
	}

	p.start()
	e := p.killed("analyst-7")
	if e.Actor != "warrant/root/alice" || !strings.Contains(e.Reason, "death warrant of ") || !strings.Contains(e.Reason, "in case") {
		t.Errorf("the kill is logged as %+v", e)
	}
	outside("with the issuer back")
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
	p.clock.advance(accounts.TTL)
	p.stop()
	p.start()
	outside("after another restart")
	if again := p.killed("analyst-7"); again.Seq != e.Seq {
		t.Errorf("it is killed twice: %d and %d", e.Seq, again.Seq)
	}
}

// The issuer runs, and would renew the account in half an hour.
func TestAWarrantThatIsServedBesideARunningIssuerIsLogged(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	p.serveWarrant(w.JWT)
	closed(nc)
	p.killed("analyst-7")
	refusal[schemas.WarrantReply](p, schemas.CtlWarrant, schemas.WarrantRequest{AgentID: "analyst-7", Reason: "once more", Actor: "alice"}, schemas.CodeConflict)
}

// Somebody serves a warrant in a way that the issuer does not hear of: what is
// to take its place looks first.
func TestARenewalNeverTakesThePlaceOfAWarrant(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	_, err := p.role(keys.RoleSystem).Request("$SYS.REQ.CLAIMS.UPDATE", []byte(w.JWT), 5*time.Second)
	must(t, err)
	p.clock.advance(accounts.TTL/2 + time.Second)
	p.killed("analyst-7")
	if c := p.storedAccount("analyst-7"); len(c.SigningKeys) != 0 {
		t.Errorf("the account lives: %+v", c)
	}
}

// While the issuer starts, somebody serves warrants just between its look at what
// the servers have and its push of what was before: the servers let the agent in
// again, and nobody but the issuer can know better.
func TestAWarrantThatIsServedWhileTheIssuerStartsIsHeardOf(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	var tokens []string
	agents := []string{"analyst-7", "orchestrator", "pandas", "writer-2", schemas.MemoryID} // which is pushed first is chance
	for _, agent := range agents {
		tokens = append(tokens, p.warrant(agent).JWT)
	}
	p.stop()
	attacker, former := p.role(keys.RoleSystem), p.issuer
	var once sync.Once
	p.clock.asked = func() {
		if p.issuer == former {
			return
		}
		once.Do(func() { // the first account is about to be signed
			for _, token := range tokens {
				_, err := issuer.ServeWarrant(context.Background(), attacker, token)
				for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); { // a busy server answers late
					_, err = issuer.ServeWarrant(context.Background(), attacker, token)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	p.start()
	for _, agent := range agents {
		if e := p.killed(agent); e.Actor != "warrant/root/alice" {
			t.Errorf("%s is killed by %+v", agent, e)
		}
	}
}

// Who kept a warrant, or stole one, serves it against whoever bears the name
// now: enrolled behind the kill, or declared anew.
func TestAnOldWarrantHarmsNoLaterIncarnation(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	old := p.warrant("analyst-7")
	p.lock(schemas.Killed, "analyst-7")
	first := p.enroll("analyst-7")
	second := p.warrant("analyst-7")
	if old.Account == second.Account || old.Incarnation == second.Incarnation {
		t.Fatalf("two incarnations share an account: %+v, %+v", old, second)
	}
	p.serveWarrant(old.JWT)
	p.stop()
	p.serveWarrant(old.JWT)
	p.start()
	must(t, first.Flush())
	if e := p.newestEvent("ev.analyst-7.agent.killed"); first.IsClosed() || e.Actor != "root/alice" {
		t.Errorf("the warrant of the former killed the present: %+v", e)
	}
	call[schemas.ApplyReply](p, schemas.CtlApply, schemas.ApplyRequest{TrustDomain: "acme.example", Digest: "cd", Actor: "alice", Prune: true,
		Principals: []schemas.Principal{{ID: "writer-2", Kind: schemas.KindAgent}}})
	p.apply()
	third := p.mustClient(p.issue(reportRequest()).Creds)
	p.serveWarrant(old.JWT)
	p.serveWarrant(second.JWT)
	must(t, third.Flush())
	if third.IsClosed() {
		t.Error("a warrant of before the removal kills who was declared anew")
	}
	p.issue(reportRequest())
}

// Who can give servers account JWTs puts back one from before the warrant, and
// the issuer finds nothing there. What was served from this machine it knows.
func TestWhoUndoesAWarrantOnTheServersUndoesItNotInTheLog(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	issued := p.issue(reportRequest())
	alive, err := accounts.NewMaker(p.secrets).Account(p.stored("analyst-7"), time.Now())
	must(t, err)
	p.stop()
	p.serveWarrant(w.JWT)
	_, err = p.role(keys.RoleSystem).Request("$SYS.REQ.CLAIMS.UPDATE", []byte(alive), 5*time.Second)
	must(t, err)
	p.served = []string{"damaged", w.JWT}
	p.start()
	p.killed("analyst-7")
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("the agent is in")
	}
}

// Whoever has a warrant, and the right to give servers account JWTs, can do
// nothing with it but kill; and what kills nobody is not served.
func TestOnlyWhatKillsIsServed(t *testing.T) {
	p, foreign := newPlane(t, embed.Options{}), t.TempDir()
	p.apply()
	must(t, keys.Init(foreign, "acme.example"))
	theirs, err := keys.OpenSecrets(foreign)
	must(t, err)
	k := p.stored("analyst-7")
	alive, err := accounts.NewMaker(p.secrets).Account(k, time.Now())
	must(t, err)
	suspended, err := accounts.NewMaker(p.secrets).Account(accounts.Account{ID: "analyst-7", Lock: schemas.Suspended, Keys: k.Keys}, time.Now())
	must(t, err)
	for name, token := range map[string]string{"alive": alive, "suspended": suspended, "nothing": "", "CONTROL": p.secrets.Trust.JWTs[p.secrets.Trust.Accounts[keys.CONTROL]]} {
		if _, err := issuer.ServeWarrant(t.Context(), p.role(keys.RoleSystem), token); !errors.Is(err, accounts.ErrNoWarrant) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged, err := accounts.NewMaker(theirs).Warrant("analyst-7", k.Incarnation, "mallory", "forged", time.Now())
	must(t, err)
	if _, err := accounts.WarrantOf(p.secrets.Trust, forged); !errors.Is(err, accounts.ErrNoWarrant) {
		t.Errorf("another operator's: %v", err)
	}
	if _, err := accounts.WarrantOf(p.secrets.Trust, p.warrant("analyst-7").JWT); err != nil {
		t.Errorf("our own: %v", err)
	}
}

// The other operator's kill is signed by nobody whom the issuer knows.
func TestAKillOfAnotherOperatorIsNoneForTheIssuer(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	parts := strings.Split(w.JWT, ".")
	parts[2] = strings.Repeat("A", len(parts[2]))
	must(t, p.role(keys.RoleSystem).PublishMsg(&nats.Msg{Subject: "$SYS.REQ.ACCOUNT." + w.Account + ".CLAIMS.UPDATE", Data: []byte(strings.Join(parts, "."))}))
	p.issue(reportRequest())
	if e := p.newestEvent("ev.analyst-7.agent.killed"); e != nil {
		t.Errorf("it is killed: %+v", e)
	}
}

// The operator's key is replaced before the issuer has seen what was served:
// what the former signed still kills, as long as it is on the servers or on this
// machine.
func TestAKillOutlivesARotationOfTheOperatorsKey(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	w := p.warrant("analyst-7")
	issued := p.issue(reportRequest())
	p.stop()
	p.serveWarrant(w.JWT)
	p.srv.Stop()
	if _, err := keys.RotateOperator(p.data, "root/alice", "test"); err != nil {
		t.Fatal(err)
	}
	p.run(embed.Options{})
	if e := p.killed("analyst-7"); e.Actor != "warrant/root/alice" {
		t.Errorf("killed by %+v", e)
	}
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("the agent is in")
	}
	for p.newestEvent("ev._fleet.policy.rotated") == nil {
		time.Sleep(10 * time.Millisecond)
	}
	p.mustClient(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "writer-2", Actor: "alice"}).Creds)
}
