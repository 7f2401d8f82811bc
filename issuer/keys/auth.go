package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// TLSDir is the folder inside keys/ that is there where TLS is on.
const TLSDir = "tls"

const tlsDraft = "tls-draft-"

// Auth is what the issuer answers with where the server asks whether a
// connection is to be let in, and as whom (auth callout).
type Auth struct {
	Account string        // AUTH, in which agents' users are that are bound to a certificate
	Agents  *Pair         // signs those users, which alone may do nothing
	Signer  nkeys.KeyPair // signs answers
	XKey    nkeys.KeyPair // opens questions and seals answers (X25519)
}

// callout makes of AUTH an account whose every user but the service's own is
// asked about, and that signs agents' users with a key that can sign no rights.
// Both its keys stay where the folder has them: agents' users outlive an
// upgrade.
func (d *draft) callout(c *jwt.AccountClaims, service string) {
	xkey := d.kept("accounts/AUTH.xkey", nkeys.CreateCurveKeys)
	agents := d.kept("accounts/AUTH-agents.seed", nkeys.CreateAccount)
	if d.err != nil {
		return
	}
	scope := jwt.NewUserScope()
	scope.Key, scope.Role = mustPublic(agents), "agent"
	denyAll(&scope.Template.Permissions)
	scope.Template.Limits.NatsLimits = jwt.NatsLimits{Subs: jwt.NoLimit, Data: jwt.NoLimit, Payload: jwt.NoLimit} // nobody stays in AUTH
	scope.Template.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard)
	c.SigningKeys.AddScopedSigner(scope)
	c.Authorization = jwt.ExternalAuthorization{
		AuthUsers: jwt.StringList{service}, AllowedAccounts: jwt.StringList{jwt.AnyAccount}, XKey: mustPublic(xkey),
	}
}

// kept is a pair that the folder has, or else a new one, which it then has.
func (d *draft) kept(name string, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	if d.err != nil {
		return nil
	}
	seed, err := readSecret(d.dir, name)
	if err == nil {
		pair, err := nkeys.FromSeed(seed)
		if err != nil {
			d.err = fmt.Errorf("keys/%s is damaged; restore it from a backup", name)
		}
		return pair
	}
	if !errors.Is(err, fs.ErrNotExist) {
		d.err = err
		return nil
	}
	pair, err := create()
	if err == nil {
		seed, err = pair.Seed()
	}
	if err != nil {
		d.err = err
		return nil
	}
	d.write(name, seed)
	return pair
}

func openAuth(dir string) (*Auth, error) {
	trust, err := Open(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	a := &Auth{Account: trust.Accounts[AUTH]}
	if a.Account == "" {
		return nil, errors.New("the keys have no account AUTH, which TLS needs; start once with writ up, or run writ provision, which make it")
	}
	read := func(name string, want nkeys.PrefixByte) (raw []byte, pair nkeys.KeyPair) {
		damaged := fmt.Errorf("keys/accounts/%s is damaged; restore it from a backup", name)
		seed, serr := readSecret(dir, filepath.Join("accounts", name))
		if serr != nil {
			err = errors.Join(err, serr)
			return nil, nil
		}
		prefix, raw, derr := nkeys.DecodeSeed(seed)
		if derr == nil && prefix == want {
			pair, derr = nkeys.FromSeed(seed)
		}
		if derr != nil || prefix != want {
			err = errors.Join(err, damaged)
		}
		return raw, pair
	}
	_, a.Signer = read("AUTH.seed", nkeys.PrefixByteAccount)
	_, a.XKey = read("AUTH.xkey", nkeys.PrefixByteCurve)
	raw, _ := read("AUTH-agents.seed", nkeys.PrefixByteAccount)
	if err != nil {
		return nil, err
	}
	if a.Agents, err = newPair(nkeys.PrefixByteAccount, raw); err != nil {
		return nil, errors.New("keys/accounts/AUTH-agents.seed is damaged; restore it from a backup")
	}
	return a, nil
}

// WriteTLS writes files of the folder tls, each whole or not at all; a new
// folder is there with all of them or not at all.
func WriteTLS(data string, files map[string][]byte) error {
	dir := filepath.Join(data, Dir)
	target := filepath.Join(dir, TLSDir)
	d := &draft{dir: dir, sealed: dir, replace: true}
	_, err := os.Stat(target)
	fresh := errors.Is(err, fs.ErrNotExist)
	if fresh {
		if d.dir, err = os.MkdirTemp(data, tlsDraft); err != nil {
			return err
		}
		defer os.RemoveAll(d.dir)
	}
	for name, content := range files {
		d.write(filepath.Join(TLSDir, name), bytes.TrimRight(content, "\n"))
	}
	if d.err != nil || !fresh {
		return d.err
	}
	return errors.Join(os.Rename(filepath.Join(d.dir, TLSDir), target), syncDir(dir))
}
