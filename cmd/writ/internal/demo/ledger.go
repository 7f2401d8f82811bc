package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const (
	pageSize  = 500
	lookEvery = 20 * time.Millisecond
)

// head is the ledger's last durable sequence.
func (s *story) head(ctx context.Context) (uint64, error) {
	h, err := bus.Call[schemas.Head](ctx, s.operator, schemas.CtlHead, schemas.HeadRequest{})
	return h.StreamSeq, err
}

// events reads the ledger from req.From to its present end.
func (s *story) events(ctx context.Context, req schemas.ReadRequest) ([]*schemas.Event, error) {
	req.Limit = pageSize
	var out []*schemas.Event
	for {
		page, err := bus.Call[schemas.ReadReply](ctx, s.operator, schemas.CtlRead, req)
		if err != nil {
			return nil, fmt.Errorf("read the ledger: %w", err)
		}
		for _, r := range page.Records {
			e, err := r.Event()
			if err != nil {
				return nil, fmt.Errorf("read the ledger: %w", err)
			}
			out = append(out, e)
		}
		if page.Next == 0 {
			return out, nil
		}
		req.From = page.Next
	}
}

// event reads one event.
func (s *story) event(ctx context.Context, seq uint64) (*schemas.Event, error) {
	events, err := s.events(ctx, schemas.ReadRequest{From: seq, To: seq})
	if err != nil {
		return nil, err
	}
	if len(events) != 1 || events[0].Seq != seq {
		return nil, fmt.Errorf("the ledger has no event %d", seq)
	}
	return events[0], nil
}

// await looks for an event of an agent behind a sequence until there is one.
func (s *story) await(ctx context.Context, agent string, behind uint64, what string, match func(*schemas.Event) bool) (*schemas.Event, error) {
	for {
		events, err := s.events(ctx, schemas.ReadRequest{From: behind + 1, Agent: agent})
		if err != nil {
			return nil, fmt.Errorf("waiting for %s: %w", what, err)
		}
		for _, e := range events {
			if match(e) {
				return e, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the ledger shows no %s: %w", what, ctx.Err())
		case <-time.After(lookEvery):
		}
	}
}

// soon asks until the answer is yes, or for as long as the story is patient.
// The ledger and the issuer each follow the log by themselves: what one of
// them shows already, the other may show a moment later.
func soon(ctx context.Context, yes func() (bool, error)) error {
	for end := time.Now().Add(patience); ; {
		if ok, err := yes(); ok || err != nil || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// stands is an agent's status as soon as it is in a state, or what it is when
// patience ends.
func (s *story) stands(ctx context.Context, agent string, state schemas.Lock) (st schemas.AgentStatus, err error) {
	err = soon(ctx, func() (bool, error) {
		st, err = s.status(ctx, agent)
		return st.State == state, err
	})
	return st, err
}

// status is what the control plane says of an agent.
func (s *story) status(ctx context.Context, agent string) (schemas.AgentStatus, error) {
	rep, err := bus.Call[schemas.StatusReply](ctx, s.operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: agent})
	if err != nil {
		return schemas.AgentStatus{}, err
	}
	if len(rep.Agents) != 1 {
		return schemas.AgentStatus{}, fmt.Errorf("status of %s: %d agents", agent, len(rep.Agents))
	}
	return rep.Agents[0], nil
}
