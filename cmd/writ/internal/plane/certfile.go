package plane

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSFiles name a certificate of somebody else's authority, with which an issuer
// apart serves HTTPS: its server is not ours, so neither is what clients trust it
// by. All are PEM.
type TLSFiles struct {
	Cert, Key string
	ClientCA  string // authorities whose certificates clients may show; "" where none count
}

// ErrTLSFiles is matched where the files of a certificate are not usable.
var ErrTLSFiles = errors.New("TLS")

// certAgain is how often the files are looked at for their next certificate:
// such ones live for weeks, and whoever replaces them leaves days.
const certAgain = time.Minute

// A certFile is a certificate in files that somebody renews.
type certFile struct {
	files TLSFiles
	log   *slog.Logger
	now   func() time.Time

	mu    sync.Mutex // guards the fields below
	pair  *tls.Certificate
	again time.Time
}

// config is that of a server with these files. Clients may show a certificate: it
// must lead to an authority of theirs, or the handshake fails.
func (f TLSFiles) config(log *slog.Logger, now func() time.Time) (*tls.Config, []string, error) {
	c := &certFile{files: f, log: log, now: now}
	pair, err := c.get(nil)
	if err != nil {
		return nil, nil, err
	}
	served := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.get,
		SessionTicketsDisabled: true, // each connection shows its certificate anew
		Time:                   now}
	if f.ClientCA != "" {
		b, err := os.ReadFile(f.ClientCA)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: clients' authorities: %w", ErrTLSFiles, err)
		}
		served.ClientAuth, served.ClientCAs = tls.VerifyClientCertIfGiven, x509.NewCertPool()
		if !served.ClientCAs.AppendCertsFromPEM(b) {
			return nil, nil, fmt.Errorf("%w: clients' authorities: %s holds no certificate", ErrTLSFiles, f.ClientCA)
		}
	}
	hosts := pair.Leaf.DNSNames
	for _, ip := range pair.Leaf.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return served, hosts, nil
}

// get is the certificate in the files. Where they can't be read again, the one
// before is served on, and that is logged.
func (c *certFile) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.pair != nil && now.Before(c.again) {
		return c.pair, nil
	}
	pair, err := c.load()
	if err != nil && c.pair == nil {
		return nil, err
	}
	c.again = now.Add(certAgain)
	if err != nil {
		c.log.Error("the certificate was not read again; the one before is shown", "error", err, "expires", c.pair.Leaf.NotAfter)
		return c.pair, nil
	}
	c.pair = pair
	return pair, nil
}

func (c *certFile) load() (*tls.Certificate, error) {
	info, err := os.Stat(c.files.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate's key: %w", ErrTLSFiles, err)
	}
	if open := info.Mode().Perm() & 0o007; open != 0 {
		return nil, fmt.Errorf("%w: the certificate's key: %s is open to every user of this machine (%s); close it with chmod o= first", ErrTLSFiles, c.files.Key, info.Mode())
	}
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate: %w", ErrTLSFiles, err)
	}
	if now := c.now(); !now.Before(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("%w: the certificate: %s expired at %s", ErrTLSFiles, c.files.Cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &pair, nil
}
