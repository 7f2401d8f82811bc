package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

type ledgerExportCmd struct {
	Out   string `type:"path" placeholder:"FILE" xor:"what" required:"" help:"Where the bundle goes; the file must not be there yet."`
	Tiles string `type:"path" placeholder:"DIR" xor:"what" required:"" help:"Write the whole tree as tiles (C2SP tlog-tiles) instead, without contents; the folder must be empty or not there yet."`
	Agent string `placeholder:"ID" help:"Only what concerns this agent or service."`
	Trace string `placeholder:"TRACE" help:"Only this user request."`
	From  uint64 `placeholder:"SEQ" help:"Only from this sequence on."`
	To    uint64 `placeholder:"SEQ" help:"Only up to this sequence."`
	Since string `placeholder:"TIME" help:"Only from this time on: RFC 3339, or a duration such as 24h."`
	Until string `placeholder:"TIME" help:"Only up to this time."`
	Key   string `type:"path" placeholder:"FILE" help:"The ledger's public key; the data folder's keys/ledger.pub where missing."`
}

type exportDoc struct {
	File       string `json:"file"`
	Records    int    `json:"records"`
	FirstSeq   uint64 `json:"first_seq"`
	LastSeq    uint64 `json:"last_seq"`
	Complete   bool   `json:"complete"`
	Redacted   int    `json:"redacted"`
	Size       uint64 `json:"size"`
	Root       string `json:"root"`
	Checkpoint string `json:"checkpoint"`
	// Cosignatures of witnesses that the checkpoint bears, verified or not.
	Cosignatures int `json:"cosignatures"`
}

func (c *ledgerExportCmd) Run(ctx context.Context, app *App) error {
	if c.Tiles != "" {
		return c.tiles(ctx, app)
	}
	if err := c.check(); err != nil {
		return err
	}
	key, policy, err := app.ledgerPolicy(c.Key)
	if err != nil {
		return err
	}
	from, to, err := c.span(ctx, app)
	if err != nil {
		return err
	}
	show, end, err := app.shower()
	if err != nil {
		return err
	}
	b, err := ledger.Collect(ctx, show, key, schemas.ShowRequest{From: from, To: to, Agent: c.Agent, Trace: c.Trace})
	if err := errors.Join(err, end()); err != nil {
		next := adviceVerify
		if errors.Is(err, ledger.ErrTooMuch) {
			next = "export less at a time with --from and --to"
		}
		return advise(err, next)
	}
	if len(b.Records) == 0 {
		return advise(errors.New("the ledger holds no such records"), "writ log shows what there is")
	}
	data, err := b.Marshal()
	if err != nil {
		return advise(err, "export less at a time with --from and --to")
	}
	// What somebody else will refuse is not written.
	ev, err := b.Verify(policy)
	if err != nil {
		return advise(fmt.Errorf("the ledger gave what proves nothing: %w", err), "do not trust this ledger before writ ledger verify has passed on a copy")
	}
	if err := writeNew(c.Out, data); err != nil {
		return err
	}
	doc := exportDoc{File: c.Out, Records: len(b.Records), FirstSeq: ev.First, LastSeq: ev.Last, Complete: ev.Complete, Redacted: ev.Redacted,
		Size: ev.Checkpoint.Size, Root: hex.EncodeToString(ev.Checkpoint.Root[:]), Checkpoint: b.Checkpoint, Cosignatures: cosignatures(b.Checkpoint)}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("%d records, proven, are in %s.", doc.Records, plain(c.Out))
	app.note("next: hand it over with writ ledger verify-bundle, and the ledger's public key by another way; it holds bodies in clear")
	return nil
}

func (c *ledgerExportCmd) check() error {
	if err := checkSelection(c.Agent, c.Trace); err != nil {
		return err
	}
	if c.To != 0 && c.To < c.From {
		return misuse("give --to at or behind --from", "--to %d is before --from %d", c.To, c.From)
	}
	_, err := os.Lstat(c.Out)
	if err == nil {
		return advise(fmt.Errorf("%s is there already, and stays as it is", c.Out), "name another file with --out")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return advise(err, "name another file with --out")
	}
	return nil
}

// span is the range of sequences that is asked for. A time is turned into the
// range that holds all events of it: what is proven are sequences.
func (c *ledgerExportCmd) span(ctx context.Context, app *App) (from, to uint64, failed error) {
	from, to = c.From, c.To
	since, err := readTime("--since", c.Since, app.now())
	if err != nil {
		return 0, 0, err
	}
	until, err := readTime("--until", c.Until, app.now())
	if err != nil {
		return 0, 0, err
	}
	if since.IsZero() && until.IsZero() {
		return from, to, nil
	}
	if !until.IsZero() && until.Before(since) {
		return 0, 0, misuse("give --until at or behind --since", "--until is before --since")
	}
	read, end, err := app.record(false)
	if err != nil {
		return 0, 0, err
	}
	defer func() { failed = errors.Join(failed, end()) }()
	first, last, err := read.between(ctx, since, until)
	if err != nil {
		return 0, 0, err
	}
	from = max(from, first)
	if last != 0 && (to == 0 || last < to) {
		to = last
	}
	if first == 0 || to != 0 && to < from {
		return 0, 0, advise(errors.New("the ledger holds no such records"), "writ log shows what there is")
	}
	return from, to, nil
}

