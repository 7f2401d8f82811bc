package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A door is an issuer that was told of one agent, and what that agent shows
// when it connects. The server behind it is one that checks nothing: each check
// of the issuer's has to hold by itself.
type door struct {
	*testing.T
	i     *Issuer
	data  string
	user  nkeys.KeyPair
	now   time.Time
	leaf  x509.Certificate // to be signed
	grant schemas.Grant
}

// newDoor is a door on a folder of keys, which it makes where there is none.
func newDoor(t *testing.T, data string) *door {
	t.Helper()
	d := &door{T: t, data: data, now: time.Now()}
	if !ca.Exists(data) {
		d.must(keys.Init(d.data, "acme.example"))
		d.must(ca.Enable(d.data, "acme.example", ca.Config{}, d.now))
	}
	secrets, err := keys.OpenSecrets(d.data)
	d.must(err)
	authority, err := ca.Open(d.data, "acme.example")
	d.must(err)
	d.i = &Issuer{Options: Options{Secrets: secrets, CA: authority, Now: func() time.Time { return d.now }}, maker: accounts.NewMaker(secrets),
		state: schemas.NewState(), born: map[string]time.Time{"analyst": d.now.Add(-time.Hour)}}
	d.i.pushes = newPushes(d.i)
	d.fold(schemas.AgentDeclared, schemas.Marshal(schemas.Principal{ID: "analyst", Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{Scope: []string{"read:x"}}}))
	d.user, err = nkeys.CreateUser()
	d.must(err)
	public, err := d.user.PublicKey()
	d.must(err)
	d.grant = schemas.Grant{Agent: "analyst", Operation: "op", Scope: []string{"read:x"}, PublicKey: public, NotBefore: d.now, Expires: d.now.Add(5 * time.Minute)}
	d.leaf = x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: d.now.Add(-time.Minute), NotAfter: d.now.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/analyst"}}}
	return d
}

func (d *door) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *door) fold(kind schemas.Kind, data []byte) {
	d.Helper()
	d.must(d.i.state.Apply(&schemas.Event{Kind: kind, Agent: "analyst", Seq: d.i.state.Seq + 1, Time: d.now, Reason: "test", Data: data}))
}

func (d *door) keys() accounts.Keys { return keysOf(d.i.state.Agents["analyst"]) }

func (d *door) token() string {
	d.Helper()
	token, err := d.i.maker.Operation(d.grant, d.keys(), d.now)
	d.must(err)
	return token
}

// chain is the certificate, signed by the authority, and the authority's own.
func (d *door) chain() []string {
	d.Helper()
	b, err := os.ReadFile(filepath.Join(d.data, keys.Dir, keys.TLSDir, "authority.keys"))
	d.must(err)
	var ring struct{ Current struct{ Cert, Key string } }
	d.must(json.Unmarshal(b, &ring))
	root, err := tls.X509KeyPair([]byte(ring.Current.Cert), []byte(ring.Current.Key))
	d.must(err)
	parent, err := x509.ParseCertificate(root.Certificate[0])
	d.must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	d.must(err)
	der, err := x509.CreateCertificate(rand.Reader, &d.leaf, parent, key.Public(), root.PrivateKey)
	d.must(err)
	encode := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return []string{encode(der), encode(root.Certificate[0])}
}

func (d *door) question() *jwt.AuthorizationRequestClaims {
	d.Helper()
	sig, err := d.user.Sign([]byte("nonce"))
	d.must(err)
	fresh, err := nkeys.CreateUser()
	d.must(err)
	public, err := fresh.PublicKey()
	d.must(err)
	r := jwt.NewAuthorizationRequestClaims(public)
	r.UserNkey = public
	r.ClientInformation = jwt.ClientInformation{Kind: "Client", Type: "nats", Nonce: "nonce"}
	r.ConnectOptions = jwt.ConnectOptions{JWT: d.token(), SignedNonce: base64.RawURLEncoding.EncodeToString(sig)}
	r.TLS = &jwt.ClientTLS{VerifiedChains: []jwt.StringList{d.chain()}}
	return r
}

