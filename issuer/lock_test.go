package issuer_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func TestKillCutsOffAtOnceAndForGood(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	identity := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"})
	a, b := p.mustClient(issued.Creds), p.mustClient(identity.Creds)
	bystander := p.enroll("writer-2")
	r := p.lock(schemas.Killed, "analyst-7")
	if r.State != schemas.Killed || r.Seq == 0 || r.ConnectionsClosed != 2 || r.Partial || len(r.Nodes) != 1 || r.Checkpoint != fmt.Sprintf("checkpoint of %d", r.Seq) {
		t.Errorf("receipt %+v", r)
	}
	closed(a)
	closed(b)
	for what, creds := range map[string]string{"capability": issued.Creds, "identity": identity.Creds} {
		if _, err := p.client(creds); err == nil {
			t.Errorf("a killed agent's %s lets it in", what)
		}
	}
	must(t, bystander.Flush())
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
	refusal[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst-7", Lock: schemas.Active, Reason: "x", Actor: "alice"}, schemas.CodeConflict)
	if again := p.lock(schemas.Killed, "analyst-7"); again.Seq != r.Seq {
		t.Errorf("killed twice: %d and %d", r.Seq, again.Seq)
	}
}

func TestEnrolAfterAKillAdmitsNewCredentialsOnly(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	identity := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"})
	p.lock(schemas.Killed, "analyst-7")
	fresh := p.enroll("analyst-7")
	must(t, fresh.Flush())
	for what, creds := range map[string]string{"capability": issued.Creds, "identity": identity.Creds} {
		if _, err := p.client(creds); err == nil {
			t.Errorf("the %s from before the kill lets it in", what)
		}
	}
	p.mustClient(p.issue(reportRequest()).Creds)
}

func TestSuspendEndsCapabilitiesAndResumeGivesFreshKeys(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	service := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "pandas", Actor: "alice"})
	identity := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"})
	a, s := p.mustClient(issued.Creds), p.mustClient(service.Creds)
	if r := p.lock(schemas.Suspended, "analyst-7"); r.ConnectionsClosed != 1 {
		t.Errorf("receipt %+v", r)
	}
	p.lock(schemas.Suspended, "pandas")
	closed(a)
	closed(s)
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("a suspended agent is in")
	}
	if _, err := p.client(service.Creds); err == nil {
		t.Error("a suspended service is in")
	}
	asking := p.mustClient(identity.Creds)
	if r := ask(t, asking, "out.token.issue", schemas.IssueRequest{OperationID: "report"}); r.Code != schemas.CodeCancelled {
		t.Errorf("a suspended agent was answered %v", r)
	}
	p.lock(schemas.Active, "analyst-7")
	p.lock(schemas.Active, "pandas")
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("a capability from before the suspension counts after it")
	}
	p.mustClient(p.issue(reportRequest()).Creds)
	p.enroll("pandas")
}

func TestPauseDeniesRefreshAndClosesNothing(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	r := p.lock(schemas.Paused, "analyst-7")
	if r.ConnectionsClosed != 0 || r.Partial || r.State != schemas.Paused {
		t.Errorf("receipt %+v", r)
	}
	if got := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"}); got.Code != schemas.CodeHeld {
		t.Errorf("refresh of a paused agent: %v", got)
	}
	p.lock(schemas.Active, "analyst-7")
	if got := ask(t, nc, "out.token.refresh", schemas.RefreshRequest{OperationID: "report"}); got != nil {
		t.Errorf("refresh after resume: %v", got)
	}
}

// ask sends a token request as an agent does.
func ask(t *testing.T, nc *nats.Conn, subject string, req any) *schemas.Refusal {
	t.Helper()
	_, r := askFor[schemas.IssueReply](t, nc, subject, req)
	return r
}

func askFor[Rep any](t *testing.T, nc *nats.Conn, subject string, req any) (rep Rep, r *schemas.Refusal) {
	t.Helper()
	m, err := nc.Request(subject, schemas.Marshal(req), 10*time.Second)
	must(t, err)
	if r := bus.ReadRefusal(m); r != nil {
		return rep, r
	}
	must(t, json.Unmarshal(m.Data, &rep))
	return rep, nil
}

func TestReceiptTellsWhatTheLogSays(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	intake, err := bus.NewAppender(p.role(keys.RoleIntake))
	must(t, err)
	action := schemas.Event{Kind: schemas.MessageAccepted, Agent: "analyst-7", Source: "test", Time: time.Now(), Operation: "report",
		Action: schemas.Action{Verb: "call", Resource: "pandas"}, To: "pandas", JTI: "j", Request: strings.Repeat("a", 32),
		Trace: schemas.Trace{ID: strings.Repeat("a", 32), Span: strings.Repeat("b", 16)}, Expires: time.Now().Add(time.Minute), Digest: schemas.Sum(nil)}
	var seqs []uint64
	for n := range 3 {
		e := action
		e.ID = fmt.Sprint("accepted-", n)
		seq, err := intake.Append(t.Context(), &e)
		must(t, err)
		seqs = append(seqs, seq)
	}
	r := p.lock(schemas.Killed, "analyst-7")
	if r.LastAcceptedSeq != seqs[2] || !slices.Equal(r.Cancelled, seqs) || r.Seq <= seqs[2] {
		t.Errorf("receipt %+v, want %d cancelled", r, seqs)
	}
}

