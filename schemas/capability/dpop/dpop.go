// Package dpop checks and makes DPoP proofs (RFC 9449): that whoever sends an
// HTTP request holds a private key, for this request and no other.
//
// A proof is a JWT in the header DPoP of the request:
//
//	{"typ":"dpop+jwt","alg":"EdDSA" or "ES256","jwk":{…public key…}}
//	{"jti":…,"htm":"POST","htu":"https://…","iat":…,"ath":…,"nonce":…}
//
// # What a checked proof guarantees
//
// It was signed with the key that it shows, for this method and URL and, where
// a token came with it, for this very token; not longer ago than [MaxAge], not
// in the future by more than [MaxSkew]; and no [Checker] has seen it before.
// Whether the token is bound to that key is for the caller to compare.
//
// # Limits
//
// What was seen is kept in memory: two checkers know nothing of one another,
// and a new one nothing of what came before it. Where that matters, demand a
// nonce (Options.Nonce): a proof then holds for one checker alone. A proof
// covers neither the body nor the query of the request: that is for TLS.
//
// Readers are strict: of the parameters and claims that RFC 9449 doesn't name
// none is taken, neither of two with the same name.
package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of a proof.
const (
	MaxProof = 4 << 10          // bytes in compact form
	MaxID    = 128              // bytes of its jti
	MaxURL   = 2048             // bytes of its htu
	MaxAge   = 60 * time.Second // since iat
	MaxSkew  = 5 * time.Second  // that iat may be ahead of the checker's clock
)

// Type is a proof's typ.
const Type = "dpop+jwt"

// Header is the request's header that carries the proof, HeaderNonce the
// answer's with the nonce for the next one.
const (
	Header      = "DPoP"
	HeaderNonce = "DPoP-Nonce"
)

// Why a proof is refused. Each error of Check matches exactly one; the text is
// the reason that users see.
var (
	ErrMissing   = errors.New("proof missing")
	ErrMalformed = errors.New("proof malformed")
	ErrSignature = errors.New("bad proof signature")
	ErrMethod    = errors.New("proof for another method")
	ErrURL       = errors.New("proof for another URL")
	ErrToken     = errors.New("proof for another token")
	ErrTime      = errors.New("proof outside its time")
	ErrNonce     = errors.New("proof without the nonce")
	ErrReplay    = errors.New("proof replayed")
	ErrFull      = errors.New("too many proofs")
)

var reasons = [...]error{ErrMissing, ErrMalformed, ErrSignature, ErrMethod, ErrURL, ErrToken, ErrTime, ErrNonce, ErrReplay, ErrFull}

// Reason is the stable word for why Check refused, "" where it did not.
func Reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r) {
			return r.Error()
		}
	}
	return ""
}

var algorithms = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256}

type header struct {
	Typ string          `json:"typ"`
	Alg string          `json:"alg"`
	JWK json.RawMessage `json:"jwk"`
}

// A key is what may stand in jwk: public members alone. WebCrypto's exports
// have the last two; neither says anything of a public key.
type key struct {
	Kty    string   `json:"kty"`
	Crv    string   `json:"crv"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
	Kid    string   `json:"kid"`
	Alg    string   `json:"alg"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Ext    bool     `json:"ext"`
}

type claims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	URL    string `json:"htu"`
	Issued int64  `json:"iat"`
	Token  string `json:"ath,omitempty"`
	Nonce  string `json:"nonce,omitempty"`
}

// A Proof is what a checked proof shows.
type Proof struct {
	Thumbprint string            // of the key, RFC 7638, SHA-256: what cnf.jkt names
	Ed25519    ed25519.PublicKey // the key, where it is such a one
}

// open checks form and signature, under the key that the proof brings along:
// it shows possession of that key, and nothing else.
func open(proof string) (Proof, claims, error) {
	var p Proof
	var c claims
	parts := strings.Split(proof, ".")
	if len(proof) > MaxProof || len(parts) != 3 {
		return p, c, fmt.Errorf("%w: it is no JWT of up to %d bytes", ErrMalformed, MaxProof)
	}
	for _, part := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(b) == 0 || base64.RawURLEncoding.EncodedLen(len(b)) != len(part) {
			return p, c, fmt.Errorf("%w: it is not base64url in canonical form", ErrMalformed)
		}
	}
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return p, c, fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	var h header
	if err := schemas.Unmarshal(head, &h); err != nil {
		return p, c, fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if h.Typ != Type {
		return p, c, fmt.Errorf("%w: typ %q is not %s", ErrMalformed, clip(h.Typ), Type)
	}
	public, err := publicKey(h)
	if err != nil {
		return p, c, err
	}
	jws, err := jose.ParseSignedCompact(proof, algorithms)
	if err != nil {
		return p, c, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	payload, err := jws.Verify(public.Key)
	if err != nil {
		return p, c, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if err := schemas.Unmarshal(payload, &c); err != nil {
		return p, c, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	if p.Thumbprint, err = Thumbprint(public.Key); err != nil {
		return p, c, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	p.Ed25519, _ = public.Key.(ed25519.PublicKey)
	return p, c, nil
}

// publicKey reads the key and holds it against the algorithm: no other
// algorithm, no private key and no secret is ever handed to the verifier.
func publicKey(h header) (*jose.JSONWebKey, error) {
	var members key
	if err := schemas.Unmarshal(h.JWK, &members); err != nil {
		return nil, fmt.Errorf("%w: jwk is not a public key alone: %w", ErrMalformed, err)
	}
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(h.JWK); err != nil || !k.Valid() || !k.IsPublic() {
		return nil, fmt.Errorf("%w: jwk is no public key", ErrMalformed)
	}
	switch public := k.Key.(type) {
	case ed25519.PublicKey:
		if h.Alg == string(jose.EdDSA) {
			return &k, nil
		}
	case *ecdsa.PublicKey:
		if h.Alg == string(jose.ES256) && public.Curve == elliptic.P256() {
			return &k, nil
		}
	}
	return nil, fmt.Errorf("%w: alg %q with this key; EdDSA with Ed25519 and ES256 with P-256 are possible", ErrMalformed, clip(h.Alg))
}

// Thumbprint is a public key's RFC 7638 thumbprint (SHA-256, base64url).
func Thumbprint(public crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// hash is a token's ath.
func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
