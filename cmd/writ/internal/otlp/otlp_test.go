package otlp

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlptrace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/writ-sh/writ/schemas"
)

// A receiver is a collector that decodes what real ones are sent.
type receiver struct {
	*httptest.Server
	t    *testing.T
	mu   sync.Mutex
	got  map[string]*otlptrace.Span // by span id, hex
	fail int
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, got: map[string]*otlptrace.Span{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.take))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) take(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != 0 {
		w.WriteHeader(r.fail)
		return
	}
	if req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		r.t.Errorf("%s with %s", req.URL.Path, req.Header.Get("Content-Type"))
	}
	zipped, err := gzip.NewReader(req.Body)
	if err != nil {
		r.t.Error(err)
		return
	}
	body, err := io.ReadAll(zipped)
	if err != nil {
		r.t.Error(err)
	}
	var m collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &m); err != nil {
		r.t.Error(err)
	}
	for _, rs := range m.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				r.got[hex.EncodeToString(s.SpanId)] = s
			}
		}
	}
}

func values(s *otlptrace.Span) map[string]string {
	out := map[string]string{}
	for _, kv := range s.Attributes {
		out[kv.Key] = kv.Value.GetStringValue()
		if out[kv.Key] == "" {
			out[kv.Key] = fmt.Sprint(kv.Value.GetIntValue())
		}
	}
	return out
}

const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"

var began = time.Date(2026, 3, 2, 9, 0, 0, 123456789, time.UTC)

func event(seq uint64, k schemas.Kind, change func(*schemas.Event)) *schemas.Event {
	e := &schemas.Event{Seq: seq, Kind: k, Agent: "analyst-7", Operation: "q1", Time: began.Add(time.Duration(seq) * time.Millisecond),
		Trace: schemas.Trace{ID: traceID, Span: "00f067aa0ba902b7"}}
	if change != nil {
		change(e)
	}
	return e
}

func TestACollectorGetsTheTreeWithTheLogsOwnIDs(t *testing.T) {
	r := newReceiver(t)
	call := event(8, schemas.MessageAccepted, func(e *schemas.Event) {
		e.Action, e.To = schemas.Action{Verb: "call", Resource: "pandas"}, "lab"
		e.Verdict, e.Risk = []byte(`{"decision":"pass"}`), 12
	})
	send := event(9, schemas.MessageDenied, func(e *schemas.Event) {
		e.Action, e.To, e.Code, e.Reason = schemas.Action{Verb: "send", Resource: "bob"}, "bob", 403, "not in scope \xff\x1b"
	})
	answer := event(10, schemas.ResponseAccepted, func(e *schemas.Event) {
		e.Agent, e.Ref, e.Tokens, e.Action = "lab", 8, 77, call.Action
	})
	err := Send(t.Context(), r.URL, []Span{{Event: event(7, schemas.TokenIssued, nil), Took: 3 * time.Millisecond},
		{Event: call, Parent: 7, Took: 2 * time.Millisecond}, {Event: answer, Parent: 8}, {Event: send}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.got) != 4 {
		t.Fatalf("%d spans", len(r.got))
	}
	for id, parent := range map[string]string{"0000000000000007": "", "0000000000000008": "0000000000000007",
		"000000000000000a": "0000000000000008", "0000000000000009": "00f067aa0ba902b7"} {
		s := r.got[id]
		if s == nil || hex.EncodeToString(s.TraceId) != traceID || hex.EncodeToString(s.ParentSpanId) != parent {
			t.Errorf("span %s: %v", id, s)
		}
	}
	s := r.got["0000000000000008"]
	if s.Name != "execute_tool pandas" || s.Kind != otlptrace.Span_SPAN_KIND_CLIENT || s.StartTimeUnixNano != uint64(call.Time.UnixNano()) ||
		s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(2*time.Millisecond) {
		t.Errorf("the call: %v", s)
	}
	want := map[string]string{"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "pandas", "gen_ai.agent.id": "analyst-7",
		"gen_ai.conversation.id": "q1", "writ.risk": "12", "writ.verdict": "pass", "writ.kind": "message.accepted", "writ.seq": "8"}
	for k, v := range want {
		if got := values(s)[k]; got != v {
			t.Errorf("%s is %q, want %q", k, got, v)
		}
	}
	s = r.got["0000000000000009"]
	if v := values(s); s.Status.GetCode() != otlptrace.Status_STATUS_CODE_ERROR || v["messaging.system"] != "nats" ||
		v["messaging.destination.name"] != "writ.in.bob.send.analyst-7" || s.Kind != otlptrace.Span_SPAN_KIND_PRODUCER {
		t.Errorf("the refused send: %v", s)
	}
	if v := values(r.got["000000000000000a"]); v["writ.tokens"] != "77" || v["gen_ai.agent.id"] != "lab" {
		t.Errorf("the answer: %v", v)
	}
}

func TestALongTraceGoesInParts(t *testing.T) {
	r := newReceiver(t)
	var spans []Span
	for i := range uint64(batch + 10) {
		spans = append(spans, Span{Event: event(i+1, schemas.MessageExpired, nil)})
	}
	if err := Send(t.Context(), r.URL+"/", spans); err != nil || len(r.got) != len(spans) {
		t.Errorf("%d spans, %v", len(r.got), err)
	}
}

func TestWhatDidNotArriveIsAnError(t *testing.T) {
	r := newReceiver(t)
	r.fail = http.StatusUnauthorized
	spans := []Span{{Event: event(1, schemas.MessageExpired, nil)}}
	if err := Send(t.Context(), r.URL, spans); err == nil {
		t.Error("a refusal is passed over")
	}
	for _, address := range []string{"", "127.0.0.1:4318", "file:///x", "http://", "grpc://127.0.0.1:4317", "%"} {
		if err := Send(t.Context(), address, spans); err == nil {
			t.Errorf("%q is taken", address)
		}
	}
	spans[0].Event.Trace.ID = "x"
	if err := Send(t.Context(), r.URL, spans); err == nil {
		t.Error("a trace id that is none")
	}
}
