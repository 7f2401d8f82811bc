// Package agent is a client for agents written in Go: it asks for capabilities,
// keeps them fresh, and verifies what arrives. It needs nats.go and schemas
// alone, and nothing of it is needed: what it does, every stock NATS client can
// do.
//
//	a, err := agent.Connect(ctx, agent.Options{URL: url, Creds: identity, Keys: keys})
//	op, err := a.IssueToken(ctx, agent.Request{OperationID: "report", Scope: []string{"send:writer-2"}})
//	err = op.Send(ctx, "writer-2", []byte("draft is ready"))
//
// # Refreshing
//
// At four fifths of a capability's life the next one is asked for, over the
// connection that is there. With it comes a second connection, which subscribes
// to all that the first one does, in the same queue group, so that each message
// reaches one of them. Then what is sent goes over the second; the first takes
// nothing more in, finishes what it has, and is closed when its last call is
// answered, or when its capability ends. No message is lost. Where refreshing
// is refused, or nobody answers, it is tried again until the capability ends, and
// with it the operation: see [Operation.Done].
//
// # Without a control plane
//
// An identity that loses its connection, or is refused, comes again for as long
// as it lives, with pauses of up to 22 seconds. Who asks meanwhile waits; only where the
// server did not admit the identity is it told so at once.
//
// # What arrives
//
// Each delivery is verified before a handler sees it: its Writ-Token is
// authentic, of this trust domain, of the agent in Writ-From and the operation
// in Writ-Operation. One that is not is refused with 403 and shown to nobody.
// The capability may have ended since it was sent: a message is kept for a day.
//
// Sends are delivered at least once: whoever can't bear one twice looks at
// [Delivery.Seq], which is the same each time.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// A Verifier verifies what arrives: [jwks.Keys], which follow the issuer's key
// set. An error that matches [jwks.ErrUnavailable] says that nothing can be said
// now; any other, that the token is not to be believed.
type Verifier interface {
	Verify(ctx context.Context, token string, want capability.Expect) (*capability.Claims, error)
}

// Options of an agent. URL, Creds and Keys are needed.
type Options struct {
	URL    string
	Creds  []byte // content of the .creds file of the agent's identity (writ enroll)
	Keys   Verifier
	Logger *slog.Logger     // what nobody waits for; nowhere where nil
	Now    func() time.Time // the clock; time.Now where nil
	NATS   []nats.Option    // for every connection, such as those of TLS
}

// An Agent is an agent's identity at the control plane. It may do one thing: ask
// for capabilities. It is safe for concurrent use.
type Agent struct {
	o    Options
	conn *nats.Conn
}

// Connect connects with the identity.
func Connect(_ context.Context, o Options) (*Agent, error) {
	if o.Keys == nil {
		return nil, errors.New("agent: no keys are given; what arrives could not be verified")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	nc, err := nats.Connect(o.URL, append([]nats.Option{
		nats.UserCredentialBytes(o.Creds),
		nats.MaxReconnects(-1),
		nats.Timeout(dialWithin),
		nats.IgnoreAuthErrorAbort(), // who is refused now may be let in again: see above
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ReconnectBufSize(-1), // what is asked while there is no connection is asked anew, not twice
	}, o.NATS...)...)
	if err != nil {
		return nil, fmt.Errorf("agent: connect: %w", err)
	}
	return &Agent{o, nc}, nil
}

// reconnectDelay is how long an identity waits before it comes again: longer each
// time, and not at the same time as all others.
func reconnectDelay(attempts int) time.Duration {
	d := min(50*time.Millisecond<<min(attempts, 10), 15*time.Second)
	return d/2 + rand.N(d)
}

// Close closes the identity's connection. Operations go on.
func (a *Agent) Close() { a.conn.Close() }

// A Request says what a capability is to grant. What the ceiling does not admit
// is refused as a whole.
type Request struct {
	AgentID        string // the agent itself where empty; others need may_issue_for
	OperationID    string
	Scope          []string // exact verb:resource
	Tools          []string // each grants call:<tool>
	ForbiddenTools []string
	TTL            time.Duration // whole seconds; the ceiling's where 0
	MaxTokens      int64         // language-model tokens
	Task           string        // what the user asked
	Job            string        // what recurs
	TraceID        string        // of the user's request; a new one where empty
}

// IssueToken asks for a capability and opens its operation. For an agent that
// runs elsewhere use Delegate. Without an issuer both ask again until the context
// ends.
func (a *Agent) IssueToken(ctx context.Context, r Request) (*Operation, error) {
	user, err := nkeys.CreateUser() // its seed stays here
	if err != nil {
		return nil, fmt.Errorf("agent: make a key: %w", err)
	}
	public, err := user.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("agent: make a key: %w", err)
	}
	grant, err := a.ask(ctx, r, public)
	if err != nil {
		return nil, err
	}
	return open(ctx, a.o, grant, user)
}

