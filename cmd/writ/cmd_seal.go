package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
)

const adviceStopped = "stop the control plane first, and name its data folder with --data; what was interrupted can be run again"

// sealedDoc says how the keys lie on the disk.
type sealedDoc struct {
	Data   string `json:"data"`
	Sealed bool   `json:"sealed"`
}

func (a *App) sealed(format string) error {
	doc := sealedDoc{a.Data, keys.IsSealed(a.Data)}
	if a.JSON {
		return a.emit(doc)
	}
	a.say(format, filepath.Join(a.Data, keys.Dir))
	return nil
}

// offline demands that a command about the data folder is meant for this
// machine's.
func (a *App) onThisMachine() error {
	if a.Server != "" {
		return misuse("run it where the data folder is, with --data", "keys are not reached over NATS")
	}
	return nil
}

type keysSealCmd struct{}

// Run seals the keys to what would open them.
func (c *keysSealCmd) Run(ctx context.Context, app *App) error {
	if err := app.onThisMachine(); err != nil {
		return err
	}
	err := embed.Alone(app.Data, func() error {
		// Where it was interrupted, what opens the folder is what it is sealed to.
		with, err := app.opener(ctx, app, ofKeys, filepath.Join(app.Data, keys.Dir), !keys.IsSealed(app.Data))
		if err != nil {
			return err
		}
		keys.OpenWith(func(string) (*keys.Opener, error) { return with, nil })
		return keys.Seal(app.Data, with)
	})
	if errors.Is(err, keys.ErrIsSealed) {
		return advise(err, "writ keys reseal sets another passphrase or identity")
	}
	if err != nil {
		return advise(fmt.Errorf("the keys were not sealed: %w", err), adviceStopped)
	}
	if err := app.sealed("The keys in %s are sealed."); err != nil {
		return err
	}
	app.note("Keep what opens them elsewhere too: without it they are lost. Copies from before, and what the disk keeps of replaced files, are in clear: if somebody may have them, replace the keys.")
	return nil
}

type keysUnsealCmd struct{}

func (c *keysUnsealCmd) Run(app *App) error {
	if err := app.onThisMachine(); err != nil {
		return err
	}
	if err := embed.Alone(app.Data, func() error { return keys.Unseal(app.Data) }); err != nil {
		return advise(fmt.Errorf("the keys were not unsealed: %w", err), adviceStopped)
	}
	return app.sealed("The keys in %s are in clear.")
}

type keysResealCmd struct {
	New openerFlags `embed:"" prefix:"new-"`
}

// Run sets another passphrase or identity.
func (c *keysResealCmd) Run(ctx context.Context, app *App) error {
	if err := app.onThisMachine(); err != nil {
		return err
	}
	err := embed.Alone(app.Data, func() error {
		if _, err := keys.Creds(app.Data, keys.RoleOperator); err != nil { // opens them
			return err
		}
		with, err := c.New.opener(ctx, app, ofNewKeys, "the keys from now on", true)
		if err != nil {
			return err
		}
		return keys.Reseal(app.Data, with)
	})
	if err != nil {
		return advise(fmt.Errorf("the keys open as before: %w", err), adviceStopped)
	}
	if err := app.sealed("The keys in %s open with what is new, and no longer with the old."); err != nil {
		return err
	}
	app.note("Copies from before still open with the old, and hold the same keys.")
	return nil
}

// rootFlags are of an export: what opens it is best another thing than what
// opens the data folder.
type rootFlags struct {
	Root openerFlags `embed:"" prefix:"root-"`
}

func (f rootFlags) opener(ctx context.Context, app *App, twice bool) (*keys.Opener, error) {
	return f.Root.opener(ctx, app, ofRoot, "the export", twice)
}

type keysExportRootCmd struct {
	To     string `required:"" type:"path" placeholder:"FILE" help:"A new file for the export, outside the data folder."`
	Remove bool   `help:"Then remove the root key from the data folder, once the export has been read back."`
	rootFlags
}

type rootDoc struct {
	File    string `json:"file"`
	Removed bool   `json:"removed"`
}

// Run writes the export, reads it back from the disk, and removes nothing that
// it does not hold.
func (c *keysExportRootCmd) Run(ctx context.Context, app *App) error {
	if err := app.onThisMachine(); err != nil {
		return err
	}
	if rel, err := filepath.Rel(app.Data, c.To); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return misuse("name a file elsewhere, best on a medium that leaves the machine", "%s is in the data folder, and the root key is to leave it", c.To)
	}
	if _, err := os.Lstat(c.To); err == nil {
		return advise(fmt.Errorf("%s is there already, and stays as it is", c.To), "name another file")
	}
	with, err := c.opener(ctx, app, true)
	if err != nil {
		return err
	}
	export, err := keys.ExportRoot(app.Data, with)
	if err != nil {
		next := "name the data folder with --data"
		if errors.Is(err, keys.ErrNoRoot) {
			next = "it was exported before, or moved away; writ keys import-root puts an export back"
		}
		return advise(fmt.Errorf("nothing was exported: %w", err), next)
	}
	if err := writeNew(c.To, export); err != nil {
		return fmt.Errorf("nothing was exported: %w", err)
	}
	const kept = "the root key is where it was; export it again to another file"
	back, err := os.ReadFile(c.To)
	if err == nil {
		err = keys.CheckRoot(app.Data, back, with)
	}
	if err != nil {
		return advise(fmt.Errorf("the export does not read back: %w", err), kept)
	}
	if c.Remove {
		if err := keys.RemoveRoot(app.Data, back, with); err != nil {
			return advise(fmt.Errorf("the export is written, and the root key still here: %w", err), "remove "+offlineDir(app.Data)+" yourself")
		}
	}
	if app.JSON {
		return app.emit(rootDoc{c.To, c.Remove})
	}
	app.say("The operator's root key is exported to %s, and the file was read back.", plain(c.To))
	if c.Remove {
		app.note("It is no longer in %s. Keep the file, and what opens it, in two places that are not this machine.", plain(app.Data))
	} else {
		app.note("It is still in %s; --remove takes it away.", plain(offlineDir(app.Data)))
	}
	return nil
}

type keysImportRootCmd struct {
	File string `arg:"" type:"path" help:"An export, as writ keys export-root wrote it."`
	rootFlags
}

func (c *keysImportRootCmd) Run(ctx context.Context, app *App) error {
	if err := app.onThisMachine(); err != nil {
		return err
	}
	const next = "name an export of this control plane's root key, and what opens it"
	export, err := readBounded(c.File, 1<<20)
	if err != nil {
		return advise(fmt.Errorf("read the export: %w", err), next)
	}
	with, err := c.opener(ctx, app, false)
	if err != nil {
		return err
	}
	if err := keys.ImportRoot(app.Data, export, with); err != nil {
		return advise(fmt.Errorf("%s: %w", c.File, err), next)
	}
	if app.JSON {
		return app.emit(struct {
			Data string `json:"data"`
		}{app.Data})
	}
	app.say("The operator's root key is back in %s.", plain(offlineDir(app.Data)))
	app.note("Do what needs it, then: writ keys export-root --to FILE --remove")
	return nil
}
