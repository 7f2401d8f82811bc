// Package ca is the issuer's own small certificate authority: TLS for the
// server and the HTTP port, and short-lived X.509-SVIDs (SPIFFE) for agents.
//
// Guarantees:
//
//   - A certificate names one agent, spiffe://<trust-domain>/agent/<id>, in
//     its one URI SAN, and nothing else; it has no common name.
//   - Of a certificate request nothing counts but its public key, and that
//     only with the request's own signature: the private key stays where it
//     was made.
//   - Agents' certificates live an hour (a day at most), the server's a day;
//     the server's is replaced at two thirds of that, for connections to come,
//     and those that are open don't notice. Its key is never on disk.
//   - Whose certificate it is, is read from a chain that leads to this
//     authority, or to that of a SPIRE server of the same trust domain, for one
//     name in this trust domain; everything else is nobody's.
//
// The folder keys/tls of a data folder:
//
//	tls.json        the names that the server's certificate is for; SPIRE's bundle
//	authority.keys  the authority's certificate and key, its successor's, and the
//	                certificate of the one before it: issuer only
//
// TLS is on where that folder is. bundle.pem of the data folder holds the
// certificates alone. The package reads no clock but the one it is
// given.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-sh/writ/schemas"
)

// How long certificates are valid.
const (
	TTL       = time.Hour      // an agent's, where nobody asks for another
	MaxTTL    = 24 * time.Hour // an agent's at most
	ServerTTL = 24 * time.Hour // the server's
	rootTTL   = 10 * 365 * 24 * time.Hour
	backdate  = time.Minute // clocks differ
)

// minRSA bounds the RSA keys that are certified, in bits.
const minRSA = 2048

// An Authority certifies. It is safe for concurrent use.
type Authority struct {
	domain spiffeid.TrustDomain
	data   string
	config Config
	spire  *spireBundle // nil: no other authority counts

	mu     sync.Mutex // guards the fields below
	ring   ring
	behind bool                // the bundle is not written yet
	known  []*x509.Certificate // SPIRE's, as they last could be read
	shows  time.Time           // end of the certificate that the server shows; zero where it shows none
}

// An SVID is a certificate as it is handed out.
type SVID struct {
	URI         string
	Serial      string // hex
	Fingerprint string // SHA-256 of the certificate, hex
	NotBefore   time.Time
	Expires     time.Time
	PEM         []byte
}

// TrustDomain is the one that certificates are for.
func (a *Authority) TrustDomain() string { return a.domain.Name() }

// Hosts are the names and addresses for which the server's certificate is, beside
// those that it is given.
func (a *Authority) Hosts() []string { return names(a.config.Hosts...) }

// Expires is when the certificate of the authority that signs does.
func (a *Authority) Expires() time.Time { return a.signing().Cert.NotAfter }

// signing is the authority that signs now.
func (a *Authority) signing() own {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ring.Current
}

// ServerExpires is when the certificate that a server of this process shows
// ends; zero where there is none. One that is connected to replaces it in time.
func (a *Authority) ServerExpires() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shows
}

func (a *Authority) served(der []byte) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return // it was just made
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shows = c.NotAfter
}

// Bundle is what clients trust the server by, PEM.
func (a *Authority) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ring.bundle()
}

// Issue certifies the key of a request (PKCS #10, PEM) as an agent's. The time
// of issue may be some seconds ahead.
func (a *Authority) Issue(agent string, request []byte, ttl time.Duration, now time.Time) (SVID, error) {
	if err := schemas.CheckID("agent", agent); err != nil {
		return SVID{}, err
	}
	if ttl == 0 {
		ttl = TTL
	}
	if ttl < time.Second || ttl > MaxTTL {
		return SVID{}, schemas.Refuse(schemas.CodeMalformed, "a certificate is valid for 1 s to %s, not %s", MaxTTL, ttl)
	}
	public, err := requestedKey(request)
	if err != nil {
		return SVID{}, schemas.Refuse(schemas.CodeMalformed, "csr: %v; send a PKCS #10 certificate request in PEM, signed by a P-256, P-384, Ed25519 or RSA key", err)
	}
	id, err := spiffeid.FromSegments(a.domain, "agent", agent)
	if err != nil {
		return SVID{}, fmt.Errorf("name %s: %w", agent, err)
	}
	by := a.signing()
	c := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(ttl), by.Cert.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{id.URL()},
	}
	der, err := sign(c, by.Cert.Certificate, public, by.Key)
	if err != nil {
		return SVID{}, err
	}
	return SVID{URI: id.String(), Serial: c.SerialNumber.Text(16), Fingerprint: Fingerprint(der),
		NotBefore: c.NotBefore.Truncate(time.Second).UTC(), Expires: c.NotAfter.Truncate(time.Second).UTC(),
		PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// Issued is when a certificate that leads to an authority that counts was issued:
// from then on ours are valid that clocks which differ take a minute early;
// another's say no more than from when they are valid.
func (a *Authority) Issued(leaf *x509.Certificate) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.ring.certs() {
		if bytes.Equal(leaf.AuthorityKeyId, c.SubjectKeyId) {
			return leaf.NotBefore.Add(backdate)
		}
	}
	return leaf.NotBefore
}

