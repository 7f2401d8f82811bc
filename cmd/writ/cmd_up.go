package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

type upCmd struct {
	Listen  string `placeholder:"HOST:PORT" default:"127.0.0.1:4222" help:"Where agents connect (NATS); port 0 picks one (default: ${default})."`
	Fleet   string `type:"path" placeholder:"FLEET" help:"Fleet file to apply at the start."`
	Shadow  string `type:"path" placeholder:"FILE" help:"Weights that judge beside the monitor's own and decide nothing; where they differ is logged."`
	Weights string `type:"path" placeholder:"FILE" help:"Signed weights to judge with, as writ monitor sign writes them (default: those built in)."`
	Witness string `name:"witness-policy" type:"path" placeholder:"FILE" help:"Witness policy to take over into the data folder: whose cosignatures publish a checkpoint."`
	httpFlags
	verifying
	retaining
	LogLevel string `enum:"debug,info,warn,error" default:"warn" help:"What to log on stderr: ${enum} (default: ${default})."`
	tlsFlags
}

// defaultHTTP is where the issuer's API is served.
const defaultHTTP = "127.0.0.1:7422"

// httpFlags say where the issuer is reached over HTTP.
type httpFlags struct {
	HTTP    string `name:"http" placeholder:"HOST:PORT" default:"${http}" help:"Where the issuer's API, public keys, health and metrics are served; port 0 picks one (default: ${default})."`
	HTTPURL string `name:"http-url" placeholder:"URL" help:"Address of a proxy in front of that, as clients know it (scheme://host): their proofs name it."`
}

// check refuses an address where nobody may listen.
func (f httpFlags) check(secure bool) error {
	if err := plane.CheckAddress(f.HTTP, secure); err != nil {
		return misuse("give --http an address like 127.0.0.1:4222; port 0 picks one", "--http: %w", err)
	}
	if f.HTTPURL != "" {
		if err := plane.CheckProxy(f.HTTPURL); err != nil {
			return misuse("give --http-url the proxy's address as clients know it, like https://writ.example", "--http-url: %w", err)
		}
	}
	return nil
}

// verifying says how much of a core the ledger's continuous verification may
// take.
type verifying struct {
	VerifyShare int `placeholder:"PERCENT" default:"5" help:"Percent of one core in which the ledger is verified, again and again; 0 switches that off (default: ${default})."`
}

func (v verifying) check() error {
	if v.VerifyShare < 0 || v.VerifyShare > 100 {
		return misuse("give 0 to 100 percent of one core; 0 switches it off", "--verify-share %d is no share", v.VerifyShare)
	}
	return nil
}

func (v verifying) share() float64 { return float64(v.VerifyShare) / 100 }

// stopWithin bounds an orderly end.
const stopWithin = 10 * time.Second

func (c *upCmd) Run(ctx context.Context, app *App) error {
	defer tuneMemory()()
	if app.Server != "" {
		return misuse("leave --server and --as out", "writ up runs a control plane of its own")
	}
	secure, err := c.config()
	if err != nil {
		return err
	}
	if err := app.demandSealed(app.Data); err != nil {
		return err
	}
	if err := plane.CheckAddress(c.Listen, c.TLS || ca.Exists(app.Data)); err != nil {
		return misuse("give --listen an address like 127.0.0.1:4222; port 0 picks one", "--listen: %w", err)
	}
	if err := c.httpFlags.check(c.TLS || ca.Exists(app.Data)); err != nil {
		return err
	}
	if err := c.verifying.check(); err != nil {
		return err
	}
	if err := c.retaining.check(); err != nil {
		return err
	}
	if c.Fleet != "" {
		if _, err := readFleet(c.Fleet); err != nil {
			return err
		}
	}
	if r, err := running(app.Data); err == nil {
		return advise(fmt.Errorf("a control plane runs on %s already: it is held by process %d, at %s", app.Data, r.PID, r.NATS),
			"writ status --data "+app.Data+" shows it; stop it, or choose another folder with --data")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return misuse("see writ up --help", "--log-level: %w", err)
	}
	shadow, err := readShadow(c.Shadow)
	if err != nil {
		return err
	}
	weights, err := servingWeights(c.Weights, app.Data)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(app.stderr, &slog.HandlerOptions{Level: level}))
	p, err := plane.Start(ctx, plane.Options{Data: app.Data, Listen: c.Listen, HTTP: c.HTTP, HTTPURL: c.HTTPURL, TLS: secure, Fleet: c.Fleet, Weights: weights, Shadow: shadow, Actor: app.actor,
		Witnesses: c.Witness, VerifyShare: c.share(), Logger: log})
	if err != nil {
		return c.notStarted(ctx, app, err)
	}
	shown := app.listening(p, app.Data)
	if p.TLS() == nil {
		app.note("Without TLS: it listens on loopback only, and connections are not encrypted. writ up --tls turns it on.")
	}
	retained, over := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { c.run(retained, app, log) })
	failed := p.Wait(ctx)
	over()
	keeping.Wait()
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	app.note("Stopping; interrupt again to end at once.")
	stopped := p.Stop(stopCtx)
	if failed != nil {
		failed = advise(whyNot(app.Data, fmt.Errorf("a service failed, and everything was stopped: %w", failed)),
			"writ doctor --data "+app.Data+" looks for the cause; writ up goes on where it stopped")
	}
	return errors.Join(shown, failed, stopped)
}