func TestLockByVerdictIsCarriedOutOnTheWire(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	monitor, err := bus.NewAppender(p.role(keys.RoleMonitor))
	must(t, err)
	_, err = monitor.Append(t.Context(), &schemas.Event{Kind: schemas.RiskChanged, Agent: "analyst-7", ID: "r", Source: "monitor/1", Time: time.Now(),
		Verdict: schemas.Marshal(schemas.Verdict{Risk: 95, Decision: schemas.Suspend}), Risk: 95, Lock: schemas.Suspended, Reason: "risk 95"})
	must(t, err)
	closed(nc)
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
	status := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{AgentID: "analyst-7"})
	if len(status.Agents) != 1 || status.Agents[0].State != schemas.Suspended || status.Agents[0].Connections != 0 {
		t.Errorf("status %+v", status)
	}
}

func TestLocksHoldOverARestartOfTheIssuer(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	p.lock(schemas.Killed, "analyst-7")
	p.stop()
	p.start()
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("a killed agent is in after a restart")
	}
	refusal[schemas.IssueReply](p, schemas.CtlIssue, reportRequest(), schemas.CodeCancelled)
}

func TestExpiredAccountReplayedAfterAKillLetsNobodyIn(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	// What somebody may have copied from a server's folder an hour ago: signed,
	// with keys and imports, and about to expire.
	old, err := accounts.NewMaker(p.secrets).Account(p.stored("analyst-7"), time.Now().Add(2*time.Second-accounts.TTL))
	must(t, err)
	p.lock(schemas.Killed, "analyst-7")
	_, err = p.role(keys.RoleSystem).Request("$SYS.REQ.CLAIMS.UPDATE", []byte(old), 5*time.Second)
	must(t, err)
	for {
		nc, err := p.client(issued.Creds)
		if err != nil {
			break
		}
		closed(nc)
	}
}

// stored describes the account of an active principal as it is now.
func (p *plane) stored(id string) accounts.Account {
	p.t.Helper()
	var declared schemas.Principal
	must(p.t, schemas.Unmarshal(p.lastEvent("ev."+id+".agent.declared").Data, &declared))
	return accounts.Account{ID: id, Lock: schemas.Active, Keys: accounts.Keys{Incarnation: declared.Incarnation, Generation: declared.Generation}}
}

func TestUserFromTheFutureIsRefusedAfterAKill(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	maker := accounts.NewMaker(p.secrets)
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	future := time.Now().Add(20 * time.Minute)
	token, err := maker.Identity("analyst-7", public, p.stored("analyst-7").Keys, future, future.Add(time.Hour))
	must(t, err)
	creds, err := accounts.Creds(token, user)
	must(t, err)
	nc := p.mustClient(creds)
	p.lock(schemas.Killed, "analyst-7")
	closed(nc)
	if _, err := p.client(creds); err == nil {
		t.Error("a user issued in the future is in")
	}
}

func TestKillUnderALoadOfConnectionsClosesAll(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	creds := p.issue(reportRequest()).Creds
	var all []*nats.Conn
	for range 16 {
		all = append(all, p.mustClient(creds))
	}
	if _, err := p.client(creds); err == nil {
		t.Error("a seventeenth connection was admitted")
	}
	if r := p.lock(schemas.Killed, "analyst-7"); r.ConnectionsClosed != 16 {
		t.Errorf("receipt %+v", r)
	}
	for _, nc := range all {
		closed(nc)
	}
}

// rawConnect speaks the protocol by hand and gives the server's answer to a
// connect with valid credentials and more fields.
func rawConnect(t *testing.T, address, creds, more string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	rd := bufio.NewReader(conn)
	line, err := rd.ReadString('\n')
	must(t, err)
	var info struct {
		Nonce string `json:"nonce"`
	}
	must(t, json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info))
	token, err := jwt.ParseDecoratedJWT([]byte(creds))
	must(t, err)
	user, err := jwt.ParseDecoratedUserNKey([]byte(creds))
	must(t, err)
	sig, err := user.Sign([]byte(info.Nonce))
	must(t, err)
	fmt.Fprintf(conn, "CONNECT {\"jwt\":%q,\"sig\":%q,\"verbose\":false,\"protocol\":1%s}\r\nPING\r\n", token, base64.RawURLEncoding.EncodeToString(sig), more)
	for {
		line, err := rd.ReadString('\n')
		if err != nil {
			return "closed"
		}
		if !strings.HasPrefix(line, "INFO") {
			return strings.TrimSpace(line)
		}
	}
}

