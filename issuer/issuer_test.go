package issuer_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/broker/intake"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

func TestConsumersAreProvisionedForWhatServicesFollow(t *testing.T) {
	if !slices.Equal(embed.Filters(keys.RoleIssuer), issuer.Filters) || !slices.Equal(embed.Filters(keys.RoleIntake), intake.Filters) {
		t.Errorf("the consumers of embed.Provision differ from what the services ask for")
	}
}

// A lock that stands in an event of intake or the monitor must reach those who
// carry it out.
func TestEveryEventThatCanLockIsFollowed(t *testing.T) {
	for _, kind := range []schemas.Kind{schemas.MessageHeld, schemas.MessageDenied, schemas.ResponseHeld, schemas.ResponseDenied, schemas.RiskChanged} {
		subject := schemas.EventSubject("alice", kind)
		for who, filters := range map[string][]string{"intake": intake.Filters, "issuer": issuer.Filters} {
			if !slices.ContainsFunc(filters, func(f string) bool {
				f, rest := strings.CutSuffix(strings.Replace(f, "*", "alice", 1), ">")
				return f == subject || rest && strings.HasPrefix(subject, f)
			}) {
				t.Errorf("%s does not follow %s", who, subject)
			}
		}
	}
}

func TestIssuedTokenIsVerifiableOfflineAndNamesItsKey(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	got := p.issue(reportRequest())
	jwks := call[map[string]any](p, schemas.CtlJWKS, nil)
	v, err := capability.NewVerifier("acme.example", schemas.Marshal(jwks))
	must(t, err)
	nc := p.mustClient(got.Creds)
	claims, err := v.Verify(got.Token, capability.Expect{Time: time.Now(), Scope: "read:data.sales", Delivered: true})
	must(t, err)
	if claims.JTI != got.JTI || claims.AgentID != "analyst-7" || claims.Confirmation.NKey == "" || claims.IssuedBy != "root/alice" || claims.Txn != got.TraceID {
		t.Errorf("claims %+v", claims)
	}
	must(t, nc.Flush())
	if _, err := v.Verify(got.Token, capability.Expect{Time: time.Now(), Tool: "bash", Delivered: true}); err == nil {
		t.Error("a forbidden tool passes")
	}
	e := p.lastEvent("ev.analyst-7.token.issued")
	var g schemas.Grant
	must(t, schemas.Unmarshal(e.Data, &g))
	if g.Token != got.Token || g.PublicKey != claims.Confirmation.NKey || e.Seq != got.Seq || e.Actor != "root/alice" {
		t.Errorf("event %+v", e)
	}
}

func TestAgentsAskForThemselvesAndForThoseTheyMayIssueFor(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	orchestrator, analyst, writer := p.enroll("orchestrator"), p.enroll("analyst-7"), p.enroll("writer-2")
	req := reportRequest()
	req.Actor = "root" // a claim that must not count
	child, r := askFor[schemas.IssueReply](t, orchestrator, "out.token.issue", req)
	if r != nil {
		t.Fatal(r)
	}
	p.mustClient(child.Creds)
	if e := p.lastEvent("ev.analyst-7.token.issued"); e.Actor != "orchestrator" {
		t.Errorf("issued by %s", e.Actor)
	}
	if r := ask(t, analyst, "out.token.issue", req); r != nil {
		t.Error(r)
	}
	if r := ask(t, writer, "out.token.issue", req); r == nil || r.Code != schemas.CodeForbidden {
		t.Errorf("a stranger was answered %v", r)
	}
	if r := ask(t, writer, "out.token.issue", map[string]any{"operation_id": "x", "surprise": 1}); r == nil || r.Code != schemas.CodeMalformed {
		t.Errorf("an unknown key was answered %v", r)
	}
	if r := ask(t, writer, "out.token.mint", map[string]any{}); r == nil || r.Code != schemas.CodeMalformed {
		t.Errorf("an unknown request was answered %v", r)
	}
}

