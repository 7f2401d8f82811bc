package main

import (
	"fmt"
	"os"

	"github.com/writ-sh/writ/issuer/guard"
)

type policyCmd struct {
	Check  policyCheckCmd  `cmd:"" help:"Read and validate guard rails."`
	Test   policyTestCmd   `cmd:"" help:"Hold guard rails against fixtures."`
	Schema policySchemaCmd `cmd:"" help:"Print the Cedar schema of guard rails."`
}

type policyCheckCmd struct {
	File string `arg:"" type:"path" help:"Cedar policies."`
}

func readRails(path string) (*guard.Rails, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, advise(fmt.Errorf("read the guard rails: %w", err), "name a file of Cedar policies that can be read")
	}
	rails, err := guard.Parse(path, string(text))
	if err != nil {
		return nil, advise(fmt.Errorf("the guard rails are not sound:\n%w", err), "correct the policies named above; writ policy schema says what they may speak of")
	}
	return rails, nil
}

func (c *policyCheckCmd) Run(app *App) error {
	rails, err := readRails(c.File)
	if err != nil {
		return err
	}
	enforced, shadow := rails.Policies()
	if app.JSON {
		return app.emit(struct {
			OK       bool     `json:"ok"`
			Enforced []string `json:"enforced"`
			Shadow   []string `json:"shadow"`
		}{true, list(enforced), list(shadow)})
	}
	app.say("%s: %d policies enforced, %d in shadow mode.", app.paint(green, "sound"), len(enforced), len(shadow))
	return nil
}

type policyTestCmd struct {
	File     string `arg:"" type:"path" help:"Cedar policies."`
	Fixtures string `required:"" type:"path" placeholder:"FIXTURES" help:"YAML: a list of {name, scope, expect, …}."`
}

func (c *policyTestCmd) Run(app *App) error {
	rails, err := readRails(c.File)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(c.Fixtures)
	if err != nil {
		return advise(fmt.Errorf("read the fixtures: %w", err), "name a file of fixtures that can be read")
	}
	fixtures, err := guard.ParseFixtures(c.Fixtures, data)
	if err != nil {
		return advise(err, "correct the fixture named above")
	}
	results, failed := rails.Test(fixtures), 0
	for _, r := range results {
		if !r.OK {
			failed++
		}
	}
	if app.JSON {
		err = app.emit(struct {
			OK      bool           `json:"ok"`
			Results []guard.Result `json:"results"`
		}{failed == 0, results})
	} else {
		app.fixtures(results)
	}
	if err == nil && failed > 0 {
		err = advise(fmt.Errorf("%d of %d fixtures are not decided as expected", failed, len(results)), "correct the policies or the fixtures")
	}
	return err
}

func (t *terminal) fixtures(results []guard.Result) {
	rows := make([][]cell, len(results))
	for i, r := range results {
		verdict := cell{"ok", green}
		if !r.OK {
			verdict = cell{"FAILED", red}
		}
		rows[i] = []cell{verdict, text(r.Name), text(r.Scope), text(r.Expected), text(r.Observed)}
	}
	t.table([]string{"", "fixture", "scope", "expected", "observed"}, rows)
}

type policySchemaCmd struct{}

func (c *policySchemaCmd) Run(app *App) error {
	if app.JSON {
		return app.emit(struct {
			Schema string `json:"schema"`
		}{guard.Schema})
	}
	_, err := fmt.Fprint(app.stdout, guard.Schema)
	return err
}
