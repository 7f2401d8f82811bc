package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// Archives are the folder that writ ledger prune wrote to, as evidence of what a
// ledger had before it was pruned. Nothing in them is believed for its name: each
// is verified under the ledger's key, their records must follow one another by
// hash from the first on, and the first that the ledger still has must follow
// their last. So whoever can write the folder, or holds an old key, can put
// nothing in, and leave nothing out.
type archives struct {
	dir    string
	policy *proof.Policy
	show   ledger.Show // of the ledger that was pruned
	pruned uint64      // the last sequence that is in archives alone
}

const adviceArchives = "name the folder that holds all archives of this ledger, from its first event on, as writ ledger prune and writ up --archive wrote them"

// archiveFlags name archives.
type archiveFlags struct {
	Archive string `type:"path" placeholder:"DIR" help:"Folder of the archives, where the ledger was pruned."`
	Key     string `type:"path" placeholder:"FILE" help:"With --archive: the ledger's public key; keys/ledger.pub of the data folder by default."`
}

// archives opens a folder of archives beside the ledger that was pruned up to a
// sequence.
func (a *App) archives(f archiveFlags, show ledger.Show, pruned uint64) (*archives, error) {
	_, policy, err := a.ledgerPolicy(f.Key)
	if err != nil {
		return nil, err
	}
	return &archives{dir: f.Archive, policy: policy, show: show, pruned: pruned}, nil
}

// kept is the first record that the ledger has behind what was pruned.
func (a *archives) kept(ctx context.Context) (r proof.Record, err error) {
	page, err := a.show(ctx, schemas.ShowRequest{From: a.pruned + 1, To: a.pruned + 1})
	if err != nil {
		return r, err
	}
	if len(page.Records) == 0 {
		return r, advise(fmt.Errorf("the ledger has no record behind %d, and so nothing that the archives could be held against", a.pruned), adviceVerify)
	}
	return proof.ParseRecord(page.Records[0].Leaf)
}

// events reads all that was pruned, in order. An error ends them: what came
// before it proves nothing then, for the end was not reached.
func (a *archives) events(ctx context.Context) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		if err := a.each(ctx, func(e *schemas.Event) bool { return yield(e, nil) }); err != nil && !errors.Is(err, errEnough) {
			yield(nil, advise(fmt.Errorf("archives in %s: %w", a.dir, err), adviceArchives))
		}
	}
}

// errEnough ends reading where nobody wants more.
var errEnough = errors.New("enough")

func (a *archives) each(ctx context.Context, take func(*schemas.Event) bool) error {
	end, err := a.kept(ctx)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(a.dir, "events-*.bundle"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	var last proof.Hash
	next := uint64(0)
	for _, path := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := readBundle(path)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		ev, err := b.Verify(a.policy)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		for i := range ev.Entries {
			entry := &ev.Entries[i]
			r := &entry.Record
			switch {
			case r.Index < next, r.Index >= end.Index:
				continue // of two archives that overlap, or still in the ledger
			case r.Index > next && r.Kind == proof.KindRedaction:
				continue // it stands apart, to explain an erasure, and in its own place once more
			case r.Index > next:
				return fmt.Errorf("record %d is in none of them, and record %d (event %d) is", next, r.Index, r.StreamSeq)
			case r.Prev != last:
				return fmt.Errorf("%s: record %d (event %d) does not follow the one before: it is another history's", filepath.Base(path), r.Index, r.StreamSeq)
			}
			next, last = next+1, proof.LeafHash(r.Append(nil))
			if entry.Event != nil && !take(entry.Event) {
				return errEnough
			}
		}
	}
	switch {
	case next < end.Index:
		return fmt.Errorf("they end before record %d, and those up to %d were pruned", next, end.Index-1)
	case last != end.Prev:
		return fmt.Errorf("record %d, which the ledger still has, does not follow their last: they are another history's", end.Index)
	}
	return nil
}

// prunedTo is the last event that is in archives alone, 0 where the ledger has
// all.
func (read reader) prunedTo(ctx context.Context) (uint64, error) {
	page, err := read(ctx, schemas.ReadRequest{From: 1, Limit: 1})
	return page.Pruned, err
}

// present reads what the ledger has, and fails where that was asked for which it
// has no more: pruning may go on meanwhile.
func (read reader) present(ctx context.Context, req schemas.ReadRequest) (schemas.ReadReply, error) {
	page, err := read(ctx, req)
	if err == nil && page.Pruned != 0 {
		err = advise(fmt.Errorf("events up to %d were pruned meanwhile", page.Pruned), "run it again")
	}
	return page, err
}

// whole reads the record from its first event on: what was pruned, out of the
// archives.
func (a *App) whole(ctx context.Context, f archiveFlags, req schemas.ReadRequest, step func(n, of uint64)) (events iter.Seq2[*schemas.Event, error], end func() error, err error) {
	read, show, end, err := a.evidence()
	if err != nil {
		return nil, nil, err
	}
	pruned, err := read.prunedTo(ctx)
	if err == nil && pruned > 0 && f.Archive == "" {
		err = advise(fmt.Errorf("events up to %d were pruned, and what was decided behind them follows from them", pruned), "give the folder of the archives with --archive DIR")
	}
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	if pruned == 0 {
		return watched(ctx, read.present, req, step), end, nil
	}
	old, err := a.archives(f, show, pruned)
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return func(yield func(*schemas.Event, error) bool) {
		for e, err := range old.events(ctx) {
			if err == nil {
				if req.To != 0 && e.Seq > req.To {
					return
				}
				step(e.Seq, pruned)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		req.From = pruned + 1
		for e, err := range watched(ctx, read.present, req, step) {
			if !yield(e, err) {
				return
			}
		}
	}, end, nil
}

type ledgerRefoldCmd struct {
	Archive string `required:"" type:"path" placeholder:"DIR" help:"Folder of the archives, from the first event on."`
}

type refoldDoc struct {
	Records uint64 `json:"records"`
	LastSeq uint64 `json:"last_seq"` // the last that was folded
}

// Run is for a folder whose control plane is stopped, because it can't start.
func (c *ledgerRefoldCmd) Run(ctx context.Context, app *App) error {
	r, err := app.onDisk()
	if err != nil {
		return err
	}
	if r == nil {
		return advise(errors.New("a control plane runs on the folder, and has its fold"), "writ ledger refold is for a folder whose control plane does not start for want of one")
	}
	doc, err := c.refold(ctx, app, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return advise(fmt.Errorf("nothing was folded: %w", err), adviceVerify)
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("The first %d records, up to event %d, are folded from their archives, and the fold is kept.", doc.Records, doc.LastSeq)
	app.note("next: writ up")
	return nil
}

func (c *ledgerRefoldCmd) refold(ctx context.Context, app *App, r *ledger.Reader) (refoldDoc, error) {
	pruned, err := r.Pruned()
	if err != nil {
		return refoldDoc{}, err
	}
	if pruned.Size == 0 {
		return refoldDoc{}, advise(errors.New("nothing was pruned: the ledger itself holds all that a start folds"), "writ up")
	}
	old, err := app.archives(archiveFlags{Archive: c.Archive}, r.Show, pruned.Seq)
	if err != nil {
		return refoldDoc{}, err
	}
	prefix, err := plane.Refold(app.Data, r, old.events(ctx))
	return refoldDoc{Records: prefix.Size, LastSeq: prefix.Seq}, err
}
