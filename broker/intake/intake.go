// Package intake is the first station of the straight line: it takes what
// agents publish, decides early, and appends one event for each message. It
// answers nobody, and nothing it decides is final: release decides again, in
// log order.
//
// The sender of a message is the account that the server stamped into its
// subject (writ.out.<agent>.…), and nothing else. For each message, in this
// order: shed what is over the agent's rate, before anything is parsed; parse
// the subject; check headers and size; check the live capability
// (schemas.State.Admit); ask the monitor for a verdict; append. Messages of one
// agent are handled one at a time, so that each verdict knows the one before;
// those of many agents go together, in rounds, through the last two.
//
// Guarantees: no header of an agent becomes a header of an event; an action
// that the monitor did not judge is not accepted; a message that could not be
// appended leaves no trace and gets no answer.
package intake

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Filters are the events that intake folds: what bears on what an agent may do.
var Filters = []string{"ev.*.agent.>", "ev.*.token.>", "ev.*.review.>", "ev.*.policy.>",
	"ev.*.operation.>", "ev.*.risk.>", "ev.*.message.held", "ev.*.message.denied", "ev.*.message.cancelled", "ev.*.message.expired", "ev.*.response.held", "ev.*.response.denied"}

// Options of an Intake. All but Now are needed.
type Options struct {
	Conn     *nats.Conn // in CONTROL, as the user intake: the log and the monitor
	Inlet    *nats.Conn // as the same user: what agents publish; a flood delays no verdict
	Consumer string     // name of the consumer over Filters
	Source   string     // ce-source of what it appends
	Logger   *slog.Logger
	Now      func() time.Time // the clock; time.Now where nil
}

// An Intake is one replica. Replicas share the work by queue group and hold
// nothing but a fold of the log.
type Intake struct {
	Options
	log     *bus.Appender
	lanes   *lanes
	asked   *requests
	folded  *bus.Watermark
	waits   *errgroup.Group // set by Run: tasks that wait by themselves
	patient chan struct{}   // one for each of them

	mu    sync.RWMutex // guards state
	state *schemas.State
}

// New prepares an intake; Run starts it.
func New(o Options) (*Intake, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	log, err := bus.NewAppender(o.Conn)
	if err != nil {
		return nil, err
	}
	i := &Intake{Options: o, log: log, state: schemas.NewState(), folded: bus.NewWatermark(), patient: make(chan struct{}, patientMax)}
	i.lanes = newLanes(i.limits)
	i.asked = newRequests(o.Conn)
	return i, nil
}

// Run serves until the context ends or the log can no longer be followed.
// ready is called when it takes messages.
func (i *Intake) Run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	caughtUp := make(chan struct{})
	f := bus.Follower{Conn: i.Conn, Consumer: i.Consumer, Filters: Filters,
		CaughtUp: func(uint64) { close(caughtUp) }, Reached: i.folded.Set}
	g.Go(func() error { return f.Run(ctx, i.fold) })
	i.waits = g
	for range rounds {
		g.Go(func() error {
			for tasks := i.lanes.take(roundMax, roundBytes); tasks != nil; tasks = i.lanes.take(roundMax, roundBytes) {
				i.round(ctx, tasks)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer i.lanes.close()
		second := time.NewTicker(time.Second)
		defer second.Stop()
		for {
			select {
			case <-second.C:
				i.lanes.tell(i.Now())
			case <-ctx.Done():
				return nil
			}
		}
	})
	g.Go(func() error {
		select {
		case <-caughtUp:
		case <-ctx.Done():
			return nil
		}
		return i.take(ctx, ready)
	})
	err := g.Wait()
	if ctx.Err() != nil && err == context.Canceled {
		return nil
	}
	return err
}

// take subscribes to what agents publish, until the context ends.
func (i *Intake) take(ctx context.Context, ready func()) error {
	sub, err := i.Inlet.QueueSubscribe(schemas.OutPrefix+".*.>", "intake", func(m *nats.Msg) {
		i.lanes.put(m, i.Now())
	})
	if err != nil {
		return fmt.Errorf("intake: subscribe: %w", err)
	}
	// The server's own bounds keep an agent from filling this; lanes shed
	// before it matters.
	if err := sub.SetPendingLimits(-1, 256<<20); err != nil {
		return fmt.Errorf("intake: subscribe: %w", err)
	}
	if err := bus.Handle(i.Conn, i.Logger, schemas.CtlHealth, i.health); err != nil {
		return err
	}
	for _, nc := range []*nats.Conn{i.Conn, i.Inlet} {
		if err := nc.Flush(); err != nil {
			return fmt.Errorf("intake: subscribe: %w", err)
		}
	}
	ready()
	<-ctx.Done()
	// What already arrived is finished by the workers' own context; what
	// did not is the next replica's.
	if err := sub.Unsubscribe(); err != nil && i.Inlet.IsConnected() {
		return fmt.Errorf("intake: unsubscribe: %w", err)
	}
	return nil
}

func (i *Intake) health(context.Context, struct{}) (schemas.Health, error) {
	return schemas.Health{Service: "intake", OK: true, Seq: i.folded.At()}, nil
}

func (i *Intake) fold(entry bus.Entry) error {
	e, err := entry.Event()
	if err != nil {
		return err
	}
	i.mu.Lock()
	err = i.state.Apply(e)
	if e.Kind == schemas.MessageCancelled && e.Code == schemas.CodeHeld {
		i.state.Void(e.Agent, e.Operation, e.Action)
	}
	i.mu.Unlock()
	if err != nil {
		return fmt.Errorf("intake: fold: %w", err)
	}
	if e.Kind == schemas.AgentDeclared {
		i.lanes.forget(e.Agent) // its rate may have changed
	}
	i.folded.Set(e.Seq)
	return nil
}

// spend forgets an approval that this replica let an action use. Another
// replica's uses, and those before a restart, it learns from release, which
// admits none twice.
func (i *Intake) spend(e *schemas.Event) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state.Spend(e)
}

// MemoryQuota is how many bytes of memory are declared for an agent; 0 for none.
func (i *Intake) MemoryQuota(agent string) int64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if a := i.state.Agents[agent]; a != nil {
		return a.MemoryBytes
	}
	return 0
}

// limits says how much of an account's traffic is let through.
func (i *Intake) limits(agent string) limits {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[agent]
	if a == nil {
		return limits{Rate: schemas.DefaultRate}
	}
	l := limits{Rate: schemas.DefaultRate, service: a.Kind == schemas.KindService}
	if a.Rate != nil {
		l.Rate = *a.Rate
	}
	return l
}
