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
	if follow {
		f, err := a.follow()
		if err != nil {
			return nil, nil, err
		}
		return f.read, f.close, nil
	}
	read, _, end, err = a.evidence()
	return read, end, err
}

// knows fails where the record holds nothing of an agent that was asked for.
func (read reader) knows(ctx context.Context, agent string) error {
	if agent == "" {
		return nil
	}
	page, err := read(ctx, schemas.ReadRequest{From: 1, Limit: 1, Agent: agent})
	if err == nil && page.Unknown {
		err = unknownAgent(agent)
	}
	return err
}

func unknownAgent(agent string) error {
	return advise(fmt.Errorf("the log knows no agent or service %s, or it was erased", agent), "writ status lists the agents; writ log without --agent shows whom events concern")
}

// evidence finds the record, and what proves it: the running ledger's, or else
// that on disk.
func (a *App) evidence() (reader, ledger.Show, func() error, error) {
	r, err := a.onDisk()
	if err != nil {
		return nil, nil, nil, err
	}
	if r != nil {
		return func(_ context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) { return r.Read(req) }, r.Show, r.Close, nil
	}
	cl, err := a.dial()
	if err != nil {
		return nil, nil, nil, err
	}
	show := func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
		return ask[schemas.ShowReply](ctx, cl, schemas.CtlShow, q)
	}
	return cl.read, show, func() error { cl.close(); return nil }, nil
}

// onDisk opens what a control plane left behind in the data folder, to be read
// and not changed. It gives nil where one runs that has to be asked. Where
// nothing is there, the error is that none runs.
func (a *App) onDisk() (*ledger.Reader, error) {
	if a.Server != "" {
		return nil, nil
	}
	_, none := running(a.Data)
	if none == nil || !errors.Is(none, errNotRunning) {
		return nil, none
	}
	if _, err := os.Stat(filepath.Join(a.Data, "ledger")); err != nil {
		return nil, none
	}
	o, err := plane.LedgerOptions(a.Data)
	if err != nil {
		return nil, advise(err, "the folder must hold keys/ too: the ledger is read with its public key and the root of its salts")
	}
	r, err := ledger.OpenReader(o)
	if err != nil {
		return nil, advise(err, adviceVerify)
	}
	return r, nil
}

// adviceVerify is what to do about a ledger on disk that can't be read.
const adviceVerify = "writ ledger verify says whether the ledger is whole"

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
