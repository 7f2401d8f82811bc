package bus_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/schemas"
)

// A breaker closes its connection once, instead of writing what holds a word.
type breaker struct {
	net.Conn
	dialer *breakDialer
}

type breakDialer struct {
	word  string
	armed atomic.Bool
}

func (d *breakDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &breaker{c, d}, nil
}

func (b *breaker) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(b.dialer.word)) && b.dialer.armed.CompareAndSwap(true, false) {
		return len(p), b.Conn.Close() // as a network does it: what was written is gone
	}
	return b.Conn.Write(p)
}

// A stage is a plain server with the log and one consumer of it.
type stage struct {
	t   *testing.T
	raw *embed.Raw
	js  jetstream.JetStream
}

func newStage(t *testing.T, filters ...string) *stage {
	t.Helper()
	raw, err := embed.StartRaw(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Stop)
	s := &stage{t: t, raw: raw}
	nc := s.connect()
	if s.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	stream, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: schemas.Stream, Subjects: []string{"ev.>"}, AllowDirect: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "reader", DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy: jetstream.AckNonePolicy, FilterSubjects: filters}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) connect(opts ...nats.Option) *nats.Conn {
	s.t.Helper()
	nc, err := nats.Connect(s.raw.URL(), append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectBufSize(-1)}, opts...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

func (s *stage) publish(subject string) uint64 {
	s.t.Helper()
	ack, err := s.js.Publish(s.t.Context(), subject, []byte("x"))
	if err != nil {
		s.t.Fatal(err)
	}
	return ack.Sequence
}

// follow follows until what is wanted has come, and fails where anything else
// does, or where the follower ends by itself.
func (s *stage) follow(f bus.Follower, want func() []uint64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	var mu sync.Mutex
	var got []uint64
	err := f.Run(ctx, func(e bus.Entry) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e.Seq)
		if slices.Equal(got, want()) {
			cancel()
		}
		return nil
	})
	if !slices.Equal(got, want()) {
		s.t.Errorf("handed over %v of %v: %v", got, want(), err)
	}
}

// The library ends a batch that is cut off as if there were no more. A follower
// that believed it would never know of a kill.
func TestABatchThatIsCutOffIsReadAgain(t *testing.T) {
	for name, filters := range map[string][]string{"filtered": {"ev.*.agent.>"}, "all": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, filters...)
			var want []uint64
			for i := range 50 {
				want = append(want, s.publish(fmt.Sprintf("ev.a%d.agent.killed", i)))
			}
			d := &breakDialer{word: "DIRECT.GET"}
			d.armed.Store(true)
			s.follow(bus.Follower{Conn: s.connect(nats.SetCustomDialer(d)), Consumer: "reader", Filters: filters}, func() []uint64 { return want })
			if d.armed.Load() {
				t.Error("the connection was never broken")
			}
		})
	}
}

// A connection that breaks while nothing comes ends no service.
func TestAFollowerOutlivesABrokenLook(t *testing.T) {
	s := newStage(t)
	d := &breakDialer{word: "STREAM.INFO"}
	var want []uint64
	var mu sync.Mutex
	f := bus.Follower{Conn: s.connect(nats.SetCustomDialer(d)), Consumer: "reader"}
	f.CaughtUp = func(uint64) {
		d.armed.Store(true)
		go func() {
			for d.armed.Load() {
				time.Sleep(10 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			want = append(want, s.publish("ev.a.agent.killed"))
		}()
	}
	s.follow(f, func() []uint64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(want)
	})
}

// What several filters match is handed over once, in the log's order.
func TestFiltersAreMergedInOrder(t *testing.T) {
	filters := []string{"ev.*.agent.>", "ev.*.message.denied", "ev.x.agent.killed", "ev.*.risk.>"}
	s := newStage(t)
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []string{"agent.killed", "message.denied", "message.accepted", "risk.changed"}
	var want []uint64
	for i := range uint64(3000) {
		kind := kinds[random.IntN(len(kinds))]
		if _, err := s.js.PublishAsync("ev."+[]string{"x", "y"}[random.IntN(2)]+"."+kind, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if kind != "message.accepted" {
			want = append(want, i+1)
		}
	}
	<-s.js.PublishAsyncComplete()
	s.follow(bus.Follower{Conn: s.connect(), Consumer: "reader", Filters: filters}, func() []uint64 { return want })
}

// Publishes that nobody acknowledges must not take the place of later ones for
// ever.
func TestUnacknowledgedAppendsMakeRoom(t *testing.T) {
	raw, err := embed.StartRaw(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Stop)
	s := &stage{t: t, raw: raw}
	nc := s.connect()
	// Somebody takes them and acknowledges nothing: a stream without a leader.
	silent, err := nc.Subscribe("ev.>", func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	a, err := bus.NewAppender(nc)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	event := func() *schemas.Event {
		n++
		body := []byte("x")
		return &schemas.Event{Kind: schemas.MessageDenied, Agent: "a", ID: fmt.Sprint("id-", n), Source: "test/1", Time: time.Now(),
			Code: schemas.CodeMalformed, Reason: "test", Digest: schemas.Sum(body), Data: body}
	}
	for range 64 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		events := make([]*schemas.Event, 256)
		for i := range events {
			events[i] = event()
		}
		a.AppendAll(ctx, events)
		cancel()
	}
	if err := silent.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: schemas.Stream, Subjects: []string{"ev.>"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, err := a.Append(ctx, event()); err != nil; _, err = a.Append(ctx, event()) {
		if ctx.Err() != nil {
			t.Fatalf("the log takes events again, and the appender does not: %v", err)
		}
	}
}
