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
	Reason string `required:"" placeholder:"TEXT" help:"Why: it stands in the log, and the agent is told."`
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
	if reason == "" || schemas.HeaderText(reason) != reason {
		return misuse("give --reason as one line of at most 1,000 bytes", "--reason is empty, too long, or holds line breaks or spaces at an end")
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
		err = advise(errors.New("the lock is in the log and nothing behind it is delivered, but not every NATS server has confirmed that it cut the agent off"),
			"run the command again; writ doctor says which part of the control plane is down")
	}
	return err
}

func (t *terminal) receipt(r schemas.Receipt) {
	t.say("%s is %s.", r.AgentID, t.paint(lockStyle(r.State), string(r.State)))
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
	Reason string `required:"" placeholder:"TEXT" help:"Why: it stands in the log, and every agent is told."`
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
