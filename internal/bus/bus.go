// Package bus is how Writ's services speak NATS: connecting under their own
// user, appending events to the log, following it, and answering operators.
//
// Appending is idempotent: each event's id is the message id of its publish,
// so that a repeated publish after a lost acknowledgement gets the sequence of
// the first. Following is complete: every sequence is either handed over, in
// order, or the follower stops with an error.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/schemas"
)

// Options say how a service connects.
type Options struct {
	Role    string                     // names the connection and the inbox prefix _INBOX_<role>
	URL     string                     // of the server; ignored where Server is set
	Server  nats.InProcessConnProvider // an embedded server
	Creds   []byte                     // content of a .creds file
	Logger  *slog.Logger
	Options []nats.Option // added last
}

// Connect opens a connection that reconnects for ever and buffers nothing
// meanwhile: what can't be sent fails at once.
func Connect(o Options) (*nats.Conn, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	opts := []nats.Option{
		nats.Name("writ-" + o.Role),
		nats.CustomInboxPrefix("_INBOX_" + o.Role),
		nats.UserCredentialBytes(o.Creds),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20 * time.Millisecond),
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Error("nats", "role", o.Role, "error", err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("disconnected", "role", o.Role, "error", err)
			}
		}),
	}
	if o.Server != nil {
		opts = append(opts, nats.InProcessServer(o.Server))
	}
	nc, err := nats.Connect(o.URL, append(opts, o.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("connect %s to the control plane's NATS server: %w", o.Role, err)
	}
	return nc, nil
}

// ReadCreds reads a .creds file, which nobody else may be able to read.
func ReadCreds(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("credentials: others can read %s (mode %o); run chmod 600 on it", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return b, nil
}

// ErrAppend is matched by every failed append: the event is not in the log, or
// it is not known whether it is.
var ErrAppend = errors.New("the log did not take the event")

// An Appender appends events. It is safe for concurrent use.
type Appender struct {
	js jetstream.JetStream
}

// NewAppender appends through nc, whose user must have the right to publish
// the kinds that it will append.
func NewAppender(nc *nats.Conn) (*Appender, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1<<14), jetstream.WithPublishAsyncTimeout(appendTimeout))
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &Appender{js: js}, nil
}

const (
	appendTries   = 3
	appendTimeout = 2 * time.Second
)

// Append appends one event and waits for its sequence. An unanswered publish
// is repeated under the same id, within the stream's duplicate window.
func (a *Appender) Append(ctx context.Context, e *schemas.Event) (uint64, error) {
	m, err := message(e)
	if err != nil {
		return 0, err
	}
	f, err := a.start(m)
	return a.finish(ctx, m, f, err)
}

// AppendAll appends events together, in their order where none has to be
// repeated, and gives each its sequence or its error.
func (a *Appender) AppendAll(ctx context.Context, events []*schemas.Event) (seqs []uint64, errs []error) {
	seqs, errs = make([]uint64, len(events)), make([]error, len(events))
	msgs, futures := make([]*nats.Msg, len(events)), make([]jetstream.PubAckFuture, len(events))
	for i, e := range events {
		if msgs[i], errs[i] = message(e); errs[i] != nil {
			continue
		}
		if errs[i] = ctx.Err(); errs[i] == nil {
			futures[i], errs[i] = a.start(msgs[i])
		}
	}
	for i, m := range msgs {
		if m != nil {
			seqs[i], errs[i] = a.finish(ctx, m, futures[i], errs[i])
		}
	}
	return seqs, errs
}

// message is the event as it is published.
func message(e *schemas.Event) (*nats.Msg, error) {
	subject, header, data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	header[nats.MsgIdHdr] = []string{e.ID}
	return &nats.Msg{Subject: subject, Header: nats.Header(header), Data: data}, nil
}

func (a *Appender) start(m *nats.Msg) (jetstream.PubAckFuture, error) {
	return a.js.PublishMsgAsync(m, jetstream.WithStallWait(appendTimeout))
}

// finish awaits a publish, and repeats it where it must.
func (a *Appender) finish(ctx context.Context, m *nats.Msg, f jetstream.PubAckFuture, err error) (seq uint64, _ error) {
	for try := 1; ; try++ {
		if err == nil {
			seq, err = acknowledged(ctx, f)
		}
		if err == nil {
			return seq, nil
		}
		if try == appendTries || ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %s: %w", ErrAppend, m.Subject, err)
		}
		f, err = a.start(m)
	}
}

func acknowledged(ctx context.Context, f jetstream.PubAckFuture) (uint64, error) {
	select {
	case ack := <-f.Ok():
		return ack.Sequence, nil
	default:
	}
	timer := time.NewTimer(appendTimeout)
	defer timer.Stop()
	select {
	case ack := <-f.Ok():
		return ack.Sequence, nil
	case err := <-f.Err():
		return 0, err
	case <-timer.C:
		return 0, errors.New("no acknowledgement")
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Restore puts an entry back behind the end of the log, and gives the sequence
// that it got. It fails where the entry's own is not the log's next.
func (a *Appender) Restore(ctx context.Context, e Entry) (uint64, error) {
	h := nats.Header{}
	for k, v := range e.Header {
		h[k] = v
	}
	h[nats.ExpectedLastSeqHdr] = []string{strconv.FormatUint(e.Seq-1, 10)}
	f, err := a.start(&nats.Msg{Subject: e.Subject, Header: h, Data: e.Data})
	var seq uint64
	if err == nil {
		seq, err = acknowledged(ctx, f)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: put back %d: %w", ErrAppend, e.Seq, err)
	}
	return seq, nil
}
