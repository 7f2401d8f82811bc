package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const traceID = "0123456789abcdef0123456789abcdef"

func at(seq uint64, kind schemas.Kind, agent string, set func(*schemas.Event)) *schemas.Event {
	e := &schemas.Event{Seq: seq, Kind: kind, Agent: agent, ID: "x", Source: "test", Time: start.Add(time.Duration(seq) * time.Second)}
	if set != nil {
		set(e)
	}
	return e
}

func caused(span string) func(*schemas.Event) {
	return func(e *schemas.Event) { e.Trace = schemas.Trace{ID: traceID, Span: span} }
}

func TestATraceHangsEachEventUnderItsCause(t *testing.T) {
	doc := treeOf(traceID, []*schemas.Event{
		at(1, schemas.TokenIssued, "a", caused("0000000000000001")), // names itself: a root
		at(2, schemas.MessageAccepted, "a", caused("0000000000000001")),
		at(3, schemas.MessageAccepted, "b", caused("0000000000000002")),
		at(4, schemas.ResponseAccepted, "c", func(e *schemas.Event) { caused("0000000000000003")(e); e.Ref = 3 }),
		at(5, schemas.MessageAccepted, "b", caused("00000000000000ff")), // a cause that comes later is none
		at(6, schemas.MessageExpired, "a", func(e *schemas.Event) { caused("0000000000000001")(e); e.Ref = 2 }),
	})
	var shape func(ns []*node) string
	shape = func(ns []*node) string {
		var out []string
		for _, n := range ns {
			out = append(out, seqText(n.Seq)+shape(n.Children))
		}
		return "(" + strings.Join(out, " ") + ")"
	}
	if got := shape(doc.Tree); got != "(1(2(3(4()) 6())) 5())" {
		t.Error(got)
	}
	if doc.TookUS != 5e6 || doc.Events != 6 || !slices.Equal(doc.Agents, []string{"a", "b", "c"}) {
		t.Errorf("%+v", doc)
	}
}

// ledgerOf answers like the ledger, in pages of two.
func ledgerOf(t *testing.T, events []*schemas.Event) reader {
	t.Helper()
	var records []schemas.Record
	for _, e := range events {
		subject, h, _, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, schemas.Record{Seq: e.Seq, Subject: subject, Header: h})
	}
	return func(_ context.Context, q schemas.ReadRequest) (schemas.ReadReply, error) {
		var rep schemas.ReadReply
		if len(records) > 0 {
			rep.Head = records[len(records)-1].Seq
		}
		for _, r := range records {
			if r.Seq < q.From {
				continue
			}
			if len(rep.Records) == min(q.Limit, 2) {
				rep.Next = r.Seq
				break
			}
			rep.Records = append(rep.Records, r)
		}
		return rep, nil
	}
}

func TestReadingGoesThroughAllPages(t *testing.T) {
	var all []*schemas.Event
	for seq := uint64(1); seq <= 7; seq++ {
		all = append(all, at(seq, schemas.AgentDeclared, "a", nil))
	}
	var seen []uint64
	var head uint64
	for e, err := range ledgerOf(t, all).events(t.Context(), schemas.ReadRequest{From: 2, Limit: 5}, func(h uint64) { head = h }) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e.Seq)
	}
	if !slices.Equal(seen, []uint64{2, 3, 4, 5, 6, 7}) || head != 7 {
		t.Errorf("saw %v, head %d", seen, head)
	}
}

func TestARecordThatDoesNotDecodeEndsTheReading(t *testing.T) {
	read := reader(func(context.Context, schemas.ReadRequest) (schemas.ReadReply, error) {
		return schemas.ReadReply{Records: []schemas.Record{{Seq: 1, Subject: "ev.a.nonsense"}}, Next: 1}, nil
	})
	n := 0
	for _, err := range read.events(t.Context(), schemas.ReadRequest{}, nil) {
		if n++; !errors.Is(err, schemas.ErrEvent) {
			t.Errorf("err = %v", err)
		}
	}
	if n != 1 {
		t.Errorf("went on %d times", n)
	}
}

func TestSinceFindsTheFirstEventByHalving(t *testing.T) {
	var all []*schemas.Event
	for seq := uint64(1); seq <= 40; seq++ {
		if seq%7 != 0 { // the ledger's own records leave holes
			all = append(all, at(seq, schemas.AgentDeclared, "a", func(e *schemas.Event) { e.Time = start.Add(time.Duration(seq) * time.Minute) }))
		}
	}
	read := ledgerOf(t, all)
	for minute, want := range map[int]uint64{-60: 1, 1: 1, 2: 2, 7: 7, 20: 20, 40: 40, 41: 41, 999: 41} {
		got, err := read.firstAt(t.Context(), start.Add(time.Duration(minute)*time.Minute))
		if err != nil || got != want {
			t.Errorf("minute %d: %d, want %d, %v", minute, got, want, err)
		}
	}
	if got, err := ledgerOf(t, nil).firstAt(t.Context(), start); got != 1 || err != nil {
		t.Errorf("empty: %d, %v", got, err)
	}
}

// Clocks of two appenders differ by seconds: the range of a time holds every
// event of it.
func TestATimeIsTheRangeThatHoldsAllItsEvents(t *testing.T) {
	var all []*schemas.Event
	second := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	for i, n := range []int{10, 20, 18, 30, 28, 40, 37, 50, 90} {
		all = append(all, at(uint64(i+1), schemas.AgentDeclared, "a", func(e *schemas.Event) { e.Time = second(n) }))
	}
	read := ledgerOf(t, all)
	for _, c := range []struct {
		since, until time.Time
		first, last  uint64
	}{
		{second(18), second(28), 2, 5}, {second(38), second(50), 6, 8}, {second(37), second(37), 7, 7}, {time.Time{}, second(20), 1, 3},
		{second(41), time.Time{}, 8, 0}, {second(60), second(80), 0, 0}, {second(91), time.Time{}, 0, 0}, {second(0), second(5), 0, 0},
	} {
		first, last, err := read.between(t.Context(), c.since, c.until)
		if err != nil || first != c.first || last != c.last {
			t.Errorf("%v to %v: %d to %d, want %d to %d, %v", c.since, c.until, first, last, c.first, c.last, err)
		}
	}
}

func TestALogLineTellsTheStory(t *testing.T) {
	e := at(9, schemas.MessageDenied, "a", func(e *schemas.Event) {
		e.Operation, e.Action, e.To = "report", schemas.Action{Verb: "call", Resource: "bash"}, "toolbox"
		e.Code, e.Reason, e.Verdict, e.Risk = 403, "forbidden", []byte(`{}`), 44
	})
	if got, want := story(e), "[report] call:bash → toolbox risk 44 — 403 forbidden"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if l := lineOf(e); string(l.Verdict) != "{}" || l.Action != "call:bash" || l.Subject != "ev.a.message.denied" {
		t.Errorf("%+v", l)
	}
}