func TestRefreshOverlapsAndKeepsToTheOperation(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	first := p.issue(reportRequest())
	nc := p.mustClient(first.Creds)
	next, r := askFor[schemas.IssueReply](t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"})
	if r != nil {
		t.Fatal(r)
	}
	if next.JTI == first.JTI || next.Creds != "" || !slices.Equal(next.Scope, first.Scope) {
		t.Errorf("refreshed: %+v", next)
	}
	var g schemas.Grant
	must(t, schemas.Unmarshal(p.lastEvent("ev.analyst-7.token.issued").Data, &g))
	if g.Refreshes != first.JTI || g.TraceID != first.TraceID || g.Task != "Summarise the sales" {
		t.Errorf("grant %+v", g)
	}
	if r := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "other"}); r == nil || r.Code != schemas.CodeUnauthorized {
		t.Errorf("another operation: %v", r)
	}
}

// An agent gets no answer in time, asks again, and is answered twice. A second
// refresh would void what it sent under the first of three capabilities, so it
// gets the same again, if it still holds and nothing else would be granted now.
func TestARefreshAskedForTwiceIsDoneOnce(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	refresh := func() schemas.IssueReply {
		t.Helper()
		reply, r := askFor[schemas.IssueReply](t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"})
		if r != nil {
			t.Fatal(r)
		}
		return reply
	}
	once := refresh()
	twice := refresh()
	if twice.JTI != once.JTI || twice.Token != once.Token || twice.Seq != once.Seq || !twice.ExpiresAt.Equal(once.ExpiresAt) || twice.UserJWT == "" {
		t.Errorf("asked for twice: %s of event %d, then %s of event %d", once.JTI, once.Seq, twice.JTI, twice.Seq)
	}
	if last := p.lastEvent("ev.analyst-7.token.issued"); last.Seq != once.Seq {
		t.Errorf("event %d was logged behind %d", last.Seq, once.Seq)
	}
	p.clock.advance(time.Minute)
	later := refresh()
	if later.JTI == once.JTI {
		t.Error("what is asked for later is the same again")
	}
	// Whoever has stolen the key must not keep anybody on what it signed.
	call[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Compromised: true, Reason: "stolen", Actor: "alice"})
	if rotated := refresh(); rotated.JTI == later.JTI {
		t.Error("behind a rotation what the former key signed is handed out again")
	}
	call[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst-7", Lock: schemas.Paused, Reason: "why", Actor: "alice"})
	if r := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"}); r == nil || r.Code != schemas.CodeHeld {
		t.Errorf("a paused agent is given it again: %v", r)
	}
}

func TestIdentityIsRenewedByUse(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	reply := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"})
	nc := p.mustClient(reply.Creds)
	renewed, r := askFor[schemas.IssueReply](t, nc, "out.token.refresh", schemas.RefreshRequest{PublicKey: reply.PublicKey})
	if r != nil {
		t.Fatal(r)
	}
	i := strings.Index(reply.Creds, "-----BEGIN USER NKEY SEED-----")
	p.mustClient("-----BEGIN NATS USER JWT-----\n" + renewed.UserJWT + "\n------END NATS USER JWT------\n\n" + reply.Creds[i:])
}

func TestReleaseEndsAnOperationAndExpiryDoesToo(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	ack, r := askFor[schemas.Ack](t, nc, "out.token.release", schemas.ReleaseRequest{OperationID: "report"})
	if r != nil || ack.Seq == 0 {
		t.Fatal(ack, r)
	}
	if r := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"}); r == nil || r.Code != schemas.CodeUnauthorized {
		t.Errorf("refresh of what was given up: %v", r)
	}
	if r := ask(t, nc, "out.token.release", schemas.ReleaseRequest{OperationID: "report"}); r == nil || r.Code != schemas.CodeNotFound {
		t.Errorf("given up twice: %v", r)
	}
	req := reportRequest()
	req.OperationID = "second"
	p.issue(req)
	ended := p.await("ev.analyst-7.operation.ended")
	p.clock.advance(10 * time.Minute)
	if e := <-ended; e.Operation != "second" || e.Reason != "expired" {
		t.Errorf("got %+v", e)
	}
}

