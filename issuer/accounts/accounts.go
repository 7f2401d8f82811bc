// Package accounts turns principals and grants into NATS accounts and users:
// the JWTs by which the server itself enforces who may publish what.
//
// One account per agent and per service, named by its id. It imports the
// service writ.out.<id>~<incarnation>.> as out.> and the stream writ.in.<id>.>
// as in.>, and nothing else; the server stamps the account into the subject, so
// that the sender of what CONTROL sees is never in doubt, nor is which of those
// who bore the name one after the other. Users are signed by one of
// four scoped keys, whose templates bound them whatever they claim:
//
//	role       may publish                                      may subscribe
//	identity   out.token.*                                      _INBOX.>
//	operation  out.{{op}}.{{scope}}, out._r.*, out.token.*      in.>, _INBOX.>
//	           minus out.*.call.{{deny}}
//	service    out._r.*, out.token.*                            in.>, _INBOX.>
//	join       out.token.join                                   _INBOX.>
//
// An operator has such an account too: it imports the service writ.op.<id>.>
// as writ.ctl.>, and nothing else, and its one key signs users that may ask
// what the operator's role may.
//
// With TLS nobody is handed such a user (but the memory service, which is a
// part of the control plane). What agents get is a user in the account AUTH
// that may do nothing, with the same in its tags; when it connects, the server
// asks the issuer (auth callout), who looks at certificate, key and state, and
// gives the server, and nobody else, the user in the agent's account: Admit.
//
// Guarantees:
//
//   - An operation's user may publish exactly what its capability grants.
//   - A user's rights end with its capability, an account's after an hour.
//   - A killed account has no imports, no signing keys, no connections, and
//     revokes every user until a century on, so that neither a user from the
//     future nor a forged one gets in. It does not expire: an older account
//     JWT, replayed, does.
//
// The package reads no clock: times are arguments.
package accounts

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// TTL is how long an account JWT is valid; it is renewed at half-life.
const TTL = time.Hour

// century is how far ahead a killed account revokes its users.
const century = 100 * 365 * 24 * time.Hour

// MaxUserJWT bounds a user JWT, in bytes: the server reads protocol lines up
// to 8 KiB, and the connecting line holds the signature and names beside it.
const MaxUserJWT = 7000

// Limits of an account, each of which held under attack.
const (
	maxConnections   = 16
	maxSubscriptions = 64
	maxPayload       = schemas.MaxPayload + schemas.MaxHeader
)

// nothing is a subject that nobody serves. It stands in the operation's
// template, so that a user without scopes has a list of rights, and not an
// empty one, which the server might read as everything.
const nothing = "_none"

// Keys say which of a principal's keys sign: those of one incarnation, which
// has an account of its own, and of one generation in it.
type Keys struct {
	Incarnation string
	Generation  int // of the operation and service keys
}

// An Account is what a principal's account is made from.
type Account struct {
	ID   string
	Role schemas.Role // an operator's; empty for agents and services
	Lock schemas.Lock
	Keys
	Epoch int64 // of the secrets behind the keys: an account of another is to be made anew
	// RevokeUntil voids users issued up to and including its second; zero
	// voids none. It is when the principal came into the fleet, or was
	// enrolled anew behind a kill.
	RevokeUntil time.Time
}

// A Maker signs accounts and users. It is safe for concurrent use.
type Maker struct {
	secrets *keys.Secrets
}

// NewMaker signs with the issuer's secrets.
func NewMaker(s *keys.Secrets) *Maker { return &Maker{secrets: s} }

// PublicKey is the account of a principal in one incarnation.
func (m *Maker) PublicKey(id, incarnation string) (string, error) {
	pair, err := m.secrets.Account(id, incarnation, 0, keys.AccountKey)
	if err != nil {
		return "", err
	}
	return pair.Public(), nil
}

// Account signs an account JWT issued at iat. Issuing times of one account
// must rise from push to push, or a server that was away would keep the older
// one; they may run ahead of the clock by some seconds.
func (m *Maker) Account(a Account, iat time.Time) (string, error) {
	c, err := m.killed(a.ID, a.Incarnation, iat)
	if err != nil {
		return "", err
	}
	if a.Lock == schemas.Killed {
		return encode(c, iat, m.secrets.Operator)
	}
	clear(c.Revocations)
	c.Expires = iat.Add(TTL).Unix()
	c.Limits.Conn = maxConnections
	if !a.RevokeUntil.IsZero() {
		c.RevokeAt(jwt.All, a.RevokeUntil)
	}
	m.imports(c, a)
	c.Limits.Imports = int64(len(c.Imports))
	for _, role := range rolesOf(a) {
		if err := m.scope(c, a, role); err != nil {
			return "", err
		}
	}
	return encode(c, iat, m.secrets.Operator)
}

