package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/siem"
	"github.com/writ-sh/writ/schemas"
)

type logCmd struct {
	Agent  string `placeholder:"ID" help:"Only what concerns this agent or service."`
	Trace  string `placeholder:"TRACE" help:"Only this user request."`
	Since  string `placeholder:"TIME" help:"Only what is newer: a duration such as 10m, or an RFC 3339 time."`
	From   string `placeholder:"SEQ|TIME" help:"Only from there on: a sequence, an RFC 3339 time, or a duration."`
	To     string `placeholder:"SEQ|TIME" help:"Only up to there."`
	Format string `enum:",ocsf,cef" default:"" placeholder:"ocsf|cef" help:"Write records for a security team's system, one a line: OCSF or CEF (docs/siem.md)."`
	OTLP   string `name:"otlp" placeholder:"URL" help:"Send it as spans to an OpenTelemetry collector, over OTLP/HTTP, instead of showing it."`
	Follow bool   `short:"f" help:"Go on with what comes, until interrupted."`
	Limit  int    `placeholder:"N" help:"Stop after so many; all where missing."`
	After  uint64 `placeholder:"SEQ" help:"Only what stands behind this sequence."`
}

// followEvery is the pause between two looks at the end of the record.
const followEvery = 200 * time.Millisecond

// pageSize is how many records are asked for at once.
const pageSize = 500

// logLine is one event as the log shows it.
type logLine struct {
	Seq       uint64          `json:"seq"`
	Time      time.Time       `json:"time"`
	Agent     string          `json:"agent_id"`
	Kind      schemas.Kind    `json:"kind"`
	Subject   string          `json:"subject"`
	Trace     string          `json:"trace"`
	Verdict   json.RawMessage `json:"verdict"` // null where nothing was judged
	Digest    string          `json:"payload_sha256"`
	Operation string          `json:"operation_id,omitempty"`
	Action    string          `json:"action,omitempty"`
	To        string          `json:"to,omitempty"`
	Ref       uint64          `json:"ref,omitempty"`
	Code      int             `json:"code,omitempty"`
	Reason    string          `json:"reason,omitempty"`
	Lock      schemas.Lock    `json:"lock,omitempty"`
	Actor     string          `json:"actor,omitempty"`
	LatencyUS int64           `json:"latency_us,omitempty"`
	JTI       string          `json:"jti,omitempty"`
	Act       []string        `json:"act,omitempty"`     // of a grant: who handed it on, the newest first
	Reserve   int64           `json:"reserve,omitempty"` // tokens that the action may use, as its sender says
	Tokens    int64           `json:"tokens,omitempty"`  // tokens that were used, as the answer says
}

func lineOf(e *schemas.Event) logLine {
	l := logLine{Seq: e.Seq, Time: e.Time, Agent: e.Agent, Kind: e.Kind, Subject: schemas.EventSubject(e.Agent, e.Kind),
		Trace: e.Trace.ID, Verdict: json.RawMessage("null"), Operation: e.Operation, To: e.To, Ref: e.Ref,
		Code: e.Code, Reason: e.Reason, Lock: e.Lock, Actor: e.Actor, LatencyUS: e.Latency.Microseconds(),
		JTI: e.JTI, Act: e.Act, Reserve: e.Reserve, Tokens: e.Tokens}
	if json.Valid(e.Verdict) {
		l.Verdict = e.Verdict
	}
	if !e.Digest.IsZero() {
		l.Digest = e.Digest.String()
	}
	if e.Action != (schemas.Action{}) {
		l.Action = e.Action.String()
	}
	return l
}

