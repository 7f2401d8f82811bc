package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// outage leaves the agents without an issuer until the last of their
// capabilities has ended, and each trying to go on behind it.
func (c *crowd) outage() {
	c.Helper()
	c.services["issuer"].kill()
	down := time.Now()
	var probes sync.WaitGroup
	var last atomic.Int64 // by how much the last connection outlived its capability
	for _, m := range c.members {
		probes.Go(func() {
			over, err := m.overstay()
			if err != nil {
				c.fault("%s: %v", m.id, err)
			}
			for {
				before := last.Load()
				if int64(over) <= before || last.CompareAndSwap(before, int64(over)) {
					return
				}
			}
		})
	}
	probes.Wait()
	c.everybody("operations that ended with their capability", func(m *member) bool { return m.present() == nil })
	c.Logf("without an issuer for %s: everybody went on until its capability ended, and was refused then; the last connection was closed %s behind; %s",
		time.Since(down).Round(time.Millisecond), time.Duration(last.Load()).Round(time.Millisecond), c.tally())
	c.serve("issuer")
	c.everybody("operations asked for anew", func(m *member) bool { return m.present() != nil })
}

// overstay is an agent that does not give up when its capability ends: it sends
// on, over a connection of its own, until the server closes it, and then comes
// again. The log is held against what it was let do later.
func (m *member) overstay() (over time.Duration, err error) {
	ctx := m.crowd.ctx
	op := m.present()
	if op == nil {
		return 0, nil // it lapsed already
	}
	const ahead = 2 * time.Second
	exp := op.Token().ExpiresAt
	wait(ctx, time.Until(exp)-ahead)
	if now := op.Token().ExpiresAt; now.After(exp) { // answered at the last moment
		exp = now
		wait(ctx, time.Until(exp)-ahead)
	}
	m.mu.Lock()
	jwt, sign := m.jwt, m.sign
	m.mu.Unlock()
	// The server counts in whole seconds: until a second behind exp it may take it
	// for good, and then closes the connection. Nothing that comes over it counts.
	for {
		came := time.Now()
		closed := make(chan struct{})
		nc, err := nats.Connect(m.crowd.url, nats.UserJWT(func() (string, error) { return jwt, nil }, sign), m.crowd.secure(),
			nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		refused := err != nil && (errors.Is(err, nats.ErrAuthorization) || strings.Contains(err.Error(), "Authentication Expired"))
		switch behind := came.Sub(exp); {
		case refused && time.Until(exp) <= 0: // the server spoke at some time since it came
			return over, nil
		case err == nil && behind >= time.Second:
			nc.Close()
			return over, fmt.Errorf("it came back %s behind the end of its capability", behind)
		case err == nil:
			stayed, err := m.sendOn(nc, closed, exp)
			over = max(over, stayed)
			if nc.Close(); err != nil {
				return over, err
			}
		case refused:
			return over, fmt.Errorf("it was refused %s before the end of its capability: %w", time.Until(exp), err)
		case ctx.Err() != nil:
			return over, err
		default:
			wait(ctx, 100*time.Millisecond) // the server has much to do, and said nothing
		}
	}
}

// sendOn sends until the server closes the connection.
func (m *member) sendOn(nc *nats.Conn, closed chan struct{}, exp time.Time) (over time.Duration, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		err := nc.PublishRequest("out.op.send."+m.next, nats.NewInbox(), fmt.Appendf(nil, "overstay %s %d", m.id, n))
		if err != nil && nc.IsConnected() {
			return 0, fmt.Errorf("send on: %w", err)
		}
		select {
		case <-tick.C:
		case <-closed:
			return max(0, time.Since(exp)), nil
		}
		if over := time.Since(exp); over > within {
			return over, fmt.Errorf("its connection stands %s behind the end of its capability", over)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// arrive waits for every acknowledged message to come to its recipient. One of a
// pair is on its way at a time, so what waits long waits for those before it.
func (c *crowd) arrive() {
	c.Helper()
	began := time.Now()
	const patience = 3 * time.Minute // the longest pause between two deliveries is one
	missing := c.missing()
	for until := time.Now().Add(patience); missing > 0 && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if now := c.missing(); now < missing {
			missing, until = now, time.Now().Add(patience)
		}
	}
	if missing > 0 {
		c.Errorf("%d acknowledged messages are lost", missing)
		return
	}
	c.Logf("all messages are there %s after the last was sent", time.Since(began).Round(time.Millisecond))
}

func (c *crowd) missing() int { return len(c.lost()) }

// lost are the acknowledged messages that have not arrived, by sequence.
func (c *crowd) lost() map[uint64]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := map[uint64]string{}
	for text, seq := range c.acked {
		if !c.arrived[text][seq] {
			lost[seq] = text
		}
	}
	return lost
}

// audit reads the whole log, and holds each action against the capability that
// it names: by the times that the log bears, whatever clients saw.
func (c *crowd) audit() {
	c.Helper()
	ends := map[string]time.Time{} // by capability
	actions, late, probes, refused := 0, 0, 0, 0
	lost := c.lost()
	for from := uint64(1); from != 0; {
		page, err := bus.Call[schemas.ReadReply](c.ctx, c.operator, schemas.CtlRead, schemas.ReadRequest{From: from, Limit: 1000, Data: true})
		if err != nil {
			c.Fatal(err)
		}
		for _, rec := range page.Records {
			e, err := rec.Event()
			if err != nil {
				c.Fatal(err)
			}
			end, known := ends[e.JTI]
			if text := cmp.Or(lost[e.Seq], lost[e.Ref]); text != "" {
				c.Logf("lost %q: event %d of %s at %s: %s %d %s", text, e.Seq, e.Agent, e.Time.Format(time.TimeOnly), e.Kind, e.Code, e.Reason)
			}
			switch e.Kind {
			case schemas.TokenIssued:
				var g schemas.Grant
				if err := schemas.Unmarshal(e.Data, &g); err != nil {
					c.Fatal(err)
				}
				ends[g.JTI] = g.Expires
			case schemas.MessageAccepted:
				if actions++; !known || !e.Time.Before(end) {
					late++
					c.Errorf("event %d of %s, %s behind the end of its capability", e.Seq, e.Agent, e.Time.Sub(end))
				}
				if strings.HasPrefix(string(e.Data), "overstay ") {
					probes++
				}
			case schemas.MessageDenied:
				if refused++; e.Code == schemas.CodeUnauthorized && known && e.Time.Before(end) {
					c.Errorf("event %d of %s was refused (%s) %s before the end of its capability", e.Seq, e.Agent, e.Reason, end.Sub(e.Time))
				}
			}
		}
		from = page.Next
	}
	c.Logf("the log: %d capabilities, %d actions, %d of them behind the end of their capability; %d were refused", len(ends), actions, late, refused)
	if actions == 0 || probes == 0 || len(ends) < 10*len(c.members) {
		c.Errorf("the test shows too little: %d actions, %d of those who overstayed, %d capabilities", actions, probes, len(ends))
	}
	if out := c.mustOperate("ledger", "verify"); !strings.Contains(out, `"ok":true`) {
		c.Errorf("writ ledger verify: %s", out)
	}
}

func (c *crowd) report() {
	c.Helper()
	lost := c.missing()
	c.mu.Lock()
	defer c.mu.Unlock()
	again := 0
	for _, seqs := range c.arrived {
		again += len(seqs) - 1
	}
	c.times.mu.Lock()
	defer c.times.mu.Unlock()
	quantile := func(d []time.Duration, q float64) time.Duration {
		slices.Sort(d)
		return d[int(q*float64(len(d)-1))].Round(10 * time.Microsecond)
	}
	c.Logf("%d agents: %d messages acknowledged, %d lost, %d sent again in another operation", len(c.members), len(c.acked), lost, again)
	c.Logf("%d refreshes: the issuer's answer p50 %s, p99 %s; with the next connection p50 %s, p99 %s", len(c.times.took),
		quantile(c.times.answered, .5), quantile(c.times.answered, .99), quantile(c.times.took, .5), quantile(c.times.took, .99))
	for _, f := range c.faults[:min(len(c.faults), 20)] {
		c.Error(f)
	}
	if len(c.faults) > 20 {
		c.Errorf("and %d more", len(c.faults)-20)
	}
}
