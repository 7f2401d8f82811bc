package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/writ-sh/writ/schemas"
)

type logCmd struct {
	Agent  string `placeholder:"ID" help:"Only what concerns this agent or service."`
	Trace  string `placeholder:"TRACE" help:"Only this user request."`
	Since  string `placeholder:"TIME" help:"Only what is newer: a duration such as 10m, or an RFC 3339 time."`
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
}

func lineOf(e *schemas.Event) logLine {
	l := logLine{Seq: e.Seq, Time: e.Time, Agent: e.Agent, Kind: e.Kind, Subject: schemas.EventSubject(e.Agent, e.Kind),
		Trace: e.Trace.ID, Verdict: json.RawMessage("null"), Operation: e.Operation, To: e.To, Ref: e.Ref,
		Code: e.Code, Reason: e.Reason, Lock: e.Lock, Actor: e.Actor, LatencyUS: e.Latency.Microseconds()}
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
	since, err := c.check(app.now())
	if err != nil {
		return err
	}
	read, end, err := app.record(c.Follow)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, end()) }()
	req := schemas.ReadRequest{From: c.After + 1, Agent: c.Agent, Trace: c.Trace, Limit: pageSize}
	if !since.IsZero() {
		from, err := read.firstAt(ctx, since)
		if err != nil {
			return err
		}
		req.From = max(req.From, from)
	}
	return c.print(ctx, app, read, req, since)
}

func (c *logCmd) check(now time.Time) (since time.Time, err error) {
	if c.Agent != "" && c.Agent != schemas.Fleet {
		if err := schemas.CheckID("agent", c.Agent); err != nil {
			return since, misuse("writ status lists the agents", "%w", err)
		}
	}
	if c.Trace != "" {
		if err := schemas.CheckTrace(c.Trace); err != nil {
			return since, misuse("give --trace as writ issue and writ log show it", "%w", err)
		}
	}
	if c.Limit < 0 {
		return since, misuse("give --limit from 1 on, or leave it out", "--limit %d is below 0", c.Limit)
	}
	if c.Since == "" {
		return since, nil
	}
	if d, err := time.ParseDuration(c.Since); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	since, err = time.Parse(time.RFC3339, c.Since)
	if err != nil {
		return since, misuse("give --since like 10m, 24h or 2026-03-01T12:00:00Z", "--since %q is neither a duration nor a time", c.Since)
	}
	return since, nil
}

// print shows what there is, and with --follow what comes.
func (c *logCmd) print(ctx context.Context, app *App, read reader, req schemas.ReadRequest, since time.Time) error {
	shown := 0
	for {
		seen := req.From
		for e, err := range read.events(ctx, req, func(head uint64) { seen = max(seen, head+1) }) {
			if err != nil {
				return c.ended(ctx, err)
			}
			if e.Time.Before(since) {
				continue // clocks of services differ a little
			}
			if err := app.logLine(e); err != nil {
				return err
			}
			if shown++; shown == c.Limit {
				return nil
			}
		}
		if !c.Follow {
			return nil
		}
		req.From = seen
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
	if e.Actor != "" {
		add("by %s", e.Actor)
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

// firstAt finds the first sequence whose time is not before at, by halving:
// times rise with sequences, but for what the services' clocks differ, which
// slack allows for.
func (read reader) firstAt(ctx context.Context, at time.Time) (uint64, error) {
	const slack = 5 * time.Second
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
