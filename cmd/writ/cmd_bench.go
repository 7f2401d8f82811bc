package main

import (
	"context"
	"fmt"
	"os"
	"reflect"

	"github.com/writ-sh/writ/cmd/writ/internal/bench"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/monitor"
)

type benchCmd struct {
	Path    benchPathCmd    `cmd:"" help:"Round trips, sends and calls through every part."`
	Ledger  benchLedgerCmd  `cmd:"" help:"Durable appends and verification."`
	Kill    benchKillCmd    `cmd:"" help:"From the command to the victim's last accepted action."`
	Issue   benchIssueCmd   `cmd:"" help:"Issuing and verifying capabilities."`
	Monitor benchMonitorCmd `cmd:"" help:"One assessment."`
}

type benchPathCmd struct {
	Agents int `default:"10" placeholder:"N" help:"Agents enrolled (default: ${default})."`
}

func (c *benchPathCmd) Run(ctx context.Context, app *App) error {
	if c.Agents < 2 {
		return misuse("give --agents 2 or more", "--agents %d is too few", c.Agents)
	}
	defer tuneMemory()()
	r, err := bench.RunPath(ctx, c.Agents, app.doing)
	return app.measured(r, err)
}

type benchKillCmd struct {
	Agents int `default:"1000" placeholder:"N" help:"Agents connected besides the victim (default: ${default})."`
	Rounds int `default:"200" placeholder:"R" help:"Kills (default: ${default})."`

	Descendants int `placeholder:"N" help:"Agents at work whose capabilities derive from the victim's (default: 0)."`
}

func (c *benchKillCmd) Run(ctx context.Context, app *App) error {
	if c.Descendants < 0 || c.Descendants > bench.MaxDescendants {
		return misuse("give --descendants from 0 on", "--descendants %d: 0 to %d are possible", c.Descendants, bench.MaxDescendants)
	}
	if c.Agents < 1 || c.Rounds < 1 {
		return misuse("give --agents and --rounds of 1 or more", "nothing can be measured with %d agents and %d rounds", c.Agents, c.Rounds)
	}
	defer tuneMemory()()
	r, err := bench.RunKill(ctx, c.Agents, c.Rounds, c.Descendants, app.doing)
	return app.measured(r, err)
}

type benchIssueCmd struct{}

func (c *benchIssueCmd) Run(ctx context.Context, app *App) error {
	defer tuneMemory()()
	r, err := bench.RunIssue(ctx, app.doing)
	return app.measured(r, err)
}

type benchLedgerCmd struct {
	Records int `default:"100000" placeholder:"N" help:"Events a round (default: ${default})."`
}

func (c *benchLedgerCmd) Run(ctx context.Context, app *App) error {
	if c.Records < 1 {
		return misuse("give --records 1 or more", "--records %d is too few", c.Records)
	}
	r, err := ledger.Bench(ctx, "", c.Records)
	return app.measured(&r, err)
}

type benchMonitorCmd struct {
	N      int `default:"100000" placeholder:"N" help:"Assessments (default: ${default})."`
	Agents int `default:"2000" placeholder:"N" help:"Agents of the fleet that is simulated (default: ${default})."`
}

func (c *benchMonitorCmd) Run(app *App) error {
	if c.N < 1 {
		return misuse("give --n 1 or more", "--n %d is too few", c.N)
	}
	if c.Agents < 1 {
		return misuse("give --agents 1 or more", "--agents %d is too few", c.Agents)
	}
	folder, err := os.MkdirTemp("", "writ-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	app.doing(fmt.Sprintf("%d agents", c.Agents))
	r, err := monitor.Bench(c.N, c.Agents, folder, bench.ProcessorTime)
	return app.measured(&r, err)
}

// doing tells, on a terminal, what is being done.
func (t *terminal) doing(what string) {
	if t.live {
		fmt.Fprintf(t.stderr, "\r\x1b[K%s …", what)
	}
}

// measured prints figures: the fields of a flat struct, by their JSON names.
func (t *terminal) measured(r any, err error) error {
	if t.live {
		fmt.Fprint(t.stderr, "\r\x1b[K")
	}
	if err != nil {
		return advise(err, "run it again on a machine that does nothing else")
	}
	if t.json {
		return t.emit(r)
	}
	var rows [][2]string
	v := reflect.Indirect(reflect.ValueOf(r))
	for i := range v.NumField() {
		value := fmt.Sprint(v.Field(i).Interface())
		if f, ok := v.Field(i).Interface().(float64); ok {
			value = fmt.Sprintf("%.4g", f)
			if f >= 1000 {
				value = fmt.Sprintf("%.0f", f)
			}
		}
		rows = append(rows, [2]string{v.Type().Field(i).Tag.Get("json"), value})
	}
	t.facts(rows...)
	return nil
}
