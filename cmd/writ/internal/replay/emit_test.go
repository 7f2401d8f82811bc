package replay

import (
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

func raw(t *testing.T) (*embed.Raw, *nats.Conn) {
	t.Helper()
	srv, err := embed.StartRaw(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	nc, err := nats.Connect(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return srv, nc
}

func repeatable() iter.Seq2[*schemas.Event, error] {
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	return func(yield func(*schemas.Event, error) bool) {
		for i, e := range []*schemas.Event{
			{Kind: schemas.AgentPaused, Agent: "ann", Reason: "look", Actor: "ada"},
			{Kind: schemas.MessageDenied, Agent: "bob", Digest: schemas.Sum([]byte("x")), Code: 403, Reason: "no", Data: []byte("x")},
		} {
			e.Seq, e.ID, e.Source, e.Time = uint64(i+7), "id", "test/1", at
			if !yield(e, nil) {
				return
			}
		}
	}
}

// What is repeated has the event's headers and body under another subject, and
// is an event for nobody who reads a log.
func TestARepetitionIsMarkedAndIsNoEvent(t *testing.T) {
	srv, nc := raw(t)
	all, err := nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	n, err := Target{URL: srv.URL(), Prefix: "sandbox.one"}.Emit(t.Context(), repeatable())
	if err != nil || n != 2 {
		t.Fatalf("%d, %v", n, err)
	}
	want := map[string]string{"sandbox.one.ev.ann.agent.paused": "7", "sandbox.one.ev.bob.message.denied": "8"}
	for len(want) > 0 {
		m, err := all.NextMsg(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(m.Subject, "$JS.") || strings.HasPrefix(m.Subject, "_INBOX.") {
			continue // whether there is a log here was asked
		}
		if m.Header.Get(HeaderReplay) != want[m.Subject] || m.Reply != "" || want[m.Subject] == "" {
			t.Errorf("%s %v, reply %q", m.Subject, m.Header, m.Reply)
		}
		subject := strings.TrimPrefix(m.Subject, "sandbox.one.")
		if _, err := schemas.Decode(subject, schemas.Header(m.Header), m.Data); err == nil {
			t.Errorf("%s is taken for an event", m.Subject)
		}
		m.Header.Del(HeaderReplay) // a detector that knows what it does
		if _, err := schemas.Decode(subject, schemas.Header(m.Header), m.Data); err != nil {
			t.Errorf("%s without its mark: %v", m.Subject, err)
		}
		delete(want, m.Subject)
	}
}

// An operator who mistypes, or somebody who wants old events to be taken for
// new ones.
func TestNothingIsRepeatedIntoAControlPlane(t *testing.T) {
	srv, nc := raw(t)
	seen, err := nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "ev", "ev.ann", "in", "in.send", "out", "out.op", "writ", "writ.in", "writ.in.ann", "writ.ctl", "ledger",
		"$JS.API", "$SYS", "_INBOX", "_R_", "*", ">", "a.*", "a.>", "a..b", ".a", "a.", "a b", "A", "a\r\nPUB x", strings.Repeat("a", 63) + ".b"} {
		if n, err := (Target{URL: srv.URL(), Prefix: prefix}).Emit(t.Context(), repeatable()); err == nil || n != 0 {
			t.Errorf("prefix %q is taken", prefix)
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: schemas.Stream, Subjects: []string{"ev.>"}}); err != nil {
		t.Fatal(err)
	}
	if n, err := (Target{URL: srv.URL(), Prefix: "sandbox"}).Emit(t.Context(), repeatable()); !errors.Is(err, ErrOwn) || n != 0 {
		t.Errorf("into an account with the log: %d, %v", n, err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		pending, _, err := seen.Pending()
		if err != nil {
			t.Fatal(err)
		}
		if pending == 0 {
			break
		}
		m, err := seen.NextMsg(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get(HeaderReplay) != "" {
			t.Errorf("%s was published", m.Subject)
		}
	}
}

func TestCredentialsOfAControlPlaneAreRefused(t *testing.T) {
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	creds := func(change func(*jwt.UserClaims)) []byte {
		public, err := user.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		c := jwt.NewUserClaims(public)
		c.Name = "sandbox"
		change(c)
		token, err := c.Encode(account)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	public, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckCreds(creds(func(*jwt.UserClaims) {}), map[string]string{"CONTROL": "A"}); err != nil {
		t.Errorf("a sandbox's: %v", err)
	}
	if err := CheckCreds(creds(func(*jwt.UserClaims) {}), map[string]string{"CONTROL": public}); !errors.Is(err, ErrOwn) {
		t.Errorf("of an account of the plane: %v", err)
	}
	for _, role := range []keys.Role{keys.RoleOperator, keys.RoleIntake, keys.RoleDeliver, keys.RoleRelease} {
		if err := CheckCreds(creds(func(c *jwt.UserClaims) { c.Name = string(role) }), nil); !errors.Is(err, ErrOwn) {
			t.Errorf("of %s: %v", role, err)
		}
	}
	if err := CheckCreds(creds(func(c *jwt.UserClaims) { c.SetScoped(true) }), nil); !errors.Is(err, ErrOwn) {
		t.Errorf("of an agent: %v", err)
	}
	if err := CheckCreds([]byte("nothing"), nil); err == nil {
		t.Error("no credentials at all")
	}
}
