package accounts

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// Tags of a user in AUTH, beside those of the rights that it is to get.
const (
	tagAgent       = "agent:"
	tagRole        = "role:"
	tagGeneration  = "generation:"
	tagCertificate = "certificate:"
	tagIncarnation = "incarnation:" // where it has one
)

// asked signs a user in AUTH, about whom the server asks when it connects.
func (m *Maker) asked(u user) (string, error) {
	c := jwt.NewUserClaims(u.public)
	c.SetScoped(true)
	c.Name, c.Expires, c.IssuerAccount = u.name, u.expires.Unix(), m.secrets.Auth.Account
	c.Tags.Add(tagAgent+u.id, tagRole+string(u.role), tagGeneration+strconv.Itoa(u.keys.Generation))
	if u.keys.Incarnation != "" {
		c.Tags.Add(tagIncarnation + u.keys.Incarnation)
	}
	c.Tags.Add(u.tags...)
	pairs, err := m.secrets.Asking()
	if err != nil {
		return "", err
	}
	return encode(c, u.iat, pairs[0])
}

// An Asked is a user in AUTH that was signed by us and is valid: who it says
// that it is. Whether who shows it has its key is not known yet.
type Asked struct {
	Agent     string
	PublicKey string
	Role      keys.KeyRole
	Keys      // the generation where the role has generations
	Issued    time.Time
	Expires   time.Time
	// Certificate is the SHA-256, hex, of the one that it counts with alone; of
	// any of the agent's where empty.
	Certificate string

	name string
	tags []string // the rights
}

// Why Ask takes no notice of a user JWT.
var (
	ErrAsked = errors.New("not credentials of an agent") // always
	ErrOver  = errors.New("they expired")                // beside it
)

// Ask reads a user in AUTH.
func (m *Maker) Ask(token string, now time.Time) (Asked, error) {
	auth := m.secrets.Auth
	if len(token) > MaxUserJWT {
		return Asked{}, fmt.Errorf("%w: they are longer than %d bytes", ErrAsked, MaxUserJWT)
	}
	c, err := jwt.DecodeUserClaims(token) // with its signature
	switch {
	case auth == nil:
		return Asked{}, fmt.Errorf("%w: nobody is bound to a certificate here", ErrAsked)
	case err != nil:
		return Asked{}, fmt.Errorf("%w: they can't be read", ErrAsked)
	case !m.asks(c.Issuer) || c.IssuerAccount != auth.Account:
		return Asked{}, fmt.Errorf("%w: another key signed them: %w", ErrAsked, ErrNotSigned)
	case c.BearerToken:
		return Asked{}, fmt.Errorf("%w: they demand no key", ErrAsked)
	case now.Unix() < c.NotBefore || c.Expires == 0 || now.Unix() >= c.Expires:
		return Asked{}, fmt.Errorf("%w: %w at %s", ErrAsked, ErrOver, time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	}
	a := Asked{PublicKey: c.Subject, Issued: time.Unix(c.IssuedAt, 0), Expires: time.Unix(c.Expires, 0), name: c.Name}
	for _, t := range c.Tags {
		switch {
		case strings.HasPrefix(t, tagAgent):
			a.Agent = t[len(tagAgent):]
		case strings.HasPrefix(t, tagRole):
			a.Role = keys.KeyRole(t[len(tagRole):])
		case strings.HasPrefix(t, tagGeneration):
			if a.Generation, err = strconv.Atoi(t[len(tagGeneration):]); err != nil {
				return Asked{}, fmt.Errorf("%w: their generation is no number", ErrAsked)
			}
		case strings.HasPrefix(t, tagCertificate):
			a.Certificate = t[len(tagCertificate):]
		case strings.HasPrefix(t, tagIncarnation):
			a.Incarnation = t[len(tagIncarnation):]
		default:
			a.tags = append(a.tags, t)
		}
	}
	if err := schemas.CheckID("agent", a.Agent); err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrAsked, err)
	}
	if !m.secrets.Bound(a.Agent, a.Role) {
		return Asked{}, fmt.Errorf("%w: there is no role %q", ErrAsked, a.Role)
	}
	return a, nil
}

// asks reports whether a key's users in AUTH count.
func (m *Maker) asks(key string) bool {
	pairs, err := m.secrets.Asking()
	return err == nil && slices.ContainsFunc(pairs, func(p *keys.Pair) bool { return p.Public() == key })
}

// AskedAccount signs AUTH as it has to be now, and writes it where it was not so.
func (m *Maker) AskedAccount(now time.Time) (string, error) {
	c, changed, err := m.secrets.AskedAccount()
	if err != nil {
		return "", err
	}
	token, err := encode(c, time.Unix(max(now.Unix(), c.IssuedAt+1), 0), m.secrets.Operator)
	if err != nil || !changed {
		return token, err
	}
	return token, m.secrets.KeepAsked(token)
}

// AskIdentity reads a user in AUTH that Identity signed, and no other.
func (m *Maker) AskIdentity(token string, now time.Time) (Asked, error) {
	a, err := m.Ask(token, now)
	if err == nil && a.Role != keys.IdentityKey {
		return Asked{}, fmt.Errorf("%w: its role is %s", ErrNoIdentity, a.Role)
	}
	return a, err
}

// Stands reports why a user counts no more under what its account is made from
// now; nil where it does.
func (a Asked) Stands(now Account) error {
	switch {
	case now.Lock == schemas.Killed || !slices.Contains(rolesOf(now), a.Role):
		return fmt.Errorf("%s is %s", a.Agent, now.Lock)
	case a.Role != keys.IdentityKey && a.Generation != now.Generation:
		return fmt.Errorf("the keys of %s were replaced", a.Agent)
	case a.Incarnation != now.Incarnation || !a.Issued.After(now.RevokeUntil):
		return fmt.Errorf("credentials of %s from before it was enrolled do not count", a.Agent)
	}
	return nil
}

// Admit signs the user that the server puts in place of one in AUTH, for the
// key that the server has made for this connection and nobody else has.
func (m *Maker) Admit(a Asked, key string, iat, expires time.Time) (string, error) {
	return m.admitted(user{id: a.Agent, name: a.name, public: key, keys: a.Keys,
		role: a.Role, iat: iat, expires: expires, tags: a.tags})
}
