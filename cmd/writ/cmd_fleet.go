package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

type initCmd struct {
	TrustDomain string `placeholder:"DOMAIN" default:"writ.local" help:"Name of the trust domain, such as acme.example (default: ${default})."`
	Seal        bool   `help:"Seal the keys from the beginning, to --passphrase-file, --identity, or a passphrase that is asked for."`
	tlsFlags
}

// keys makes the keys, sealed where that is asked for.
func (c *initCmd) keys(ctx context.Context, app *App) error {
	if !c.Seal {
		if app.given(ofKeys) {
			return misuse("add --seal, or leave out --passphrase-file, --identity and what the environment says", "what opens sealed keys is given, and these are not to be sealed")
		}
		return keys.Init(app.Data, c.TrustDomain)
	}
	dir := filepath.Join(app.Data, keys.Dir)
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%w in %s", keys.ErrExists, dir)
	}
	with, err := app.opener(ctx, app, ofKeys, dir, true)
	if err != nil {
		return err
	}
	return keys.InitSealed(app.Data, c.TrustDomain, with)
}

func (c *initCmd) Run(ctx context.Context, app *App) error {
	if err := keys.CheckTrustDomain(c.TrustDomain); err != nil {
		return misuse("give a name such as acme.example with --trust-domain", "%w", err)
	}
	secure, err := c.config()
	if err != nil {
		return err
	}
	if err := c.keys(ctx, app); err != nil {
		if errors.Is(err, keys.ErrExists) {
			return advise(err, "writ up --data "+app.Data+" uses the keys that are there")
		}
		if errors.Is(err, keys.ErrHistory) {
			return advise(err, "put keys/ back, or choose another folder with --data")
		}
		return advise(err, "check that you may write to "+app.Data)
	}
	if secure != nil {
		if err := ca.Enable(app.Data, c.TrustDomain, *secure, app.now()); err != nil {
			return advise(err, "the keys are made, without TLS; writ up --tls turns it on")
		}
	}
	if err := writeTrust(app.Data); err != nil {
		return advise(err, "the keys are made; writ up --data "+app.Data+" needs no more")
	}
	changes := []schemas.Change{{ID: "keys", Action: fleet.Add, Detail: filepath.Join(app.Data, keys.Dir)}}
	for _, account := range []string{keys.SYS, keys.CONTROL, keys.DELIVER, keys.MEMORY, keys.AUTH} {
		changes = append(changes, schemas.Change{ID: account, Action: fleet.Add, Detail: "account"})
	}
	if secure != nil {
		changes = append(changes, schemas.Change{ID: "tls", Action: fleet.Add, Detail: ca.BundlePath(app.Data)})
	}
	if app.JSON {
		return app.emit(struct {
			Data        string           `json:"data"`
			TrustDomain string           `json:"trust_domain"`
			Changes     []schemas.Change `json:"changes"`
		}{app.Data, c.TrustDomain, changes})
	}
	app.say("Made the keys of %s in %s.", c.TrustDomain, filepath.Join(app.Data, keys.Dir))
	app.note("Take the operator's root key off this machine, and keep it: writ keys export-root --to FILE --remove, or move %s.", offlineDir(app.Data))
	if secure != nil {
		app.note("TLS is on: clients trust the server by %s, and agents need a certificate (--svid-dir).", ca.BundlePath(app.Data))
	}
	app.note("Then: writ up --data %s. A NATS server elsewhere is given what is in %s.", app.Data, filepath.Join(app.Data, trustDir))
	return nil
}

type applyCmd struct {
	File   string `name:"file" short:"f" required:"" type:"path" placeholder:"FLEET" help:"Fleet file (YAML)."`
	DryRun bool   `name:"dry-run" help:"Show what would change, and change nothing."`
	Prune  bool   `name:"prune" help:"Kill and remove who is no longer in the file."`
}