func TestOtherProtocolsHaveNoDoor(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	creds := p.issue(reportRequest()).Creds
	address := strings.TrimPrefix(p.srv.URL(), "nats://")
	if got := rawConnect(t, address, creds, ""); got != "PONG" {
		t.Fatalf("a plain client gets %q", got)
	}
	for what, more := range map[string]string{"a bad signature": `,"sig":"AAAA"`, "no signature": `,"sig":""`} {
		if got := rawConnect(t, address, creds, more); !strings.HasPrefix(got, "-ERR") {
			t.Errorf("%s gets %q", what, got)
		}
	}
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	all := new(strings.Builder)
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			break
		}
	}
	if strings.Contains(all.String(), "HTTP/1.1 101") {
		t.Errorf("WebSocket is spoken: %q", all)
	}
}

func TestAgentsCredentialsOpenNoLeafNode(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	maker := accounts.NewMaker(p.secrets)
	token, err := maker.Account(accounts.Account{ID: "analyst-7", Lock: schemas.Active}, time.Now())
	must(t, err)
	c, err := jwt.DecodeAccountClaims(token)
	must(t, err)
	if c.Limits.LeafNodeConn != 0 || !c.Limits.DisallowBearer || c.Limits.IsJSEnabled() || c.Limits.Exports != 0 {
		t.Errorf("limits %+v", c.Limits)
	}
	for _, s := range c.SigningKeys {
		types := s.(*jwt.UserScope).Template.AllowedConnectionTypes
		if slices.Contains(types, jwt.ConnectionTypeLeafnode) || slices.Contains(types, jwt.ConnectionTypeWebsocket) || len(types) == 0 {
			t.Errorf("connection types %v", types)
		}
	}
}

func TestViolationsReachTheLog(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	nc := p.mustClient(p.issue(reportRequest()).Creds)
	must(t, nc.Publish("out.report.call.bash", []byte("x")))
	v := <-p.srv.Violations()
	must(t, p.issuer.ReportViolation(t.Context(), v.Account, schemas.Violation{Subject: v.Subject, What: v.What, Count: v.Count}))
	e := p.lastEvent("ev.analyst-7.agent.violation")
	var got schemas.Violation
	must(t, schemas.Unmarshal(e.Data, &got))
	if want := "the server refused to let it publish out.report.call.bash"; e.Reason != want {
		t.Errorf("its reason is %q, want %q", e.Reason, want)
	}
	if got != (schemas.Violation{Subject: "out.report.call.bash", What: "publish", Count: 1}) {
		t.Errorf("got %+v", got)
	}
	must(t, p.issuer.ReportViolation(t.Context(), "ACNOBODY", schemas.Violation{}))
}

// lastEvent is the newest event under a subject.
func (p *plane) lastEvent(subject string) *schemas.Event {
	p.t.Helper()
	last := p.newestEvent(subject)
	if last == nil {
		p.t.Fatalf("no event %s", subject)
	}
	return last
}

// newestEvent is the same, and nil where there is none.
func (p *plane) newestEvent(subject string) *schemas.Event {
	p.t.Helper()
	var last *schemas.Event
	ctx, cancel := context.WithCancel(p.t.Context())
	defer cancel()
	f := bus.Follower{Conn: p.role(keys.RoleMonitor), Consumer: "monitor", CaughtUp: func(uint64) { cancel() }}
	_ = f.Run(ctx, func(entry bus.Entry) error {
		e, err := entry.Event()
		if entry.Subject == subject {
			last = e
		}
		return err
	})
	return last
}

// crippled is the issuer's user without the right to log a kill.
func (p *plane) crippled() *nats.Conn {
	p.t.Helper()
	return p.changed(keys.RoleIssuer, keys.CONTROL, func(c *jwt.UserClaims) { c.Pub.Deny.Add(schemas.EventSubject("*", schemas.AgentKilled)) })
}

// changed is a role's user with other rights.
func (p *plane) changed(role keys.Role, account string, change func(*jwt.UserClaims)) *nats.Conn {
	p.t.Helper()
	creds, err := keys.Creds(p.data, role)
	must(p.t, err)
	token, err := jwt.ParseDecoratedJWT(creds)
	must(p.t, err)
	claims, err := jwt.DecodeUserClaims(token)
	must(p.t, err)
	change(claims)
	seed, err := os.ReadFile(filepath.Join(p.data, keys.Dir, "accounts", account+".seed"))
	must(p.t, err)
	signer, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	must(p.t, err)
	token, err = claims.Encode(signer)
	must(p.t, err)
	user, err := jwt.ParseDecoratedUserNKey(creds)
	must(p.t, err)
	text, err := accounts.Creds(token, user)
	must(p.t, err)
	nc, err := bus.Connect(bus.Options{Role: string(role), Server: p.srv, Creds: []byte(text)})
	must(p.t, err)
	p.t.Cleanup(nc.Close)
	return nc
}

