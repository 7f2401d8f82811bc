package monitor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// signal takes what an operator, or a program with an operator's credentials,
// hands on from a declared source.
func (s *Service) signal(ctx context.Context, req schemas.SignalRequest) (schemas.SignalReply, error) {
	actor := req.Operator
	if actor == "" {
		actor = schemas.RootActor + req.Actor
	}
	s.mu.Lock()
	st, err := decideSignal(s.model.fleet, req)
	s.mu.Unlock()
	if err != nil {
		return schemas.SignalReply{}, err
	}
	s.signalling.Lock()
	defer s.signalling.Unlock()
	seq, risk, err := s.tell(ctx, st, actor, rand.Text(), schemas.Digest{}, s.Now().UTC())
	return schemas.SignalReply{Seq: seq, Points: st.Points, Risk: risk}, err
}

// decideSignal holds a request against what its source is declared with.
func decideSignal(fleet *schemas.State, req schemas.SignalRequest) (*secevent.Statement, error) {
	if req.Actor == "" && req.Operator == "" || schemas.HeaderText(req.Actor+req.Operator) != req.Actor+req.Operator {
		return nil, schemas.Refuse(schemas.CodeMalformed, "the request does not say who asks")
	}
	if req.Reason == "" || len(req.Reason) > maxSignalReason || schemas.HeaderText(req.Reason) != req.Reason {
		return nil, schemas.Refuse(schemas.CodeMalformed, "the reason must be one line of 1 to %d bytes", maxSignalReason)
	}
	src := fleet.Source(req.Source)
	if src == nil {
		return nil, schemas.Refuse(schemas.CodeNotFound, "no source of signals %.63q is declared; add it to signals in the fleet file", req.Source)
	}
	if err := known(fleet, req.AgentID); err != nil {
		return nil, err
	}
	weight, declared := src.Weight[req.Event]
	switch {
	case !src.About(req.AgentID):
		return nil, schemas.Refuse(schemas.CodeForbidden, "%s may not speak about %s; its agents stand in the fleet file", src.ID, req.AgentID)
	case !declared:
		return nil, schemas.Refuse(schemas.CodeForbidden, "%s is declared with no weight for %.63q", src.ID, req.Event)
	}
	points := weight
	if req.Points != nil {
		points = *req.Points
	}
	if points < min(weight, 0) || points > max(weight, 0) {
		return nil, schemas.Refuse(schemas.CodeForbidden, "%s may say %s for %d to %d points, not for %d", src.ID, req.Event, min(weight, 0), max(weight, 0), points)
	}
	return &secevent.Statement{Agent: req.AgentID, Reason: req.Reason, Signal: schemas.Signal{Source: src.ID, Event: req.Event, Points: points}}, nil
}

// maxSignalReason bounds a reason, in bytes: it stands in verdicts.
const maxSignalReason = 200

func known(fleet *schemas.State, agent string) error {
	if a := fleet.Agents[agent]; a == nil || a.Kind != schemas.KindAgent {
		return schemas.Refuse(schemas.CodeNotFound, "%.63q is no agent of this fleet; writ status lists who is", agent)
	}
	return nil
}

// token takes a security event token. What is wrong with it is told in the
// reply; an error means that it can't be taken now.
func (s *Service) token(ctx context.Context, req schemas.TokenRequest) (schemas.TokenReply, error) {
	digest := schemas.Sum([]byte(req.Token))
	s.mu.Lock()
	sources, now := s.model.fleet.Signals, s.model.clock(s.Now().UTC())
	s.mu.Unlock()
	st, err := secevent.Verify(req.Token, sources, now)
	if err != nil {
		return refused(err), nil
	}
	s.signalling.Lock()
	defer s.signalling.Unlock()
	s.mu.Lock()
	again, err := s.model.heardBefore(st, digest, s.model.clock(now))
	if err == nil && known(s.model.fleet, st.Agent) != nil {
		err = &secevent.Error{Code: secevent.AccessDenied, Text: "its sub_id names no agent of this fleet"}
	}
	s.mu.Unlock()
	var wrong *secevent.Error
	switch {
	case errors.As(err, &wrong):
		return refused(err), nil
	case err != nil || again:
		return schemas.TokenReply{}, err
	}
	if st.Reason == "" {
		st.Reason = "no reason was given"
	}
	sum := sha256.Sum256([]byte("risk.signal\x00" + st.Source + "\x00" + st.Token))
	seq, _, err := s.tell(ctx, st, "signal/"+st.Source, hex.EncodeToString(sum[:16]), digest, now)
	return schemas.TokenReply{Seq: seq}, err
}

func refused(err error) schemas.TokenReply {
	return schemas.TokenReply{Err: secevent.Code(err), Description: err.Error()}
}

// tell logs a statement and returns when it is folded, so that the next is held
// against it: signalling is held. The risk is the agent's behind it.
func (s *Service) tell(ctx context.Context, st *secevent.Statement, actor, id string, digest schemas.Digest, now time.Time) (seq uint64, risk int, err error) {
	e := &schemas.Event{Kind: schemas.RiskSignal, Agent: st.Agent, ID: id, Source: s.Source, Time: now, Actor: actor,
		Reason: st.Reason, Digest: digest, ContentType: "application/json", Data: schemas.Marshal(st.Signal)}
	if seq, err = s.log.Append(ctx, e); err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	done := make(chan struct{})
	if s.told, s.toldAt = done, seq; s.model.Seq() >= seq {
		s.tellFolded()
	}
	s.mu.Unlock()
	select {
	case <-done:
	case <-time.After(foldWait):
		return seq, 0, schemas.Refuse(schemas.CodeUnavailable, "the signal is event %d of the log, and the monitor has not folded it yet", seq)
	case <-ctx.Done():
		return seq, 0, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.model.at(st.Agent); a != nil {
		risk = a.riskNow(now)
	}
	if err := s.model.Err(); err != nil {
		return seq, 0, unfit(err)
	}
	return seq, risk, nil
}

// tellFolded lets go who awaits the fold of a signal; mu is held.
func (s *Service) tellFolded() {
	if s.told != nil && s.model.Seq() >= s.toldAt {
		close(s.told)
		s.told = nil
	}
}
