package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// keepWithin bounds what the running ledger is asked to do with all of itself.
const keepWithin = time.Hour

type ledgerPruneCmd struct {
	Before  string        `placeholder:"TIME" xor:"age" required:"" help:"Prune what is older than this time (RFC 3339)."`
	Keep    time.Duration `placeholder:"DURATION" xor:"age" required:"" help:"Prune what is older than this, like 2160h."`
	Archive string        `required:"" type:"path" placeholder:"DIR" help:"Folder for the archives: bundles that verify offline."`
	Reason  string        `default:"retention" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the ledger (default: ${default})."`
	DryRun  bool          `help:"Show what would be pruned, and do nothing."`
	Key     string        `type:"path" placeholder:"FILE" help:"The ledger's public key; the data folder's keys/ledger.pub where missing."`
}

type pruneDoc struct {
	schemas.PruneReply
	Archives []schemas.PruneArchive `json:"archives"`
	DryRun   bool                   `json:"dry_run"`
}

// Run archives what may be pruned, verifies each archive, and only then has
// the contents deleted.
func (c *ledgerPruneCmd) Run(ctx context.Context, app *App) error {
	doc, err := c.prune(ctx, app)
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.pruned(doc)
	return nil
}

func (c *ledgerPruneCmd) prune(ctx context.Context, app *App) (pruneDoc, error) {
	before, err := c.before(time.Now())
	if err != nil {
		return pruneDoc{}, err
	}
	key, policy, err := app.ledgerPolicy(c.Key)
	if err != nil {
		return pruneDoc{}, err
	}
	cl, err := app.dial()
	if err != nil {
		return pruneDoc{}, err
	}
	defer cl.close()
	a := archiver{dir: c.Archive, key: key, policy: policy, show: func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
		return ask[schemas.ShowReply](ctx, cl, schemas.CtlShow, q)
	}}
	return a.prune(ctx, cl, schemas.PruneRequest{Before: before, Reason: c.Reason, Actor: app.actor}, c.DryRun)
}

func (c *ledgerPruneCmd) before(now time.Time) (time.Time, error) {
	if c.Before == "" {
		if c.Keep <= 0 {
			return now, misuse("give --keep a duration like 2160h", "--keep %s keeps nothing", c.Keep)
		}
		return now.Add(-c.Keep), checkReason(c.Reason)
	}
	t, err := time.Parse(time.RFC3339, c.Before)
	if err != nil {
		return t, misuse("give --before a time like 2026-01-31T00:00:00Z", "--before: %w", err)
	}
	return t, checkReason(c.Reason)
}

func (t *terminal) pruned(doc pruneDoc) {
	switch {
	case doc.LastSeq == 0:
		t.say("Nothing may be pruned.")
	case doc.DryRun:
		t.say("Events %d to %d would be archived and pruned.", doc.FirstSeq, doc.LastSeq)
	default:
		t.say("The contents of all events up to %d are in archives alone; %d archives were written and verified.", doc.LastSeq, len(doc.Archives))
		t.note("next: keep the archives where this machine can't change them; writ ledger verify-bundle reads them")
	}
	if doc.Limit != "" {
		t.note("no more may be: %s", plain(doc.Limit))
	}
}

// archiveRecords is how many events an archive holds at most.
const archiveRecords = 20_000

// An archiver writes bundles of all records, one behind the other.
type archiver struct {
	dir    string
	key    string
	policy *proof.Policy
	show   ledger.Show
	done   []schemas.PruneArchive
}

// prune asks what may be pruned, archives it, and has it deleted.
func (a *archiver) prune(ctx context.Context, cl *client, req schemas.PruneRequest, dry bool) (doc pruneDoc, err error) {
	doc = pruneDoc{DryRun: dry, Archives: []schemas.PruneArchive{}}
	if doc.PruneReply, err = askWithin[schemas.PruneReply](ctx, cl, keepWithin, schemas.CtlPrune, req); err != nil || doc.LastSeq == 0 || dry {
		return doc, err
	}
	if err := a.all(ctx, doc.FirstSeq, doc.LastSeq); err != nil {
		return doc, err
	}
	limit := doc.Limit
	req.LastSeq, req.Archives, doc.Archives = doc.LastSeq, a.done, a.done
	doc.PruneReply, err = askWithin[schemas.PruneReply](ctx, cl, keepWithin, schemas.CtlPrune, req)
	doc.Limit = limit
	return doc, err
}

func (a *archiver) all(ctx context.Context, first, last uint64) error {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return advise(fmt.Errorf("the folder of archives: %w", err), "name another folder with --archive")
	}
	for size := uint64(archiveRecords); first <= last; {
		to := min(first+size-1, last)
		err := a.one(ctx, first, to)
		if (errors.Is(err, ledger.ErrTooMuch) || errors.Is(err, proof.ErrBundle)) && size > 1 && to > first {
			size = max(size/4, 1)
			continue
		}
		if err != nil {
			return err
		}
		first = to + 1
	}
	return nil
}

