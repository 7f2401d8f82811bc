package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Upgrade gives a folder that an older version made what this one needs, and
// reports whether anything was missing. Nobody else may use the folder
// meanwhile. It needs the operator's signing key where an account is missing.
//
// Older versions had the memory service's user in CONTROL: it gets a new one
// in an account of its own, and the old one is revoked. They had no account
// AUTH. And the rights of some services' users were fewer. What was interrupted
// is done again from the beginning: trust.json, which names the accounts, is
// written last.
func Upgrade(data string) (changed bool, err error) {
	t, err := Open(data)
	if err != nil {
		return false, err
	}
	d := &draft{dir: filepath.Join(data, Dir), replace: true}
	if t.Accounts[MEMORY] == "" || t.Accounts[AUTH] == "" {
		if err := d.missing(data, t); err != nil {
			return false, err
		}
		changed = true
	}
	for role := range roles {
		renewed, err := d.renew(data, role, t)
		if err != nil {
			return false, fmt.Errorf("give the user %s its rights: %w", role, err)
		}
		changed = changed || renewed
	}
	return changed, nil
}

// missing makes the accounts that an older version did not know.
func (d *draft) missing(data string, t *Trust) error {
	seed, err := readSecret(filepath.Join(d.dir, "operator-signing.seed"))
	if err != nil {
		return fmt.Errorf("make the missing accounts: %w", err)
	}
	signer, err := nkeys.FromSeed(seed)
	if err != nil {
		return errors.New("make the missing accounts: keys/operator-signing.seed is damaged; restore it from a backup")
	}
	if t.Accounts[MEMORY] == "" {
		if err := d.withdraw(t.JWTs[t.Accounts[CONTROL]], data, RoleMemory, signer); err != nil {
			return fmt.Errorf("revoke the memory service's user in %s: %w", CONTROL, err)
		}
	}
	for _, name := range []string{MEMORY, AUTH} {
		if t.Accounts[name] == "" {
			d.account(name, t, signer)
		}
	}
	d.trust(t)
	if d.err != nil {
		return fmt.Errorf("make the missing accounts: %w", d.err)
	}
	return nil
}

// renew signs a service's user anew, for the key that it has, where its rights
// are no longer those of its role.
func (d *draft) renew(data string, role Role, t *Trust) (bool, error) {
	creds, err := Creds(data, role)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the folder is one service's, or the file was moved away
	}
	if err != nil {
		return false, err
	}
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return false, err
	}
	user, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return false, err
	}
	r := roles[role]
	if reflect.DeepEqual(user.Permissions, r.permissions(role)) {
		return false, nil
	}
	seed, err := readSecret(filepath.Join(d.dir, "accounts", r.account+".seed"))
	if err != nil {
		return false, err
	}
	signer, err := nkeys.FromSeed(seed)
	if err != nil {
		return false, fmt.Errorf("keys/accounts/%s.seed is damaged; restore it from a backup", r.account)
	}
	pair, err := jwt.ParseDecoratedUserNKey(creds)
	if err != nil {
		return false, err
	}
	d.creds(role, r, t.Accounts[r.account], signer, pair)
	return true, d.err
}

// withdraw revokes the user of CONTROL whose credentials lie in the folder.
func (d *draft) withdraw(control, data string, role Role, signer nkeys.KeyPair) error {
	creds, err := Creds(data, role)
	if err != nil {
		return err
	}
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return err
	}
	user, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return err
	}
	account, err := jwt.DecodeAccountClaims(control)
	if err != nil {
		return err
	}
	account.Revoke(user.Subject)
	if control, err = account.Encode(signer); err != nil {
		return err
	}
	d.write("accounts/"+CONTROL+".jwt", []byte(control))
	return d.err
}
