package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

type monitorSignCmd struct {
	File string `arg:"" type:"path" help:"Weights, as writ monitor fit writes them."`
	Out  string `required:"" type:"path" placeholder:"FILE" help:"Where the signed weights go."`
}

// Run signs with the data folder's key of weights, and makes it the first time.
func (c *monitorSignCmd) Run(app *App) error {
	const next = "give a file that writ monitor fit wrote, unchanged"
	file, err := os.ReadFile(c.File)
	if err != nil {
		return advise(fmt.Errorf("weights: %w", err), next)
	}
	signer, err := keys.WeightsSigner(app.Data)
	if err != nil {
		return advise(fmt.Errorf("the key of weights: %w", err), "name the data folder with --data")
	}
	signed, err := monitor.SignWeights(file, signer)
	if err != nil {
		return advise(fmt.Errorf("%s: %w", c.File, err), next)
	}
	if err := writeWhole(c.Out, func(w io.Writer) error { _, err := w.Write(signed); return err }); err != nil {
		return advise(fmt.Errorf("write the weights: %w", err), "give --out a file in a folder that can be written")
	}
	w, err := servingWeights(c.Out, app.Data)
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(struct {
			Out     string `json:"out"`
			Version string `json:"version"`
			Key     string `json:"key"`
		}{c.Out, w.Version(), signer.Name()})
	}
	app.say("signed: %s", c.Out)
	app.note("next: writ up --weights %s", c.Out)
	return nil
}

// servingWeights reads weights that are signed with a data folder's key; nil
// where no file is named.
func servingWeights(path, data string) (*monitor.Weights, error) {
	if path == "" {
		return nil, nil
	}
	const next = "writ monitor sign, in the data folder whose key is declared, signs what writ monitor fit wrote"
	signed, err := os.ReadFile(path)
	if err != nil {
		return nil, advise(fmt.Errorf("weights: %w", err), next)
	}
	v, err := keys.WeightsVerifier(data)
	if err != nil {
		return nil, advise(fmt.Errorf("weights %s: %w", path, err), next)
	}
	w, err := monitor.OpenWeights(signed, v)
	return w, advise(wrap(path, err), next)
}

func wrap(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}

type rotateWeightsCmd struct {
	Resign []string `type:"path" placeholder:"FILE" help:"Signed weights that shall go on serving: they are signed anew, in place; may be given several times. What is not named serves nobody any more."`
	Reason string   `required:"" placeholder:"TEXT" help:"Why: it stands in the log."`
}

// Run rotates where nobody is in the way: a monitor that runs has read its
// weights.
func (c *rotateWeightsCmd) Run(app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := keys.RotateWeights(app.Data, schemas.RootActor+app.actor, c.Reason, func(both ...note.Signer) error {
		v, err := keys.WeightsVerifier(app.Data)
		if err != nil {
			return err
		}
		return resignAll(c.Resign, v, both)
	})
	if err != nil {
		return advise(err, "name the data folder whose key it is with --data; what was interrupted can be run again, with the same files")
	}
	if app.JSON {
		return app.emit(r)
	}
	app.say("Key %s signs weights from now on, and what %s alone has signed serves nobody.", r.KeyID, r.Replaced)
	app.note("next: where the monitor runs apart, copy keys/weights.pub to its key folder, and the files that were signed anew")
	return nil
}

// resignAll signs all of the files anew, or none where one can't be.
func resignAll(files []string, v note.Verifier, both []note.Signer) error {
	signed := make([][]byte, len(files))
	for i, path := range files {
		b, err := os.ReadFile(path)
		if err == nil {
			signed[i], err = monitor.ResignWeights(b, v, both...)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for i, path := range files {
		if err := writeWhole(path, func(w io.Writer) error { _, err := w.Write(signed[i]); return err }); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
