// Package otlp gives traces to an OpenTelemetry collector, over OTLP/HTTP.
//
// Each event of a trace is one span. The trace id is the log's, the span id is
// the event's sequence, as the deliveries' own traceparent has it, so that the
// spans of agents and services that are traced themselves hang where they
// belong. A span lasts until what its event caused was over. Attributes follow
// the semantic conventions where they fit (gen_ai for agents and tools, messaging
// for messages); what is Writ's own is under "writ.". Bodies are not sent.
//
// Headers for the collector, such as a key, are taken from the environment, by
// the names that OpenTelemetry gives them (OTEL_EXPORTER_OTLP_HEADERS).
package otlp

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/writ-sh/writ/schemas"
)

// A Span is an event, how long what it caused took, and the event behind it.
type Span struct {
	Event  *schemas.Event
	Parent uint64 // sequence, 0 where the trace has none
	Took   time.Duration
}

const (
	sendWithin = 30 * time.Second // one request
	giveUp     = 10 * time.Second // trying again, where a collector is busy
	batch      = 512              // spans of one request
)

// Send gives spans to the collector at an http or https address. Without a
// path in it, the one of the protocol is added.
func Send(ctx context.Context, address string, spans []Span) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no http or https address", address)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(sendWithin),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: time.Second, MaxElapsedTime: giveUp}))
	if err != nil {
		return fmt.Errorf("send spans to %s: %w", u.Redacted(), err)
	}
	made, err := read(ctx, spans)
	for err == nil && len(made) > 0 {
		n := min(len(made), batch)
		err = exporter.ExportSpans(ctx, made[:n])
		made = made[n:]
	}
	if stopped := exporter.Shutdown(ctx); err == nil {
		err = stopped
	}
	if err != nil {
		return fmt.Errorf("send spans to %s: %w", u.Redacted(), err)
	}
	return nil
}

// read makes the library's spans of ours.
func read(ctx context.Context, spans []Span) ([]sdk.ReadOnlySpan, error) {
	kept := &keeper{}
	provider := sdk.NewTracerProvider(sdk.WithSyncer(kept), sdk.WithIDGenerator(ids{}), sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithResource(resource.NewWithAttributes(semconv.SchemaURL, semconv.ServiceName("writ"))))
	tracer := provider.Tracer("github.com/writ-sh/writ", trace.WithSchemaURL(semconv.SchemaURL))
	for _, s := range spans {
		id, err := trace.TraceIDFromHex(s.Event.Trace.ID)
		if err != nil {
			return nil, fmt.Errorf("event %d: trace: %w", s.Event.Seq, err)
		}
		ctx := context.WithValue(ctx, own{}, identity{id, spanID(s.Event.Seq)})
		if parent, ok := parentOf(s); ok {
			ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: id, SpanID: parent, TraceFlags: trace.FlagsSampled, Remote: true}))
		}
		_, span := tracer.Start(ctx, name(s.Event), trace.WithTimestamp(s.Event.Time), trace.WithSpanKind(kind(s.Event)),
			trace.WithAttributes(attributes(s.Event)...))
		if text, failed := failure(s.Event); failed {
			span.SetStatus(codes.Error, text)
		}
		span.End(trace.WithTimestamp(s.Event.Time.Add(s.Took)))
	}
	return kept.spans, provider.Shutdown(ctx)
}

// A keeper keeps spans, to be sent together: so it is known whether they
// arrived.
type keeper struct{ spans []sdk.ReadOnlySpan }

func (k *keeper) ExportSpans(_ context.Context, spans []sdk.ReadOnlySpan) error {
	k.spans = append(k.spans, spans...)
	return nil
}

func (k *keeper) Shutdown(context.Context) error { return nil }

type own struct{}

type identity struct {
	trace trace.TraceID
	span  trace.SpanID
}

// ids gives spans the ids that stand in the log.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id := ctx.Value(own{}).(identity)
	return id.trace, id.span
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return ctx.Value(own{}).(identity).span
}

func spanID(seq uint64) (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], seq)
	return id
}

// parentOf is the event behind a span, or else the span of the agent's own that
// it named when it acted.
func parentOf(s Span) (trace.SpanID, bool) {
	if s.Parent != 0 {
		return spanID(s.Parent), true
	}
	switch s.Event.Kind {
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied:
		id, err := trace.SpanIDFromHex(s.Event.Trace.Span)
		return id, err == nil
	}
	return trace.SpanID{}, false
}

func isAction(e *schemas.Event) bool {
	return e.Kind == schemas.MessageAccepted || e.Kind == schemas.MessageHeld || e.Kind == schemas.MessageDenied
}

func name(e *schemas.Event) string {
	switch {
	case !isAction(e):
		return string(e.Kind)
	case e.Action.Verb == schemas.VerbCall:
		return "execute_tool " + e.Action.Resource
	}
	return e.Action.Verb + " " + e.Action.Resource
}

func kind(e *schemas.Event) trace.SpanKind {
	switch {
	case isAction(e) && e.Action.Request():
		return trace.SpanKindClient
	case isAction(e):
		return trace.SpanKindProducer
	}
	return trace.SpanKindInternal
}

func failure(e *schemas.Event) (string, bool) {
	switch e.Kind {
	case schemas.MessageDenied, schemas.ResponseDenied, schemas.MessageCancelled, schemas.MessageExpired:
		return clean(e.Reason), true
	}
	return "", e.Code >= 400 && e.Kind == schemas.ResponseAccepted
}

func attributes(e *schemas.Event) []attribute.KeyValue {
	out := []attribute.KeyValue{semconv.GenAIAgentID(clean(e.Agent)), attribute.String("writ.kind", string(e.Kind)), attribute.Int64("writ.seq", int64(e.Seq))}
	add := func(key, value string) {
		if value != "" {
			out = append(out, attribute.String(key, clean(value)))
		}
	}
	if e.Operation != "" {
		out = append(out, semconv.GenAIConversationID(clean(e.Operation)))
	}
	switch {
	case e.Kind == schemas.TokenIssued:
		out = append(out, semconv.GenAIOperationNameInvokeAgent)
	case isAction(e) && e.Action.Verb == schemas.VerbCall:
		out = append(out, semconv.GenAIOperationNameExecuteTool, semconv.GenAIToolName(clean(e.Action.Resource)), semconv.GenAIToolCallID(fmt.Sprint(e.Seq)))
	case isAction(e) && (e.Action.Verb == schemas.VerbSend || e.Action.Verb == schemas.VerbAsk):
		out = append(out, semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationTypeSend, semconv.MessagingOperationName(e.Action.Verb),
			semconv.MessagingMessageID(fmt.Sprint(e.Seq)))
		if e.To != "" {
			out = append(out, semconv.MessagingDestinationName(clean(schemas.InSubject(e.To, e.Action, e.Agent))))
		}
	}
	if e.Action != (schemas.Action{}) {
		add("writ.action", e.Action.String())
	}
	add("writ.to", e.To)
	add("writ.lock", string(e.Lock))
	add("writ.actor", e.Actor)
	add("writ.reason", e.Reason)
	if e.Code != 0 {
		out = append(out, attribute.Int("writ.code", e.Code))
	}
	if e.Tokens > 0 {
		out = append(out, attribute.Int64("writ.tokens", e.Tokens))
	}
	var v struct {
		Decision string `json:"decision"`
	}
	if len(e.Verdict) > 0 && json.Unmarshal(e.Verdict, &v) == nil {
		add("writ.verdict", v.Decision)
		out = append(out, attribute.Int("writ.risk", e.Risk))
	}
	return out
}

// clean makes text what the protocol takes: UTF-8.
func clean(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
