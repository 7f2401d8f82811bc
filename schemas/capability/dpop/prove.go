package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

// A Prover makes proofs with one key. It is safe for concurrent use.
type Prover struct {
	signer     jose.Signer
	thumbprint string
}

// NewProver makes proofs with an Ed25519 or a P-256 private key.
func NewProver(private crypto.Signer) (*Prover, error) {
	var alg jose.SignatureAlgorithm
	switch private.(type) {
	case ed25519.PrivateKey:
		alg = jose.EdDSA
	case *ecdsa.PrivateKey:
		alg = jose.ES256
	default:
		return nil, errors.New("dpop: the key is neither Ed25519 nor P-256")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, (&jose.SignerOptions{EmbedJWK: true}).WithType(Type))
	if err != nil {
		return nil, fmt.Errorf("dpop: %w", err)
	}
	thumbprint, err := Thumbprint(private.Public())
	if err != nil {
		return nil, fmt.Errorf("dpop: %w", err)
	}
	return &Prover{signer, thumbprint}, nil
}

// Thumbprint is the key's: what a token that is bound to it names in cnf.jkt.
func (p *Prover) Thumbprint() string { return p.thumbprint }

// Prove makes the proof for one request with a token: method, URL without
// query and fragment, and the nonce that the service gave last, "" for none.
func (p *Prover) Prove(method, url, token, nonce string, now time.Time) (string, error) {
	jws, err := p.signer.Sign(schemas.Marshal(claims{ID: rand.Text(), Method: method, URL: url, Issued: now.Unix(), Token: hash(token), Nonce: nonce}))
	if err != nil {
		return "", fmt.Errorf("dpop: %w", err)
	}
	return jws.CompactSerialize()
}
