package keys

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/schemas"
)

// ResponseThreshold is how long CONTROL's server awaits an answer to a request
// of an agent before it forgets who asked.
const ResponseThreshold = time.Hour

// AskThreshold is the same for what named operators ask: longer than any
// command may take.
const AskThreshold = 15 * time.Minute

const offlineReadme = `The keys in this folder sign nothing after writ init. Take them off this
machine (writ keys export-root --to FILE --remove), and keep them: with the
operator's root key a new operator signing key can be named, should the present
one be lost or stolen. Writ runs without it.
`

// Init makes the folder keys/ of a data folder: whole or not at all. It fails
// with ErrExists where there is one.
func Init(data, trustDomain string) error { return initWith(data, trustDomain, nil) }

// InitSealed is the same, and what it makes is sealed: no secret ever reaches
// the disk.
func InitSealed(data, trustDomain string, with *Opener) error {
	return initWith(data, trustDomain, with)
}

func initWith(data, trustDomain string, with *Opener) error {
	if err := CheckTrustDomain(trustDomain); err != nil {
		return err
	}
	target := filepath.Join(data, Dir)
	if _, err := os.Lstat(target); err == nil {
		return fmt.Errorf("%w in %s; choose another data folder, or move them away yourself", ErrExists, target)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make keys: %w", err)
	}
	for _, name := range []string{"ledger", "anchor", "nats"} {
		if entries, err := os.ReadDir(filepath.Join(data, name)); err == nil && len(entries) > 0 {
			return fmt.Errorf("%s holds a control plane's %s, and %w: put keys/ back from a backup; new ones can't open it", data, name, ErrHistory)
		}
	}
	if err := MakeFolder(data); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	draft, err := os.MkdirTemp(data, draftPrefix)
	if err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	defer os.RemoveAll(draft)
	if err := fill(draft, trustDomain, with); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	if err := os.Rename(draft, target); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w in %s", ErrExists, target)
		}
		return fmt.Errorf("make keys: %w", err)
	}
	return errors.Join(dropDrafts(data), syncDir(data))
}

// MakeFolder makes a data folder, or closes an empty one to others. One that
// holds something may be open to others on purpose, and is refused.
func MakeFolder(data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	if entries, err := os.ReadDir(data); err != nil {
		return err
	} else if len(entries) == 0 {
		return os.Chmod(data, 0o700)
	}
	return checkClosed(data)
}

// dropDrafts removes what a process left that was killed while it made keys:
// they are nobody's, and look like somebody's.
func dropDrafts(data string) error {
	return removeAll(filepath.Join(data, draftPrefix+"*"))
}

func removeAll(pattern string) error {
	left, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove what was left half made: %w", err)
		}
	}
	return nil
}

const draftPrefix = "keys-draft-"

// CheckTrustDomain reports whether a trust domain may be chosen.
func CheckTrustDomain(s string) error {
	if err := schemas.CheckTrustDomain(s); err != nil {
		return fmt.Errorf("%w; choose one such as acme.example", err)
	}
	return nil
}

func (d *draft) pair(prefix nkeys.PrefixByte, name string) (nkeys.KeyPair, string) {
	if d.err != nil {
		return nil, ""
	}
	pair, err := nkeys.CreatePair(prefix)
	if err != nil {
		d.err = err
		return nil, ""
	}
	public, err := pair.PublicKey()
	if err != nil {
		d.err = err
		return nil, ""
	}
	if name != "" {
		seed, err := pair.Seed()
		if err != nil {
			d.err = err
			return nil, ""
		}
		d.write(name, seed)
	}
	return pair, public
}

func (d *draft) secret(name string) {
	b := make([]byte, 32)
	rand.Read(b)
	d.write(name, []byte(hex.EncodeToString(b)))
}

func fill(dir, trustDomain string, with *Opener) error {
	d := &draft{dir: dir}
	if d.err = os.Chmod(dir, 0o700); d.err != nil {
		return d.err
	}
	if with != nil {
		if err := newSeal(whole, with).put(d); err != nil {
			return err
		}
	}
	root, _ := d.pair(nkeys.PrefixByteOperator, "offline/operator.seed")
	d.write("offline/README", []byte(strings.TrimSpace(offlineReadme)))
	opSigner, opSignerPublic := d.pair(nkeys.PrefixByteOperator, "operator-signing.seed")
	if d.err != nil {
		return d.err
	}
	trust := Trust{TrustDomain: trustDomain, Accounts: map[string]string{}, Rights: digest()}
	d.secret("master.secret") // AUTH's keys are looked up in it
	for _, name := range static {
		d.account(name, &trust, opSigner)
	}
	if d.err != nil {
		return d.err
	}
	operator := jwt.NewOperatorClaims(mustPublic(root))
	operator.Name = trustDomain
	operator.SigningKeys.Add(opSignerPublic)
	operator.SystemAccount = trust.Accounts[SYS]
	operator.StrictSigningKeyUsage = true
	token, err := operator.Encode(root)
	if err != nil {
		return err
	}
	d.write("operator.jwt", []byte(token))
	d.newRing()
	d.secret("ledger.secret")
	skey, vkey, err := note.GenerateKey(rand.Reader, trustDomain)
	if err != nil {
		return err
	}
	d.write("ledger.note", []byte(skey))
	d.write("ledger.pub", []byte(vkey))
	d.trust(&trust)
	if d.err != nil {
		return d.err
	}
	return syncDir(dir)
}

