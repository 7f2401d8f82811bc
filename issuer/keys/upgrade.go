package keys

import (
	"fmt"
	"path/filepath"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Upgrade gives a folder that an older version made what this one needs, and
// reports whether anything was missing. Nobody else may use the folder
// meanwhile. It needs the operator's signing key.
//
// Older versions had the memory service's user in CONTROL. It gets a new one
// in an account of its own, and the old one is revoked. What was interrupted is
// done again from the beginning: trust.json, which names the account, is
// written last.
func Upgrade(data string) (changed bool, err error) {
	t, err := Open(data)
	if err != nil {
		return false, err
	}
	if t.Accounts[MEMORY] != "" {
		return false, nil
	}
	dir := filepath.Join(data, Dir)
	seed, err := readSecret(filepath.Join(dir, "operator-signing.seed"))
	if err != nil {
		return false, fmt.Errorf("give the memory service its account: %w", err)
	}
	signer, err := nkeys.FromSeed(seed)
	if err != nil {
		return false, fmt.Errorf("give the memory service its account: keys/operator-signing.seed is damaged; restore it from a backup")
	}
	d := &draft{dir: dir, replace: true}
	if err := d.withdraw(t.JWTs[t.Accounts[CONTROL]], data, RoleMemory, signer); err != nil {
		return false, fmt.Errorf("revoke the memory service's user in %s: %w", CONTROL, err)
	}
	d.account(MEMORY, t, signer)
	d.trust(t)
	if d.err != nil {
		return false, fmt.Errorf("give the memory service its account: %w", d.err)
	}
	return true, nil
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
