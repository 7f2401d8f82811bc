package accounts

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/issuer/keys"
)

// Why ReadIdentity takes no notice of a user JWT.
var (
	ErrNoIdentity = errors.New("not the credential of an agent's identity; writ enroll makes one")
	ErrNotSigned  = errors.New("not signed with the agent's identity key")
)

// An Identity is what an agent's identity credential says. Whether its key is in
// the hand of who shows it, is for the transport to prove.
type Identity struct {
	ID        string
	PublicKey string // user NKey
	Issued    time.Time
	Expires   time.Time
}

// ReadIdentity reads a user JWT that Identity signed, and no other: neither an
// operation's nor a service's. of knows whose account is whose. Times are for
// the caller to judge.
func (m *Maker) ReadIdentity(token string, of func(account string) (id string)) (Identity, error) {
	if len(token) > MaxUserJWT {
		return Identity{}, fmt.Errorf("%w: it is longer than %d bytes", ErrNoIdentity, MaxUserJWT)
	}
	c, err := jwt.DecodeUserClaims(token) // verifies under the key that it names
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	}
	id := of(c.IssuerAccount)
	if id == "" {
		return Identity{}, fmt.Errorf("%w: its account is not of this fleet", ErrNotSigned)
	}
	pair, err := m.secrets.Account(id, 0, keys.IdentityKey)
	if err != nil {
		return Identity{}, err
	}
	if c.Issuer != pair.Public() {
		return Identity{}, ErrNotSigned
	}
	return Identity{id, c.Subject, time.Unix(c.IssuedAt, 0), time.Unix(c.Expires, 0)}, nil
}
