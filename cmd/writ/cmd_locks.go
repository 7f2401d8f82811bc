package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// lockArgs are common to all commands that set an agent's lock.
type lockArgs struct {
	Agent  string `arg:"" help:"An agent of the fleet."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log, and the agent is told."`
}

type (
	pauseCmd  struct{ lockArgs }
	resumeCmd struct {
		lockArgs
		Vouch []uint64 `placeholder:"EVENT" help:"An action that suspended it, by its event, and that was harmless: it stays cancelled, and the monitor learns it. May be given several times."`
	}
	suspendCmd struct{ lockArgs }
	killCmd    struct{ lockArgs }
)

func (c *pauseCmd) Run(ctx context.Context, app *App) error {
	return c.set(ctx, app, schemas.Paused, nil)
}

func (c *resumeCmd) Run(ctx context.Context, app *App) error {
	return c.set(ctx, app, schemas.Active, c.Vouch)
}

func (c *suspendCmd) Run(ctx context.Context, app *App) error {
	return c.set(ctx, app, schemas.Suspended, nil)
}

func (c *killCmd) Run(ctx context.Context, app *App) error {
	return c.set(ctx, app, schemas.Killed, nil)
}

// checkReason holds a reason against what the log can keep.
func checkReason(reason string) error {
	return checkLine("--reason", reason, schemas.MaxReason)
}

// checkLine holds a line of text against what the log keeps as it is.
func checkLine(flag, text string, most int) error {
	next := fmt.Sprintf("give %s as one line of UTF-8, of at most %d bytes", flag, most)
	switch {
	case text == "":
		return misuse(next, "%s is empty", flag)
	case len(text) > most:
		return misuse(next, "%s has %d bytes, %d are possible", flag, len(text), most)
	case schemas.HeaderText(text) != text:
		return misuse(next, "%s holds line breaks or other control characters, or spaces at an end", flag)
	}
	return nil
}

func (c *lockArgs) set(ctx context.Context, app *App, lock schemas.Lock, vouch []uint64) error {
	if err := schemas.CheckID("agent", c.Agent); err != nil {
		return misuse("writ status lists the agents", "%w", err)
	}
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	receipt, err := call[schemas.Receipt](ctx, app, schemas.CtlLock,
		schemas.LockRequest{AgentID: c.Agent, Lock: lock, Vouch: vouch, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	receipt.Cancelled, receipt.Revoked, receipt.Nodes = list(receipt.Cancelled), list(receipt.Revoked), list(receipt.Nodes)
	if app.JSON {
		err = app.emit(receipt)
	} else {
		app.receipt(receipt)
	}
	if err == nil && receipt.Partial {
		missing := "not every NATS server has confirmed that it cut the agent off"
		if lock == schemas.Active || lock == schemas.Paused { // nobody is cut off
			missing = "release or the ledger has not confirmed that it got there"
		}
		err = advise(fmt.Errorf("the lock is in the log and nothing behind it is delivered, but %s", missing),
			"run the command again; writ doctor says which part of the control plane is down, and whether the disk is full")
	}
	return err
}

func (t *terminal) receipt(r schemas.Receipt) {
	switch {
	case !r.Already:
		t.say("%s is %s.", r.AgentID, t.paint(lockStyle(r.State), string(r.State)))
	default:
		t.say("%s was %s already%s; nothing was logged.", r.AgentID, t.paint(lockStyle(r.State), string(r.State)), sinceEvent(r.Seq))
		if r.State == schemas.Active || r.State == schemas.Paused {
			return // else it was carried out once more, for a server that had not confirmed it
		}
	}
	facts := [][2]string{
		{"event", strconv.FormatUint(r.Seq, 10)},
		{"last accepted", orNone(r.LastAcceptedSeq)},
		{"cancelled", seqs(r.Cancelled)},
		{"capabilities ended", strconv.Itoa(len(r.Revoked))},
		{"connections closed", strconv.Itoa(r.ConnectionsClosed)},
		{"servers", strings.Join(r.Nodes, " ")},
		{"took", span(time.Duration(r.ElapsedMS * float64(time.Millisecond)))},
	}
	if len(r.Vouched) > 0 {
		facts = append(facts, [2]string{"vouched for", seqs(r.Vouched)})
	}
	if r.Effect != "" {
		facts = append(facts, [2]string{"effect", r.Effect})
	}
	t.facts(facts...)
	if len(r.Endorsed) > 0 {
		t.say("It goes on when a second operator vouches for %s as well.", seqs(r.Endorsed))
	}
	t.checkpoint(r.Checkpoint)
}

// sinceEvent names the event since which something is so; 0 where none made it so.
func sinceEvent(seq uint64) string {
	if seq == 0 {
		return ""
	}
	return " (event " + strconv.FormatUint(seq, 10) + ")"
}

func orNone(seq uint64) string {
	if seq == 0 {
		return "none"
	}
	return strconv.FormatUint(seq, 10)
}

// seqs names sequences, the first of many.
func seqs(all []uint64) string {
	const shown = 10
	if len(all) == 0 {
		return "none"
	}
	var names []string
	for _, s := range all[:min(len(all), shown)] {
		names = append(names, strconv.FormatUint(s, 10))
	}
	if more := len(all) - shown; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, " ")
}

type lockdownCmd struct {
	Lift   bool   `help:"End it."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log, and every agent is told."`
}

func (c *lockdownCmd) Run(ctx context.Context, app *App) error {
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	r, err := call[schemas.LockdownReply](ctx, app, schemas.CtlLockdown, schemas.LockdownRequest{Lift: c.Lift, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	r.Cancelled = list(r.Cancelled)
	if app.JSON {
		err = app.emit(r)
	} else if r.Already {
		state := app.paint(red, "locked down")
		if c.Lift {
			state = app.paint(green, "open")
		}
		app.say("The fleet was %s already%s; nothing was logged.", state, sinceEvent(r.Seq))
	} else {
		state := app.paint(red, "locked down") + ": nothing is accepted, issued or delivered until writ lockdown --lift"
		if c.Lift {
			state = app.paint(green, "open") + ": agents act again with the capabilities that are still valid"
		}
		app.say("The fleet is %s.", state)
		app.facts([2]string{"event", strconv.FormatUint(r.Seq, 10)}, [2]string{"last accepted", orNone(r.LastAcceptedSeq)},
			[2]string{"cancelled", seqs(r.Cancelled)}, [2]string{"took", span(time.Duration(r.ElapsedMS * float64(time.Millisecond)))})
		app.checkpoint(r.Checkpoint)
	}
	if err == nil && r.Partial {
		err = advise(errors.New("the event is in the log, but not every part of the control plane has confirmed that it carried it out"),
			"run the command again; writ doctor says which part of the control plane is down")
	}
	return err
}
