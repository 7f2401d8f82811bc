package monitor_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// A book stands in for the ledger's service: it has all that stood in the log when
// it was made, a few records a page.
type book struct {
	records []schemas.Record

	mu    sync.Mutex
	down  int      // questions that it does not answer; below zero all but the first page's
	asked []uint64 // from where
}

const bookPage = 3

func (s *stand) book() *book {
	s.t.Helper()
	b, nc := &book{}, s.connect(keys.RoleLedger)
	f := bus.Follower{Conn: nc}
	if err := f.Rest(s.t.Context(), func(e bus.Entry) error {
		b.records = append(b.records, schemas.Record{Seq: e.Seq, Subject: e.Subject, Header: e.Header, Data: e.Data})
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	if err := bus.Handle(nc, slog.New(slog.DiscardHandler), schemas.CtlRead, b.read); err != nil {
		s.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (b *book) read(_ context.Context, q schemas.ReadRequest) (rep schemas.ReadReply, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, q.From)
	if b.down > 0 || b.down < 0 && q.From > 1 {
		b.down--
		return rep, schemas.Refuse(schemas.CodeUnavailable, "starting")
	}
	for _, r := range b.records {
		if r.Seq < q.From || r.Seq > q.To {
			continue
		}
		if len(rep.Records) == min(bookPage, q.Limit) {
			rep.Next = r.Seq
			break
		}
		rep.Records = append(rep.Records, r)
	}
	return rep, nil
}

// renames gives an event another id than it was logged with.
func (b *book) renames(i int) {
	h := maps.Clone(b.records[i].Header)
	h["ce-id"] = []string{"another"}
	b.records[i].Header = h
}

// makes are the verdicts of a model that folded the whole log: what a replay makes.
func (b *book) makes(t *testing.T, w *monitor.Weights, drafts ...*schemas.Event) (out []string) {
	t.Helper()
	m := monitor.New(monitor.Options{Weights: w})
	for _, r := range b.records {
		e, err := r.Event()
		if err == nil {
			err = m.Apply(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range drafts {
		out = append(out, string(schemas.Marshal(m.Assess(d))))
	}
	return out
}

// forgotten is a log of which EVENTS has nothing but the last event, and a monitor
// that stopped before two others: one that knows none of this judges otherwise, and
// so does one that lacks event 6.
func (s *stand) forgotten() (b *book, last uint64, drafts []*schemas.Event) {
	s.t.Helper()
	s.keep = filepath.Join(s.t.TempDir(), "snapshot")
	stop := s.serve()
	s.tried()
	stop() // with event 5
	s.grant("op-4")
	last = s.grant("op-3")
	b = s.book()
	s.age()
	return b, last, []*schemas.Event{draft("op-1", "shell"), draft("op-4", "shell"), draft("op-3", "shell")}
}

func (s *stand) judgesLike(want []string, after uint64, drafts []*schemas.Event) {
	s.t.Helper()
	got, err := s.assess(after, drafts...)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, v := range got {
		if v := string(schemas.Marshal(v)); v != want[i] {
			s.t.Errorf("it judges otherwise than the whole log:\n%s\n%s", v, want[i])
		}
	}
}

// An agent waits until the monitor has forgotten it: until its snapshot is of no
// use, after an upgrade or a loss, and EVENTS has aged. What the log's whole
// history makes of it counts nevertheless, to the bit.
func TestAMonitorWhoseLogHasAgedFoldsTheLedger(t *testing.T) {
	other := monitor.Reference
	other.Base--
	for name, c := range map[string]struct {
		weights *monitor.Weights
		prepare func(s *stand, b *book)
		whole   bool   // it folds all
		says    string // and why
	}{
		"the snapshot is lost":     {nil, func(s *stand, _ *book) { s.keep += "-gone" }, true, ""},
		"another model wrote it":   {&other, func(*stand, *book) {}, true, "folded anew"},
		"it stood still for long":  {nil, func(*stand, *book) {}, false, ""},
		"it is of another log":     {nil, func(_ *stand, b *book) { b.renames(4) }, true, "another than the one"},
		"its event is not there":   {nil, func(_ *stand, b *book) { b.records = slices.Delete(b.records, 4, 5) }, true, "has no event 5"},
		"the ledger is not up yet": {&other, func(_ *stand, b *book) { b.down = 2 }, true, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t)
			b, last, drafts := s.forgotten()
			c.prepare(s, b)
			s.weights = c.weights
			want := b.makes(t, c.weights, drafts...)
			stop := s.serve()
			s.judgesLike(want, last, drafts)
			stop()
			b.mu.Lock()
			defer b.mu.Unlock()
			if slices.Contains(b.asked, 1) != c.whole || !slices.Contains(b.asked, 4) && c.whole {
				t.Errorf("it asked for records from %v", b.asked)
			}
			if !strings.Contains(s.logged.String(), c.says) {
				t.Errorf("it does not say why: %q", s.logged.String())
			}
		})
	}
}

// Who keeps the ledger from answering must not have agents judged by a monitor
// that knows nothing; and a start that is broken off so begins where it ended.
func TestNothingIsJudgedBeforeTheLedgerHasAnswered(t *testing.T) {
	s := newStand(t)
	b, last, drafts := s.forgotten()
	s.keep += "-gone"
	b.down = -1 // after the first page
	svc, err := monitor.NewService(s.options())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx, func() { t.Error("it is ready") }) }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		b.mu.Lock()
		asked := slices.Clone(b.asked)
		b.mu.Unlock()
		if len(asked) >= 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it asked for records from %v and no more", asked)
		}
	}
	if _, err := s.intake.Request(schemas.Assess, nil, 100*time.Millisecond); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("it answers who asks for a verdict: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
	b.mu.Lock()
	b.down, b.asked = 0, nil
	b.mu.Unlock()
	want := b.makes(t, nil, drafts...)
	stop := s.serve()
	s.judgesLike(want, last, drafts)
	stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Contains(b.asked, 1) || !slices.Contains(b.asked, bookPage+1) {
		t.Errorf("it asked for records from %v again", b.asked)
	}
}
