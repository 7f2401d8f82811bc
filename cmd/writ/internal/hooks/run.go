package hooks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const (
	look     = time.Second // for webhooks that came, changed or went
	pauseMin = time.Second
	pauseMax = 5 * time.Minute
	giveUp   = 24 * time.Hour // behind the event's time
)

// Options of a Sender; all are needed.
type Options struct {
	Data   string
	Conn   *nats.Conn                                        // may read the log
	Base   string                                            // address of the issuer over HTTP, for links
	End    func(ctx context.Context) (seq uint64, err error) // of the log
	Logger *slog.Logger
}

// A Sender delivers for all webhooks of a data folder, each in a goroutine of
// its own: one that does not answer delays no other.
type Sender struct {
	Options
	delivered, failed, dropped *prometheus.CounterVec
	waiting                    *prometheus.GaugeVec
}

// New prepares a sender; Run starts it.
func New(o Options) *Sender {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"webhook"})
	}
	return &Sender{Options: o,
		delivered: counter("writ_webhook_delivered_total", "Events that the receiver took."),
		failed:    counter("writ_webhook_failed_total", "Attempts that failed; each is repeated."),
		dropped:   counter("writ_webhook_dropped_total", "Events that were passed over after a day of attempts."),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "writ_webhook_waiting_since_timestamp_seconds",
			Help: "Time of the event that is not delivered yet; 0 where none waits."}, []string{"webhook"})}
}

// Describe and Collect make the sender a prometheus.Collector.
func (s *Sender) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{s.delivered, s.failed, s.dropped, s.waiting} {
		c.Describe(ch)
	}
}

// Collect gives what was counted since the start.
func (s *Sender) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{s.delivered, s.failed, s.dropped, s.waiting} {
		c.Collect(ch)
	}
}

// A running webhook, as it was configured.
type running struct {
	config string
	end    context.CancelFunc
	ended  chan struct{}
}

// Run delivers until the context ends. What fails of one webhook is logged and
// tried again: nothing else waits for it.
func (s *Sender) Run(ctx context.Context, ready func()) error {
	all := map[string]*running{}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	told := ""
	for {
		hooks, err := List(s.Data)
		if err != nil && err.Error() != told {
			s.Logger.Error("a webhook is not served", "error", err)
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		s.adjust(ctx, &wg, all, hooks)
		ready()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// adjust starts and stops what the configuration says.
func (s *Sender) adjust(ctx context.Context, wg *sync.WaitGroup, all map[string]*running, hooks []Hook) {
	want := map[string]Hook{}
	for _, h := range hooks {
		want[h.ID] = h
	}
	for id, r := range all {
		h, ok := want[id]
		if ok && string(schemas.Marshal(h)) == r.config && !closed(r.ended) {
			delete(want, id)
			continue
		}
		r.end()
		<-r.ended // two never deliver at the same time
		delete(all, id)
		s.Logger.Info("a webhook is served no longer as it was", "webhook", id)
	}
	for id, h := range want {
		ctx, end := context.WithCancel(ctx)
		r := &running{string(schemas.Marshal(h)), end, make(chan struct{})}
		all[id] = r
		wg.Go(func() {
			defer close(r.ended)
			defer end()
			if err := s.serve(ctx, h); err != nil && ctx.Err() == nil {
				s.Logger.Error("a webhook stopped; it is started again", "webhook", id, "error", err)
			}
		})
	}
}

func closed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// serve follows the log for one webhook.
func (s *Sender) serve(ctx context.Context, h Hook) error {
	from, err := s.cursor(ctx, h.ID)
	if err != nil {
		return err
	}
	c, err := h.client()
	if err != nil {
		return err
	}
	reached := from
	f := bus.Follower{Conn: s.Conn, Filters: h.filters(), From: from + 1,
		CaughtUp: func(end uint64) { reached = max(reached, end) }, Reached: func(end uint64) { reached = max(reached, end) }}
	err = f.Run(ctx, func(entry bus.Entry) error {
		e, err := entry.Event()
		if err != nil {
			return err
		}
		name := h.wants(e)
		if name == "" {
			return nil
		}
		if err := s.deliver(ctx, h, func(now time.Time) error {
			body, err := compose(name, e, s.Base)
			if err != nil {
				return err
			}
			return h.send(ctx, c, messageID(e), body, now)
		}, e); err != nil {
			return err
		}
		reached = e.Seq
		return writeCursor(s.Data, h.ID, e.Seq)
	})
	// Other events may be asked for from now on: those to come.
	if _, gone := Read(s.Data, h.ID); gone == nil && reached > from {
		err = errors.Join(err, writeCursor(s.Data, h.ID, reached))
	}
	return err
}

// deliver tries until the receiver takes an event, or the event is too old.
func (s *Sender) deliver(ctx context.Context, h Hook, attempt func(now time.Time) error, e *schemas.Event) error {
	waiting := s.waiting.WithLabelValues(h.ID)
	waiting.Set(float64(e.Time.Unix()))
	defer waiting.Set(0)
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		err := attempt(time.Now())
		if err == nil {
			s.delivered.WithLabelValues(h.ID).Inc()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.failed.WithLabelValues(h.ID).Inc()
		if time.Since(e.Time) > giveUp {
			s.dropped.WithLabelValues(h.ID).Inc()
			s.Logger.Error("an event was not delivered for a day, and is passed over", "webhook", h.ID, "seq", e.Seq, "error", err)
			return nil
		}
		s.Logger.Warn("an event was not delivered; it is tried again", "webhook", h.ID, "seq", e.Seq, "in", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func cursorPath(data, id string) string { return filepath.Join(data, dir, id+".seq") }

// cursor is the last event that a webhook is done with. A new one begins at the
// log's end: what was before it is nobody's to decide any more.
func (s *Sender) cursor(ctx context.Context, id string) (uint64, error) {
	end, err := s.End(ctx)
	if err != nil {
		return 0, err
	}
	seq, err := Cursor(s.Data, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return end, writeCursor(s.Data, id, end)
	case err == nil && seq > end:
		s.Logger.Warn("a webhook was further than the log goes, which is another one; it goes on at its end", "webhook", id, "at", seq, "end", end)
		return end, writeCursor(s.Data, id, end)
	}
	return seq, err
}

// Cursor reads how far a webhook has come; fs.ErrNotExist where it has not
// begun.
func Cursor(data, id string) (uint64, error) {
	text, err := os.ReadFile(cursorPath(data, id))
	if err != nil {
		return 0, fmt.Errorf("webhook %s: %w", id, err)
	}
	seq, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("webhook %s: %s holds no sequence; remove it to go on at the log's end: %w", id, cursorPath(data, id), err)
	}
	return seq, nil
}

func writeCursor(data, id string, seq uint64) error {
	if err := os.MkdirAll(filepath.Join(data, dir), 0o700); err != nil {
		return fmt.Errorf("webhook %s: %w", id, err)
	}
	return replace(cursorPath(data, id), []byte(strconv.FormatUint(seq, 10)+"\n"))
}
