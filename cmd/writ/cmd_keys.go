package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

type keysCmd struct {
	List   keysListCmd   `cmd:"" help:"List the keys of the data folder; no secret is shown."`
	Rotate keysRotateCmd `cmd:"" help:"Replace keys."`
	Seal   keysSealCmd   `cmd:"" help:"Encrypt the secrets of the data folder; the control plane has to be stopped."`
	Unseal keysUnsealCmd `cmd:"" help:"Put them back in clear; the control plane has to be stopped."`
	Reseal keysResealCmd `cmd:"" help:"Set another passphrase or identity; the control plane has to be stopped."`

	ExportRoot keysExportRootCmd `cmd:"" help:"Encrypt the operator's root key into a file, and take it off this machine."`
	ImportRoot keysImportRootCmd `cmd:"" help:"Put an exported root key back, for what needs it."`
}

type keysListCmd struct{}

func (c *keysListCmd) Run(app *App) error {
	if app.Server != "" {
		return misuse("run it where the data folder is", "keys are listed from the data folder, not over NATS")
	}
	all, err := keys.List(app.Data, time.Now())
	if err == nil {
		var authorities []keys.Key
		authorities, err = ca.Keys(app.Data, time.Now())
		all = append(all, authorities...)
	}
	if err != nil {
		return advise(err, "name the data folder with --data, as the user who runs the control plane")
	}
	if app.JSON {
		return app.emit(struct {
			Keys []keys.Key `json:"keys"`
		}{all})
	}
	var rows [][]cell
	for _, k := range all {
		where := k.Where
		if where == "" {
			where = "not on this machine"
		}
		rows = append(rows, []cell{text(k.Kind), text(k.ID), text(app.clockOr(k.Since)), text(app.clockOr(k.Until)), text(where)})
	}
	app.table([]string{"kind", "kid", "since", "until", "where"}, rows)
	return nil
}

// clockOr is a time, or nothing where there is none.
func (t *terminal) clockOr(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return t.clock(at)
}

type keysRotateCmd struct {
	Capability rotateCapabilityCmd `cmd:"" help:"Have another key sign capabilities, without an interruption."`
	Accounts   rotateAccountsCmd   `cmd:"" help:"Have other keys sign agents', services' and operators' NATS users, without an interruption."`
	CA         rotateCACmd         `cmd:"" name:"ca" help:"Have another certificate authority sign, without an interruption; with TLS."`
	Ledger     rotateLedgerCmd     `cmd:"" help:"Have another key sign the ledger's checkpoints, without an interruption."`
	Weights    rotateWeightsCmd    `cmd:"" help:"Have another key sign the monitor's weights."`
	Contents   rotateContentsCmd   `cmd:"" help:"Wrap the keys of the ledger's contents under another secret; the control plane has to be stopped."`
	Operator   rotateOperatorCmd   `cmd:"" help:"Have another key sign accounts; the control plane has to be stopped, and the root key put back."`
	Services   rotateServicesCmd   `cmd:"" help:"Make the services' users anew and revoke the old ones; the control plane has to be stopped."`
}

type rotateCapabilityCmd struct {
	Compromised bool   `help:"A thief may have the keys: replace them all, so that nothing signed before verifies any more."`
	Reason      string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log."`
}

