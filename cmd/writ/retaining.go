package main

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// retaining is a policy of retention: what is older than Retain is archived and
// pruned, at the start and once a day, as writ ledger prune does.
type retaining struct {
	Retain  time.Duration `placeholder:"DURATION" and:"retain" help:"Archive and prune what is older than this, like 2160h, at the start and once a day."`
	Archive string        `type:"path" placeholder:"DIR" and:"retain" help:"Folder for the archives of --retain."`
}

const pruneEvery = 24 * time.Hour

func (r retaining) check() error {
	if r.Archive != "" && r.Retain <= 0 {
		return misuse("give --retain a duration like 2160h", "--retain %s keeps nothing", r.Retain)
	}
	return nil
}

// run prunes until the context ends. What fails is logged, and tried again the
// next day: nothing is deleted that is not in a verified archive.
func (r retaining) run(ctx context.Context, app *App, log *slog.Logger) {
	if r.Archive == "" {
		return
	}
	for {
		c := ledgerPruneCmd{Keep: r.Retain, Archive: r.Archive, Reason: "retention"}
		doc, err := c.prune(ctx, app)
		switch {
		case errors.Is(err, context.Canceled):
			return
		case err != nil:
			log.Error("retention: nothing was pruned; trying again in a day", "error", err)
		case doc.LastSeq > 0:
			log.Info("retention: archived and pruned", "through", doc.LastSeq, "archives", len(doc.Archives))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pruneEvery):
		}
	}
}
