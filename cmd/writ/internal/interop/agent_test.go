package interop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/broker/agent"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// identity is an agent of ours, by the helper.
func (r *rig) identity(id string) *agent.Agent {
	r.Helper()
	creds := ask[schemas.EnrollReply](r, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "test"}).Creds
	a, err := agent.Connect(r.ctx, r.options(creds))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(a.Close)
	return a
}

func (r *rig) options(creds string) agent.Options {
	return agent.Options{URL: r.url, Creds: []byte(creds), Keys: jwks.New(jwks.Options{TrustDomain: "interop.example",
		Source: jwks.URL(r.http+"/.well-known/jwks.json", r.client)})}
}

func (r *rig) operate(a *agent.Agent, q agent.Request) *agent.Operation {
	r.Helper()
	op, err := a.IssueToken(r.ctx, q)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		_ = op.Close(ctx) // the agent may have been killed
	})
	return op
}

// An inbox is what a handler has seen.
type inbox struct {
	mu   sync.Mutex
	text map[string]int    // how often each was seen under another sequence
	seqs map[uint64]string // what came under each
	bad  []string
}

func newInbox() *inbox { return &inbox{text: map[string]int{}, seqs: map[uint64]string{}} }

func (b *inbox) take(_ context.Context, d agent.Delivery) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := string(d.Data)
	if d.Claims.AgentID != d.From || d.Claims.OperationID != d.Operation {
		b.bad = append(b.bad, fmt.Sprintf("%s: claims of %s in %s", text, d.Claims.AgentID, d.Claims.OperationID))
	}
	if before, again := b.seqs[d.Seq]; again {
		if before != text {
			b.bad = append(b.bad, fmt.Sprintf("sequence %d is %s and %s", d.Seq, before, text))
		}
		return nil // delivered again, and told so
	}
	b.seqs[d.Seq] = text
	b.text[text]++
	return nil
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.text)
}

// Both agents' capabilities are replaced several times while one sends and
// calls, and the other takes and answers, without a pause, and another key
// signs them from the middle on, and others their NATS users: nothing is lost, and nothing comes twice but
// under one sequence.
func TestNothingIsLostWhileCapabilitiesAreRefreshedAndKeysAreRotated(t *testing.T) {
	r := start(t)
	r.keepsWorking(r.identity("caller"), r.identity("peer"), func() {
		ask[schemas.RotateReply](r, schemas.CtlRotate, schemas.RotateRequest{Reason: "quarter", Actor: "test"})
		ask[schemas.RotateReply](r, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateAccounts, Reason: "quarter", Actor: "test"})
	})
}

