package fleet

import (
	"math"
	"reflect"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// pos is a place in the file, from 1.
type pos struct{ line, column int }

// A place is embedded in what a fault can be about. It is set where the value
// stands in the file, be it one that can't be read.
type place struct {
	at  pos
	set bool
}

func (p *place) begin(at pos) { *p = place{at, true} }

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
	place
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
	place
	Scope  text `yaml:"scope"`
	Until  text `yaml:"until"`
	Reason text `yaml:"reason"`
}

type service struct {
	place
	ID      text   `yaml:"id"`
	Owner   text   `yaml:"owner"`
	Serves  []text `yaml:"serves"`
	Tools   tools  `yaml:"tools"`
	Streams flag   `yaml:"streams"`
	Meter   text   `yaml:"meter"`
	Reserve whole  `yaml:"reserve"`
}

type operator struct {
	place
	ID    text `yaml:"id"`
	Owner text `yaml:"owner"`
	Role  text `yaml:"role"`
}

type signal struct {
	place
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
	place
	PerSecond decimal `yaml:"per_second"`
	Burst     whole   `yaml:"burst"`
}

type thresholds struct {
	place
	Pause   whole `yaml:"pause"`
	Suspend whole `yaml:"suspend"`
}

type tool struct {
	name        text
	Class       text `yaml:"class"`
	Description text `yaml:"description"`
}

type tools []tool

// read keeps the names' places, which a Go map would lose.
func (ts *tools) read(r *reader, n ast.Node) {
	for key, value := range r.entries(n, "a mapping of tool names to {class, description}") {
		var t tool
		r.into(key, reflect.ValueOf(&t.name).Elem())
		r.into(value, reflect.ValueOf(&t).Elem())
		*ts = append(*ts, t)
	}
}

// read keeps the events' places.
func (ws *weights) read(r *reader, n ast.Node) {
	for key, value := range r.entries(n, "a mapping of events to points of risk") {
		var w weight
		r.into(key, reflect.ValueOf(&w.event).Elem())
		switch i, _ := value.(*ast.IntegerNode); {
		case i == nil:
			r.mismatch(value, "a whole number of points")
			continue
		default:
			switch v := i.Value.(type) {
			case uint64:
				w.points = int64(min(v, math.MaxInt32))
			case int64:
				w.points = v
			}
		}
		*ws = append(*ws, w)
	}
}

// text is a YAML string. YAML reads 007, no and 1e3 as something else; they
// need quotes, rather than a guess at what was meant.
type text struct {
	place
	value string
}

// read takes strings alone.
func (t *text) read(r *reader, n ast.Node) {
	switch s := n.(type) {
	case *ast.StringNode:
		t.value = s.Value
		return
	case *ast.LiteralNode:
		t.value = s.Value.Value
		return
	case *ast.MappingNode:
		var ok bool
		if t.value, ok = colonScalar(s); ok {
			return
		}
	}
	r.mismatch(n, "a text; put it in quotes")
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
	place
	value int64
}

// read takes integers alone.
func (w *whole) read(r *reader, n ast.Node) {
	if i, ok := n.(*ast.IntegerNode); ok {
		if v, ok := i.Value.(uint64); ok && v <= math.MaxInt64 {
			w.value = int64(v)
			return
		}
	}
	r.mismatch(n, "a whole number of 0 or more")
}

// decimal is a number, with or without a fraction.
type decimal struct {
	place
	value float64
}

// read takes numbers alone.
func (d *decimal) read(r *reader, n ast.Node) {
	switch v := n.(type) {
	case *ast.FloatNode:
		d.value = v.Value
		return
	case *ast.IntegerNode:
		if u, ok := v.Value.(uint64); ok {
			d.value = float64(u)
			return
		}
	}
	r.mismatch(n, "a number above 0")
}

// flag is true or false.
type flag struct{ value bool }

// read takes true and false alone.
func (f *flag) read(r *reader, n ast.Node) {
	b, ok := n.(*ast.BoolNode)
	if !ok {
		r.mismatch(n, "true or false")
		return
	}
	f.value = b.Value
}

// seconds is a duration with its unit, "5m" or "300s".
type seconds struct {
	place
	value int64
}

// read takes durations in whole seconds, with a unit.
func (s *seconds) read(r *reader, n ast.Node) {
	str, ok := n.(*ast.StringNode)
	if !ok {
		r.mismatch(n, `a duration with its unit, like 5m or 300s`)
		return
	}
	d, err := time.ParseDuration(str.Value)
	if err != nil || d%time.Second != 0 {
		r.mismatch(n, `a duration in whole seconds with its unit, like 5m or 300s`)
		return
	}
	s.value = int64(d / time.Second)
}
