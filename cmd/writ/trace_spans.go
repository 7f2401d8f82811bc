package main

import (
	"context"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/otlp"
)

// sendSpans gives a trace to a collector.
func sendSpans(ctx context.Context, address string, doc traceDoc) error {
	var spans []otlp.Span
	var walk func(n *node, parent uint64)
	walk = func(n *node, parent uint64) {
		spans = append(spans, otlp.Span{Event: n.event, Parent: parent, Took: time.Duration(n.TookUS) * time.Microsecond})
		for _, child := range n.Children {
			walk(child, n.Seq)
		}
	}
	for _, n := range doc.Tree {
		walk(n, 0)
	}
	return advise(otlp.Send(ctx, address, spans), "give --otlp the address of a collector's OTLP/HTTP receiver, such as http://127.0.0.1:4318")
}