func TestEachCheckOfAConnectionHoldsByItself(t *testing.T) {
	q := func(change func(*jwt.AuthorizationRequestClaims)) func(*door) *jwt.AuthorizationRequestClaims {
		return func(d *door) *jwt.AuthorizationRequestClaims {
			r := d.question()
			change(r)
			return r
		}
	}
	with := func(change func(*door)) func(*door) *jwt.AuthorizationRequestClaims {
		return func(d *door) *jwt.AuthorizationRequestClaims {
			change(d)
			return d.question()
		}
	}
	then := func(change func(*door)) func(*door) *jwt.AuthorizationRequestClaims {
		return func(d *door) *jwt.AuthorizationRequestClaims {
			r := d.question()
			change(d)
			return r
		}
	}
	data := t.TempDir()
	for name, c := range map[string]struct {
		ask  func(*door) *jwt.AuthorizationRequestClaims
		says string // "": it is let in
	}{
		"all is right":          {q(func(*jwt.AuthorizationRequestClaims) {}), ""},
		"a leaf node":           {q(func(r *jwt.AuthorizationRequestClaims) { r.ClientInformation.Kind = "Leafnode" }), "not let in"},
		"a WebSocket":           {q(func(r *jwt.AuthorizationRequestClaims) { r.ClientInformation.Type = "websocket" }), "not let in"},
		"no credentials":        {q(func(r *jwt.AuthorizationRequestClaims) { r.ConnectOptions.JWT = "" }), "can't be read"},
		"no signature":          {q(func(r *jwt.AuthorizationRequestClaims) { r.ConnectOptions.SignedNonce = "" }), "nonce is not signed"},
		"another nonce":         {q(func(r *jwt.AuthorizationRequestClaims) { r.ClientInformation.Nonce = "other" }), "nonce is not signed"},
		"no TLS":                {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS = nil }), "no certificate was shown"},
		"an unverified chain":   {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS = &jwt.ClientTLS{Certs: r.TLS.VerifiedChains[0]} }), "no certificate was shown"},
		"an empty chain":        {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS.VerifiedChains[0] = nil }), "no certificate was shown"},
		"a chain of rubbish":    {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS.VerifiedChains[0][0] = "x" }), "can't be read"},
		"an endless chain":      {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS.VerifiedChains[0] = make(jwt.StringList, 99) }), "too long"},
		"the authority itself":  {q(func(r *jwt.AuthorizationRequestClaims) { r.TLS.VerifiedChains[0] = r.TLS.VerifiedChains[0][1:] }), "not for clients"},
		"another agent's":       {with(func(d *door) { d.leaf.URIs[0].Path = "/agent/other" }), "that of other"},
		"another domain's":      {with(func(d *door) { d.leaf.URIs[0].Host = "other.example" }), "other.example"},
		"a server's":            {with(func(d *door) { d.leaf.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth }), "not for clients"},
		"no URI":                {with(func(d *door) { d.leaf.URIs, d.leaf.DNSNames = nil, []string{"analyst"} }), "no URI SAN"},
		"two URIs":              {with(func(d *door) { d.leaf.URIs = append(d.leaf.URIs, d.leaf.URIs[0]) }), "more than one URI SAN"},
		"an expired one":        {with(func(d *door) { d.leaf.NotAfter = d.now.Add(-time.Second) }), "expired"},
		"an expired capability": {then(func(d *door) { d.now = d.grant.Expires }), "expired at"},
		"bound to another":      {with(func(d *door) { d.grant.Certificate = strings.Repeat("a", 64) }), "bound to another certificate"},
		"suspended":             {then(func(d *door) { d.fold(schemas.AgentSuspended, nil) }), "is suspended"},
		"suspended and resumed": {then(func(d *door) {
			d.fold(schemas.AgentSuspended, nil)
			d.fold(schemas.AgentResumed, nil)
		}), "keys of analyst were replaced"},
		"killed":                      {then(func(d *door) { d.fold(schemas.AgentKilled, nil) }), "is killed"},
		"a kill on its way":           {then(func(d *door) { d.i.pushes.force("analyst", schemas.Killed) }), "is killed"},
		"removed":                     {then(func(d *door) { d.fold(schemas.AgentRemoved, nil) }), "is killed"},
		"from before it was enrolled": {then(func(d *door) { d.i.born["analyst"] = d.now }), "from before it was enrolled"},
		"its certificate is from before": {then(func(d *door) {
			d.i.since = map[string]time.Time{"analyst": d.now}
		}), "certificate from before the enrolment"},
		"its certificate is from a second behind": {then(func(d *door) {
			d.i.since = map[string]time.Time{"analyst": d.now.Add(-time.Second)}
		}), ""},
		"signed by another": {func(d *door) *jwt.AuthorizationRequestClaims {
			r, other := d.question(), newDoor(d.T, d.TempDir())
			other.grant = d.grant
			r.ConnectOptions.JWT = other.token()
			return r
		}, "another key signed"},
		"a user of its own account": {func(d *door) *jwt.AuthorizationRequestClaims {
			r := d.question()
			asked, err := d.i.maker.Ask(r.ConnectOptions.JWT, d.now)
			d.must(err)
			r.ConnectOptions.JWT, err = d.i.maker.Admit(asked, d.grant.PublicKey, d.now, d.grant.Expires)
			d.must(err)
			return r
		}, "another key signed"},
	} {
		d := newDoor(t, data)
		r := c.ask(d)
		token, err := d.i.admit(r, d.now)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) || token != "" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		u, err := jwt.DecodeUserClaims(token)
		d.must(err)
		account, err := d.i.maker.PublicKey("analyst", "")
		d.must(err)
		if u.Subject != r.UserNkey || u.IssuerAccount != account || u.Expires != d.grant.Expires.Unix() || !u.Tags.Contains("scope:read.x") || !u.Tags.Contains("op:op") || u.Tags.Contains("agent:analyst") {
			t.Errorf("%s: it is let in as %+v", name, u)
		}
	}
}

