package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

const (
	ringFile = "authority.keys"
	oldCert  = "ca.pem" // one authority, in folders from before rings
	oldKey   = "ca_key.pem"
)

// Overlap is how long a successor must have been in the bundle before it may
// sign, and how long what the one before it signed counts: no certificate is
// valid for longer, and with each agents get the bundle of then. A join token,
// which holds one too, lasts no longer either.
const Overlap = MaxTTL + 5*time.Minute

// A ring is our authorities: the one that signs, its successor, which everybody
// is told to trust already, and the one before it, of which the key is gone. It
// lies in one file, so that every change is whole or none.
type ring struct {
	Current own        `json:"current"`
	Next    own        `json:"next"`
	Former  *former    `json:"former,omitempty"`
	Untold  *keys.Turn `json:"untold,omitempty"` // of which the log may not know yet
}

type own struct {
	Cert  certificate `json:"cert"`
	Key   privateKey  `json:"key"`
	Since time.Time   `json:"since"` // signing, or of the successor: in the bundle; zero: from the beginning
}

// A former authority signs no more.
type former struct {
	Cert  certificate `json:"cert"`
	Until time.Time   `json:"until"` // from then on nothing that it signed counts
}

// certificate and privateKey are PEM in the file.
type (
	certificate struct{ *x509.Certificate }
	privateKey  struct{ crypto.Signer }
)

func (c certificate) MarshalText() ([]byte, error) {
	if c.Certificate == nil {
		return nil, errRing
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), nil
}

func (c *certificate) UnmarshalText(text []byte) (err error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return errRing
	}
	c.Certificate, err = x509.ParseCertificate(block.Bytes)
	return err
}

// String keeps the key out of logs.
func (privateKey) String() string { return "an authority's key" }

func (k privateKey) MarshalText() ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(k.Signer)
	if err != nil {
		return nil, errors.New("write an authority's key")
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}

func (k *privateKey) UnmarshalText(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil {
		return errRing
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return errRing
	}
	k.Signer = signer
	return nil
}

func (o own) whole() bool {
	if o.Cert.Certificate == nil || o.Key.Signer == nil {
		return false
	}
	k, ok := o.Cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(o.Key.Public())
}

func (o own) id() string { return Fingerprint(o.Cert.Raw) }

// certs are those that count: the one that signs first.
func (r ring) certs() []*x509.Certificate {
	out := []*x509.Certificate{r.Current.Cert.Certificate, r.Next.Cert.Certificate}
	if r.Former != nil {
		out = append(out, r.Former.Cert.Certificate)
	}
	return out
}

