// Package serve runs the control plane apart: the real nats-server, over TLS
// with the configuration that we hand out, and each service in a process of
// its own with no keys but those that it needs. Then it kills one service
// after the other under a little load (SIGKILL) and starts it again.
//
// The threat is a service that is lost at any moment. What must hold: while
// the monitor or the ledger is down nothing is delivered; what was accepted is
// delivered when it returns; nothing that was acknowledged is ever lost.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A world is a rig with agents at work.
type world struct {
	*rig
	sender *nats.Conn
	log    jetstream.Stream // EVENTS, as the ledger sees it

	mu        sync.Mutex
	acked     map[string]bool // acknowledged to the load
	delivered map[string]bool // by body
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{rig: newRig(t, fleet, bound), acked: map[string]bool{}, delivered: map[string]bool{}}
	w.serveAll()
	w.mustOperate("enroll", "echo", "--out", w.path("echo.creds"))
	w.mustOperate("issue", "--agent", "receiver", "--operation", "op", "--scope", "send:sender", "--creds", w.path("receiver.creds"))
	w.mustOperate("issue", "--agent", "sender", "--operation", "op", "--scope", "send:receiver", "--tool", "echo",
		"--scope", "memory:get", "--scope", "memory:put", "--creds", w.path("sender.creds"))

	w.answer(w.client(w.path("echo.creds")), "in.call.echo", func(m *nats.Msg) []byte { return m.Data })
	w.answer(w.client(w.path("receiver.creds")), "in.send.*", func(m *nats.Msg) []byte {
		w.mu.Lock()
		w.delivered[string(m.Data)] = true
		w.mu.Unlock()
		return nil
	})
	w.sender = w.client(w.path("sender.creds"), nats.MaxReconnects(3), nats.ReconnectWait(50*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // what it is refused is looked at elsewhere
	js, err := jetstream.New(w.as(keys.RoleLedger))
	if err == nil {
		w.log, err = js.Stream(w.ctx, schemas.Stream)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) answer(nc *nats.Conn, subject string, body func(*nats.Msg) []byte) {
	w.Helper()
	_, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(body(m)) })
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) saw(body string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.delivered[body]
}

// goesOn waits until the load has been acknowledged some more messages: each
// service is lost under load, and the load survives it.
func (w *world) goesOn() {
	w.Helper()
	const more = 20
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.acked)
	}
	want := count() + more
	w.await("the load to go on", func() error {
		if n := count(); n < want {
			return fmt.Errorf("%d messages are acknowledged, not %d", n, want)
		}
		return nil
	})
}

