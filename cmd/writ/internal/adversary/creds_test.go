package adversary

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func scoped(tags ...string) func(*jwt.UserClaims) {
	return func(c *jwt.UserClaims) {
		c.SetScoped(true)
		c.Tags.Add(tags...)
	}
}

// Whatever a thief of one key can sign, it opens no more than that key does.
func TestForgedCredentialsAreTurnedAway(t *testing.T) {
	r, alice, creds := stage(t)
	account, operation := r.account("mallory"), r.key("mallory", keys.OperationKey)
	good := scoped("op:op", "scope:call.echo", "deny:_none")
	if _, err := r.dial(userOf(t, account, operation, good)); err != nil {
		t.Fatalf("the control: a well-made user does not connect: %v", err)
	}
	stranger, err := nkeys.CreateAccount()
	must(t, err)
	strangerID, err := stranger.PublicKey()
	must(t, err)
	with := func(change func(*jwt.UserClaims)) func(*jwt.UserClaims) {
		return func(c *jwt.UserClaims) {
			good(c)
			change(c)
		}
	}
	honest, err := jwt.ParseDecoratedJWT([]byte(creds))
	must(t, err)
	other, err := jwt.ParseDecoratedUserNKey([]byte(r.enroll("slow")))
	must(t, err)
	seed, err := other.Seed()
	must(t, err)
	own, err := jwt.ParseDecoratedUserNKey([]byte(creds))
	must(t, err)
	ownSeed, err := own.Seed()
	must(t, err)
	for name, forged := range map[string]string{
		"signed by the account's own key":         userOf(t, account, r.key("mallory", keys.AccountKey), everything),
		"signed by another agent's key":           userOf(t, account, r.key("alice", keys.OperationKey), good),
		"signed by its key for another agent":     userOf(t, r.account("alice"), operation, good),
		"signed by its key for CONTROL":           userOf(t, r.secrets.Trust.Accounts[keys.CONTROL], operation, everything),
		"signed by its key for DELIVER":           userOf(t, r.secrets.Trust.Accounts[keys.DELIVER], operation, everything),
		"signed by its key for SYS":               userOf(t, r.secrets.Trust.Accounts[keys.SYS], operation, everything),
		"of an account that nobody signed":        userOf(t, strangerID, stranger, everything),
		"signed by a stranger for an account":     userOf(t, account, stranger, good),
		"of the keys' next generation":            userOf(t, account, r.keyOf("mallory", accounts.Keys{Incarnation: r.keys("mallory").Incarnation, Generation: r.keys("mallory").Generation + 1}, keys.OperationKey), good),
		"with permissions of its own":             userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.Pub.Allow.Add(">") })),
		"with limits of its own":                  userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.Limits.Subs = 1 << 20 })),
		"as a bearer":                             userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.BearerToken = true })),
		"with the right to answer anybody":        userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.Resp = &jwt.ResponsePermission{MaxMsgs: 1000, Expires: time.Hour} })),
		"expired":                                 userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.Expires = time.Now().Add(-time.Second).Unix() })),
		"not valid yet":                           userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.NotBefore = time.Now().Add(time.Hour).Unix() })),
		"issued before the agent was there":       userOf(t, account, operation, with(func(c *jwt.UserClaims) { c.IssuedAt = time.Now().Add(-24 * time.Hour).Unix() })),
		"without a denial":                        userOf(t, account, operation, scoped("op:op", "scope:call.echo")),
		"with a denial that is no subject":        userOf(t, account, operation, scoped("op:op", "scope:call.echo", "deny:a b")),
		"with the key of another user":            strings.Replace(creds, string(ownSeed), string(seed), 1),
		"with one letter of the payload replaced": strings.Replace(creds, honest, tampered(honest), 1),
		"without a signature":                     strings.Replace(creds, honest, honest[:strings.LastIndex(honest, ".")+1], 1),
	} {
		t.Run(name, func(t *testing.T) {
			if nc, err := r.dial(forged); err == nil {
				t.Errorf("it connects: %s", nc.ConnectedUrl())
			}
		})
	}
	// A bearer in an account without templates, and a user for other
	// protocols: the account's own limits turn them away.
	loose := r.widenedKey("mallory")
	for name, change := range map[string]func(*jwt.UserClaims){
		"a bearer":            func(c *jwt.UserClaims) { everything(c); c.BearerToken = true },
		"a user of WebSocket": func(c *jwt.UserClaims) { everything(c); c.AllowedConnectionTypes.Add(jwt.ConnectionTypeWebsocket) },
		"a user of leaf nodes": func(c *jwt.UserClaims) {
			everything(c)
			c.AllowedConnectionTypes.Add(jwt.ConnectionTypeLeafnode, jwt.ConnectionTypeLeafnodeWS)
		},
	} {
		if _, err := r.dial(userOf(t, account, loose, change)); err == nil {
			t.Errorf("%s connects", name)
		}
	}
	works(t, alice, "out.op.call.echo")
	r.sound()
}

func tampered(token string) string {
	at := strings.Index(token, ".") + 20
	letter := "A"
	if token[at] == 'A' {
		letter = "B"
	}
	return token[:at] + letter + token[at+1:]
}

