package embed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// outside reads the configuration that we hand out for a server of its own,
// with the trust of a new data folder put where its README says.
func outside(t *testing.T) (opts *server.Options, data string, pool *x509.CertPool) {
	t.Helper()
	data = t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	etc, lib := filepath.Join(data, "etc"), filepath.Join(data, "lib")
	for _, dir := range []string{filepath.Join(etc, "tls"), filepath.Join(lib, "accounts")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, filepath.Join(data, "keys", "operator.jwt"), filepath.Join(etc, "operator.jwt"), false)
	trust, err := keys.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range trust.Accounts {
		copyFile(t, filepath.Join(data, "keys", "accounts", name+".jwt"), filepath.Join(lib, "accounts", public+".jwt"), true)
	}
	pool = certificate(t, filepath.Join(etc, "tls"))
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "nats", "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer("/etc/nats", etc, "/var/lib/nats", lib).Replace(string(text))
	path := filepath.Join(etc, "nats-server.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if opts, err = server.ProcessConfigFile(path); err != nil {
		t.Fatal(err)
	}
	return opts, data, pool
}

// copyFile does what the README's cp does, or its tr -d '\n'.
func copyFile(t *testing.T, from, to string, joined bool) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if joined {
		b = bytes.ReplaceAll(b, []byte("\n"), nil)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: der}, "server.key": {Type: "PRIVATE KEY", Bytes: private}} {
		b := pem.EncodeToMemory(block)
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(b)
	}
	return pool
}

func TestAnOutsideServersBoundsAreTheEmbeddedOnes(t *testing.T) {
	got, data, _ := outside(t)
	trust, err := keys.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	want, err := serverOptions(Options{Data: data}, trust)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"max_payload", got.MaxPayload, want.MaxPayload},
		{"max_pending", got.MaxPending, want.MaxPending},
		{"max_control_line", got.MaxControlLine, want.MaxControlLine},
		{"write_deadline", got.WriteDeadline, want.WriteDeadline},
		{"no_fast_producer_stall", got.NoFastProducerStall, want.NoFastProducerStall},
		{"jetstream", got.JetStream, want.JetStream},
		{"max_memory_store", got.JetStreamMaxMemory, want.JetStreamMaxMemory},
		{"max_file_store", got.JetStreamMaxStore, want.JetStreamMaxStore},
		{"system account", got.SystemAccount, want.SystemAccount},
		{"operators", len(got.TrustedOperators), 1},
		{"operator", got.TrustedOperators[0].Subject, want.TrustedOperators[0].Subject},
		{"strict signing keys", got.TrustedOperators[0].StrictSigningKeyUsage, true},
		{"TLS version", got.TLSConfig.MinVersion, uint16(tls.VersionTLS13)},
		{"TLS without encryption", got.AllowNonTLS, false},
		{"leaf node listener", got.LeafNode.Port, 0},
		{"WebSocket listener", got.Websocket.Port, 0},
		{"MQTT listener", got.MQTT.Port, 0},
		{"gateway listener", got.Gateway.Port, 0},
		{"monitoring port", got.HTTPPort + got.HTTPSPort, 0},
		{"users beside the operator's", len(got.Users) + len(got.Nkeys) + len(got.Username) + len(got.Authorization) + len(got.NoAuthUser), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s is %v, not %v", c.what, c.got, c.want)
		}
	}
	if _, ok := got.AccountResolver.(*server.DirAccResolver); !ok {
		t.Errorf("the resolver is a %T; only a full one keeps what was pushed", got.AccountResolver)
	}
}

func TestAnOutsideServerTakesTheTrustOfInitAndNothingElse(t *testing.T) {
	opts, data, pool := outside(t)
	opts.Host, opts.Port, opts.NoSigs, opts.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(readyWithin) {
		t.Fatal("the server takes no connections")
	}
	url := "tls://" + srv.Addr().String()
	connect := func(data string, role keys.Role) (*nats.Conn, error) {
		creds, err := keys.Creds(data, role)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := bus.Connect(bus.Options{Role: string(role), URL: url, Creds: creds,
			Options: []nats.Option{nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13})}})
		if err == nil {
			t.Cleanup(nc.Close)
		}
		return nc, err
	}

	if err := Provision(t.Context(), t.TempDir(), func(role keys.Role) (*nats.Conn, error) { return connect(data, role) }); err != nil {
		t.Fatal(err)
	}
	pushAccount(t, data, connect)

	if _, err := nats.Connect(url, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13})); err == nil {
		t.Error("it takes a client without credentials")
	}
	other := t.TempDir()
	if err := keys.Init(other, "acme.example"); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(other, keys.RoleOperator); err == nil {
		t.Error("it takes another operator's user")
	}
}

// pushAccount gives the server an agent's account as the issuer does.
func pushAccount(t *testing.T, data string, connect func(string, keys.Role) (*nats.Conn, error)) {
	t.Helper()
	secrets, err := keys.OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	token, err := accounts.NewMaker(secrets).Account(accounts.Account{ID: "analyst-7", Lock: schemas.Active}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := connect(data, keys.RoleSystem)
	if err != nil {
		t.Fatal(err)
	}
	m, err := nc.Request("$SYS.REQ.CLAIMS.UPDATE", []byte(token), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(m.Data), `"code":200`) {
		t.Errorf("the account was not taken: %s", m.Data)
	}
}