func (c *logCmd) Run(ctx context.Context, app *App) (failed error) {
	w, err := c.check(app)
	if err != nil {
		return err
	}
	read, end, err := app.record(c.Follow)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, end()) }()
	if !c.Follow { // who is not known yet may come
		if err := read.knows(ctx, c.Agent); err != nil {
			return err
		}
	}
	// What a capability grants stands in its event's body.
	req := schemas.ReadRequest{From: max(c.After+1, w.from), To: w.to, Agent: c.Agent, Trace: c.Trace, Limit: pageSize, Data: c.Format == formatOCSF}
	if !w.since.IsZero() {
		from, err := read.firstAt(ctx, w.since)
		if err != nil {
			return err
		}
		req.From = max(req.From, from)
	}
	write := func(_ context.Context, e *schemas.Event) (bool, error) { return app.logged(e, c.Format) }
	if c.OTLP == "" {
		return c.print(ctx, read, req, w, write, func(context.Context) error { return nil })
	}
	spans := newSpanStream(c.OTLP)
	write = func(ctx context.Context, e *schemas.Event) (bool, error) { return true, spans.take(ctx, e) }
	if err := c.print(ctx, read, req, w, write, spans.flush); err != nil {
		return err
	}
	// What is not answered yet is sent too, also where following was ended.
	if err := spans.end(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return app.spansSent(spans.sent)
}

type spansDoc struct {
	Spans int `json:"spans"` // sent
}

func (t *terminal) spansSent(n int) error {
	if t.json {
		return t.emit(spansDoc{n})
	}
	t.say("%d spans were sent.", n)
	return nil
}

// A window is what of the log is shown; zero values are no bound.
type window struct {
	from, to     uint64
	since, until time.Time
}

func (c *logCmd) check(app *App) (w window, err error) {
	if err := checkSelection(c.Agent, c.Trace); err != nil {
		return w, err
	}
	if c.Limit < 0 {
		return w, misuse("give --limit from 1 on, or leave it out", "--limit %d is below 0", c.Limit)
	}
	if c.Format != "" && c.OTLP != "" {
		return w, misuse("give one of them", "--format and --otlp do not go together")
	}
	if app.JSON && c.Format != "" {
		return w, misuse("leave --json out: these formats are JSON, or have none", "--json and --format do not go together")
	}
	now := app.now()
	from, err := readPlace("--from", c.From, now)
	if err != nil {
		return w, err
	}
	to, err := readPlace("--to", c.To, now)
	if err != nil {
		return w, err
	}
	w = window{from: from.seq, to: to.seq, since: from.at, until: to.at}
	since, err := readTime("--since", c.Since, now)
	if since.After(w.since) {
		w.since = since
	}
	return w, err
}

