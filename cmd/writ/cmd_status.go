package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/schemas"
)

type statusCmd struct {
	Agent string `arg:"" optional:"" help:"One agent or service of the fleet."`
	paging
}

type statusDoc struct {
	Agents   []schemas.AgentStatus `json:"agents"`
	Lockdown string                `json:"lockdown,omitempty"` // why nobody may act
	Next     string                `json:"next,omitempty"`
	Expiring []schemas.Expiry      `json:"expiring"` // credentials and keys that end soon
	Ledger   *schemas.Head         `json:"ledger"`   // null where the ledger doesn't answer
	Services []schemas.Health      `json:"services"`

	after string // where the page begins
}

func (c *statusCmd) Run(ctx context.Context, app *App) error {
	page, err := c.request()
	if err != nil {
		return err
	}
	cl, err := app.dial()
	if err != nil {
		return err
	}
	defer cl.close()
	reply, err := ask[schemas.StatusReply](ctx, cl, schemas.CtlStatus, schemas.StatusRequest{AgentID: c.Agent, PageRequest: page})
	if err != nil {
		return err
	}
	doc := statusDoc{Agents: list(reply.Agents), Lockdown: reply.Lockdown, Next: reply.Next, Expiring: list(reply.Expiring), after: page.After}
	for i := range doc.Agents {
		doc.Agents[i].Operations = list(doc.Agents[i].Operations)
	}
	head, ledgerErr := ask[schemas.Head](ctx, cl, schemas.CtlHead, schemas.HeadRequest{})
	if ledgerErr == nil {
		doc.Ledger = &head
	}
	if doc.Services, err = cl.health(ctx); err != nil {
		return err
	}
	doc.Services = withMissing(doc.Services)
	slices.SortFunc(doc.Services, func(a, b schemas.Health) int { return cmp.Compare(a.Service, b.Service) })
	if app.JSON {
		return app.emit(doc)
	}
	app.status(doc)
	app.expiring(doc.Expiring)
	if ledgerErr != nil {
		app.note("The ledger does not answer: %s", plain(ledgerErr.Error()))
	}
	return nil
}

// expiring says what ends soon, and what to do; of many the first.
func (t *terminal) expiring(list []schemas.Expiry) {
	const shown = 10
	for _, x := range list[:min(len(list), shown)] {
		in := "has expired"
		if left := x.Expires.Sub(t.now()); left > 0 {
			in = "expires in " + span(left)
		}
		t.note("The %s of %s %s; %s", plain(x.Kind), plain(x.ID), in, plain(x.Renew))
	}
	if more := len(list) - shown; more > 0 {
		t.note("%d more expire soon; writ status --json names them.", more)
	}
}

func (t *terminal) status(doc statusDoc) {
	if doc.Lockdown != "" {
		t.say("%s: %s", t.paint(red, "The fleet is locked down"), plain(doc.Lockdown))
	}
	var rows [][]cell
	for _, a := range doc.Agents {
		rows = append(rows, []cell{text(a.AgentID), text(a.Kind), lockCell(a.State), riskCell(a.Risk), text(a.Connections),
			text(a.LastSeq), text(strings.Join(a.Operations, " ")), text(a.Reason)})
	}
	switch {
	case len(rows) > 0:
		t.table([]string{"id", "kind", "state", "risk", "conns", "last seq", "operations", "reason"}, rows)
	case doc.after != "":
		t.note("The fleet has nobody behind %s.", plain(doc.after))
	default:
		t.note("The fleet is empty; declare one with writ apply -f fleet.yaml.")
	}
	if doc.Next != "" {
		t.note("There are more: --after %s", doc.Next)
	}
	if doc.Ledger != nil {
		t.facts([2]string{"ledger", strconv.FormatUint(doc.Ledger.Size, 10) + " records, root " + doc.Ledger.Root})
		t.verifiedLine(doc.Ledger.Verified)
		t.published(doc.Ledger.Published)
	}
	var services []string
	for _, s := range doc.Services {
		one := s.Service + " " + t.paint(green, "ok") + " at " + strconv.FormatUint(s.Seq, 10)
		if !s.OK {
			one = s.Service + " " + t.paint(red, "failed") + ": " + plain(s.Error)
		}
		if s.Warning != "" {
			t.note("The %s warns: %s", s.Service, plain(s.Warning))
		}
		services = append(services, one)
	}
	t.say("%s", t.paint(dim, "services")+"  "+strings.Join(services, ", "))
}

// verifiedLine tells what the continuous verification found.
func (t *terminal) verifiedLine(v *schemas.Verified) {
	switch {
	case v == nil:
	case v.OK:
		t.facts([2]string{"verified", t.paint(green, "whole") + ", " + strconv.FormatUint(v.Records, 10) + " records, at " + v.Time.Format(time.RFC3339)})
	default:
		t.facts([2]string{"verified", t.paint(red, "NOT WHOLE") + " at event " + seqText(v.FirstBadSeq) + ": " + plain(v.Error)})
		t.note("next: keep a copy of the data folder as it is, and see docs/operations.md")
	}
}

// withMissing adds the services that did not answer.
func withMissing(answered []schemas.Health) []schemas.Health {
	for _, name := range plane.Services {
		if !slices.ContainsFunc(answered, func(h schemas.Health) bool { return h.Service == name }) {
			answered = append(answered, schemas.Health{Service: name, Error: "it does not answer"})
		}
	}
	return answered
}

// heaviest sorts factors, those that raise the score most first.
func heaviest(factors []schemas.Factor) []schemas.Factor {
	out := slices.Clone(factors)
	slices.SortStableFunc(out, func(a, b schemas.Factor) int { return cmp.Compare(b.Points, a.Points) })
	return out
}
