package plane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

// parting appends many events at once, and last a lock, to which release has
// something to say: as a service that is stopped writes what it still has.
func parting(ctx context.Context, p *Process) error {
	creds, err := keys.Creds(p.keys, keys.RoleIssuer)
	if err != nil {
		return err
	}
	nc, err := p.dial(string(keys.RoleIssuer), creds)
	if err != nil {
		return err
	}
	defer nc.Close()
	log, err := bus.NewAppender(nc)
	if err != nil {
		return err
	}
	events := make([]*schemas.Event, 2000)
	for i := range events {
		events[i] = &schemas.Event{Kind: schemas.AgentPaused, Agent: schemas.MemoryID, ID: rand.Text(), Source: source(keys.RoleIssuer),
			Time: time.Now(), Reason: "test", Actor: "test"}
	}
	_, errs := log.AppendAll(ctx, events)
	return errors.Join(errs...)
}

func logEnd(t *testing.T, nc *nats.Conn) jetstream.StreamState {
	t.Helper()
	js, err := jetstream.New(nc)
	must(t, err)
	s, err := js.Stream(t.Context(), schemas.Stream)
	must(t, err)
	return s.CachedInfo().State
}

// forgotten starts the server alone, and lets EVENTS forget all that it holds. It
// gives the last sequence that was given out.
func forgotten(t *testing.T, data string) (last uint64) {
	t.Helper()
	s, err := embed.Start(embed.Options{Data: data, DontListen: true, Retention: time.Second})
	must(t, err)
	defer s.Stop()
	must(t, s.Provision(t.Context()))
	creds, err := keys.Creds(data, keys.RoleInit)
	must(t, err)
	nc, err := bus.Connect(bus.Options{Role: string(keys.RoleInit), Server: s, Creds: creds})
	must(t, err)
	defer nc.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		state := logEnd(t, nc)
		if state.Msgs == 0 {
			return state.LastSeq
		}
		if time.Now().After(end) {
			t.Fatalf("EVENTS does not forget: %+v", state)
		}
	}
}

// Where EVENTS forgot what the ledger never had, a start says so, and does not wait
// for the next event to find out.
func TestAStartBehindWhatEVENTSForgotIsRefused(t *testing.T) {
	data := t.TempDir()
	p, operator := startOn(t, data)
	operator.Close()
	must(t, p.Stop(context.Background()))

	s, err := embed.Start(embed.Options{Data: data, DontListen: true})
	must(t, err)
	alone := newProcess(data, data, nil)
	alone.inside = s
	must(t, parting(t.Context(), alone))
	s.Stop()
	last := forgotten(t, data)

	p, err = Start(t.Context(), Options{Data: data})
	if err == nil {
		must(t, p.Stop(context.Background()))
	}
	if !errors.Is(err, ledger.ErrGap) || !strings.Contains(err.Error(), fmt.Sprintf("forgotten %d to %d", last-1999, last)) || !strings.Contains(err.Error(), "accept-gap") {
		t.Errorf("a start behind a gap: %v", err)
	}
}

// Behind a crash, and then more days than EVENTS keeps, the last records bear no
// signature, and nothing is left to compare them with: no gap can be accepted
// there, and whoever starts is not told to try.
func TestAnUnsignedTailThatEVENTSForgotOffersARestoreAlone(t *testing.T) {
	data := t.TempDir()
	p, operator := startOn(t, data)
	operator.Close()
	must(t, p.Stop(context.Background()))
	anchor, before := filepath.Join(data, "anchor"), filepath.Join(t.TempDir(), "anchor")
	must(t, os.CopyFS(before, os.DirFS(anchor)))
	p, err := Start(t.Context(), Options{Data: data}) // logs what the anchor does not cover
	must(t, err)
	operator, err = p.Operator()
	must(t, err)
	_, err = bus.Call[schemas.Receipt](t.Context(), operator, schemas.CtlLock, schemas.LockRequest{AgentID: schemas.MemoryID, Lock: schemas.Paused, Reason: "test", Actor: "test"})
	must(t, err)
	operator.Close()
	must(t, p.Stop(context.Background()))
	must(t, os.RemoveAll(anchor))
	must(t, os.CopyFS(anchor, os.DirFS(before)))
	forgotten(t, data)

	p, err = Start(t.Context(), Options{Data: data})
	if err == nil {
		must(t, p.Stop(context.Background()))
	}
	if !errors.Is(err, ledger.ErrGap) || strings.Contains(err.Error(), "accept-gap") || !strings.Contains(err.Error(), "restore the whole data folder") {
		t.Errorf("a start behind an unsigned tail: %v", err)
	}
	o, err := LedgerOptions(data)
	must(t, err)
	r, err := ledger.OpenReader(o)
	must(t, err)
	o.StreamID, err = r.StreamID()
	must(t, errors.Join(err, r.Close()))
	led, err := ledger.Open(o)
	must(t, err)
	if err := led.RecordGap(1<<20, "lost", "test", time.Now()); !errors.Is(err, ledger.ErrUnconfirmed) {
		t.Errorf("the gap is accepted: %v", err)
	}
	must(t, led.Close())
}

// Whoever stops a control plane while much is going on, and starts it when EVENTS
// has forgotten everything, must find nothing lost: what the ledger had not taken
// at the stop, it would never get.
func TestAStopLeavesNothingThatTheLedgerHasNot(t *testing.T) {
	data := t.TempDir()
	for range 3 {
		p, operator := startOn(t, data)
		operator.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		parted := make(chan error, 1)
		must(t, p.stages.start(ctx, "parting", func(stopped context.Context, ready func()) error {
			ready()
			<-stopped.Done()
			parted <- parting(ctx, p.Process)
			return nil
		}))
		// It stops as the last before release and the ledger.
		for _, other := range slices.Clone(p.stages.tasks) {
			if !slices.Contains([]string{"ledger", "release", "parting"}, other.name) {
				p.stages.raise(other.name)
			}
		}
		must(t, p.Stop(context.Background()))
		must(t, <-parted)

		o, err := LedgerOptions(data)
		must(t, err)
		r, err := ledger.OpenReader(o)
		must(t, err)
		head, err := r.Head()
		must(t, errors.Join(err, r.Close()))
		if last := forgotten(t, data); last < 2000 || head.StreamSeq != last {
			t.Fatalf("the log went up to %d, and the ledger to %d", last, head.StreamSeq)
		}
	}
}
