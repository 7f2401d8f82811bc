package issuer_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func person(id string, role schemas.Role) schemas.Principal {
	return schemas.Principal{ID: id, Kind: schemas.KindOperator, Role: role}
}

// withOperators is a plane with one operator of each role, named like it.
func withOperators(t *testing.T, more ...schemas.Principal) *plane {
	p := newPlane(t, embed.Options{})
	for _, r := range schemas.Roles() {
		more = append(more, person(string(r)+"-1", r))
	}
	call[schemas.ApplyReply](p, schemas.CtlApply, fleetOf(more...))
	return p
}

// command gives a command as a named operator does.
func command[Rep any](t *testing.T, nc *nats.Conn, subject string, req any) (Rep, *schemas.Refusal) {
	t.Helper()
	rep, err := bus.Call[Rep](t.Context(), nc, subject, req)
	var r *schemas.Refusal
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("%s: %v", subject, err)
	}
	return rep, r
}

// Every command × every role. An operator who wants to do what the role does not
// admit speaks the wire by hand; the server refuses it.
func TestTheServerAdmitsTheCommandsOfARoleAndNoOthers(t *testing.T) {
	p := withOperators(t)
	all := append(schemas.RoleAdmin.Commands(), "writ.ctl.issuer.other", "writ.ctl.>", "writ.op.admin-1.issuer.apply", "out.token.issue",
		"in.send.x", "ev.analyst-7.agent.resumed", "$JS.API.INFO", "$SYS.REQ.SERVER.PING", "_INBOX.x", "_R_.x")
	for _, role := range schemas.Roles() {
		nc := p.enroll(string(role) + "-1")
		for _, subject := range all {
			if got, want := mayPublish(t, nc, subject), role.May(subject); got != want {
				t.Errorf("%s may publish %s: %t, want %t", role, subject, got, want)
			}
		}
		for _, subject := range []string{">", "writ.>", "in.>", "_INBOX_operator.>", "writ.op.>", "ev.>"} {
			if maySubscribe(t, nc, subject) {
				t.Errorf("%s may listen to %s", role, subject)
			}
		}
	}
}

// The log names who did it: the one whom the server stamped, whatever the
// request says; and who has the data folder can pass for no operator.
func TestEveryActNamesItsOperator(t *testing.T) {
	p := withOperators(t)
	nc := p.enroll("operator-1")
	if _, r := command[schemas.Receipt](t, nc, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst-7", Lock: schemas.Paused, Reason: "odd", Actor: "admin-1"}); r != nil {
		t.Fatal(r)
	}
	if e := p.lastEvent("ev.analyst-7.agent.paused"); e.Actor != "operator-1" {
		t.Errorf("the log names %q", e.Actor)
	}
	call[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst-7", Lock: schemas.Active, Reason: "fine", Actor: "admin-1"})
	if e := p.lastEvent("ev.analyst-7.agent.resumed"); e.Actor != "root/admin-1" {
		t.Errorf("the log names %q", e.Actor)
	}
}

// Whoever may enrol an admin is one.
func TestAdminsAloneActOnOperators(t *testing.T) {
	p := withOperators(t)
	nc, admin := p.enroll("operator-1"), p.enroll("admin-1")
	if rep, r := command[schemas.EnrollReply](t, nc, schemas.CtlEnroll, schemas.EnrollRequest{ID: "admin-1", Actor: "x"}); r == nil || r.Code != schemas.CodeForbidden {
		t.Errorf("an operator enrolled an admin: %+v, %v", rep, r)
	}
	if _, r := command[schemas.Receipt](t, nc, schemas.CtlLock, schemas.LockRequest{AgentID: "admin-1", Lock: schemas.Killed, Reason: "x", Actor: "x"}); r == nil || r.Code != schemas.CodeForbidden {
		t.Errorf("an operator killed an admin: %v", r)
	}
	for who, nc := range map[string]*nats.Conn{"an operator": nc, "an admin": admin} {
		for _, req := range []schemas.EnrollRequest{{ID: schemas.MemoryID, Actor: "x"}, {ID: schemas.MemoryID, JoinTTLSeconds: 60, Actor: "x"}} {
			if _, r := command[schemas.EnrollReply](t, nc, schemas.CtlEnroll, req); r == nil || r.Code != schemas.CodeForbidden {
				t.Errorf("%s receives what all agents remember: %v", who, r)
			}
		}
	}
	if _, r := command[schemas.EnrollReply](t, nc, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "x"}); r != nil {
		t.Errorf("an operator can't enrol an agent: %v", r)
	}
	if _, r := command[schemas.EnrollReply](t, admin, schemas.CtlEnroll, schemas.EnrollRequest{ID: "viewer-1", Actor: "x"}); r != nil {
		t.Errorf("an admin can't enrol an operator: %v", r)
	}
}

