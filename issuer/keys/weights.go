package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
)

// The key of weights signs the monitor's weights and nothing else. The first
// signature makes it: whoever never serves with other weights than those built
// in has none, and so trusts none.
const (
	weightsSecret = "weights.note"
	weightsPublic = "weights.pub"
)

// WeightsSigner opens the key that signs weights, and makes it where there is
// none.
func WeightsSigner(data string) (note.Signer, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	skey, err := readSecret(dir, weightsSecret)
	if errors.Is(err, fs.ErrNotExist) {
		var vkey, made string
		if made, vkey, err = note.GenerateKey(rand.Reader, trust.TrustDomain+"/weights"); err != nil {
			return nil, fmt.Errorf("make the key of weights: %w", err)
		}
		// The public half first: a secret without it would sign what nobody takes.
		d := &draft{dir: dir, replace: true}
		d.write(weightsPublic, []byte(vkey))
		d.write(weightsSecret, []byte(made))
		skey, err = []byte(made), d.err
	}
	if err != nil {
		return nil, err
	}
	s, err := note.NewSigner(string(skey))
	if err != nil {
		return nil, errors.New("keys/weights.note is damaged; restore it from a backup")
	}
	return s, nil
}

// WeightsVerifier is the key that weights must be signed with.
func WeightsVerifier(data string) (note.Verifier, error) {
	vkey, err := readText(filepath.Join(data, Dir), weightsPublic)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no key of weights in %s; writ monitor sign makes it, and keys/weights.pub is copied to who verifies: %w", data, err)
	}
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, errors.New("keys/weights.pub is damaged; restore it from a backup")
	}
	return v, nil
}
