package serve

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/broker/agent"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

var (
	crowdSize = flag.Int("agents", 16, "how many agents refresh their capabilities")
	lifetime  = flag.Duration("ttl", 6*time.Second, "of their capabilities, in whole seconds")
	pace      = flag.Duration("every", 250*time.Millisecond, "how often each agent sends a message")
)

// A crowd is a rig at which agents work with the helper, each sending numbered
// messages to the next.
type crowd struct {
	*rig
	operator *nats.Conn
	members  []*member
	sends    context.Context
	rest     func() // ends their sending, and waits
	times    refreshTimes
	began    time.Time

	mu      sync.Mutex
	acked   map[string]uint64          // message → the sequence it was acknowledged under
	arrived map[string]map[uint64]bool // message → the sequences it was delivered under
	faults  []string
}

// A member is one agent: its identity, and the operation that it has.
type member struct {
	crowd    *crowd
	id, next string
	identity *agent.Agent

	refreshed atomic.Int64 // capabilities that it got by a refresh
	lapses    atomic.Int64 // operations that ended for want of one

	mu   sync.Mutex
	op   *agent.Operation
	why  error  // it has none
	jwt  string // the newest user that it connected with, and its key
	sign nats.SignatureHandler
}

// refreshTimes are those of all refreshes: until the issuer's answer, and until
// the next connection was there.
type refreshTimes struct {
	mu             sync.Mutex
	answered, took []time.Duration
}

// A teller hears what the helper of one member says of its refreshes.
type teller struct {
	slog.Handler
	m *member
}

func (t teller) Enabled(context.Context, slog.Level) bool { return true }
func (t teller) WithAttrs([]slog.Attr) slog.Handler       { return t }
func (t teller) WithGroup(string) slog.Handler            { return t }

func (t teller) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError { // it refused what somebody sent
		var said strings.Builder
		r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&said, " %s", a); return true })
		t.m.crowd.fault("%s: %s%s", t.m.id, r.Message, said.String())
	}
	if r.Message != "capability refreshed" {
		return nil
	}
	times := &t.m.crowd.times
	times.mu.Lock()
	defer times.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "answered":
			times.answered = append(times.answered, a.Value.Duration())
		case "took":
			times.took = append(times.took, a.Value.Duration())
		}
		return true
	})
	t.m.refreshed.Add(1)
	return nil
}

func memberName(i int) string { return fmt.Sprintf("member-%04d", i%*crowdSize) }

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	var text strings.Builder
	text.WriteString("trust_domain: apart.example\nagents:\n")
	for i := range *crowdSize {
		fmt.Fprintf(&text, "  - id: %s\n    rate: {per_second: 10000, burst: 10000}\n    ceiling: {scope: [send:%s], ttl: %s}\n", memberName(i), memberName(i+1), *lifetime)
	}
	c := &crowd{rig: newRig(t, text.String(), 10*time.Minute+100**lifetime),
		acked: map[string]uint64{}, arrived: map[string]map[uint64]bool{}}
	c.serveAll()
	c.operator = c.as(keys.RoleOperator)
	c.members = make([]*member, *crowdSize)
	var g errgroup.Group
	g.SetLimit(16)
	for i := range c.members {
		g.Go(func() error {
			m := &member{crowd: c, id: memberName(i), next: memberName(i + 1)}
			c.members[i] = m
			return m.connect()
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	c.began = time.Now()
	c.work()
	return c
}

func (m *member) connect() error {
	c := m.crowd
	e, err := bus.Call[schemas.EnrollReply](c.ctx, c.operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: m.id, Actor: "test"})
	if err != nil {
		return fmt.Errorf("enroll %s: %w", m.id, err)
	}
	m.identity, err = agent.Connect(c.ctx, agent.Options{URL: c.url, Creds: []byte(e.Creds), Logger: slog.New(teller{m: m}),
		Keys: jwks.New(jwks.Options{TrustDomain: "apart.example", Source: func(ctx context.Context) ([]byte, error) {
			return bus.Call[json.RawMessage](ctx, c.operator, schemas.CtlJWKS, nil)
		}}),
		NATS: []nats.Option{c.secure(), m.keep, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}})
	if err == nil {
		c.Cleanup(m.identity.Close)
	}
	return err
}

// keep notes what the agent connects with: it has its keys, and can do other
// things with them than the helper does.
func (m *member) keep(o *nats.Options) error {
	if o.UserJWT == nil {
		return nil
	}
	jwt, err := o.UserJWT()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jwt, m.sign = jwt, o.SignatureCB
	return err
}

// work lets everybody send until told to rest, and hear to the end.
func (c *crowd) work() {
	ctx, stop := context.WithCancel(c.ctx)
	hearing, hush := context.WithCancel(c.ctx)
	var working, listening sync.WaitGroup
	for _, m := range c.members {
		working.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				m.send(ctx, fmt.Sprintf("%s %d", m.id, n))
				wait(ctx, *pace)
			}
		})
		listening.Go(func() {
			for <-ctx.Done(); hearing.Err() == nil; wait(hearing, 250*time.Millisecond) {
				if op := m.operation(hearing); op != nil && op.Err() != nil {
					m.ended(op)
				}
			}
		})
	}
	c.Cleanup(func() {
		hush()
		listening.Wait()
	})
	c.sends, c.rest = ctx, sync.OnceFunc(func() {
		stop()
		working.Wait()
	})
	c.Cleanup(c.rest)
}

