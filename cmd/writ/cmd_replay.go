package main

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

type replayCmd struct {
	From    uint64   `placeholder:"SEQ" help:"Compare only verdicts from this sequence on."`
	To      uint64   `placeholder:"SEQ" help:"Read only up to this sequence."`
	Agent   string   `placeholder:"AGENT" help:"Compare only verdicts on this agent."`
	Weights []string `type:"path" sep:"none" placeholder:"FILE" help:"Signed weights that judged some of it; may be given several times."`
}

// Run recomputes every verdict from the record. It begins at the first event,
// for what judged an action is the fold of all that came before.
func (c *replayCmd) Run(ctx context.Context, app *App) error {
	var others []*monitor.Weights
	for _, path := range c.Weights {
		w, err := servingWeights(path, app.Data)
		if err != nil {
			return err
		}
		others = append(others, w)
	}
	read, end, err := app.record(false)
	if err != nil {
		return err
	}
	step, done := app.progress("replayed: event")
	report, err := monitor.Replay(watched(ctx, read, schemas.ReadRequest{From: 1, To: c.To, Limit: pageSize, Data: true}, step),
		func(e *schemas.Event) bool { return e.Seq >= c.From && (c.Agent == "" || e.Agent == c.Agent) }, others...)
	err = errors.Join(err, end())
	done()
	if err != nil {
		return advise(err, "writ ledger verify says whether the ledger is whole")
	}
	if app.JSON {
		err = app.emit(report)
	} else {
		app.replayed(report)
	}
	if err == nil && report.Mismatches > 0 {
		err = errShown
	}
	return err
}

// watched reads the record, and tells how far it has come.
func watched(ctx context.Context, read reader, req schemas.ReadRequest, step func(n, of uint64)) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		var end uint64
		for e, err := range read.events(ctx, req, func(head uint64) { end = head }) {
			if err == nil {
				step(e.Seq, end)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (t *terminal) replayed(r monitor.ReplayReport) {
	if r.OtherModel > 0 {
		t.note("%d verdicts are of versions of the model that are not here, and were not compared: %s; --weights names signed weights", r.OtherModel, plain(strings.Join(r.Missing, " ")))
	}
	if r.Mismatches == 0 {
		t.say("%s: all %d verdicts in %d events come out the same", t.paint(green, "reproduced"), r.Verdicts, r.Events)
		return
	}
	t.say("%s: %d of %d verdicts in %d events come out otherwise, the first at event %d",
		t.paint(red, "NOT REPRODUCED"), r.Mismatches, r.Verdicts, r.Events, r.FirstMismatch)
	t.note("next: writ ledger verify, then writ log --after %d --limit 1 --json shows the verdict that was logged", r.FirstMismatch-1)
}
