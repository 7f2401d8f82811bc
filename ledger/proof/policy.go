package proof

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// A Policy says whose signatures count for who verifies. It comes from them,
// by a way of their own, and never out of what is to be verified.
type Policy struct {
	logs map[string]note.Verifier // by the key's text
}

// ErrPolicy is matched where a policy can't be read, or can't be met.
var ErrPolicy = errors.New("invalid key policy")

const (
	maxPolicy     = 64 << 10 // bytes
	maxPolicyLogs = 16
)

// TrustKey is the policy that this one key must have signed, a note verifier
// key. Errors match ErrPolicy.
func TrustKey(key string) (*Policy, error) {
	p := &Policy{logs: map[string]note.Verifier{}}
	return p, p.trust(key)
}

func (p *Policy) trust(key string) error {
	v, err := note.NewVerifier(key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if p.logs[key] = v; len(p.logs) > maxPolicyLogs {
		return fmt.Errorf("%w: more than %d keys", ErrPolicy, maxPolicyLogs)
	}
	return nil
}

// ParsePolicy reads a policy: lines of words, where "#" begins a comment.
//
//	log VKEY     a key of the ledger that counts, as a note verifier key
//	             (NAME+HASH+KEY, c2sp.org/signed-note); NAME is the origin.
//	             One of several must have signed
//	quorum none  no witness is asked for
//
// The lines witness, group and quorum NAME, as witness policies have them
// (N of M), are refused and not passed over: this version can't check
// cosignatures, and a policy that asks for them is not met. Errors match
// ErrPolicy.
func ParsePolicy(text []byte) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("%w: %d bytes, and %d are the most", ErrPolicy, len(text), maxPolicy)
	}
	p, quorum, n := &Policy{logs: map[string]note.Verifier{}}, false, 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "log" && len(words) == 2:
			if err := p.trust(words[1]); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		case words[0] == "quorum" && len(words) == 2 && words[1] == "none" && !quorum:
			quorum = true
		case slices.Contains([]string{"witness", "group", "quorum"}, words[0]):
			return nil, fmt.Errorf("%w: line %d: this version can't check witnesses' cosignatures, and does not pass over a policy that asks for them", ErrPolicy, n)
		default:
			return nil, fmt.Errorf("%w: line %d: %.40q is neither \"log VKEY\" nor \"quorum none\"", ErrPolicy, n, strings.Join(words, " "))
		}
	}
	if len(p.logs) == 0 {
		return nil, fmt.Errorf("%w: it names no key of a ledger", ErrPolicy)
	}
	return p, nil
}

// strictSignatures refuses signatures in a base64 that package note reads and
// would not write: the same note would have several forms.
func strictSignatures(msg string) error {
	_, sigs, _ := strings.Cut(msg, "\n\n")
	for line := range strings.Lines(sigs) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue // for package note to judge
		}
		if _, err := base64.StdEncoding.Strict().DecodeString(words[len(words)-1]); err != nil {
			return fmt.Errorf("%w: checkpoint: a signature is not in canonical base64", ErrProof)
		}
	}
	return nil
}
