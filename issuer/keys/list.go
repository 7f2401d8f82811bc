package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
)

// Key is what may be known of a key of the folder. No secret is in it.
type Key struct {
	ID    string    `json:"kid"`             // how the world names it: kid, NKey or note verifier; "" where it has no public half
	Kind  string    `json:"kind"`            // what it is for
	Since time.Time `json:"since,omitzero"`  // zero where nothing says it
	Until time.Time `json:"until,omitzero"`  // zero: until it is replaced
	Where string    `json:"where,omitempty"` // in keys/; "" where it isn't there
}

// askingKeys lists those that sign agents' users in AUTH.
func askingKeys(dir string) (out []Key, err error) {
	d := &draft{dir: dir}
	m, err := openMasters(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, askFile)); m.fileAsks() && errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a folder from before them; they are not made for a list
	}
	public := d.asking()
	if d.err != nil {
		return nil, d.err
	}
	for n, a := range m.askers() {
		k := Key{ID: public[n], Kind: "agents' users in " + AUTH, Until: a.until, Where: mastersFile}
		switch {
		case a.next:
			k.Kind += ", next"
		case !a.until.IsZero():
			k.Kind += ", verifies only"
		}
		if a.master == "" {
			k.Where = askFile
		}
		out = append(out, k)
	}
	return out, nil
}

// List names the keys of a folder, those of agents and of certificates aside.
func List(data string, now time.Time) ([]Key, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	out, err := operatorKeys(dir, trust)
	if err != nil {
		return nil, err
	}
	r, err := openRing(dir)
	if err != nil {
		return nil, err
	}
	out = append(out, Key{r.Current.id(), "capability", r.Current.Since, time.Time{}, ringFile},
		Key{r.Next.id(), "capability, next", r.Next.Since, time.Time{}, ringFile})
	for _, k := range r.Retired {
		if now.Before(k.Until) {
			out = append(out, Key{keyID(k.Public), "capability, verifies only", time.Time{}, k.Until, ringFile})
		}
	}
	ledger, err := ledgerKeys(dir)
	if err != nil {
		return nil, err
	}
	out = append(append(out, ledger...), Key{Kind: "erasable contents", Where: "ledger.secret"})
	weights, err := weightsKeys(dir)
	if err != nil {
		return nil, err
	}
	out = append(out, weights...)
	accounts, err := mastersKeys(dir)
	if err != nil {
		return nil, err
	}
	out = append(out, accounts...)
	users, err := knownUsers(data)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(users, func(a, b *jwt.UserClaims) int { return strings.Compare(a.Name, b.Name) })
	for _, u := range users {
		where, err := filepath.Rel(dir, CredsPath(data, Role(u.Name)))
		if err != nil {
			return nil, err
		}
		out = append(out, Key{u.Subject, "user " + u.Name, time.Unix(u.IssuedAt, 0).UTC(), time.Time{}, where})
	}
	return out, nil
}

// operatorKeys are the operator's and the static accounts'.
func operatorKeys(dir string, trust *Trust) ([]Key, error) {
	operator, err := jwt.DecodeOperatorClaims(trust.Operator)
	if err != nil {
		return nil, errors.New("keys/operator.jwt is damaged; restore it from a backup")
	}
	out := []Key{{ID: operator.Subject, Kind: "operator root", Since: time.Unix(operator.IssuedAt, 0).UTC()}}
	switch _, err := os.Stat(filepath.Join(dir, "offline", "operator.seed")); {
	case err == nil:
		out[0].Where = "offline/operator.seed"
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for _, public := range operator.SigningKeys {
		out = append(out, Key{ID: public, Kind: "operator signing", Since: out[0].Since, Where: "operator-signing.seed"})
	}
	for _, name := range static {
		account := trust.JWTs[trust.Accounts[name]]
		if account == "" {
			continue // a folder from before it
		}
		claims, err := jwt.DecodeAccountClaims(account)
		if err != nil {
			return nil, errors.New("keys/accounts/" + name + ".jwt is damaged; restore it from a backup")
		}
		for public, scope := range claims.SigningKeys {
			if scope == nil {
				out = append(out, Key{ID: public, Kind: "account " + name, Where: "accounts/" + name + ".seed"})
			}
		}
	}
	asking, err := askingKeys(dir)
	if err != nil {
		return nil, err
	}
	out = append(out, asking...)
	slices.SortStableFunc(out[2:], func(a, b Key) int { return strings.Compare(a.Where, b.Where) })
	return out, nil
}
