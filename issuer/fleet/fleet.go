// Package fleet reads the fleet file: the agents and services of a trust
// domain, what each could ever be granted, and who serves what.
//
// The file is YAML, read strictly, because every line of it is a right: an
// unknown key, a key that stands twice, an empty value, an anchor, an alias, a
// tag or a second document is an error. Every error names line and column, and
// says what to do; all are reported at once. docs/fleet.md describes each key.
package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/schemas"
)

// MaxFile bounds a fleet file, in bytes: some 50,000 principals.
const MaxFile = 16 << 20

// A File is a fleet file that was read: the principals sorted by id, their
// lists sorted, durations in seconds, defaults filled in. Digest is the SHA-256
// of its bytes, hex.
type File struct {
	TrustDomain string
	Principals  []schemas.Principal
	Digest      string
	Guardrails  string                 // name of a file of Cedar policies, relative to this one; "" for none
	Policies    string                 // what stands in that file, where Load read it
	Signals     []schemas.SignalSource // sorted by id
}

// maxShown is how many faults are spelled out in one text.
const maxShown = 100

// An Error is one fault of a fleet file. Line and column count from 1.
type Error struct {
	Name         string
	Line, Column int
	Text         string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.Name, e.Line, e.Column, e.Text)
}

// Errors are all the faults that were found, in the order of the file.
type Errors []*Error

func (e Errors) Error() string {
	var lines []string
	for _, one := range e[:min(len(e), maxShown)] {
		lines = append(lines, one.Error())
	}
	if more := len(e) - maxShown; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the faults to errors.As.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

// Load reads a fleet file and, where it names one, the file of its guard rails.
// What can't be read is no Errors.
func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the fleet file: %w", err)
	}
	f, err := Parse(path, data)
	if err != nil || f.Guardrails == "" {
		return f, err
	}
	rails := f.Guardrails
	if !filepath.IsAbs(rails) {
		rails = filepath.Join(filepath.Dir(path), rails)
	}
	text, err := os.ReadFile(rails)
	if err != nil {
		return nil, fmt.Errorf("read the guard rails that %s names: %w", path, err)
	}
	if _, err := guard.Parse(rails, string(text)); err != nil {
		return nil, err
	}
	f.Policies = string(text)
	return f, nil
}

// Parse reads a fleet file; name stands in the errors, which are Errors.
func Parse(name string, data []byte) (*File, error) {
	found := &faults{name: name}
	doc := decode(data, found)
	if doc == nil {
		return nil, found.errs
	}
	c := &checker{faults: found, agents: map[string]pos{}, services: map[string]pos{}, operators: map[string]pos{}}
	principals := c.document(doc)
	signals := c.signals(doc.Signals)
	if len(found.errs) > 0 {
		return nil, found.sorted()
	}
	slices.SortFunc(principals, func(a, b schemas.Principal) int { return strings.Compare(a.ID, b.ID) })
	sum := sha256.Sum256(data)
	return &File{TrustDomain: doc.TrustDomain.value, Principals: principals, Signals: signals, Guardrails: doc.Guardrails.value, Digest: hex.EncodeToString(sum[:])}, nil
}
