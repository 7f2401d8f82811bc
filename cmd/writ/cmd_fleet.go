package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

type initCmd struct {
	TrustDomain string `placeholder:"DOMAIN" default:"writ.local" help:"Name of the trust domain, such as acme.example (default: ${default})."`
}

func (c *initCmd) Run(app *App) error {
	if err := keys.CheckTrustDomain(c.TrustDomain); err != nil {
		return misuse("give a name such as acme.example with --trust-domain", "%w", err)
	}
	if err := keys.Init(app.Data, c.TrustDomain); err != nil {
		if errors.Is(err, keys.ErrExists) {
			return advise(err, "writ up --data "+app.Data+" uses the keys that are there")
		}
		return advise(err, "check that you may write to "+app.Data)
	}
	if err := writeTrust(app.Data); err != nil {
		return advise(err, "the keys are made; writ up --data "+app.Data+" needs no more")
	}
	changes := []schemas.Change{{ID: "keys", Action: fleet.Add, Detail: filepath.Join(app.Data, keys.Dir)}}
	for _, account := range []string{keys.SYS, keys.CONTROL, keys.DELIVER, keys.MEMORY} {
		changes = append(changes, schemas.Change{ID: account, Action: fleet.Add, Detail: "account"})
	}
	if app.JSON {
		return app.emit(struct {
			Data        string           `json:"data"`
			TrustDomain string           `json:"trust_domain"`
			Changes     []schemas.Change `json:"changes"`
		}{app.Data, c.TrustDomain, changes})
	}
	app.say("Made the keys of %s in %s.", c.TrustDomain, filepath.Join(app.Data, keys.Dir))
	app.note("Move %s to a place that is not connected to this machine, and keep it.", filepath.Join(app.Data, keys.Dir, "offline"))
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
	reply, err := call[schemas.ApplyReply](ctx, app, schemas.CtlApply, file.request(app.actor, c.DryRun, c.Prune))
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

// fleetFile is a fleet file that was read without fault.
type fleetFile struct{ *fleet.File }

func readFleet(path string) (fleetFile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return fleetFile{}, advise(fmt.Errorf("read the fleet file: %w", err), "name a fleet file that can be read")
	}
	file, err := fleet.Parse(path, data)
	if err != nil {
		return fleetFile{}, advise(fmt.Errorf("the fleet file is not sound, and nothing was applied:\n%w", err), "correct the lines named above and run the command again")
	}
	return fleetFile{file}, nil
}

func (f fleetFile) request(actor string, dryRun, prune bool) schemas.ApplyRequest {
	return schemas.ApplyRequest{TrustDomain: f.TrustDomain, Digest: f.Digest, Principals: f.Principals, Signals: f.Signals,
		DryRun: dryRun, Prune: prune, Actor: actor}
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
	ID   string        `arg:"" help:"An agent, a service or an operator of the fleet."`
	Out  string        `xor:"what" required:"" type:"path" placeholder:"FILE" help:"Where to write the credentials."`
	Join time.Duration `xor:"what" required:"" placeholder:"DURATION" help:"Print a token instead, valid once and this long, with which writ join makes credentials elsewhere; 24h at most."`
}

func (c *enrollCmd) Run(ctx context.Context, app *App) error {
	if err := schemas.CheckID("id", c.ID); err != nil {
		return misuse("give an id as it stands in the fleet file", "%w", err)
	}
	if c.Join != 0 {
		return c.invite(ctx, app)
	}
	if err := canReplace(c.Out); err != nil {
		return err
	}
	reply, err := call[schemas.EnrollReply](ctx, app, schemas.CtlEnroll, schemas.EnrollRequest{ID: c.ID, Actor: app.actor})
	if err != nil {
		return err
	}
	if err := writeSecret(c.Out, []byte(reply.Creds)); err != nil {
		return err
	}
	if app.JSON {
		return app.emit(struct {
			AgentID   string `json:"agent_id"`
			PublicKey string `json:"public_key"`
			CredsFile string `json:"creds_file"`
		}{reply.AgentID, reply.PublicKey, c.Out})
	}
	app.facts([2]string{"enrolled", reply.AgentID}, [2]string{"key", reply.PublicKey}, [2]string{"credentials", c.Out})
	return nil
}
