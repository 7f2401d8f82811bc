package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/issuer/keys"
)

type serveCmd struct {
	Service string `arg:"" enum:"issuer,broker,ledger,monitor" help:"Which: ${enum}."`
	Creds   string `required:"" type:"path" placeholder:"FILE" help:"The service's credentials, DIR/keys/creds/ROLE.creds."`
	Shadow  string `type:"path" placeholder:"FILE" help:"Of the monitor: weights that judge beside its own and decide nothing; where they differ is logged."`
	Weights string `type:"path" placeholder:"FILE" help:"Of the monitor: signed weights to judge with, as writ monitor sign writes them (default: those built in)."`
	httpFlags
	apartTLSFlags
	verifying
	LogLevel string `enum:"debug,info,warn,error" default:"warn" help:"What to log on stderr: ${enum} (default: ${default})."`
}

func (c *serveCmd) Run(ctx context.Context, app *App) error {
	defer tuneMemory()()
	if err := app.outside("serve"); err != nil {
		return err
	}
	if err := c.verifying.check(); err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return misuse("see writ serve --help", "--log-level: %w", err)
	}
	if c.Shadow != "" && c.Service != "monitor" {
		return misuse("leave --shadow out", "the %s judges nothing", c.Service)
	}
	shadow, err := readShadow(c.Shadow)
	if err != nil {
		return err
	}
	if c.Weights != "" && c.Service != "monitor" {
		return misuse("leave --weights out", "the %s judges nothing", c.Service)
	}
	if err := c.checkHTTP(); err != nil {
		return err
	}
	folder, err := plane.KeysOf(c.Service, c.Creds)
	if err != nil {
		return c.notStarted(ctx, app, err)
	}
	if err := app.demandSealed(folder); err != nil {
		return err
	}
	weights, err := servingWeights(c.Weights, folder)
	if err != nil {
		return err
	}
	p, err := plane.Serve(ctx, plane.ServeOptions{Service: c.Service, Server: app.Server, Creds: c.Creds, Data: app.Data, Weights: weights, Shadow: shadow, VerifyShare: c.share(),
		HTTP: c.HTTP, HTTPURL: c.HTTPURL, TLS: c.files(), Logger: slog.New(slog.NewTextHandler(app.stderr, &slog.HandlerOptions{Level: level}))})
	if err != nil {
		return c.notStarted(ctx, app, err)
	}
	shown := app.serving(c.Service, p.HTTP())
	if c.Service == "issuer" && c.files() == nil {
		app.note("Without TLS: HTTP listens on loopback only, and connections are not encrypted. --tls-cert and --tls-key turn it on.")
	}
	failed := p.Wait(ctx)
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	app.note("Stopping; interrupt again to end at once.")
	stopped := p.Stop(stopCtx)
	if failed != nil {
		failed = advise(fmt.Errorf("the %s failed: %w", c.Service, failed), "start it again: it goes on where it stopped")
	}
	return errors.Join(shown, failed, stopped)
}

// apartTLSFlags give an issuer apart a certificate for its HTTP address. Its NATS
// server is somebody else's and has one of its own.
type apartTLSFlags struct {
	TLSCert     string `name:"tls-cert" type:"path" placeholder:"FILE" and:"tls" help:"Of the issuer's HTTP: certificate with its chain, PEM; read again when it is renewed."`
	TLSKey      string `name:"tls-key" type:"path" placeholder:"FILE" and:"tls" help:"Its key, PEM."`
	TLSClientCA string `name:"tls-client-ca" type:"path" placeholder:"FILE" help:"With --tls-cert: authorities, PEM, whose certificates agents may show, to have capabilities bound to them."`
}

func (f apartTLSFlags) files() *plane.TLSFiles {
	if f.TLSCert == "" {
		return nil
	}
	return &plane.TLSFiles{Cert: f.TLSCert, Key: f.TLSKey, ClientCA: f.TLSClientCA}
}

