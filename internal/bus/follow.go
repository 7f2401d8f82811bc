package bus

import (
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
	ev, err := schemas.DecodeAt(e.Seq, e.Subject, e.Header, e.Data)
	if err != nil {
		return nil, fmt.Errorf("sequence %d of the log: %w", e.Seq, err)
	}
	return ev, nil
}

// A Follower hands over the log, in order, from a sequence on.
type Follower struct {
	Conn     *nats.Conn
	Consumer string   // made beforehand, for this role; acknowledges nothing. Without one the log is looked at once a second
	Filters  []string // its filter subjects; none means all
	From     uint64   // first sequence wanted
	// CaughtUp, if set, is called once, when all that was in the log at the
	// start has been handed over.
	CaughtUp func(last uint64)
	// Reached, if set, is called about once a second while nothing comes, with
	// the log's end: nothing before it concerns this follower any more.
	Reached func(seq uint64)
}

// ErrGap is matched where the log lacks a sequence that it must have.
var ErrGap = errors.New("the log has a gap")

const (
	batch      = 512
	idlePoll   = time.Second
	retryPause = 100 * time.Millisecond
	lookWithin = 2 * time.Second // for the server to say where the log ends
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
	r := f.reader(js, fn)
	end, err := r.catchUp(ctx)
	for err != nil && ctx.Err() == nil && passing(err) {
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
		end, err = r.catchUp(ctx)
	}
	if err != nil {
		return err
	}
	if f.CaughtUp != nil {
		f.CaughtUp(end)
	}
	if f.Consumer == "" {
		return r.poll(ctx)
	}
	cons, err := js.Consumer(ctx, schemas.Stream, f.Consumer)
	if err != nil {
		return fmt.Errorf("follow the log: consumer %s: %w", f.Consumer, err)
	}
	return r.live(ctx, cons)
}

// Rest hands over what stands in the log from From on, and ends with it.
func (f *Follower) Rest(ctx context.Context, fn func(Entry) error) error {
	js, err := jetstream.New(f.Conn)
	if err == nil {
		_, err = f.reader(js, fn).catchUp(ctx)
	}
	return err
}

func (f *Follower) reader(js jetstream.JetStream, fn func(Entry) error) *reader {
	return &reader{js: js, filters: f.Filters, last: max(f.From, 1) - 1, fn: fn, reached: f.Reached}
}

// A Reader looks single events up in the log.
type Reader struct{ js jetstream.JetStream }

// NewReader reads through nc, whose user must have the right to direct gets.
func NewReader(nc *nats.Conn) (*Reader, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return &Reader{js}, nil
}

// Newest is the sequence of the newest event under a subject up to and
// including a sequence; 0 where the log has none.
func (r *Reader) Newest(ctx context.Context, subject string, upTo uint64) (seq uint64, err error) {
	msgs, err := jetstreamext.GetLastMsgsFor(ctx, r.js, schemas.Stream, []string{subject}, jetstreamext.GetLastMsgsUpToSeq(upTo))
	if err != nil {
		return 0, fmt.Errorf("read the log up to %d: %w", upTo, err)
	}
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read the log up to %d: %w", upTo, err)
		}
		seq = m.Sequence
	}
	return seq, whole(ctx, r.js)
}

// First is the oldest sequence that the log still has, or the next one where
// it has none.
func (r *Reader) First(ctx context.Context) (uint64, error) {
	first, _, err := look(ctx, r.js)
	return first, err
}

// At is the event at a sequence; false where the log does not have it.
func (r *Reader) At(ctx context.Context, seq uint64) (e Entry, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := r.js.Stream(ctx, schemas.Stream)
	if err != nil {
		return e, false, fmt.Errorf("read the log at %d: %w", seq, err)
	}
	m, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return e, false, nil
	}
	if err != nil {
		return e, false, fmt.Errorf("read the log at %d: %w", seq, err)
	}
	return Entry{Seq: m.Sequence, Subject: m.Subject, Header: schemas.Header(m.Header), Data: m.Data}, true, nil
}

type reader struct {
	js      jetstream.JetStream
	filters []string
	last    uint64 // newest sequence handed over, or known to be of no interest
	cons    uint64 // newest consumer sequence seen
	fn      func(Entry) error
	reached func(uint64)
}

// poll hands over what a look at the log shows, once a second.
func (r *reader) poll(ctx context.Context) error {
	tick := time.NewTicker(idlePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		end, err := r.catchUp(ctx)
		if err != nil && (ctx.Err() != nil || !passing(err)) {
			return err
		}
		if err == nil && r.reached != nil {
			r.reached(end)
		}
	}
}

