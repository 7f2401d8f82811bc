package issuer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// boundPlane is a plane with TLS on.
func boundPlane(t testing.TB, c ca.Config) *plane {
	t.Helper()
	p := &plane{t: t, data: t.TempDir(), clock: &clock{}}
	must(t, keys.Init(p.data, "acme.example"))
	p.turnOn(c)
	p.run(embed.Options{TLS: p.serverTLS()})
	p.apply()
	return p
}

func (p *plane) turnOn(c ca.Config) {
	p.t.Helper()
	must(p.t, ca.Enable(p.data, "acme.example", c, time.Now()))
}

func (p *plane) serverTLS() *tls.Config {
	p.t.Helper()
	authority, err := ca.Open(p.data, "acme.example")
	must(p.t, err)
	p.ca = authority
	c, err := authority.ServerTLS(slog.New(slog.DiscardHandler), p.clock.now)
	must(p.t, err)
	return c
}

// newCSR is a key and a request for it; what else the request says must not
// count.
func newCSR(t testing.TB) (key crypto.Signer, csr string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "writer-2"}, DNSNames: []string{"nats.acme.example"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "acme.example", Path: "/agent/writer-2"}}}, k)
	must(t, err)
	return k, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// A held is what an agent has in hand: credentials, and a certificate's key.
type held struct {
	creds string
	cert  tls.Certificate
}

func certificateOf(t testing.TB, key crypto.Signer, chain string) tls.Certificate {
	t.Helper()
	c := tls.Certificate{PrivateKey: key}
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c.Certificate = append(c.Certificate, block.Bytes)
	}
	if len(c.Certificate) == 0 {
		t.Fatal("no certificate was issued")
	}
	return c
}

func (p *plane) enrolled(id string) held {
	p.t.Helper()
	key, csr := newCSR(p.t)
	rep := call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "alice", CertificateRequest: schemas.CertificateRequest{CSR: csr}})
	return held{rep.Creds, certificateOf(p.t, key, rep.SVID)}
}

func (p *plane) granted(req schemas.IssueRequest) held {
	p.t.Helper()
	key, csr := newCSR(p.t)
	req.CSR = csr
	rep := p.issue(req)
	return held{rep.Creds, certificateOf(p.t, key, rep.SVID)}
}

func (p *plane) clientTLS(certs ...tls.Certificate) *tls.Config {
	p.t.Helper()
	b, err := os.ReadFile(ca.BundlePath(p.data))
	must(p.t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		p.t.Fatal("the bundle holds no certificate")
	}
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, ServerName: "localhost"}
	if len(certs) > 0 { // whatever authorities the server names: an attacker does not go by them
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return c
}

// connect is a stock client with a .creds file and a certificate.
func (p *plane) connect(creds string, certs ...tls.Certificate) (*nats.Conn, error) {
	p.t.Helper()
	nc, err := nats.Connect(p.srv.URL(), nats.UserCredentialBytes([]byte(creds)), nats.Secure(p.clientTLS(certs...)),
		nats.MaxReconnects(0), nats.Timeout(20*time.Second), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err == nil {
		p.t.Cleanup(nc.Close)
	}
	return nc, err
}

func (p *plane) mustConnect(h held) *nats.Conn {
	p.t.Helper()
	nc, err := p.connect(h.creds, h.cert)
	must(p.t, err)
	return nc
}

// A certificate authority that is not ours, or ours, out of the issuer's hand.
type testAuthority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB, domain string) *testAuthority {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{Organization: []string{domain}}, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	return &testAuthority{c, k}
}

// authority is the issuer's own, as a thief of the folder has it.
func (p *plane) authority() *testAuthority {
	p.t.Helper()
	cert, key := stolenAuthority(p.t, p.data)
	return &testAuthority{cert, key}
}

func stolenAuthority(t testing.TB, data string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "keys", "tls", "authority.keys"))
	must(t, err)
	var ring struct{ Current struct{ Cert, Key string } }
	must(t, json.Unmarshal(b, &ring))
	pair, err := tls.X509KeyPair([]byte(ring.Current.Cert), []byte(ring.Current.Key))
	must(t, err)
	return parsed(t, pair), pair.PrivateKey.(crypto.Signer)
}

func parsed(t testing.TB, c tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	must(t, err)
	return leaf
}

func leafOf(uris []*url.URL, until time.Time) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, URIs: uris, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
}

func named(c *x509.Certificate, cn string) *x509.Certificate {
	c.Subject.CommonName = cn
	return c
}

func unused(c *x509.Certificate) *x509.Certificate {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return c
}

func signing(c *x509.Certificate) *x509.Certificate {
	c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign
	return c
}

func (a *testAuthority) make(t *testing.T, c *x509.Certificate) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// chained is a certificate that another agent has made with its own.
func chained(t *testing.T, by tls.Certificate, c *x509.Certificate) tls.Certificate {
	t.Helper()
	made := (&testAuthority{parsed(t, by), by.PrivateKey.(crypto.Signer)}).make(t, c)
	made.Certificate = append(made.Certificate, by.Certificate...)
	return made
}
