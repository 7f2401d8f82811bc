package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/writ-sh/writ/cmd/writ/internal/replay"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// adviceInto is what to do where events can't be repeated there.
const adviceInto = "give a server or an account that no control plane uses, and a prefix such as sandbox"

type repeatedDoc struct {
	Into   string `json:"into"`
	Events uint64 `json:"events"` // published
}

// into repeats a span elsewhere, for a debugger or a new detector.
func (c *replayCmd) into(ctx context.Context, app *App) error {
	switch {
	case c.Into == "" || c.URL == "":
		return misuse("give --into SUBJECT-PREFIX and --url URL", "--url, --creds and --speed are about --into")
	case c.Speed < 0:
		return misuse("give --speed above 0, or leave it out", "--speed %g can't be negative", c.Speed)
	}
	if err := replay.CheckPrefix(c.Into); err != nil {
		return advise(fmt.Errorf("--into %q: %w", c.Into, err), adviceInto)
	}
	target := replay.Target{URL: c.URL, Prefix: c.Into, Speed: c.Speed}
	if err := c.elsewhere(app, &target); err != nil {
		return err
	}
	read, end, err := app.record(false)
	if err != nil {
		return err
	}
	if err := read.knows(ctx, c.Agent); err != nil {
		return errors.Join(err, end())
	}
	step, done := app.progress("repeated: event")
	req := schemas.ReadRequest{From: max(c.From, 1), To: c.To, Agent: c.Agent, Limit: pageSize, Data: true}
	n, err := target.Emit(ctx, watched(ctx, read, req, step))
	err = errors.Join(err, end())
	done()
	if err != nil {
		return advise(err, adviceInto)
	}
	if app.JSON {
		return app.emit(repeatedDoc{c.Into, n})
	}
	app.say("%d events were repeated under %s.ev.", n, plain(c.Into))
	return nil
}

// elsewhere demands that neither server nor credentials are the control
// plane's.
func (c *replayCmd) elsewhere(app *App, target *replay.Target) error {
	own := []string{app.Server}
	if r, err := running(app.Data); err == nil {
		own = append(own, r.NATS)
	}
	for _, u := range own {
		if u != "" && sameHost(u, c.URL) {
			return advise(fmt.Errorf("%s: %w", c.URL, replay.ErrOwn), adviceInto)
		}
	}
	if c.Creds == "" {
		return nil
	}
	creds, err := bus.ReadCreds(c.Creds)
	if err != nil {
		return advise(err, "give a .creds file of the sandbox's account with --creds")
	}
	var trust map[string]string
	if t, err := keys.Open(app.Data); err == nil {
		trust = t.Accounts // where there is no folder, the names in the credentials tell
	}
	if err := replay.CheckCreds(creds, trust); err != nil {
		return advise(fmt.Errorf("%s: %w", c.Creds, err), adviceInto)
	}
	target.Creds = creds
	return nil
}

func sameHost(a, b string) bool {
	u, uerr := url.Parse(a)
	v, verr := url.Parse(b)
	return uerr == nil && verr == nil && u.Host == v.Host
}