// checkHTTP keeps the API to the issuer, and to loopback where there is no TLS.
func (c *serveCmd) checkHTTP() error {
	if c.Service == "issuer" {
		if c.TLSClientCA != "" && c.files() == nil {
			return misuse("add --tls-cert and --tls-key", "--tls-client-ca is for TLS")
		}
		if err := plane.CheckAddress(c.HTTP, c.files() != nil); err != nil {
			return misuse("give --http an address on loopback, or --tls-cert and --tls-key; or put a proxy that has TLS before it, and name that with --http-url", "--http: %w", err)
		}
		return nil
	}
	if c.HTTP != defaultHTTP || c.HTTPURL != "" || c.apartTLSFlags != (apartTLSFlags{}) {
		return misuse("leave --http and --http-url out, and with them --tls-cert, --tls-key and --tls-client-ca", "the %s serves nothing over HTTP; the issuer does", c.Service)
	}
	return nil
}

func (c *serveCmd) notStarted(ctx context.Context, app *App, err error) error {
	if ctx.Err() != nil {
		return advise(fmt.Errorf("interrupted before the %s was up", c.Service), "run it again; nothing was lost")
	}
	err = whyNot(app.Data, fmt.Errorf("the %s did not start: %w", c.Service, err))
	switch {
	case errors.Is(err, plane.ErrTLSFiles):
		return advise(err, "give --tls-cert and --tls-key a certificate and its key, and --tls-client-ca authorities, as PEM files")
	case errors.Is(err, plane.ErrCreds), errors.Is(err, os.ErrNotExist), errors.Is(err, keys.ErrPermissions):
		return advise(err, "docs/cli.md says under writ serve which files each service needs")
	case errors.Is(err, nats.ErrAuthorization):
		return advise(err, "give the server the trust that writ init wrote beside these keys, in nats-server/")
	}
	return advise(err, "check that the NATS server runs at "+app.Server+" and that writ provision has been run")
}

// outside demands a server, and no operator.
func (a *App) outside(command string) error {
	if a.Server == "" {
		return misuse("name the NATS server with --server URL", "writ %s works against a NATS server elsewhere", command)
	}
	if a.As != "" {
		return misuse("leave --as out", "writ %s is done with a service's own credentials", command)
	}
	return nil
}

func (t *terminal) serving(service, http string) error {
	if t.json {
		return t.emit(struct {
			Service string `json:"service"`
			HTTP    string `json:"http_url,omitempty"`
			PID     int    `json:"pid"`
		}{service, http, os.Getpid()})
	}
	facts := [][2]string{{"serving", service}}
	if http != "" {
		facts = append(facts, [2]string{"http", http})
	}
	t.facts(facts...)
	return nil
}

type provisionCmd struct{}

func (c *provisionCmd) Run(ctx context.Context, app *App) error {
	if err := app.outside("provision"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	if err := plane.Provision(ctx, app.Server, app.Data); err != nil {
		next := "check that the NATS server runs at " + app.Server + " with JetStream on"
		if errors.Is(err, nats.ErrAuthorization) {
			next = "give the server the trust in " + filepath.Join(app.Data, trustDir)
		}
		return advise(fmt.Errorf("nothing may be served yet: %w", err), next)
	}
	if err := writeTrust(app.Data); err != nil { // an older version's lacks an account
		return advise(err, "check that you may write to "+app.Data)
	}
	if app.JSON {
		return app.emit(struct {
			Provisioned bool `json:"provisioned"`
		}{true})
	}
	app.say("The log, its consumers and the bucket of memories are in place.")
	return nil
}

// trustDir is the folder of what a NATS server elsewhere is given: public, all
// of it.
const trustDir = "nats-server"

// writeTrust writes the operator's JWT and a folder for the server's resolver.
func writeTrust(data string) error {
	trust, err := keys.Open(data)
	if err != nil {
		return err
	}
	dir := filepath.Join(data, trustDir)
	files := map[string]string{"operator.jwt": trust.Operator + "\n"}
	for public, token := range trust.JWTs {
		files[filepath.Join("accounts", public+".jwt")] = token // the resolver takes the file as it is
	}
	if err := os.MkdirAll(filepath.Join(dir, "accounts"), 0o700); err != nil {
		return fmt.Errorf("write the trust of a NATS server: %w", err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("write the trust of a NATS server: %w", err)
		}
	}
	return nil
}
