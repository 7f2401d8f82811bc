package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

type warrantCmd struct {
	Make  warrantMakeCmd  `cmd:"" help:"Sign what kills one agent even where the issuer is down, and keep it."`
	Serve warrantServeCmd `cmd:"" operator:"no" help:"Kill by a death warrant: nothing but a NATS server has to run."`
}

type warrantMakeCmd struct {
	Agent  string `arg:"" help:"An agent of the fleet."`
	Out    string `required:"" type:"path" placeholder:"FILE" help:"Where to keep the warrant: a new file."`
	Creds  string `placeholder:"FILE" type:"path" help:"Also write the credentials with which it is served, in clear: a new file. A copy of those in a sealed folder opens nothing."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log, now and where the warrant is served."`
}

func (c *warrantMakeCmd) Run(ctx context.Context, app *App) error {
	if err := schemas.CheckID("agent", c.Agent); err != nil {
		return misuse("writ status lists the agents", "%w", err)
	}
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	for _, path := range []string{c.Out, c.Creds} {
		if _, err := os.Lstat(path); path != "" && err == nil {
			return advise(fmt.Errorf("%s is there already, and stays as it is", path), "name another file")
		}
	}
	system, err := c.system(app)
	if err != nil {
		return err
	}
	r, err := call[schemas.WarrantReply](ctx, app, schemas.CtlWarrant, schemas.WarrantRequest{AgentID: c.Agent, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if err := writeSecret(c.Out, []byte(r.JWT+"\n")); err != nil {
		return err
	}
	if c.Creds != "" {
		if err := writeSecret(c.Creds, system); err != nil {
			return err
		}
	}
	if app.JSON {
		return app.emit(struct {
			AgentID string `json:"agent_id"`
			Account string `json:"account"`
			Seq     uint64 `json:"seq"`
			Out     string `json:"out"`
		}{r.AgentID, r.Account, r.Seq, c.Out})
	}
	app.say("%s kills %s, as it was enrolled until now, and nobody else.", c.Out, r.AgentID)
	with := "a copy of keys/creds/system.creds"
	switch {
	case c.Creds != "":
		with = c.Creds
	case app.Server == "" && keys.IsSealed(app.Data):
		with = "what --creds FILE writes (the keys here are sealed, and a copy of keys/creds/system.creds opens nothing by itself)"
	}
	app.note("next: keep it, and %s, where you can reach the NATS server when all else is down: writ warrant serve %s --server URL --as FILE", with, c.Out)
	return nil
}

// system are the credentials of the system account, where they are to be written.
func (c *warrantMakeCmd) system(app *App) ([]byte, error) {
	if c.Creds == "" {
		return nil, nil
	}
	if app.Server != "" {
		return nil, misuse("run it where the data folder is, or leave --creds out", "the credentials of the system account are not reached over NATS")
	}
	creds, err := keys.Creds(app.Data, keys.RoleSystem)
	if err != nil {
		return nil, advise(err, "name the data folder with --data")
	}
	return append(creds, '\n'), nil
}

type warrantServeCmd struct {
	File string `arg:"" type:"existingfile" help:"What writ warrant make wrote."`
}

func (c *warrantServeCmd) Run(ctx context.Context, app *App) error {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return advise(err, "name the file that writ warrant make wrote")
	}
	token := strings.TrimSpace(string(b))
	d, here, err := readWarrant(app.Data, token)
	if err != nil {
		return advise(fmt.Errorf("%s: %w", c.File, err), "writ kill "+orAgent(d.Name)+" needs none, where the issuer runs")
	}
	nc, err := c.dial(app)
	if err != nil {
		return err
	}
	defer nc.Close()
	if here { // before it is served: whatever then happens, the issuer knows
		if err := plane.KeepWarrant(app.Data, d.Account, token); err != nil {
			return advise(err, "check that you may write to "+app.Data)
		}
	}
	served, err := issuer.ServeWarrant(ctx, nc, token)
	if err != nil {
		return advise(fmt.Errorf("the warrant is not carried out in full: %w", err), "serve it again; --as must be the credentials keys/creds/system.creds of this control plane")
	}
	why := ""
	if served.Before {
		why = c.before(ctx, app, d.Name, here)
	}
	if app.JSON {
		err = app.emit(struct {
			AgentID string   `json:"agent_id"`
			Account string   `json:"account"`
			Nodes   []string `json:"nodes"`
			Closed  int      `json:"connections_closed"`
			Killed  bool     `json:"killed"`
			Why     string   `json:"error,omitempty"`
		}{d.Name, d.Account, list(served.Nodes), served.Closed, !served.Before, why})
		if why != "" {
			err = errors.Join(err, errShown)
		}
		return err
	}
	if why != "" {
		return advise(errors.New(why), "writ kill "+d.Name+" kills it as it is now, where the issuer runs; writ warrant make "+d.Name+" makes a warrant for it as it is now")
	}
	app.say("%s is killed on %s; %d connections were closed.", d.Name, strings.Join(served.Nodes, " "), served.Closed)
	app.note("The issuer logs it as soon as it runs, and cancels what is pending.")
	return nil
}

// before says what it means that the account was killed before: the servers know
// accounts alone, and the issuer, where it runs, who bears the name now.
func (c *warrantServeCmd) before(ctx context.Context, app *App, name string, here bool) string {
	if here {
		status, err := call[schemas.StatusReply](ctx, &App{globals: globals{Data: app.Data}, terminal: app.terminal}, schemas.CtlStatus, schemas.StatusRequest{AgentID: name})
		if err == nil && len(status.Agents) == 1 && status.Agents[0].State != schemas.Killed {
			return "it is of an earlier incarnation of " + name + ", which is dead; nothing was killed"
		}
		if err == nil && len(status.Agents) == 1 {
			return name + " was killed before; nothing was killed now"
		}
	}
	return "the account of this warrant was killed before; nothing was killed now: if " + name + " was enrolled anew since, the warrant is of an earlier incarnation"
}

func orAgent(name string) string {
	if schemas.CheckID("agent", name) != nil {
		return "AGENT"
	}
	return name
}

// readWarrant looks whether a warrant is what it must be, and whether this is
// the machine that has the control plane's keys: where it is not, the servers
// alone say who signed it.
func readWarrant(data, token string) (d accounts.Death, here bool, err error) {
	trust, err := keys.Open(data)
	if err != nil {
		d, _, err = accounts.ReadDeath(token)
		return d, false, err
	}
	d, err = accounts.WarrantOf(trust, token)
	return d, true, err
}

// dial connects to the system account.
func (c *warrantServeCmd) dial(app *App) (*nats.Conn, error) {
	o := bus.Options{Role: string(keys.RoleSystem), URL: app.Server}
	if app.Server == "" {
		r, err := running(app.Data)
		if err != nil {
			return nil, err
		}
		o.URL = r.NATS
	}
	var err error
	if app.As != "" {
		o.Creds, err = bus.ReadCreds(app.As)
	} else {
		o.Creds, err = keys.Creds(app.Data, keys.RoleSystem)
	}
	if err != nil {
		return nil, advise(err, "give a copy of keys/creds/system.creds with --as")
	}
	if bundle := ca.BundlePath(app.Data); strings.HasPrefix(o.URL, "tls://") {
		if _, err := os.Stat(bundle); err == nil {
			o.Options = append(o.Options, nats.RootCAs(bundle))
		}
	}
	nc, err := bus.Connect(o)
	if err != nil {
		next := "check that the NATS server runs and that the address is right: " + o.URL
		if errors.Is(err, nats.ErrAuthorization) {
			next = "the credentials must be keys/creds/system.creds of this control plane; an upgrade makes others"
		}
		return nil, advise(err, next)
	}
	return nc, nil
}
