// Package plane wires the services together: all in one process with an
// embedded NATS server (Start), or one of them against a server elsewhere
// (Serve). Each has its own user, its own connection and its least rights in
// both, so that all in one is no weaker a model than apart.
//
// The straight line, in the order in which it is started (and, reversed, in
// which it is stopped):
//
//	server · ledger → release · monitor · issuer · memory · intake
//
// Intake is last: nothing is taken in before all that stands behind it works.
// Apart, the order is free. With the monitor down actions are refused; with
// the ledger down they are accepted, and neither delivered nor answered until
// it is back; with intake down there is nobody to take them.
package plane

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/monitor"
)

// Options say what to run. The zero value of each field but Data is good.
type Options struct {
	Data        string           // the data folder; initialised where it is empty
	TrustDomain string           // of a new data folder
	Listen      string           // HOST:PORT of the NATS server; 127.0.0.1 and a free port
	HTTP        string           // HOST:PORT of the HTTP server; 127.0.0.1 and a free port
	HTTPURL     string           // scheme://host[:port] of a proxy in front of it
	TLS         *ca.Config       // turns TLS on, where it is off; where it is on, what is chosen here replaces what was
	Weights     *monitor.Weights // that judge; those built in where nil
	Shadow      *monitor.Weights // that judge beside those that count
	Fleet       string           // a fleet file to apply
	Actor       string           // in whose name it is applied
	Retention   time.Duration    // how long the log keeps an event; embed.Retention where 0
	VerifyShare float64          // of one core, for verifying the ledger continuously, at most 1; 0: not at all
	Witnesses   string           // a witness policy to take over into the data folder
	Logger      *slog.Logger
}

// DefaultTrustDomain is that of a data folder that names none.
const DefaultTrustDomain = "writ.local"

// A Plane is a running control plane.
type Plane struct {
	*Process
	o      Options
	server *embed.Server
	issuer *issuer.Issuer
	tls    *tls.Config // nil where TLS is off
	hosts  []string    // for which its certificate is, beside where it listens

	announced bool // runtime.json is ours
}

// Start starts everything and returns when agents can connect. What was
// started is stopped again where something fails.
func Start(ctx context.Context, o Options) (_ *Plane, err error) {
	p := &Plane{o: o, Process: newProcess(o.Data, o.Data, o.Logger)}
	p.weights, p.shadow = o.Weights, o.Shadow
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		}
	}()
	p.verifyShare, p.retention = o.VerifyShare, cmp.Or(o.Retention, embed.Retention)
	if err := p.prepare(); err != nil {
		return nil, err
	}
	if err := p.secure(); err != nil {
		return nil, err
	}
	host, port, err := split(o.Listen, p.tls != nil)
	if err != nil {
		return nil, err
	}
	if p.server, err = embed.Start(embed.Options{Data: o.Data, Host: host, Port: port, DontListen: true, TLS: p.tls, Retention: o.Retention, Logger: p.log}); err != nil {
		return nil, err
	}
	p.inside = p.server
	// The folder is ours now. A process that was killed may have left word of
	// where it listened.
	if err := os.Remove(p.runtimePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start: %w", err)
	}
	if err := p.server.Provision(ctx); err != nil {
		return nil, err
	}
	if err := setWitnesses(o.Data, o.Witnesses); err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) error{
		p.startLedger, p.startMonitor, p.startPlaneIssuer, p.startBroker, p.applyFleet, p.listen, p.startPlaneHTTP, p.announce,
	} {
		if err := start(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// prepare makes the keys of an empty data folder.
func (p *Plane) prepare() error {
	if p.o.Data == "" {
		return errors.New("no data folder is named")
	}
	domain, err := p.trustDomain()
	if err != nil {
		return err
	}
	if err := keys.Init(p.o.Data, domain); err != nil && !errors.Is(err, keys.ErrExists) {
		return err
	}
	return nil
}

// secure turns TLS on where that is asked for or was, and makes the
// certificate of this process.
func (p *Plane) secure() error {
	trust, err := keys.Open(p.o.Data)
	if err != nil {
		return err
	}
	if p.o.TLS != nil {
		if err := ca.Enable(p.o.Data, trust.TrustDomain, *p.o.TLS, time.Now()); err != nil {
			return err
		}
	}
	if err := ca.Prepare(p.o.Data, trust.TrustDomain, time.Now()); err != nil {
		return err
	}
	authority, err := ca.Open(p.o.Data, trust.TrustDomain)
	if err != nil || authority == nil {
		return err
	}
	var hosts []string
	for _, address := range []string{p.o.Listen, p.o.HTTP} {
		host, _, err := split(address, true)
		if err != nil {
			return err
		}
		hosts = append(hosts, host)
	}
	p.authority, p.hosts = authority, authority.Hosts()
	p.tls, err = authority.ServerTLS(p.log, time.Now, hosts...)
	return err
}

// startPlaneHTTP serves the issuer's API beside the ledger's tiles. Webhooks read
// with the right to read the log that there is with the least beside it.
func (p *Plane) startPlaneHTTP(ctx context.Context) error {
	return p.startHTTP(ctx, p.issuer, face{address: p.o.HTTP, proxy: p.o.HTTPURL, hosts: p.hosts, tls: p.tls, tiles: p.ledger.Tile, reader: keys.RoleLedger})
}

// TLS is the configuration that the NATS server and the HTTP port share, nil
// where TLS is off. Clients may show a certificate; if one does, it is an
// agent's.
func (p *Plane) TLS() *tls.Config { return p.tls }

// listen opens the server to agents: after the issuer has pushed every lock, and
// when all that takes their messages works.
func (p *Plane) listen(context.Context) error { return p.server.Listen() }

// URL is where agents connect.
func (p *Plane) URL() string { return p.server.URL() }

// Stop stops everything, the server last, and loses nothing: what was accepted
// and not yet released is in the log, and goes out at the next start.
func (p *Plane) Stop(ctx context.Context) error {
	errs := []error{p.Process.Stop(ctx)}
	if p.announced {
		if err := os.Remove(p.runtimePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("stop: %w", err))
		}
	}
	if p.server != nil {
		p.server.Stop()
	}
	return errors.Join(errs...)
}

func (p *Plane) runtimePath() string { return filepath.Join(p.o.Data, "runtime.json") }