// await hands over the next event under a subject.
func (p *plane) await(subject string) <-chan *schemas.Event {
	p.t.Helper()
	js, err := jetstream.New(p.role(keys.RoleInit))
	must(p.t, err)
	cons, err := js.CreateConsumer(p.t.Context(), schemas.Stream, jetstream.ConsumerConfig{FilterSubject: subject, DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckNonePolicy})
	must(p.t, err)
	out := make(chan *schemas.Event, 64)
	c, err := cons.Consume(func(m jetstream.Msg) {
		e, err := schemas.Decode(m.Subject(), schemas.Header(m.Headers()), m.Data())
		if err != nil {
			p.t.Errorf("await: %v", err)
			return
		}
		out <- e
	})
	must(p.t, err)
	p.t.Cleanup(c.Stop)
	return out
}

func TestApplyIsIdempotentAndPruneKills(t *testing.T) {
	p := newPlane(t, embed.Options{})
	if got := call[schemas.ApplyReply](p, schemas.CtlApply, fleetOf()); len(got.Changes) != 4 {
		t.Errorf("changes %+v", got)
	}
	issued := p.issue(reportRequest())
	seq := p.lastEvent("ev._fleet.policy.applied").Seq
	if got := call[schemas.ApplyReply](p, schemas.CtlApply, fleetOf()); len(got.Changes) != 0 {
		t.Errorf("changes %+v", got)
	}
	if again := p.lastEvent("ev._fleet.policy.applied").Seq; again != seq {
		t.Error("nothing changed, and yet it was logged")
	}
	smaller := fleetOf()
	smaller.Principals = smaller.Principals[1:]
	refusal[schemas.ApplyReply](p, schemas.CtlApply, smaller, schemas.CodeConflict)
	smaller.Prune, smaller.DryRun = true, true
	call[schemas.ApplyReply](p, schemas.CtlApply, smaller)
	nc := p.mustClient(issued.Creds)
	smaller.DryRun = false
	call[schemas.ApplyReply](p, schemas.CtlApply, smaller)
	closed(nc)
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeNotFound)
	// Declared again under the same name, its old credentials are worth nothing.
	p.apply()
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("credentials of a removed agent count for the one that took its name")
	}
	p.mustClient(p.issue(reportRequest()).Creds)
}

func TestLoweredCeilingRevokesLiveCapabilities(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	lower := fleetOf()
	c := *analyst.Ceiling
	c.Tools = []string{"matplotlib"}
	lower.Principals[0].Ceiling = &c
	call[schemas.ApplyReply](p, schemas.CtlApply, lower)
	if e := p.lastEvent("ev.analyst-7.token.revoked"); e.Reason != "the ceiling no longer admits call:pandas" {
		t.Errorf("revoked: %+v", e)
	}
	p.lastEvent("ev.analyst-7.operation.ended")
	if r := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"}); r == nil || r.Code != schemas.CodeUnauthorized {
		t.Errorf("refresh: %v", r)
	}
}

// Capabilities are asked for while the ceiling is lowered: what was decided
// under the old one and logged behind it does not stay.
func TestNothingSlipsInWhileACeilingIsLowered(t *testing.T) {
	p := newPlane(t, embed.Options{})
	lower := fleetOf()
	c := *analyst.Ceiling
	c.Tools = []string{"matplotlib"}
	lower.Principals[0].Ceiling = &c
	for round := range 5 {
		p.apply()
		var asking sync.WaitGroup
		stop := make(chan struct{})
		for n := range 8 {
			asking.Go(func() {
				for k := 0; ; k++ {
					select {
					case <-stop:
						return
					default:
					}
					req := reportRequest()
					req.OperationID = fmt.Sprintf("r%d-%d-%d", round, n, k)
					if _, err := bus.Call[schemas.IssueReply](t.Context(), p.operator, schemas.CtlIssue, req); err != nil {
						return // the lower ceiling
					}
				}
			})
		}
		call[schemas.ApplyReply](p, schemas.CtlApply, lower)
		close(stop)
		asking.Wait()
		for _, live := range call[schemas.TokensReply](p, schemas.CtlTokens, schemas.TokensRequest{AgentID: "analyst-7", PageRequest: schemas.PageRequest{Limit: 1000}}).Tokens {
			if slices.Contains(live.Scope, "call:pandas") {
				t.Fatalf("round %d: %s still holds %v", round, live.OperationID, live.Scope)
			}
		}
	}
}