// rolesOf lists the keys that sign users under a lock: a suspended agent keeps
// its identity, with which it is told why it gets no capability. An operator
// under any lock has none.
func rolesOf(a Account) []keys.KeyRole {
	switch {
	case a.Role != "" && a.Lock == schemas.Active:
		return []keys.KeyRole{keys.OperatorKey}
	case a.Role != "":
		return nil
	case a.Lock == schemas.Suspended:
		return []keys.KeyRole{keys.IdentityKey}
	}
	return []keys.KeyRole{keys.IdentityKey, keys.OperationKey, keys.ServiceKey, keys.JoinKey}
}

func (m *Maker) imports(c *jwt.AccountClaims, a Account) {
	trust, id := m.secrets.Trust, a.ID
	if a.Role != "" {
		c.Imports.Add(&jwt.Import{
			Name: "ctl", Type: jwt.Service, Account: trust.Accounts[keys.CONTROL],
			Subject: jwt.Subject(schemas.OpPrefix + "." + id + ".>"), LocalSubject: "writ.ctl.>",
		})
		return
	}
	c.Imports.Add(&jwt.Import{
		Name: "out", Type: jwt.Service, Account: trust.Accounts[keys.CONTROL],
		Subject: jwt.Subject(schemas.OutSubject(id, a.Incarnation)), LocalSubject: "out.>",
	}, &jwt.Import{
		Name: "in", Type: jwt.Stream, Account: trust.Accounts[keys.DELIVER],
		Subject: jwt.Subject(schemas.InPrefix + "." + id + ".>"), LocalSubject: "in.>",
	})
}

// scope adds a signing key that can sign nothing but its template.
func (m *Maker) scope(c *jwt.AccountClaims, a Account, role keys.KeyRole) error {
	pairs, err := m.secrets.Trusted(a.ID, a.Incarnation, a.Generation, role)
	for _, pair := range pairs {
		m.scopeOf(c, a, role, pair)
	}
	return err
}

func (m *Maker) scopeOf(c *jwt.AccountClaims, a Account, role keys.KeyRole, pair *keys.Pair) {
	s := jwt.NewUserScope()
	s.Key, s.Role = pair.Public(), string(role)
	s.Template.Permissions = template(role, a.Role)
	s.Template.Limits.NatsLimits = jwt.NatsLimits{Subs: maxSubscriptions, Data: jwt.NoLimit, Payload: maxPayload}
	// A connection within the server's own process is one that holds its
	// memory already. Leaf nodes and WebSocket stay out.
	s.Template.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeInProcess)
	c.SigningKeys.AddScopedSigner(s)
}

func template(role keys.KeyRole, operator schemas.Role) jwt.Permissions {
	var p jwt.Permissions
	p.Sub.Allow.Add("_INBOX.>")
	switch role {
	case keys.IdentityKey:
		p.Pub.Allow.Add("out.token.*")
	case keys.OperationKey:
		p.Pub.Allow.Add("out.{{tag(op)}}.{{tag(scope)}}", "out._r.*", "out.token.*", nothing)
		p.Pub.Deny.Add("out.*.call.{{tag(deny)}}")
		p.Sub.Allow.Add("in.>")
	case keys.ServiceKey:
		p.Pub.Allow.Add("out._r.*", "out.token.*")
		p.Sub.Allow.Add("in.>")
	case keys.JoinKey:
		p.Pub.Allow.Add("out.token.join")
	case keys.OperatorKey:
		p.Pub.Allow.Add(append(operator.Commands(), nothing)...)
	}
	return p
}

func deny(p *jwt.Permissions) {
	p.Pub.Deny.Add(">")
	p.Sub.Deny.Add(">")
}

// Operation signs the user that may do what a grant says, until it expires.
func (m *Maker) Operation(g schemas.Grant, k Keys, iat time.Time) (string, error) {
	tags, err := Tags(g)
	if err != nil {
		return "", err
	}
	if g.Certificate != "" {
		tags = append(tags, tagCertificate+g.Certificate)
	}
	token, err := m.user(user{id: g.Agent, name: g.Agent + "/" + g.Operation, public: g.PublicKey, keys: k,
		role: keys.OperationKey, iat: iat, expires: g.Expires, tags: tags})
	if err != nil {
		return "", err
	}
	if len(token) > MaxUserJWT {
		return "", schemas.Refuse(schemas.CodeTooLarge, "%d scopes and %d forbidden tools make credentials of %d bytes, which no server would read; ask for fewer scopes in one operation, or use two operations", len(g.Scope), len(g.ForbiddenTools), len(token))
	}
	return token, nil
}

