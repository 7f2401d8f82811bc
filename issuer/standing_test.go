package issuer

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// still is an issuer that no log moves: its state is what the test applies.
func still(t *testing.T) *Issuer {
	t.Helper()
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	secrets, err := keys.OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	i := &Issuer{Options: Options{Secrets: secrets, Logger: slog.New(slog.DiscardHandler), Now: time.Now},
		maker: accounts.NewMaker(secrets), state: schemas.NewState(), byKey: map[string]bearer{}, born: map[string]time.Time{}}
	i.pushes = newPushes(i)
	i.happens(t, schemas.AgentDeclared, 0, schemas.Principal{ID: "analyst-7", Kind: schemas.KindAgent, Incarnation: "first", Lock: schemas.Active,
		Ceiling: &schemas.Ceiling{Scope: []string{"memory:get"}}})
	return i
}

func (i *Issuer) happens(t *testing.T, kind schemas.Kind, ref uint64, data any) {
	t.Helper()
	e := &schemas.Event{Seq: i.state.Seq + 1, Kind: kind, Agent: "analyst-7", Ref: ref, Time: time.Now(), Reason: "test"}
	if data != nil {
		e.Data = schemas.Marshal(data)
	}
	if err := i.state.Apply(e); err != nil {
		t.Fatal(err)
	}
}

// reborn kills the agent, and enrols it anew.
func (i *Issuer) reborn(t *testing.T) {
	t.Helper()
	i.happens(t, schemas.AgentKilled, 0, nil)
	i.happens(t, schemas.AgentEnrolled, i.state.Seq, schemas.Enrolment{Incarnation: "second"})
	if a := i.state.Agents["analyst-7"]; a.Lock != schemas.Active || a.Incarnation != "second" {
		t.Fatalf("it is not enrolled anew: %+v", a)
	}
}