// A server with many accounts takes milliseconds over a killed one: what the agent
// has open is closed before. Where the servers are slow to say what that is, the
// push comes first, so that this is tried until they are not.
func TestConnectionsAreCutBeforeTheAccountIsPushed(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	spy := p.changed(keys.RoleSystem, keys.SYS, func(c *jwt.UserClaims) { c.Sub.Allow.Add("$SYS.REQ.>") })
	sub, err := spy.SubscribeSync("$SYS.REQ.>")
	must(t, err)
	must(t, spy.Flush())
	for range 20 {
		a := p.enroll("analyst-7")
		must(t, a.Flush())
		for n, _, err := sub.Pending(); n > 0; n, _, err = sub.Pending() { // what enrolling took
			must(t, err)
			_, err = sub.NextMsg(time.Second)
			must(t, err)
		}
		p.lock(schemas.Killed, "analyst-7")
		closed(a)
		for {
			m, err := sub.NextMsg(10 * time.Second)
			must(t, err)
			if strings.HasSuffix(m.Subject, ".KICK") {
				return
			}
			if m.Subject == "$SYS.REQ.CLAIMS.UPDATE" {
				break
			}
		}
	}
	t.Error("the account was pushed before any connection was closed, time after time")
}

func TestKillThatTheLogDoesNotTakeCutsOffAllTheSame(t *testing.T) {
	t.Parallel() // waits for the log to not answer
	p := newPlane(t, embed.Options{})
	p.apply()
	issued := p.issue(reportRequest())
	nc := p.mustClient(issued.Creds)
	p.stop()
	p.startWith(p.crippled())
	r := refusal[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst-7", Lock: schemas.Killed, Reason: "test", Actor: "alice"}, schemas.CodeUnavailable)
	if !strings.Contains(r.Text, "repeat the command") {
		t.Error(r)
	}
	closed(nc)
	// It is not undone by a renewal of the account either.
	p.clock.advance(accounts.TTL)
	old := p.storedAccount("analyst-7")
	for p.storedAccount("analyst-7").IssuedAt <= old.IssuedAt {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := p.client(issued.Creds); err == nil {
		t.Error("the agent is in")
	}
}

// storedAccount is the account that the server keeps.
func (p *plane) storedAccount(id string) *jwt.AccountClaims {
	p.t.Helper()
	public, err := accounts.NewMaker(p.secrets).PublicKey(id, p.stored(id).Incarnation)
	must(p.t, err)
	return p.accountFile(public)
}

// accountFile is an account as the server has it.
func (p *plane) accountFile(public string) *jwt.AccountClaims {
	p.t.Helper()
	for {
		b, err := os.ReadFile(filepath.Join(p.data, "nats", "accounts", public+".jwt"))
		must(p.t, err)
		// The server rewrites the file in place; a reader may see half of it.
		if c, err := jwt.DecodeAccountClaims(string(b)); err == nil {
			return c
		}
	}
}

func TestAccountsAreRenewedAtHalfLifeWithRisingIssuingTimes(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	before := p.storedAccount("writer-2")
	p.clock.advance(accounts.TTL/2 + time.Second)
	// A push of the declaration may still be on its way: what is waited for is
	// the renewal.
	after := before
	for renewed := before.IssuedAt + int64(accounts.TTL/2/time.Second); after.IssuedAt < renewed; after = p.storedAccount("writer-2") {
		time.Sleep(10 * time.Millisecond)
	}
	if after.Expires-before.Expires != after.IssuedAt-before.IssuedAt {
		t.Errorf("iat %d to %d, exp %d to %d", before.IssuedAt, after.IssuedAt, before.Expires, after.Expires)
	}
	p.lock(schemas.Killed, "writer-2")
	killed := p.storedAccount("writer-2")
	if killed.IssuedAt <= after.IssuedAt {
		t.Errorf("a kill issued at %d behind %d would lose against what it replaces", killed.IssuedAt, after.IssuedAt)
	}
	// Pushed again a second later: a server that was away keeps the newer one.
	p.clock.advance(2 * time.Second)
	for p.storedAccount("writer-2").IssuedAt <= killed.IssuedAt {
		time.Sleep(10 * time.Millisecond)
	}
	if again := p.storedAccount("writer-2"); len(again.SigningKeys) != 0 || len(again.Imports) != 0 {
		t.Errorf("pushed again: %+v", again)
	}
}
