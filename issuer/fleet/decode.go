package fleet

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// pos is a place in the file, from 1.
type pos struct{ line, column int }

// fault is an error that knows its place.
type fault struct {
	at   pos
	text string
}

func (f *fault) Error() string { return f.text }

// posOf is where a node begins: for a mapping its first key, where the library
// names the colon.
func posOf(n ast.Node) pos {
	if m, ok := n.(ast.MapNode); ok {
		if r := m.MapRange(); r.Next() {
			n = r.Key()
		}
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return pos{t.Position.Line, t.Position.Column}
	}
	return pos{1, 1}
}

type document struct {
	Mode        text       `yaml:"mode"`
	Guardrails  text       `yaml:"guardrails"`
	TrustDomain text       `yaml:"trust_domain"`
	Agents      []agent    `yaml:"agents"`
	Services    []service  `yaml:"services"`
	Operators   []operator `yaml:"operators"`
	Signals     []signal   `yaml:"signals"`
}

type agent struct {
	at          pos
	ID          text        `yaml:"id"`
	Owner       text        `yaml:"owner"`
	MayIssueFor []text      `yaml:"may_issue_for"`
	Ceiling     *ceiling    `yaml:"ceiling"`
	Rate        *rate       `yaml:"rate"`
	Thresholds  *thresholds `yaml:"thresholds"`
	MemoryBytes whole       `yaml:"memory_bytes"`
	TwoPerson   flag        `yaml:"two_person"`
	Mode        text        `yaml:"mode"`

	DelegatedOnly flag `yaml:"delegated_only"`
}

type ceiling struct {
	Scope          []text      `yaml:"scope"`
	Tools          []text      `yaml:"tools"`
	ForbiddenTools []text      `yaml:"forbidden_tools"`
	TTL            seconds     `yaml:"ttl"`
	MaxTokens      whole       `yaml:"max_tokens"`
	MaxTokensDay   whole       `yaml:"max_tokens_per_day"`
	Jobs           []text      `yaml:"jobs"`
	Operations     []text      `yaml:"operations"`
	Exceptions     []exception `yaml:"exceptions"`
}

type exception struct {
	at     pos
	Scope  text `yaml:"scope"`
	Until  text `yaml:"until"`
	Reason text `yaml:"reason"`
}

type service struct {
	at      pos
	ID      text   `yaml:"id"`
	Owner   text   `yaml:"owner"`
	Serves  []text `yaml:"serves"`
	Tools   tools  `yaml:"tools"`
	Streams flag   `yaml:"streams"`
	Meter   text   `yaml:"meter"`
	Reserve whole  `yaml:"reserve"`
}

type operator struct {
	at    pos
	ID    text `yaml:"id"`
	Owner text `yaml:"owner"`
	Role  text `yaml:"role"`
}

type signal struct {
	at       pos
	ID       text    `yaml:"id"`
	Issuer   text    `yaml:"issuer"`
	Audience text    `yaml:"audience"`
	JWKS     text    `yaml:"jwks"`
	Agents   []text  `yaml:"agents"`
	Weight   weights `yaml:"weight"`
}

type weight struct {
	event  text
	points int64
}

type weights []weight

type rate struct {
	at        pos
	PerSecond decimal `yaml:"per_second"`
	Burst     whole   `yaml:"burst"`
}

type thresholds struct {
	at      pos
	Pause   whole `yaml:"pause"`
	Suspend whole `yaml:"suspend"`
}

type tool struct {
	name        text
	Class       text `yaml:"class"`
	Description text `yaml:"description"`
}

type tools []tool

// placed reads a mapping, and keeps where it begins.
func placed(n ast.Node, at *pos, into any) error {
	*at = posOf(n)
	return yaml.NodeToValue(n, into, yaml.Strict())
}

// UnmarshalYAML keeps where the declaration begins, for what is missing in it.
func (a *agent) UnmarshalYAML(n ast.Node) error {
	type plain agent
	return placed(n, &a.at, (*plain)(a))
}

// UnmarshalYAML keeps where the declaration begins.
func (s *service) UnmarshalYAML(n ast.Node) error {
	type plain service
	return placed(n, &s.at, (*plain)(s))
}

// UnmarshalYAML keeps where the declaration begins.
func (o *operator) UnmarshalYAML(n ast.Node) error {
	type plain operator
	return placed(n, &o.at, (*plain)(o))
}

// UnmarshalYAML keeps where the exception begins.
func (x *exception) UnmarshalYAML(n ast.Node) error {
	type plain exception
	return placed(n, &x.at, (*plain)(x))
}

// UnmarshalYAML keeps where the declaration begins.
func (s *signal) UnmarshalYAML(n ast.Node) error {
	type plain signal
	return placed(n, &s.at, (*plain)(s))
}

// UnmarshalYAML keeps the events' places.
func (ws *weights) UnmarshalYAML(n ast.Node) error {
	m, ok := n.(ast.MapNode)
	if !ok {
		return mismatch(n, "a mapping of events to points of risk")
	}
	for r := m.MapRange(); r.Next(); {
		var w weight
		if err := w.event.UnmarshalYAML(r.Key()); err != nil {
			return err
		}
		i, ok := r.Value().(*ast.IntegerNode)
		if !ok {
			return mismatch(r.Value(), "a whole number of points")
		}
		switch v := i.Value.(type) {
		case uint64:
			w.points = int64(min(v, math.MaxInt32))
		case int64:
			w.points = v
		}
		*ws = append(*ws, w)
	}
	return nil
}