func (c *applyCmd) Run(ctx context.Context, app *App) error {
	file, err := readFleet(c.File)
	if err != nil {
		return err
	}
	cl, err := app.dial()
	if err != nil {
		return err
	}
	defer cl.close()
	reply, err := askWithin[schemas.ApplyReply](ctx, cl, applyWithin(len(file.Principals)), schemas.CtlApply, file.request(app.actor, c.DryRun, c.Prune))
	if err != nil {
		return err
	}
	changes := list(reply.Changes)
	if app.JSON {
		return app.emit(struct {
			Changes []schemas.Change `json:"changes"`
			DryRun  bool             `json:"dry_run"`
		}{changes, c.DryRun})
	}
	app.changes(changes)
	switch {
	case len(changes) == 0:
		app.note("The fleet is as the file says; nothing changed.")
	case c.DryRun:
		app.note("%d changes; nothing was done (--dry-run).", len(changes))
		if slices.ContainsFunc(changes, func(c schemas.Change) bool { return c.Action == fleet.Remove }) && !c.Prune {
			app.note("Without --prune they will be refused: what the file no longer declares is killed and removed only with it.")
		}
	default:
		app.note("%d changes applied.", len(changes))
	}
	return nil
}

// applyWithin is how long an answer may take: servers that have much to do take
// each account in their own time. The issuer itself gives up after two minutes.
func applyWithin(principals int) time.Duration {
	return min(callWithin+time.Duration(principals)*50*time.Millisecond, 2*time.Minute)
}

// fleetFile is a fleet file that was read without fault.
type fleetFile struct{ *fleet.File }

func readFleet(path string) (fleetFile, error) {
	file, err := fleet.Load(path)
	var faults fleet.Errors
	var unread *fs.PathError
	switch {
	case errors.As(err, &faults):
		return fleetFile{}, advise(fmt.Errorf("the fleet file is not sound, and nothing was applied:\n%w", err), "correct the lines named above and run the command again")
	case errors.As(err, &unread):
		return fleetFile{}, advise(err, "name a fleet file that can be read, and in it guard rails that can")
	case err != nil:
		return fleetFile{}, advise(fmt.Errorf("the guard rails are not sound, and nothing was applied:\n%w", err), "correct the policies named above; writ policy schema says what they may speak of")
	}
	return fleetFile{file}, nil
}

func (f fleetFile) request(actor string, dryRun, prune bool) schemas.ApplyRequest {
	return schemas.ApplyRequest{TrustDomain: f.TrustDomain, Digest: f.Digest, Principals: f.Principals, Guardrails: f.Policies,
		Signals: f.Signals,
		DryRun:  dryRun, Prune: prune, Actor: actor}
}

func (t *terminal) changes(changes []schemas.Change) {
	signs := map[string]cell{
		fleet.Add: {"+", green}, fleet.Modify: {"~", yellow}, fleet.Remove: {"-", red},
	}
	width := 0
	for _, c := range changes {
		width = max(width, len(c.ID))
	}
	for _, c := range changes {
		t.row([]int{1, width, 0}, []cell{signs[c.Action], text(c.ID), text(c.Detail)})
	}
}

type enrollCmd struct {
	ID   string         `arg:"" help:"An agent, a service or an operator of the fleet."`
	Out  string         `xor:"what" required:"" type:"path" placeholder:"FILE" help:"Where to write the credentials."`
	Join *time.Duration `xor:"what" required:"" placeholder:"DURATION" help:"Print a token instead, valid once and this long, with which writ join makes credentials elsewhere; 24h at most."`
	svidFlags
}

func (c *enrollCmd) Run(ctx context.Context, app *App) error {
	if err := schemas.CheckID("id", c.ID); err != nil {
		return misuse("give an id as it stands in the fleet file", "%w", err)
	}
	if c.Join != nil {
		return c.invite(ctx, app)
	}
	if err := canReplace(c.Out); err != nil {
		return err
	}
	csr, key, err := c.svidFlags.request()
	if err != nil {
		return err
	}
	reply, err := call[schemas.EnrollReply](ctx, app, schemas.CtlEnroll, schemas.EnrollRequest{ID: c.ID, Actor: app.actor, CertificateRequest: csr})
	if err != nil {
		return err
	}
	if err := writeSecret(c.Out, []byte(reply.Creds)); err != nil {
		return err
	}
	if err := c.svidFlags.write(reply.CertificateReply, key); err != nil {
		return err
	}
	c.needsCertificate(app)
	if app.JSON {
		return app.emit(struct {
			AgentID   string `json:"agent_id"`
			PublicKey string `json:"public_key"`
			CredsFile string `json:"creds_file"`
			SVIDDir   string `json:"svid_dir,omitempty"`
		}{reply.AgentID, reply.PublicKey, c.Out, c.SVIDDir})
	}
	app.facts(c.svidFlags.fact([2]string{"enrolled", reply.AgentID}, [2]string{"key", reply.PublicKey}, [2]string{"credentials", c.Out})...)
	return nil
}