// The connection ends with whichever ends first.
func TestAConnectionEndsWithItsCertificateOrItsCapability(t *testing.T) {
	d := newDoor(t, t.TempDir())
	d.leaf.NotAfter = d.now.Add(time.Minute)
	token, err := d.i.admit(d.question(), d.now)
	d.must(err)
	u, err := jwt.DecodeUserClaims(token)
	d.must(err)
	if u.Expires != d.leaf.NotAfter.Unix() {
		t.Errorf("it ends at %d, and the certificate at %d", u.Expires, d.leaf.NotAfter.Unix())
	}
}

// A thief of the former authority's key signs a certificate for as long as it
// likes: whoever gets in with it goes when the authority ends.
func TestNobodyStaysBeyondTheFormerAuthority(t *testing.T) {
	d := newDoor(t, t.TempDir())
	d.grant.Expires, d.leaf.NotAfter = d.now.Add(48*time.Hour), d.now.Add(1000*time.Hour)
	r := d.question()
	d.must(d.i.CA.Rotate(d.now, false, "root/alice", "test"))
	until := d.i.CA.Untold().Rotation.Until
	token, err := d.i.admit(r, d.now)
	d.must(err)
	user, err := jwt.DecodeUserClaims(token)
	d.must(err)
	if user.Expires != until.Unix() || !until.Before(d.grant.Expires) {
		t.Errorf("until %s, and the former authority ends at %s", time.Unix(user.Expires, 0), until)
	}
	if _, err := d.i.admit(r, until); err == nil {
		t.Error("somebody is let in behind that")
	}
}
