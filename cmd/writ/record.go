package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

// decodeRecord gives a record's event, without its body where none was asked
// for.
func decodeRecord(r schemas.Record) (*schemas.Event, error) {
	e, err := r.Event()
	if err != nil {
		return nil, advise(fmt.Errorf("the ledger: %w", err), "writ ledger verify says whether it is whole")
	}
	return e, nil
}

// A reader reads pages of the record.
type reader func(ctx context.Context, req schemas.ReadRequest) (schemas.ReadReply, error)

func (c *client) read(ctx context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) {
	return ask[schemas.ReadReply](ctx, c, schemas.CtlRead, req)
}

// record finds the record: the running ledger's, or else that on disk, unless
// it is to be followed.
func (a *App) record(follow bool) (read reader, end func() error, err error) {
	if a.Server == "" && !follow {
		_, err := running(a.Data)
		if errors.Is(err, errNotRunning) {
			return a.recordOnDisk(err)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	cl, err := a.dial()
	if err != nil {
		return nil, nil, err
	}
	return cl.read, func() error {
		cl.close()
		return nil
	}, nil
}

// recordOnDisk reads what a control plane left behind. Where nothing is there,
// the error is that none runs.
func (a *App) recordOnDisk(none error) (reader, func() error, error) {
	if _, err := os.Stat(filepath.Join(a.Data, "ledger")); err != nil {
		return nil, nil, none
	}
	o, err := plane.LedgerOptions(a.Data)
	if err != nil {
		return nil, nil, err
	}
	r, err := ledger.OpenReader(o)
	if err != nil {
		return nil, nil, advise(err, "writ ledger verify says whether the ledger is whole")
	}
	return func(_ context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) { return r.Read(req) }, r.Close, nil
}

// events reads the record in order, page by page, until its present end. It
// tells through head, if given, how far the ledger goes.
func (read reader) events(ctx context.Context, req schemas.ReadRequest, head func(uint64)) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		for {
			page, err := read(ctx, req)
			if err != nil {
				yield(nil, err)
				return
			}
			if head != nil {
				head(page.Head)
			}
			for _, r := range page.Records {
				e, err := decodeRecord(r)
				if !yield(e, err) || err != nil {
					return
				}
			}
			if page.Next == 0 {
				return
			}
			req.From = page.Next
		}
	}
}