// Delegate asks for a capability for another agent: the reply holds what that
// agent needs, a secret. See Open.
func (a *Agent) Delegate(ctx context.Context, r Request) (schemas.IssueReply, error) {
	return a.ask(ctx, r, "")
}

// Open opens an operation with a capability that somebody else asked for. It
// needs no identity: Options.Creds are not used.
func Open(ctx context.Context, o Options, grant schemas.IssueReply) (*Operation, error) {
	if o.Keys == nil {
		return nil, errors.New("agent: no keys are given; what arrives could not be verified")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	user, err := nkeys.ParseDecoratedNKey([]byte(grant.Creds))
	if err != nil {
		return nil, fmt.Errorf("agent: read the credentials: %w", err)
	}
	return open(ctx, o, grant, user)
}

func (a *Agent) ask(ctx context.Context, r Request, public string) (schemas.IssueReply, error) {
	if r.TTL%time.Second != 0 {
		return schemas.IssueReply{}, fmt.Errorf("agent: ttl %s is not in whole seconds", r.TTL)
	}
	q := schemas.IssueRequest{
		AgentID: r.AgentID, OperationID: r.OperationID, Scope: r.Scope, Tools: r.Tools, ForbiddenTools: r.ForbiddenTools,
		TTLSeconds: int64(r.TTL / time.Second), MaxTokens: r.MaxTokens, Task: r.Task, Job: r.Job, TraceID: r.TraceID, PublicKey: public}
	for patience := askWithin; ; patience = min(2*patience, askAtMost) {
		once, cancel := context.WithTimeout(ctx, patience/2+rand.N(patience))
		grant, err := request[schemas.IssueReply](once, a.conn, "out.token.issue", q)
		cancel()
		switch {
		case err == nil:
			return grant, nil
		case ctx.Err() != nil:
			return grant, fmt.Errorf("agent: issue: %w", err)
		case errors.Is(err, nats.ErrReconnectBufExceeded): // there is no connection
			if why := a.conn.LastError(); refuses(why) {
				return grant, fmt.Errorf("agent: issue: the identity is not admitted: %w", why)
			}
			pause(ctx, 100*time.Millisecond)
		case !errors.Is(err, context.DeadlineExceeded):
			return grant, fmt.Errorf("agent: issue: %w", err)
		}
		// An issuer that is not there says nothing. If it did issue, the next replaces it.
	}
}

// refuses says of a connection's last error that the server did not let it in.
func refuses(err error) bool {
	for _, refused := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, refused) {
			return true
		}
	}
	return false
}

// request asks and decodes. What the control plane refuses comes back as a
// *schemas.Refusal.
func request[Rep any](ctx context.Context, nc *nats.Conn, subject string, req any) (rep Rep, err error) {
	m, err := exchange(ctx, nc, &nats.Msg{Subject: subject, Data: schemas.Marshal(req)})
	if err != nil {
		return rep, err
	}
	if err := json.Unmarshal(m.Data, &rep); err != nil {
		return rep, fmt.Errorf("read the answer on %s: %w", subject, err)
	}
	return rep, nil
}

func exchange(ctx context.Context, nc *nats.Conn, m *nats.Msg) (*nats.Msg, error) {
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("request on %s: %w", m.Subject, err)
	}
	return answer, refusalOf(answer)
}

// refusalOf is the refusal that an answer holds.
func refusalOf(m *nats.Msg) error {
	text := m.Header.Get(schemas.HeaderErrorCode)
	if text == "" {
		return nil
	}
	code, err := strconv.Atoi(text)
	if err != nil {
		code = schemas.CodeUnavailable
	}
	r := &schemas.Refusal{Code: code, Text: m.Header.Get(schemas.HeaderError)}
	if seq := m.Header.Get(schemas.HeaderSeq); seq != "" {
		if r.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil {
			return fmt.Errorf("read %s of a refusal: %w", schemas.HeaderSeq, err)
		}
	}
	return r
}