// A hijacked agent renews its credential, and asks for a capability, without a
// pause. Between the decision on one of them and its signature it is killed, and
// enrolled anew: what is signed for the thief's key is of the one who was killed,
// and no way in as the next.
func TestWhatWasDecidedBeforeAKillIsSignedForWhoWasKilled(t *testing.T) {
	i := still(t)
	user, public, err := accounts.NewUser()
	if err != nil {
		t.Fatal(err)
	}
	user.Wipe()
	first, err := i.maker.PublicKey("analyst-7", "first")
	if err != nil {
		t.Fatal(err)
	}
	of := func(what, token string) {
		t.Helper()
		c, err := jwt.DecodeUserClaims(token)
		if err != nil {
			t.Fatal(err)
		}
		if c.IssuerAccount != first {
			t.Errorf("%s is of the account of the next incarnation", what)
		}
	}
	renewed, err := i.renewable(asker{agent: "analyst-7", incarnation: "first"})
	if err != nil {
		t.Fatal(err)
	}
	g, granted, err := i.decided(asker{agent: "analyst-7", incarnation: "first"}, func(s *schemas.State, f fresh) (schemas.Grant, error) {
		return decideIssue(s, asker{agent: "analyst-7", name: "analyst-7"}, schemas.IssueRequest{AgentID: "analyst-7", OperationID: "op", Scope: []string{"memory:get"}, PublicKey: public}, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	i.reborn(t)
	token, _, err := i.identity("analyst-7", public, renewed)
	if err != nil {
		t.Fatal(err)
	}
	of("the credential", token)
	if token, err = i.maker.Operation(g, granted.keys, granted.iat); err != nil {
		t.Fatal(err)
	}
	of("the capability", token)

	// Where the answer would reach the thief, there is none at all.
	thief := asker{agent: "analyst-7", name: "analyst-7", incarnation: "first"}
	var r *schemas.Refusal
	if _, err := i.renewable(thief); !errors.As(err, &r) || r.Code != schemas.CodeUnauthorized {
		t.Errorf("renewed: %v", err)
	}
	if _, _, err := i.decided(thief, func(*schemas.State, fresh) (schemas.Grant, error) { return schemas.Grant{}, nil }); !errors.As(err, &r) || r.Code != schemas.CodeUnauthorized {
		t.Errorf("decided: %v", err)
	}
}

// A hijacked agent leaves requests on their way to the issuer, and is killed. They
// arrive when it is enrolled anew: no capability is issued on them, which would
// take the place of the next one's, and none of the next one's is ended.
func TestWhatWasAskedBeforeAKillIsNotAskedByTheNextIncarnation(t *testing.T) {
	i := still(t)
	i.limits, i.gates, i.locks = newLimiters(1, 1), newGates(), newGates()
	i.reborn(t)
	for _, sender := range []string{"analyst-7~first", "analyst-7"} {
		for what, body := range map[string]any{
			"issue":   schemas.IssueRequest{OperationID: "op", Scope: []string{"memory:get"}},
			"refresh": schemas.RefreshRequest{OperationID: "op"},
			"release": schemas.ReleaseRequest{OperationID: "op"},
			"join":    schemas.JoinRequest{ID: "x"},
		} {
			var r *schemas.Refusal
			_, err := i.token(t.Context(), "writ.out."+sender+".token."+what, schemas.Marshal(body))
			if !errors.As(err, &r) || r.Code != schemas.CodeUnauthorized || !strings.Contains(r.Text, "enrolled anew") {
				t.Errorf("%s of %s: %v", what, sender, err)
			}
		}
	}
}

// The log took a kill late, so that the servers were told of it beforehand. When
// the state has it, that is over: who is enrolled behind the kill is another, and
// is not held down for it.
func TestAForcedLockEndsWithTheStateThatHasIt(t *testing.T) {
	i := still(t)
	lock := func(want schemas.Lock) {
		t.Helper()
		if got := i.pushes.now("analyst-7").Lock; got != want {
			t.Errorf("the servers are told %s, not %s", got, want)
		}
	}
	i.pushes.force("analyst-7", schemas.Killed)
	lock(schemas.Killed)
	i.happens(t, schemas.AgentSuspended, 0, nil)
	lock(schemas.Killed) // the state says less
	i.happens(t, schemas.AgentKilled, 0, nil)
	lock(schemas.Killed)
	i.happens(t, schemas.AgentEnrolled, i.state.Seq, schemas.Enrolment{Incarnation: "second"})
	lock(schemas.Active)
}

// wired puts a still issuer on a real server, and has it believe in a second,
// which an attacker has taken down.
func (i *Issuer) wired(t *testing.T) {
	t.Helper()
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	srv, err := embed.Start(embed.Options{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	creds, err := keys.Creds(data, keys.RoleSystem)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(keys.RoleSystem), Server: srv, Creds: creds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if i.Secrets, err = keys.OpenSecrets(data); err != nil {
		t.Fatal(err)
	}
	i.System, i.maker, i.wire = nc, accounts.NewMaker(i.Secrets), &wire{nc: nc, nodes: 2}
}

// onServer is the account as the server has it; nil where it has none.
func (i *Issuer) onServer(t *testing.T) *jwt.AccountClaims {
	t.Helper()
	public, err := i.publicKey("analyst-7")
	if err != nil {
		t.Fatal(err)
	}
	tokens, answered, _ := i.wire.lookup(t.Context(), public) // the second never answers
	if answered != 1 {
		t.Fatalf("%d servers answered", answered)
	}
	if len(tokens) == 0 {
		return nil
	}
	c, err := jwt.DecodeAccountClaims(tokens[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// One of two servers is down, and an agent on the other is suspended: there it is
// cut off at once, though nobody knows what the lost server has. Who may act waits
// for that: the lost one could have been told of a death.
func TestASuspensionDoesNotWaitForALostServer(t *testing.T) {
	i := still(t)
	i.wired(t)
	if _, err := i.pushes.one(t.Context(), "analyst-7"); err == nil || i.onServer(t) != nil {
		t.Errorf("an account that lets in was pushed: %v", err)
	}
	if due := i.pushes.sent["analyst-7"]; due == nil || due.due.IsZero() {
		t.Error("what was not pushed is not tried again")
	}
	i.happens(t, schemas.AgentSuspended, 0, nil)
	if _, err := i.pushes.one(t.Context(), "analyst-7"); err == nil {
		t.Error("the lost server is said to have taken it")
	}
	if c := i.onServer(t); c == nil || len(c.SigningKeys) != 1 {
		t.Errorf("it is not suspended on the server that is left: %+v", c)
	}
}
