package plane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability/dpop"
)

// With TLS the port of a control plane serves everything over HTTPS: agents with
// their certificates, under each name that the server's certificate is for, and
// what is for everybody without any.
func TestAControlPlaneWithTLSServesHTTPS(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data, fleet := t.TempDir(), filepath.Join(t.TempDir(), "fleet.yaml")
	check(os.WriteFile(fleet, []byte("trust_domain: acme.example\nagents:\n  - {id: analyst, ceiling: {scope: [\"memory:get\"]}}\n"), 0o600))
	p, err := Start(t.Context(), Options{Data: data, Fleet: fleet, Actor: "test", TLS: &ca.Config{Hosts: []string{"writ.acme.example"}}})
	check(err)
	defer func() { check(p.Stop(t.Context())) }()
	address := strings.TrimPrefix(p.HTTP(), "https://")
	_, port, err := net.SplitHostPort(address)
	if err != nil || address == p.HTTP() {
		t.Fatalf("it listens at %s: %v", p.HTTP(), err)
	}

	nc, err := p.Operator()
	check(err)
	defer nc.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	check(err)
	enrolled, err := bus.Call[schemas.EnrollReply](t.Context(), nc, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst", Actor: "amy",
		CertificateRequest: schemas.CertificateRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))}})
	check(err)
	leaf, _ := pem.Decode([]byte(enrolled.SVID))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(enrolled.Bundle))
	client := func(certs ...tls.Certificate) *http.Client {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs, MinVersion: tls.VersionTLS13},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, address) // whatever it is called
			}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	do := func(c *http.Client, r *http.Request) (*http.Response, string) {
		t.Helper()
		res, err := c.Do(r)
		check(err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		check(err)
		return res, string(b)
	}
	token, err := jwt.ParseDecoratedJWT([]byte(enrolled.Creds))
	check(err)
	pair, err := jwt.ParseDecoratedNKey([]byte(enrolled.Creds))
	check(err)
	seed, err := pair.Seed()
	check(err)
	_, raw, err := nkeys.DecodeSeed(seed)
	check(err)
	prover, err := dpop.NewProver(ed25519.NewKeyFromSeed(raw))
	check(err)
	ask := func(c *http.Client, base string) (int, string) {
		t.Helper()
		nonce := ""
		for {
			r, err := http.NewRequestWithContext(t.Context(), "POST", base+"/v1/tokens", bytes.NewReader(schemas.Marshal(map[string]any{"operation_id": "op", "certificate_bound": true})))
			check(err)
			proof, err := prover.Prove("POST", base+"/v1/tokens", token, nonce, time.Now())
			check(err)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "DPoP "+token)
			r.Header.Set(dpop.Header, proof)
			res, b := do(c, r)
			if nonce != "" {
				return res.StatusCode, b
			}
			nonce = res.Header.Get(dpop.HeaderNonce)
		}
	}
	own := tls.Certificate{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}
	for _, base := range []string{p.HTTP(), "https://writ.acme.example:" + port, "https://localhost:" + port} {
		if status, b := ask(client(own), base); status != http.StatusOK || !strings.Contains(b, `"token":"`) {
			t.Errorf("%s: %d %s", base, status, b)
		}
	}
	if status, b := ask(client(), p.HTTP()); status != http.StatusUnauthorized || !strings.Contains(b, "no certificate was shown") {
		t.Errorf("without its certificate: %d %s", status, b)
	}

	// What needs no certificate.
	get := func(path string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", p.HTTP()+path, nil)
		check(err)
		res, b := do(client(), r)
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", path, res.Status, b)
		}
		return b
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(get("/.well-known/jwks.json")), &set); err != nil || len(set.Keys) == 0 {
		t.Errorf("keys: %v", err)
	}
	if b := get("/metrics"); !strings.Contains(b, `writ_agents{state="active"} 2`) || !strings.Contains(b, `writ_service_up{service="intake"} 1`) || !strings.Contains(b, "writ_lockdown 0") {
		t.Errorf("metrics: %s", b)
	}
	get("/readyz")
	get("/log/checkpoint")
	r, err := http.NewRequestWithContext(t.Context(), "POST", p.HTTP()+"/signals", strings.NewReader("e30.e30.e30"))
	check(err)
	r.Header.Set("Content-Type", secevent.MediaType)
	if res, b := do(client(), r); res.StatusCode != http.StatusBadRequest || !strings.Contains(b, `"err":`) {
		t.Errorf("a token of no source: %s %s", res.Status, b)
	}
	if res, err := http.Get("http://" + address + "/healthz"); err == nil {
		if res.StatusCode == http.StatusOK {
			t.Error("it answers in clear")
		}
		check(res.Body.Close())
	}
}
