package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-sh/writ/cmd/writ/internal/simulate"
	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
)

type simulateCmd struct {
	Policy     string `type:"path" placeholder:"FLEET" help:"Fleet file to decide by: ceilings, thresholds, what services serve."`
	Thresholds string `placeholder:"P,S" help:"Pause from risk P on, suspend from S on, whatever agent it is."`
	Weights    string `type:"path" placeholder:"FILE" help:"Weights to judge by, as writ monitor fit writes them."`
	Budget     *int64 `placeholder:"N" help:"Language-model tokens that each operation may use."`
	From       string `placeholder:"SEQ|TIME" help:"Only decisions from there on: a sequence, an RFC 3339 time, or a duration such as 24h."`
	To         string `placeholder:"SEQ|TIME" help:"Only decisions up to there."`
	Agent      string `placeholder:"ID" help:"Only decisions on this agent."`
	Cascade    bool   `help:"Let decisions have consequences: who would have been paused is held from then on."`
	archiveFlags
}

// simulateDoc is the report with the question that it answers.
type simulateDoc struct {
	Policy     string              `json:"policy"` // SHA-256 of the fleet file, "" where none was given
	Thresholds *schemas.Thresholds `json:"thresholds"`
	Weights    string              `json:"weights"` // their version
	Budget     *int64              `json:"budget"`
	Cascade    bool                `json:"cascade"`
	simulate.Report
}

// Run asks of the record which decisions another policy would have taken
// otherwise. It changes nothing, here or anywhere.
func (c *simulateCmd) Run(ctx context.Context, app *App) error {
	policy, doc, err := c.policy()
	if err != nil {
		return err
	}
	o, err := c.options(app)
	if err != nil {
		return err
	}
	step, done := app.progress("simulated: event")
	events, end, err := app.whole(ctx, c.archiveFlags, schemas.ReadRequest{From: 1, To: o.To, Limit: pageSize, Data: true, Begin: schemas.MaxJudged + 1}, step)
	if err != nil {
		return err
	}
	known := c.Agent == ""
	doc.Report, err = simulate.Run(noting(events, c.Agent, &known), policy, o)
	err = errors.Join(err, end())
	done()
	if err != nil {
		return advise(err, adviceVerify)
	}
	if !known {
		return unknownAgent(c.Agent)
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.simulated(doc)
	return nil
}

// noting notes whether any event is of an agent: who mistypes it would read that
// nothing is decided otherwise.
func noting(events iter.Seq2[*schemas.Event, error], agent string, known *bool) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		for e, err := range events {
			*known = *known || err == nil && e.Agent == agent
			if !yield(e, err) {
				return
			}
		}
	}
}

func (c *simulateCmd) policy() (*simulate.Policy, simulateDoc, error) {
	p, doc := &simulate.Policy{Budget: c.Budget}, simulateDoc{Budget: c.Budget, Cascade: c.Cascade}
	if c.Policy == "" && c.Thresholds == "" && c.Weights == "" && c.Budget == nil {
		return nil, doc, misuse("give --policy, --thresholds, --weights or --budget", "there is no other policy to decide by")
	}
	if c.Budget != nil && *c.Budget < 0 {
		return nil, doc, misuse("give --budget 0 or more", "--budget %d can't be negative", *c.Budget)
	}
	if c.Policy != "" {
		f, err := readFleet(c.Policy)
		if err != nil {
			return nil, doc, err
		}
		p.Fleet, doc.Policy = f.File, f.Digest
		if p.Rails, err = guard.Parse(c.Policy, f.Policies); err != nil {
			return nil, doc, err
		}
	}
	if c.Thresholds != "" {
		th, err := readThresholds(c.Thresholds)
		if err != nil {
			return nil, doc, err
		}
		p.Thresholds, doc.Thresholds = &th, &th
	}
	if c.Weights != "" {
		w, err := readWeights("--weights", c.Weights)
		if err != nil {
			return nil, doc, err
		}
		p.Weights, doc.Weights = w, w.Version()
	}
	return p, doc, nil
}

func readThresholds(text string) (th schemas.Thresholds, err error) {
	pause, suspend, _ := strings.Cut(text, ",")
	var perr, serr error
	th.Pause, perr = strconv.Atoi(pause)
	th.Suspend, serr = strconv.Atoi(suspend)
	if perr != nil || serr != nil || th.Pause < 1 || th.Suspend > 100 || th.Pause > th.Suspend {
		return th, misuse("give --thresholds like 60,85", "--thresholds %q are not two risks from 1 to 100, the lower one first", text)
	}
	return th, nil
}

func (c *simulateCmd) options(app *App) (o simulate.Options, err error) {
	if err := checkSelection(c.Agent, ""); err != nil {
		return o, err
	}
	from, err := readPlace("--from", c.From, app.now())
	if err != nil {
		return o, err
	}
	to, err := readPlace("--to", c.To, app.now())
	if err != nil {
		return o, err
	}
	return simulate.Options{From: from.seq, Since: from.at, To: to.seq, Until: to.at, Agent: c.Agent, Cascade: c.Cascade}, nil
}

// mostFlips is how many flips are listed for people; programs get all.
const mostFlips = 200

func (t *terminal) simulated(doc simulateDoc) {
	if doc.Flips == 0 {
		t.say("%s: none of %d decisions in %d events would have been another", t.paint(green, "no flip"), doc.Decisions, doc.Events)
	} else {
		var rows [][]cell
		for _, f := range doc.List[:min(len(doc.List), mostFlips)] {
			rows = append(rows, []cell{styled(dim, f.Seq), styled(dim, t.clock(f.Time)), text(f.Agent), text(f.Action), text(f.Was), styled(yellow, f.Would), text(f.Why)})
		}
		t.table([]string{"seq", "time", "agent", "action", "was", "would be", "why"}, rows)
		t.say("%s of %d decisions in %d events would have been another", t.paint(yellow, strconv.FormatUint(doc.Flips, 10)), doc.Decisions, doc.Events)
		t.counts("by kind", doc.ByKind)
		t.counts("by agent", doc.ByAgent)
		if left := len(doc.List) - mostFlips; left > 0 {
			t.note("%d more are listed with --json, or narrow it down with --from, --to and --agent", left)
		}
	}
	if doc.Unexplained > 0 {
		t.note("%d decisions rest on what the log does not hold (a rate, a size, a moment's delay), and were left as they are", doc.Unexplained)
	}
	if doc.Void > 0 {
		t.note("%d answers are to what would not have been delivered", doc.Void)
	}
}

func (t *terminal) counts(what string, counts map[string]uint64) {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s: %d", plain(k), counts[k]))
	}
	t.facts([2]string{what, strings.Join(parts, " · ")})
}