// UnmarshalYAML keeps where the rate begins.
func (r *rate) UnmarshalYAML(n ast.Node) error {
	type plain rate
	return placed(n, &r.at, (*plain)(r))
}

// UnmarshalYAML keeps where the thresholds begin.
func (t *thresholds) UnmarshalYAML(n ast.Node) error {
	type plain thresholds
	return placed(n, &t.at, (*plain)(t))
}

// UnmarshalYAML keeps the names' places, which a Go map would lose.
func (ts *tools) UnmarshalYAML(n ast.Node) error {
	m, ok := n.(ast.MapNode)
	if !ok {
		return mismatch(n, "a mapping of tool names to {class, description}")
	}
	for r := m.MapRange(); r.Next(); {
		var t tool
		if err := t.name.UnmarshalYAML(r.Key()); err != nil {
			return err
		}
		if err := yaml.NodeToValue(r.Value(), &t, yaml.Strict()); err != nil {
			return err
		}
		*ts = append(*ts, t)
	}
	return nil
}

// text is a YAML string. YAML reads 007, no and 1e3 as something else; they
// need quotes, rather than a guess at what was meant.
type text struct {
	value string
	at    pos
	set   bool
}

// UnmarshalYAML takes strings alone.
func (t *text) UnmarshalYAML(n ast.Node) error {
	t.at, t.set = posOf(n), true
	switch s := n.(type) {
	case *ast.StringNode:
		t.value = s.Value
		return nil
	case *ast.LiteralNode:
		t.value = s.Value.Value
		return nil
	case *ast.MappingNode:
		var ok bool
		if t.value, ok = colonScalar(s); ok {
			return nil
		}
	}
	return mismatch(n, "a text; put it in quotes")
}

// colonScalar undoes a mistake of the YAML library, which takes read:data
// inside of {…} for a mapping, where YAML has a colon that no space follows
// belong to the text (YAML 1.2.2, section 7.3.3).
func colonScalar(m *ast.MappingNode) (string, bool) {
	r := m.MapRange()
	if m.Start != nil && m.Start.Type == token.MappingStartType || !r.Next() {
		return "", false
	}
	key, value := r.Key().GetToken(), r.Value().GetToken()
	_, scalar := r.Value().(ast.ScalarNode)
	if r.Next() || !scalar || key.Type != token.StringType ||
		value.Type == token.SingleQuoteType || value.Type == token.DoubleQuoteType ||
		value.Position.Line != key.Position.Line ||
		value.Position.Column != key.Position.Column+len(key.Value)+1 {
		return "", false
	}
	return key.Value + ":" + value.Value, true
}

// whole is an integer of 0 or more.
type whole struct {
	value int64
	at    pos
	set   bool
}

// UnmarshalYAML takes integers alone.
func (w *whole) UnmarshalYAML(n ast.Node) error {
	w.at, w.set = posOf(n), true
	if i, ok := n.(*ast.IntegerNode); ok {
		if v, ok := i.Value.(uint64); ok && v <= math.MaxInt64 {
			w.value = int64(v)
			return nil
		}
	}
	return mismatch(n, "a whole number of 0 or more")
}

// decimal is a number, with or without a fraction.
type decimal struct {
	value float64
	at    pos
}

// UnmarshalYAML takes numbers alone.
func (d *decimal) UnmarshalYAML(n ast.Node) error {
	d.at = posOf(n)
	switch v := n.(type) {
	case *ast.FloatNode:
		d.value = v.Value
		return nil
	case *ast.IntegerNode:
		if u, ok := v.Value.(uint64); ok {
			d.value = float64(u)
			return nil
		}
	}
	return mismatch(n, "a number above 0")
}

// flag is true or false.
type flag struct{ value bool }

// UnmarshalYAML takes true and false alone.
func (f *flag) UnmarshalYAML(n ast.Node) error {
	b, ok := n.(*ast.BoolNode)
	if !ok {
		return mismatch(n, "true or false")
	}
	f.value = b.Value
	return nil
}

// seconds is a duration with its unit, "5m" or "300s".
type seconds struct {
	value int64
	at    pos
	set   bool
}

// UnmarshalYAML takes durations in whole seconds, with a unit.
func (s *seconds) UnmarshalYAML(n ast.Node) error {
	s.at, s.set = posOf(n), true
	str, ok := n.(*ast.StringNode)
	if !ok {
		return mismatch(n, `a duration with its unit, like 5m or 300s`)
	}
	d, err := time.ParseDuration(str.Value)
	if err != nil || d%time.Second != 0 {
		return mismatch(n, `a duration in whole seconds with its unit, like 5m or 300s`)
	}
	s.value = int64(d / time.Second)
	return nil
}

func mismatch(n ast.Node, want string) error {
	got := strings.TrimSpace(n.String())
	if len(got) > 40 {
		got = got[:40] + "…"
	}
	return &fault{posOf(n), fmt.Sprintf("%q is not %s", got, want)}
}
