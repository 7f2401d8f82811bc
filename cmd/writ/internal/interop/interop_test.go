// Package interop holds the control plane against the stock Go client: nothing
// of Writ's stands between nats.go and the plane but the credentials that it
// issued. What an agent in this language needs is in these tests, whole.
//
// The nats command and the JavaScript client do the same in .ci/interop, with
// a plane in a process of its own.
package interop

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
)

const fleet = `trust_domain: interop.example
agents:
  - id: caller
    ceiling: {scope: [send:peer, ask:peer], tools: [echo], ttl: 10m}
  - id: peer
    ceiling: {scope: [send:caller], ttl: 10m}
  - id: rogue
    ceiling: {scope: [send:peer, ask:peer], tools: [echo], forbidden_tools: [bash], ttl: 10m}
services:
  - id: echo
    serves: [call:echo]
    tools: {echo: {class: read, description: "gives back what it gets"}}
`

// within bounds whatever is waited for.
const within = 20 * time.Second

// A rig is a running control plane and an operator of it.
type rig struct {
	*testing.T
	ctx      context.Context
	url      string
	http     string
	operator *nats.Conn
	client   *http.Client // over HTTP
}

func start(t *testing.T) *rig {
	t.Helper()
	return startWith(t, nil)
}

func startWith(t *testing.T, secure *ca.Config) *rig {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "fleet.yaml")
	if err := os.WriteFile(file, []byte(fleet), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := plane.Start(t.Context(), plane.Options{Data: filepath.Join(dir, "data"), Fleet: file, Actor: "test", TLS: secure})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(operator.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return &rig{t, ctx, p.URL(), p.HTTP(), operator, http.DefaultClient}
}

// ask puts an operator's question.
func ask[Rep any](r *rig, subject string, req any) Rep {
	r.Helper()
	rep, err := bus.Call[Rep](r.ctx, r.operator, subject, req)
	if err != nil {
		r.Fatal(err)
	}
	return rep
}

// credentials writes a .creds file, as the command line does.
func (r *rig) credentials(content string) string {
	r.Helper()
	path := filepath.Join(r.TempDir(), "agent.creds")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
	return path
}

func (r *rig) enroll(id string) string {
	r.Helper()
	return r.credentials(ask[schemas.EnrollReply](r, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "test"}).Creds)
}

func (r *rig) issue(agent, operation string, q schemas.IssueRequest) string {
	r.Helper()
	q.AgentID, q.OperationID, q.Actor = agent, operation, "test"
	return r.credentials(ask[schemas.IssueReply](r, schemas.CtlIssue, q).Creds)
}

// A client is a stock connection, and what its handlers were told.
type client struct {
	*nats.Conn
	refused      chan error // by the server's permissions
	disconnected chan error
	back         chan struct{} // reconnected
	closed       chan struct{}
}

func (r *rig) connect(creds string) *client {
	r.Helper()
	c := &client{refused: make(chan error, 16), disconnected: make(chan error, 16), back: make(chan struct{}, 16), closed: make(chan struct{})}
	var err error
	c.Conn, err = nats.Connect(r.url, nats.UserCredentials(creds),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0), nats.MaxReconnects(5),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				c.refused <- err
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.disconnected <- err }),
		nats.ReconnectHandler(func(*nats.Conn) { c.back <- struct{}{} }),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(c.Close)
	return c
}

func (r *rig) request(c *client, subject, body string) *nats.Msg {
	r.Helper()
	m, err := c.Request(subject, []byte(body), within)
	if err != nil {
		r.Fatalf("%s: %v", subject, err)
	}
	return m
}

// take waits for what a channel gives.
func take[T any](r *rig, from <-chan T, what string) (v T) {
	r.Helper()
	select {
	case v = <-from:
	case <-time.After(within):
		r.Fatalf("not within %s: %s", within, what)
	}
	return v
}

// arrivals subscribes, answers what comes, and hands it on.
func (r *rig) arrivals(c *client, subject, answer string) <-chan *nats.Msg {
	r.Helper()
	got := make(chan *nats.Msg, 16)
	_, err := c.Subscribe(subject, func(m *nats.Msg) {
		_ = m.Respond([]byte(answer)) // without it the message comes again
		got <- m
	})
	if err != nil {
		r.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		r.Fatal(err)
	}
	return got
}

func (r *rig) jetstream(c *client) jetstream.JetStream {
	r.Helper()
	js, err := jetstream.New(c.Conn)
	if err != nil {
		r.Fatal(err)
	}
	return js
}

func seq(r *rig, m *nats.Msg) uint64 {
	r.Helper()
	n, err := strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64)
	if err != nil {
		r.Fatalf("%s: sequence %q", m.Subject, m.Header.Get(schemas.HeaderSeq))
	}
	return n
}

