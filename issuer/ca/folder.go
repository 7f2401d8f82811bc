package ca

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-sh/writ/issuer/keys"
)

// A Config is what was chosen when TLS was turned on: tls.json.
type Config struct {
	Hosts       []string `json:"hosts"`                  // names and addresses beside those of loopback
	SPIREBundle string   `json:"spire_bundle,omitempty"` // file with the authorities of a SPIRE server
}

// ErrHost is matched where the server's certificate can't be for a name.
var ErrHost = errors.New("no host name or address")

var hostName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Check reports what is wrong with a choice, before anything is made for it.
func (c Config) Check() error { return c.check(spiffeid.TrustDomain{}) }

func (c Config) check(domain spiffeid.TrustDomain) error {
	for _, h := range c.Hosts {
		if net.ParseIP(h) == nil && (len(h) > 253 || !hostName.MatchString(h)) {
			return fmt.Errorf("%w: %q; give a name such as nats.acme.example, or an address", ErrHost, h)
		}
	}
	if c.SPIREBundle == "" {
		return nil
	}
	if !filepath.IsAbs(c.SPIREBundle) {
		return fmt.Errorf("SPIRE's bundle %q: give the whole path", c.SPIREBundle)
	}
	_, err := (&spireBundle{c.SPIREBundle, domain}).load()
	return err
}

func dir(data string) string { return filepath.Join(data, keys.Dir, keys.TLSDir) }

// Exists reports whether TLS is on for a data folder.
func Exists(data string) bool {
	_, err := os.Stat(dir(data))
	return err == nil
}

// On is Exists for who may not be allowed to look.
func On(data string) (bool, error) {
	_, err := os.Stat(dir(data))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// BundlePath is where clients of this machine find what they trust the server
// by.
func BundlePath(data string) string { return filepath.Join(data, "bundle.pem") }

// Enable turns TLS on for a data folder whose keys are made. Where it is on,
// the authority stays, and the choice is replaced if one is made.
func Enable(data, trustDomain string, c Config, now time.Time) error {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return fmt.Errorf("turn TLS on: %w", err)
	}
	if err := c.check(domain); err != nil {
		return fmt.Errorf("turn TLS on: %w", err)
	}
	if c.Hosts == nil {
		c.Hosts = []string{}
	}
	config, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("turn TLS on: %w", err)
	}
	files := map[string][]byte{}
	if !Exists(data) {
		r, err := newRing(domain, now)
		if err == nil {
			files, err = r.file()
		}
		if err != nil {
			return fmt.Errorf("turn TLS on: %w", err)
		}
	}
	if len(files) > 0 || len(c.Hosts) > 0 || c.SPIREBundle != "" {
		files["tls.json"] = config
		if err := keys.WriteTLS(data, files); err != nil {
			return fmt.Errorf("turn TLS on: %w", err)
		}
	}
	return prepare(data, domain, now)
}

// Prepare readies a data folder for a start: one that an older version made is
// brought up to date, and the bundle is what it has to be. Nobody else may use
// the folder meanwhile.
func Prepare(data, trustDomain string, now time.Time) error {
	if !Exists(data) {
		return nil
	}
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return fmt.Errorf("open the authority: %w", err)
	}
	return prepare(data, domain, now)
}

// Open reads the authority of a data folder where TLS is on; nil where it is
// off.
func Open(data, trustDomain string) (*Authority, error) {
	d := dir(data)
	if _, err := os.Stat(d); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := keys.CheckPermissions(d); err != nil {
		return nil, err
	}
	a := &Authority{data: data}
	var err error
	if a.domain, err = spiffeid.TrustDomainFromString(trustDomain); err != nil {
		return nil, fmt.Errorf("open the authority: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(d, "tls.json"))
	if err != nil {
		return nil, fmt.Errorf("open the authority: %w", err)
	}
	if err := json.Unmarshal(b, &a.config); err != nil {
		return nil, fmt.Errorf("keys/tls/tls.json is damaged: %w", err)
	}
	if err := a.config.check(a.domain); err != nil {
		return nil, fmt.Errorf("keys/tls/tls.json: %w", err)
	}
	if a.config.SPIREBundle != "" {
		a.spire = &spireBundle{a.config.SPIREBundle, a.domain}
		b, err := a.spire.load()
		if err != nil {
			return nil, err
		}
		a.known = b.X509Authorities()
	}
	a.ring, err = readRing(data)
	return a, err
}
