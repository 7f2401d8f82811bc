package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/embed"
)

// Path is what `writ bench path` measured. Rates are per second.
type Path struct {
	Agents    int     `json:"agents"`
	RTTp50    float64 `json:"rtt_p50_us"`
	RTTp99    float64 `json:"rtt_p99_us"`
	RawRTTp50 float64 `json:"raw_rtt_p50_us"`
	Sends     float64 `json:"send_per_s"`
	RawJS     float64 `json:"raw_js_per_s"`
	SendRatio float64 `json:"send_ratio"`
	Calls     float64 `json:"calls_per_s"`
	CallCPU   float64 `json:"call_cpu_us"` // processor time, clients included
	SendCPU   float64 `json:"send_cpu_us"`
	RawJSCPU  float64 `json:"raw_js_cpu_us"`
	SyncP50   float64 `json:"fdatasync_p50_us"`
	SyncP99   float64 `json:"fdatasync_p99_us"`
	// Medians of a round trip's stages: until intake has the call, until the
	// service does (verdict, log and ledger lie between), until intake has the
	// answer, until the client does.
	ToIntake  float64 `json:"stage_intake_us"`
	ToService float64 `json:"stage_service_us"`
	ToAnswer  float64 `json:"stage_answer_us"`
	ToClient  float64 `json:"stage_client_us"`
}

const (
	roundTrips = 4000
	inFlight   = 256
	spreadOver = 64 // agents that share the load
	window     = 64 // sends of one agent that await their acknowledgement
	loadFor    = 5 * time.Second
	warmUp     = 300
)

// RunPath measures round trips, acknowledged sends and calls through every
// part of the control plane, with n agents enrolled.
func RunPath(ctx context.Context, n int, progress func(string)) (*Path, error) {
	n = max(n, 2)
	r, err := newRig(ctx, n, progress)
	if err != nil {
		return nil, err
	}
	defer r.close(context.WithoutCancel(ctx))
	p := &Path{Agents: n}
	conns, err := r.connectAgents(ctx, min(n, spreadOver))
	if err != nil {
		return nil, err
	}
	defer closeAll(conns)
	if err := p.syncs(r.dir); err != nil {
		return nil, err
	}
	progress("round trips, one at a time")
	times := newPassages()
	r.served.Store(times)
	rtts, err := roundTrip(ctx, conns[0], "out.bench.call.echo", roundTrips, times)
	r.served.Store(nil)
	if err != nil {
		return nil, err
	}
	if err := times.read(ctx, r.operator, r.agents[0], echoID); err != nil {
		return nil, err
	}
	p.ToIntake, p.ToService, p.ToAnswer, p.ToClient = times.medians()
	p.RTTp50, p.RTTp99 = micros(quantile(rtts, .5)), micros(quantile(rtts, .99))
	progress("calls, 256 in flight")
	body := make([]byte, bodySize)
	var l load
	if l, err = flood(ctx, inFlight, loadFor, func(ctx context.Context, w int) (int, error) {
		m, err := conns[w%len(conns)].RequestWithContext(ctx, "out.bench.call.echo", body)
		if err != nil {
			return 0, err
		}
		if code := m.Header.Get("Nats-Service-Error-Code"); code != "" {
			return 0, fmt.Errorf("a call was refused: %s %s", code, m.Header.Get("Nats-Service-Error"))
		}
		return 1, nil
	}); err != nil {
		return nil, fmt.Errorf("bench: calls: %w", err)
	}
	p.Calls, p.CallCPU = l.perSecond, l.cpuMicros
	progress("acknowledged sends")
	if l, err = sends(ctx, conns, n); err != nil {
		return nil, err
	}
	p.Sends, p.SendCPU = l.perSecond, l.cpuMicros
	progress("the raw limits")
	if err := p.raw(ctx, filepath.Join(r.dir, "raw")); err != nil {
		return nil, err
	}
	p.SendRatio = p.Sends / p.RawJS
	return p, nil
}