func TestDeclarationsAreRepeatedBeforeTheyAgeOut(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	p.lock(schemas.Killed, "writer-2")
	again, policy := p.await("ev.writer-2.agent.declared"), p.await("ev._fleet.policy.applied")
	p.clock.advance(embed.Retention/2 + time.Minute)
	e := <-again
	var got schemas.Principal
	must(t, schemas.Unmarshal(e.Data, &got))
	if got.ID != "writer-2" || got.Lock != schemas.Killed || got.Generation == 0 {
		t.Errorf("declared %+v", got)
	}
	<-policy
}

// A lockdown stands until it is lifted, also where no fleet was ever applied
// whole, and over a time in which the log forgets its event.
func TestALockdownIsRepeatedBeforeItAgesOut(t *testing.T) {
	for _, applied := range []bool{true, false} {
		p := newPlane(t, embed.Options{})
		if applied {
			p.apply()
		}
		call[schemas.LockdownReply](p, schemas.CtlLockdown, schemas.LockdownRequest{Reason: "fire", Actor: "amy"})
		again := p.await("ev._fleet.policy.lockdown")
		p.clock.advance(embed.Retention/2 + time.Minute)
		select {
		case e := <-again:
			if e.Reason != "fire" {
				t.Errorf("repeated %+v", e)
			}
		case <-time.After(time.Minute):
			t.Fatalf("applied %t: not repeated", applied)
		}
	}
}

func TestReviewsAreListedAndDecidedOnce(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	log, err := bus.NewAppender(p.role(keys.RoleIntake))
	must(t, err)
	verdict := schemas.Verdict{Risk: 80, Decision: schemas.Pause, Factors: []schemas.Factor{{ID: "new_value", Points: 80}}}
	seq, err := log.Append(t.Context(), &schemas.Event{Kind: schemas.MessageHeld, Agent: "analyst-7", ID: "h", Source: "intake/1", Time: time.Now(),
		Operation: "report", Action: schemas.Action{Verb: "send", Resource: "writer-2"}, To: "writer-2", JTI: "j", Request: strings.Repeat("a", 32),
		Trace: schemas.Trace{ID: strings.Repeat("a", 32), Span: strings.Repeat("b", 16)}, Expires: time.Now().Add(time.Hour), Digest: schemas.Sum([]byte("x")),
		Verdict: schemas.Marshal(verdict), Risk: 80, Lock: schemas.Paused, Reason: "risk 80", Data: []byte("x")})
	must(t, err)
	<-p.folded(seq)
	list := call[schemas.ReviewsReply](p, schemas.CtlReviews, schemas.PageRequest{})
	if len(list.Reviews) != 1 || list.Reviews[0].Seq != seq || list.Reviews[0].Risk != 80 || len(list.Reviews[0].Factors) != 1 || list.Reviews[0].Action != "send:writer-2" {
		t.Errorf("reviews %+v", list)
	}
	got := call[schemas.ReviewReply](p, schemas.CtlReview, schemas.ReviewRequest{Seq: seq, Approve: true, Actor: "alice"})
	if got.State != "approved" || got.AgentID != "analyst-7" {
		t.Errorf("review %+v", got)
	}
	refusal[schemas.ReviewReply](p, schemas.CtlReview, schemas.ReviewRequest{Seq: seq, Approve: true, Actor: "alice"}, schemas.CodeNotFound)
	if s := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{AgentID: "analyst-7"}); s.Agents[0].State != schemas.Active {
		t.Errorf("after approval %+v", s)
	}
}

