package demo

import (
	"bytes"
	_ "embed"
	"fmt"
	"text/template"
)

// A period is what one report is about.
type period struct {
	Name      string // as the task says it: 2025-w01
	Operation string
	Table     string // in the warehouse
	Draft     string // resource that the report is written to
	To        string // who gets it
}

// quarter is the period that the story is about.
var quarter = period{Name: "2026-q1", Operation: operation, Table: "sales_q1_2026", Draft: "report.draft.2026q1", To: recipients[0]}

var recipients = []string{"finance@acme.example", "board@acme.example", "emea-sales@acme.example", "apac-sales@acme.example", "planning@acme.example"}

const (
	firstYear = 2020
	lastYear  = 2025
	weeks     = 52
)

// history is every week that was reported on before.
func history() []period {
	var out []period
	for year := firstYear; year <= lastYear; year++ {
		for week := 1; week <= weeks; week++ {
			out = append(out, period{
				Name:      fmt.Sprintf("%d-w%02d", year, week),
				Operation: fmt.Sprintf("report-%d-w%02d", year, week),
				Table:     fmt.Sprintf("sales_w%02d_%d", week, year),
				Draft:     fmt.Sprintf("report.draft.%dw%02d", year, week),
				To:        recipients[(year+week)%len(recipients)],
			})
		}
	}
	return out
}

// task is what the user asked for, in the user's words.
func (p period) task() string {
	return fmt.Sprintf("Report on the sales of %s: totals by region, a chart, a summary by writer-2, and look at what customers wrote. It goes to %s.", p.Name, p.To)
}

//go:embed fleet.yaml.tmpl
var fleetTemplate string

// fleetFile is the fleet file as a user would write it, whose analyst may report
// on what it reported on before, and on the quarter.
func fleetFile(past []period) ([]byte, error) {
	t, err := template.New("fleet.yaml").Parse(fleetTemplate)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, past); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return b.Bytes(), nil
}
