package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// A follower reads the record of a running ledger, and outlives restarts of the
// control plane: it looks for it again, wherever it listens now, asks for the
// same page until it has it, and so gives each event once. Behind a restart it
// goes on only in the log that it left.
type follower struct {
	app  *App
	cl   *client         // nil while none is connected
	last *schemas.Record // the newest that was read, without its body
	away bool            // and somebody was told so
}

// followWithin is how long a follower waits for a page before it asks anew.
const followWithin = 10 * time.Second

// errOtherLog is matched where the log is not the one that was followed.
var errOtherLog = errors.New("this is not the log that was followed")

func (a *App) follow() (*follower, error) {
	f := &follower{app: a}
	return f, f.connect()
}

// connect leaves reconnecting to the follower: a client that did so by itself
// would not say that the control plane is another one since.
func (f *follower) connect() (err error) {
	f.cl, err = f.app.dial(nats.NoReconnect())
	return err
}

func (f *follower) close() error {
	if f.cl != nil {
		f.cl.close()
		f.cl = nil
	}
	return nil
}

func (f *follower) read(ctx context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) {
	for {
		page, err := f.once(ctx, req)
		switch {
		case err == nil:
			f.back(page)
			return page, nil
		case ctx.Err() != nil:
			return page, ctx.Err()
		case final(err):
			return page, err
		}
		_ = f.close()
		if !f.away {
			f.away = true
			f.app.note("the control plane is away (%s); going on where it left off once it is back", plain(err.Error()))
		}
		select {
		case <-ctx.Done():
			return page, ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// final tells what waiting can't mend.
func final(err error) bool {
	var r *schemas.Refusal
	return errors.Is(err, errOtherLog) || errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrPermissionViolation) ||
		errors.As(err, &r) && r.Code != schemas.CodeUnavailable
}

func (f *follower) once(ctx context.Context, req schemas.ReadRequest) (page schemas.ReadReply, err error) {
	if f.cl == nil {
		if err := f.connect(); err != nil {
			return page, err
		}
		if err := f.same(ctx); err != nil {
			return page, err
		}
	}
	return askWithin[schemas.ReadReply](ctx, f.cl, followWithin, schemas.CtlRead, req)
}

// same demands that the log still holds, in its place, what was read last.
func (f *follower) same(ctx context.Context) error {
	if f.last == nil {
		return nil
	}
	page, err := askWithin[schemas.ReadReply](ctx, f.cl, followWithin, schemas.CtlRead, schemas.ReadRequest{From: f.last.Seq, To: f.last.Seq, Limit: 1})
	switch {
	case err != nil:
		return err
	case page.Head < f.last.Seq:
		return fmt.Errorf("its ledger reaches event %d so far, and %d was read", page.Head, f.last.Seq)
	case len(page.Records) == 1 && page.Records[0].Subject == f.last.Subject && maps.EqualFunc(page.Records[0].Header, f.last.Header, slices.Equal):
		return nil
	}
	return advise(fmt.Errorf("%w: event %d, which was read, is not in it any more", errOtherLog, f.last.Seq),
		"if the folder was restored or made anew, or the event was erased or pruned, follow it again with --after or --from")
}

// back keeps what same asks for.
func (f *follower) back(page schemas.ReadReply) {
	if n := len(page.Records); n > 0 {
		last := page.Records[n-1]
		last.Data = nil
		f.last = &last
	}
	if f.away {
		f.away = false
		f.app.note("the control plane is back")
	}
}
