package bench

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// Issue is what `writ bench issue` measured: capabilities issued end to end (two
// signatures and one durable event each), and tokens verified, beside the
// machine's raw Ed25519 rates on one core.
type Issue struct {
	IssuePerS  float64 `json:"issue_per_s"`
	VerifyPerS float64 `json:"verify_per_s"`
	SignPerS   float64 `json:"ed25519_sign_per_s"`
	CheckPerS  float64 `json:"ed25519_verify_per_s"`
}

// RunIssue measures the issuer.
func RunIssue(ctx context.Context, progress func(string)) (*Issue, error) {
	const agents = 256
	r, err := newRig(ctx, agents, progress)
	if err != nil {
		return nil, err
	}
	defer r.close(context.WithoutCancel(ctx))
	progress("issuing, 64 at once")
	out := &Issue{}
	var next atomic.Int64
	l, err := flood(ctx, pushing, loadFor, func(ctx context.Context, _ int) (int, error) {
		_, err := r.issue(ctx, int(next.Add(1))%agents)
		if err != nil {
			return 0, err
		}
		return 1, nil
	})
	if err != nil {
		return nil, err
	}
	out.IssuePerS = l.perSecond
	progress("verifying, and the raw limits")
	grant, err := r.issue(ctx, 0)
	if err != nil {
		return nil, err
	}
	set, err := bus.Call[json.RawMessage](ctx, r.operator, schemas.CtlJWKS, nil)
	if err != nil {
		return nil, fmt.Errorf("bench: public keys: %w", err)
	}
	v, err := capability.NewVerifier("bench.example", set)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if out.VerifyPerS, err = repeat(func() error {
		_, err := v.Verify(grant.Token, capability.Expect{Time: now, Delivered: true})
		return err
	}); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	message := []byte(grant.Token)
	signature := ed25519.Sign(private, message)
	if out.SignPerS, err = repeat(func() error {
		ed25519.Sign(private, message)
		return nil
	}); err != nil {
		return nil, err
	}
	out.CheckPerS, err = repeat(func() error {
		if !ed25519.Verify(public, message, signature) {
			return fmt.Errorf("bench: a good signature was refused")
		}
		return nil
	})
	return out, err
}

// repeat calls fn for two seconds on one core and gives its rate.
func repeat(fn func() error) (perSecond float64, err error) {
	began, n := time.Now(), 0
	for time.Since(began) < 2*time.Second {
		for range 16 {
			if err := fn(); err != nil {
				return 0, err
			}
			n++
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
