package embed_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

var dirs sync.Map // data folder, by server

func start(t *testing.T, o embed.Options) *embed.Server {
	t.Helper()
	if o.Data == "" {
		o.Data = t.TempDir()
		if err := keys.Init(o.Data, "acme.example"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := embed.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if err := s.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	dirs.Store(s, o.Data)
	return s
}

func connect(t *testing.T, s *embed.Server, role keys.Role, opts ...nats.Option) *nats.Conn {
	t.Helper()
	dir, _ := dirs.Load(s)
	creds, err := keys.Creds(dir.(string), role)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(role), Server: s, Creds: creds, Options: opts})
	if err != nil {
		t.Fatalf("%s: %v", role, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// refused reports whether the server refuses an action of a connection: it
// says so in an error that comes before the answer to the flush behind it.
func refused(t *testing.T, s *embed.Server, role keys.Role, act func(*nats.Conn) error) bool {
	t.Helper()
	var got error
	nc := connect(t, s, role, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {}))
	if err := act(nc); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	got = nc.LastError()
	return errors.Is(got, nats.ErrPermissionViolation)
}

func event() *schemas.Event {
	return &schemas.Event{Kind: schemas.AgentPaused, Agent: "a", ID: "1", Source: "test", Time: time.Now(), Reason: "test"}
}

func TestSecondStartOnTheSameFolderNamesTheHolder(t *testing.T) {
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	s := start(t, embed.Options{Data: data, DontListen: true})
	_, err := embed.Start(embed.Options{Data: data, DontListen: true})
	if !errors.Is(err, embed.ErrHeld) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("second start: %v", err)
	}
	s.Stop()
	start(t, embed.Options{Data: data, DontListen: true}).Stop()
}

func TestStartRefusesKeysThatOthersCanRead(t *testing.T) {
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(data, "keys", "master.secret"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := embed.Start(embed.Options{Data: data, DontListen: true}); !errors.Is(err, keys.ErrPermissions) {
		t.Fatalf("start: %v", err)
	}
}

func TestProvisionIsIdempotentAndTheLogCannotBeCut(t *testing.T) {
	s := start(t, embed.Options{DontListen: true})
	if err := s.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc := connect(t, s, keys.RoleIssuer)
	a, err := bus.NewAppender(nc)
	if err != nil {
		t.Fatal(err)
	}
	seq, err := a.Append(t.Context(), event())
	if err != nil || seq != 1 {
		t.Fatal(seq, err)
	}
	js, err := jetstream.New(connect(t, s, keys.RoleInit))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), schemas.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if stream.Purge(t.Context()) == nil {
		t.Error("purged")
	}
	if stream.DeleteMsg(t.Context(), 1) == nil {
		t.Error("deleted a message")
	}
}

func TestEveryFollowerReadsTheLogWithItsOwnRights(t *testing.T) {
	s := start(t, embed.Options{DontListen: true})
	a, err := bus.NewAppender(connect(t, s, keys.RoleIssuer))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		e := event()
		e.ID = fmt.Sprint(i)
		if _, err := a.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer} {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		caughtUp := make(chan struct{})
		f := &bus.Follower{Conn: connect(t, s, role), Consumer: string(role), Filters: embed.Filters(role),
			CaughtUp: func(uint64) { close(caughtUp) }}
		err := f.Run(ctx, func(bus.Entry) error {
			if n++; n == 4 {
				cancel()
			}
			if n == 3 {
				e := event()
				e.ID = string(role)
				if _, err := a.Append(ctx, e); err != nil {
					return err
				}
			}
			return nil
		})
		cancel()
		if n < 4 {
			t.Errorf("%s read %d: %v", role, n, err)
		}
	}
}