// keepsWorking has two agents at work through what happens in the middle.
func (r *rig) keepsWorking(calling, called *agent.Agent, happens func()) {
	t := r.T
	t.Helper()
	const ttl = 8 * time.Second
	peer := r.operate(called, agent.Request{OperationID: "desk", Scope: []string{"send:caller"}, TTL: ttl})
	box := newInbox()
	if err := peer.OnSend(box.take); err != nil {
		t.Fatal(err)
	}
	if err := peer.OnAsk(func(_ context.Context, d agent.Delivery) ([]byte, error) {
		return append([]byte("re: "), d.Data...), nil
	}); err != nil {
		t.Fatal(err)
	}
	caller := r.operate(calling, agent.Request{AgentID: "caller", OperationID: "work", Scope: []string{"send:peer", "ask:peer"},
		Tools: []string{"echo"}, ForbiddenTools: []string{"bash"}, TTL: ttl, Task: "keep going"})
	seen := map[string]map[string]bool{"caller": {}, "peer": {}}
	sent := map[uint64]string{}
	asked := 0
	rotated := false
	for n := 0; len(seen["caller"]) < 4 || len(seen["peer"]) < 4; n++ {
		if r.ctx.Err() != nil {
			t.Fatalf("in %d messages %d and %d capabilities", n, len(seen["caller"]), len(seen["peer"]))
		}
		if !rotated && len(seen["caller"]) == 2 {
			happens()
			rotated = true
		}
		text := fmt.Sprint("message ", n)
		seq, err := caller.Send(r.ctx, "peer", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if before, again := sent[seq]; again {
			t.Fatalf("%s and %s are both event %d", before, text, seq)
		}
		sent[seq] = text
		if answer, err := caller.Ask(r.ctx, "peer", []byte(text)); err != nil || string(answer) != "re: "+text {
			t.Fatalf("%s: answered %q, %v", text, answer, err)
		}
		asked++
		seen["caller"][caller.Token().JTI] = true
		seen["peer"][peer.Token().JTI] = true
		time.Sleep(30 * time.Millisecond) // within an agent's rate
	}
	for until := time.Now().Add(within); box.count() < len(sent) && time.Now().Before(until); {
		time.Sleep(20 * time.Millisecond)
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	for seq, text := range sent {
		if box.text[text] != 1 || box.seqs[seq] != text {
			t.Errorf("%s, event %d: came %d times; under that event %q", text, seq, box.text[text], box.seqs[seq])
		}
	}
	if len(box.text) != len(sent) || len(box.bad) > 0 {
		t.Errorf("%d sent, %d came; %v", len(sent), len(box.text), box.bad)
	}
	t.Logf("%d sends and %d questions over %d and %d capabilities and the rotations", len(sent), asked, len(seen["caller"]), len(seen["peer"]))
}

// blind has no key set at first, as where the issuer is down and nothing was
// read yet.
type blind struct {
	agent.Verifier
	tries int // of one goroutine
}

func (b *blind) Verify(ctx context.Context, token string, want capability.Expect) (*capability.Claims, error) {
	if b.tries++; b.tries < 3 {
		return nil, fmt.Errorf("%w: down", jwks.ErrUnavailable)
	}
	return b.Verifier.Verify(ctx, token, want)
}

// What can't be verified yet is neither believed nor refused: it was
// acknowledged, and must not be lost.
func TestAMessageThatCannotBeVerifiedYetComesAgain(t *testing.T) {
	r := start(t)
	o := r.options(ask[schemas.EnrollReply](r, schemas.CtlEnroll, schemas.EnrollRequest{ID: "peer", Actor: "test"}).Creds)
	keys := &blind{Verifier: o.Keys}
	o.Keys = keys
	a, err := agent.Connect(r.ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	box := newInbox()
	if err := r.operate(a, agent.Request{OperationID: "desk", Scope: []string{"send:caller"}}).OnSend(box.take); err != nil {
		t.Fatal(err)
	}
	caller := r.operate(r.identity("caller"), agent.Request{OperationID: "work", Scope: []string{"send:peer"}})
	seq, err := caller.Send(r.ctx, "peer", []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(within); box.count() == 0 && time.Now().Before(until); {
		time.Sleep(20 * time.Millisecond)
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	if box.seqs[seq] != "kept" || len(box.seqs) != 1 {
		t.Errorf("event %d was acknowledged; what came is %v", seq, box.seqs)
	}
}

func TestTheHelperTellsRefusals(t *testing.T) {
	r := start(t)
	a := r.identity("caller")
	refused := func(what string, err error, code int) {
		t.Helper()
		var refusal *schemas.Refusal
		if !errors.As(err, &refusal) || refusal.Code != code {
			t.Errorf("%s: %v, want %d", what, err, code)
		}
	}
	_, err := a.IssueToken(r.ctx, agent.Request{OperationID: "x", Scope: []string{"send:nobody"}})
	refused("beyond the ceiling", err, schemas.CodeForbidden)
	_, err = a.IssueToken(r.ctx, agent.Request{AgentID: "peer", OperationID: "x"})
	refused("for another", err, schemas.CodeForbidden)
	if _, err := a.IssueToken(r.ctx, agent.Request{OperationID: "x", TTL: 1500 * time.Millisecond}); err == nil {
		t.Error("half a second was taken")
	}
	op := r.operate(a, agent.Request{OperationID: "work", Scope: []string{"send:peer", "ask:peer"}, Tools: []string{"echo"}})
	r.echo()
	if answer, err := op.Call(r.ctx, "echo", []byte("hello")); err != nil || string(answer) != "hello" {
		t.Errorf("%q, %v", answer, err)
	}
	peer := r.operate(r.identity("peer"), agent.Request{OperationID: "desk"})
	if err := peer.OnAsk(func(context.Context, agent.Delivery) ([]byte, error) {
		return nil, schemas.Refuse(schemas.CodeNotFound, "no such thing")
	}); err != nil {
		t.Fatal(err)
	}
	_, err = op.Ask(r.ctx, "peer", []byte("?"))
	refused("by the peer", err, schemas.CodeNotFound)
	if err := op.Close(r.ctx); err != nil {
		t.Error(err)
	}
	if _, err := op.Call(r.ctx, "echo", nil); !errors.Is(err, agent.ErrEnded) || !errors.Is(op.Err(), agent.ErrEnded) {
		t.Errorf("behind the end: %v, %v", err, op.Err())
	}
	if got := ask[schemas.StatusReply](r, schemas.CtlStatus, schemas.StatusRequest{AgentID: "caller"}).Agents[0].Operations; len(got) != 0 {
		t.Errorf("operations behind the end: %v", got)
	}
}

// echo is the service that gives back what it gets.
func (r *rig) echo() {
	r.Helper()
	c := r.connect(r.enroll("echo"))
	if _, err := c.Subscribe("in.call.echo", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		r.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		r.Fatal(err)
	}
}

// A lock ends refreshing: the operation goes on until its capability ends, and
// no further.
func TestAPausedAgentsOperationEndsWithItsCapability(t *testing.T) {
	r := start(t)
	op := r.operate(r.identity("caller"), agent.Request{OperationID: "work", Scope: []string{"send:peer"}, TTL: 3 * time.Second})
	ask[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "caller", Lock: schemas.Paused, Reason: "test", Actor: "test"})
	select {
	case <-op.Done():
	case <-r.ctx.Done():
		t.Fatal("it goes on")
	}
	var refusal *schemas.Refusal
	if err := op.Err(); !errors.Is(err, agent.ErrEnded) || !errors.As(err, &refusal) || refusal.Code != schemas.CodeHeld {
		t.Errorf("ended with %v", err)
	}
	if end := op.Token().ExpiresAt; time.Now().Before(end) {
		t.Errorf("it ended before %s", end)
	}
}
