package issuer

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// How long credentials live that are bound to no operation. Both are renewed
// by use (out.token.refresh without an operation), and neither outlives the
// log's memory of who was killed and enrolled anew.
const (
	identityTTL = 24 * time.Hour
	serviceTTL  = 7 * 24 * time.Hour
	operatorTTL = 30 * 24 * time.Hour // an admin enrols the operator again
)

// issue grants a capability or refuses it.
func (i *Issuer) issue(ctx context.Context, who asker, req schemas.IssueRequest) (schemas.IssueReply, error) {
	if who.agent != "" && who.agent != req.AgentID {
		if req.CSR != "" {
			return schemas.IssueReply{}, schemas.Refuse(schemas.CodeForbidden, "a certificate of %s is given to %s itself; leave csr out", clip(req.AgentID), clip(req.AgentID))
		}
		who.certificate = "" // it is not the holder's
	}
	// What it is derived from must not be refreshed or end meanwhile.
	turns := []string{req.AgentID}
	if who.agent != "" {
		turns = append(turns, who.agent)
	}
	defer i.gates.passAll(turns...)()
	free, err := i.budgetLeft(ctx, who, req)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	g, at, err := i.decided(who, func(s *schemas.State, f fresh) (schemas.Grant, error) {
		f.free = free
		return decideIssue(s, who, req, f)
	})
	if err != nil {
		return schemas.IssueReply{}, err
	}
	return i.granted(ctx, g, at, binding{audience: req.Audience, key: req.DPoPKey}, who, req.CertificateRequest)
}

// granted is grant, with a certificate for the agent where it asks for one. A
// capability that is to be bound is bound to that one, or else to the one that
// the holder's connection shows.
func (i *Issuer) granted(ctx context.Context, g schemas.Grant, at standing, to binding, who asker, req schemas.CertificateRequest) (schemas.IssueReply, error) {
	cert, err := i.certificate(g.Agent, who, req, at.iat)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	switch {
	case cert != nil && (req.CertificateBound || g.Certificate != ""):
		g.Certificate = cert.Fingerprint
	case req.CertificateBound:
		g.Certificate = who.certificate
	}
	reply, err := i.grant(ctx, g, at, to, who.name)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	reply.CertificateReply, err = i.certified(ctx, g.Agent, who.name, cert)
	return reply, err
}

// refresh renews the capability of one of the sender's operations.
func (i *Issuer) refresh(ctx context.Context, who asker, req schemas.RefreshRequest) (schemas.IssueReply, error) {
	agent := who.agent
	if req.OperationID == "" {
		return i.renewIdentity(ctx, who, req)
	}
	defer i.gates.passAll(agent, view(i, func(s *schemas.State) string {
		if g := s.GrantOf(agent, req.OperationID); g != nil && g.ParentAgent != "" {
			return g.ParentAgent
		}
		return agent
	}))()
	g, at, err := i.decided(who, func(s *schemas.State, f fresh) (schemas.Grant, error) { return decideRefresh(s, agent, req, f) })
	if err != nil {
		return schemas.IssueReply{}, err
	}
	if g.Token != "" { // it was signed and logged a moment ago
		return i.again(g, at)
	}
	old := view(i, func(s *schemas.State) schemas.Grant {
		if a := s.Agents[agent]; a != nil && a.Grants[req.OperationID] != nil {
			return a.Grants[req.OperationID].Grant
		}
		return schemas.Grant{}
	})
	return i.granted(ctx, g, at, bindingOf(old).renewed(old, req), who, req.CertificateRequest)
}

// decided takes a decision on the present state, and says as whom the agent
// stands in that very state.
func (i *Issuer) decided(who asker, decide func(*schemas.State, fresh) (schemas.Grant, error)) (schemas.Grant, standing, error) {
	f := fresh{now: i.Now(), jti: newJTI(), trace: newTrace(), signs: i.signerNow().Names}
	i.mu.RLock()
	defer i.mu.RUnlock()
	if err := who.stands(i.state); err != nil {
		return schemas.Grant{}, standing{}, err
	}
	f.rails = i.rails
	g, err := decide(i.state, f)
	return g, i.standingNow(g.Agent), err
}

func (i *Issuer) signerNow() *capability.Signer {
	i.signing.RLock()
	defer i.signing.RUnlock()
	return i.signer
}

