package issuer

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// What one account may ask, and how much is in progress at once.
const (
	tokensPerSecond = 50
	tokensBurst     = 100
	tokenWorkers    = 64
	tokenQueue      = 4096
	maxTokenRequest = 64 << 10 // bytes
)

// serveTokens takes agents' requests for capabilities: writ.out.<agent>~<incarnation>.token.….
// Each account's rate is bounded before anything is read; what exceeds it is
// refused.
func (i *Issuer) serveTokens(ctx context.Context, g *errgroup.Group) (*nats.Subscription, error) {
	queue := make(chan *nats.Msg, tokenQueue)
	for range tokenWorkers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case m := <-queue:
					i.answerToken(ctx, m)
				}
			}
		})
	}
	sub, err := i.Inlet.Subscribe(schemas.OutPrefix+".*.token.>", func(m *nats.Msg) {
		if !bus.FromAgent(m) {
			return
		}
		if bus.FromStream(m) {
			i.reply(m, nil, schemas.Refuse(schemas.CodeMalformed, "header %s is not allowed here", nats.JSStream))
			return
		}
		if !i.limits.of(schemas.OutAgent(m.Subject)).AllowN(i.Now(), 1) {
			i.reply(m, nil, tooMany())
			return
		}
		select {
		case queue <- m:
		default:
			i.reply(m, nil, schemas.Refuse(schemas.CodeUnavailable, "the issuer has too much to do; ask again"))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("issuer: subscribe: %w", err)
	}
	return sub, nil
}

func (i *Issuer) answerToken(ctx context.Context, m *nats.Msg) {
	answer, err := i.token(ctx, m.Subject, m.Data)
	i.reply(m, answer, err)
}

// token carries out one request. Who asks is the stamped account.
func (i *Issuer) token(ctx context.Context, subject string, data []byte) (any, error) {
	out, err := schemas.ParseOut(subject)
	if err != nil || out.Kind != schemas.OutToken {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%s is none of out.token.issue, out.token.refresh, out.token.release, out.token.join", clip(subject))
	}
	if len(data) > maxTokenRequest {
		return nil, schemas.Refuse(schemas.CodeTooLarge, "the request has %d bytes, %d are possible", len(data), maxTokenRequest)
	}
	return i.tokenFor(ctx, asker{agent: out.Agent, name: out.Agent, incarnation: out.Incarnation}, out.Token, data)
}

// tokenFor carries out what an agent asks, whichever way it came.
func (i *Issuer) tokenFor(ctx context.Context, who asker, what string, data []byte) (any, error) {
	switch what {
	case "issue":
		var req schemas.IssueRequest
		if err := schemas.Unmarshal(data, &req); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		if req.AgentID == "" {
			req.AgentID = who.agent
		}
		return i.issue(ctx, who, req)
	case "refresh":
		var req schemas.RefreshRequest
		if err := schemas.Unmarshal(data, &req); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		return i.refresh(ctx, who, req)
	case "join":
		var req schemas.JoinRequest
		if err := schemas.Unmarshal(data, &req); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		return i.join(ctx, who, req)
	default:
		var req schemas.ReleaseRequest
		if err := schemas.Unmarshal(data, &req); err != nil {
			return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		return i.release(ctx, who, req)
	}
}

// reply answers an agent, and frees the server's memory of who asked.
func (i *Issuer) reply(m *nats.Msg, answer any, err error) {
	if m.Reply == "" {
		return
	}
	i.answerOn(i.Inlet, m, answer, err, false)
}

// answerOn answers who asked through an import, and lets the server forget them.
// What went wrong here is told in words to those who run the control plane.
func (i *Issuer) answerOn(nc *nats.Conn, m *nats.Msg, answer any, err error, frank bool) {
	out := nats.NewMsg(m.Reply)
	if err == nil {
		if out.Data, err = json.Marshal(answer); err != nil {
			i.Logger.Error("answer does not encode", "subject", m.Subject, "error", err)
		}
	}
	if err != nil {
		refusal := bus.AsRefusal(err)
		if refusal.Code == schemas.CodeUnavailable {
			i.Logger.Error("request failed", "subject", m.Subject, "error", err)
			if !frank {
				refusal = schemas.Refuse(schemas.CodeUnavailable, "the issuer could not do it now; ask again")
			}
		}
		out.Header, out.Data = nats.Header(refusal.Header()), refusal.Body()
	}
	i.sendOn(nc, m, out)
}

func (i *Issuer) sendOn(nc *nats.Conn, m, out *nats.Msg) {
	if err := nc.PublishMsg(out); err != nil {
		i.Logger.Error("answer not sent", "subject", m.Subject, "error", err)
		return
	}
	i.forget(nc, m)
}

// forget frees the server's memory of who asked.
func (i *Issuer) forget(nc *nats.Conn, m *nats.Msg) {
	if err := nc.Publish(m.Reply, nil); err != nil {
		i.Logger.Error("answer not ended", "subject", m.Subject, "error", err)
	}
}

func tooMany() *schemas.Refusal {
	return schemas.Refuse(schemas.CodeRate, "over %d requests for capabilities in a second; slow down", tokensPerSecond)
}

// limiters hold one bucket per account. Accounts exist only where the issuer
// made them, so their number is the fleet's.
type limiters struct {
	perSecond rate.Limit
	burst     int
	mu        sync.Mutex
	by        map[string]*rate.Limiter
}

func newLimiters(perSecond rate.Limit, burst int) *limiters {
	return &limiters{perSecond: perSecond, burst: burst, by: map[string]*rate.Limiter{}}
}

func (l *limiters) of(agent string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.by[agent]
	if b == nil {
		b = rate.NewLimiter(l.perSecond, l.burst)
		l.by[agent] = b
	}
	return b
}
