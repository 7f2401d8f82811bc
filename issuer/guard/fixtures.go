package guard

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/writ-sh/writ/schemas"
)

// A Fixture is one case that policies must decide as expected: how a team tests
// its guard rails before they are in force.
type Fixture struct {
	Name       string   `yaml:"name"`
	Agent      string   `yaml:"agent"`
	Owner      string   `yaml:"owner"`
	Jobs       []string `yaml:"jobs"`
	Scope      string   `yaml:"scope"`    // exact verb:resource
	ToOwner    string   `yaml:"to_owner"` // of the agent that the scope names
	ToJobs     []string `yaml:"to_jobs"`
	Operation  string   `yaml:"operation"`
	Job        string   `yaml:"job"`
	Task       string   `yaml:"task"`
	TTLSeconds int64    `yaml:"ttl_seconds"` // 300 where it is missing
	MaxTokens  int64    `yaml:"max_tokens"`
	IssuedBy   string   `yaml:"issued_by"`
	Delegated  bool     `yaml:"delegated"` // handed on once, by issued_by; what chain says where it is there
	Chain      []string `yaml:"chain"`     // the agents that handed it on
	Expect     string   `yaml:"expect"`    // forbid, shadow or pass
	Policy     string   `yaml:"policy"`    // that must say so; any where it is missing
}

// A Result is what came of a fixture.
type Result struct {
	Name     string `json:"name"`
	Scope    string `json:"scope"`
	Expected string `json:"expected"`
	Observed string `json:"observed"`
	OK       bool   `json:"ok"`
}

// What a fixture may expect.
const (
	Forbid = "forbid"
	Shadow = "shadow"
	Pass   = "pass"
)

// ParseFixtures reads a list of fixtures, strictly.
func ParseFixtures(name string, data []byte) ([]Fixture, error) {
	var out []Fixture
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(&out); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no fixture: write a list of {name, scope, expect}", name)
	}
	for i, f := range out {
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("%s, fixture %d (%.40q): %w", name, i+1, f.Name, err)
		}
	}
	return out, nil
}

func (f Fixture) check() error {
	if f.Name == "" {
		return fmt.Errorf("it has no name")
	}
	if err := schemas.CheckScope(f.Scope); err != nil {
		return err
	}
	if len(f.Chain) > schemas.MaxDepth {
		return fmt.Errorf("its chain has %d agents; nothing is handed on more than %d times", len(f.Chain), schemas.MaxDepth)
	}
	for i, a := range f.Chain {
		if err := schemas.CheckID("agent", a); err != nil {
			return fmt.Errorf("its chain: %w", err)
		}
		if slices.Contains(f.Chain[:i], a) || a == f.Agent {
			return fmt.Errorf("its chain names %s twice, or the agent itself; a delegation does not come back", a)
		}
	}
	switch f.Expect {
	case Forbid, Shadow, Pass:
		return nil
	}
	return fmt.Errorf("it expects %q; forbid, shadow and pass are possible", f.Expect)
}

// Test decides all fixtures.
func (r *Rails) Test(fixtures []Fixture) []Result {
	out := make([]Result, len(fixtures))
	for i, f := range fixtures {
		out[i] = r.test(f)
	}
	return out
}

func (r *Rails) test(f Fixture) Result {
	q := Question{Agent: f.Agent, Owner: f.Owner, Jobs: f.Jobs, Scope: []string{f.Scope}, Operation: f.Operation, Job: f.Job,
		Task: f.Task, TTLSeconds: f.TTLSeconds, MaxTokens: f.MaxTokens, IssuedBy: f.IssuedBy, Chain: f.Chain,
		Others: func(string) *Agent { return &Agent{f.ToOwner, f.ToJobs} }}
	if f.Delegated && len(f.Chain) == 0 {
		q.Chain = []string{f.IssuedBy}
	}
	if q.TTLSeconds == 0 {
		q.TTLSeconds = 300
	}
	forbidden, shadow := r.Decide(q)
	observed, by := Pass, []Finding(nil)
	switch {
	case len(forbidden) > 0:
		observed, by = Forbid, forbidden
	case len(shadow) > 0:
		observed, by = Shadow, shadow
	}
	res := Result{Name: f.Name, Scope: f.Scope, Expected: join(f.Expect, f.Policy), OK: observed == f.Expect}
	var names []string
	named := f.Policy == ""
	for _, b := range by {
		names = append(names, b.Policy)
		named = named || b.Policy == f.Policy
	}
	res.Observed, res.OK = join(observed, strings.Join(names, " ")), res.OK && named
	return res
}

func join(what, by string) string {
	if by == "" {
		return what
	}
	return what + " by " + by
}
