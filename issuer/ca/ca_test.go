package ca

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
)

func enabled(t *testing.T, c Config) string {
	t.Helper()
	data := t.TempDir()
	must(t, keys.Init(data, "acme.example"))
	must(t, Enable(data, "acme.example", c, time.Now()))
	return data
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, data string) *Authority {
	t.Helper()
	a, err := Open(data, "acme.example")
	must(t, err)
	if a == nil {
		t.Fatal("TLS is off")
	}
	return a
}

// The server's certificate is replaced while it serves: connections to come get
// the new one, and those that are open don't notice.
func TestTheServersCertificateIsReplacedWithoutLosingAConnection(t *testing.T) {
	data := enabled(t, Config{Hosts: []string{"nats.acme.example"}})
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	config, err := opened(t, data).ServerTLS(slog.New(slog.DiscardHandler), now)
	must(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }() // ends with the connection
		}
	}()
	pem, err := os.ReadFile(BundlePath(data))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	dial := func(name string) *tls.Conn {
		t.Helper()
		d := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: name, Time: now, MinVersion: tls.VersionTLS12}}
		c, err := d.DialContext(context.Background(), "tcp", l.Addr().String())
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c.(*tls.Conn)
	}
	echo := func(c net.Conn) {
		t.Helper()
		_, err := c.Write([]byte("x"))
		must(t, err)
		b := make([]byte, 1)
		_, err = io.ReadFull(c, b)
		must(t, err)
	}
	first := dial("nats.acme.example")
	echo(first)
	leaf := func(c *tls.Conn) *x509.Certificate { return c.ConnectionState().PeerCertificates[0] }
	if v := first.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("TLS version %x", v)
	}
	if again := leaf(dial("localhost")); !again.Equal(leaf(first)) {
		t.Error("another certificate for each connection")
	}
	ahead.Store(int64(ServerTTL*2/3 + time.Minute))
	second := dial("127.0.0.1")
	echo(second)
	if leaf(second).Equal(leaf(first)) || !leaf(second).NotAfter.After(leaf(first).NotAfter) {
		t.Error("the certificate was not replaced")
	}
	echo(first)
	for _, u := range leaf(second).ExtKeyUsage {
		if u != x509.ExtKeyUsageServerAuth {
			t.Errorf("the server's certificate is good for %v too", u)
		}
	}
}

// Turned on again the authority stays, or everybody would have to trust anew.
func TestTheAuthorityStays(t *testing.T) {
	data := enabled(t, Config{})
	before := opened(t, data).Bundle()
	must(t, Enable(data, "acme.example", Config{Hosts: []string{"10.0.0.7"}}, time.Now()))
	a := opened(t, data)
	if !bytes.Equal(a.Bundle(), before) || len(a.config.Hosts) != 1 {
		t.Errorf("replaced, or the choice was not: %+v", a.config)
	}
	must(t, Enable(data, "acme.example", Config{}, time.Now()))
	if a := opened(t, data); len(a.config.Hosts) != 1 {
		t.Error("the choice is forgotten")
	}
	if got, err := os.ReadFile(BundlePath(data)); err != nil || !bytes.Equal(got, before) {
		t.Errorf("the bundle: %v", err)
	}
}

func TestWhatIsDamagedOrOpenToOthersIsRefused(t *testing.T) {
	file := func(data string) string { return filepath.Join(data, "keys", "tls", ringFile) }
	for name, c := range map[string]struct {
		spoil func(data string) error
		says  string
	}{
		"keys that others can read": {func(d string) error { return os.Chmod(file(d), 0o640) }, "open to others"},
		"a key of another authority": {func(d string) error {
			r, err := readRing(d)
			if err != nil {
				return err
			}
			r.Current.Key = r.Next.Key
			files, err := r.file()
			if err != nil {
				return err
			}
			return keys.WriteTLS(d, files)
		}, "damaged"},
		"no keys": {func(d string) error { return os.WriteFile(file(d), []byte("x"), 0o600) }, "damaged"},
		"a successor missing": {func(d string) error {
			r, err := readRing(d)
			if err != nil {
				return err
			}
			b, err := json.Marshal(map[string]any{"current": r.Current})
			if err != nil {
				return err
			}
			return os.WriteFile(file(d), b, 0o600)
		}, "damaged"},
		"no choice": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "keys", "tls", "tls.json"), []byte("x"), 0o600)
		}, "damaged"},
		"no authority": {func(d string) error { return os.Remove(file(d)) }, "older version"},
	} {
		data := enabled(t, Config{})
		must(t, c.spoil(data))
		if _, err := Open(data, "acme.example"); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, err := Open(t.TempDir(), "acme.example"); a != nil || err != nil {
		t.Errorf("where TLS is off: %v, %v", a, err)
	}
}

func TestBadChoicesAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	must(t, os.WriteFile(empty, nil, 0o600))
	for name, c := range map[string]Config{
		"a wildcard":       {Hosts: []string{"*.acme.example"}},
		"a URL":            {Hosts: []string{"tls://acme.example"}},
		"a port":           {Hosts: []string{"acme.example:4222"}},
		"nothing":          {Hosts: []string{""}},
		"a bundle missing": {SPIREBundle: "/nowhere/bundle.pem"},
		"an empty bundle":  {SPIREBundle: empty},
		"a relative path":  {SPIREBundle: "bundle.pem"},
	} {
		data := t.TempDir()
		must(t, keys.Init(data, "acme.example"))
		if err := Enable(data, "acme.example", c, time.Now()); err == nil || Exists(data) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An agent's certificate can't make certificates, also where the server's own
// check is left out.
func TestACertificateEndsAtItsAgent(t *testing.T) {
	a := opened(t, enabled(t, Config{}))
	_, k, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	must(t, err)
	s, err := a.Issue("analyst", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), 0, time.Now())
	must(t, err)
	b, _ := pem.Decode(s.PEM)
	leaf, err := x509.ParseCertificate(b.Bytes)
	must(t, err)
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.Subject.String() != "" || leaf.NotAfter.Sub(leaf.NotBefore) > TTL+backdate {
		t.Errorf("%+v", leaf)
	}
	if got, err := a.Agent([]*x509.Certificate{leaf}, time.Now()); err != nil || got != "analyst" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := a.Agent([]*x509.Certificate{leaf}, leaf.NotAfter.Add(time.Second)); err == nil {
		t.Error("an expired one counts")
	}
	if _, err := a.Agent([]*x509.Certificate{leaf}, leaf.NotBefore.Add(-time.Second)); err == nil {
		t.Error("one of tomorrow counts")
	}
}
