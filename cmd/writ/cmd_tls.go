package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// tlsFlags turn TLS on. A data folder remembers it.
type tlsFlags struct {
	TLS         bool     `name:"tls" help:"Turn TLS on for good: agents then need a certificate. The data folder remembers it."`
	TLSHost     []string `name:"tls-host" placeholder:"NAME" help:"With --tls: a name or address under which clients reach this machine. May be repeated."`
	SPIREBundle string   `name:"spire-bundle" type:"path" placeholder:"FILE" help:"With --tls: trust the SVIDs of a SPIRE server of the same trust domain, too; its authorities, PEM."`
}

// config is what was chosen; nil where TLS is left as it is.
func (f tlsFlags) config() (*ca.Config, error) {
	if !f.TLS {
		if len(f.TLSHost) > 0 || f.SPIREBundle != "" {
			return nil, misuse("add --tls", "--tls-host and --spire-bundle are for TLS")
		}
		return nil, nil
	}
	c := ca.Config{Hosts: f.TLSHost, SPIREBundle: f.SPIREBundle}
	if err := c.Check(); err != nil {
		return nil, misuse("mend --tls-host or --spire-bundle; nothing was made or changed", "TLS can't be turned on: %w", err)
	}
	return &c, nil
}

// svidFlags ask for a certificate beside credentials.
type svidFlags struct {
	SVIDDir string        `name:"svid-dir" type:"path" placeholder:"DIR" help:"Also get a certificate (X.509-SVID): writes svid.pem, svid_key.pem and bundle.pem there."`
	SVIDTTL time.Duration `name:"svid-ttl" placeholder:"1h" help:"How long the certificate is valid, in whole seconds; an hour where missing, a day at most."`
}

// The files of a certificate, as SPIFFE's own tools name them.
const (
	svidFile   = "svid.pem"
	svidKey    = "svid_key.pem"
	bundleFile = "bundle.pem"
)

