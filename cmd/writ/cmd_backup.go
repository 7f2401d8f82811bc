package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// backupParts are the folders of a backup beside keys/.
var backupParts = []string{"ledger", "anchor", "release", "nats"}

type ledgerBackupCmd struct {
	Dir      string `arg:"" type:"path" help:"A new folder for the backup."`
	WithKeys bool   `help:"Also copy keys/: whoever has them is the control plane."`
}

type backupDoc struct {
	Dir        string `json:"dir"`
	Records    uint64 `json:"records"`
	StreamSeq  uint64 `json:"stream_seq"`
	Root       string `json:"root"`
	Checkpoint string `json:"checkpoint"`
	Keys       bool   `json:"keys"`
}

// Run copies the log first and the ledger after it: so the ledger has all that
// the log has acknowledged, and gives back what the copy of the log lacks.
func (c *ledgerBackupCmd) Run(ctx context.Context, app *App) error {
	if app.Server != "" {
		return misuse("run it on the control plane's machine, with --data", "a backup needs the data folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	cl, err := app.dial()
	if err != nil {
		return fmt.Errorf("%w; the backup of one that is stopped is a copy of the whole data folder", err)
	}
	defer cl.close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return advise(fmt.Errorf("the backup's folder: %w", err), "name a new folder in one that is there")
	}
	if err := copyTree(filepath.Join(app.Data, "nats"), filepath.Join(dir, "nats")); err != nil {
		return err
	}
	rep, err := askWithin[schemas.BackupReply](ctx, cl, keepWithin, schemas.CtlBackup, schemas.BackupRequest{Dir: dir})
	if err != nil {
		return err
	}
	if c.WithKeys {
		if err := copyTree(filepath.Join(app.Data, keys.Dir), filepath.Join(dir, keys.Dir)); err != nil {
			return err
		}
	}
	v, err := verifyAt(ctx, app, app.Data, dir)
	if err != nil {
		return advise(fmt.Errorf("the backup does not verify: %w", err), adviceVerify)
	}
	doc := backupDoc{Dir: dir, Records: v.Records, StreamSeq: rep.StreamSeq, Root: v.Root, Checkpoint: rep.Checkpoint, Keys: c.WithKeys}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("%d records are backed up and verified in %s.", doc.Records, plain(dir))
	if c.WithKeys {
		app.note("It holds the keys: encrypt it, and guard it as you guard the machine.")
	} else {
		app.note("It holds no keys: keep keys/ elsewhere, for without them it can't be read.")
	}
	app.checkpoint(doc.Checkpoint)
	return nil
}

// verifyAt verifies the ledger of one folder with the keys of another.
func verifyAt(ctx context.Context, app *App, keysOf, data string) (schemas.VerifyReply, error) {
	o, err := ledgerAt(keysOf, data)
	if err != nil {
		return schemas.VerifyReply{}, err
	}
	step, done := app.progress("verified")
	rep, err := ledger.Verify(ctx, o, step)
	done()
	if err == nil && !rep.OK {
		err = fmt.Errorf("first bad event %d: %s", rep.FirstBadSeq, rep.Error)
	}
	return rep, err
}

func ledgerAt(keysOf, data string) (ledger.Options, error) {
	o, err := plane.LedgerOptions(keysOf)
	o.Dir, o.AnchorDir = filepath.Join(data, "ledger"), filepath.Join(data, "anchor")
	return o, err
}

const adviceOther = "name another backup, with the keys of the control plane that wrote it"

type ledgerRestoreCmd struct {
	Dir        string `arg:"" type:"path" help:"The backup."`
	Checkpoint string `type:"path" placeholder:"FILE" help:"A signed checkpoint that was kept elsewhere: the backup must reach it."`
	Rollback   string `placeholder:"REASON" help:"Restore although the anchor, or the checkpoint, knows of records that the backup lacks: they are lost. The reason is kept beside the anchor."`
}

type restoreDoc struct {
	Data       string `json:"data"`
	Records    uint64 `json:"records"`
	Root       string `json:"root"`
	RolledBack uint64 `json:"rolled_back"` // records that were signed and are lost
}

// Run puts a backup into a data folder that has no log and no ledger. An anchor
// that is there stays in force: a backup is no way to cut a ledger off.
func (c *ledgerRestoreCmd) Run(ctx context.Context, app *App) error {
	if err := c.vacant(app.Data); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "ledger")); err != nil {
		return advise(fmt.Errorf("find the backup: %w", err), "name a folder that writ ledger backup wrote")
	}
	keysOf := app.Data
	if _, err := os.Stat(filepath.Join(app.Data, keys.Dir)); errors.Is(err, fs.ErrNotExist) {
		keysOf = c.Dir
		if _, err := os.Stat(filepath.Join(c.Dir, keys.Dir)); err != nil {
			return advise(fmt.Errorf("the backup holds no keys, and neither does %s", app.Data), "put the control plane's own keys/ into the data folder first; new ones can't read it")
		}
	}
	o, err := ledgerAt(keysOf, c.Dir)
	if err != nil {
		return advise(err, "put the whole keys/ of that control plane into "+keysOf)
	}
	v, err := verifyAt(ctx, app, keysOf, c.Dir)
	if err != nil {
		return advise(fmt.Errorf("the backup does not verify, and nothing was restored: %w", err), adviceOther)
	}
	lost, err := c.reaches(o, app.Data)
	if err != nil {
		return err
	}
	if err := keys.MakeFolder(app.Data); err != nil {
		return advise(err, "restore into a folder that is closed to others, or a new one")
	}
	if lost > 0 {
		if err := keepAnchor(app.Data, c.Rollback, time.Now()); err != nil {
			return err
		}
	}
	parts := backupParts
	if keysOf == c.Dir {
		parts = append([]string{keys.Dir}, parts...)
	}
	for _, name := range parts {
		if err := copyTree(filepath.Join(c.Dir, name), filepath.Join(app.Data, name)); err != nil {
			return err
		}
	}
	if v, err = verifyAt(ctx, app, app.Data, app.Data); err != nil {
		return advise(fmt.Errorf("what was restored does not verify: %w", err), "check the disk, and restore into another folder")
	}
	doc := restoreDoc{Data: app.Data, Records: v.Records, Root: v.Root, RolledBack: lost}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("%d records are restored and verified in %s.", doc.Records, plain(app.Data))
	app.note("next: writ up; lock again whom you locked after the backup was made")
	return nil
}

