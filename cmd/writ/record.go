package main

import (
	"context"
	"fmt"
	"iter"

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
