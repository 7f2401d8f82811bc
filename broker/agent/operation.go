package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
)

// ErrEnded is matched by what is asked of an operation that has ended.
var ErrEnded = errors.New("the operation has ended")

// An Operation is what an agent does under one capability after the other. It
// is safe for concurrent use.
type Operation struct {
	o    Options
	user nkeys.KeyPair

	ctx    context.Context // ends with the operation; its cause says why
	end    context.CancelCauseFunc
	work   sync.WaitGroup // the refreshing, and connections that finish
	change sync.Mutex     // one subscription or refresh at a time

	mu       sync.Mutex // guards the fields below
	now      *link
	closing  bool
	handlers []handler
}

// A link is one connection, with one capability.
type link struct {
	grant schemas.IssueReply
	conn  *nats.Conn
	subs  []*nats.Subscription
	calls sync.WaitGroup // that go over it
}

type handler struct {
	subject string
	serve   func(*link, *nats.Msg)
}

// queue is the group in which all connections of an operation share what
// arrives.
const queue = "writ"

const (
	dialWithin  = 10 * time.Second // handshake included: a server to which everybody comes at once has much to do
	flushWithin = 5 * time.Second
	askWithin   = 5 * time.Second  // until the issuer is asked again: one that was lost never answers
	askAtMost   = 20 * time.Second // the same when many ask: else it answers none but those who wait no more
	sendWithin  = 10 * time.Second // until a message without an acknowledgement is sent again
)

func open(ctx context.Context, o Options, grant schemas.IssueReply, user nkeys.KeyPair) (*Operation, error) {
	op := &Operation{o: o, user: user}
	l, err := op.link(grant)
	if err != nil {
		return nil, err
	}
	op.now = l
	op.ctx, op.end = context.WithCancelCause(context.WithoutCancel(ctx))
	op.work.Go(op.keepFresh)
	return op, nil
}

// link connects with a capability's user, and subscribes.
func (op *Operation) link(grant schemas.IssueReply) (*link, error) {
	nc, err := nats.Connect(op.o.URL, append([]nats.Option{
		nats.UserJWT(func() (string, error) { return grant.UserJWT, nil }, op.user.Sign),
		nats.MaxReconnects(-1),
		nats.Timeout(dialWithin),
	}, op.o.NATS...)...)
	if err != nil {
		return nil, fmt.Errorf("agent: connect for operation %s: %w", grant.OperationID, err)
	}
	l := &link{grant: grant, conn: nc}
	for _, h := range op.handlers {
		if err := l.subscribe(h); err != nil {
			nc.Close()
			return nil, err
		}
	}
	return l, nil
}

func (l *link) subscribe(h handler) error {
	sub, err := l.conn.QueueSubscribe(h.subject, queue, func(m *nats.Msg) { h.serve(l, m) })
	if err != nil {
		return fmt.Errorf("agent: subscribe to %s: %w", h.subject, err)
	}
	l.subs = append(l.subs, sub)
	if err := l.conn.Flush(); err != nil {
		return fmt.Errorf("agent: subscribe to %s: %w", h.subject, err)
	}
	return nil
}

// Token is the capability as it is now.
func (op *Operation) Token() schemas.IssueReply {
	op.mu.Lock()
	defer op.mu.Unlock()
	return op.now.grant
}

// Done is closed when the operation has ended: closed by its agent, or with a
// capability that was not renewed. Err says why.
func (op *Operation) Done() <-chan struct{} { return op.ctx.Done() }

// Err says why the operation has ended, nil while it has not. It matches
// ErrEnded, and a *schemas.Refusal where the renewal was refused.
func (op *Operation) Err() error { return context.Cause(op.ctx) }