// Ends is when a certificate that counts does no more: with its own end, or with
// that of trust in the former authority, which may have signed it for longer
// where somebody else has its key. What the certificate says of who signed it
// does not matter.
func (a *Authority) Ends(leaf *x509.Certificate) time.Time {
	a.mu.Lock()
	f := a.ring.Former
	a.mu.Unlock()
	if f != nil && leaf.CheckSignatureFrom(f.Cert.Certificate) == nil {
		return earlier(leaf.NotAfter, f.Until)
	}
	return leaf.NotAfter
}

// Fingerprint is the SHA-256 of a certificate, hex.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// requestedKey is the public key of a certificate request whose signature is
// right.
func requestedKey(request []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one PEM block of type CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("it can't be read")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, errors.New("its signature is wrong")
	}
	switch k := r.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, fmt.Errorf("keys on the curve %s are not certified", k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
		}
	default:
		return nil, fmt.Errorf("keys of type %T are not certified", k)
	}
	return r.PublicKey, nil
}

// root makes an authority.
func root(domain spiffeid.TrustDomain, now, since time.Time) (own, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return own{}, fmt.Errorf("make the authority's key: %w", err)
	}
	c := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		URIs: []*url.URL{domain.ID().URL()},
	}
	c.Subject.Organization = []string{domain.Name()} // an issuer must have a name
	c.Subject.SerialNumber = rand.Text()             // and each another: some clients go by that alone
	der, err := sign(c, c, private.Public(), private)
	if err != nil {
		return own{}, err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return own{}, fmt.Errorf("make the authority's certificate: %w", err)
	}
	return own{certificate{c}, privateKey{private}, since.UTC().Truncate(time.Second)}, nil
}

// sign numbers a certificate with 127 random bits, and signs it.
func sign(c, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40 // positive, and all of the same length
	c.SerialNumber = new(big.Int).SetBytes(serial)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return der, nil
}

// server makes a certificate for names and addresses, with a key of its own.
func (by own) server(hosts []string, now time.Time) (der []byte, key crypto.Signer, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the server's key: %w", err)
	}
	c := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(ServerTTL), by.Cert.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, // nobody connects with it
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err = sign(c, by.Cert.Certificate, private.Public(), by.Key)
	return der, private, err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// loopback are the names that the server always has.
var loopback = []string{"localhost", "127.0.0.1", "::1"}

// names adds what is no wildcard address to the loopback names.
func names(hosts ...string) []string {
	out := slices.Clone(loopback)
	for _, h := range hosts {
		if ip := net.ParseIP(h); h == "" || ip != nil && ip.IsUnspecified() || slices.Contains(out, h) {
			continue
		}
		out = append(out, h)
	}
	return out
}

// A spireBundle is the file in which somebody keeps the authorities of a SPIRE
// server. It is read each time: SPIRE replaces them.
type spireBundle struct {
	path   string
	domain spiffeid.TrustDomain
}

func (s *spireBundle) load() (*x509bundle.Bundle, error) {
	b, err := x509bundle.Load(s.domain, s.path)
	if err != nil {
		return nil, fmt.Errorf("SPIRE's bundle: %w", err)
	}
	if b.Empty() {
		return nil, fmt.Errorf("SPIRE's bundle %s holds no certificate", s.path)
	}
	return b, nil
}

// authorities are those whose certificates of agents count at a moment. Where
// SPIRE's can't be read, those that last could be still count, beside the error.
func (a *Authority) authorities(now time.Time) (*x509bundle.Bundle, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ours := a.ring
	if ours.Former != nil && !now.Before(ours.Former.Until) {
		ours.Former = nil
	}
	var err error
	if a.spire != nil {
		var b *x509bundle.Bundle
		if b, err = a.spire.load(); err == nil {
			a.known = b.X509Authorities()
		}
	}
	return x509bundle.FromX509Authorities(a.domain, append(ours.certs(), a.known...)), err
}
