package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// An authority is one of certificates for clients, such as a company has.
type authority struct {
	*rig
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (r *rig) authority() authority {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r.must(err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	c.Subject.CommonName = "clients"
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	r.must(err)
	cert, err := x509.ParseCertificate(der)
	r.must(err)
	return authority{r, cert, key}
}

func (a authority) client() tls.Certificate {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	a.must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// showing is an HTTP client that trusts a pool and shows certificates.
func showing(pool *x509.CertPool, certs ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, Certificates: certs}}}
}

// Somebody sits between an agent and an issuer that runs apart, or steals the
// capability that the agent got there. Without TLS the issuer is on loopback
// alone; with it the agent knows whom it asks, and has its capability bound to
// the certificate that it showed, which no other certificate's connection gets.
func TestAnIssuerApartServesHTTPSAndBindsToTheCertificateThatIsShown(t *testing.T) {
	r := newRig(t, fleet, bound)
	cert, key, clients := r.path("etc", "tls", "server.crt"), r.path("etc", "tls", "server.key"), r.path("etc", "clients.pem")
	ours, foreign := r.authority(), r.authority()
	r.write(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ours.cert.Raw})), "etc", "clients.pem")

	refused := func(why string, args ...string) {
		t.Helper()
		out, err := r.command("writ", append([]string{"serve", "issuer", "--server", r.url, "--creds", r.path("machines", "issuer", "keys", "creds", "issuer.creds"), "--data", r.machine("issuer")}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), why) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	refused("or --tls-cert and --tls-key", "--http", "0.0.0.0:0")
	refused("add --tls-cert", "--tls-client-ca", clients)
	refused("holds no certificate", "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key)
	r.must(os.Chmod(key, 0o604))
	refused("open to every user", "--tls-cert", cert, "--tls-key", key)
	r.must(os.Chmod(key, 0o600))

	r.serve("issuer", "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", clients)
	r.serve("ledger")
	var said struct {
		HTTP string `json:"http_url"`
	}
	r.must(json.Unmarshal([]byte(r.services["issuer"].said.String()), &said))
	if !strings.HasPrefix(said.HTTP, "https://127.0.0.1:") {
		t.Fatalf("it says %s", r.services["issuer"].said)
	}
	r.mustOperate("apply", "-f", r.path("fleet.yaml"))
	r.mustOperate("enroll", "sender", "--out", r.path("sender.creds"))
	agent := r.over(said.HTTP, r.path("sender.creds"))

	request := map[string]any{"operation_id": "op", "scope": []string{"send:receiver"}, "certificate_bound": true}
	shown := ours.client()
	r.http = showing(r.pool, shown)
	status, b := agent.post("/v1/tokens", request)
	var grant schemas.IssueReply
	if status != http.StatusOK || schemas.Unmarshal(b, &grant) != nil {
		t.Fatalf("%d %s", status, b)
	}
	_, keys := r.get(said.HTTP + "/.well-known/jwks.json")
	verifier, err := capability.NewVerifier("apart.example", keys)
	r.must(err)
	sum := sha256.Sum256(shown.Certificate[0])
	c, err := verifier.Verify(grant.Token, capability.Expect{Time: time.Now(), Scope: "send:receiver", Delivered: true})
	if err != nil || c.Confirmation.X5T != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("it is not bound to what was shown: %+v, %v", c, err)
	}

	// Who shows none gets nothing that is bound to one, whatever a header says.
	r.http = showing(r.pool)
	if status, b := agent.post("/v1/tokens", request); status != http.StatusBadRequest || !strings.Contains(string(b), "certificate_bound") {
		t.Errorf("without a certificate: %d %s", status, b)
	}
	for what, by := range map[string]*http.Client{
		"a certificate of another authority": showing(r.pool, foreign.client()),
		"a server that nobody vouches for":   showing(x509.NewCertPool()),
	} {
		req, err := http.NewRequestWithContext(r.ctx, "GET", said.HTTP+"/healthz", nil)
		r.must(err)
		if res, err := by.Do(req); err == nil {
			t.Errorf("%s: %s", what, res.Status)
			r.must(res.Body.Close())
		}
	}
	r.http = nil
	if status, b := r.get(strings.Replace(said.HTTP, "https:", "http:", 1) + "/healthz"); status == http.StatusOK {
		t.Errorf("without TLS: %s", b)
	}
}