// live hands over what the consumer delivers.
func (r *reader) live(ctx context.Context, cons jetstream.Consumer) error {
	delivered, broken := make(chan jetstream.Msg, batch), make(chan error, 1)
	cc, err := cons.Consume(func(m jetstream.Msg) {
		select {
		case delivered <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessagesWithBytesLimit(4*batch, batchBytes), jetstream.PullExpiry(30*time.Second),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			select {
			case broken <- err:
			default:
			}
		}))
	if err != nil {
		return fmt.Errorf("follow the log: %w", err)
	}
	defer cc.Stop()
	idle := time.NewTicker(idlePoll)
	defer idle.Stop()
	for quiet := false; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-delivered:
			quiet = false
			if err := r.take(ctx, m); err != nil && !passing(err) {
				return err
			}
			continue
		case <-cc.Closed():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("follow the log: the consumer has ended: %w", errors.Join(last(broken), errEnded))
		case <-broken: // the library goes on by itself, or ends it
		case <-idle.C:
			if !quiet {
				quiet = true
				continue
			}
		}
		// What was sent to a connection that broke comes no second time:
		// look for it, once there is a connection again.
		end, err := r.catchUp(ctx)
		if err != nil && (ctx.Err() != nil || !passing(err)) {
			return err
		}
		if err == nil && r.reached != nil {
			r.reached(end)
		}
	}
}

// passing reports an error that a server brings about which is slow, or to
// which the connection is being made anew.
func passing(err error) bool {
	for _, e := range []error{nats.ErrTimeout, context.DeadlineExceeded, nats.ErrReconnectBufExceeded, nats.ErrConnectionReconnecting, nats.ErrDisconnected} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var errEnded = errors.New("it was deleted, or the connection is closed")

func last(errs <-chan error) error {
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// take hands over one message of the consumer, and what is missing before it.
func (r *reader) take(ctx context.Context, m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return fmt.Errorf("follow the log: %w", err)
	}
	seq, cons := meta.Sequence.Stream, meta.Sequence.Consumer
	if seq <= r.last {
		r.cons = cons
		return nil
	}
	if r.cons == 0 || cons != r.cons+1 {
		if err := r.fill(ctx, seq-1); err != nil {
			return err
		}
	}
	r.cons = cons
	if r.filters == nil && seq != r.last+1 {
		return fmt.Errorf("%w: %d follows %d", ErrGap, seq, r.last)
	}
	return r.hand(Entry{Seq: seq, Subject: m.Subject(), Header: schemas.Header(m.Headers()), Data: m.Data()})
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
	for {
		first, end, err := look(ctx, r.js)
		if err != nil {
			return 0, err
		}
		if r.last+1 < first && first > 1 {
			// What aged out is the ledger's business, not the followers'.
			r.last = first - 1
		}
		err = r.fill(ctx, end)
		if !errors.Is(err, ErrGap) {
			return end, err
		}
		// The oldest may have aged out between the look and the reading.
		if now, _, lerr := look(ctx, r.js); lerr != nil || now <= r.last+1 {
			return end, errors.Join(err, lerr)
		}
	}
}

// look gives the log's first and last sequence.
func look(ctx context.Context, js jetstream.JetStream) (first, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	s, err := js.Stream(ctx, schemas.Stream)
	if err != nil {
		return 0, 0, fmt.Errorf("follow the log: %w", err)
	}
	state := s.CachedInfo().State
	return state.FirstSeq, state.LastSeq, nil
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
	// A merge of what the filters match, a batch of each at a time.
	queues, from := make([][]Entry, len(r.filters)), slices.Repeat([]uint64{r.last + 1}, len(r.filters))
	for {
		first := -1
		for i, filter := range r.filters {
			if len(queues[i]) == 0 && from[i] <= end {
				if err := r.get(ctx, from[i], end, filter, func(e Entry) error {
					queues[i] = append(queues[i], e)
					return nil
				}); err != nil {
					return err
				}
				from[i] = end + 1 // it has no more
				if n := len(queues[i]); n > 0 {
					from[i] = queues[i][n-1].Seq + 1
				}
			}
			if len(queues[i]) > 0 && (first < 0 || queues[i][0].Seq < queues[first][0].Seq) {
				first = i
			}
		}
		if first < 0 {
			break
		}
		e := queues[first][0]
		queues[first][0], queues[first] = Entry{}, queues[first][1:]
		if e.Seq == r.last {
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
	if err := whole(ctx, r.js); err != nil {
		return fmt.Errorf("read the log from %d: %w", from, err)
	}
	return nil
}

// whole reports why a batch may have ended early: the library ends it without a
// word when time is up or the connection is gone, as if there were no more.
func whole(ctx context.Context, js jetstream.JetStream) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if js.Conn().IsClosed() {
		return nats.ErrConnectionClosed
	}
	return nil
}