// grant signs both faces of a capability, logs it, and hands it out if it then
// still holds: a lock that was logged before it wins.
func (i *Issuer) grant(ctx context.Context, g schemas.Grant, at standing, b binding, by string) (schemas.IssueReply, error) {
	var user nkeys.KeyPair
	var err error
	if g.PublicKey == "" {
		if user, g.PublicKey, err = accounts.NewUser(); err != nil {
			return schemas.IssueReply{}, err
		}
	}
	userJWT, err := i.maker.Operation(g, at.keys, at.iat)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	claims := capability.FromGrant(g, i.Secrets.Trust.TrustDomain, b.audience, g.NotBefore)
	if claims.Confirmation.JKT, err = b.jkt(claims.Audience == i.Secrets.Trust.TrustDomain || g.Certificate != "" && !b.nkey, g.PublicKey); err != nil {
		return schemas.IssueReply{}, err
	}
	seq, err := i.signed(ctx, &g, claims, by)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	if err := i.stillHolds(ctx, g, at.keys); err != nil {
		return schemas.IssueReply{}, err
	}
	reply := handedOut(g, userJWT, seq)
	if user != nil {
		if reply.Creds, err = accounts.Creds(userJWT, user); err != nil {
			return schemas.IssueReply{}, err
		}
	}
	return reply, nil
}

// again hands out a capability that is in the log already, if it still holds.
func (i *Issuer) again(g schemas.Grant, at standing) (schemas.IssueReply, error) {
	userJWT, err := i.maker.Operation(g, at.keys, at.iat)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	if err := i.obstacle(g, at.keys); err != nil { // it may be in use: what ends it is not that it was asked for
		return schemas.IssueReply{}, err
	}
	seq := view(i, func(s *schemas.State) uint64 {
		if live := s.GrantOf(g.Agent, g.Operation); live != nil && live.JTI == g.JTI {
			return live.Seq
		}
		return 0
	})
	if seq == 0 {
		return schemas.IssueReply{}, schemas.Refuse(schemas.CodeUnauthorized, "the capability for operation %s has ended; ask for a new one", g.Operation)
	}
	return handedOut(g, userJWT, seq), nil
}

func handedOut(g schemas.Grant, userJWT string, seq uint64) schemas.IssueReply {
	return schemas.IssueReply{Token: g.Token, JTI: g.JTI, AgentID: g.Agent, OperationID: g.Operation, Scope: append([]string{}, g.Scope...),
		ExpiresAt: g.Expires, TraceID: g.TraceID, UserJWT: userJWT, Seq: seq}
}

