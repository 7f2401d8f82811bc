package keys

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/nats-io/nkeys"
)

// A Pair is an NKey pair that is ready to sign: unlike the library's, which
// keeps the seed and computes the rest again for each signature. It is safe
// for concurrent use.
type Pair struct {
	public  string
	private ed25519.PrivateKey
}

// newPair makes a pair from a raw seed of 32 bytes.
func newPair(prefix nkeys.PrefixByte, raw []byte) (*Pair, error) {
	private := ed25519.NewKeyFromSeed(raw)
	public, ok := private.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("not an Ed25519 key")
	}
	text, err := nkeys.Encode(prefix, public)
	if err != nil {
		return nil, fmt.Errorf("encode a public key: %w", err)
	}
	return &Pair{public: string(text), private: private}, nil
}

// Public is the public key, as NATS writes it.
func (p *Pair) Public() string { return p.public }

// Sign signs with Ed25519.
func (p *Pair) Sign(message []byte) []byte { return ed25519.Sign(p.private, message) }

// String keeps the private key out of logs.
func (p *Pair) String() string { return p.public }
