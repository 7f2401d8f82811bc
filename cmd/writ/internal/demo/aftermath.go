package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// aftermath kills the analyst, and tries every way back.
func (s *story) aftermath(ctx context.Context) error {
	s.Narrator.Chapter("The kill")
	s.Narrator.Say("An operator has seen enough.")
	s.step(ctx, "kill", "a receipt: the kill's place in the log, what it ended, and a signed checkpoint that covers it", s.kill)
	s.step(ctx, "old token", "its signature still verifies; with what the log says of the agent it is revoked", s.oldToken)
	s.step(ctx, "old credentials", "a new connection with them is refused", func(context.Context) (finding, error) {
		return s.refusedAtTheDoor([]byte(s.grant.Creds)), nil
	})
	s.step(ctx, "forged credentials", "made with the account's stolen signing key, they were good before the hijack, and are refused now", func(context.Context) (finding, error) {
		f := s.refusedAtTheDoor(s.forged)
		return found(f.ok && s.passed, "before: connected %t; now: %s", s.passed, f.observed), nil
	})
	s.step(ctx, "new capability", "410: the orchestrator gets nothing more for it", func(ctx context.Context) (finding, error) {
		a, err := s.chief.token(ctx, "issue", schemas.IssueRequest{AgentID: analyst, OperationID: "report-again", Scope: quarter.scopes(), Job: "report"})
		if err != nil {
			return finding{}, err
		}
		return found(a.code == schemas.CodeCancelled, "%s", a), nil
	})
	s.step(ctx, "the others", "writer-2 works on, and its memory is as it was", func(ctx context.Context) (finding, error) {
		value, err := want(s.scribe.act(ctx, "memory.get."+secretKey, "", nil))
		if err != nil {
			return finding{}, err
		}
		st, err := s.status(ctx, writer)
		if err != nil {
			return finding{}, err
		}
		return found(string(value) == secretNote && st.State == schemas.Active, "its note of %d bytes is unchanged; %s is %s, risk %d", len(value), writer, st.State, st.Risk), nil
	})
	s.step(ctx, "stolen signing key", "with that of a living agent the server lets a forged scope pass; intake refuses it (403)", s.forgeScope)
	return nil
}

func (s *story) kill(ctx context.Context) (finding, error) {
	r, err := bus.Call[schemas.Receipt](ctx, s.operator, schemas.CtlLock, schemas.LockRequest{
		AgentID: analyst, Lock: schemas.Killed, Reason: "hijacked by a prompt injection", Actor: s.Actor})
	if err != nil {
		return finding{}, err
	}
	o, err := plane.LedgerOptions(s.data)
	if err != nil {
		return finding{}, err
	}
	c, err := checkpoint(r.Checkpoint, o.Verifier)
	if err != nil {
		return finding{}, err
	}
	st, err := s.status(ctx, analyst)
	if err != nil {
		return finding{}, err
	}
	return found(r.State == schemas.Killed && r.Seq > r.LastAcceptedSeq && !r.Partial && c.Size >= r.Seq && st.State == schemas.Killed,
		"event %d; last accepted %d; %d cancelled now; %d connections closed; servers %v; %.1f ms; checkpoint over %d records, its signature good",
		r.Seq, r.LastAcceptedSeq, len(r.Cancelled), r.ConnectionsClosed, r.Nodes, r.ElapsedMS, c.Size), nil
}

func checkpoint(text string, v note.Verifier) (proof.Checkpoint, error) {
	c, err := proof.OpenCheckpoint([]byte(text), v)
	if err != nil {
		return c, fmt.Errorf("the receipt's checkpoint: %w", err)
	}
	return c, nil
}

