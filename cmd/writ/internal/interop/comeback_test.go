package interop

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/broker/agent"
	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// Somebody starts a control plane with other keys where the agents' own stood, by
// mistake or not. It refuses them, again and again; stock clients then give up
// for good. When their own is back they must work again without a restart, and
// until then nobody is left to wait for an identity that isn't let in.
func TestARefusedIdentityIsBackWhenItsControlPlaneIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	own, other, file := filepath.Join(t.TempDir(), "own"), filepath.Join(t.TempDir(), "other"), filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, []byte(fleet), 0o600); err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:0"
	begin := func(data string) (p *plane.Plane, stop func()) {
		t.Helper()
		p, err := plane.Start(ctx, plane.Options{Data: data, Fleet: file, Actor: "test", Listen: address})
		if err != nil {
			t.Fatal(err)
		}
		at, err := url.Parse(p.URL())
		if err != nil {
			t.Fatal(err)
		}
		address = at.Host
		return p, func() {
			t.Helper()
			if err := p.Stop(context.WithoutCancel(ctx)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p, stop := begin(own)
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	enrolled, err := bus.Call[schemas.EnrollReply](ctx, operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: "caller", Actor: "test"})
	operator.Close()
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	a, err := agent.Connect(ctx, agent.Options{URL: p.URL(), Creds: []byte(enrolled.Creds), Keys: jwks.New(jwks.Options{TrustDomain: "interop.example", Source: jwks.URL(p.HTTP()+"/.well-known/jwks.json", nil)}),
		NATS: []nats.Option{nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) {
				refused.Add(1)
			}
		})}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	wants := agent.Request{OperationID: "work", Scope: []string{"send:peer"}}

	stop()
	_, stop = begin(other)
	for refused.Load() < 3 {
		if ctx.Err() != nil {
			t.Fatalf("it was refused %d times", refused.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := a.IssueToken(ctx, wants); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("an identity that is not let in is told %v", err)
	}
	stop()

	_, stop = begin(own)
	defer stop()
	for {
		op, err := a.IssueToken(ctx, wants)
		if err == nil {
			if err := op.Close(ctx); err != nil {
				t.Error(err)
			}
			return
		}
		if ctx.Err() != nil || !errors.Is(err, nats.ErrAuthorization) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