// signed signs a grant and logs it. No rotation comes in between: what a key
// signed stands in the log before the event that replaces the key.
func (i *Issuer) signed(ctx context.Context, g *schemas.Grant, claims capability.Claims, by string) (seq uint64, err error) {
	i.signing.RLock()
	defer i.signing.RUnlock()
	if g.Token, err = i.signer.Sign(claims); err != nil {
		return 0, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	body, err := schemas.WriteGrant(*g)
	if err != nil {
		return 0, fmt.Errorf("issuer: %w", err)
	}
	return i.append(ctx, &schemas.Event{
		Kind: schemas.TokenIssued, Agent: g.Agent, Operation: g.Operation, JTI: g.JTI, Actor: by, Act: g.Act,
		Trace: schemas.Trace{ID: g.TraceID, Span: i.spanBehind(*g)}, ContentType: jsonType, Data: body,
	})
}

// spanBehind hangs a grant under the one that it was derived from, in the trace
// that both share.
func (i *Issuer) spanBehind(g schemas.Grant) string {
	from := view(i, func(s *schemas.State) *schemas.Live { return s.GrantOf(g.ParentAgent, g.ParentOperation) })
	if g.ParentOperation == "" || from == nil {
		return newSpan()
	}
	return fmt.Sprintf("%016x", from.Seq)
}

// A standing is what a principal's users are signed with: its keys, and an
// issuing time behind whatever revoked its users last. Who decides takes it from
// the state that it decides on: read later it could be that of the next
// incarnation, and who was killed meanwhile would be let in as that one.
type standing struct {
	keys accounts.Keys
	iat  time.Time
}

func (i *Issuer) standing(id string) standing {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.standingNow(id)
}

// standingNow is standing where i.mu is held.
func (i *Issuer) standingNow(id string) standing {
	at := standing{iat: i.Now()}
	if a := i.state.Agents[id]; a != nil {
		at.keys = keysOf(a)
	}
	if next := i.born[id].Add(time.Second); at.iat.Before(next) {
		at.iat = next
	}
	return at
}

func keysOf(a *schemas.Agent) accounts.Keys {
	return accounts.Keys{Incarnation: a.Incarnation, Generation: a.Generation}
}

// stillHolds looks at the state once the grant is in the log. A grant that a
// lock overtook is ended, or it would count again after a resume.
func (i *Issuer) stillHolds(ctx context.Context, g schemas.Grant, k accounts.Keys) error {
	why := i.obstacle(g, k)
	if why == nil {
		return nil
	}
	if _, err := i.append(ctx, endOf(g, "a lock came before it")); err != nil {
		i.Logger.Error("grant not ended", "agent_id", g.Agent, "jti", g.JTI, "error", err)
	}
	return why
}

// obstacle says why a grant that is about to be handed out must not be.
func (i *Issuer) obstacle(g schemas.Grant, k accounts.Keys) error {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[g.Agent]
	switch {
	case a == nil:
		return schemas.Refuse(schemas.CodeNotFound, "%s was removed from the fleet", g.Agent)
	case i.state.Lockdown != "":
		return schemas.Refuse(schemas.CodeCancelled, "the fleet is locked down: %s; nobody gets a capability until an operator lifts it", i.state.Lockdown)
	case a.Lock != schemas.Active:
		return lockRefusal(a)
	case keysOf(a) != k:
		return schemas.Refuse(schemas.CodeCancelled, "the keys of %s were replaced meanwhile; ask again", g.Agent)
	}
	if live := a.Grants[g.Operation]; live != nil && live.JTI == g.JTI {
		if over := live.Over(i.Now()); over != "" {
			return schemas.Refuse(schemas.CodeCancelled, "it ended before it was handed out: %s", over)
		}
	}
	return nil
}

// endOf is the event that ends an operation. Its id is the capability's, so
// that two replicas end it once.
func endOf(g schemas.Grant, reason string) *schemas.Event {
	return &schemas.Event{
		ID: "issuer-ended-" + g.JTI, Kind: schemas.OperationEnded, Agent: g.Agent, Operation: g.Operation, JTI: g.JTI,
		Reason: schemas.HeaderText(reason), Trace: schemas.Trace{ID: g.TraceID, Span: newSpan()},
	}
}

// release ends an operation because its agent gave it up.
func (i *Issuer) release(ctx context.Context, who asker, req schemas.ReleaseRequest) (schemas.Ack, error) {
	agent := who.agent
	defer i.gates.pass(agent)()
	var live *schemas.Live
	i.mu.RLock()
	if err := who.stands(i.state); err != nil {
		i.mu.RUnlock()
		return schemas.Ack{}, err
	}
	if a := i.state.Agents[agent]; a != nil {
		live = a.Grants[req.OperationID]
	}
	var g schemas.Grant
	over := live == nil || live.Over(i.Now()) != ""
	if !over {
		g = live.Grant
	}
	i.mu.RUnlock()
	if over {
		return schemas.Ack{}, schemas.Refuse(schemas.CodeNotFound, "%s holds no capability for operation %s", agent, clip(req.OperationID))
	}
	seq, err := i.append(ctx, endOf(g, "given up"))
	if err != nil {
		return schemas.Ack{}, err
	}
	return schemas.Ack{Stream: schemas.Stream, Seq: seq}, nil
}

// renewIdentity renews the credential with which a principal asks and is
// asked. It is for a key that the principal names, and changes nobody's rights.
func (i *Issuer) renewIdentity(ctx context.Context, who asker, req schemas.RefreshRequest) (schemas.IssueReply, error) {
	id, public := who.agent, req.PublicKey
	at, err := i.renewable(who)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	if public == "" {
		return schemas.IssueReply{}, schemas.Refuse(schemas.CodeMalformed, "public_key is missing: say for which of your keys the credential is to be renewed")
	}
	cert, err := i.certificate(id, asker{}, req.CertificateRequest, at.iat)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	token, expires, err := i.identity(id, public, at)
	if err != nil {
		return schemas.IssueReply{}, err
	}
	i.noteRenewal(ctx, id, expires)
	reply := schemas.IssueReply{AgentID: id, UserJWT: token, ExpiresAt: expires, Scope: []string{}}
	reply.CertificateReply, err = i.certified(ctx, id, id, cert)
	return reply, err
}

// renewable says whether a principal may renew its credential, and as whom it
// stands then.
func (i *Issuer) renewable(who asker) (standing, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[who.agent]
	if a == nil || a.Kind == schemas.KindOperator { // one asks as an agent or service here
		return standing{}, schemas.Refuse(schemas.CodeUnauthorized, "%s is no agent or service of this fleet", who.agent)
	}
	return i.standingNow(a.ID), cmp.Or(who.stands(i.state), lockRefusal(a))
}

// credentialTTL is how long a principal's own credential is valid.
func credentialTTL(kind string) time.Duration {
	switch kind {
	case schemas.KindService:
		return serviceTTL
	case schemas.KindOperator:
		return operatorTTL
	}
	return identityTTL
}

// renewedNoted is by how much a renewal must move the end of a credential for
// the log to say so: an agent that renews without need fills nothing.
const renewedNoted = time.Hour

// noteRenewal logs that a credential lasts longer. Nobody's rights hang on it;
// where the log does not take it, a warning will be one too many.
func (i *Issuer) noteRenewal(ctx context.Context, id string, expires time.Time) {
	known := view(i, func(s *schemas.State) time.Time {
		if a := s.Agents[id]; a != nil {
			return a.CredentialExpires
		}
		return time.Time{}
	})
	if expires.Sub(known) < renewedNoted {
		return
	}
	if _, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentRenewed, Agent: id, Actor: id, Expires: expires.UTC()}); err != nil {
		i.Logger.Warn("renewal of a credential not logged", "agent_id", id, "error", err)
	}
}

