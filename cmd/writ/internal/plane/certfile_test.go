package plane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Somebody renews the certificate of an issuer apart, and breaks it once. The
// next is shown without a restart, and a broken one takes nobody's away.
func TestACertificateInFilesIsReadAgain(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	f := TLSFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	write := func(serial int64, expires time.Time) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: expires, DNSNames: []string{"writ.acme.example"}}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for path, block := range map[string]*pem.Block{f.Cert: {Type: "CERTIFICATE", Bytes: der}, f.Key: {Type: "PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1, now.Add(-time.Second))
	if _, _, err := f.config(slog.New(slog.DiscardHandler), time.Now); !errors.Is(err, ErrTLSFiles) {
		t.Fatalf("one that has expired: %v", err)
	}
	write(2, now.Add(time.Hour))
	var log bytes.Buffer
	served, hosts, err := f.config(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	if err != nil || len(hosts) != 1 || hosts[0] != "writ.acme.example" {
		t.Fatalf("%v, %v", hosts, err)
	}
	shows := func(serial int64) {
		t.Helper()
		pair, err := served.GetCertificate(nil)
		if err != nil || pair.Leaf.SerialNumber.Int64() != serial {
			t.Fatalf("%+v, %v", pair, err)
		}
	}
	shows(2)
	write(3, now.Add(time.Hour))
	now = now.Add(certAgain)
	shows(3)
	if err := os.WriteFile(f.Cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(certAgain)
	shows(3)
	if log.Len() == 0 {
		t.Error("nobody is told that it can't be read")
	}
}
