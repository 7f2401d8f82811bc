package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrWeights is matched where weights may not serve: whoever chooses the weights
// chooses what the monitor sees, so they count only under a declared key.
var ErrWeights = errors.New("weights that may not serve")

// SignWeights signs a file of weights, byte for byte, as a note
// (golang.org/x/mod/sumdb/note).
func SignWeights(file []byte, signers ...note.Signer) ([]byte, error) {
	if _, err := serving(file); err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: strings.TrimRight(string(file), "\n") + "\n"}, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign weights: %w", err)
	}
	return signed, nil
}

// ResignWeights signs weights that are signed with a key anew, with others. The
// weights stay as they are. Errors match ErrWeights.
func ResignWeights(signed []byte, v note.Verifier, signers ...note.Signer) ([]byte, error) {
	if _, err := OpenWeights(signed, v); err != nil {
		return nil, err
	}
	text, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWeights, err)
	}
	return SignWeights([]byte(text.Text), signers...)
}

// OpenWeights gives the weights of a signed file. Errors match ErrWeights.
func OpenWeights(signed []byte, v note.Verifier) (*Weights, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("%w: they are signed, and not with the key %s", ErrWeights, v.Name())
	case err != nil:
		return nil, fmt.Errorf("%w: they are not signed, or were changed after (%w)", ErrWeights, err)
	}
	return serving([]byte(n.Text))
}

// serving reads weights that name their version, which must be of this method.
func serving(file []byte) (*Weights, error) {
	var head struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(file, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWeights, err)
	}
	if !strings.HasPrefix(head.Version, method+".") {
		return nil, fmt.Errorf("%w: they are for the model %.40q, and this is %s; fit them anew", ErrWeights, head.Version, method)
	}
	w := new(Weights)
	if err := json.Unmarshal(file, w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWeights, err)
	}
	return w, nil
}