// vacant demands a folder that holds neither log nor ledger.
func (c *ledgerRestoreCmd) vacant(data string) error {
	for _, name := range []string{"ledger", "nats", "release"} {
		if _, err := os.Lstat(filepath.Join(data, name)); !errors.Is(err, fs.ErrNotExist) {
			return advise(fmt.Errorf("%s is there already, and stays as it is", filepath.Join(data, name)), "restore into a new folder, or move the old one's ledger, nats and release aside")
		}
	}
	return nil
}

// reaches holds the backup against what was signed later, as far as it is
// known here: the anchor that is in place, and a checkpoint from elsewhere. It
// gives how many signed records the backup lacks, if that was allowed.
func (c *ledgerRestoreCmd) reaches(o ledger.Options, data string) (lost uint64, err error) {
	r, err := ledger.OpenReader(o)
	if err != nil {
		return 0, advise(err, adviceOther)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	head, err := r.Head()
	if err != nil {
		return 0, err
	}
	known := []string{filepath.Join(data, "anchor", "head")}
	if c.Checkpoint != "" {
		known = append(known, c.Checkpoint)
	}
	for _, path := range known {
		signed, err := readCheckpoint(path, r.Signed)
		if errors.Is(err, fs.ErrNotExist) && path != c.Checkpoint {
			continue
		}
		switch {
		case err != nil && path == c.Checkpoint:
			return 0, advise(err, "give a file that holds a signed checkpoint of this ledger and nothing else: the field checkpoint of writ ledger head --json")
		case err != nil:
			return 0, advise(err, "put keys/ and anchor/ of one control plane into "+data)
		}
		if signed.Size > head.Size {
			lost = max(lost, signed.Size-head.Size)
			continue
		}
		if signed.Size == 0 {
			continue
		}
		p, err := r.PrefixOf(signed.Size)
		if err != nil {
			return 0, err
		}
		if p.Root != signed.Root {
			return 0, advise(fmt.Errorf("the first %d records of the backup lead to the root %v, and %s says %v: it is another history", signed.Size, p.Root, path, signed.Root),
				"name a backup of this ledger; if it is one, somebody signed two histories")
		}
	}
	if lost > 0 && c.Rollback == "" {
		return 0, advise(fmt.Errorf("the backup has %d records, and %d more were signed after it: restoring it would undo them, kills among them", head.Size, lost),
			"name a newer backup; or say with --rollback REASON that they are lost")
	}
	return lost, nil
}

// readCheckpoint reads a signed note from a file.
func readCheckpoint(path string, open func([]byte) (proof.Checkpoint, error)) (proof.Checkpoint, error) {
	b, err := readBounded(path, 64<<10)
	if err != nil {
		return proof.Checkpoint{}, err
	}
	c, err := open(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// keepAnchor puts the anchor that a rollback goes behind aside, with the
// reason: it is the evidence of what was lost.
func keepAnchor(data, reason string, at time.Time) error {
	dir := filepath.Join(data, "anchor", "rolled-back-"+at.UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, "reason"), []byte(reason+"\n")); err != nil {
		return err
	}
	for _, name := range []string{"head", "subjects"} {
		err := os.Rename(filepath.Join(data, "anchor", name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copyTree copies the files that a folder holds now, durably, each as far as
// it goes. Files that others remove meanwhile are left out: the log's, which
// age out.
func copyTree(from, to string) error {
	var files []string
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case d.Type().IsRegular():
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	for _, rel := range files {
		err := copyFile(filepath.Join(from, rel), filepath.Join(to, rel))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy %s: %w", filepath.Join(from, rel), err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
