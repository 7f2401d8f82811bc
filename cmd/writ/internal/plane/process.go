package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/monitor"
)

// A Process is the services that run in this process, and what they stand on:
// a NATS server, the keys that are here, and the ledger's folder.
type Process struct {
	inside  nats.InProcessConnProvider // a server in this process; nil: the one at url
	url     string
	keys    string           // data folder whose keys/ holds the services' own
	data    string           // data folder of the ledger and the monitor
	weights *monitor.Weights // nil: those built in
	shadow  *monitor.Weights
	log     *slog.Logger
	stages  *stages
	ledger  *ledger.Ledger // nil where it runs elsewhere
	http    string         // "" where the issuer runs elsewhere

	authority *ca.Authority // whose certificate the server of this process shows; nil where there is none

	retention   time.Duration // of the log
	verifyShare float64       // of a core, for verifying the ledger continuously; 0: not at all

	mu    sync.Mutex
	conns []*nats.Conn
	close []func() error // databases, last opened first closed
}

func newProcess(keysOf, data string, log *slog.Logger) *Process {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Process{keys: keysOf, data: data, log: log, retention: embed.Retention, stages: newStages(log)}
}

// connect opens a service's connection; it is closed when the process stops.
// Where the server ends it for good, the process fails: it could serve nobody.
func (p *Process) connect(role keys.Role) (*nats.Conn, error) {
	creds, err := keys.Creds(p.keys, role)
	if err != nil {
		return nil, err
	}
	nc, err := p.dial(string(role), creds, nats.ClosedHandler(func(nc *nats.Conn) {
		p.stages.fail(fmt.Errorf("%s: the NATS server closed the connection for good: %w", role, nc.LastError()))
	}))
	if err != nil {
		return nil, err
	}
	p.keep(nc)
	return nc, nil
}

func (p *Process) dial(role string, creds []byte, opts ...nats.Option) (*nats.Conn, error) {
	return bus.Connect(bus.Options{Role: role, URL: p.url, Server: p.inside, Creds: creds, Logger: p.log, Options: opts})
}

func (p *Process) keep(nc *nats.Conn) {
	p.mu.Lock()
	p.conns = append(p.conns, nc)
	p.mu.Unlock()
}

// Operator opens a connection as an operator. The caller closes it.
func (p *Process) Operator() (*nats.Conn, error) {
	creds, err := keys.Creds(p.keys, keys.RoleOperator)
	if err != nil {
		return nil, err
	}
	return p.dial(string(keys.RoleOperator), creds)
}

// HTTP is the base address of the HTTP server, "" where this process has none.
func (p *Process) HTTP() string { return p.http }

// Wait returns when a service fails, with its error, or when the context ends.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case err := <-p.stages.failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// Stop stops everything, the newest first, and loses nothing: what was
// accepted and not yet released is in the log, and goes out at the next start.
func (p *Process) Stop(context.Context) error {
	errs := []error{p.stages.stop()}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, nc := range p.conns {
		nc.SetClosedHandler(nil)
		nc.Close()
	}
	for i := len(p.close) - 1; i >= 0; i-- {
		errs = append(errs, p.close[i]())
	}
	p.conns, p.close = nil, nil
	return errors.Join(errs...)
}