// print writes what there is, and with --follow what comes. paused is called
// wherever the log ends for now.
func (c *logCmd) print(ctx context.Context, read reader, req schemas.ReadRequest, w window,
	write func(context.Context, *schemas.Event) (bool, error), paused func(context.Context) error) error {
	shown := 0
	for {
		seen := req.From
		for e, err := range read.events(ctx, req, func(head uint64) { seen = max(seen, head+1) }) {
			if err != nil {
				return c.ended(ctx, err)
			}
			if e.Time.Before(w.since) || !w.until.IsZero() && e.Time.After(w.until) {
				continue // clocks of services differ a little
			}
			written, err := write(ctx, e)
			if err != nil {
				return c.ended(ctx, err)
			}
			if !written {
				continue
			}
			if shown++; shown == c.Limit {
				return nil
			}
		}
		if !c.Follow {
			return nil
		}
		req.From = seen
		if err := paused(ctx); err != nil {
			return c.ended(ctx, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// ended tells being interrupted, which is how following ends, from failing.
func (c *logCmd) ended(ctx context.Context, err error) error {
	if c.Follow && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// logWidths are the columns of a log on a terminal: it is a stream, so that
// they can't be measured beforehand.
var logWidths = []int{7, 15, 16, 18, 0}

func (t *terminal) logLine(e *schemas.Event) error {
	if t.json {
		return t.emit(lineOf(e))
	}
	t.row(logWidths, []cell{styled(dim, e.Seq), styled(dim, t.clock(e.Time)), text(e.Agent), styled(kindStyle(e.Kind), e.Kind), text(story(e))})
	return nil
}

const (
	formatOCSF = "ocsf"
	formatCEF  = "cef"
)

// logged writes an event in a format, and says whether it has one there.
func (t *terminal) logged(e *schemas.Event, format string) (bool, error) {
	if format == "" {
		return true, t.logLine(e)
	}
	if !siem.Exported(e) {
		return false, nil
	}
	line := siem.CEF(e, story(e), ownVersion())
	if format == formatOCSF {
		var err error
		if line, err = siem.OCSF(e, story(e), ownVersion()); err != nil {
			return false, err
		}
	}
	t.say("%s", line)
	return true, nil
}

func kindStyle(k schemas.Kind) style {
	switch k {
	case schemas.MessageDenied, schemas.ResponseDenied, schemas.MessageCancelled, schemas.AgentKilled, schemas.AgentSuspended, schemas.AgentViolation, schemas.LedgerAlarm:
		return red
	case schemas.MessageHeld, schemas.ResponseHeld, schemas.AgentPaused, schemas.ReviewRequested, schemas.MessageExpired:
		return yellow
	case schemas.MessageAccepted, schemas.ResponseAccepted:
		return green
	}
	return unstyled
}

// story says in a few words what an event is about.
func story(e *schemas.Event) string {
	var s string
	add := func(format string, args ...any) {
		if s != "" {
			s += " "
		}
		s += fmt.Sprintf(format, args...)
	}
	if e.Operation != "" {
		add("[%s]", e.Operation)
	}
	if e.Action != (schemas.Action{}) {
		add("%s", e.Action)
	}
	if e.To != "" && e.To != e.Action.Resource {
		add("→ %s", e.To)
	}
	if e.Ref != 0 {
		add("of %d", e.Ref)
	}
	if len(e.Verdict) > 0 {
		add("risk %d", e.Risk)
	}
	if e.Latency > 0 {
		add("after %s", span(e.Latency))
	}
	if e.Tokens > 0 {
		add("%d tokens", e.Tokens)
	}
	if e.Actor != "" {
		add("by %s", e.Actor)
	}
	if len(e.Act) > 0 {
		add("handed on by %s", strings.Join(e.Act, " ← "))
	}
	if e.Tokens > 0 {
		add("used %d tokens", e.Tokens)
	}
	switch {
	case e.Code != 0 && e.Reason != "":
		add("— %d %s", e.Code, e.Reason)
	case e.Reason != "":
		add("— %s", e.Reason)
	case e.Code != 0:
		add("— %d", e.Code)
	}
	return s
}

// slack is what the clocks of services may differ.
const slack = 5 * time.Second

// between finds the first and the last sequence with a time from since to
// until, zero for no bound: then last is 0. Both are 0 where there is none.
func (read reader) between(ctx context.Context, since, until time.Time) (first, last uint64, err error) {
	req := schemas.ReadRequest{From: 1, Limit: pageSize}
	if !since.IsZero() {
		if req.From, err = read.firstAt(ctx, since); err != nil {
			return 0, 0, err
		}
	}
	for e, err := range read.events(ctx, req, nil) {
		switch {
		case err != nil:
			return 0, 0, err
		case !until.IsZero() && e.Time.After(until.Add(2*slack)):
			return first, last, nil // nothing behind it can be as old
		case e.Time.Before(since), !until.IsZero() && e.Time.After(until):
			continue
		case until.IsZero():
			return e.Seq, 0, nil
		case first == 0:
			first = e.Seq
		}
		last = e.Seq
	}
	return first, last, nil
}

// firstAt finds the first sequence whose time is not before at, by halving:
// times rise with sequences, but for what the services' clocks differ, which
// slack allows for.
func (read reader) firstAt(ctx context.Context, at time.Time) (uint64, error) {
	at = at.Add(-slack)
	probe := func(from uint64) (*schemas.Event, uint64, error) {
		page, err := read(ctx, schemas.ReadRequest{From: from, Limit: 1})
		if err != nil || len(page.Records) == 0 {
			return nil, page.Head, err
		}
		e, err := decodeRecord(page.Records[0])
		return e, page.Head, err
	}
	first, head, err := probe(1)
	if err != nil || first == nil || !first.Time.Before(at) {
		return 1, err
	}
	low, high := first.Seq, head+1 // low is too old, high is not, or is the end
	for high-low > 1 {
		mid := low + (high-low)/2
		e, _, err := probe(mid)
		if err != nil {
			return 0, err
		}
		if e == nil || !e.Time.Before(at) {
			high = mid
		} else {
			low = max(mid, e.Seq)
			if low >= high {
				return high, nil
			}
		}
	}
	return high, nil
}

func seqText(seq uint64) string { return strconv.FormatUint(seq, 10) }
