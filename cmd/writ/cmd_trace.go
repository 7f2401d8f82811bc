package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

type traceCmd struct {
	Trace string `arg:"" help:"Trace of the user request, 32 hex digits; writ issue and writ log show it."`
}

// A node is one event of a trace, with the events that it caused.
type node struct {
	logLine
	Risk     *int     `json:"risk"`      // null where nothing was judged
	OffsetUS int64    `json:"offset_us"` // since the trace's first event
	Children []*node  `json:"children"`
	story    string   // for people
	factors  []string // the same
}

type traceDoc struct {
	Trace  string   `json:"trace"`
	Events int      `json:"events"`
	Agents []string `json:"agents"`
	TookUS int64    `json:"took_us"`
	Tree   []*node  `json:"tree"`
}

func (c *traceCmd) Run(ctx context.Context, app *App) (failed error) {
	if err := schemas.CheckTrace(c.Trace); err != nil {
		return misuse("writ log shows the traces with --json, writ issue the one it made", "%w", err)
	}
	read, end, err := app.record(false)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, end()) }()
	var events []*schemas.Event
	for e, err := range read.events(ctx, schemas.ReadRequest{Trace: c.Trace, Limit: pageSize}, nil) {
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return advise(fmt.Errorf("the ledger holds no event of trace %s", c.Trace), "writ log --json shows the traces that there are")
	}
	doc := treeOf(c.Trace, events)
	if app.JSON {
		return app.emit(doc)
	}
	app.tree(doc)
	return nil
}

// tree prints a trace.
func (t *terminal) tree(doc traceDoc) {
	events := "events"
	if doc.Events == 1 {
		events = "event"
	}
	t.say("trace %s: %d %s, %s, %s", doc.Trace, doc.Events, events, span(time.Duration(doc.TookUS)*time.Microsecond), strings.Join(doc.Agents, ", "))
	for i, n := range doc.Tree {
		t.branch(n, "", i == len(doc.Tree)-1)
	}
}

// treeOf hangs each event under the one that caused it: what its Ref names, or
// else its span, which is the sequence of the event behind it. Causes come
// before their effects in the log, so that there are no circles.
func treeOf(trace string, events []*schemas.Event) traceDoc {
	doc := traceDoc{Trace: trace, Events: len(events), Tree: []*node{}, Agents: []string{}}
	bySeq := map[uint64]*node{}
	first := events[0].Time
	for _, e := range events {
		n := &node{logLine: lineOf(e), OffsetUS: e.Time.Sub(first).Microseconds(), Children: []*node{}, story: story(e)}
		if len(e.Verdict) > 0 {
			n.Risk, n.factors = &e.Risk, concerns(e.Verdict)
		}
		bySeq[e.Seq] = n
		doc.TookUS = max(doc.TookUS, n.OffsetUS)
		if e.Agent != schemas.Fleet && !slices.Contains(doc.Agents, e.Agent) {
			doc.Agents = append(doc.Agents, e.Agent)
		}
		if parent := bySeq[causeOf(e)]; parent != nil && parent != n {
			parent.Children = append(parent.Children, n)
		} else {
			doc.Tree = append(doc.Tree, n)
		}
	}
	return doc
}

// causeOf is the sequence of the event behind e, 0 where it names none.
func causeOf(e *schemas.Event) uint64 {
	if e.Ref != 0 {
		return e.Ref
	}
	seq, err := strconv.ParseUint(e.Trace.Span, 16, 64)
	if err != nil {
		return 0
	}
	return seq
}

// concerns names the evidence against an action, where its risk is worth it.
func concerns(raw []byte) []string {
	const worth = 40
	var v schemas.Verdict
	if json.Unmarshal(raw, &v) != nil || v.Risk < worth {
		return nil
	}
	var out []string
	for _, f := range heaviest(v.Factors) {
		if f.Points > 0 {
			out = append(out, points(f.Points)+" "+strings.TrimSpace(f.ID+" "+f.Observed))
		}
	}
	return out
}

func (t *terminal) branch(n *node, indent string, last bool) {
	fork, under := "├─ ", "│  "
	if last {
		fork, under = "└─ ", "   "
	}
	t.say("%s %s %s %s", t.paint(dim, indent+fork+fmt.Sprintf("%d +%s", n.Seq, span(time.Duration(n.OffsetUS)*time.Microsecond))),
		t.paint(bold, plain(n.Agent)), t.paint(kindStyle(n.Kind), string(n.Kind)), plain(n.story))
	inner := indent + under
	for _, f := range n.factors {
		bar := "   "
		if len(n.Children) > 0 {
			bar = "│  "
		}
		t.say("%s%s", t.paint(dim, inner+bar), t.paint(yellow, plain(f)))
	}
	for i, child := range n.Children {
		t.branch(child, inner, i == len(n.Children)-1)
	}
}
