package capability

import (
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

// Type is the token's typ: explicit typing keeps tokens of other kinds that
// the same key might sign from being taken for one (RFC 8725, section 3.11).
const Type = "writ-capability+jwt"

// A Signer makes tokens. It is safe for concurrent use.
type Signer struct {
	trustDomain string
	kid         string
	head        string // the first part of every token
	key         ed25519.PrivateKey
}

// NewSigner makes a signer for a trust domain from an Ed25519 private key.
func NewSigner(trustDomain string, key ed25519.PrivateKey) (*Signer, error) {
	if err := schemas.CheckTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("capability signer: %w", err)
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("capability signer: the key is not an Ed25519 private key of 64 bytes")
	}
	kid, err := KeyID(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("capability signer: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: kid}},
		(&jose.SignerOptions{}).WithType(Type))
	if err != nil {
		return nil, fmt.Errorf("capability signer: %w", err)
	}
	jws, err := signer.Sign([]byte("{}"))
	if err != nil {
		return nil, fmt.Errorf("capability signer: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("capability signer: %w", err)
	}
	head, _, _ := strings.Cut(token, ".")
	return &Signer{trustDomain: trustDomain, kid: kid, head: head, key: key}, nil
}

// KeyID is the kid under which the signer's tokens are verified.
func (s *Signer) KeyID() string { return s.kid }

// Names reports whether a token of our own says that this key signed it.
func (s *Signer) Names(token string) bool { return strings.HasPrefix(token, s.head+".") }

// Sign gives the token in compact form (RFC 7515, section 7.1). Claims that no
// verifier would accept, and tokens over MaxToken, are errors that match
// ErrMalformed. The first part is go-jose's, which would make it anew for each
// token, at a quarter of what the signature costs.
func (s *Signer) Sign(c Claims) (string, error) {
	if err := c.check(s.trustDomain); err != nil {
		return "", fmt.Errorf("sign capability: %w: %w", ErrMalformed, err)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("sign capability: %w", err)
	}
	signed := s.head + "." + base64.RawURLEncoding.EncodeToString(payload)
	token := signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.key, []byte(signed)))
	if len(token) > MaxToken {
		return "", fmt.Errorf("sign capability: %w: the token has %d bytes, %d are possible; ask for fewer scopes or a shorter task", ErrMalformed, len(token), MaxToken)
	}
	return token, nil
}

// KeyID is a public key's RFC 7638 thumbprint (SHA-256, base64url).
func KeyID(key ed25519.PublicKey) (string, error) {
	if len(key) != ed25519.PublicKeySize {
		return "", errors.New("the key is not an Ed25519 public key of 32 bytes")
	}
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// jwk is the one form of key in our sets (RFC 8037, section 2).
type jwk struct {
	Use string `json:"use"`
	Kty string `json:"kty"`
	Kid string `json:"kid"`
	Crv string `json:"crv"`
	Alg string `json:"alg"`
	X   string `json:"x"`
}

// MarshalJWKS publishes public keys as a JWK Set (RFC 7517), in the order given.
func MarshalJWKS(keys ...ed25519.PublicKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, key := range keys {
		kid, err := KeyID(key)
		if err != nil {
			return nil, fmt.Errorf("publish keys: %w", err)
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: string(jose.EdDSA), Use: "sig"})
	}
	return json.Marshal(set)
}

// ParseJWKS reads a set that MarshalJWKS wrote, at most 64 keys. A set is
// refused as a whole where it holds anything but public Ed25519 signing keys,
// each once, under its own thumbprint: a set with a private or symmetric key in
// it is an accident that must be seen.
func ParseJWKS(data []byte) (map[string]ed25519.PublicKey, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := schemas.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	if len(set.Keys) == 0 || len(set.Keys) > 64 {
		return nil, fmt.Errorf("read key set: it holds %d keys; 1 to 64 are possible", len(set.Keys))
	}
	keys := make(map[string]ed25519.PublicKey, len(set.Keys))
	for i, k := range set.Keys {
		if k.Kty != "OKP" || k.Crv != "Ed25519" || k.Alg != string(jose.EdDSA) || k.Use != "sig" {
			return nil, fmt.Errorf("read key set: key %d is not an Ed25519 signing key", i)
		}
		raw, err := base64.RawURLEncoding.Strict().DecodeString(k.X)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("read key set: key %d is not 32 bytes in base64url", i)
		}
		kid, err := KeyID(raw)
		if err != nil {
			return nil, fmt.Errorf("read key set: %w", err)
		}
		if k.Kid != kid {
			return nil, fmt.Errorf("read key set: key %d has kid %q, its thumbprint is %s", i, clip(k.Kid), kid)
		}
		if keys[kid] != nil {
			return nil, fmt.Errorf("read key set: key %s stands twice", kid)
		}
		keys[kid] = raw
	}
	return keys, nil
}
