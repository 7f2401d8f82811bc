package accounts

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/issuer/keys"
)

// Why ReadIdentity takes no notice of a user JWT.
var (
	ErrNoIdentity = errors.New("not the credential of an agent's identity or of an operator; writ enroll makes one")
	ErrNotSigned  = errors.New("not signed with the key for that in force")
)

// An Identity is what an agent's identity credential, or an operator's, says.
// Whether its key is in the hand of who shows it, is for the transport to prove.
type Identity struct {
	ID          string
	Incarnation string
	PublicKey   string // user NKey
	Issued      time.Time
	Expires     time.Time
}

// ReadIdentity reads a user JWT that Identity signed, and no other: neither an
// operation's nor a service's. of knows whose account is whose. Times are for
// the caller to judge.
func (m *Maker) ReadIdentity(token string, of func(account string) (id, incarnation string)) (Identity, error) {
	return m.read(token, keys.IdentityKey, func(account string) (string, Keys) {
		id, incarnation := of(account)
		return id, Keys{Incarnation: incarnation}
	})
}

// ReadOperator reads a user JWT that Operator signed with the keys of the
// generation that counts, and no other. of knows whose account is whose, and
// its keys.
func (m *Maker) ReadOperator(token string, of func(account string) (id string, k Keys)) (Identity, error) {
	return m.read(token, keys.OperatorKey, of)
}

func (m *Maker) read(token string, role keys.KeyRole, of func(account string) (string, Keys)) (Identity, error) {
	if len(token) > MaxUserJWT {
		return Identity{}, fmt.Errorf("%w: it is longer than %d bytes", ErrNoIdentity, MaxUserJWT)
	}
	c, err := jwt.DecodeUserClaims(token) // verifies under the key that it names
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	}
	id, k := of(c.IssuerAccount)
	if id == "" {
		return Identity{}, fmt.Errorf("%w: its account is not of this fleet", ErrNotSigned)
	}
	pairs, err := m.secrets.Trusted(id, k.Incarnation, k.Generation, role)
	if err != nil {
		return Identity{}, err
	}
	if !slices.ContainsFunc(pairs, func(p *keys.Pair) bool { return p.Public() == c.Issuer }) {
		return Identity{}, fmt.Errorf("%w: %s has another %s key", ErrNotSigned, id, role)
	}
	return Identity{id, k.Incarnation, c.Subject, time.Unix(c.IssuedAt, 0), time.Unix(c.Expires, 0)}, nil
}