func closeAll(conns []*nats.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// roundTrip makes requests one after the other, after some to warm up.
// Where times is given, it notes each.
func roundTrip(ctx context.Context, nc *nats.Conn, subject string, n int, times *passages) ([]time.Duration, error) {
	body := make([]byte, bodySize)
	var out []time.Duration
	for i := range n + warmUp {
		began := time.Now()
		m, err := nc.RequestWithContext(ctx, subject, body)
		if err != nil {
			return nil, fmt.Errorf("bench: request %d: %w", i, err)
		}
		if code := m.Header.Get("Nats-Service-Error-Code"); code != "" {
			return nil, fmt.Errorf("bench: request %d was refused: %s %s", i, code, m.Header.Get("Nats-Service-Error"))
		}
		if i >= warmUp {
			done := time.Now()
			out = append(out, done.Sub(began))
			if times != nil {
				times.note(m.Header, func(p *passage) { p.sent, p.done = began, done })
			}
		}
	}
	return out, nil
}

// sends measures acknowledged sends: stock JetStream publishes by every
// connected agent to the next, which takes and answers each.
func sends(ctx context.Context, conns []*nats.Conn, agents int) (load, error) {
	for i, nc := range conns {
		sub, err := nc.Subscribe("in.send.*", func(m *nats.Msg) { _ = m.Respond(nil) })
		if err != nil {
			return load{}, fmt.Errorf("bench: agent %d: %w", i, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	streams := make([]jetstream.JetStream, len(conns))
	for i, nc := range conns {
		js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(2*window))
		if err != nil {
			return load{}, fmt.Errorf("bench: agent %d: %w", i, err)
		}
		streams[i] = js
	}
	rate, err := flood(ctx, len(conns), loadFor, func(ctx context.Context, w int) (int, error) {
		return publishWindow(ctx, streams[w], "out.bench.send."+agentName((w+1)%agents))
	})
	if err != nil {
		return load{}, fmt.Errorf("bench: sends: %w", err)
	}
	return rate, nil
}

// publishWindow publishes one window and waits for all of its
// acknowledgements.
func publishWindow(ctx context.Context, js jetstream.JetStream, subject string) (int, error) {
	body := make([]byte, bodySize)
	futures := make([]jetstream.PubAckFuture, 0, window)
	for range window {
		f, err := js.PublishAsync(subject, body)
		if err != nil {
			return 0, err
		}
		futures = append(futures, f)
	}
	for i, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return i, err
		case <-ctx.Done():
			return i, ctx.Err()
		}
	}
	return len(futures), nil
}

// raw measures what a plain NATS server gives on the same machine.
func (p *Path) raw(ctx context.Context, dir string) error {
	s, err := embed.StartRaw(dir)
	if err != nil {
		return err
	}
	defer s.Stop()
	a, err := nats.Connect(s.URL())
	if err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	defer a.Close()
	b, err := nats.Connect(s.URL())
	if err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	defer b.Close()
	if _, err := b.Subscribe("echo", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	rtts, err := roundTrip(ctx, a, "echo", roundTrips, nil)
	if err != nil {
		return err
	}
	p.RawRTTp50 = micros(quantile(rtts, .5))
	js, err := jetstream.New(a, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.>"}}); err != nil {
		return fmt.Errorf("bench: raw: %w", err)
	}
	body := make([]byte, bodySize)
	began, used, n := time.Now(), ProcessorTime(), 0
	for ; time.Since(began) < loadFor; n++ {
		if _, err := js.PublishAsync("raw.x", body, jetstream.WithStallWait(time.Second)); err != nil {
			return fmt.Errorf("bench: raw: %w", err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(10 * time.Second):
		return fmt.Errorf("bench: raw: JetStream did not acknowledge")
	}
	p.RawJS = float64(n) / time.Since(began).Seconds()
	p.RawJSCPU = micros(ProcessorTime()-used) / float64(n)
	return nil
}

// syncs measures writing and syncing one message to a file.
func (p *Path) syncs(dir string) error {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer f.Close()
	body := make([]byte, bodySize)
	var took []time.Duration
	for range 1000 {
		began := time.Now()
		if _, err := f.Write(body); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		if err := fdatasync(f); err != nil {
			return fmt.Errorf("bench: fdatasync: %w", err)
		}
		took = append(took, time.Since(began))
	}
	p.SyncP50, p.SyncP99 = micros(quantile(took, .5)), micros(quantile(took, .99))
	return nil
}
