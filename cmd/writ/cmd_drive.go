package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/cmd/writ/internal/drive"
	"github.com/writ-sh/writ/cmd/writ/internal/plane"
)

type driveCmd struct {
	Traces     string  `required:"" type:"path" placeholder:"FILE" help:"Recorded runs (NDJSON, may be gzipped)."`
	Tools      string  `type:"path" placeholder:"FILE" help:"Manifest of tools (default: tools.json beside the traces)."`
	Runs       int     `placeholder:"N" help:"Only the first N runs."`
	Rate       float64 `placeholder:"R" help:"Calls a second (default: as fast as they go)."`
	Capability bool    `help:"Issue tokens for what each task needs, instead of for every tool of the run."`
	Baseline   string  `type:"path" placeholder:"FILE" help:"Learn from the harmless runs in this file first, then drive the runs of --model."`
	Model      string  `placeholder:"M" help:"With --baseline: the recorded model that is driven, and that is not learned from."`
}

type driveDoc struct {
	drive.Report
	Data string `json:"data"`
}

// Run drives recorded agents through the running control plane, or else
// through one of its own on the data folder.
func (c *driveCmd) Run(ctx context.Context, app *App) error {
	if c.Runs < 0 || c.Rate < 0 {
		return misuse("leave them out, or give positive ones", "--runs %d and --rate %g can't be negative", c.Runs, c.Rate)
	}
	if (c.Baseline == "") != (c.Model == "") || c.Baseline != "" && c.Capability {
		return misuse("give --baseline FILE --model M, without --capability", "--baseline and --model go together, and with tokens for every tool")
	}
	if c.Tools == "" {
		c.Tools = filepath.Join(filepath.Dir(c.Traces), "tools.json")
	}
	for _, f := range []string{c.Traces, c.Tools} {
		if _, err := os.Stat(f); err != nil {
			return advise(fmt.Errorf("recorded runs: %w", err), "give --traces, and --tools where the manifest is not beside them")
		}
	}
	url, operator, stop, err := c.controlPlane(ctx, app)
	if err != nil {
		return err
	}
	step, done := app.progress("driven: run")
	report, err := drive.Run(ctx, drive.Options{Traces: c.Traces, Tools: c.Tools, Runs: c.Runs, Rate: c.Rate, Capability: c.Capability, Baseline: c.Baseline, Model: c.Model,
		URL: url, Operator: operator, Actor: app.actor, Progress: func(n, of int) { step(uint64(n), uint64(of)) }})
	done()
	if err := errors.Join(err, stop()); err != nil {
		return advise(fmt.Errorf("drive: %w", err), "writ log --data "+app.Data+" shows how far it came")
	}
	doc := driveDoc{*report, app.Data}
	if app.JSON {
		err = app.emit(doc)
	} else {
		app.facts([2]string{"runs", fmt.Sprint(doc.Runs)}, [2]string{"calls", fmt.Sprint(doc.Calls)},
			[2]string{"accepted", fmt.Sprint(doc.Accepted)}, [2]string{"held", fmt.Sprint(doc.Held)}, [2]string{"denied", fmt.Sprint(doc.Denied)},
			[2]string{"lost", fmt.Sprint(doc.Lost)}, [2]string{"p50", fmt.Sprintf("%d µs", doc.P50)}, [2]string{"p99", fmt.Sprintf("%d µs", doc.P99)},
			[2]string{"data", doc.Data})
		app.attacked(doc.Attacked)
	}
	if err == nil && doc.Attacked != nil && doc.Seen > 0 {
		err = advise(fmt.Errorf("%d calls reached the service without being accepted", doc.Seen), "writ log --data "+app.Data+" shows them")
	}
	if err == nil && doc.Lost > 0 {
		err = advise(fmt.Errorf("%d accepted calls came to no end", doc.Lost), "writ log --data "+app.Data+" shows them")
	}
	return err
}

func (t *terminal) attacked(a *drive.Attacked) {
	if a == nil {
		return
	}
	t.say("After %d harmless runs of other models, with %d suspensions vouched for: %d of %d hijacked runs were held, %d by their first injected call (%.3f; eval says %.3f).",
		a.Learned, a.Vouched, a.Held, a.Hijacked, a.ByFirst, a.Share, a.Predicted)
	t.say("%d of %d harmless runs were held. %d calls reached the service without being accepted. %d of %d verdicts are not eval's.",
		a.FalseHeld, a.Harmless, a.Seen, a.Differ, a.Verdicts)
}

// controlPlane finds the running one, or starts one that ends with stop.
func (c *driveCmd) controlPlane(ctx context.Context, app *App) (url string, operator *nats.Conn, stop func() error, err error) {
	if app.Server == "" {
		if _, err := running(app.Data); errors.Is(err, errNotRunning) {
			p, err := plane.Start(ctx, plane.Options{Data: app.Data, Actor: app.actor})
			if err != nil {
				return "", nil, nil, advise(fmt.Errorf("start a control plane: %w", err), "writ doctor --data "+app.Data+" looks for the cause")
			}
			nc, err := p.Operator()
			if err != nil {
				return "", nil, nil, errors.Join(err, p.Stop(ctx))
			}
			return p.URL(), nc, func() error {
				nc.Close()
				return p.Stop(context.WithoutCancel(ctx))
			}, nil
		}
	}
	cl, err := app.dial()
	if err != nil {
		return "", nil, nil, err
	}
	return cl.nc.ConnectedUrl(), cl.nc, func() error {
		cl.close()
		return nil
	}, nil
}