const adviceKey = "give the file keys/ledger.pub of the control plane's data folder with --key"

// ledgerKey reads the ledger's public key as text, by default the data
// folder's.
func (a *App) ledgerKey(path string) (string, error) {
	if path == "" {
		if a.Server != "" {
			return "", misuse(adviceKey, "with --server, the ledger's public key must be given")
		}
		path = filepath.Join(a.Data, keys.Dir, "ledger.pub")
	}
	b, err := readBounded(path, 4<<10)
	if err != nil {
		return "", advise(fmt.Errorf("read the ledger's public key: %w", err), adviceKey)
	}
	return strings.TrimSpace(string(b)), nil
}

// ledgerPolicy is that key, with the policy that it alone counts; of the data
// folder's, those count too that it followed, for what they signed.
func (a *App) ledgerPolicy(path string) (key string, p *proof.Policy, err error) {
	if key, err = a.ledgerKey(path); err != nil {
		return "", nil, err
	}
	if path == "" {
		text, err := readBounded(filepath.Join(a.Data, keys.Dir, keys.LedgerPolicy), 64<<10)
		switch {
		case err == nil:
			p, err = proof.ParsePolicy(text)
			return key, p, advise(err, "remove keys/"+keys.LedgerPolicy+" or restore it from a backup")
		case !errors.Is(err, fs.ErrNotExist):
			return "", nil, err
		}
	}
	if p, err = proof.TrustKey(key); err != nil {
		return "", nil, advise(fmt.Errorf("the ledger's public key: %w", err), adviceKey)
	}
	return key, p, nil
}

// readBounded reads a file of at most so many bytes.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return b, err
}

// writeNew writes a file that only the user can read, where there is none.
func writeNew(path string, content []byte) error {
	const next = "check that you may write there, or name another file"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return advise(err, next)
	}
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return advise(errors.Join(err, os.Remove(path)), next)
	}
	return nil
}

// shower finds the ledger: the running one, or else that on disk.
func (a *App) shower() (ledger.Show, func() error, error) {
	_, show, end, err := a.evidence()
	return show, end, err
}

// cosignatures counts the lines of signatures that are not the ledger's own.
func cosignatures(checkpoint string) (n int) {
	origin, _, _ := strings.Cut(checkpoint, "\n")
	_, sigs, _ := strings.Cut(checkpoint, "\n\n")
	for line := range strings.Lines(sigs) {
		if words := strings.Fields(line); len(words) == 3 && words[1] != origin {
			n++
		}
	}
	return n
}

type ledgerVerifyBundleCmd struct {
	File   string `arg:"" type:"path" help:"The bundle."`
	Policy string `type:"path" placeholder:"FILE" xor:"trust" help:"Policy that names the ledger's keys that count."`
	Key    string `type:"path" placeholder:"FILE" xor:"trust" help:"The ledger's public key, in place of a policy."`
	Older  string `name:"against" type:"path" placeholder:"FILE" help:"An older bundle of the same log, with which this one must agree."`
	HTML   string `name:"html" type:"path" placeholder:"FILE" help:"Write what is proven as a page for people; the file must not be there yet."`
}

type bundleDoc struct {
	OK          bool   `json:"ok"`
	Records     int    `json:"records"`
	Root        string `json:"root"`
	Size        uint64 `json:"size"`
	Checkpoint  string `json:"checkpoint"`
	FirstBadSeq uint64 `json:"first_bad_seq"`
	Error       string `json:"error"`
	FirstSeq    uint64 `json:"first_seq"`
	LastSeq     uint64 `json:"last_seq"`
	Complete    bool   `json:"complete"` // no record is missing in between
	Redacted    int    `json:"redacted"`
	Origin      string `json:"origin"`
	Trusted     bool   `json:"trusted"` // the key came from who verifies

	Cosignatures []proof.Cosignature `json:"cosignatures"` // of the policy's witnesses, verified
}

// selfAsserted is why a bundle without a policy is never ok.
const selfAsserted = "it holds under the key that it brings itself, and anybody can make such a bundle: nothing is proven before the key comes from elsewhere"

