package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// stages run tasks one above the other, and stop them in reverse order: what
// takes work in stops first, what it stands on last.
type stages struct {
	log    *slog.Logger
	failed chan error // the first error of any task

	mu    sync.Mutex
	tasks []*task
}

type task struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

const (
	startWithin = 2 * time.Minute            // a long log takes a while to fold
	restWithin  = 10 * time.Second           // for the ledger to take what is left in the log
	stopWithin  = restWithin + 5*time.Second // per task
)

func newStages(log *slog.Logger) *stages {
	return &stages{log: log, failed: make(chan error, 1)}
}

// start runs a task and waits until it says that it is ready. The task ends
// when its context does, and not before.
func (s *stages) start(ctx context.Context, name string, run func(ctx context.Context, ready func()) error) error {
	tctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := &task{name: name, cancel: cancel, done: make(chan struct{})}
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		defer close(t.done)
		var once sync.Once
		err := run(tctx, func() { once.Do(func() { close(ready) }) })
		if err == nil && tctx.Err() == nil {
			err = errors.New("ended by itself")
		}
		if err != nil && tctx.Err() == nil {
			err = fmt.Errorf("%s: %w", name, err)
			ended <- err
			s.fail(err)
			return
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			s.log.Error("while stopping", "service", name, "error", err)
		}
	}()
	s.mu.Lock()
	s.tasks = append(s.tasks, t)
	s.mu.Unlock()
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	select {
	case <-ready:
		return nil
	case err := <-ended:
		return err
	case err := <-s.failed: // of one below, which this one may wait for
		s.fail(err)
		return err
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, ctx.Err())
	case <-timer.C:
		return fmt.Errorf("start %s: not ready within %s", name, startWithin)
	}
}

// fail tells of an error, unless there was one before, which is the cause.
func (s *stages) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// raise lets a task stop before those that were started after it until now.
func (s *stages) raise(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.tasks, func(t *task) bool { return t.name == name })
	t := s.tasks[i]
	s.tasks = append(slices.Delete(s.tasks, i, i+1), t)
}

// stop ends all tasks, the newest first.
func (s *stages) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i := len(s.tasks) - 1; i >= 0; i-- {
		t := s.tasks[i]
		t.cancel()
		select {
		case <-t.done:
		case <-time.After(stopWithin):
			errs = append(errs, fmt.Errorf("%s did not stop within %s", t.name, stopWithin))
		}
	}
	s.tasks = nil
	return errors.Join(errs...)
}