// Close finishes what is in progress, gives the capability up, and ends the
// operation. When the context ends, it waits for nothing more.
func (op *Operation) Close(ctx context.Context) error {
	op.change.Lock() // no connection is about to be replaced
	op.mu.Lock()
	l, first := op.now, !op.closing
	op.closing = true
	op.mu.Unlock()
	op.change.Unlock()
	if !first || op.ctx.Err() != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, l.conn.Close)
	defer stop()
	op.idle(l)
	_, err := request[schemas.Ack](ctx, l.conn, "out.token.release", schemas.ReleaseRequest{OperationID: l.grant.OperationID})
	op.hangUp(l)
	op.end(ErrEnded)
	op.work.Wait()
	if err != nil {
		return fmt.Errorf("agent: close operation %s: %w", l.grant.OperationID, err)
	}
	return nil
}

// keepFresh renews the capability until that fails for good.
func (op *Operation) keepFresh() {
	for {
		grant := op.Token()
		life := grant.ExpiresAt.Sub(op.o.Now())
		if !op.sleep(life * 4 / 5) {
			return
		}
		var why error // the refusal, where there is one, and not that time ran out on the last try
		for {
			err := op.refresh()
			if err == nil {
				break
			}
			var refused *schemas.Refusal
			if why == nil || errors.As(err, &refused) {
				why = err
			}
			op.o.Logger.Warn("capability not refreshed", "operation", grant.OperationID, "error", err)
			left := grant.ExpiresAt.Sub(op.o.Now())
			if left <= 0 {
				op.lapse(why)
				return
			}
			if !op.sleep(min(left, max(left/8, 20*time.Millisecond))) {
				return
			}
		}
	}
}

func (op *Operation) sleep(d time.Duration) (on bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-op.ctx.Done():
		return false
	}
}

// lapse ends an operation whose capability has.
func (op *Operation) lapse(why error) {
	op.change.Lock()
	defer op.change.Unlock()
	op.mu.Lock()
	l := op.now
	op.mu.Unlock()
	op.end(fmt.Errorf("%w: its capability was not renewed: %w", ErrEnded, why))
	l.conn.Close()
}