func (r ring) bundle() []byte {
	var b bytes.Buffer
	for _, c := range r.certs() {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

var errRing = errors.New("keys/" + keys.TLSDir + "/" + ringFile + " is damaged; restore it from a backup")

func readRing(data string) (r ring, err error) {
	b, err := keys.ReadSecret(data, path.Join(keys.TLSDir, ringFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("read the authority: %w; an older version made the folder: start once with writ up, which brings it up to date", err)
	}
	if err != nil {
		return r, fmt.Errorf("read the authority: %w", err)
	}
	if err := schemas.Unmarshal(b, &r); err != nil || !r.Current.whole() || !r.Next.whole() || r.Former != nil && r.Former.Cert.Certificate == nil {
		return r, errRing // the cause might quote a key
	}
	return r, nil
}

func (r ring) file() (map[string][]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, errors.New("write the authority's keys")
	}
	return map[string][]byte{ringFile: b}, nil
}

// newRing is of a new folder: nobody has a bundle without the successor, so that
// may sign at any time.
func newRing(domain spiffeid.TrustDomain, now time.Time) (r ring, err error) {
	if r.Current, err = root(domain, now, now); err != nil {
		return r, err
	}
	r.Next, err = root(domain, now, time.Time{})
	return r, err
}

// prepare brings the folder of an older version up to date, and the bundle into
// step with the authorities; it can be interrupted anywhere.
func prepare(data string, domain spiffeid.TrustDomain, now time.Time) error {
	r, err := readRing(data)
	if errors.Is(err, fs.ErrNotExist) {
		if r, err = oldRing(data, domain, now); err != nil {
			return err
		}
		files, err := r.file()
		if err == nil {
			err = keys.WriteTLS(data, files)
		}
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	for _, name := range []string{oldKey, oldCert} {
		if err := os.Remove(filepath.Join(dir(data), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove keys/%s/%s, which is of no use any more: %w", keys.TLSDir, name, err)
		}
	}
	return writeBundle(data, r)
}

// oldRing makes a ring of the one authority that an older version had.
func oldRing(data string, domain spiffeid.TrustDomain, now time.Time) (r ring, err error) {
	cert, err := os.ReadFile(filepath.Join(dir(data), oldCert))
	if err != nil {
		return r, fmt.Errorf("read the authority: %w", err)
	}
	key, err := keys.ReadSecret(data, path.Join(keys.TLSDir, oldKey))
	if err != nil {
		return r, fmt.Errorf("read the authority: %w", err)
	}
	if err := errors.Join(r.Current.Cert.UnmarshalText(cert), r.Current.Key.UnmarshalText(key)); err != nil || !r.Current.whole() {
		return r, fmt.Errorf("keys/%s/%s and %s do not belong together; restore them from a backup", keys.TLSDir, oldCert, oldKey)
	}
	r.Current.Since = r.Current.Cert.NotBefore.UTC()
	r.Next, err = root(domain, now, now)
	return r, err
}

func writeBundle(data string, r ring) error {
	f, err := os.CreateTemp(data, ".bundle-*")
	if err != nil {
		return fmt.Errorf("write the trust bundle: %w", err)
	}
	defer os.Remove(f.Name()) // fails once it is in its place
	_, err = f.Write(r.bundle())
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil { // public
		err = os.Rename(f.Name(), BundlePath(data))
	}
	if err != nil {
		return fmt.Errorf("write the trust bundle: %w", err)
	}
	return nil
}

// Rotate makes the successor sign, and a new one its successor. What the one
// before signed counts for as long as any of it is valid. Where keys are
// compromised, nothing that was there stays: a thief of the folder has the
// successor too.
func (a *Authority) Rotate(now time.Time, compromised bool, actor, reason string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now = now.UTC().Truncate(time.Second)
	next, err := root(a.domain, now, now)
	if err != nil {
		return err
	}
	to := ring{Current: a.ring.Next, Next: next}
	turn := keys.Turn{Actor: actor, Reason: reason, Rotation: schemas.Rotation{Key: schemas.RotateCA, Replaced: a.ring.Current.id(), Compromised: compromised}}
	if compromised {
		if to.Current, err = root(a.domain, now, now); err != nil {
			return err
		}
	} else {
		if free := a.ring.Next.Since.Add(Overlap); now.Before(free) {
			return schemas.Refuse(schemas.CodeConflict, "not everybody may trust the next authority yet; rotate again from %s on, or say that the keys are compromised", free.Format(time.RFC3339))
		}
		turn.Rotation.Until = now.Add(Overlap)
		to.Former = &former{a.ring.Current.Cert, turn.Rotation.Until}
	}
	to.Current.Since = now
	turn.Rotation.KeyID = to.Current.id()
	to.Untold = &turn
	return a.become(to)
}

// Untold is the last rotation, as long as the log may not know of it.
func (a *Authority) Untold() *keys.Turn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ring.Untold
}

// Told says that the log has the last rotation.
func (a *Authority) Told() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	to := a.ring
	to.Untold = nil
	return a.become(to)
}

// Due reports whether Told or Tend are to be called.
func (a *Authority) Due(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.ring.Former
	return a.ring.Untold != nil || a.behind || f != nil && !now.Before(f.Until)
}

// Tend drops the former authority once its time is over, and writes the bundle
// where that failed.
func (a *Authority) Tend(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ring.Former != nil && !now.Before(a.ring.Former.Until) {
		to := a.ring
		to.Former = nil
		return a.become(to)
	}
	return a.publish()
}

// become is called with a.mu held. What is on disk holds, also where the bundle
// can't be written: that is tried again.
func (a *Authority) become(to ring) error {
	files, err := to.file()
	if err == nil {
		err = keys.WriteTLS(a.data, files)
	}
	if err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	a.ring, a.behind = to, true
	_ = a.publish() // Tend says so, and tries again
	return nil
}

func (a *Authority) publish() error {
	if !a.behind {
		return nil
	}
	err := writeBundle(a.data, a.ring)
	a.behind = err != nil
	return err
}

// Keys lists the authorities of a data folder; none where TLS is off.
func Keys(data string, now time.Time) ([]keys.Key, error) {
	if !Exists(data) {
		return nil, nil
	}
	r, err := readRing(data)
	if err != nil {
		return nil, err
	}
	where := keys.TLSDir + "/" + ringFile
	out := []keys.Key{{ID: r.Current.id(), Kind: "certificate authority", Since: r.Current.Since, Where: where},
		{ID: r.Next.id(), Kind: "certificate authority, next", Since: r.Next.Since, Where: where}}
	if r.Former != nil && now.Before(r.Former.Until) {
		out = append(out, keys.Key{ID: Fingerprint(r.Former.Cert.Raw), Kind: "certificate authority, verifies only", Until: r.Former.Until, Where: where})
	}
	return out, nil
}