func (t *terminal) listening(p *plane.Plane, data string) error {
	if t.json {
		return t.emit(struct {
			NATS string `json:"nats_url"`
			HTTP string `json:"http_url"`
			PID  int    `json:"pid"`
			Data string `json:"data"`
		}{p.URL(), p.HTTP(), os.Getpid(), data})
	}
	t.facts([2]string{"agents", p.URL()}, [2]string{"http", p.HTTP()}, [2]string{"data", data})
	return nil
}

func (c *upCmd) notStarted(ctx context.Context, app *App, err error) error {
	if ctx.Err() != nil {
		return advise(errors.New("interrupted before the control plane was up"), "run writ up again; nothing was lost")
	}
	err = fmt.Errorf("the control plane did not start: %w", err)
	if errors.Is(err, embed.ErrHeld) {
		return advise(err, "writ status --data "+app.Data+" shows the one that runs")
	}
	var refusal *schemas.Refusal
	if errors.As(err, &refusal) && refusal.Code != schemas.CodeUnavailable {
		return advise(err, "correct what was refused, and run writ up again")
	}
	return advise(whyNot(app.Data, err), "writ doctor --data "+app.Data+" looks for the cause")
}

// whyNot advises what to do where a control plane can't start, or go on, for a
// cause that is known.
func whyNot(data string, err error) error {
	switch {
	case errors.Is(err, plane.ErrListenHTTP):
		return advise(err, "choose another address with --http; port 0 picks one")
	case errors.Is(err, embed.ErrListen):
		return advise(err, "choose another address with --listen; port 0 picks one")
	case errors.Is(err, plane.ErrWitnesses):
		return advise(err, "correct the policy that --witness-policy names, or that lies in "+filepath.Join(data, plane.WitnessPolicy)+"; docs/operations.md shows one")
	case errors.Is(err, fs.ErrPermission):
		return advise(err, adviceOwner(data))
	case errors.Is(err, ledger.ErrOpen), errors.Is(err, ledger.ErrHalted):
		return advise(err, "copy the folder, and look at the copy: writ ledger verify --data COPY names the first bad event; \"When it halts\" in docs/operations.md says what to do about each")
	}
	return err
}

// adviceOwner is what to do about files that may not be read or written.
func adviceOwner(data string) string {
	return "run it as the user whom " + data + " belongs to, or give it to the one who runs it: chown -R USER " + data
}

// tuneMemory lets the heap grow to five times what is live, and to half a GiB
// at least, before it is collected, until the caller calls what it returns: a
// control plane's live heap is small, and its garbage is what passes through.
// GOGC, where it is set, says otherwise.
func tuneMemory() (until func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	debug.SetGCPercent(400)
	ballast := make([]byte, 96<<20) // counts as live; never touched, it takes addresses and no memory
	return func() { runtime.KeepAlive(ballast) }
}