// send sends one message until it is acknowledged, over as many operations as
// it takes.
func (m *member) send(ctx context.Context, text string) {
	for ctx.Err() == nil {
		op := m.operation(ctx)
		if op == nil {
			continue
		}
		seq, err := op.Send(ctx, m.next, []byte(text))
		switch {
		case err == nil:
			m.crowd.mu.Lock()
			m.crowd.acked[text] = seq
			m.crowd.mu.Unlock()
			return
		case errors.Is(err, agent.ErrEnded):
			m.ended(op)
		case ctx.Err() == nil:
			m.crowd.fault("%s: send: %v", text, err)
			wait(ctx, time.Second)
		}
	}
}

// operation is the one that the member has, or a new one; nil where none is to
// be had now.
func (m *member) operation(ctx context.Context) *agent.Operation {
	if op := m.present(); op != nil {
		return op
	}
	op, err := m.identity.IssueToken(ctx, agent.Request{OperationID: "op", Scope: []string{"send:" + m.next}, TTL: *lifetime})
	if err == nil {
		if err = op.OnSend(m.take); err != nil {
			_ = op.Close(ctx) // it would be refreshed beside the next
		}
	}
	m.mu.Lock()
	if m.why = err; err == nil {
		m.op = op
	}
	m.mu.Unlock()
	if err != nil {
		wait(ctx, 250*time.Millisecond)
		return nil
	}
	return op
}

// String says what a member is at.
func (m *member) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.op != nil {
		return fmt.Sprintf("%s has an operation until %s: %v", m.id, m.op.Token().ExpiresAt.Format(time.TimeOnly), m.op.Err())
	}
	return fmt.Sprintf("%s has no operation: %v", m.id, m.why)
}

func (m *member) present() *agent.Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.op
}

// ended notes why an operation ended.
func (m *member) ended(op *agent.Operation) {
	m.lapses.Add(1)
	if left := time.Until(op.Token().ExpiresAt); left > 0 {
		m.crowd.fault("%s: the operation ended %s before its capability: %v", m.id, left, op.Err())
	}
	var refused *schemas.Refusal
	if errors.As(op.Err(), &refused) && refused.Code != schemas.CodeUnavailable {
		m.crowd.fault("%s: nothing speaks against a refresh, and it was refused: %v", m.id, refused)
	}
	m.mu.Lock()
	m.op = nil
	m.mu.Unlock()
}

func (m *member) take(_ context.Context, d agent.Delivery) error {
	c := m.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	text := string(d.Data)
	if c.arrived[text] == nil {
		c.arrived[text] = map[uint64]bool{}
	}
	c.arrived[text][d.Seq] = true
	return nil
}

func (c *crowd) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// everybody waits until something holds of every member, as long as it comes to
// hold of more of them.
func (c *crowd) everybody(what string, holds func(*member) bool) {
	c.Helper()
	patience := 2*time.Minute + 3**lifetime
	most := -1
	for until := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		n := 0
		var others strings.Builder
		for _, m := range c.members {
			if holds(m) {
				n++
			} else if others.Len() < 1000 {
				fmt.Fprintf(&others, "; %s", m)
			}
		}
		if n == len(c.members) {
			return
		}
		if n > most {
			most, until = n, time.Now().Add(patience)
		}
		if time.Now().After(until) || c.ctx.Err() != nil {
			c.Fatalf("%s: %d of %d agents%s", what, n, len(c.members), &others)
		}
	}
}

// refreshes waits until everybody has a capability twice renewed from now on:
// the second was asked for behind whatever was done now.
func (c *crowd) refreshes(behind string) {
	c.Helper()
	before := map[*member]int64{}
	for _, m := range c.members {
		before[m] = m.refreshed.Load()
	}
	c.everybody("capabilities renewed twice behind "+behind, func(m *member) bool { return m.refreshed.Load() >= before[m]+2 })
	c.Logf("%s: everybody has refreshed twice; %s", behind, c.tally())
}

func (c *crowd) tally() string {
	refreshed, lapsed := int64(0), int64(0)
	for _, m := range c.members {
		refreshed += m.refreshed.Load()
		lapsed += m.lapses.Load()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("after %s %d refreshes, %d operations ended, %d messages acknowledged", time.Since(c.began).Round(time.Second), refreshed, lapsed, len(c.acked))
}

// An agent, or whoever took it over, wants to go on with what it was given
// longer than it was given for. Operators rotate the key that signs, the issuer
// is lost and comes back at once, and is lost for longer than capabilities live.
// What must hold: no acknowledged message is lost; nobody does anything once its
// capability has ended; until then everybody goes on, also without an issuer.
//
// The short form runs with the other tests; the campaign is
//
//	go test ./cmd/writ/internal/serve -run TestRefreshing -agents 1000 -ttl 60s -every 2s -timeout 1h -v
func TestRefreshingThroughRotationRestartAndOutage(t *testing.T) {
	c := newCrowd(t)
	c.refreshes("the start")
	if _, err := bus.Call[schemas.RotateReply](c.ctx, c.operator, schemas.CtlRotate, schemas.RotateRequest{Reason: "quarter", Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	c.refreshes("a rotation")
	c.services["issuer"].kill()
	down := time.Now()
	c.serve("issuer")
	t.Logf("the issuer was away for %s", time.Since(down))
	c.refreshes("a restart")
	c.outage()
	c.refreshes("an outage")
	c.rest()
	c.arrive()
	c.audit()
	c.report()
}
