// Package guard is the organisation's guard rails: Cedar policies
// (https://docs.cedarpolicy.com) over what capabilities may grant, whatever the
// fleet file's ceilings allow.
//
// The ceiling is the permit. Policies therefore forbid; one that permits has
// nothing to add, and is refused rather than left to be misread as an
// exception. What a policy may speak of is [Schema], and every policy is
// validated against it, strictly, before it is in force.
//
//	@id("no-bash-in-production")
//	forbid (principal, action == Action::"call", resource == Tool::"bash");
//
//	@id("pay-is-for-payroll") @mode("shadow")
//	forbid (principal, action, resource in Data::"data.hr.pay")
//	unless { context.job == "payroll" };
//
//	@id("nothing-goes-to-partners")
//	forbid (principal, action in [Action::"send", Action::"ask"], resource)
//	when { resource.owner like "*@partner.example" };
//
//	@id("contractors-hand-nothing-on")
//	forbid (principal, action == Action::"write", resource)
//	when { context.depth > 1 || context.chain.contains("contractor") };
//
// Guarantees:
//
//   - Each policy has an id of its own, and a refusal names the one that decided.
//   - A policy whose evaluation fails forbids. (Cedar itself would pass it over:
//     an overflow would switch a prohibition off.)
//   - A policy in shadow mode is evaluated, and its word is logged; it forbids
//     nothing.
//   - A decision is a pure function of policies and question.
package guard

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"github.com/writ-sh/writ/schemas"
)

// MaxText bounds a file of policies, in bytes: it travels in an event.
const MaxText = 256 << 10

// Schema is the Cedar schema of policies, in Cedar's own notation.
//
//go:embed writ.cedarschema
var Schema string

// Rails are policies in force. The zero value forbids nothing. They are safe
// for concurrent use.
type Rails struct {
	enforced, shadow *cedar.PolicySet
	broken           string // why everything is forbidden; "" where it is not
}

// Broken are rails that forbid everything, for policies that can't be read
// although they were when they were declared.
func Broken(err error) *Rails { return &Rails{broken: err.Error()} }

// Parse reads policies and validates them; name stands in the errors, which
// name line and policy. An empty text is no rails.
func Parse(name, text string) (*Rails, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", name, len(text), MaxText)
	}
	all, err := cedar.NewPolicySetFromBytes(name, []byte(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	check, err := validator()
	if err != nil {
		return nil, err
	}
	r := &Rails{enforced: cedar.NewPolicySet(), shadow: cedar.NewPolicySet()}
	seen := map[cedar.PolicyID]bool{}
	var faults []error
	for _, p := range inOrder(all) {
		id, set, err := r.place(p)
		if err == nil && seen[id] {
			err = fmt.Errorf("the id %q is used twice", id)
		}
		if err == nil {
			err = check.Policy(string(id), (*ast.Policy)(p.AST()))
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: %w", name, p.Position().Line, err))
			continue
		}
		seen[id] = true
		set.Add(id, p)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return r, nil
}

// Policies lists the policies by id, sorted.
func (r *Rails) Policies() (enforced, shadow []string) { return ids(r.enforced), ids(r.shadow) }

func ids(set *cedar.PolicySet) []string {
	var out []string
	for id := range set.All() {
		out = append(out, string(id))
	}
	slices.Sort(out)
	return out
}

func inOrder(set *cedar.PolicySet) []*cedar.Policy {
	var out []*cedar.Policy
	for _, p := range set.All() {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *cedar.Policy) int { return a.Position().Offset - b.Position().Offset })
	return out
}

// place says what a policy is called and which set it belongs to.
func (r *Rails) place(p *cedar.Policy) (cedar.PolicyID, *cedar.PolicySet, error) {
	for key := range p.Annotations() {
		if key != "id" && key != "mode" {
			return "", nil, fmt.Errorf("the annotation @%s is unknown; @id and @mode are read", key)
		}
	}
	id := string(p.Annotations()["id"])
	if err := schemas.CheckID("policy id", id); err != nil {
		return "", nil, fmt.Errorf("%w; name each policy: @id(\"no-bash\")", err)
	}
	if p.Effect() != cedar.Forbid {
		return "", nil, fmt.Errorf("policy %s permits; ceilings in the fleet file permit, guard rails forbid: write the exception as unless { … } of the policy that forbids", id)
	}
	switch mode, set := p.Annotations()["mode"]; {
	case !set, mode == "enforce":
		return cedar.PolicyID(id), r.enforced, nil
	case mode == "shadow":
		return cedar.PolicyID(id), r.shadow, nil
	default:
		return "", nil, fmt.Errorf("policy %s has the mode %q; enforce and shadow are possible", id, mode)
	}
}

func validator() (*validate.Validator, error) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(Schema)); err != nil {
		return nil, fmt.Errorf("the schema of guard rails: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("the schema of guard rails: %w", err)
	}
	return validate.New(resolved), nil
}

// A Question is a capability that somebody asks for.
type Question struct {
	Agent      string
	Owner      string
	Jobs       []string // of the agent's ceiling
	Scope      []string // exact verb:resource
	Operation  string
	Job        string
	Task       string
	TTLSeconds int64
	MaxTokens  int64
	IssuedBy   string
	Chain      []string // the agents that handed it on, in whatever order
	// Others tells of the agents that the scopes name: a policy may speak of the
	// owner of whom something goes to. nil for one that nobody knows.
	Others func(agent string) *Agent
}

// An Agent is what policies may speak of one.
type Agent struct {
	Owner string
	Jobs  []string // of its ceiling
}