// load sends numbered messages until the context ends, each under one id until
// it is acknowledged.
func (w *world) load(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		id := fmt.Sprintf("load %d", n)
		for ctx.Err() == nil && !w.send(ctx, id) {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

func (w *world) send(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := w.sender.RequestMsgWithContext(ctx, &nats.Msg{Subject: "out.op.send.receiver", Data: []byte(id), Header: nats.Header{schemas.HeaderMsgID: {id}}})
	if err != nil {
		return false
	}
	var a schemas.Ack
	if json.Unmarshal(m.Data, &a) != nil || a.Seq == 0 {
		return false
	}
	w.mu.Lock()
	w.acked[id] = true
	w.mu.Unlock()
	return true
}

// ask makes one request of the sender's.
func (w *world) ask(subject, body string, within time.Duration) (*nats.Msg, error) {
	return w.sender.Request(subject, []byte(body), within)
}

// works demands that a call is answered, and that a message arrives.
func (w *world) works(after string) {
	w.Helper()
	w.await("a call after "+after, func() error {
		m, err := w.ask("out.op.call.echo", after, 2*time.Second)
		if err == nil && (refusal(m) != "" || string(m.Data) != after) {
			err = fmt.Errorf("%s %s", refusal(m), m.Data)
		}
		return err
	})
	w.await("the acknowledgement of a message after "+after, func() error {
		if !w.send(w.ctx, "after "+after) {
			return errors.New("not acknowledged")
		}
		return nil
	})
	w.arrives("after " + after)
}

func (w *world) arrives(body string) {
	w.Helper()
	w.await("delivery of "+body, func() error {
		if !w.saw(body) {
			return errors.New("not delivered")
		}
		return nil
	})
}

// logged finds the event with a body in EVENTS, from a sequence on.
func (w *world) logged(from uint64, body string) (*schemas.Event, error) {
	info, err := w.log.Info(w.ctx)
	if err != nil {
		return nil, err
	}
	for seq := from; seq <= info.State.LastSeq; seq++ {
		m, err := w.log.GetMsg(w.ctx, seq)
		if err != nil {
			return nil, err
		}
		if string(m.Data) == body {
			return bus.Entry{Seq: seq, Subject: m.Subject, Header: schemas.Header(m.Header), Data: m.Data}.Event()
		}
	}
	return nil, fmt.Errorf("not in the log from %d to %d", from, info.State.LastSeq)
}

func (w *world) end() uint64 {
	w.Helper()
	info, err := w.log.Info(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	return info.State.LastSeq
}

func TestServicesApartLoseNothingAndFailClosedWhenOneIsLost(t *testing.T) {
	w := newWorld(t)
	w.works("the start")
	if m, err := w.ask("out.op.memory.put.note", "remembered", within); err != nil || refusal(m) != "" {
		t.Fatalf("memory: %v %v", m, err)
	}
	ctx, stop := context.WithCancel(w.ctx)
	var load sync.WaitGroup
	load.Go(func() { w.load(ctx) })
	defer load.Wait()
	defer stop()

	w.goesOn()
	for _, lose := range []func(){w.ledgerLost, w.monitorLost, w.brokerLost, w.issuerLost} {
		lose()
		w.goesOn()
	}

	stop()
	load.Wait()
	w.settled()
	w.killed()
}

// ledgerLost: what is accepted meanwhile is neither acknowledged nor
// delivered, and both when the ledger is back.
func (w *world) ledgerLost() {
	w.Helper()
	w.services["ledger"].kill()
	from, body := w.end()+1, "while the ledger is down"
	inbox, err := w.sender.SubscribeSync(w.sender.NewInbox())
	if err == nil {
		err = w.sender.PublishRequest("out.op.send.receiver", inbox.Subject, []byte(body))
	}
	if err != nil {
		w.Fatal(err)
	}
	w.await("the message in the log", func() error {
		e, err := w.logged(from, body)
		if err == nil && e.Kind != schemas.MessageAccepted {
			err = fmt.Errorf("%s, code %d: %s", e.Kind, e.Code, e.Reason)
		}
		return err
	})
	if m, err := w.ask("out.op.call.echo", "x", time.Second); !errors.Is(err, nats.ErrTimeout) {
		w.Errorf("a call with the ledger down: %v, %v", m, err)
	}
	if m, err := inbox.NextMsg(time.Millisecond); err == nil || w.saw(body) {
		w.Errorf("with the ledger down, the message was acknowledged (%v) or delivered (%v)", m, w.saw(body))
	}
	w.serve("ledger")
	if m, err := inbox.NextMsg(within); err != nil || refusal(m) != "" {
		w.Errorf("the message that was accepted with the ledger down: %v, %v", m, err)
	}
	w.arrives(body)
	w.works("the ledger's loss")
}

// monitorLost: nothing is accepted without a verdict.
func (w *world) monitorLost() {
	w.Helper()
	w.services["monitor"].kill()
	from, body := w.end()+1, "while the monitor is down"
	for _, subject := range []string{"out.op.send.receiver", "out.op.call.echo"} {
		m, err := w.ask(subject, body, within)
		if err != nil || refusal(m) != "503" || !strings.Contains(m.Header.Get(schemas.HeaderError), "the monitor gave no verdict") {
			w.Errorf("%s with the monitor down: %v, %v", subject, m, err)
		}
	}
	if e, err := w.logged(from, body); err != nil || e.Kind != schemas.MessageDenied {
		w.Errorf("the refusal in the log: %+v, %v", e, err)
	}
	w.serve("monitor")
	w.works("the monitor's loss")
	if w.saw(body) {
		w.Error("what was refused with the monitor down was delivered")
	}
}

// brokerLost: nobody takes anything, and nothing that agents keep is lost.
func (w *world) brokerLost() {
	w.Helper()
	w.services["broker"].kill()
	from, body := w.end()+1, "while the broker is down"
	w.await("the server's word that nobody is there", func() error {
		m, err := w.ask("out.op.send.receiver", body, time.Second)
		if errors.Is(err, nats.ErrNoResponders) {
			return nil
		}
		return fmt.Errorf("%v, %w", m, err)
	})
	w.serve("broker")
	w.works("the broker's loss")
	if e, err := w.logged(from, body); err == nil || w.saw(body) {
		w.Errorf("what nobody took is in the log: %+v", e)
	}
	if m, err := w.ask("out.op.memory.get.note", "", within); err != nil || string(m.Data) != "remembered" {
		w.Errorf("memory after the broker's loss: %v, %v", m, err)
	}
}

// issuerLost: agents go on, operators can't lock; and can when it is back.
func (w *world) issuerLost() {
	w.Helper()
	w.services["issuer"].kill()
	w.works("the issuer's death")
	if out, err := w.operate("pause", "sender", "--reason", "test"); err == nil || !strings.Contains(out, "nobody answers") {
		w.Errorf("a lock with the issuer down: %v\n%s", err, out)
	}
	w.serve("issuer")
	w.works("the issuer's loss")
	w.mustOperate("issue", "--agent", "receiver", "--operation", "another", "--scope", "send:sender", "--creds", w.path("another.creds"))
}

// settled holds what clients saw against the log when the load is over.
func (w *world) settled() {
	w.Helper()
	w.mu.Lock()
	acked := make([]string, 0, len(w.acked))
	for id := range w.acked {
		acked = append(acked, id)
	}
	w.mu.Unlock()
	for _, id := range acked {
		w.arrives(id)
	}
	w.Logf("%d messages acknowledged, all of them delivered", len(acked))
	for _, args := range [][]string{{"ledger", "verify"}, {"replay"}} {
		out := w.mustOperate(args...)
		if args[0] == "ledger" && !strings.Contains(out, `"ok":true`) || args[0] == "replay" && !strings.Contains(out, `"mismatches":0`) {
			w.Errorf("writ %v: %s", args, out)
		}
	}
}

// killed: a kill works as it does in one process.
func (w *world) killed() {
	w.Helper()
	closed := make(chan struct{})
	w.sender.SetClosedHandler(func(*nats.Conn) { close(closed) })
	var receipt schemas.Receipt
	out := w.mustOperate("kill", "sender", "--reason", "test")
	if err := json.Unmarshal([]byte(out), &receipt); err != nil || receipt.State != schemas.Killed || receipt.Partial || receipt.Checkpoint == "" {
		w.Errorf("receipt: %s", out)
	}
	select {
	case <-closed:
	case <-time.After(within):
		w.Error("the killed agent is not cut off")
	}
	if nc, err := nats.Connect(w.url, nats.UserCredentials(w.path("sender.creds")), w.secure()); !errors.Is(err, nats.ErrAuthorization) {
		w.Errorf("the killed agent came back: %v", err)
		if nc != nil {
			nc.Close()
		}
	}
}

// A server and a folder of keys from before the memory service had an account
// of its own: provisioning makes it, and tells the server.
func TestProvisionTellsAnOlderServerOfTheAccountOfMemories(t *testing.T) {
	r := initRig(t, fleet, bound)
	trust, err := keys.Open(r.path("home"))
	if err != nil {
		t.Fatal(err)
	}
	old := r.read("home", "keys", "trust.json")
	public := trust.Accounts[keys.MEMORY]
	line := fmt.Sprintf("\"MEMORY\": %q,", public)
	if !strings.Contains(old, line) {
		t.Fatalf("trust.json has no %s:\n%s", line, old)
	}
	r.write(strings.Replace(old, line, "", 1), "home", "keys", "trust.json")
	if err := os.Remove(r.path("home", "nats-server", "accounts", public+".jwt")); err != nil {
		t.Fatal(err)
	}
	r.startServer()
	for range 2 { // it may be repeated
		r.writ("provision", "--server", r.url)
	}
	if trust, err = keys.Open(r.path("home")); err != nil || trust.Accounts[keys.MEMORY] == "" || trust.Accounts[keys.MEMORY] == public {
		t.Fatalf("the account is %q, %v", trust.Accounts[keys.MEMORY], err)
	}
	r.read("home", "nats-server", "accounts", trust.Accounts[keys.MEMORY]+".jwt")
	js, err := jetstream.New(r.as(keys.RoleMemory))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(r.ctx, keys.MemoryBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(r.ctx, "a.k", "v"); err != nil {
		t.Error(err)
	}
}

func TestAServiceStartsWithItsOwnCredentialsAlone(t *testing.T) {
	data := t.TempDir()
	if err := keys.Init(data, "apart.example"); err != nil {
		t.Fatal(err)
	}
	for service, role := range map[string]keys.Role{"issuer": keys.RoleSystem, "broker": keys.RoleIssuer, "ledger": keys.RoleIntake, "monitor": keys.RoleOperator} {
		_, err := plane.Serve(t.Context(), plane.ServeOptions{Service: service, Server: "nats://127.0.0.1:1", Creds: keys.CredsPath(data, role), Data: data})
		if !errors.Is(err, plane.ErrCreds) {
			t.Errorf("%s with the credentials of %s: %v", service, role, err)
		}
	}
	open := keys.CredsPath(data, keys.RoleMonitor)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := plane.Serve(t.Context(), plane.ServeOptions{Service: "monitor", Server: "nats://127.0.0.1:1", Creds: open, Data: data})
	if !errors.Is(err, keys.ErrPermissions) {
		t.Errorf("credentials that others can read: %v", err)
	}
}
