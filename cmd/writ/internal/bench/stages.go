package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// A passage is one call's times on its way: at the client, at the service, and
// as its two events bear them.
type passage struct {
	sent, served, done time.Time
	taken, answered    time.Time // by intake
}

// passages collects them by the call's sequence.
type passages struct {
	mu    sync.Mutex
	bySeq map[uint64]*passage
}

func newPassages() *passages { return &passages{bySeq: map[uint64]*passage{}} }

func seqOf(h nats.Header) uint64 {
	seq, err := strconv.ParseUint(h.Get(schemas.HeaderSeq), 10, 64)
	if err != nil {
		return 0 // no delivery and no answer of release is without
	}
	return seq
}

func (p *passages) note(h nats.Header, put func(*passage)) {
	seq := seqOf(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bySeq[seq] == nil {
		p.bySeq[seq] = &passage{}
	}
	put(p.bySeq[seq])
}

// read puts in what the ledger says of an agent's calls and of the answers to
// them.
func (p *passages) read(ctx context.Context, operator *nats.Conn, agents ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, agent := range agents {
		for from := uint64(1); from != 0; {
			page, err := bus.Call[schemas.ReadReply](ctx, operator, schemas.CtlRead, schemas.ReadRequest{From: from, Agent: agent, Limit: 1000})
			if err != nil {
				return fmt.Errorf("bench: read the ledger: %w", err)
			}
			for _, rec := range page.Records {
				e, err := rec.Event()
				if err != nil {
					return fmt.Errorf("bench: %w", err)
				}
				if call := p.bySeq[e.Seq]; call != nil && e.Kind == schemas.MessageAccepted {
					call.taken = e.Time
				}
				if call := p.bySeq[e.Ref]; call != nil && e.Kind == schemas.ResponseAccepted {
					call.answered = e.Time
				}
			}
			from = page.Next
		}
	}
	return nil
}

// medians of the four stages, in microseconds.
func (p *passages) medians() (toIntake, toService, toAnswer, toClient float64) {
	var stages [4][]time.Duration
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.bySeq {
		if c.sent.IsZero() || c.served.IsZero() || c.done.IsZero() || c.taken.IsZero() || c.answered.IsZero() {
			continue
		}
		for i, d := range []time.Duration{c.taken.Sub(c.sent), c.served.Sub(c.taken), c.answered.Sub(c.served), c.done.Sub(c.answered)} {
			stages[i] = append(stages[i], d)
		}
	}
	median := func(i int) float64 { return micros(quantile(stages[i], .5)) }
	return median(0), median(1), median(2), median(3)
}