// Identity signs the user with which an agent asks for capabilities.
func (m *Maker) Identity(agent, public string, k Keys, iat, expires time.Time) (string, error) {
	return m.user(user{id: agent, name: agent, public: public, keys: k, role: keys.IdentityKey, iat: iat, expires: expires})
}

// Service signs the user with which a service receives and answers.
func (m *Maker) Service(service, public string, k Keys, iat, expires time.Time) (string, error) {
	return m.user(user{id: service, name: service, public: public, keys: k, role: keys.ServiceKey, iat: iat, expires: expires})
}

// Join signs the user of a join token.
func (m *Maker) Join(id, public string, k Keys, iat, expires time.Time) (string, error) {
	return m.user(user{id: id, name: id + "/join", public: public, keys: k, role: keys.JoinKey, iat: iat, expires: expires})
}

// OperatorTag marks an operator's user, for whoever looks into credentials
// before using them; it grants nothing.
const OperatorTag = "writ:operator"

// Operator signs the user with which an operator gives commands.
func (m *Maker) Operator(id, public string, k Keys, iat, expires time.Time) (string, error) {
	return m.user(user{id: id, name: id, public: public, keys: k, role: keys.OperatorKey, iat: iat, expires: expires, tags: []string{OperatorTag}})
}

// A user is one NATS user of a principal's account.
type user struct {
	id, name, public string
	keys             Keys
	role             keys.KeyRole
	iat, expires     time.Time
	tags             []string
}

func (m *Maker) user(u user) (string, error) {
	if !nkeys.IsValidPublicUserKey(u.public) {
		return "", schemas.Refuse(schemas.CodeMalformed, "public_key is not a public user NKey; such a key starts with U; leave it out to have one made")
	}
	if m.secrets.Bound(u.id, u.role) {
		return m.asked(u)
	}
	return m.admitted(u)
}

// admitted signs a user in the principal's own account.
func (m *Maker) admitted(u user) (string, error) {
	account, err := m.PublicKey(u.id, u.keys.Incarnation)
	if err != nil {
		return "", err
	}
	pair, err := m.secrets.Account(u.id, u.keys.Incarnation, u.keys.Generation, u.role)
	if err != nil {
		return "", err
	}
	c := jwt.NewUserClaims(u.public)
	c.SetScoped(true)
	c.Name, c.Expires, c.IssuerAccount = u.name, u.expires.Unix(), account
	c.Tags.Add(u.tags...)
	return encode(c, u.iat, pair)
}

// Tags say in the server's terms what a grant says: op, one scope per scope,
// one deny per forbidden tool. The template needs a deny, also where nothing
// is forbidden.
func Tags(g schemas.Grant) ([]string, error) {
	if err := schemas.CheckID("operation", g.Operation); err != nil {
		return nil, err
	}
	tags := []string{"op:" + g.Operation}
	for _, scope := range g.Scope {
		if err := schemas.CheckScope(scope); err != nil {
			return nil, err
		}
		tags = append(tags, "scope:"+Subject(scope))
	}
	for _, tool := range g.ForbiddenTools {
		if err := schemas.CheckID("forbidden tool", tool); err != nil {
			return nil, err
		}
		tags = append(tags, "deny:"+tool)
	}
	if len(g.ForbiddenTools) == 0 {
		tags = append(tags, "deny:"+nothing)
	}
	return tags, nil
}

// Subject is what a scope lets an agent publish, behind out.<operation>. A
// memory scope covers the keys of the agent's own namespace.
func Subject(scope string) string {
	verb, resource, _ := strings.Cut(scope, ":")
	if verb == schemas.VerbMemory && resource != "list" {
		return verb + "." + resource + ".>"
	}
	return verb + "." + resource
}

// NewUser makes a user key, and gives its public half too.
func NewUser() (user nkeys.KeyPair, public string, err error) {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	// CreateUser derives the key pair, and throws it away.
	if user, err = nkeys.FromRawSeed(nkeys.PrefixByteUser, seed); err == nil {
		public, err = user.PublicKey()
	}
	if err != nil {
		return nil, "", fmt.Errorf("make a user key: %w", err)
	}
	return user, public, nil
}

// Creds is the content of a .creds file: it is a secret. The token is one that
// was just signed for this very user: it is not verified again, which would cost
// more than signing it did.
func Creds(token string, user nkeys.KeyPair) (string, error) {
	seed, err := user.Seed()
	if err != nil {
		return "", fmt.Errorf("write credentials: %w", err)
	}
	b, err := jwt.DecorateSeed(seed)
	if err != nil {
		return "", fmt.Errorf("write credentials: %w", err)
	}
	return "-----BEGIN NATS USER JWT-----\n" + token + "\n------END NATS USER JWT------\n\n" + string(b), nil
}
