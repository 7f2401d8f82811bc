package issuer

import (
	"cmp"
	"context"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
)

// A join token lets a principal register a key of its own, so that no seed ever
// leaves it. The token is credentials whose template admits out.token.join and
// nothing else; they are void after one use, after a lock, and in time.

const maxJoin = 24 * time.Hour

// invite makes a join token.
func (i *Issuer) invite(ctx context.Context, req schemas.EnrollRequest) (schemas.EnrollReply, error) {
	ttl := time.Duration(req.JoinTTLSeconds) * time.Second
	if ttl < time.Second || ttl > maxJoin {
		return schemas.EnrollReply{}, schemas.Refuse(schemas.CodeMalformed, "a join token of %d s: 1 to %d are possible", req.JoinTTLSeconds, int(maxJoin.Seconds()))
	}
	id, expires := newJTI(), i.Now().Add(ttl).UTC().Truncate(time.Second)
	if err := i.logInvitation(ctx, req, id, expires); err != nil {
		return schemas.EnrollReply{}, err
	}
	if _, err := i.pushes.one(ctx, req.ID); err != nil {
		return schemas.EnrollReply{}, err
	}
	user, public, err := accounts.NewUser()
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	at := i.standing(req.ID)
	token, err := i.maker.Join(req.ID, public, at.keys, at.iat, expires)
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	creds, err := accounts.Creds(token, user)
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	reply := schemas.EnrollReply{AgentID: req.ID, PublicKey: public, Creds: creds, JoinID: id, ExpiresAt: &expires}
	if i.CA != nil {
		reply.Bundle = string(i.CA.Bundle())
	}
	return reply, nil
}

func (i *Issuer) logInvitation(ctx context.Context, req schemas.EnrollRequest, id string, expires time.Time) error {
	defer i.locks.pass(req.ID)()
	i.mu.RLock()
	e, err := decideInvite(i.state, req, id, expires)
	i.mu.RUnlock()
	if err != nil {
		return err
	}
	_, err = i.append(ctx, e)
	return err
}

// decideInvite says whether somebody may be invited to join.
func decideInvite(s *schemas.State, req schemas.EnrollRequest, id string, expires time.Time) (*schemas.Event, error) {
	if _, err := decideEnroll(s, req, "", time.Time{}); err != nil {
		return nil, err
	}
	a := s.Agents[req.ID]
	if a.Kind == schemas.KindOperator {
		return nil, schemas.Refuse(schemas.CodeConflict, "%s is an operator; join tokens are for agents and services", a.ID)
	}
	if err := lockRefusal(a); err != nil {
		return nil, err
	}
	return &schemas.Event{Kind: schemas.AgentInvited, Agent: a.ID, JTI: id, Expires: expires, Actor: req.Actor}, nil
}

// join registers the key of a principal that holds a join token. The first
// request that is in the log has used it up.
func (i *Issuer) join(ctx context.Context, who asker, req schemas.JoinRequest) (schemas.IssueReply, error) {
	id := who.agent
	at := i.standing(id)
	cert, err := i.certificate(id, asker{}, req.CertificateRequest, at.iat)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	if err := i.logJoin(ctx, who, req); err != nil {
		return schemas.IssueReply{}, err
	}
	token, expires, err := i.identity(id, req.PublicKey, at)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	reply := schemas.IssueReply{AgentID: id, UserJWT: token, ExpiresAt: expires, Scope: []string{}}
	reply.CertificateReply, err = i.certified(ctx, id, id, cert)
	return reply, err
}

func (i *Issuer) logJoin(ctx context.Context, who asker, req schemas.JoinRequest) error {
	defer i.locks.pass(who.agent)()
	now := i.Now()
	i.mu.RLock()
	e, err := decideJoin(i.state, who, req, now)
	i.mu.RUnlock()
	if err != nil {
		return err
	}
	_, err = i.append(ctx, e)
	return err
}

// decideJoin says whether a join token still counts.
func decideJoin(s *schemas.State, who asker, req schemas.JoinRequest, now time.Time) (*schemas.Event, error) {
	id := who.agent
	a := s.Agents[id]
	if a == nil || a.Kind == schemas.KindOperator {
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "%s is no agent or service of this fleet", clip(id))
	}
	if err := cmp.Or(who.stands(s), lockRefusal(a)); err != nil {
		return nil, err
	}
	if !nkeys.IsValidPublicUserKey(req.PublicKey) {
		return nil, schemas.Refuse(schemas.CodeMalformed, "public_key %s is not a public user NKey", clip(req.PublicKey))
	}
	if !a.Invited(req.ID, now) {
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "this join token was used already, has expired, or was voided by a lock; ask an operator for another (writ enroll %s --join)", id)
	}
	return &schemas.Event{Kind: schemas.AgentEnrolled, Agent: id, JTI: req.ID, Actor: id, ContentType: jsonType,
		Data: schemas.Marshal(schemas.Enrolment{Expires: now.Add(credentialTTL(a.Kind)).UTC().Truncate(time.Second)})}, nil
}
