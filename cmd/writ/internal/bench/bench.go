// Package bench measures a whole control plane on this machine, beside the raw
// limits of what it stands on, in the same run: plain NATS requests, JetStream
// publishing, fdatasync. Ratios are what to compare; absolute figures are this
// machine's.
package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// bodySize is the size of every measured message, in bytes.
const bodySize = 256

// rig is a temporary control plane with agents that may do what is measured.
type rig struct {
	plane    *plane.Plane
	dir      string
	operator *nats.Conn
	agents   []string
	served   atomic.Pointer[passages] // told of each call that the service gets; nil: nobody asks
}

const (
	echoID  = "bench-echo"
	ttl     = 3600
	pushing = 64 // requests to the issuer in progress at once
)

func agentName(i int) string { return fmt.Sprintf("bench-%05d", i) }

// newRig starts a control plane with n agents declared.
func newRig(ctx context.Context, n int, progress func(string)) (_ *rig, err error) {
	dir, err := os.MkdirTemp("", "writ-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	r := &rig{dir: dir}
	defer func() {
		if err != nil {
			r.close(ctx)
		}
	}()
	progress("starting a temporary control plane")
	if r.plane, err = plane.Start(ctx, plane.Options{Data: filepath.Join(dir, "data"), TrustDomain: "bench.example"}); err != nil {
		return nil, err
	}
	if r.operator, err = r.plane.Operator(); err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("declaring %d agents", n))
	principals := []schemas.Principal{{ID: echoID, Kind: schemas.KindService, Serves: []string{"call:echo"},
		Tools: map[string]schemas.Tool{"echo": {Class: "read", Description: "gives back what it got"}}}}
	for i := range n {
		r.agents = append(r.agents, agentName(i))
		principals = append(principals, schemas.Principal{ID: agentName(i), Kind: schemas.KindAgent,
			Rate: &schemas.Rate{PerSecond: 1e6, Burst: 1e6},
			Ceiling: &schemas.Ceiling{Scope: []string{"send:" + agentName((i+1)%n), "ask:" + agentName((i+1)%n)},
				Tools: []string{"echo"}, ForbiddenTools: []string{"bash"}, TTLSeconds: ttl}})
	}
	// Declarations are sent in parts: a request has at most 1 MiB.
	for part := range slices.Chunk(principals, 1000) {
		if _, err = bus.Call[schemas.ApplyReply](ctx, r.operator, schemas.CtlApply, schemas.ApplyRequest{Principals: part, Add: true, Actor: "bench"}); err != nil {
			return nil, fmt.Errorf("bench: declare: %w", err)
		}
	}
	return r, r.echo(ctx)
}

func (r *rig) close(ctx context.Context) {
	if r.operator != nil {
		r.operator.Close()
	}
	if r.plane != nil {
		if err := r.plane.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop:", err)
		}
	}
	if err := os.RemoveAll(r.dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// echo connects the service that answers what it was sent.
func (r *rig) echo(ctx context.Context) error {
	e, err := bus.Call[schemas.EnrollReply](ctx, r.operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: echoID, Actor: "bench"})
	if err != nil {
		return fmt.Errorf("bench: enroll: %w", err)
	}
	nc, err := r.connect(e.Creds, nil)
	if err != nil {
		return err
	}
	if _, err := nc.Subscribe("in.call.echo", func(m *nats.Msg) {
		if times := r.served.Load(); times != nil {
			now := time.Now()
			times.note(m.Header, func(p *passage) { p.served = now })
		}
		_ = m.Respond(m.Data)
	}); err != nil {
		return fmt.Errorf("bench: echo: %w", err)
	}
	return nc.Flush()
}

func (r *rig) connect(creds string, closed func()) (*nats.Conn, error) {
	nc, err := nats.Connect(r.plane.URL(), nats.UserCredentialBytes([]byte(creds)), nats.MaxReconnects(0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
		nats.ClosedHandler(func(*nats.Conn) {
			if closed != nil {
				closed()
			}
		}))
	if err != nil {
		return nil, fmt.Errorf("bench: connect: %w", err)
	}
	return nc, nil
}

// issue asks for a capability to do all that is measured.
func (r *rig) issue(ctx context.Context, i int) (schemas.IssueReply, error) {
	return r.issueFor(ctx, i, "")
}

// issueFor asks for a capability for a key; the issuer makes one where it is "".
func (r *rig) issueFor(ctx context.Context, i int, key string) (schemas.IssueReply, error) {
	next := agentName((i + 1) % len(r.agents))
	g, err := bus.Call[schemas.IssueReply](ctx, r.operator, schemas.CtlIssue, schemas.IssueRequest{
		AgentID: agentName(i), OperationID: "bench", Scope: []string{"send:" + next, "ask:" + next}, Tools: []string{"echo"},
		ForbiddenTools: []string{"bash"}, TTLSeconds: ttl, Task: "measure", PublicKey: key, Actor: "bench"})
	if err != nil {
		return g, fmt.Errorf("bench: issue: %w", err)
	}
	return g, nil
}

// connectAgents issues for the first n agents and connects them.
func (r *rig) connectAgents(ctx context.Context, n int) ([]*nats.Conn, error) {
	conns := make([]*nats.Conn, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pushing)
	for i := range n {
		g.Go(func() error {
			grant, err := r.issue(ctx, i)
			if err != nil {
				return err
			}
			conns[i], err = r.connect(grant.Creds, nil)
			return err
		})
	}
	return conns, g.Wait()
}

// quantile of durations; 0 without any.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// load is what flood measured.
type load struct {
	perSecond float64
	cpuMicros float64 // of processor time for one success, all of this process included
}

// flood calls do from so many goroutines for a while and counts its successes.
func flood(ctx context.Context, workers int, for_ time.Duration, do func(ctx context.Context, worker int) (int, error)) (l load, err error) {
	ctx, cancel := context.WithTimeout(ctx, for_)
	defer cancel()
	var mu sync.Mutex
	var first error
	total := 0
	var wg sync.WaitGroup
	began, used := time.Now(), ProcessorTime()
	for w := range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				n, err := do(ctx, w)
				mu.Lock()
				total += n
				if err != nil && ctx.Err() == nil && first == nil {
					first = err
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if total > 0 {
		l = load{float64(total) / time.Since(began).Seconds(), micros(ProcessorTime()-used) / float64(total)}
	}
	return l, first
}
