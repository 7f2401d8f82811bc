package issuer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A plane is a real server with an issuer on it. Release and the ledger are
// stood in for: one cancels what is open and marks what it
// reads, the other signs nothing.
type plane struct {
	t        testing.TB
	data     string
	srv      *embed.Server
	issuer   *issuer.Issuer
	secrets  *keys.Secrets
	ca       *ca.Authority // the server's, where TLS is on
	operator *nats.Conn
	clock    *clock
	served   []string // death warrants
	stop     func()
}

// clock is the time that the issuer knows: the real one, ahead by an offset.
type clock struct {
	ahead atomic.Int64
	asked func() // what happens when the issuer looks at it
}

func (c *clock) now() time.Time {
	if c.asked != nil {
		c.asked()
	}
	return time.Now().Add(time.Duration(c.ahead.Load()))
}
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func newPlane(t testing.TB, o embed.Options) *plane {
	t.Helper()
	p := &plane{t: t, data: t.TempDir(), clock: &clock{}}
	must(t, keys.Init(p.data, "acme.example"))
	p.run(o)
	return p
}

// run starts the server and the issuer on the keys that are made.
func (p *plane) run(o embed.Options) {
	t := p.t
	t.Helper()
	o.Data = p.data
	var err error
	p.srv, err = embed.Start(o)
	must(t, err)
	t.Cleanup(p.srv.Stop)
	must(t, p.srv.Provision(t.Context()))
	p.secrets, err = keys.OpenSecrets(p.data)
	must(t, err)
	p.operator = p.role(keys.RoleOperator)
	p.standIns()
	p.start()
}

func (p *plane) role(r keys.Role) *nats.Conn {
	p.t.Helper()
	creds, err := keys.Creds(p.data, r)
	must(p.t, err)
	nc, err := bus.Connect(bus.Options{Role: string(r), Server: p.srv, Creds: creds})
	must(p.t, err)
	p.t.Cleanup(nc.Close)
	return nc
}

// start runs an issuer until stop, or the test's end.
func (p *plane) start() { p.startWith(p.role(keys.RoleIssuer)) }

func (p *plane) startWith(control *nats.Conn) {
	p.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(p.t.Output(), nil))
	}
	authority, err := p.ca, error(nil) // the server's, as in one process
	if authority == nil {
		authority, err = ca.Open(p.data, "acme.example")
	}
	must(p.t, err)
	var callout *nats.Conn
	if authority != nil {
		callout = p.role(keys.RoleCallout)
	}
	i, err := issuer.New(issuer.Options{Control: control, Inlet: p.role(keys.RoleIssuer), System: p.role(keys.RoleSystem), Callout: callout, CA: authority,
		Consumer: "issuer", Source: "issuer/1", Secrets: p.secrets, Served: p.served, Retention: embed.Retention, Logger: log, Now: p.clock.now})
	must(p.t, err)
	p.issuer = i
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- i.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		p.t.Fatalf("issuer: %v", err)
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("issuer: %v", err)
		}
		control.Close() // with it end the subscriptions
		if callout != nil {
			callout.Close()
		}
	})
	p.t.Cleanup(p.stop)
}

// standIns plays release and the ledger.
func (p *plane) standIns() {
	release, err := bus.NewAppender(p.role(keys.RoleRelease))
	must(p.t, err)
	ledger := p.role(keys.RoleLedger)
	must(p.t, bus.Handle(ledger, slog.New(slog.DiscardHandler), schemas.CtlHead,
		func(_ context.Context, r schemas.HeadRequest) (schemas.Head, error) {
			return schemas.Head{Size: r.Min, Checkpoint: fmt.Sprintf("checkpoint of %d", r.Min)}, nil
		}))
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() {
		f := bus.Follower{Conn: ledger, Consumer: "ledger"}
		open := map[string][]*schemas.Event{}
		err := f.Run(ctx, func(entry bus.Entry) error {
			e, err := entry.Event()
			if err != nil {
				return err
			}
			switch e.Kind {
			case schemas.MessageAccepted:
				open[e.Agent] = append(open[e.Agent], e)
			case schemas.PolicyLockdown, schemas.PolicyLifted, schemas.AgentKilled, schemas.AgentSuspended, schemas.AgentPaused, schemas.AgentResumed, schemas.AgentEnrolled:
				for _, o := range open[e.Agent] {
					_, err := release.Append(ctx, &schemas.Event{Kind: schemas.MessageCancelled, Agent: e.Agent, ID: fmt.Sprint("cancel-", o.Seq), Source: "test", Time: time.Now(),
						Ref: o.Seq, Code: schemas.CodeCancelled, Reason: "killed", Trace: o.Trace})
					if err != nil {
						return err
					}
				}
				delete(open, e.Agent)
				_, err = release.Append(ctx, &schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, ID: fmt.Sprint("mark-", e.Seq), Source: "test", Time: time.Now(), Ref: e.Seq})
			}
			return err
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			p.t.Errorf("stand-in: %v", err)
		}
	})
	p.t.Cleanup(func() { cancel(); g.Wait() })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func call[Rep any](p *plane, subject string, req any) Rep {
	p.t.Helper()
	rep, err := bus.Call[Rep](p.t.Context(), p.operator, subject, req)
	must(p.t, err)
	return rep
}

