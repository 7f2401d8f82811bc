package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

type tokensCmd struct {
	Agent string `placeholder:"ID" help:"Only the capabilities of this agent."`
	paging
}

func (c *tokensCmd) Run(ctx context.Context, app *App) error {
	page, err := c.request()
	if err != nil {
		return err
	}
	if c.Agent != "" {
		if err := schemas.CheckID("agent", c.Agent); err != nil {
			return misuse("writ status lists the agents", "%w", err)
		}
	}
	reply, err := call[schemas.TokensReply](ctx, app, schemas.CtlTokens, schemas.TokensRequest{AgentID: c.Agent, PageRequest: page})
	if err != nil {
		return err
	}
	reply.Tokens = list(reply.Tokens)
	if app.JSON {
		return app.emit(reply)
	}
	app.tokens(reply)
	return nil
}

func (t *terminal) tokens(reply schemas.TokensReply) {
	var rows [][]cell
	for _, k := range reply.Tokens {
		budget := ""
		if k.MaxTokens > 0 {
			spent := "?"
			if k.Spent != nil {
				spent = strconv.FormatInt(*k.Spent, 10)
			}
			budget = fmt.Sprintf("%s/%d", spent, k.MaxTokens)
		}
		rows = append(rows, []cell{text(k.AgentID), text(k.OperationID), text(k.JTI), text(t.clock(k.ExpiresAt)), text(strings.Join(k.Act, " ← ")),
			text(k.IssuedBy), text(budget), text(strings.Join(k.Scope, " "))})
	}
	if len(rows) == 0 {
		t.note("No capability counts now; writ issue makes one.")
		return
	}
	t.table([]string{"agent", "operation", "jti", "expires", "handed on by", "issued by", "tokens", "scope"}, rows)
	if reply.Next != "" {
		t.note("There are more: --after %s", reply.Next)
	}
}

type revokeCmd struct {
	JTI    string `arg:"" name:"jti" help:"The capability; writ tokens lists them."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, in at most 500 bytes: it stands in the log, and the agents are told."`
}

func (c *revokeCmd) Run(ctx context.Context, app *App) error {
	if c.JTI == "" || len(c.JTI) > capability.MaxText {
		return misuse("writ tokens lists the capabilities", "%q is no jti", c.JTI)
	}
	if err := checkReason(c.Reason); err != nil {
		return err
	}
	reply, err := call[schemas.RevokeReply](ctx, app, schemas.CtlRevoke, schemas.RevokeRequest{JTI: c.JTI, Reason: c.Reason, Actor: app.actor})
	if err != nil {
		return err
	}
	reply.Revoked, reply.Cancelled = list(reply.Revoked), list(reply.Cancelled)
	if app.JSON {
		err = app.emit(reply)
	} else {
		app.say("The capability %s of %s is revoked.", plain(reply.JTI), plain(reply.AgentID))
		app.facts([2]string{"event", strconv.FormatUint(reply.Seq, 10)}, [2]string{"revoked", strings.Join(reply.Revoked, " ")},
			[2]string{"cancelled", seqs(reply.Cancelled)}, [2]string{"took", span(time.Duration(reply.ElapsedMS * float64(time.Millisecond)))})
	}
	if err == nil && reply.Partial {
		err = advise(errors.New("the revocation is in the log and nothing behind it is delivered, but release has not worked through the log to there, so that what it cancelled is not known in full"),
			"writ log shows what was cancelled; writ doctor says which part of the control plane is down")
	}
	return err
}
