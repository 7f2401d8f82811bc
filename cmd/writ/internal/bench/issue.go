package bench

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// Issue is what `writ bench issue` measured: capabilities issued end to end (two
// signatures and one durable event each) with all cores, and tokens verified on
// one, beside the machine's raw Ed25519 rates on one core. Both ratios are by
// processor time, so per core; that of an issue is of all that it takes: client,
// server, log and ledger too.
type Issue struct {
	IssuePerS   float64 `json:"issue_per_s"`
	IssueCPU    float64 `json:"issue_cpu_us"`
	VerifyPerS  float64 `json:"verify_per_s"`
	SeenNanos   float64 `json:"seen_verify_ns"` // of a token that was verified before
	SignPerS    float64 `json:"ed25519_sign_per_s"`
	CheckPerS   float64 `json:"ed25519_verify_per_s"`
	IssueRatio  float64 `json:"issue_ratio"`
	VerifyRatio float64 `json:"verify_ratio"`
	// Where the processor time of issuing went, by a profile of the same run;
	// and the ratio, were the issuer's own share all of it.
	Shares     map[string]float64 `json:"shares"`
	IssuerOnly float64            `json:"issuer_only_ratio"`
}

// RunIssue measures the issuer.
func RunIssue(ctx context.Context, progress func(string)) (*Issue, error) {
	const agents = 256
	r, err := newRig(ctx, agents, progress)
	if err != nil {
		return nil, err
	}
	defer r.close(context.WithoutCancel(ctx))
	keys := make([]string, agents) // an agent's own, as the helper makes them
	for i := range keys {
		user, err := nkeys.CreateUser()
		if err != nil {
			return nil, fmt.Errorf("bench: make a key: %w", err)
		}
		if keys[i], err = user.PublicKey(); err != nil {
			return nil, fmt.Errorf("bench: make a key: %w", err)
		}
	}
	progress("issuing, 64 at once")
	out := &Issue{}
	var next atomic.Int64
	var l load
	if out.Shares, err = shares(func() (err error) {
		l, err = flood(ctx, pushing, loadFor, func(ctx context.Context, _ int) (int, error) {
			i := int(next.Add(1)) % agents
			if _, err := r.issueFor(ctx, i, keys[i]); err != nil {
				return 0, err
			}
			return 1, nil
		})
		return err
	}); err != nil {
		return nil, err
	}
	out.IssuePerS, out.IssueCPU = l.perSecond, l.cpuMicros
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
	want := capability.Expect{Time: now, Delivered: true}
	if out.VerifyPerS, err = repeat(func() error {
		_, err := v.Verify(grant.Token, want)
		return err
	}); err != nil {
		return nil, err
	}
	seen := capability.NewCache(v, 1)
	perSecond, err := repeat(func() error {
		_, err := seen.Verify(grant.Token, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	out.SeenNanos = 1e9 / perSecond
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
	if out.IssueCPU > 0 {
		out.IssueRatio = 1e6 / out.IssueCPU / out.SignPerS
		if own := out.Shares["issuer"]; own > 0 {
			out.IssuerOnly = out.IssueRatio / own
		}
	}
	out.VerifyRatio = out.VerifyPerS / out.CheckPerS
	return out, err
}

// repeat calls fn for two seconds on one core and gives its rate by the
// processor time that it took: other work on the machine changes no ratio.
func repeat(fn func() error) (perSecond float64, err error) {
	began, used, n := time.Now(), ProcessorTime(), 0
	for time.Since(began) < 2*time.Second {
		for range 16 {
			if err := fn(); err != nil {
				return 0, err
			}
			n++
		}
	}
	took := ProcessorTime() - used
	if took <= 0 { // not known on this system
		took = time.Since(began)
	}
	return float64(n) / took.Seconds(), nil
}