// folded is closed when the issuer has folded a sequence: it answers its
// health with it.
func (p *plane) folded(seq uint64) <-chan struct{} {
	done := make(chan struct{})
	for {
		h := call[schemas.Health](p, schemas.CtlHealth, nil)
		if h.Seq >= seq {
			close(done)
			return done
		}
	}
}

func TestStatusPagesAndCountsConnections(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	creds := p.issue(reportRequest()).Creds
	p.mustClient(creds)
	p.mustClient(creds)
	page := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{PageRequest: schemas.PageRequest{Limit: 2}})
	if len(page.Agents) != 2 || page.Agents[0].AgentID != "analyst-7" || page.Agents[0].Connections != 2 || !slices.Equal(page.Agents[0].Operations, []string{"report"}) || page.Next != "memory" {
		t.Errorf("first page %+v", page)
	}
	page = call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{PageRequest: schemas.PageRequest{After: page.Next}})
	if len(page.Agents) != 3 || page.Next != "" {
		t.Errorf("second page %+v", page)
	}
	refusal[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{AgentID: "nobody"}, schemas.CodeNotFound)
	refusal[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{PageRequest: schemas.PageRequest{Limit: 1001}}, schemas.CodeMalformed)
}

func TestFloodOfTokenRequestsIsShed(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.enroll("writer-2")
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	must(t, err)
	const asked = 400
	for range asked {
		must(t, nc.PublishRequest("out.token.refresh", inbox, []byte(`{"operation_id":"x"}`)))
	}
	codes := map[string]int{}
	for n := 0; n < asked; {
		m, err := sub.NextMsg(20 * time.Second)
		must(t, err)
		if code := m.Header.Get(schemas.HeaderErrorCode); code != "" {
			codes[code]++
			n++
		}
	}
	if codes["429"] == 0 || codes["401"] < 100 {
		t.Errorf("answers %v", codes)
	}
	// Another agent is served meanwhile.
	if r := ask(t, p.enroll("orchestrator"), "out.token.issue", schemas.IssueRequest{OperationID: "plan"}); r != nil {
		t.Error(r)
	}
}

// TestNoSecretIsStored looks for every secret of the issuer in what the server
// keeps on disk.
func TestNoSecretIsStored(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	reply := p.issue(reportRequest())
	identity := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"})
	p.stop()
	var secrets [][]byte
	for _, creds := range []string{reply.Creds, identity.Creds} {
		_, rest, _ := strings.Cut(creds, "SEED-----\n")
		seed, _, _ := strings.Cut(rest, "\n")
		if !strings.HasPrefix(seed, "SU") {
			t.Fatal("no seed in the credentials")
		}
		secrets = append(secrets, []byte(seed))
	}
	must(t, filepath.WalkDir(filepath.Join(p.data, "keys"), func(path string, d os.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".seed") || strings.HasSuffix(path, ".secret") || strings.HasSuffix(path, ".note")) {
			b, err := os.ReadFile(path)
			must(t, err)
			secrets = append(secrets, bytes.TrimSpace(b))
		}
		return err
	}))
	must(t, filepath.WalkDir(filepath.Join(p.data, "nats"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		must(t, err)
		for _, s := range secrets {
			if bytes.Contains(b, s) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return nil
	}))
}

func TestStockRequestSeesRefusalsAsServiceErrors(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.enroll("writer-2")
	m, err := nc.Request("out.token.issue", []byte(`{`), 10*time.Second)
	must(t, err)
	if m.Header.Get("Nats-Service-Error-Code") != "400" || m.Header.Get("Nats-Service-Error") == "" || !bytes.Contains(m.Data, []byte(`"err_code"`)) {
		t.Errorf("headers %v, body %s", m.Header, m.Data)
	}
}