func (a Agent) entity(uid types.EntityUID) types.Entity {
	jobs := make([]types.Value, len(a.Jobs))
	for i, j := range a.Jobs {
		jobs[i] = types.String(j)
	}
	return types.Entity{UID: uid, Attributes: types.NewRecord(types.RecordMap{"owner": types.String(a.Owner), "jobs": types.NewSet(jobs...)})}
}

// A Finding is what a policy says against one scope.
type Finding struct {
	Policy string // "" where none could be asked
	Scope  string
	Error  string // why its evaluation failed; "" where it forbids by its word
}

func (f Finding) String() string {
	switch {
	case f.Policy == "":
		return fmt.Sprintf("the guard rails can't be read (%s), so %s is forbidden", f.Error, f.Scope)
	case f.Error != "":
		return fmt.Sprintf("guard rail %s can't be evaluated for %s (%s), and so forbids it", f.Policy, f.Scope, f.Error)
	}
	return fmt.Sprintf("guard rail %s forbids %s", f.Policy, f.Scope)
}

// Decide asks every policy about every scope: what is forbidden, and what would
// be if those in shadow mode were enforced. Both are sorted by scope, then by
// policy.
func (r *Rails) Decide(q Question) (forbidden, shadow []Finding) {
	if r == nil || r.enforced == nil && r.broken == "" {
		return nil, nil
	}
	entities, context := world(q)
	for _, scope := range q.Scope {
		if r.broken != "" {
			forbidden = append(forbidden, Finding{Scope: scope, Error: r.broken})
			continue
		}
		req, err := request(q, scope, entities)
		if err != nil {
			forbidden = append(forbidden, Finding{Scope: scope, Error: err.Error()})
			continue
		}
		req.Context = context
		forbidden = append(forbidden, ask(r.enforced, entities, req, scope)...)
		shadow = append(shadow, ask(r.shadow, entities, req, scope)...)
	}
	return sorted(forbidden), sorted(shadow)
}

// Without gives the scopes of a question that no policy forbids.
func (r *Rails) Without(q Question) []string {
	forbidden, _ := r.Decide(q)
	return slices.DeleteFunc(slices.Clone(q.Scope), func(scope string) bool {
		return slices.ContainsFunc(forbidden, func(f Finding) bool { return f.Scope == scope })
	})
}

func ask(set *cedar.PolicySet, entities types.EntityMap, req cedar.Request, scope string) []Finding {
	_, why := cedar.Authorize(set, entities, req)
	var out []Finding
	for _, f := range why.Reasons {
		out = append(out, Finding{Policy: string(f.PolicyID), Scope: scope})
	}
	for _, e := range why.Errors {
		out = append(out, Finding{Policy: string(e.PolicyID), Scope: scope, Error: e.Message})
	}
	return out
}

func sorted(f []Finding) []Finding {
	slices.SortFunc(f, func(a, b Finding) int {
		if c := strings.Compare(a.Scope, b.Scope); c != 0 {
			return c
		}
		return strings.Compare(a.Policy, b.Policy)
	})
	return f
}

func world(q Question) (types.EntityMap, types.Record) {
	agent := types.NewEntityUID("Agent", types.String(q.Agent))
	chain := make([]types.Value, len(q.Chain))
	for i, a := range q.Chain {
		chain[i] = types.String(a)
	}
	return types.EntityMap{agent: Agent{q.Owner, q.Jobs}.entity(agent)}, types.NewRecord(types.RecordMap{
		"operation": types.String(q.Operation), "job": types.String(q.Job), "task": types.String(q.Task),
		"ttl_seconds": types.Long(q.TTLSeconds), "max_tokens": types.Long(q.MaxTokens),
		"issued_by": types.String(q.IssuedBy), "delegated": types.Boolean(len(q.Chain) > 0),
		"chain": types.NewSet(chain...), "depth": types.Long(len(q.Chain)),
	})
}

// request is one scope in Cedar's terms. Of nested data, each name is in the
// one before its last dot. An agent that nobody knows has no attributes: a policy
// that asks for one can't be evaluated, and so forbids.
func request(q Question, scope string, entities types.EntityMap) (cedar.Request, error) {
	verb, resource, _ := strings.Cut(scope, ":")
	req := cedar.Request{Principal: types.NewEntityUID("Agent", types.String(q.Agent)), Action: types.NewEntityUID("Action", types.String(verb))}
	switch verb {
	case schemas.VerbCall:
		req.Resource = types.NewEntityUID("Tool", types.String(resource))
	case schemas.VerbRead, schemas.VerbWrite:
		req.Resource = nested(resource, entities)
	case schemas.VerbSend, schemas.VerbAsk:
		req.Resource = types.NewEntityUID("Agent", types.String(resource))
		if _, known := entities[req.Resource]; !known && q.Others != nil {
			if a := q.Others(resource); a != nil {
				entities[req.Resource] = a.entity(req.Resource)
			}
		}
	case schemas.VerbMemory:
		req.Resource = types.NewEntityUID("Memory", types.String(resource))
	default:
		return req, fmt.Errorf("the verb %q is unknown to the guard rails", verb)
	}
	return req, nil
}

func nested(resource string, entities types.EntityMap) types.EntityUID {
	uid := types.NewEntityUID("Data", types.String(resource))
	if _, known := entities[uid]; known {
		return uid
	}
	e := types.Entity{UID: uid}
	if cut := strings.LastIndexByte(resource, '.'); cut > 0 {
		e.Parents = types.NewEntityUIDSet(nested(resource[:cut], entities))
	}
	entities[uid] = e
	return uid
}
