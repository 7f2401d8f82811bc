package bench

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
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
// server, log and ledger too, until the ledger holds the last of them.
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
	out := &Issue{}
	token, keys, err := out.issuing(ctx, progress)
	if err != nil {
		return nil, err
	}
	// The control plane has ended: what it had left to do counts as nobody's
	// verifying.
	progress("verifying, and the raw limits")
	if err := out.verifying(token, keys); err != nil {
		return nil, err
	}
	if out.IssueCPU > 0 {
		out.IssueRatio = 1e6 / out.IssueCPU / out.SignPerS
		if own := out.Shares["issuer"]; own > 0 {
			out.IssuerOnly = out.IssueRatio / own
		}
	}
	out.VerifyRatio = out.VerifyPerS / out.CheckPerS
	return out, nil
}

// issuing measures a control plane, and gives a token of it and the keys to
// verify that with.
func (out *Issue) issuing(ctx context.Context, progress func(string)) (token string, keys json.RawMessage, err error) {
	const agents = 256
	r, err := newRig(ctx, agents, progress)
	if err != nil {
		return "", nil, err
	}
	defer r.close(context.WithoutCancel(ctx))
	users := make([]string, agents) // an agent's own key, as the helper makes it
	for i := range users {
		user, err := nkeys.CreateUser()
		if err != nil {
			return "", nil, fmt.Errorf("bench: make a key: %w", err)
		}
		if users[i], err = user.PublicKey(); err != nil {
			return "", nil, fmt.Errorf("bench: make a key: %w", err)
		}
	}
	progress(fmt.Sprintf("issuing, %d at once", pushing))
	var next, issued atomic.Int64
	if out.Shares, err = shares(func() error {
		used := ProcessorTime()
		l, err := flood(ctx, pushing, loadFor, func(ctx context.Context, _ int) (int, error) {
			i := int(next.Add(1)) % agents
			if _, err := r.issueFor(ctx, i, users[i]); err != nil {
				return 0, err
			}
			issued.Add(1)
			return 1, nil
		})
		if err != nil {
			return err
		}
		g, err := r.issueFor(ctx, 0, users[0])
		if err != nil {
			return err
		}
		if _, err := bus.Call[schemas.Head](ctx, r.operator, schemas.CtlHead, schemas.HeadRequest{Min: g.Seq}); err != nil {
			return fmt.Errorf("bench: await the ledger: %w", err)
		}
		token = g.Token
		out.IssuePerS, out.IssueCPU = l.perSecond, micros(ProcessorTime()-used)/float64(issued.Add(1))
		return nil
	}); err != nil {
		return "", nil, err
	}
	if keys, err = bus.Call[json.RawMessage](ctx, r.operator, schemas.CtlJWKS, nil); err != nil {
		return "", nil, fmt.Errorf("bench: public keys: %w", err)
	}
	return token, keys, nil
}

// verifying measures the verifier beside raw Ed25519.
func (out *Issue) verifying(token string, keys json.RawMessage) error {
	v, err := capability.NewVerifier("bench.example", keys)
	if err != nil {
		return err
	}
	seen, want := capability.NewCache(v, 1), capability.Expect{Time: time.Now(), Delivered: true}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	message := []byte(token)
	signature := ed25519.Sign(private, message)
	rates, err := inTurn(func() error {
		_, err := v.Verify(token, want)
		return err
	}, func() error {
		if !ed25519.Verify(public, message, signature) {
			return errors.New("bench: a good signature was refused")
		}
		return nil
	}, func() error {
		ed25519.Sign(private, message)
		return nil
	}, func() error {
		_, err := seen.Verify(token, want)
		return err
	})
	if err != nil {
		return err
	}
	out.VerifyPerS, out.CheckPerS, out.SignPerS, out.SeenNanos = rates[0], rates[1], rates[2], 1e9/rates[3]
	return nil
}

// inTurn calls each of some functions on one core for 50 ms, 32 times round, and
// gives their rates by the processor time that they took: what else the machine
// does, and how fast its clock goes meanwhile, befalls all of them alike.
func inTurn(fns ...func() error) (perSecond []float64, err error) {
	took, calls := make([]time.Duration, len(fns)), make([]float64, len(fns))
	for range 32 {
		for i, fn := range fns {
			began, used := time.Now(), ProcessorTime()
			for time.Since(began) < 50*time.Millisecond {
				for range 16 {
					if err := fn(); err != nil {
						return nil, err
					}
				}
				calls[i] += 16
			}
			if cpu := ProcessorTime() - used; cpu > 0 {
				took[i] += cpu
			} else { // not known on this system
				took[i] += time.Since(began)
			}
		}
	}
	for i := range fns {
		perSecond = append(perSecond, calls[i]/took[i].Seconds())
	}
	return perSecond, nil
}
