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
	Signer  nkeys.KeyPair // signs answers
	XKey    nkeys.KeyPair // opens questions and seals answers (X25519)

	agents *Pair // from its file, nil where that counts no more; see Asking
}

// askFile holds the first key that signs agents' users in AUTH. Those that follow
// are derived from the secret of agents' accounts, and rotated with it.
const (
	askFile = "accounts/AUTH-agents.seed"
	askInfo = "writ agents in AUTH v1"
)

// Asking are the keys whose users in AUTH count: the one that signs first. They
// can sign no rights. TLS is on.
func (s *Secrets) Asking() ([]*Pair, error) {
	var out []*Pair
	for _, a := range s.Masters.askers() {
		pair := s.Auth.agents
		if a.master != "" {
			var err error
			if pair, err = s.derivedFrom(a.master, askInfo); err != nil {
				return nil, fmt.Errorf("derive the key of agents' users in AUTH: %w", err)
			}
		}
		out = append(out, pair)
	}
	return out, nil
}

// AskedAccount is AUTH as it has to be now: signed by nobody yet, and given back
// by KeepAsked.
func (s *Secrets) AskedAccount() (claims *jwt.AccountClaims, changed bool, err error) {
	token, err := readText(s.Masters.dir, "accounts/AUTH.jwt")
	if err != nil {
		return nil, false, err
	}
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return nil, false, errors.New("keys/accounts/AUTH.jwt is damaged; restore it from a backup")
	}
	pairs, err := s.Asking()
	if err != nil {
		return nil, false, err
	}
	wanted := jwt.SigningKeys{}
	for public, scope := range c.SigningKeys {
		if scope == nil {
			wanted.Add(public)
		}
	}
	for _, p := range pairs {
		wanted.AddScopedSigner(askScope(p.Public()))
	}
	same := len(wanted) == len(c.SigningKeys)
	for public := range wanted {
		_, there := c.SigningKeys[public]
		same = same && there
	}
	c.SigningKeys = wanted
	return c, !same, nil
}

// KeepAsked writes AUTH, for the starts to come.
func (s *Secrets) KeepAsked(token string) error {
	d := &draft{dir: s.Masters.dir, replace: true}
	d.write("accounts/AUTH.jwt", []byte(token))
	if d.err != nil {
		return fmt.Errorf("write keys/accounts/AUTH.jwt: %w", d.err)
	}
	return nil
}

func askScope(public string) *jwt.UserScope {
	scope := jwt.NewUserScope()
	scope.Key, scope.Role = public, "agent"
	denyAll(&scope.Template.Permissions)
	scope.Template.Limits.NatsLimits = jwt.NatsLimits{Subs: jwt.NoLimit, Data: jwt.NoLimit, Payload: jwt.NoLimit} // nobody stays in AUTH
	scope.Template.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard)
	return scope
}

// callout makes of AUTH an account whose every user but the service's own is
// asked about, and that has agents' users signed with keys that can sign no
// rights. They stay as they are: agents' users outlive an upgrade.
func (d *draft) callout(c *jwt.AccountClaims, service string) {
	xkey := d.kept("accounts/AUTH.xkey", nkeys.CreateCurveKeys)
	for _, public := range d.asking() {
		c.SigningKeys.AddScopedSigner(askScope(public))
	}
	if d.err != nil {
		return
	}
	c.Authorization = jwt.ExternalAuthorization{
		AuthUsers: jwt.StringList{service}, AllowedAccounts: jwt.StringList{jwt.AnyAccount}, XKey: mustPublic(xkey),
	}
}

// asking are the public halves of Asking, of which the first is made where it
// isn't there.
func (d *draft) asking() (public []string) {
	if d.err != nil {
		return nil
	}
	var m *Masters
	if m, d.err = openMasters(d.dir); d.err != nil {
		return nil
	}
	for _, a := range m.askers() {
		if a.master == "" {
			if pair := d.kept(askFile, nkeys.CreateAccount); d.err == nil {
				public = append(public, mustPublic(pair))
			}
			continue
		}
		pair, err := derive(a.master, askInfo)
		if err != nil {
			d.err = err
			return nil
		}
		public = append(public, pair.Public())
	}
	return public
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

func openAuth(dir string, m *Masters) (*Auth, error) {
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
	if err != nil || !m.fileAsks() {
		return a, err
	}
	raw, _ := read("AUTH-agents.seed", nkeys.PrefixByteAccount)
	if err != nil {
		return nil, err
	}
	if a.agents, err = newPair(nkeys.PrefixByteAccount, raw); err != nil {
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
