package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// A client is a stock NATS client of an agent or a service, and its own
// account of what happened to it.
type client struct {
	nc        *nats.Conn
	operation string
	closed    chan struct{} // closed for good
	dials     dials
	slowed    int // times that it was over its rate; of who uses the client

	mu        sync.Mutex
	interrupt func(error) // told what ends waiting, while somebody waits
}

const (
	answerWithin  = 10 * time.Second // for what is no question to another agent
	rateWait      = 250 * time.Millisecond
	reconnectWait = 100 * time.Millisecond
	reconnectMost = 5
)

// dials counts how often a client went to the server.
type dials struct{ n atomic.Int64 }

// Dial is nats.CustomDialer.
func (d *dials) Dial(network, address string) (net.Conn, error) {
	d.n.Add(1)
	return (&net.Dialer{Timeout: nats.DefaultTimeout}).Dial(network, address)
}

// connect opens a connection with the content of a .creds file. Whatever cuts
// it off, the client tries to come back by itself, as stock clients do.
func connect(url, name, operation string, creds []byte) (*client, error) {
	c := &client{operation: operation, closed: make(chan struct{})}
	nc, err := nats.Connect(url, nats.Name(name), nats.UserCredentialBytes(creds),
		nats.MaxReconnects(reconnectMost), nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.failed(err) }),
		nats.SetCustomDialer(&c.dials),
		nats.ClosedHandler(func(*nats.Conn) {
			close(c.closed)
			c.failed(nats.ErrConnectionClosed)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect as %s: %w", name, err)
	}
	c.nc = nc
	return c, nil
}

// failed is told what comes beside answers.
func (c *client) failed(err error) {
	if !ends(err) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupt != nil {
		c.interrupt(err)
	}
}

// ends says whether there is nothing to wait for any more: the server refused
// it, or the connection is gone.
func ends(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, nats.ErrConnectionClosed)
}

// watched gives a context that ends with what ends waiting. A client waits for
// one thing at a time.
func (c *client) watched(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	c.interrupt = func(err error) { cancel(err) }
	c.mu.Unlock()
	return ctx, func() {
		c.mu.Lock()
		c.interrupt = nil
		c.mu.Unlock()
		cancel(nil)
	}
}

// why is the reason for which a watched context ended, err where it did not.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && ends(cause) {
		return cause
	}
	return err
}

// An answer is what a request came to: code 200, or the code of a refusal.
type answer struct {
	code int
	text string
	seq  uint64
	body []byte
}

func (a *answer) String() string {
	if a.code == http.StatusOK {
		return strconv.Itoa(a.code)
	}
	return fmt.Sprintf("%d %s", a.code, a.text)
}

// act does one action of the client's operation, at the rate that it is
// allowed. What the server itself refuses is an error that matches
// nats.ErrPermissionViolation.
func (c *client) act(ctx context.Context, action, contentType string, body []byte) (*answer, error) {
	m := nats.NewMsg("out." + c.operation + "." + action)
	m.Data = body
	if contentType != "" {
		m.Header.Set(schemas.HeaderType, contentType)
	}
	ctx, done := c.watched(ctx)
	defer done()
	return c.atRate(ctx, m)
}

// token asks the issuer on out.token.<what>, at the rate that it allows.
func (c *client) token(ctx context.Context, what string, req any) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return c.atRate(ctx, &nats.Msg{Subject: "out.token." + what, Data: schemas.Marshal(req)})
}

// atRate does what 429 asks for: it slows down and sends again.
func (c *client) atRate(ctx context.Context, m *nats.Msg) (*answer, error) {
	for {
		a, err := c.request(ctx, m)
		if err != nil || a.code != schemas.CodeRate {
			return a, err
		}
		c.slowed++
		select {
		case <-time.After(rateWait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", m.Subject, why(ctx, ctx.Err()))
		}
	}
}

func (c *client) request(ctx context.Context, m *nats.Msg) (*answer, error) {
	reply, err := c.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Subject, why(ctx, err))
	}
	return read(reply)
}

// read reads an answer as any client of NATS micro services would.
func read(m *nats.Msg) (*answer, error) {
	a := &answer{code: http.StatusOK, body: m.Data}
	if text := m.Header.Get(schemas.HeaderErrorCode); text != "" {
		code, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%s: the answer's code %q is no number", m.Subject, text)
		}
		a.code, a.text = code, m.Header.Get(schemas.HeaderError)
	}
	if text := m.Header.Get(schemas.HeaderSeq); text != "" {
		seq, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: the answer's sequence %q is no number", m.Subject, text)
		}
		a.seq = seq
		return a, nil
	}
	var ack schemas.Ack
	if json.Unmarshal(m.Data, &ack) == nil && ack.Stream != "" {
		a.seq = ack.Seq
	}
	return a, nil
}

// want is an answer's body, where it is one.
func want(a *answer, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	if a.code != http.StatusOK {
		return nil, errors.New(a.String())
	}
	return a.body, nil
}

// wantJSON decodes an answer's body.
func wantJSON[T any](a *answer, err error) (v T, _ error) {
	body, err := want(a, err)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("answer: %w", err)
	}
	return v, nil
}