func (d *draft) trust(t *Trust) {
	public, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		d.err = err
		return
	}
	d.write("trust.json", public)
}

// account makes a static account with its users.
func (d *draft) account(name string, trust *Trust, opSigner nkeys.KeyPair) {
	_, public := d.pair(nkeys.PrefixByteAccount, "offline/"+name+".seed")
	signer, signerPublic := d.pair(nkeys.PrefixByteAccount, "accounts/"+name+".seed")
	if d.err != nil {
		return
	}
	d.populate(name, staticAccount(name, public, signerPublic), signer, opSigner)
	trust.Accounts[name] = public
}

// populate writes a static account and its users: the account first, which
// revokes those that it had.
func (d *draft) populate(name string, claims *jwt.AccountClaims, signer, opSigner nkeys.KeyPair) {
	users := map[Role]nkeys.KeyPair{}
	for role, r := range roles {
		if r.account == name {
			users[role], _ = d.pair(nkeys.PrefixByteUser, "")
		}
	}
	if d.err != nil {
		return
	}
	if service, ok := users[RoleCallout]; ok {
		d.callout(claims, mustPublic(service))
	}
	token, err := claims.Encode(opSigner)
	if err != nil {
		d.err = err
		return
	}
	d.write("accounts/"+name+".jwt", []byte(token))
	for role, pair := range users {
		d.creds(role, roles[role], claims.Subject, signer, pair)
	}
}

// staticAccount is an account that Init makes once and nobody updates, but for
// what its users bring along: updating CONTROL's would drop the replies in
// flight.
func staticAccount(name, public, signer string) *jwt.AccountClaims {
	c := jwt.NewAccountClaims(public)
	c.Name = name
	c.SigningKeys.Add(signer)
	c.Limits.LeafNodeConn = 0
	c.Limits.DisallowBearer = true
	c.Limits.Imports = 0
	denyAll(&c.DefaultPermissions)
	switch name {
	case CONTROL:
		c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: 64 << 20, DiskStorage: jwt.NoLimit, Streams: 16, Consumer: 256, MaxAckPending: jwt.NoLimit}
		c.Exports.Add(&jwt.Export{
			Name: "out", Subject: jwt.Subject(schemas.OutPrefix + ".*.>"), Type: jwt.Service,
			ResponseType: jwt.ResponseTypeStream, ResponseThreshold: ResponseThreshold,
		}, &jwt.Export{
			Name: "op", Subject: jwt.Subject(schemas.OpPrefix + ".*.>"), Type: jwt.Service,
			ResponseType: jwt.ResponseTypeStream, ResponseThreshold: AskThreshold,
		})
	case MEMORY:
		c.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, Streams: 1, Consumer: 16}
	case DELIVER:
		c.Exports.Add(&jwt.Export{Name: "in", Subject: jwt.Subject(schemas.InPrefix + ".*.>"), Type: jwt.Stream})
	}
	return c
}

func denyAll(p *jwt.Permissions) {
	p.Pub.Deny.Add(">")
	p.Sub.Deny.Add(">")
}

// creds writes one service's NATS user. It has no expiry: it lies beside the
// key that could sign it anew.
func (d *draft) creds(role Role, r rights, account string, signer, pair nkeys.KeyPair) {
	if d.err != nil {
		return
	}
	c := jwt.NewUserClaims(mustPublic(pair))
	c.Name = string(role)
	c.IssuerAccount = account
	c.Permissions = r.permissions(role)
	c.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeInProcess)
	token, err := c.Encode(signer)
	if err != nil {
		d.err = err
		return
	}
	seed, err := pair.Seed()
	if err != nil {
		d.err = err
		return
	}
	creds, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		d.err = err
		return
	}
	d.write(credsName(role), creds)
}

func mustPublic(pair nkeys.KeyPair) string {
	public, err := pair.PublicKey()
	if err != nil {
		panic(err) // a pair that was just made has a public key
	}
	return public
}
