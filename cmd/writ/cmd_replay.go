package main

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/writ-sh/writ/cmd/writ/internal/replay"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

type replayCmd struct {
	From    uint64   `placeholder:"SEQ" help:"Compare only what stands from this sequence on."`
	To      uint64   `placeholder:"SEQ" help:"Read only up to this sequence."`
	Agent   string   `placeholder:"AGENT" help:"Compare only what is about this agent."`
	Into    string   `placeholder:"SUBJECT-PREFIX" help:"Publish the events under this prefix on another NATS server or account, instead of comparing."`
	URL     string   `name:"url" placeholder:"URL" help:"With --into: that server."`
	Creds   string   `type:"path" placeholder:"FILE" help:"With --into: credentials for it, none of this control plane's."`
	Speed   float64  `placeholder:"N" help:"With --into: N times as fast as it happened; as fast as it goes where missing."`
	Weights []string `type:"path" sep:"none" placeholder:"FILE" help:"Signed weights that judged some of it; may be given several times."`
	archiveFlags
}

type replayDoc struct {
	Events        uint64   `json:"events"`
	Verdicts      uint64   `json:"verdicts"`
	Mismatches    uint64   `json:"mismatches"`
	FirstMismatch uint64   `json:"first_mismatch"` // sequence; 0 where there is none
	FirstReason   string   `json:"first_reason"`
	OtherModel    uint64   `json:"other_model"`              // verdicts of another version of the model: folded, not compared
	Missing       []string `json:"missing_models,omitempty"` // these versions
	Decisions     uint64   `json:"decisions"`
	Ends          uint64   `json:"ends"`
	Locks         uint64   `json:"locks"`
	Unchecked     uint64   `json:"unchecked"` // decisions that rest on what the log does not hold
	Open          uint64   `json:"open"`      // ends that were decided and are not in the log yet
}

// Run recomputes every verdict and decision from the record. It begins at the
// first event, for what judged an action is the fold of all that came before.
func (c *replayCmd) Run(ctx context.Context, app *App) error {
	if err := checkSelection(c.Agent, ""); err != nil {
		return err
	}
	if c.To != 0 && c.To < c.From {
		return misuse("give --to at or behind --from", "--to %d is before --from %d", c.To, c.From)
	}
	if c.Into != "" || c.URL != "" || c.Creds != "" || c.Speed != 0 {
		return c.into(ctx, app)
	}
	var others []*monitor.Weights
	for _, path := range c.Weights {
		w, err := servingWeights(path, app.Data)
		if err != nil {
			return err
		}
		others = append(others, w)
	}
	step, done := app.progress("replayed: event")
	events, end, err := app.whole(ctx, c.archiveFlags, schemas.ReadRequest{From: 1, To: c.To, Limit: pageSize, Data: true, Begin: schemas.MaxJudged + 1}, step)
	if err != nil {
		return err
	}
	doc, err := c.compare(events, others)
	err = errors.Join(err, end())
	done()
	if err != nil {
		return advise(err, adviceVerify)
	}
	if app.JSON {
		err = app.emit(doc)
	} else {
		app.replayed(doc)
	}
	if err == nil && doc.Mismatches > 0 {
		err = errShown
	}
	return err
}

func (c *replayCmd) only(e *schemas.Event) bool {
	return e.Seq >= c.From && (c.Agent == "" || e.Agent == c.Agent)
}

// compare gives the log to the monitor and to what is done about its verdicts.
func (c *replayCmd) compare(events iter.Seq2[*schemas.Event, error], others []*monitor.Weights) (replayDoc, error) {
	check := replay.NewCheck(c.only)
	known := c.Agent == ""
	both := func(yield func(*schemas.Event, error) bool) {
		for e, err := range events {
			if err == nil {
				known = known || e.Agent == c.Agent
				err = check.Step(e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
	verdicts, err := monitor.Replay(both, c.only, others...)
	if err == nil && !known {
		err = unknownAgent(c.Agent)
	}
	if err != nil {
		return replayDoc{}, err
	}
	rest, err := check.Report()
	doc := replayDoc{Events: verdicts.Events, Verdicts: verdicts.Verdicts, Decisions: rest.Decisions, Ends: rest.Ends, Locks: rest.Locks,
		Mismatches: verdicts.Mismatches + rest.Mismatches, FirstMismatch: rest.First, FirstReason: rest.Reason,
		OtherModel: verdicts.OtherModel, Missing: verdicts.Missing, Unchecked: rest.Unchecked, Open: rest.Open}
	if first := verdicts.FirstMismatch; first != 0 && (rest.First == 0 || first <= rest.First) {
		doc.FirstMismatch, doc.FirstReason = first, "the verdict comes out otherwise"
	}
	return doc, err
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

func (t *terminal) replayed(r replayDoc) {
	if r.OtherModel > 0 {
		t.note("%d verdicts are of versions of the model that are not here, and were not compared: %s; --weights names signed weights", r.OtherModel, plain(strings.Join(r.Missing, " ")))
	}
	if r.Unchecked > 0 {
		t.note("%d decisions rest on what the log does not hold (a rate, a size, who was connected), and were not compared", r.Unchecked)
	}
	if r.Mismatches == 0 {
		t.say("%s: all %d verdicts, %d decisions, %d ends and %d locks in %d events come out the same",
			t.paint(green, "reproduced"), r.Verdicts, r.Decisions, r.Ends, r.Locks, r.Events)
		return
	}
	t.say("%s: %d of %d verdicts, %d decisions, %d ends and %d locks in %d events come out otherwise, the first at event %d: %s",
		t.paint(red, "NOT REPRODUCED"), r.Mismatches, r.Verdicts, r.Decisions, r.Ends, r.Locks, r.Events, r.FirstMismatch, plain(r.FirstReason))
	t.note("next: writ ledger verify, then writ log --after %d --limit 1 --json shows what was logged", r.FirstMismatch-1)
}