// What an identity key signs can ask for capabilities, whatever it claims.
func TestStolenIdentityKeyPublishesNoAction(t *testing.T) {
	r, _, _ := stage(t)
	nc := r.client(userOf(t, r.account("mallory"), r.key("mallory", keys.IdentityKey), scoped("op:op", "scope:call.echo", "deny:_none")))
	calls := 0
	for _, subject := range []string{"out.op.call.echo", "out.op.send.alice", "out._r.x", "out.op.memory.put.x"} {
		must(t, nc.Publish(subject, []byte("by the identity key")))
		calls++
	}
	_, refusal := ask(t, nc, &nats.Msg{Subject: "out.token.issue", Data: schemas.Marshal(schemas.IssueRequest{OperationID: "own", Tools: []string{"echo"}})})
	if refusal != nil {
		t.Errorf("the control: it can't do what it is for: %v", refusal)
	}
	for _, e := range r.log() {
		if string(e.Data) == "by the identity key" {
			t.Errorf("%d: %s of %s", e.Seq, e.Kind, e.Agent)
		}
	}
	if calls == 0 {
		t.Error("nothing was tried")
	}
	r.sound()
}

// A killed agent comes back by nothing that it, or a thief, could have kept.
func TestKilledAgentStaysOut(t *testing.T) {
	r, alice, creds := stage(t)
	identity := r.enroll("mallory")
	account := r.account("mallory")
	maker := accounts.NewMaker(r.secrets)
	ours := r.keys("mallory")
	operation := r.key("mallory", keys.OperationKey)
	fromTheFuture := userOf(t, account, operation, func(c *jwt.UserClaims) {
		scoped("op:op", "scope:call.echo", "deny:_none")(c)
		c.IssuedAt = time.Now().AddDate(50, 0, 0).Unix()
	})
	if _, err := r.dial(fromTheFuture); err != nil {
		t.Fatalf("the control: the server does not take a user from the future: %v", err)
	}
	before := r.client(creds)
	works(t, before, "out.op.call.echo")
	receipt := call[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "mallory", Lock: schemas.Killed, Reason: "hijacked", Actor: "rig"})
	if receipt.Partial || receipt.ConnectionsClosed == 0 {
		t.Errorf("receipt %+v", receipt)
	}
	until(t, "its connections were closed", before.IsClosed)
	outside := func(when string) {
		t.Helper()
		for name, creds := range map[string]string{"capability": creds, "identity": identity, "user from the future": fromTheFuture,
			"user signed now": userOf(t, account, operation, scoped("op:op", "scope:call.echo", "deny:_none")),
			"identity signed": userOf(t, account, r.key("mallory", keys.IdentityKey), scoped())} {
			if _, err := r.dial(creds); err == nil {
				t.Errorf("%s, the %s lets it in", when, name)
			}
		}
	}
	outside("behind the kill")
	// An account JWT that somebody kept, sent to the server by all who have
	// no right to: by agents, services and every role but one.
	kept, err := maker.Account(accounts.Account{ID: "mallory", Lock: schemas.Active, Keys: ours}, time.Now())
	must(t, err)
	senders := []*nats.Conn{alice, r.client(r.enroll("echo")), r.client(r.widened("slow"))}
	for role := range jobs {
		if role != keys.RoleSystem {
			senders = append(senders, r.role(role))
		}
	}
	for _, nc := range senders {
		for _, subject := range []string{"$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT." + account + ".CLAIMS.UPDATE", "$SYS.ACCOUNT." + account + ".CLAIMS.UPDATE"} {
			must(t, nc.Publish(subject, []byte(kept)))
		}
		must(t, nc.Flush())
	}
	outside("behind a replay by others")
	// Expired, it is worth nothing even to the issuer's own user.
	expired, err := maker.Account(accounts.Account{ID: "mallory", Lock: schemas.Active, Keys: ours}, time.Now().Add(-accounts.TTL-time.Minute))
	must(t, err)
	_ = r.push(expired) // the server may take it or not
	outside("behind the replay of what has expired")
	// And were the server itself deceived, with the issuer's own credentials:
	// what counts is the lock in the log.
	must(t, r.push(kept))
	nc := r.client(creds)
	for _, subject := range []string{"out.op.call.echo", "out.op.send.alice", "out.op.memory.get.x"} {
		if answer, refusal := ask(t, nc, &nats.Msg{Subject: subject, Data: []byte("from the dead")}); refusal == nil || refusal.Code != schemas.CodeCancelled {
			t.Errorf("%s: %q, %v; want 410", subject, answer.Data, refusal)
		}
	}
	if _, refusal := ask(t, nc, &nats.Msg{Subject: "out.token.issue", Data: schemas.Marshal(schemas.IssueRequest{OperationID: "op", Tools: []string{"echo"}})}); refusal == nil {
		t.Error("the dead is issued a capability")
	}
	for _, e := range r.log() {
		if e.Seq > receipt.Seq && e.Agent == "mallory" && e.Kind == schemas.MessageAccepted {
			t.Errorf("%d was accepted of it behind the kill, %d", e.Seq, receipt.Seq)
		}
	}
	works(t, alice, "out.op.call.echo")
	r.sound()
}
