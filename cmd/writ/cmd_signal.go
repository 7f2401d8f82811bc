package main

import (
	"context"
	"strconv"

	"github.com/writ-sh/writ/schemas"
)

type signalCmd struct {
	Agent  string `arg:"" help:"An agent of the fleet."`
	Source string `required:"" placeholder:"ID" help:"Who says so: a source under signals in the fleet file."`
	Event  string `required:"" placeholder:"EVENT" help:"What: an event that the source is declared with."`
	Points *int   `placeholder:"N" help:"For fewer points of risk than are declared; 0 takes back what was said."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log and in verdicts."`
}

func (c *signalCmd) Run(ctx context.Context, app *App) error {
	for what, id := range map[string]string{"agent": c.Agent, "source": c.Source, "event": c.Event} {
		if err := schemas.CheckID(what, id); err != nil {
			return misuse("give names as they stand in the fleet file", "%w", err)
		}
	}
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := call[schemas.SignalReply](ctx, app, schemas.CtlSignal,
		schemas.SignalRequest{AgentID: c.Agent, Source: c.Source, Event: c.Event, Points: c.Points, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("%s said %s of %s.", c.Source, c.Event, c.Agent)
	app.facts([2]string{"event", strconv.FormatUint(r.Seq, 10)}, [2]string{"points", strconv.Itoa(r.Points)}, [2]string{"risk", strconv.Itoa(r.Risk)})
	return nil
}
