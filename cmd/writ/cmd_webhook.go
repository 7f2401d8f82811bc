package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/hooks"
	"github.com/writ-sh/writ/issuer/keys"
)

type webhookCmd struct {
	Add    webhookAddCmd    `cmd:"" help:"Configure a webhook, and show its secret, once."`
	List   webhookListCmd   `cmd:"" help:"List the webhooks, without their secrets."`
	Rotate webhookRotateCmd `cmd:"" help:"Make a new secret; the one before it goes on signing beside it."`
	Remove webhookRemoveCmd `cmd:"" help:"End a webhook."`
	Test   webhookTestCmd   `cmd:"" help:"Send a signed message of the type test, once."`
}

// forWebhooks demands a data folder.
func (a *App) forWebhooks() error {
	if a.Server != "" {
		return misuse("run it where the data folder is", "webhooks are configured in the data folder, not over NATS")
	}
	if _, err := keys.Open(a.Data); err != nil {
		return advise(err, "name the data folder with --data; writ init makes one")
	}
	return nil
}

const adviceWebhooks = "writ webhook list shows what there is"

type webhookAddCmd struct {
	ID      string   `arg:"" help:"A name for it: a-z, 0-9, _ and -."`
	URL     string   `required:"" placeholder:"URL" help:"Where to send: https, or http on loopback."`
	Event   []string `required:"" placeholder:"NAME" help:"What to tell of: held, decided, paused, suspended, killed, resumed, lockdown, alarm; may be given several times."`
	Private bool     `help:"The URL's name may lead to a private address."`
}

// webhookDoc is a webhook without its secrets.
type webhookDoc struct {
	ID      string   `json:"id"`
	URL     string   `json:"url"`
	Events  []string `json:"events"`
	Private bool     `json:"private,omitempty"`
	Secrets int      `json:"secrets"`       // how many sign
	Seq     *uint64  `json:"seq,omitempty"` // up to which all is done; missing before it began
	Secret  string   `json:"secret,omitempty"`
}

func docOf(h hooks.Hook) webhookDoc {
	return webhookDoc{ID: h.ID, URL: h.URL, Events: h.Events, Private: h.Private, Secrets: len(h.Secrets)}
}

func (c *webhookAddCmd) Run(app *App) error {
	if err := app.forWebhooks(); err != nil {
		return err
	}
	h := hooks.Hook{ID: c.ID, URL: c.URL, Events: c.Event, Private: c.Private, Secrets: []string{hooks.NewSecret()}}
	if err := h.Check(); err != nil {
		return misuse("see writ webhook add --help", "%w", err)
	}
	if _, err := hooks.Read(app.Data, c.ID); !errors.Is(err, hooks.ErrNone) {
		return advise(fmt.Errorf("there is a webhook %s already", c.ID), "remove it first, or take another name; "+adviceWebhooks)
	}
	if err := hooks.Write(app.Data, h); err != nil {
		return advise(err, "check that you may write to "+app.Data)
	}
	return app.webhookSecret(h)
}

// webhookSecret shows what the receiver has to be given.
func (a *App) webhookSecret(h hooks.Hook) error {
	if a.JSON {
		d := docOf(h)
		d.Secret = h.Secrets[0]
		return a.emit(d)
	}
	a.facts([2]string{"webhook", h.ID}, [2]string{"secret", h.Secrets[0]})
	a.note("Give the secret to the receiver; it is not shown again.")
	return nil
}

type webhookListCmd struct{}

func (c *webhookListCmd) Run(app *App) error {
	if err := app.forWebhooks(); err != nil {
		return err
	}
	all, err := hooks.List(app.Data)
	if err != nil {
		return advise(err, "mend or remove the file that is named")
	}
	docs := []webhookDoc{}
	for _, h := range all {
		d := docOf(h)
		seq, err := hooks.Cursor(app.Data, h.ID)
		switch {
		case err == nil:
			d.Seq = &seq
		case !errors.Is(err, fs.ErrNotExist):
			return advise(err, "the file can be removed: the webhook goes on at the log's end")
		}
		docs = append(docs, d)
	}
	if app.JSON {
		return app.emit(struct {
			Webhooks []webhookDoc `json:"webhooks"`
		}{docs})
	}
	if len(docs) == 0 {
		app.note("There are none; writ webhook add makes one.")
		return nil
	}
	var rows [][]cell
	for _, d := range docs {
		at := ""
		if d.Seq != nil {
			at = seqText(*d.Seq)
		}
		rows = append(rows, []cell{text(d.ID), text(d.URL), text(strings.Join(d.Events, " ")), text(at)})
	}
	app.table([]string{"id", "url", "events", "done up to"}, rows)
	return nil
}

type webhookRotateCmd struct {
	ID string `arg:"" help:"Of a webhook."`
}

func (c *webhookRotateCmd) Run(app *App) error {
	if err := app.forWebhooks(); err != nil {
		return err
	}
	h, err := hooks.Read(app.Data, c.ID)
	if err != nil {
		return advise(err, adviceWebhooks)
	}
	h.Secrets = []string{hooks.NewSecret(), h.Secrets[0]}
	if err := hooks.Write(app.Data, h); err != nil {
		return advise(err, "check that you may write to "+app.Data)
	}
	return app.webhookSecret(h)
}

type webhookRemoveCmd struct {
	ID string `arg:"" help:"Of a webhook."`
}

func (c *webhookRemoveCmd) Run(app *App) error {
	if err := app.forWebhooks(); err != nil {
		return err
	}
	if err := hooks.Remove(app.Data, c.ID); err != nil {
		return advise(err, adviceWebhooks)
	}
	if app.JSON {
		return app.emit(struct {
			Removed string `json:"removed"`
		}{c.ID})
	}
	app.say("Webhook %s is removed.", c.ID)
	return nil
}

type webhookTestCmd struct {
	ID string `arg:"" help:"Of a webhook."`
}

func (c *webhookTestCmd) Run(ctx context.Context, app *App) error {
	if err := app.forWebhooks(); err != nil {
		return err
	}
	h, err := hooks.Read(app.Data, c.ID)
	if err != nil {
		return advise(err, adviceWebhooks)
	}
	if err := h.Test(ctx, time.Now()); err != nil {
		next := "look at the receiver: it must answer 2xx within 15 s"
		if errors.Is(err, hooks.ErrAddress) {
			next = "name an address that is meant, or remove the webhook and add it with --private"
		}
		return advise(err, next)
	}
	if app.JSON {
		return app.emit(struct {
			Delivered bool `json:"delivered"`
		}{true})
	}
	app.say("The receiver took the message.")
	return nil
}