// refusal is the refusal that a call must get.
func refusal[Rep any](p *plane, subject string, req any, code int) *schemas.Refusal {
	p.t.Helper()
	rep, err := bus.Call[Rep](p.t.Context(), p.operator, subject, req)
	var r *schemas.Refusal
	if !errors.As(err, &r) || r.Code != code {
		p.t.Fatalf("%s: got %+v, %v; want a refusal with %d", subject, rep, err, code)
	}
	return r
}

var analyst = schemas.Principal{ID: "analyst-7", Kind: schemas.KindAgent, Owner: "finance@acme.example", Ceiling: &schemas.Ceiling{
	Scope: []string{"ask:writer-2", "memory:get", "memory:list", "read:data.sales", "send:writer-2"},
	Tools: []string{"matplotlib", "pandas"}, ForbiddenTools: []string{"bash"}, TTLSeconds: 300, MaxTokens: 1000, Jobs: []string{"report"},
}}

func fleetOf(more ...schemas.Principal) schemas.ApplyRequest {
	return schemas.ApplyRequest{TrustDomain: "acme.example", Digest: "ab", Actor: "alice", Principals: append([]schemas.Principal{
		analyst,
		{ID: "orchestrator", Kind: schemas.KindAgent, MayIssueFor: []string{"analyst-7"}},
		{ID: "pandas", Kind: schemas.KindService, Serves: []string{"call:pandas"}},
		{ID: "writer-2", Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{Scope: []string{"send:analyst-7"}}},
	}, more...)}
}

func (p *plane) apply() {
	p.t.Helper()
	call[schemas.ApplyReply](p, schemas.CtlApply, fleetOf())
}

func reportRequest() schemas.IssueRequest {
	return schemas.IssueRequest{AgentID: "analyst-7", OperationID: "report", Scope: []string{"read:data.sales", "send:writer-2", "memory:get", "memory:list"},
		Tools: []string{"pandas"}, ForbiddenTools: []string{"http"}, Task: "Summarise the sales", Job: "report", Actor: "alice"}
}

func (p *plane) issue(req schemas.IssueRequest) schemas.IssueReply {
	p.t.Helper()
	return call[schemas.IssueReply](p, schemas.CtlIssue, req)
}

// client connects as a stock NATS client would.
func (p *plane) client(creds string) (*nats.Conn, error) {
	p.t.Helper()
	nc, err := nats.Connect(p.srv.URL(), nats.UserCredentialBytes([]byte(creds)), nats.MaxReconnects(0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err == nil {
		p.t.Cleanup(nc.Close)
	}
	return nc, err
}

func (p *plane) mustClient(creds string) *nats.Conn {
	p.t.Helper()
	nc, err := p.client(creds)
	must(p.t, err)
	return nc
}

func (p *plane) enroll(id string) *nats.Conn {
	p.t.Helper()
	return p.mustClient(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "alice"}).Creds)
}

func (p *plane) lock(l schemas.Lock, agent string) schemas.Receipt {
	p.t.Helper()
	return call[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: agent, Lock: l, Reason: "test", Actor: "alice"})
}

// mayPublish and maySubscribe ask the server itself.
func mayPublish(t testing.TB, nc *nats.Conn, subject string) bool {
	t.Helper()
	before := nc.LastError()
	must(t, nc.Publish(subject, []byte("x")))
	must(t, nc.Flush())
	return nc.LastError() == before
}

func maySubscribe(t testing.TB, nc *nats.Conn, subject string) bool {
	t.Helper()
	before := nc.LastError()
	sub, err := nc.SubscribeSync(subject)
	must(t, err)
	must(t, nc.Flush())
	ok := nc.LastError() == before
	_ = sub.Unsubscribe()
	return ok
}

// closed waits until the server has closed a connection.
func closed(nc *nats.Conn) {
	ch := nc.StatusChanged(nats.CLOSED)
	if !nc.IsClosed() {
		<-ch
	}
}
