package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/broker/agent"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
)

// A bound is what an agent has in hand where TLS is on: its certificate, and
// by what it trusts the server, both as it got them last.
type bound struct {
	mu    sync.Mutex
	cert  *tls.Certificate
	roots *x509.CertPool
}

// renew gets an agent a certificate for a new key, and credentials.
func (r *rig) renew(id string, b *bound) (creds string) {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		r.Fatal(err)
	}
	rep := ask[schemas.EnrollReply](r, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "test", CertificateRequest: schemas.CertificateRequest{
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))}})
	block, _ := pem.Decode([]byte(rep.SVID))
	roots := x509.NewCertPool()
	if block == nil || !roots.AppendCertsFromPEM([]byte(rep.Bundle)) {
		r.Fatalf("certificate %q, bundle %q", rep.SVID, rep.Bundle)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cert, b.roots = &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}, roots
	return rep.Creds
}

func (b *bound) trusts() (*x509.CertPool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.roots, nil
}

func (b *bound) shows() (tls.Certificate, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *b.cert, nil
}

func (r *rig) boundIdentity(id string) (*agent.Agent, *bound) {
	r.Helper()
	b := &bound{}
	creds := r.renew(id, b)
	r.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: b.roots, MinVersion: tls.VersionTLS13}}}
	r.Cleanup(r.client.CloseIdleConnections)
	o := r.options(creds)
	o.NATS = []nats.Option{func(n *nats.Options) error {
		n.Secure, n.TLSConfig = true, &tls.Config{MinVersion: tls.VersionTLS13}
		n.RootCAsCB, n.TLSCertCB = b.trusts, b.shows
		return nil
	}}
	a, err := agent.Connect(r.ctx, o)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(a.Close)
	return a, b
}

// With TLS another authority signs certificates from the middle on, and others
// the users about whom the server asks. One agent holds on to the bundle and the
// certificate that it had before; the other gets new ones. Nothing is lost.
func TestNothingIsLostWhileTheAuthorityAndTheKeysOfBoundUsersAreRotated(t *testing.T) {
	r := startWith(t, &ca.Config{})
	caller, renewed := r.boundIdentity("caller")
	peer, _ := r.boundIdentity("peer")
	r.keepsWorking(caller, peer, func() {
		for _, key := range []string{schemas.RotateCA, schemas.RotateAccounts, schemas.RotateCapability} {
			ask[schemas.RotateReply](r, schemas.CtlRotate, schemas.RotateRequest{Key: key, Reason: "quarter", Actor: "test"})
		}
		r.renew("caller", renewed)
	})
}
