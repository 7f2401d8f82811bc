package accounts

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A death warrant is a killed account, signed beforehand. Whoever may give the
// servers account JWTs kills with it, and can do nothing else: the account that
// it names is that of one incarnation, which no other principal and no later
// one of the same name has. It is issued a century ahead, so that among servers
// that compare what they have, none that was issued otherwise is newer.

const (
	tagWarrant = "writ:warrant"
	tagBy      = "by:"
)

// ErrNoWarrant is matched where an account JWT is no death warrant.
var ErrNoWarrant = errors.New("not a death warrant; writ warrant make makes one")

// Warrant signs what kills a principal's account, made at a time.
func (m *Maker) Warrant(id, incarnation, by, reason string, made time.Time) (string, error) {
	c, err := m.killed(id, incarnation, made.Add(century))
	if err != nil {
		return "", err
	}
	c.Description = "death warrant of " + made.UTC().Format(time.RFC3339) + ": " + reason
	c.Tags.Add(tagWarrant, tagBy+by)
	return encode(c, made.Add(century), m.secrets.Operator)
}

// killed is an account in which nobody can be.
func (m *Maker) killed(id, incarnation string, iat time.Time) (*jwt.AccountClaims, error) {
	public, err := m.PublicKey(id, incarnation)
	if err != nil {
		return nil, err
	}
	c := jwt.NewAccountClaims(public)
	c.Name = id
	deny(&c.DefaultPermissions)
	c.Limits = jwt.OperatorLimits{
		NatsLimits:    jwt.NatsLimits{Subs: maxSubscriptions, Data: jwt.NoLimit, Payload: maxPayload},
		AccountLimits: jwt.AccountLimits{DisallowBearer: true},
	}
	c.RevokeAt(jwt.All, iat.Add(century))
	return c, nil
}

// A Death is what an account JWT says that kills.
type Death struct {
	Account string // NKey
	Name    string
	By      string // who made the warrant; "" where the issuer killed without one
	Reason  string
}

// ReadDeath reads an account JWT that kills: one without keys, imports and
// connections. Who signed it is for the caller to look at: signer is its NKey.
func ReadDeath(token string) (d Death, signer string, err error) {
	c, err := jwt.DecodeAccountClaims(strings.TrimSpace(token)) // verifies under the key that it names
	if err != nil {
		return Death{}, "", fmt.Errorf("%w: it can't be read", ErrNoWarrant)
	}
	if len(c.SigningKeys) > 0 || len(c.Imports) > 0 || len(c.Exports) > 0 || c.Limits.Conn != 0 || c.Expires != 0 ||
		c.Revocations[jwt.All] < c.IssuedAt {
		return Death{}, "", fmt.Errorf("%w: the account lives", ErrNoWarrant)
	}
	d = Death{Account: c.Subject, Name: c.Name}
	if c.Tags.Contains(tagWarrant) {
		d.Reason = c.Description
		for _, t := range c.Tags {
			if by, ok := strings.CutPrefix(t, tagBy); ok {
				d.By = by
			}
		}
	}
	return d, c.Issuer, nil
}

// Kills reads an account JWT on a server, and reports whether it kills a
// principal in its present incarnation, by the word of whoever has the
// operator's signing key, or had it then.
func (m *Maker) Kills(token string, a Account) (Death, bool) {
	d, signer, err := ReadDeath(token)
	if err != nil || signer != m.secrets.Operator.Public() && !slices.Contains(m.secrets.Trust.Formers, signer) {
		return Death{}, false
	}
	public, err := m.PublicKey(a.ID, a.Incarnation)
	return d, err == nil && d.Account == public
}

// WarrantOf reports why a token is no warrant that the operator of a data
// folder signed.
func WarrantOf(trust *keys.Trust, token string) (Death, error) {
	d, signer, err := ReadDeath(token)
	if err != nil {
		return d, err
	}
	operator, err := jwt.DecodeOperatorClaims(trust.Operator)
	if err != nil {
		return d, errors.New("keys/operator.jwt is damaged; restore it from a backup")
	}
	if !operator.DidSign(&jwt.AccountClaims{ClaimsData: jwt.ClaimsData{Issuer: signer}}) {
		return d, fmt.Errorf("%w: it was signed by %s, which is no key of this control plane's operator (any more)", ErrNoWarrant, signer)
	}
	return d, schemas.CheckID("agent", d.Name)
}
