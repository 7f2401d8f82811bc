package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/writ-sh/writ/schemas"
)

// An Entry is one message of the log as it stands there.
type Entry struct {
	Seq     uint64
	Subject string
	Header  schemas.Header
	Data    []byte
}

// Event decodes the entry.
func (e Entry) Event() (*schemas.Event, error) {
	ev, err := schemas.Decode(e.Subject, e.Header, e.Data)
	if err != nil {
		return nil, fmt.Errorf("sequence %d of the log: %w", e.Seq, err)
	}
	ev.Seq = e.Seq
	return ev, nil
}

// A Follower hands over the log, in order, from a sequence on.
type Follower struct {
	Conn     *nats.Conn
	Consumer string   // made beforehand, for this role; acknowledges nothing
	Filters  []string // its filter subjects; none means all
	From     uint64   // first sequence wanted
	// CaughtUp, if set, is called once, when all that was in the log at the
	// start has been handed over.
	CaughtUp func(last uint64)
}

// ErrGap is matched where the log lacks a sequence that it must have.
var ErrGap = errors.New("the log has a gap")

const (
	batch    = 512
	idlePoll = time.Second
	// batchBytes bounds what the server holds for one follower at once: well
	// below its max_pending, at which it would cut the follower off, and above
	// the longest event.
	batchBytes = 6 << 20
)

// Run hands over entries until the context ends, fn fails, or the log can't
// be read. It never hands over a sequence twice.
func (f *Follower) Run(ctx context.Context, fn func(Entry) error) error {
	js, err := jetstream.New(f.Conn)
	if err != nil {
		return fmt.Errorf("follow the log: %w", err)
	}
	r := &reader{js: js, filters: f.Filters, last: max(f.From, 1) - 1, fn: fn}
	end, err := r.catchUp(ctx)
	if err != nil {
		return err
	}
	if f.CaughtUp != nil {
		f.CaughtUp(end)
	}
	cons, err := js.Consumer(ctx, schemas.Stream, f.Consumer)
	if err != nil {
		return fmt.Errorf("follow the log: consumer %s: %w", f.Consumer, err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessagesWithBytesLimit(4*batch, batchBytes), jetstream.PullExpiry(30*time.Second))
	if err != nil {
		return fmt.Errorf("follow the log: consumer %s: %w", f.Consumer, err)
	}
	defer it.Stop()
	stop := context.AfterFunc(ctx, it.Stop)
	defer stop()
	return r.live(ctx, it)
}

type reader struct {
	js      jetstream.JetStream
	filters []string
	last    uint64 // newest sequence handed over, or known to be of no interest
	cons    uint64 // newest consumer sequence seen
	fn      func(Entry) error
}

func (r *reader) live(ctx context.Context, it jetstream.MessagesContext) error {
	for {
		m, err := it.Next(jetstream.NextMaxWait(idlePoll))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, jetstream.ErrNoHeartbeat):
			// What was sent to a connection that broke comes no second
			// time: look for it.
			if _, err := r.catchUp(ctx); err != nil && !errors.Is(err, nats.ErrTimeout) {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("follow the log: %w", err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("follow the log: %w", err)
		}
		seq, cons := meta.Sequence.Stream, meta.Sequence.Consumer
		if seq <= r.last {
			r.cons = cons
			continue
		}
		if cons != r.cons+1 {
			if err := r.fill(ctx, seq-1); err != nil {
				return err
			}
		}
		r.cons = cons
		if r.filters == nil && seq != r.last+1 {
			return fmt.Errorf("%w: %d follows %d", ErrGap, seq, r.last)
		}
		if err := r.hand(Entry{Seq: seq, Subject: m.Subject(), Header: schemas.Header(m.Headers()), Data: m.Data()}); err != nil {
			return err
		}
	}
}

func (r *reader) hand(e Entry) error {
	if err := r.fn(e); err != nil {
		return err
	}
	r.last = e.Seq
	return nil
}

// catchUp hands over all that stands in the log now.
func (r *reader) catchUp(ctx context.Context) (end uint64, err error) {
	s, err := r.js.Stream(ctx, schemas.Stream)
	if err != nil {
		return 0, fmt.Errorf("follow the log: %w", err)
	}
	state := s.CachedInfo().State
	if r.last+1 < state.FirstSeq && state.FirstSeq > 1 {
		// What aged out is the ledger's business, not the followers'.
		r.last = state.FirstSeq - 1
	}
	return state.LastSeq, r.fill(ctx, state.LastSeq)
}

// fill hands over everything behind r.last up to and including end.
func (r *reader) fill(ctx context.Context, end uint64) error {
	if r.last >= end {
		return nil
	}
	if r.filters == nil {
		for r.last < end {
			before := r.last
			err := r.get(ctx, r.last+1, end, "", r.hand)
			if err != nil {
				return err
			}
			if r.last == before {
				return fmt.Errorf("%w: nothing can be read behind %d, though the log goes on to %d", ErrGap, before, end)
			}
		}
		return nil
	}
	var found []Entry
	for _, filter := range r.filters {
		for from := r.last + 1; ; {
			n := len(found)
			if err := r.get(ctx, from, end, filter, func(e Entry) error {
				found = append(found, e)
				return nil
			}); err != nil {
				return err
			}
			if len(found) == n {
				break
			}
			from = found[len(found)-1].Seq + 1
		}
	}
	slices.SortFunc(found, func(a, b Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	for i, e := range found {
		if i > 0 && found[i-1].Seq == e.Seq {
			continue // two filters match it
		}
		if err := r.hand(e); err != nil {
			return err
		}
	}
	r.last = end
	return nil
}

// get reads one batch of the log. Having nothing there is no error.
func (r *reader) get(ctx context.Context, from, end uint64, filter string, fn func(Entry) error) error {
	if from > end {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	opts := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchSeq(from), jetstreamext.GetBatchMaxBytes(batchBytes)}
	if filter != "" {
		opts = append(opts, jetstreamext.GetBatchSubject(filter))
	}
	msgs, err := jetstreamext.GetBatch(ctx, r.js, schemas.Stream, batch, opts...)
	if err != nil {
		return fmt.Errorf("read the log from %d: %w", from, err)
	}
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log from %d: %w", from, err)
		}
		if m.Sequence > end {
			return nil
		}
		if filter == "" && m.Sequence != from {
			return fmt.Errorf("%w: %d stands where %d should", ErrGap, m.Sequence, from)
		}
		from = m.Sequence + 1
		if err := fn(Entry{Seq: m.Sequence, Subject: m.Subject, Header: schemas.Header(m.Header), Data: m.Data}); err != nil {
			return err
		}
	}
	return nil
}