// identity signs an agent's identity, a service's user or an operator's.
func (i *Issuer) identity(id, public string, at standing) (token string, expires time.Time, err error) {
	kind := view(i, func(s *schemas.State) string {
		if a := s.Agents[id]; a != nil {
			return a.Kind
		}
		return ""
	})
	expires = at.iat.Add(credentialTTL(kind))
	switch kind {
	case schemas.KindService:
		token, err = i.maker.Service(id, public, at.keys, at.iat, expires)
	case schemas.KindOperator:
		token, err = i.maker.Operator(id, public, at.keys, at.iat, expires)
	default:
		token, err = i.maker.Identity(id, public, at.keys, at.iat, expires)
	}
	return token, expires, err
}

// enroll makes an identity for a principal, and brings a killed one back.
func (i *Issuer) enroll(ctx context.Context, req schemas.EnrollRequest) (schemas.EnrollReply, error) {
	if err := i.overOperators(ctx, req.ID); err != nil {
		return schemas.EnrollReply{}, err
	}
	if req.JoinTTLSeconds != 0 {
		return i.invite(ctx, req)
	}
	// A request that can't be met enrols nobody; one that can is met behind the
	// enrolment, or the certificate would be one from before.
	if _, err := i.certificate(req.ID, asker{}, req.CertificateRequest, i.Now()); err != nil {
		return schemas.EnrollReply{}, err
	}
	if err := i.buried(ctx, req.ID); err != nil {
		return schemas.EnrollReply{}, err
	}
	if err := i.logEnrolment(ctx, req); err != nil {
		return schemas.EnrollReply{}, err
	}
	at := i.standing(req.ID)
	cert, err := i.certificate(req.ID, asker{}, req.CertificateRequest, at.iat)
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	if _, err := i.pushes.one(ctx, req.ID); err != nil {
		return schemas.EnrollReply{}, err
	}
	user, public, err := accounts.NewUser()
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	token, _, err := i.identity(req.ID, public, at)
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	creds, err := accounts.Creds(token, user)
	if err != nil {
		return schemas.EnrollReply{}, err
	}
	reply := schemas.EnrollReply{AgentID: req.ID, PublicKey: public, Creds: creds}
	reply.CertificateReply, err = i.certified(ctx, req.ID, req.Actor, cert)
	return reply, err
}

// buried makes sure that every server has what a principal was killed with,
// before another incarnation of it begins: nobody pushes it behind that.
func (i *Issuer) buried(ctx context.Context, id string) error {
	if view(i, func(s *schemas.State) bool { a := s.Agents[id]; return a == nil || a.Lock != schemas.Killed }) {
		return nil
	}
	if _, err := i.pushes.one(ctx, id); err != nil {
		return schemas.Refuse(schemas.CodeUnavailable, "not every server confirms that %s is killed (%v); enrol it when they do", id, err)
	}
	return nil
}

func (i *Issuer) logEnrolment(ctx context.Context, req schemas.EnrollRequest) error {
	defer i.locks.pass(req.ID)()
	i.mu.RLock()
	e, err := decideEnroll(i.state, req, newIncarnation(), i.Now())
	i.mu.RUnlock()
	if err != nil {
		return err
	}
	_, err = i.append(ctx, e)
	return err
}
