package proof

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// A Policy says whose signatures count for who verifies. It comes from them,
// by a way of their own, and never out of what is to be verified.
type Policy struct {
	logs      map[string]logKey // by the key's text
	witnesses Witnesses         // nil: none is asked for
}

// A logKey is a key that counts.
type logKey struct {
	note.Verifier
	until uint64 // records that it signs at most: it is retired; 0 where it is not
}

// Witnesses say whose cosignatures of a checkpoint are asked for. Package
// ledger/witness reads them from a policy; it stands apart because the
// library's keys of other kinds would bring the network's packages in here.
type Witnesses interface {
	// Satisfied reports whether enough of them have cosigned a checkpoint.
	Satisfied(checkpoint []byte) bool
	// Cosigned lists the cosignatures that hold.
	Cosigned(checkpoint []byte) []Cosignature
}

// A Cosignature is a witness's word that it saw no other history.
type Cosignature struct {
	Witness string    `json:"witness"` // its name in the policy
	Key     string    `json:"key"`     // the name of its key
	Time    time.Time `json:"time"`    // by the witness's clock
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
	p := &Policy{logs: map[string]logKey{}}
	return p, p.trust(key, 0)
}

func (p *Policy) trust(key string, until uint64) error {
	v, err := note.NewVerifier(key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if had, ok := p.logs[key]; ok && had.until != until {
		return fmt.Errorf("%w: %.100q is retired in one line, and not or otherwise in another", ErrPolicy, key)
	}
	if p.logs[key] = (logKey{v, until}); len(p.logs) > maxPolicyLogs {
		return fmt.Errorf("%w: more than %d keys", ErrPolicy, maxPolicyLogs)
	}
	return nil
}

// key finds whom to believe a bundle's checkpoint: its key, or one that stands
// in the policy and handed over to it. One that is retired there hands over to
// nobody: who knows of its end knows its successor.
func (p *Policy) key(text string, links []link) (logKey, error) {
	if k, ok := p.logs[text]; ok {
		return k, nil
	}
	retired := false
	for _, l := range links {
		k, ok := p.logs[l.Former]
		if ok && k.until == 0 {
			v, err := note.NewVerifier(text)
			return logKey{Verifier: v}, err
		}
		retired = retired || ok
	}
	if retired {
		return logKey{}, fmt.Errorf("%.200q is not in the policy, and the key there that names it is retired", text)
	}
	return logKey{}, fmt.Errorf("%.200q is not in the policy", text)
}

// ParsePolicy reads a policy: lines of words, where "#" begins a comment.
//
//	log VKEY     a key of the ledger that counts, as a note verifier key
//	             (NAME+HASH+KEY, c2sp.org/signed-note); NAME is the origin.
//	             One of several must have signed
//	log VKEY until SIZE
//	             the same of a key that was replaced: it signs so many records
//	             at most, and hands over to no other
//	quorum none  no witness is asked for
//
// The lines witness, group and quorum NAME, as witness policies have them
// (N of M), are refused and not passed over: witness.ParseKeyPolicy, in package
// ledger/witness, reads those. Errors match ErrPolicy.
func ParsePolicy(text []byte) (*Policy, error) { return ParseWitnessedPolicy(text, nil) }

// ParseWitnessedPolicy is ParsePolicy of a text whose lines about witnesses
// were read already, as w.
func ParseWitnessedPolicy(text []byte, w Witnesses) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("%w: %d bytes, and %d are the most", ErrPolicy, len(text), maxPolicy)
	}
	p, quorum, n := &Policy{logs: map[string]logKey{}, witnesses: w}, false, 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "log" && (len(words) == 2 || len(words) == 4 && words[2] == "until"):
			until, err := untilOf(words[2:])
			if err == nil {
				err = p.trust(words[1], until)
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		case words[0] == "quorum" && len(words) == 2 && words[1] == "none" && !quorum:
			quorum = true
		case slices.Contains([]string{"witness", "group", "quorum"}, words[0]):
			if w == nil {
				return nil, fmt.Errorf("%w: line %d: it asks for witnesses, who are not checked here, and is not passed over", ErrPolicy, n)
			}
		default:
			return nil, fmt.Errorf("%w: line %d: %.40q is neither \"log VKEY\", with or without \"until SIZE\", nor \"quorum none\"", ErrPolicy, n, strings.Join(words, " "))
		}
	}
	if len(p.logs) == 0 {
		return nil, fmt.Errorf("%w: it names no key of a ledger", ErrPolicy)
	}
	return p, nil
}

// untilOf reads the end of a line of a retired key.
func untilOf(words []string) (uint64, error) {
	if len(words) == 0 {
		return 0, nil
	}
	size, err := strconv.ParseUint(words[1], 10, 63)
	if err != nil || size == 0 {
		return 0, fmt.Errorf("%w: until %.40q: a number of records stands there, from 1 on", ErrPolicy, words[1])
	}
	return size, nil
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
