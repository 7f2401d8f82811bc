package main

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/otlp"
	"github.com/writ-sh/writ/schemas"
)

// A spanStream makes spans of a log as it comes. What asks for something is
// sent once it was answered or ended, everything else at once.
type spanStream struct {
	address string
	open    map[uint64]*schemas.Event
	order   []uint64 // of open, rising
	ready   []otlp.Span
	newest  time.Time // of the log
	sent    int
}

const (
	spanPatience = 10 * time.Minute // for an answer, by the times of events
	spansOpen    = 1 << 14
	spansReady   = 512
)

func newSpanStream(address string) *spanStream {
	return &spanStream{address: address, open: map[uint64]*schemas.Event{}}
}

// take takes the next event, and sends when there is enough.
func (s *spanStream) take(ctx context.Context, e *schemas.Event) error {
	if e.Trace.ID == "" {
		return nil // of no request
	}
	s.newest = e.Time
	switch e.Kind {
	case schemas.MessageAccepted, schemas.MessageHeld:
		s.open[e.Seq] = e
		s.order = append(s.order, e.Seq)
	case schemas.ResponseAccepted, schemas.MessageCancelled, schemas.MessageExpired:
		s.finish(e)
		s.span(e, 0)
	default:
		s.span(e, 0)
	}
	s.giveUp()
	if len(s.ready) < spansReady {
		return nil
	}
	return s.flush(ctx)
}

// finish ends the span of what an event answers or ends.
func (s *spanStream) finish(e *schemas.Event) {
	if asked := s.open[e.Ref]; asked != nil && (e.Final || e.Kind != schemas.ResponseAccepted) {
		delete(s.open, e.Ref)
		s.span(asked, max(e.Time.Sub(asked.Time), 0))
	}
}

// giveUp sends what has waited for too long, or stands in too long a line.
func (s *spanStream) giveUp() {
	for len(s.order) > 0 {
		e := s.open[s.order[0]]
		if e != nil && len(s.open) <= spansOpen && s.newest.Sub(e.Time) < spanPatience {
			return
		}
		if e != nil {
			delete(s.open, e.Seq)
			s.span(e, 0)
		}
		s.order = s.order[1:]
	}
}

func (s *spanStream) span(e *schemas.Event, took time.Duration) {
	span := otlp.Span{Event: e, Took: took}
	// An event of the issuer's begins something; its span is of its own making.
	if e.Ref != 0 || e.Kind != schemas.TokenIssued && e.Kind != schemas.OperationEnded {
		span.Parent = causeOf(e)
	}
	s.ready = append(s.ready, span)
}

func (s *spanStream) flush(ctx context.Context) error {
	if len(s.ready) == 0 {
		return nil
	}
	if err := otlp.Send(ctx, s.address, s.ready); err != nil {
		first := s.ready[0].Event.Seq
		for _, span := range s.ready {
			first = min(first, span.Event.Seq)
		}
		return advise(err, fmt.Sprintf("give --otlp the address of a collector's OTLP/HTTP receiver, such as http://127.0.0.1:4318, and go on with --after %d", first-1))
	}
	s.sent += len(s.ready)
	s.ready = s.ready[:0]
	return nil
}

// end sends what is left, answered or not.
func (s *spanStream) end(ctx context.Context) error {
	for _, seq := range s.order {
		if e := s.open[seq]; e != nil {
			s.span(e, 0)
		}
	}
	clear(s.open)
	s.order = nil
	return s.flush(ctx)
}