// A credential that was issued for a wider role, a lock that the server does not
// show yet: from its event on the issuer refuses.
func TestALoweredRoleAndALockEndAnOperatorsRights(t *testing.T) {
	p := withOperators(t)
	nc, closed := p.enroll("admin-1"), make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	call[schemas.ApplyReply](p, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "amy", Principals: []schemas.Principal{person("admin-1", schemas.RoleViewer)}})
	select { // the server closes what was signed under the wider template
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the connection of a wider role goes on")
	}
	again := p.enroll("admin-1")
	if mayPublish(t, again, schemas.CtlLock) || !mayPublish(t, again, schemas.CtlStatus) {
		t.Error("the new credential is not a viewer's")
	}
	creds := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "admin-1", Actor: "amy"}).Creds
	r := p.lock(schemas.Killed, "admin-1")
	if r.ConnectionsClosed == 0 {
		t.Errorf("receipt %+v", r)
	}
	if _, err := p.client(creds); err == nil {
		t.Error("a killed operator is let in")
	}
}

func TestOperatorsAskOtherServicesThroughTheIssuer(t *testing.T) {
	p := withOperators(t)
	nc := p.enroll("viewer-1")
	head, r := command[schemas.Head](t, nc, schemas.CtlHead, schemas.HeadRequest{Min: 7})
	if r != nil || head.Size != 7 {
		t.Errorf("head %+v, %v", head, r)
	}
	if _, r := command[schemas.VerifyReply](t, nc, schemas.CtlVerify, nil); r == nil || r.Code != schemas.CodeUnavailable {
		t.Errorf("a service that is down: %v", r)
	}
	inbox := nats.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	must(t, err)
	must(t, nc.PublishRequest(schemas.CtlHealth, inbox, nil))
	var heard []string
	for {
		m, err := sub.NextMsg(5 * time.Second)
		must(t, err)
		if len(m.Data) == 0 {
			break
		}
		heard = append(heard, string(m.Data))
	}
	if !slices.ContainsFunc(heard, func(s string) bool { return strings.Contains(s, `"issuer"`) }) {
		t.Errorf("health %q", heard)
	}
}

// One person, whatever names it takes, approves once.
func TestTwoPersonsApproveWhereTheFleetAsksForIt(t *testing.T) {
	careful := analyst
	careful.ID, careful.TwoPerson = "careful", true
	p := withOperators(t, careful, person("second", schemas.RoleReviewer))
	held := p.hold("careful")
	review := func(nc *nats.Conn, actor string) (schemas.ReviewReply, *schemas.Refusal) {
		return command[schemas.ReviewReply](t, nc, schemas.CtlReview, schemas.ReviewRequest{Seq: held, Approve: true, Actor: actor})
	}
	one, two := p.enroll("reviewer-1"), p.enroll("second")
	if rep, r := review(one, "x"); r != nil || rep.State != "endorsed" {
		t.Fatalf("first approval: %+v, %v", rep, r)
	}
	if rep, r := review(one, "second"); r == nil || r.Code != schemas.CodeConflict {
		t.Fatalf("the same person again: %+v, %v", rep, r)
	}
	list, r := command[schemas.ReviewsReply](t, two, schemas.CtlReviews, schemas.PageRequest{})
	if r != nil || len(list.Reviews) != 1 || !list.Reviews[0].TwoPerson || list.Reviews[0].Endorsed != "reviewer-1" {
		t.Errorf("reviews %+v, %v", list, r)
	}
	p.stop() // what one has approved survives a restart
	p.start()
	if rep, r := review(two, "x"); r != nil || rep.State != "approved" {
		t.Fatalf("second approval: %+v, %v", rep, r)
	}
	held = p.hold("careful")
	for n, want := range []string{"endorsed", ""} {
		rep, r := review(p.operator, []string{"amy", "bob"}[n])
		if rep.State != want {
			t.Errorf("the data folder's credential under name %d: %+v, %v", n, rep, r)
		}
	}
}

