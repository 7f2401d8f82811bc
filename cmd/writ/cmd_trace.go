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
	HTML  string `name:"html" type:"path" placeholder:"FILE" help:"Write it as a page too; the file must not be there yet."`
	OTLP  string `name:"otlp" placeholder:"URL" help:"Send it to an OpenTelemetry collector, over OTLP/HTTP."`
}

// A node is one event of a trace, with the events that it caused.
type node struct {
	logLine
	Risk     *int     `json:"risk"`      // null where nothing was judged
	OffsetUS int64    `json:"offset_us"` // since the trace's first event
	TookUS   int64    `json:"took_us"`   // until what it caused was over
	Children []*node  `json:"children"`
	story    string   // for people
	factors  []string // the same
	event    *schemas.Event
}

type traceDoc struct {
	Trace  string   `json:"trace"`
	Events int      `json:"events"`
	Tokens int64    `json:"tokens"`
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
	if err := c.hand(ctx, doc); err != nil {
		return err
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.tree(doc)
	return nil
}

// hand writes the page, and sends the spans.
func (c *traceCmd) hand(ctx context.Context, doc traceDoc) error {
	if c.HTML != "" {
		page, err := tracePage(doc)
		if err != nil {
			return err
		}
		if err := writeNew(c.HTML, page); err != nil {
			return err
		}
	}
	if c.OTLP != "" {
		return sendSpans(ctx, c.OTLP, doc)
	}
	return nil
}

// tree prints a trace.
func (t *terminal) tree(doc traceDoc) {
	events := "events"
	if doc.Events == 1 {
		events = "event"
	}
	if doc.Tokens > 0 {
		events += fmt.Sprintf(", %d tokens", doc.Tokens)
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
		n := &node{logLine: lineOf(e), OffsetUS: e.Time.Sub(first).Microseconds(), Children: []*node{}, story: story(e), event: e}
		doc.Tokens += e.Tokens
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
	for _, n := range doc.Tree {
		n.lasts()
	}
	return doc
}

// lasts says when the last of what an event caused came.
func (n *node) lasts() (end int64) {
	end = n.OffsetUS
	for _, child := range n.Children {
		end = max(end, child.lasts())
	}
	n.TookUS = end - n.OffsetUS
	return end
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
