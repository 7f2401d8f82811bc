package main

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/writ-sh/writ/schemas"
)

// A span as a collector got it.
type gotSpan struct {
	parent string
	took   time.Duration
}

func spanCollector(t *testing.T, got map[string]gotSpan) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		zipped, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, err := io.ReadAll(zipped)
		if err != nil {
			t.Error(err)
		}
		var m collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		for _, rs := range m.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					id := hex.EncodeToString(s.SpanId)
					if _, twice := got[id]; twice {
						t.Errorf("span %s came twice", id)
					}
					got[id] = gotSpan{hex.EncodeToString(s.ParentSpanId), time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano)}
				}
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestSpansAreStreamedWhenTheyAreOver(t *testing.T) {
	got := map[string]gotSpan{}
	srv := spanCollector(t, got)
	s := newSpanStream(srv.URL)
	began := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	take := func(seq, ref uint64, k schemas.Kind, ms int, span string) {
		t.Helper()
		e := &schemas.Event{Seq: seq, Ref: ref, Kind: k, Agent: "ann", Final: true, Time: began.Add(time.Duration(ms) * time.Millisecond),
			Trace: schemas.Trace{ID: "4bf92f3577b34da6a3ce929d0e0e4736", Span: span}}
		if err := s.take(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	take(1, 0, schemas.TokenIssued, 0, "00f067aa0ba902b7")
	take(2, 0, schemas.MessageAccepted, 100, "0000000000000001")
	take(3, 0, schemas.MessageAccepted, 200, "00f067aa0ba902b7") // under a span of the agent's own
	if err := s.flush(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("%d spans before any answer, %v", len(got), err)
	}
	take(4, 2, schemas.ResponseAccepted, 350, "0000000000000002")
	take(5, 0, schemas.MessageHeld, 400, "0000000000000001")
	take(6, 5, schemas.MessageCancelled, 900, "0000000000000001")
	if err := s.take(t.Context(), &schemas.Event{Seq: 7, Kind: schemas.ReleaseMark}); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(t.Context()); err != nil || len(got) != 5 {
		t.Fatalf("%d spans, %v", len(got), err)
	}
	take(8, 0, schemas.MessageDenied, int(spanPatience/time.Millisecond)+300, "0000000000000001") // the third is given up
	take(9, 0, schemas.MessageAccepted, int(spanPatience/time.Millisecond)+400, "0000000000000001")
	if err := s.flush(t.Context()); err != nil || len(got) != 7 {
		t.Fatalf("%d spans, %v", len(got), err)
	}
	if err := s.end(t.Context()); err != nil || s.sent != 8 {
		t.Fatalf("%d sent, %v", s.sent, err)
	}
	for id, want := range map[string]gotSpan{
		"0000000000000001": {"", 0}, "0000000000000002": {"0000000000000001", 250 * time.Millisecond}, "0000000000000003": {"00f067aa0ba902b7", 0},
		"0000000000000004": {"0000000000000002", 0}, "0000000000000005": {"0000000000000001", 500 * time.Millisecond},
		"0000000000000006": {"0000000000000005", 0}, "0000000000000008": {"0000000000000001", 0}, "0000000000000009": {"0000000000000001", 0},
	} {
		if got[id] != want {
			t.Errorf("span %s: %+v, want %+v", id, got[id], want)
		}
	}
	srv.Close()
	if err := s.end(t.Context()); err != nil {
		t.Errorf("nothing to send: %v", err)
	}
}