// one writes an archive, and verifies what was written.
func (a *archiver) one(ctx context.Context, first, last uint64) error {
	b, err := ledger.Collect(ctx, a.show, a.key, schemas.ShowRequest{From: first, To: last})
	if err != nil {
		return err
	}
	data, err := b.Marshal()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("events-%012d-%012d.bundle", first, last)
	path := filepath.Join(a.dir, name)
	// One that an interrupted run left must prove the same.
	if err := writeNew(path, data); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	read, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := a.verify(read, first, last); err != nil {
		return advise(fmt.Errorf("the archive %s does not prove what it should, and nothing was pruned: %w", path, err), adviceVerify)
	}
	sum := sha256.Sum256(read)
	a.done = append(a.done, schemas.PruneArchive{File: name, SHA256: hex.EncodeToString(sum[:]), FirstSeq: first, LastSeq: last})
	return nil
}

func (a *archiver) verify(data []byte, first, last uint64) error {
	b, err := proof.OpenBundle(data)
	if err != nil {
		return err
	}
	ev, err := b.Verify(a.policy)
	if err != nil {
		return err
	}
	if !ev.Complete || ev.First > first || ev.Last < last {
		return fmt.Errorf("it spans events %d to %d, complete: %t", ev.First, ev.Last, ev.Complete)
	}
	return nil
}

type ledgerRedactCmd struct {
	Agent     string `required:"" placeholder:"ID" help:"Whose contents are erased. It must have been killed or removed."`
	Authority string `required:"" placeholder:"TEXT" help:"Who demands it, and by what right: it stands in the ledger for good."`
	Reason    string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the ledger for good."`
	Confirm   string `placeholder:"ID" help:"The agent once more: an erasure can't be undone."`
}

func (c *ledgerRedactCmd) Run(ctx context.Context, app *App) error {
	if err := schemas.CheckID("agent", c.Agent); err != nil {
		return misuse("writ status lists the agents", "%w", err)
	}
	for name, text := range map[string]string{"--authority": c.Authority, "--reason": c.Reason} {
		if err := checkLine(name, text, schemas.MaxReason); err != nil {
			return err
		}
	}
	if c.Confirm != c.Agent {
		return misuse("add --confirm "+c.Agent, "what %s did can never be read again, by nobody, after this: confirm it", c.Agent)
	}
	rep, err := call[schemas.EraseReply](ctx, app, schemas.CtlErase, schemas.EraseRequest{AgentID: c.Agent, Authority: c.Authority, Reason: c.Reason})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(rep)
	}
	app.say("The contents of %s are erased; every proof still holds.", c.Agent)
	if !rep.Memory {
		app.note("Its memories are not: the ledger's machine has no credentials for them. docs/operations.md says how.")
	}
	app.note("next: EVENTS still holds what it did until it ages out; restart the control plane once, which removes what is left of its memories; and destroy backups of anchor/subjects from before")
	app.checkpoint(rep.Checkpoint)
	return nil
}

type ledgerAcceptGapCmd struct {
	Last   uint64 `required:"" placeholder:"SEQ" help:"The last sequence that is lost."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the ledger for good."`
}

type gapDoc struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Run accepts a gap in the ledger of a control plane that is stopped: it can't
// run over one.
func (c *ledgerAcceptGapCmd) Run(app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := app.onDisk()
	if err != nil {
		return err
	}
	if r == nil {
		return advise(errors.New("a control plane runs on the folder, and none runs over a gap"), "writ ledger accept-gap is for a folder whose control plane halted at a gap and is stopped")
	}
	id, err := r.StreamID()
	if err := errors.Join(err, r.Close()); err != nil {
		return advise(err, adviceVerify)
	}
	o, err := plane.LedgerOptions(app.Data)
	if err != nil {
		return err
	}
	o.StreamID = id
	led, err := ledger.Open(o)
	if err != nil {
		return advise(err, adviceVerify)
	}
	doc := gapDoc{First: led.From(), Last: c.Last}
	err = led.RecordGap(c.Last, c.Reason, app.actor, time.Now())
	if err := errors.Join(err, led.Close()); err != nil {
		next := "the ledger goes on at the sequence behind the last that it has; writ ledger head shows that one"
		if errors.Is(err, ledger.ErrUnconfirmed) {
			next = "restore the whole data folder from one backup (writ ledger restore): the last records are not signed, and no gap can be recorded behind them"
		}
		return advise(fmt.Errorf("the gap was not accepted: %w", err), next)
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("The ledger records that sequences %d to %d are lost, and goes on behind them.", doc.First, doc.Last)
	return nil
}