func TestNoRoleCanDoAnothersWork(t *testing.T) {
	s := start(t, embed.Options{DontListen: true})
	publish := func(subject string) func(*nats.Conn) error {
		return func(nc *nats.Conn) error { return nc.Publish(subject, []byte("x")) }
	}
	listen := func(subject string) func(*nats.Conn) error {
		return func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }
	}
	for _, c := range []struct {
		role keys.Role
		what string
		act  func(*nats.Conn) error
	}{
		{keys.RoleIntake, "append a release's event", publish("ev.a.message.cancelled")},
		{keys.RoleIntake, "append an issuer's event", publish("ev.a.agent.killed")},
		{keys.RoleIntake, "answer an agent", publish("_R_.abc")},
		{keys.RoleIntake, "deliver", publish("writ.in.a.call.x")},
		{keys.RoleIntake, "operate", publish(schemas.CtlLock)},
		{keys.RoleIntake, "delete the stream", publish("$JS.API.STREAM.DELETE.EVENTS")},
		{keys.RoleIntake, "take another's messages", publish("$JS.API.CONSUMER.MSG.NEXT.EVENTS.ledger")},
		{keys.RoleIntake, "listen outside its queue", listen("writ.out.*.>")},
		{keys.RoleLedger, "append", publish("ev.a.message.accepted")},
		{keys.RoleLedger, "make a consumer", publish("$JS.API.CONSUMER.CREATE.EVENTS.x")},
		{keys.RoleRelease, "append an accepted action", publish("ev.a.message.accepted")},
		{keys.RoleRelease, "read what agents publish", listen("writ.out.*.>")},
		{keys.RoleDeliver, "read deliveries", listen("writ.in.>")},
		{keys.RoleMonitor, "kill", publish("ev.a.agent.killed")},
		{keys.RoleMonitor, "answer an agent", publish("_R_.abc")},
		{keys.RoleIssuer, "append an accepted action", publish("ev.a.message.accepted")},
		{keys.RoleIssuer, "read what agents do", listen("writ.out.*.>")},
		{keys.RoleIssuer, "read the operator's answers", listen("_INBOX_operator.>")},
		{keys.RoleSystem, "delete an account", publish("$SYS.REQ.CLAIMS.DELETE")},
		{keys.RoleSystem, "reload the server", publish("$SYS.REQ.SERVER.PING.RELOAD")},
		{keys.RoleMemory, "read the log", publish("$JS.API.DIRECT.GET.EVENTS")},
		{keys.RoleMemory, "append", publish("ev.a.message.accepted")},
		{keys.RoleOperator, "append", publish("ev.a.agent.killed")},
		{keys.RoleOperator, "use JetStream", publish("$JS.API.STREAM.LIST")},
		{keys.RoleOperator, "read others' answers", listen("_INBOX_issuer.>")},
		{keys.RoleInit, "append", publish("ev.a.agent.killed")},
	} {
		if !refused(t, s, c.role, c.act) {
			t.Errorf("%s can %s", c.role, c.what)
		}
	}
}

func TestMemoryRoleKeepsAKeyValueBucket(t *testing.T) {
	s := start(t, embed.Options{DontListen: true})
	js, err := jetstream.New(connect(t, s, keys.RoleMemory))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	kv, err := js.KeyValue(ctx, keys.MemoryBucket)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := kv.Create(ctx, "a.k", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if rev, err = kv.Update(ctx, "a.k", []byte("2"), rev); err != nil {
		t.Fatal(err)
	}
	if _, err = kv.Put(ctx, "a.l", []byte("3")); err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(ctx, "a.k"); err != nil || string(e.Value()) != "2" {
		t.Fatal(e, err)
	}
	if _, err := kv.GetRevision(ctx, "a.k", rev); err != nil {
		t.Fatal(err)
	}
	lister, err := kv.ListKeysFiltered(ctx, "a.>")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range lister.Keys() {
		n++
	}
	if n != 2 {
		t.Errorf("%d keys", n)
	}
	w, err := kv.Watch(ctx, "a.*")
	if err != nil {
		t.Fatal(err)
	}
	for u := range w.Updates() {
		if u == nil {
			break
		}
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := kv.History(ctx, "a.k"); err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(ctx, "a.k"); err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(ctx, "a.l"); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Get(ctx, "a.k"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Fatal(err)
	}
}

func TestServerTellsOfViolations(t *testing.T) {
	s := start(t, embed.Options{Port: 0})
	dir, _ := dirs.Load(s)
	creds, err := keys.Creds(dir.(string), keys.RoleOperator)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.URL(), nats.UserCredentialBytes(creds), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish(`$SYS.REQ."x`, nil); err != nil {
		t.Fatal(err)
	}
	v := <-s.Violations()
	want := embed.Violation{Account: s.Trust().Accounts[keys.CONTROL], Subject: `$SYS.REQ."x`, What: "publish", Count: 1}
	if v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
	if _, err := nc.SubscribeSync("writ.out.>"); err != nil {
		t.Fatal(err)
	}
	if v := <-s.Violations(); v.What != "subscribe" || v.Subject != "writ.out.>" {
		t.Errorf("got %+v", v)
	}
}

func TestServerListensOnLoopbackForNATSAlone(t *testing.T) {
	s := start(t, embed.Options{})
	if !strings.HasPrefix(s.URL(), "nats://127.0.0.1:") {
		t.Error(s.URL())
	}
}

func TestServerIsClosedToTheOutsideUntilItListens(t *testing.T) {
	s := start(t, embed.Options{DontListen: true})
	if s.URL() != "" {
		t.Fatal(s.URL())
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestTakenPortIsSaidAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_, err = embed.Start(embed.Options{Data: data, Port: port})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("can't listen on 127.0.0.1:%d", port)) {
		t.Errorf("got %v", err)
	}
	start(t, embed.Options{Data: data}) // the folder was let go
}
