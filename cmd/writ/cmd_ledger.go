package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

type ledgerCmd struct {
	Verify ledgerVerifyCmd `cmd:"" help:"Verify every record: of the running control plane, or offline of a copy of its folder."`
	Head   ledgerHeadCmd   `cmd:"" help:"Show the durable end, signed."`
	Prove  ledgerProveCmd  `cmd:"" help:"Prove that an event is in the ledger."`
	Export ledgerExportCmd `cmd:"" help:"Write a bundle of records that proves itself offline."`

	Witness ledgerWitnessCmd `cmd:"" help:"Be a witness: cosign other machines' ledgers, and never two histories of one."`

	VerifyBundle ledgerVerifyBundleCmd `cmd:"" help:"Verify a bundle offline, under keys of your own."`

	Prune     ledgerPruneCmd     `cmd:"" help:"Move old contents to archives; every proof stays."`
	Redact    ledgerRedactCmd    `cmd:"" help:"Erase all contents of an agent, by destroying its key."`
	AcceptGap ledgerAcceptGapCmd `cmd:"" help:"Record that events are lost, so that the ledger can go on behind them."`
	Refold    ledgerRefoldCmd    `cmd:"" help:"Fold what was pruned anew from its archives, where a start finds no fold that it can read."`
	Backup    ledgerBackupCmd    `cmd:"" help:"Back up a running control plane, and verify the backup."`
	Restore   ledgerRestoreCmd   `cmd:"" help:"Put a backup into a data folder, and verify it there."`
}

// verifyWithin bounds a verification by the running ledger.
const verifyWithin = time.Hour

type ledgerVerifyCmd struct{}

type ledgerVerifyDoc struct {
	schemas.VerifyReply
	Offline bool `json:"offline"`
}

func (c *ledgerVerifyCmd) Run(ctx context.Context, app *App) error {
	doc, err := c.verify(ctx, app)
	if err != nil {
		return err
	}
	if app.JSON {
		err = app.emit(doc)
	} else {
		app.verified(doc)
	}
	if err == nil && !doc.OK {
		err = errShown
	}
	return err
}

func (c *ledgerVerifyCmd) verify(ctx context.Context, app *App) (doc ledgerVerifyDoc, err error) {
	if app.Server == "" {
		_, err := running(app.Data)
		if errors.Is(err, errNotRunning) {
			return verifyOffline(ctx, app)
		}
		if err != nil {
			return doc, err
		}
	}
	cl, err := app.dial()
	if err != nil {
		return doc, err
	}
	defer cl.close()
	doc.VerifyReply, err = askWithin[schemas.VerifyReply](ctx, cl, verifyWithin, schemas.CtlVerify, nil)
	return doc, err
}

func verifyOffline(ctx context.Context, app *App) (doc ledgerVerifyDoc, err error) {
	doc.Offline = true
	if _, err := os.Stat(filepath.Join(app.Data, "ledger")); errors.Is(err, fs.ErrNotExist) {
		return doc, advise(fmt.Errorf("no control plane runs on %s, and no ledger is there either", app.Data),
			"name the data folder, or a copy of it, with --data")
	}
	o, err := plane.LedgerOptions(app.Data)
	if err != nil {
		return doc, advise(err, "the folder must hold keys/ too: verification needs the ledger's public key and the root of its salts")
	}
	step, done := app.progress("verified")
	doc.VerifyReply, err = ledger.Verify(ctx, o, step)
	done()
	if errors.Is(err, fs.ErrPermission) {
		err = advise(err, adviceOwner(app.Data))
	}
	return doc, advise(err, "verify a copy of the data folder that nobody has open")
}

func (t *terminal) verified(doc ledgerVerifyDoc) {
	where := "by the running ledger"
	if doc.Offline {
		where = "offline"
	}
	if doc.OK {
		t.say("%s: %d records verified %s, %s a second", t.paint(green, "whole"), doc.Records, where, count(doc.RecordsPerSec))
		t.facts([2]string{"root", doc.Root})
		return
	}
	t.say("%s: %s", t.paint(red, "NOT WHOLE"), plain(doc.Error))
	if doc.FirstBadSeq != 0 {
		t.facts([2]string{"first bad event", seqText(doc.FirstBadSeq)})
	}
	t.note("next: stop the control plane, keep the folder as it is for the investigation, and compare it with a backup")
}

// count writes a large number in short.
func count(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", n/1e6)
	case n >= 1e4:
		return fmt.Sprintf("%.0fk", n/1e3)
	}
	return fmt.Sprintf("%.0f", n)
}

