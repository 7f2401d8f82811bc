package main

import (
	"context"
	"fmt"
	"iter"

	"github.com/writ-sh/writ/schemas"
)

// emptyBody stands where a record came without its body: decoding needs one.
var emptyBody = []byte{0}

// decodeRecord turns a record into its event. Records that were asked for
// without bodies give events without.
func decodeRecord(r schemas.Record, withData bool) (*schemas.Event, error) {
	body := r.Data
	if !withData {
		body = emptyBody
	}
	e, err := schemas.Decode(r.Subject, r.Header, body)
	if err != nil {
		return nil, advise(fmt.Errorf("record %d of the ledger: %w", r.Seq, err), "writ ledger verify says whether the ledger is whole")
	}
	e.Seq = r.Seq
	if !withData {
		e.Data = nil
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
				e, err := decodeRecord(r, req.Data)
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