// request makes a key, which never leaves this machine, and a request for it.
// Where no certificate is asked for there is neither.
func (f svidFlags) request() (r schemas.CertificateRequest, key []byte, err error) {
	if f.SVIDDir == "" {
		if f.SVIDTTL != 0 {
			return r, nil, misuse("add --svid-dir DIR", "--svid-ttl is for a certificate")
		}
		return r, nil, nil
	}
	if f.SVIDTTL < 0 || f.SVIDTTL%time.Second != 0 {
		return r, nil, misuse("give --svid-ttl like 30m or 1h", "--svid-ttl %s is not a whole number of seconds above 0", f.SVIDTTL)
	}
	for _, name := range []string{svidFile, svidKey, bundleFile} {
		if err := canReplacePEM(filepath.Join(f.SVIDDir, name)); err != nil {
			return r, nil, err
		}
	}
	if err := canMake(f.SVIDDir); err != nil {
		return r, nil, advise(fmt.Errorf("the certificate can't be written: %w", err), "name another folder with --svid-dir")
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return r, nil, fmt.Errorf("make the certificate's key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return r, nil, fmt.Errorf("make the request for a certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return r, nil, fmt.Errorf("write the certificate's key: %w", err)
	}
	return schemas.CertificateRequest{CSR: string(pemOf("CERTIFICATE REQUEST", der)), SVIDTTLSeconds: int64(f.SVIDTTL / time.Second)},
		pemOf("PRIVATE KEY", raw), nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// canMake says whether a folder is there, or can be made and written to. What it
// makes to find out, it removes.
func canMake(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		switch {
		case err == nil && !info.IsDir():
			return fmt.Errorf("%s is no folder", at)
		case err == nil:
			probe, err := os.MkdirTemp(at, ".writ-*")
			if err != nil {
				return err
			}
			return os.Remove(probe)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
}

// canReplacePEM lets nothing but older PEM files be written over.
func canReplacePEM(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return advise(fmt.Errorf("the certificate can't be written: %w", err), "name another folder with --svid-dir")
	}
	if !bytes.HasPrefix(b, []byte("-----BEGIN ")) {
		return advise(fmt.Errorf("%s is there already and holds no PEM, so it stays as it is", path), "name another folder with --svid-dir")
	}
	return nil
}

// write puts the certificate beside its key, the key first.
func (f svidFlags) write(r schemas.CertificateReply, key []byte) error {
	if f.SVIDDir == "" {
		return nil
	}
	if err := os.MkdirAll(f.SVIDDir, 0o700); err != nil {
		return advise(fmt.Errorf("write the certificate: %w", err), "name another folder with --svid-dir, and ask again")
	}
	for _, one := range []struct {
		name    string
		content []byte
	}{{svidKey, key}, {svidFile, []byte(r.SVID)}, {bundleFile, []byte(r.Bundle)}} {
		if err := writeSecret(filepath.Join(f.SVIDDir, one.name), one.content); err != nil {
			return err
		}
	}
	return nil
}

// fact adds where the certificate is.
func (f svidFlags) fact(facts ...[2]string) [][2]string {
	if f.SVIDDir == "" {
		return facts
	}
	return append(facts, [2]string{"certificate", f.SVIDDir})
}

// needsCertificate says that credentials alone won't do.
func (f svidFlags) needsCertificate(app *App) {
	if f.SVIDDir == "" && app.Server == "" && ca.Exists(app.Data) {
		app.note("TLS is on: these credentials are good with a certificate alone; --svid-dir DIR gets one.")
	}
}

// How long before their end certificates are worth a warning.
const (
	rootWarning   = 90 * 24 * time.Hour
	serverWarning = 4 * time.Hour // it is replaced 8 hours before its end
)

// checkCertificates looks at what TLS stands on, where it is on.
func checkCertificates(ctx context.Context, app *App) check {
	k := check{Name: "tls", State: skipped, Detail: "TLS is off: Writ listens on loopback alone", Next: "writ up --tls turns it on"}
	if app.Server != "" {
		return k
	}
	on, err := ca.On(app.Data)
	if err != nil {
		k.State, k.Detail, k.Next = failed, "whether TLS is on is not known: "+err.Error(), adviceOwner(app.Data)
		return k
	}
	if !on {
		return k
	}
	k.Next = ""
	trust, err := keys.Open(app.Data)
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "look at the keys first"
		return k
	}
	authority, err := ca.Open(app.Data, trust.TrustDomain)
	if errors.Is(err, fs.ErrPermission) {
		k.State, k.Detail, k.Next = failed, err.Error(), adviceOwner(app.Data)
		return k
	}
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "restore keys/tls from a backup; where it is SPIRE's bundle, put it back"
		return k
	}
	left := authority.Expires().Sub(app.now())
	k.State, k.Detail = healthy, "the authority is valid for "+span(left)
	if left < rootWarning {
		k.State, k.Next = warned, "writ keys rotate ca; and once more two days later if it still ends soon"
	}
	r, err := running(app.Data)
	if err != nil {
		return k
	}
	until, err := serverExpires(ctx, app.Data, r.HTTP)
	if err != nil {
		k.State, k.Detail, k.Next = failed, fmt.Sprintf("%s; the server's certificate: %v", k.Detail, err), "restart the control plane"
		return k
	}
	left = until.Sub(app.now())
	k.Detail += ", the server's certificate for " + span(left)
	if left < serverWarning {
		k.State, k.Next = warned, "the server's certificate should have been replaced: look at the control plane's log and restart it"
	}
	return k
}

// serverExpires is when the certificate that a server shows does.
func serverExpires(ctx context.Context, data, address string) (time.Time, error) {
	u, err := url.Parse(address)
	if err != nil {
		return time.Time{}, err
	}
	pool, err := trusted(data)
	if err != nil {
		return time.Time{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter, nil
}

// trusted is whom the control plane of a data folder is known by.
func trusted(data string) (*x509.CertPool, error) {
	b, err := os.ReadFile(ca.BundlePath(data))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate", ca.BundlePath(data))
	}
	return pool, nil
}

// checkExpiry looks whether a credential or key ends soon.
func checkExpiry(ctx context.Context, cl *client, now func() time.Time) check {
	k := check{Name: "expiry", State: healthy, Detail: "no credential and no key ends soon"}
	page, err := ask[schemas.StatusReply](ctx, cl, schemas.CtlStatus, schemas.StatusRequest{PageRequest: schemas.PageRequest{Limit: 1}})
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "look at the issuer first"
		return k
	}
	if len(page.Expiring) > 0 {
		first := page.Expiring[0]
		k.State, k.Next = warned, first.Renew
		k.Detail = fmt.Sprintf("%d end soon: the %s of %s in %s", len(page.Expiring), first.Kind, first.ID, span(first.Expires.Sub(now())))
	}
	return k
}