func (c *ledgerVerifyBundleCmd) Run(app *App) error {
	policy, err := c.policy()
	if err != nil {
		return err
	}
	b, err := readBundle(c.File)
	if err != nil && !errors.Is(err, proof.ErrBundle) {
		return err
	}
	doc := bundleDoc{Trusted: policy != nil, Cosignatures: []proof.Cosignature{}}
	var ev *proof.Evidence
	if err == nil {
		doc.Records = len(b.Records)
		if policy == nil {
			// The bundle's own key serves to tell what is wrong, never for ok.
			policy, err = proof.TrustKey(b.Key)
		}
		if err == nil {
			ev, err = b.Verify(policy)
		}
		if err == nil {
			err = c.against(ev, policy)
		}
	}
	doc.judge(b, ev, err)
	if c.HTML != "" {
		page, err := bundlePage(doc, ev)
		if err != nil {
			return err
		}
		if err := writeNew(c.HTML, page); err != nil {
			return err
		}
	}
	if app.JSON {
		err = app.emit(doc)
	} else {
		app.bundle(doc)
		err = nil
	}
	if err == nil && !doc.OK {
		err = errShown
	}
	return err
}

// against holds what is proven against an older bundle.
func (c *ledgerVerifyBundleCmd) against(ev *proof.Evidence, policy *proof.Policy) error {
	if c.Older == "" {
		return nil
	}
	b, err := readBundle(c.Older)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Older, err)
	}
	older, err := b.Verify(policy)
	if err != nil {
		return fmt.Errorf("the older bundle proves nothing itself: %v", err)
	}
	return ev.Against(older)
}

func readBundle(path string) (*proof.Bundle, error) {
	data, err := readBounded(path, proof.MaxBundle)
	if err != nil {
		return nil, advise(fmt.Errorf("read the bundle: %w", err), "name the file that writ ledger export wrote")
	}
	return proof.OpenBundle(data)
}

// policy is the verifier's, nil where there is none.
func (c *ledgerVerifyBundleCmd) policy() (*proof.Policy, error) {
	const next = "a policy has lines \"log VKEY\", with the text of keys/ledger.pub for VKEY, and may have lines witness, group and quorum; docs/evidence.md shows one"
	switch {
	case c.Policy != "":
		text, err := readBounded(c.Policy, 64<<10)
		if err != nil {
			return nil, advise(fmt.Errorf("read the policy: %w", err), next)
		}
		p, err := witness.ParseKeyPolicy(text)
		return p, advise(err, next)
	case c.Key != "":
		text, err := readBounded(c.Key, 4<<10)
		if err != nil {
			return nil, advise(fmt.Errorf("read the ledger's public key: %w", err), adviceKey)
		}
		p, err := proof.TrustKey(strings.TrimSpace(string(text)))
		return p, advise(err, adviceKey)
	}
	return nil, nil
}

// judge fills in what came out.
func (d *bundleDoc) judge(b *proof.Bundle, ev *proof.Evidence, err error) {
	var found *proof.BundleError
	if errors.As(err, &found) {
		d.FirstBadSeq = found.Seq
	}
	switch {
	case err != nil:
		d.Error = err.Error()
		return
	case !d.Trusted:
		d.Error = selfAsserted
	default:
		d.OK = true
	}
	c := ev.Checkpoint
	d.Root, d.Size, d.Checkpoint, d.Origin = hex.EncodeToString(c.Root[:]), c.Size, b.Checkpoint, c.Origin
	d.Cosignatures = list(ev.Cosignatures)
	d.FirstSeq, d.LastSeq, d.Complete, d.Redacted = ev.First, ev.Last, ev.Complete, ev.Redacted
}

func (t *terminal) bundle(doc bundleDoc) {
	switch {
	case doc.OK:
		t.say("%s: %d records are in the log of %s", t.paint(green, "proven"), doc.Records, plain(doc.Origin))
	case doc.Size > 0:
		t.say("%s: %s", t.paint(yellow, "NOT PROVEN"), plain(doc.Error))
		t.note("next: get the ledger's public key or a policy from somebody you trust, and give it with --key or --policy")
		return
	default:
		t.say("%s: %s", t.paint(red, "REFUSED"), plain(doc.Error))
		if doc.FirstBadSeq != 0 {
			t.facts([2]string{"first bad event", seqText(doc.FirstBadSeq)})
		}
		t.note("next: believe nothing in this file; ask for another, and keep this one")
		return
	}
	gaps := "selected: others may stand in between"
	if doc.Complete {
		gaps = "complete: none is missing in between"
	}
	t.facts([2]string{"events", seqText(doc.FirstSeq) + " to " + seqText(doc.LastSeq)}, [2]string{"selection", gaps},
		[2]string{"redacted", strconv.Itoa(doc.Redacted)}, [2]string{"log", strconv.FormatUint(doc.Size, 10) + " records"}, [2]string{"root", doc.Root})
	for _, c := range doc.Cosignatures {
		t.facts([2]string{"witnessed", plain(c.Witness) + " at " + c.Time.Format(time.RFC3339)})
	}
}