// refresh puts a fresh connection in the place of the one that is there.
func (op *Operation) refresh() error {
	op.change.Lock()
	defer op.change.Unlock()
	op.mu.Lock()
	old, closing := op.now, op.closing
	op.mu.Unlock()
	if closing || op.ctx.Err() != nil {
		<-op.ctx.Done() // Close ends it
		return nil
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(op.ctx, patience(old.grant.ExpiresAt.Sub(op.o.Now())))
	defer cancel()
	grant, err := request[schemas.IssueReply](ctx, old.conn, "out.token.refresh", schemas.RefreshRequest{OperationID: old.grant.OperationID})
	if err != nil {
		return err
	}
	answered := time.Since(began)
	fresh, err := op.link(grant)
	if err != nil {
		return err
	}
	op.mu.Lock()
	op.now = fresh
	op.mu.Unlock()
	op.retire(old)
	op.o.Logger.Debug("capability refreshed", "operation", grant.OperationID, "jti", grant.JTI, "answered", answered, "took", time.Since(began))
	return nil
}

// patience is how long one try to refresh may take when so much is left: there
// must be time to ask again.
func patience(left time.Duration) time.Duration {
	return min(left, max(left/4, 250*time.Millisecond), askWithin)
}

// retire lets a connection that was replaced finish, and closes it.
func (op *Operation) retire(l *link) {
	op.work.Go(func() {
		op.idle(l)
		op.hangUp(l)
	})
}

// idle returns when a connection takes nothing more in, has answered what it
// had taken, and nobody waits for an answer over it; or when its capability
// ends, and the server closes it.
func (op *Operation) idle(l *link) {
	var draining sync.WaitGroup
	for _, sub := range l.subs {
		draining.Add(1)
		sub.SetClosedHandler(func(string) { draining.Done() })
		if err := sub.Drain(); err != nil { // it is closed already
			sub.SetClosedHandler(nil)
			draining.Done()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		draining.Wait()
		l.calls.Wait()
	}()
	expiry := time.NewTimer(l.grant.ExpiresAt.Sub(op.o.Now()))
	defer expiry.Stop()
	select {
	case <-done:
	case <-expiry.C:
	case <-op.ctx.Done():
	}
}

// hangUp sends what is not sent yet, and closes.
func (op *Operation) hangUp(l *link) {
	if err := l.conn.FlushTimeout(flushWithin); err != nil && !l.conn.IsClosed() {
		op.o.Logger.Warn("answers may be lost", "operation", l.grant.OperationID, "error", err)
	}
	l.conn.Close()
}

// use gives the connection that is there, until the caller calls done.
func (op *Operation) use() (l *link, done func(), err error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	if err := op.Err(); err != nil {
		return nil, nil, fmt.Errorf("agent: %w", err)
	}
	if op.closing {
		return nil, nil, fmt.Errorf("agent: %w", ErrEnded)
	}
	op.now.calls.Add(1)
	return op.now, op.now.calls.Done, nil
}

// Call calls a tool. The answer is bounded by the context, and by two minutes at
// the control plane.
func (op *Operation) Call(ctx context.Context, tool string, data []byte) ([]byte, error) {
	return op.do(ctx, schemas.VerbCall, tool, data)
}

// Read reads a resource, Write writes one.
func (op *Operation) Read(ctx context.Context, resource string, data []byte) ([]byte, error) {
	return op.do(ctx, schemas.VerbRead, resource, data)
}

// Write writes a resource.
func (op *Operation) Write(ctx context.Context, resource string, data []byte) ([]byte, error) {
	return op.do(ctx, schemas.VerbWrite, resource, data)
}

// Ask asks another agent.
func (op *Operation) Ask(ctx context.Context, agent string, data []byte) ([]byte, error) {
	return op.do(ctx, schemas.VerbAsk, agent, data)
}

func (op *Operation) do(ctx context.Context, verb, resource string, data []byte) ([]byte, error) {
	l, done, err := op.use()
	if err != nil {
		return nil, err
	}
	defer done()
	m, err := exchange(ctx, l.conn, &nats.Msg{Subject: "out." + l.grant.OperationID + "." + verb + "." + resource, Data: data})
	if err != nil {
		return nil, fmt.Errorf("agent: %s %s: %w", verb, resource, err)
	}
	return m.Data, nil
}

// Send sends a message to another agent and returns the sequence under which it
// is on disk at the control plane. It is tried again where a connection is lost
// in between: under the same id, so that it is sent once.
func (op *Operation) Send(ctx context.Context, agent string, data []byte) (seq uint64, err error) {
	id := rand.Text()
	for {
		once, cancel := context.WithTimeout(ctx, sendWithin)
		ack, err := op.send(once, agent, id, data)
		cancel()
		if err == nil || !passes(err) || !pause(ctx, 50*time.Millisecond) {
			return ack.Seq, err
		}
	}
}

// passes says of an error that the next try may succeed. An operation that has
// ended has ended, even if the issuer's silence is why.
func passes(err error) bool {
	var refused *schemas.Refusal
	return !errors.Is(err, ErrEnded) && (errors.As(err, &refused) && refused.Code == schemas.CodeUnavailable ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded))
}

func (op *Operation) send(ctx context.Context, agent, id string, data []byte) (schemas.Ack, error) {
	l, done, err := op.use()
	if err != nil {
		return schemas.Ack{}, err
	}
	defer done()
	m := nats.NewMsg("out." + l.grant.OperationID + "." + schemas.VerbSend + "." + agent)
	m.Header.Set(schemas.HeaderMsgID, id)
	m.Data = data
	answer, err := exchange(ctx, l.conn, m)
	if err != nil {
		return schemas.Ack{}, fmt.Errorf("agent: send to %s: %w", agent, err)
	}
	var ack schemas.Ack
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return ack, fmt.Errorf("agent: send to %s: read the acknowledgement: %w", agent, err)
	}
	return ack, nil
}

func pause(ctx context.Context, d time.Duration) (on bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