func TestAStockClientCallsAsksSendsAndReceives(t *testing.T) {
	r := start(t)
	service := r.arrivals(r.connect(r.enroll("echo")), "in.call.echo", "from the service")
	peer := r.connect(r.issue("peer", "op", schemas.IssueRequest{Scope: []string{"send:caller"}}))
	asked, sent := r.arrivals(peer, "in.ask.*", "from the peer"), r.arrivals(peer, "in.send.*", "")
	caller := r.connect(r.issue("caller", "op", schemas.IssueRequest{Scope: []string{"send:peer", "ask:peer"}, Tools: []string{"echo"}}))

	for _, c := range []struct {
		subject, answer, from, arrives string
		arrivals                       <-chan *nats.Msg
	}{
		{"out.op.call.echo", "from the service", "echo", "in.call.echo", service},
		{"out.op.ask.peer", "from the peer", "peer", "in.ask.caller", asked},
	} {
		answer := r.request(caller, c.subject, "hello")
		if string(answer.Data) != c.answer || answer.Header.Get(schemas.HeaderFrom) != c.from {
			t.Errorf("%s: answer %q with %v", c.subject, answer.Data, answer.Header)
		}
		m := take(r, c.arrivals, c.arrives)
		if m.Subject != c.arrives || string(m.Data) != "hello" || m.Header.Get(schemas.HeaderFrom) != "caller" || seq(r, m) != seq(r, answer) {
			t.Errorf("%s: arrived on %s with %v: %q", c.subject, m.Subject, m.Header, m.Data)
		}
	}

	ack, err := r.jetstream(caller).Publish(r.ctx, "out.op.send.peer", []byte("a message"), jetstream.WithMsgID("one"))
	if err != nil || ack.Stream != schemas.Stream || ack.Sequence == 0 || ack.Duplicate {
		t.Fatalf("stock JetStream publish: %+v, %v", ack, err)
	}
	m := take(r, sent, "the message")
	if string(m.Data) != "a message" || m.Subject != "in.send.caller" || seq(r, m) != ack.Sequence {
		t.Errorf("sent as %d, arrived on %s as %s: %q", ack.Sequence, m.Subject, m.Header.Get(schemas.HeaderSeq), m.Data)
	}
	again, err := r.jetstream(caller).Publish(r.ctx, "out.op.send.peer", []byte("a message"), jetstream.WithMsgID("one"))
	if err != nil || !again.Duplicate || again.Sequence != ack.Sequence {
		t.Errorf("the same publish again: %+v, %v", again, err)
	}
	var byRequest schemas.Ack
	if err := json.Unmarshal(r.request(caller, "out.op.send.peer", "another").Data, &byRequest); err != nil || byRequest.Stream != schemas.Stream || byRequest.Seq <= ack.Sequence {
		t.Errorf("send by request: %+v, %v", byRequest, err)
	}
	if m := take(r, sent, "the second message"); seq(r, m) != byRequest.Seq {
		t.Errorf("sent as %d, arrived as %d", byRequest.Seq, seq(r, m))
	}
}

func TestAStockMicroServiceServes(t *testing.T) {
	r := start(t)
	served := r.connect(r.enroll("echo")).Conn
	s, err := micro.AddService(served, micro.Config{Name: "echo", Version: "1.0.0"})
	if err == nil {
		t.Cleanup(func() { _ = s.Stop() })
		err = s.AddEndpoint("echo", micro.HandlerFunc(func(m micro.Request) { _ = m.Error("418", "I am a teapot", nil) }), micro.WithEndpointSubject("in.call.echo"))
	}
	if err == nil {
		err = served.Flush() // it subscribes without waiting for the server
	}
	if err != nil {
		t.Fatal(err)
	}
	caller := r.connect(r.issue("caller", "op", schemas.IssueRequest{Tools: []string{"echo"}}))
	if m := r.request(caller, "out.op.call.echo", "x"); m.Header.Get(micro.ErrorCodeHeader) != "418" {
		t.Errorf("the service's own error reaches the caller as %v %q", m.Header, m.Data)
	}
}

func TestAStockClientIsRefusedByTheServerAndByIntakeInWordsItUnderstands(t *testing.T) {
	r := start(t)
	wide := r.connect(r.issue("rogue", "op", schemas.IssueRequest{Scope: []string{"send:peer", "ask:peer"}, ForbiddenTools: []string{"bash"}}))
	r.issue("rogue", "op", schemas.IssueRequest{Scope: []string{"send:peer"}}) // the newer grant counts, for old credentials too
	done := r.connect(r.issue("rogue", "done", schemas.IssueRequest{Tools: []string{"echo"}}))

	released := r.request(r.connect(r.enroll("rogue")), "out.token.release", `{"operation_id":"done"}`)
	if code := released.Header.Get(schemas.HeaderErrorCode); code != "" {
		t.Fatalf("give up: %s %s", code, released.Header.Get(schemas.HeaderError))
	}
	m := r.request(done, "out.done.call.echo", "x")
	if m.Header.Get(schemas.HeaderErrorCode) != "401" || !strings.Contains(m.Header.Get(schemas.HeaderError), "holds no capability for operation done") {
		t.Errorf("a capability that was given up: %v", m.Header)
	}

	_, err := r.jetstream(wide).Publish(r.ctx, "out.op.ask.peer", []byte("x"))
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.Code != schemas.CodeForbidden || !strings.Contains(api.Description, "ask:peer is not in the scope of operation op") {
		t.Errorf("what the newer grant lacks: %v", err)
	}

	if err := wide.Publish("out.op.call.bash", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := take(r, wide.refused, "a permissions violation"); !strings.Contains(err.Error(), `Publish to "out.op.call.bash"`) {
		t.Errorf("the forbidden tool: %v", err)
	}
}

func TestAKilledStockClientIsCutOffAndStaysOut(t *testing.T) {
	r := start(t)
	operation, identity := r.issue("caller", "op", schemas.IssueRequest{Tools: []string{"echo"}}), r.enroll("caller")
	first, second := r.connect(operation), r.connect(identity)
	receipt := ask[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "caller", Lock: schemas.Killed, Reason: "interop", Actor: "test"})
	if receipt.State != schemas.Killed || receipt.Seq == 0 || receipt.Partial {
		t.Errorf("receipt: %+v", receipt)
	}
	for _, c := range []*client{first, second} {
		take(r, c.disconnected, "the connection closed by the server")
		take(r, c.closed, "the client giving up")
		if len(c.back) != 0 {
			t.Error("it came back")
		}
	}
	for _, creds := range []string{operation, identity} {
		if nc, err := nats.Connect(r.url, nats.UserCredentials(creds)); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("a new connection: %v", err)
			if nc != nil {
				nc.Close()
			}
		}
	}
}
