// Package fleet reads the fleet file: the agents and services of a trust
// domain, what each could ever be granted, and who serves what.
//
// The file is YAML, read strictly, because every line of it is a right: an
// unknown key, a key that stands twice, an empty value, an anchor, an alias, a
// tag or a second document is an error. Every error names line and column, and
// says what to do; those about the meaning are reported all at once.
//
//	trust_domain: acme.example
//	mode: enforce                     # observe: log what would be refused, enforce identity alone
//	guardrails: guard.cedar           # Cedar policies, in a file beside this one
//	agents:
//	  - id: analyst-7                 # a-z, 0-9, _ and -; at most 63 bytes
//	    owner: finance@acme.example
//	    may_issue_for: [writer-2]     # agents that it may ask capabilities for
//	    ceiling:                      # bounds of all that can be granted to it
//	      scope: [read:data.sales_q1_2026, send:writer-2]   # exact, no wildcard
//	      tools: [pandas]             # short for call:pandas
//	      forbidden_tools: [bash]     # a denial beats every grant
//	      ttl: 5m                     # 1s to 24h; 5m where it is missing
//	      max_tokens: 50000           # language-model tokens; 0 where it is missing
//	      max_tokens_per_day: 200000  # of all its operations; no bound where it is missing
//	      jobs: [report]              # what recurs; baselines hang on it
//	      operations: [report-q1]     # any where it is missing
//	      exceptions:                 # scopes for a time
//	        - {scope: read:data.hr, until: 2026-12-01T00:00:00Z, reason: "audit"}
//	    rate: {per_second: 200, burst: 400}
//	    thresholds: {pause: 70, suspend: 90}   # risk, 0 to 100
//	    memory_bytes: 1048576         # quota of its memory
//	    mode: observe                 # for this agent alone; the fleet's where it is missing
//	    two_person: true              # two operators must approve what is held
//	    delegated_only: true          # it may not ask for itself
//	services:
//	  - id: pandas
//	    owner: data@acme.example
//	    serves: [call:pandas]         # prefixes; the longest that fits wins
//	    tools: {pandas: {class: read, description: "dataframes"}}
//	    streams: true                 # answers in parts
//	    meter: tokens                 # answers state language-model usage
//	    reserve: 2000                 # tokens that a call reserves which states none
//	operators:
//	  - id: alice
//	    role: reviewer                # viewer, reviewer, operator or admin
//	signals:                          # who outside may say that agents are at risk
//	  - id: edr
//	    issuer: https://edr.example   # of security event tokens (RFC 8417), with
//	    audience: https://writ.acme.example   # the aud that means us, and the
//	    jwks: '{"keys":[…]}'          # public keys; none of the three where it sends none
//	    agents: [analyst-7]           # whom it may speak about; "*" for all
//	    weight: {session-revoked: 90, risk-level-change: 60}   # points of risk, -30 to 100
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