// Two must vouch where two must approve; until the second does, the agent stays
// suspended, also across a restart.
func TestTwoPersonsVouchWhereTheFleetAsksForIt(t *testing.T) {
	careful := analyst
	careful.ID, careful.TwoPerson = "careful", true
	p := withOperators(t, careful, person("second", schemas.RoleOperator))
	one, two := p.enroll("operator-1"), p.enroll("second")
	cause := p.suspend("careful")
	resume := func(nc *nats.Conn, vouch ...uint64) (schemas.Receipt, *schemas.Refusal) {
		return command[schemas.Receipt](t, nc, schemas.CtlLock, schemas.LockRequest{AgentID: "careful", Lock: schemas.Active, Vouch: vouch, Reason: "known", Actor: "x"})
	}
	for name, nc := range map[string]*nats.Conn{"a viewer": p.enroll("viewer-1"), "a reviewer": p.enroll("reviewer-1")} {
		if _, err := nc.Request(schemas.CtlLock, schemas.Marshal(schemas.LockRequest{AgentID: "careful", Lock: schemas.Active, Vouch: []uint64{cause}, Reason: "known"}), 300*time.Millisecond); err == nil {
			t.Errorf("%s was answered", name)
		}
	}
	r, refusal := resume(one, cause)
	if refusal != nil || r.State != schemas.Suspended || !slices.Equal(r.Endorsed, []uint64{cause}) || r.Vouched != nil {
		t.Fatalf("first: %+v, %v", r, refusal)
	}
	if _, refusal := resume(one, cause); refusal == nil || refusal.Code != schemas.CodeConflict {
		t.Fatalf("the same person again: %v", refusal)
	}
	p.stop()
	p.start()
	r, refusal = resume(two, cause)
	if refusal != nil || r.State != schemas.Active || !slices.Equal(r.Vouched, []uint64{cause}) || r.Endorsed != nil || r.Checkpoint == "" {
		t.Fatalf("second: %+v, %v", r, refusal)
	}
	if e := p.lastEvent("ev.careful.review.vouched"); e.Actor != "second" || e.Ref != cause || e.Digest != schemas.Sum([]byte("x")) || e.Reason != "known" {
		t.Errorf("%+v", e)
	}
	if e := p.lastEvent("ev.careful.agent.resumed"); e.Actor != "second" || e.Seq < p.lastEvent("ev.careful.review.vouched").Seq {
		t.Errorf("%+v", e)
	}
	if _, refusal := resume(two, cause); refusal == nil || refusal.Code != schemas.CodeNotFound {
		t.Errorf("a third: %v", refusal)
	}
	p.suspend("careful")
	if r, refusal := resume(two); refusal != nil || r.State != schemas.Active || r.Vouched != nil {
		t.Errorf("resumed without a word on the action: %+v, %v", r, refusal)
	}
}

// suspend has an action of an agent refused that suspends it, as intake does.
func (p *plane) suspend(agent string) uint64 {
	p.t.Helper()
	return p.judged(agent, schemas.MessageDenied, schemas.Suspended)
}

// hold has an action of an agent held, as intake does.
func (p *plane) hold(agent string) uint64 {
	p.t.Helper()
	return p.judged(agent, schemas.MessageHeld, schemas.Paused)
}

func (p *plane) judged(agent string, kind schemas.Kind, lock schemas.Lock) uint64 {
	p.t.Helper()
	log, err := bus.NewAppender(p.role(keys.RoleIntake))
	must(p.t, err)
	now := time.Now()
	seq, err := log.Append(p.t.Context(), &schemas.Event{Kind: kind, Agent: agent, ID: fmt.Sprint("h-", now.UnixNano()), Source: "intake/1", Time: now,
		Trace: schemas.Trace{ID: strings.Repeat("a", 32), Span: strings.Repeat("b", 16)}, Operation: "op", Action: schemas.Action{Verb: "call", Resource: "pandas"},
		To: "pandas", JTI: "j", Request: strings.Repeat("c", 32), Expires: now.Add(time.Minute), Digest: schemas.Sum([]byte("x")), Data: []byte("x"), Code: schemas.CodeHeld, Reason: "odd", Lock: lock})
	must(p.t, err)
	<-p.folded(seq)
	return seq
}

