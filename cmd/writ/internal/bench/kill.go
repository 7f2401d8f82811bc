package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Kill is what `writ bench kill` measured. Effect runs from the command to the
// last action of the victim that was accepted, by the time in its event; closed
// from the command to the moment its connection was closed; both are 0 or more.
// Reconnects counts victims that came back.
type Kill struct {
	Agents     int     `json:"agents"`
	Rounds     int     `json:"rounds"`
	EffectP50  float64 `json:"effect_p50_ms"`
	EffectP99  float64 `json:"effect_p99_ms"`
	ClosedP50  float64 `json:"closed_p50_ms"`
	ClosedP99  float64 `json:"closed_p99_ms"`
	Reconnects int     `json:"reconnects"`
	ReceiptP50 float64 `json:"receipt_p50_ms"`
	ReceiptP99 float64 `json:"receipt_p99_ms"`
	// With descendants, effect runs to the last accepted action of the victim
	// and of all whose capabilities derive from its own. Each receipt is held
	// against the ledger.
	Descendants  int `json:"descendants,omitempty"`
	Actions      int `json:"actions,omitempty"`   // accepted, of victims and descendants
	Cancelled    int `json:"cancelled,omitempty"` // of those
	Unreconciled int `json:"unreconciled"`        // receipts that say other than the ledger
}

const (
	victimEvery = 10 * time.Millisecond // 100 actions a second
	otherEvery  = time.Second
	settleFor   = 150 * time.Millisecond // the victim works before, and is looked for after
)

// RunKill kills one agent a round, while it makes 100 calls a second and the
// others one each; with descendants, each of them makes ten.
func RunKill(ctx context.Context, agents, rounds, descendants int, progress func(string)) (*Kill, error) {
	r, err := newRig(ctx, agents+rounds, progress)
	if err != nil {
		return nil, err
	}
	defer r.close(context.WithoutCancel(ctx))
	progress(fmt.Sprintf("connecting %d agents", agents))
	conns, err := r.connectAgents(ctx, agents)
	if err != nil {
		return nil, err
	}
	defer closeAll(conns)
	stop := atWork(ctx, conns, func(int) time.Duration { return otherEvery })
	defer stop()
	k := &Kill{Agents: agents, Rounds: rounds, Descendants: descendants}
	if descendants > 0 {
		return k, r.runFamilies(ctx, k, progress)
	}
	var effect, closed, receipt []time.Duration
	for i := range rounds {
		progress(fmt.Sprintf("round %d of %d", i+1, rounds))
		e, c, rc, back, err := r.killOne(ctx, agents+i)
		if err != nil {
			return nil, err
		}
		effect, closed, receipt = append(effect, e), append(closed, c), append(receipt, rc)
		if back {
			k.Reconnects++
		}
	}
	k.measured(effect, closed, receipt)
	return k, nil
}

func (k *Kill) measured(effect, closed, receipt []time.Duration) {
	k.EffectP50, k.EffectP99 = millis(quantile(effect, .5)), millis(quantile(effect, .99))
	k.ClosedP50, k.ClosedP99 = millis(quantile(closed, .5)), millis(quantile(closed, .99))
	k.ReceiptP50, k.ReceiptP99 = millis(quantile(receipt, .5)), millis(quantile(receipt, .99))
}

// atWork lets every agent call, each as often as is said, until it is stopped;
// they begin one behind the other.
func atWork(ctx context.Context, conns []*nats.Conn, often func(i int) time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, nc := range conns {
		every := often(i)
		wg.Go(func() {
			t := time.NewTimer(every * time.Duration(i) / time.Duration(len(conns)))
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
				_ = nc.PublishRequest("out.bench.call.echo", nats.NewInbox(), make([]byte, bodySize))
				t.Reset(every)
			}
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

// killOne kills one agent at work.
func (r *rig) killOne(ctx context.Context, i int) (effect, closed, receipt time.Duration, back bool, err error) {
	grant, err := r.issue(ctx, i)
	if err != nil {
		return 0, 0, 0, false, err
	}
	closedAt := make(chan time.Time, 1)
	nc, err := r.connect(grant.Creds, func() { closedAt <- time.Now() })
	if err != nil {
		return 0, 0, 0, false, err
	}
	defer nc.Close()
	working, rest := context.WithCancel(ctx)
	defer rest()
	go func() {
		t := time.NewTicker(victimEvery)
		defer t.Stop()
		for {
			select {
			case <-working.Done():
				return
			case <-t.C:
			}
			_ = nc.PublishRequest("out.bench.call.echo", nats.NewInbox(), make([]byte, bodySize))
		}
	}()
	time.Sleep(settleFor)
	began := time.Now()
	rc, err := bus.Call[schemas.Receipt](ctx, r.operator, schemas.CtlLock, schemas.LockRequest{
		AgentID: agentName(i), Lock: schemas.Killed, Reason: "measured", Actor: "bench"})
	if err != nil {
		return 0, 0, 0, false, fmt.Errorf("bench: kill: %w", err)
	}
	receipt = time.Since(began)
	select {
	case at := <-closedAt:
		closed = max(0, at.Sub(began))
	case <-time.After(10 * time.Second):
		return 0, 0, 0, false, fmt.Errorf("bench: the connection of %s was not closed", agentName(i))
	}
	time.Sleep(settleFor)
	if effect, err = r.lastAccepted(ctx, agentName(i), began); err != nil {
		return 0, 0, 0, false, err
	}
	again, err := r.connect(grant.Creds, nil)
	if err == nil {
		again.Close()
		back = true
	}
	if rc.State != schemas.Killed {
		return 0, 0, 0, false, fmt.Errorf("bench: %s is %s after its kill", agentName(i), rc.State)
	}
	return effect, closed, receipt, back, nil
}

// lastAccepted finds, in the ledger, how long after began the agent's last
// action was accepted.
func (r *rig) lastAccepted(ctx context.Context, agent string, began time.Time) (time.Duration, error) {
	var last time.Time
	for from := uint64(1); from != 0; {
		page, err := bus.Call[schemas.ReadReply](ctx, r.operator, schemas.CtlRead, schemas.ReadRequest{From: from, Agent: agent, Limit: 1000})
		if err != nil {
			return 0, fmt.Errorf("bench: read the ledger: %w", err)
		}
		for _, rec := range page.Records {
			e, err := rec.Event()
			if err != nil {
				return 0, fmt.Errorf("bench: %w", err)
			}
			if e.Kind == schemas.MessageAccepted {
				last = e.Time
			}
		}
		from = page.Next
	}
	return max(0, last.Sub(began)), nil
}