func (c *rotateCapabilityCmd) Run(ctx context.Context, app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := call[schemas.RotateReply](ctx, app, schemas.CtlRotate, schemas.RotateRequest{Compromised: c.Compromised, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("Key %s signs capabilities from event %d on.", r.KeyID, r.Seq)
	if r.Compromised {
		app.note("What %s and its successor signed no longer verifies where the key set is read anew, within %s. Agents go on when they have refreshed.", r.Replaced, span(keys.RingLead))
		return nil
	}
	app.note("What %s signed verifies until %s at the latest.", r.Replaced, app.clock(r.Until))
	return nil
}

type rotateAccountsCmd struct {
	Compromised bool   `help:"A thief may have the keys: nothing that they signed counts any more, and everybody has to be enrolled anew."`
	Reason      string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log."`
}

func (c *rotateAccountsCmd) Run(ctx context.Context, app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := call[schemas.RotateReply](ctx, app, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateAccounts, Compromised: c.Compromised, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("Other keys sign the users of agents, services and operators from event %d on.", r.Seq)
	if r.Compromised {
		app.note("Whoever was connected with what the former ones signed is cut off: enrol agents, services and operators anew (writ enroll).")
		return nil
	}
	app.note("What the former ones signed counts until it expires, and until %s at the latest.", app.clock(r.Until))
	return nil
}

type rotateCACmd struct {
	Compromised bool   `help:"A thief may have the keys: nothing that they signed counts any more, nor what the keys of agents' accounts signed, and everybody has to be enrolled anew."`
	Reason      string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log."`
}

func (c *rotateCACmd) Run(ctx context.Context, app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := call[schemas.RotateReply](ctx, app, schemas.CtlRotate, schemas.RotateRequest{Key: schemas.RotateCA, Compromised: c.Compromised, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("Authority %.16s signs certificates from event %d on.", r.KeyID, r.Seq)
	if r.Compromised {
		app.note("Everybody is cut off: give them bundle.pem of the data folder, and enrol agents, services and operators anew (writ enroll).")
		return nil
	}
	app.note("What %.16s signed counts until it expires, and until %s at the latest. Give bundle.pem of the data folder to operators elsewhere before the next rotation; agents get it with each certificate.", r.Replaced, app.clock(r.Until))
	return nil
}

type rotateLedgerCmd struct {
	Prepare bool   `help:"Only make the next key and show it, so that witnesses and who else verifies know it before it signs."`
	Reason  string `placeholder:"TEXT" help:"Why: it stands in the log and in the ledger. Needed, but with --prepare."`
}

func (c *rotateLedgerCmd) Run(ctx context.Context, app *App) error {
	if !c.Prepare {
		if err := checkReason(c.Reason); err != nil {
			return err
		}
	}
	r, err := call[schemas.HandOverReply](ctx, app, schemas.CtlHandOver, schemas.HandOverRequest{Prepare: c.Prepare, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	if r.Prepared {
		app.say("Key %s is the next to sign the ledger, and signs nothing yet.", r.Key)
		app.note("next: add it to what verifies this ledger, behind the present key (writ ledger witness --log-key, a line \"log\" of a policy), and then run writ keys rotate ledger --reason TEXT")
		return nil
	}
	app.say("Key %s signs the ledger from now on, and %s signed it up to %d records.", r.Key, r.Replaced, r.Size)
	app.note("next: give keys/%s of the data folder to who verifies the ledger, and keys/ledger.pub to its witnesses, and make a backup", keys.LedgerPolicy)
	return nil
}

type rotateOperatorCmd struct {
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log."`
}

func (c *rotateOperatorCmd) Run(app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	var r schemas.Rotation
	err := embed.Alone(app.Data, func() (err error) {
		r, err = keys.RotateOperator(app.Data, schemas.RootActor+app.actor, c.Reason)
		return err
	})
	switch {
	case errors.Is(err, keys.ErrNoRoot):
		return advise(err, "put it back for this with writ keys import-root, and export it again afterwards")
	case err != nil:
		return advise(err, "stop the control plane first, and name its data folder with --data; what was interrupted can be run again")
	}
	if err := writeTrust(app.Data); err != nil {
		return err
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("Key %s signs accounts from the next start on, and %s is not trusted any more.", r.KeyID, r.Replaced)
	app.note("next: take the root key off again (writ keys export-root); where the NATS server is elsewhere, give it nats-server/ anew and restart it; make death warrants anew")
	return nil
}

type rotateContentsCmd struct {
	Reason string `required:"" placeholder:"TEXT" help:"Why: it stands in the log."`
}

func (c *rotateContentsCmd) Run(app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	var r schemas.Rotation
	err := embed.Alone(app.Data, func() (err error) {
		r, err = keys.RotateContents(app.Data, schemas.RootActor+app.actor, c.Reason, ledger.LookupOf, func(from, to [32]byte) error {
			return plane.Rewrap(app.Data, from, to)
		})
		return err
	})
	if err != nil {
		return advise(err, "stop the control plane first, and name its data folder with --data; what was interrupted can be run again")
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("The keys of the ledger's contents are under another secret, and the former one opens nothing.")
	app.note("next: make a backup with keys; older backups need the keys/ledger.secret of their time, and open with it: destroy what you don't need")
	return nil
}

type rotateServicesCmd struct{}

func (c *rotateServicesCmd) Run(app *App) error {
	if err := embed.RenewServices(app.Data); err != nil {
		return advise(fmt.Errorf("the services' users were not replaced: %w", err), "stop the control plane first, and name its data folder with --data; what was interrupted can be run again")
	}
	all, err := keys.List(app.Data, time.Now())
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(struct {
			Keys []keys.Key `json:"keys"`
		}{all})
	}
	app.say("Every service has a new user, and the old ones are revoked from the next start on.")
	app.note("next: copy keys/ to the other machines where services run apart, run writ provision, and start them")
	return nil
}