// The seed never leaves the agent; a token works once, also for two who use it
// at the same moment; and it does nothing else.
func TestAJoinTokenRegistersOneKey(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	token := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", JoinTTLSeconds: 60, Actor: "amy"})
	nc := p.mustClient(token.Creds)
	for _, subject := range []string{"out.token.issue", "out.token.refresh", "out.token.release", "out.op.call.pandas", "out._r.x", "writ.ctl.issuer.lock"} {
		if mayPublish(t, nc, subject) {
			t.Errorf("a join token may publish %s", subject)
		}
	}
	if maySubscribe(t, nc, "in.>") {
		t.Error("a join token may receive")
	}
	join := func(id, public string) (schemas.IssueReply, *schemas.Refusal) {
		return command[schemas.IssueReply](t, nc, "out.token.join", schemas.JoinRequest{ID: id, PublicKey: public})
	}
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	if _, r := join("guessed", public); r == nil || r.Code != schemas.CodeUnauthorized {
		t.Errorf("another id: %v", r)
	}
	if _, r := join(token.JoinID, "UNOKEY"); r == nil || r.Code != schemas.CodeMalformed {
		t.Errorf("no key: %v", r)
	}
	type result struct {
		rep schemas.IssueReply
		r   *schemas.Refusal
	}
	results := make(chan result, 8)
	for range cap(results) {
		go func() {
			rep, r := join(token.JoinID, public)
			results <- result{rep, r}
		}()
	}
	var won []schemas.IssueReply
	for range cap(results) {
		if got := <-results; got.r == nil {
			won = append(won, got.rep)
		} else if got.r.Code != schemas.CodeUnauthorized {
			t.Errorf("refused with %v", got.r)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d joined with one token", len(won))
	}
	creds, err := accounts.Creds(won[0].UserJWT, user)
	must(t, err)
	if !mayPublish(t, p.mustClient(creds), "out.token.issue") {
		t.Error("who joined can't ask for capabilities")
	}
	// One that a lock overtook, and one that ran out.
	for name, void := range map[string]func(){
		"suspended and resumed": func() { p.lock(schemas.Suspended, "analyst-7"); p.lock(schemas.Active, "analyst-7") },
		"expired":               func() { p.clock.advance(time.Hour) },
	} {
		token := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", JoinTTLSeconds: 60, Actor: "amy"})
		p.mustClient(token.Creds)
		void()
		nc, err := p.client(token.Creds)
		if err != nil {
			continue // the server refuses it
		}
		if _, r := command[schemas.IssueReply](t, nc, "out.token.join", schemas.JoinRequest{ID: token.JoinID, PublicKey: public}); r == nil {
			t.Errorf("%s: it still counts", name)
		}
	}
}

// Capabilities are asked for while the fleet is locked down: what stands behind
// the lockdown in the log is handed out to nobody.
func TestNothingIsHandedOutThatALockdownOvertook(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	for round := range 20 {
		var asking sync.WaitGroup
		var mu sync.Mutex
		last, started := uint64(0), make(chan struct{}, 1)
		for n := range 8 {
			asking.Go(func() {
				for k := 0; ; k++ {
					req := reportRequest()
					req.OperationID = fmt.Sprintf("l%d-%d-%d", round, n, k)
					got, err := bus.Call[schemas.IssueReply](t.Context(), p.operator, schemas.CtlIssue, req)
					if err != nil {
						return // the lockdown
					}
					mu.Lock()
					last = max(last, got.Seq)
					mu.Unlock()
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
		}
		<-started
		r := call[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Reason: "fire", Actor: "amy"})
		asking.Wait()
		if last > r.Seq {
			t.Fatalf("round %d: what stands under %d was handed out, behind the lockdown at %d", round, last, r.Seq)
		}
		call[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Lift: true, Reason: "over", Actor: "amy"})
	}
}

func TestALockdownIssuesNothingUntilItIsLifted(t *testing.T) {
	p := withOperators(t)
	nc := p.enroll("operator-1")
	r, refused := command[schemas.LockdownReply](t, nc, schemas.CtlLockdown, schemas.LockdownRequest{Reason: "fire", Actor: "x"})
	if refused != nil || !r.Locked || r.Seq == 0 {
		t.Fatalf("%+v, %v", r, refused)
	}
	if e := p.lastEvent("ev._fleet.policy.lockdown"); e.Actor != "operator-1" || e.Reason != "fire" {
		t.Errorf("event %+v", e)
	}
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
	again := call[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Reason: "fire again", Actor: "amy"})
	if again.Seq != r.Seq {
		t.Errorf("a second lockdown: %+v", again)
	}
	refusal[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Lift: true, Actor: "amy"}, schemas.CodeMalformed)
	p.stop() // it survives a restart
	p.start()
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
	if s := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{}); s.Lockdown != "fire" {
		t.Errorf("status %+v", s)
	}
	call[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Lift: true, Reason: "drill", Actor: "amy"})
	p.issue(reportRequest())
}
