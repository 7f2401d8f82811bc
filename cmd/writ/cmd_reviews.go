package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

type reviewCmd struct {
	List    reviewListCmd    `cmd:"" help:"List the actions that await a decision."`
	Approve reviewApproveCmd `cmd:"" help:"Let a held action happen."`
	Deny    reviewDenyCmd    `cmd:"" help:"Cancel a held action."`
}

// paging are the flags of every list.
type paging struct {
	Limit int    `default:"100" help:"How many to show, 1 to 1000 (default: ${default})."`
	After string `placeholder:"KEY" help:"Show what comes behind this one."`
}

const maxPage = 1000

func (p paging) request() (schemas.PageRequest, error) {
	if p.Limit < 1 || p.Limit > maxPage {
		return schemas.PageRequest{}, misuse("give --limit from 1 to 1000, and go on with --after", "--limit %d is out of bounds", p.Limit)
	}
	return schemas.PageRequest{Limit: p.Limit, After: p.After}, nil
}

type reviewListCmd struct{ paging }

func (c *reviewListCmd) Run(ctx context.Context, app *App) error {
	page, err := c.request()
	if err != nil {
		return err
	}
	reply, err := call[schemas.ReviewsReply](ctx, app, schemas.CtlReviews, page)
	if err != nil {
		return err
	}
	reply.Reviews = list(reply.Reviews)
	for i := range reply.Reviews {
		reply.Reviews[i].Factors = list(reply.Reviews[i].Factors)
	}
	if app.JSON {
		return app.emit(reply)
	}
	if len(reply.Reviews) == 0 {
		app.note("Nothing awaits a decision.")
		return nil
	}
	var rows [][]cell
	for _, r := range reply.Reviews {
		rows = append(rows, []cell{text(r.Seq), text(app.clock(r.Time)), text(r.AgentID), text(r.Operation), text(r.Action), riskCell(r.Risk), text(approvals(r)), text(because(r))})
	}
	app.table([]string{"seq", "time", "agent", "operation", "action", "risk", "approvals", "because"}, rows)
	app.note("writ review approve SEQ lets it happen; writ review deny SEQ --reason TEXT cancels it.")
	return nil
}

// approvals says how many operators must approve, and who has.
func approvals(r schemas.Review) string {
	switch {
	case r.Endorsed != "":
		return "1 of 2: " + r.Endorsed
	case r.TwoPerson:
		return "0 of 2"
	}
	return "0 of 1"
}

// because says why an action is held: for the agent was paused before, or for the
// heaviest factors of its verdict.
func because(r schemas.Review) string {
	if r.Paused {
		return "the agent was paused before"
	}
	const shown = 3
	var out []string
	for _, f := range heaviest(r.Factors) {
		if f.Points < worthSaying && f.ID != "signal" || len(out) == shown {
			continue
		}
		said := "the agent " + cmp.Or(sayings[f.ID], f.ID)
		if f.Observed != "" {
			said += ": " + observed(f)
		}
		out = append(out, said)
	}
	return cmp.Or(strings.Join(out, "; "), "its risk stands from before")
}

func observed(f schemas.Factor) string {
	const wide = 48
	text := []rune(f.Observed)
	if len(text) > wide {
		return string(text[:wide-1]) + "…"
	}
	return f.Observed
}

type reviewApproveCmd struct {
	Seq    uint64 `arg:"" help:"Sequence of the held action."`
	Reason string `placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log."`
}

func (c *reviewApproveCmd) Run(ctx context.Context, app *App) error {
	if c.Reason != "" {
		if err := checkReason(c.Reason); err != nil {
			return err
		}
	}
	return decide(ctx, app, schemas.ReviewRequest{Seq: c.Seq, Approve: true, Reason: c.Reason, Actor: app.actor})
}

type reviewDenyCmd struct {
	Seq    uint64 `arg:"" help:"Sequence of the held action."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log, and the agent is told."`
}

func (c *reviewDenyCmd) Run(ctx context.Context, app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	return decide(ctx, app, schemas.ReviewRequest{Seq: c.Seq, Reason: c.Reason, Actor: app.actor})
}

func decide(ctx context.Context, app *App, req schemas.ReviewRequest) error {
	reply, err := call[schemas.ReviewReply](ctx, app, schemas.CtlReview, req)
	if err != nil {
		return advise(err, "writ review list shows what awaits a decision")
	}
	if app.JSON {
		return app.emit(reply)
	}
	app.say("%d: %s of %s is %s.", reply.Seq, plain(reply.Action), reply.AgentID, reply.State)
	if reply.State == "endorsed" {
		app.note("It does not happen yet: a second operator must approve it, with the same command.")
		return nil
	}
	if req.Approve && !strings.HasPrefix(reply.Action, schemas.VerbSend+":") {
		app.note("Whoever asked was answered 423 already: the same request passes once within %s.", schemas.ApprovalTTL)
	}
	return nil
}

type riskCmd struct {
	Agent string `arg:"" help:"An agent of the fleet."`
}

func (c *riskCmd) Run(ctx context.Context, app *App) error {
	if err := schemas.CheckID("agent", c.Agent); err != nil {
		return misuse("writ status lists the agents", "%w", err)
	}
	reply, err := call[schemas.RiskReply](ctx, app, schemas.CtlRisk, schemas.RiskRequest{AgentID: c.Agent})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(riskDoc{reply, list(reply.Factors), list(reply.History), list(reply.Causes), list(reply.Signals), app.behind(ctx, reply)})
	}
	app.risk(reply, app.behind(ctx, reply))
	return nil
}

// behind is the event that set a risk without an action of the agent: what the
// server refused, or a signal. It is nil where there is none, or it is told
// already, erased or archived.
func (a *App) behind(ctx context.Context, r schemas.RiskReply) *riskCause {
	if r.Seq == 0 || r.Action != "" {
		return nil
	}
	at := func(seq uint64) *schemas.Event {
		page, err := call[schemas.ReadReply](ctx, a, schemas.CtlRead, schemas.ReadRequest{From: seq, To: seq, Limit: 1})
		if err != nil || len(page.Records) != 1 {
			return nil
		}
		e, err := decodeRecord(page.Records[0])
		if err != nil {
			return nil
		}
		return e
	}
	set := at(r.Seq)
	if set == nil || set.Ref == 0 {
		return nil
	}
	e := at(set.Ref)
	if e == nil {
		return nil
	}
	return &riskCause{e.Seq, e.Time, e.Kind, e.Reason}
}

// points writes fixed point in units of 1/65536.
func points(n int64) string { return fmt.Sprintf("%+.2f", float64(n)/65536) }
