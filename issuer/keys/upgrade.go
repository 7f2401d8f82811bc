package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Upgrade gives a folder that another version made the accounts and users of
// this one, and reports whether anything had to change. Nobody else may use the
// folder meanwhile. It needs the operator's signing key.
//
// Accounts keep their keys; every user is made anew, and the one in its place
// is revoked. So credentials that were copied to other machines must be copied
// again. What was interrupted is done again from the beginning: trust.json,
// which says for which rights the folder was made, is written last.
func Upgrade(data string) (changed bool, err error) {
	t, err := Open(data)
	if err != nil {
		return false, err
	}
	lacks := slices.ContainsFunc(static, func(name string) bool { return t.Accounts[name] == "" })
	if t.Rights == digest() && !lacks {
		return false, nil
	}
	return true, renewAll(data, t)
}

// Renew makes every service's user anew and revokes the one in its place, as
// Upgrade does, whatever version made them.
func Renew(data string) error {
	t, err := Open(data)
	if err != nil {
		return err
	}
	return renewAll(data, t)
}

func renewAll(data string, t *Trust) error {
	dir := filepath.Join(data, Dir)
	operator, err := readSigner(dir, "operator-signing.seed")
	if err != nil {
		return fmt.Errorf("upgrade the keys: %w", err)
	}
	users, err := knownUsers(data)
	if err != nil {
		return fmt.Errorf("upgrade the keys: %w", err)
	}
	d := &draft{dir: dir, replace: true}
	for _, name := range static {
		public := t.Accounts[name]
		if public == "" {
			d.account(name, t, operator)
			continue
		}
		if err := d.renew(name, t.JWTs[public], users, operator); err != nil {
			return fmt.Errorf("upgrade account %s: %w", name, err)
		}
	}
	if err := d.ringFrom(time.Now()); err != nil {
		return fmt.Errorf("upgrade the keys: %w", err)
	}
	t.Rights = digest()
	d.trust(t)
	if d.err != nil {
		return fmt.Errorf("upgrade the keys: %w", d.err)
	}
	return nil
}

// knownUsers reads the users whose credentials lie in the folder.
func knownUsers(data string) ([]*jwt.UserClaims, error) {
	var out []*jwt.UserClaims
	for role := range roles {
		creds, err := Creds(data, role)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a role that the other version had not
		}
		if err != nil {
			return nil, err
		}
		token, err := jwt.ParseDecoratedJWT(creds)
		if err != nil {
			return nil, fmt.Errorf("credentials of %s: %w", role, err)
		}
		user, err := jwt.DecodeUserClaims(token)
		if err != nil {
			return nil, fmt.Errorf("credentials of %s: %w", role, err)
		}
		out = append(out, user)
	}
	return out, nil
}

// renew writes a static account as this version has it, with new users, and
// revokes those that the folder held.
func (d *draft) renew(name, token string, users []*jwt.UserClaims, operator nkeys.KeyPair) error {
	old, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return err
	}
	signer, err := readSigner(d.dir, filepath.Join("accounts", name+".seed"))
	if err != nil {
		return err
	}
	claims := staticAccount(name, old.Subject, mustPublic(signer))
	claims.Revocations = maps.Clone(old.Revocations)
	for _, user := range users {
		if user.IssuerAccount == old.Subject {
			claims.Revoke(user.Subject)
		}
	}
	d.populate(name, claims, signer, operator)
	return d.err
}

func readSigner(dir, name string) (nkeys.KeyPair, error) {
	seed, err := readSecret(dir, name)
	if err != nil {
		return nil, err
	}
	pair, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("keys/%s is damaged; restore it from a backup", name)
	}
	return pair, nil
}