type ledgerHeadCmd struct{}

func (c *ledgerHeadCmd) Run(ctx context.Context, app *App) error {
	head, err := c.head(ctx, app)
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(head)
	}
	app.facts([2]string{"records", strconv.FormatUint(head.Size, 10)}, [2]string{"newest event", seqText(head.StreamSeq)}, [2]string{"root", head.Root})
	app.published(head.Published)
	app.checkpoint(head.Checkpoint)
	return nil
}

func (c *ledgerHeadCmd) head(ctx context.Context, app *App) (head schemas.Head, err error) {
	r, err := app.onDisk()
	if err != nil {
		return head, err
	}
	if r == nil {
		return call[schemas.Head](ctx, app, schemas.CtlHead, schemas.HeadRequest{})
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	head, err = r.Head()
	return head, advise(err, adviceVerify)
}

// checkpoint prints a signed note.
func (t *terminal) checkpoint(note string) {
	if note == "" {
		return
	}
	t.say("%s", t.paint(dim, "checkpoint"))
	for line := range strings.Lines(note) {
		t.say("  %s", plain(strings.TrimSuffix(line, "\n")))
	}
}

type ledgerProveCmd struct {
	Seq uint64 `arg:"" help:"Sequence of the event."`
	Key string `type:"path" placeholder:"FILE" help:"The ledger's public key; the data folder's keys/ledger.pub where missing."`
}

type ledgerProofDoc struct {
	schemas.Proof
	Checked bool `json:"checked"` // against the public key, here
}

func (c *ledgerProveCmd) Run(ctx context.Context, app *App) error {
	if c.Seq == 0 {
		return misuse("writ log shows the sequences", "sequences begin at 1")
	}
	verifier, err := c.verifier(app)
	if err != nil {
		return err
	}
	p, err := c.prove(ctx, app)
	if err != nil {
		return err
	}
	doc := ledgerProofDoc{Proof: p, Checked: verifier != nil}
	doc.Hashes = list(doc.Hashes)
	if verifier != nil {
		if err := checkProof(p, c.Seq, verifier); err != nil {
			return advise(err, "do not trust this ledger before writ ledger verify has passed on a copy")
		}
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.proof(doc)
	return nil
}

func (c *ledgerProveCmd) prove(ctx context.Context, app *App) (p schemas.Proof, err error) {
	r, err := app.onDisk()
	if err != nil {
		return p, err
	}
	if r == nil {
		return call[schemas.Proof](ctx, app, schemas.CtlProve, schemas.ProveRequest{Seq: c.Seq})
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p, err = r.Prove(c.Seq)
	var refused *schemas.Refusal
	if errors.As(err, &refused) {
		return p, err // as the running ledger says it
	}
	return p, advise(err, adviceVerify)
}

// checkProof holds a proof against the public key, and against the question.
func checkProof(p schemas.Proof, seq uint64, v note.Verifier) error {
	r, _, err := proof.CheckInclusion(p, v)
	if err != nil {
		return fmt.Errorf("the ledger's answer proves nothing: %w", err)
	}
	if r.Kind != proof.KindEvent || r.StreamSeq != seq {
		return fmt.Errorf("the ledger's answer proves event %d, and not %d", r.StreamSeq, seq)
	}
	return nil
}

// verifier reads the ledger's public key; nil where none is at hand.
func (c *ledgerProveCmd) verifier(app *App) (note.Verifier, error) {
	path := c.Key
	if path == "" {
		if app.Server != "" {
			return nil, nil
		}
		path = filepath.Join(app.Data, keys.Dir, "ledger.pub")
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && c.Key == "" {
		return nil, nil
	}
	if err != nil {
		return nil, advise(fmt.Errorf("read the ledger's public key: %w", err), adviceKey)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, advise(fmt.Errorf("%s is no public key of a ledger: %w", path, err), adviceKey)
	}
	return v, nil
}

func (t *terminal) proof(doc ledgerProofDoc) {
	if doc.Checked {
		t.say("Event %d %s.", doc.Seq, t.paint(green, "is in the ledger"))
	} else {
		t.say("Event %d is in the ledger, as the ledger says.", doc.Seq)
		t.note("next: check the proof with --key: the ledger's public key is not here")
	}
	t.facts([2]string{"record", strconv.FormatUint(doc.Index, 10)}, [2]string{"leaf", doc.Leaf}, [2]string{"path", strings.Join(doc.Hashes, " ")})
	t.checkpoint(doc.Checkpoint)
}