// oldToken verifies the quarter's token twice: as somebody who knows the
// issuer's keys alone, and as somebody who has read the log.
func (s *story) oldToken(ctx context.Context) (finding, error) {
	claims, offline := s.verifier.Verify(s.grant.Token, capability.Expect{Time: time.Now(), Delivered: true})
	if claims == nil {
		return finding{}, offline
	}
	state, ended := schemas.NewState(), uint64(0)
	live := func() bool {
		a := state.Agents[analyst]
		g := a.Grants[operation]
		return g != nil && g.JTI == s.grant.JTI && g.Ended == ""
	}
	if err := s.fold(ctx, state, analyst, func(e *schemas.Event) {
		if ended == 0 && e.Seq > s.grant.Seq && !live() {
			ended = e.Seq
		}
	}); err != nil {
		return finding{}, err
	}
	revoked := func(jti string) bool { return jti != s.grant.JTI || !live() }
	_, online := s.verifier.Verify(s.grant.Token, capability.Expect{Time: time.Now(), Delivered: true, Revoked: revoked})
	good := offline == nil || errors.Is(offline, capability.ErrExpired)
	refused := errors.Is(online, capability.ErrRevoked) || errors.Is(online, capability.ErrExpired)
	return found(good && refused && ended != 0, "by the keys alone: %s until %s; with the log: %s since event %d",
		verdictOf(offline), time.Unix(claims.Expires, 0).UTC().Format(time.TimeOnly), verdictOf(online), ended), nil
}

func verdictOf(err error) string {
	if err == nil {
		return "valid"
	}
	return capability.Reason(err)
}

// fold reads all that the ledger has of an agent into a state, and calls after
// behind each event.
func (s *story) fold(ctx context.Context, state *schemas.State, agent string, after func(*schemas.Event)) error {
	events, err := s.events(ctx, schemas.ReadRequest{Agent: agent, Data: true})
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := state.Apply(e); err != nil {
			return fmt.Errorf("fold the ledger: %w", err)
		}
		after(e)
	}
	if state.Agents[agent] == nil {
		return fmt.Errorf("the ledger does not declare %s", agent)
	}
	return nil
}

// refusedAtTheDoor tries to connect.
func (s *story) refusedAtTheDoor(creds []byte) finding {
	c, err := connect(s.plane.URL(), analyst, operation, creds)
	if err == nil {
		c.nc.Close()
		return found(false, "it is connected")
	}
	return found(errors.Is(err, nats.ErrAuthorization), "%v", err)
}

// forge makes credentials that nobody issued, with the key that signs an
// agent's operations now. The demo takes it out of the issuer's own folder;
// nobody else could.
func (s *story) forge(ctx context.Context, g schemas.Grant) ([]byte, error) {
	state := schemas.NewState()
	if err := s.fold(ctx, state, g.Agent, func(*schemas.Event) {}); err != nil {
		return nil, err
	}
	secrets, err := keys.OpenSecrets(s.data)
	if err != nil {
		return nil, err
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("forge: %w", err)
	}
	if g.PublicKey, err = user.PublicKey(); err != nil {
		return nil, fmt.Errorf("forge: %w", err)
	}
	now := time.Now()
	g.Expires = now.Add(time.Hour)
	token, err := accounts.NewMaker(secrets).Operation(g, accounts.Keys{Incarnation: state.Agents[g.Agent].Incarnation, Generation: state.Agents[g.Agent].Generation}, now)
	if err != nil {
		return nil, fmt.Errorf("forge: %w", err)
	}
	creds, err := accounts.Creds(token, user)
	return []byte(creds), err
}

// forgeScope claims a tool that writer-2 was never granted, with credentials
// that the server can't tell from good ones.
func (s *story) forgeScope(ctx context.Context) (finding, error) {
	creds, err := s.forge(ctx, schemas.Grant{Agent: writer, Operation: writing, Scope: []string{"call:bash"}})
	if err != nil {
		return finding{}, err
	}
	thief, err := connect(s.plane.URL(), "thief", writing, creds)
	if err != nil {
		return finding{}, err
	}
	defer thief.nc.Close()
	a, err := thief.act(ctx, "call.bash", "", []byte("id"))
	if err != nil {
		return finding{}, err
	}
	e, err := s.event(ctx, a.seq)
	if err != nil {
		return finding{}, err
	}
	ran := s.tools.calls("call:bash")
	return found(a.code == schemas.CodeForbidden && e.Kind == schemas.MessageDenied && ran == 0, "%s; logged as event %d (%s), risk of %s %d; bash ran %d times",
		a, e.Seq, e.Kind, e.Agent, e.Risk, ran), nil
}
