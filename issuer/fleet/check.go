package fleet

import (
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of what a fleet file may state.
const (
	maxTTL    = 86400   // seconds
	maxTokens = 1 << 53 // language-model tokens: what every JSON reader holds exactly
	maxMemory = 1 << 40 // bytes
	maxRate   = 1e6     // actions a second, and in a burst
	maxText   = 1000    // bytes of an owner or a description
)

// A checker collects what is wrong with a document's meaning.
type checker struct {
	*faults
	agents, services map[string]pos // what is declared, and where
	operators        map[string]pos
}

// failName reports an error of the grammar of names, without its sentinel's
// text, and with what to do.
func (c *checker) failName(at pos, err error, advice string) {
	c.fail(at, "%s; %s", strings.ReplaceAll(err.Error(), schemas.ErrName.Error()+": ", ""), advice)
}

func (c *checker) document(doc *document) []schemas.Principal {
	switch {
	case !doc.TrustDomain.set:
		c.fail(pos{1, 1}, "trust_domain is missing; name your domain, like acme.example")
	default:
		if err := schemas.CheckTrustDomain(doc.TrustDomain.value); err != nil {
			c.failName(doc.TrustDomain.at, err, "write it like acme.example")
		}
	}
	fallback := c.mode(doc.Mode)
	if g := doc.Guardrails; g.set && (g.value == "" || strings.ContainsAny(g.value, "\x00\n")) {
		c.fail(g.at, "guardrails must name a file of Cedar policies")
	}
	// Names first: what refers to them may stand above them.
	for _, a := range doc.Agents {
		c.declare("agent", a.ID, a.at, c.agents)
	}
	for _, s := range doc.Services {
		c.declare("service", s.ID, s.at, c.services)
	}
	for _, o := range doc.Operators {
		c.declare("operator", o.ID, o.at, c.operators)
	}
	var out []schemas.Principal
	for _, a := range doc.Agents {
		p := c.agent(a)
		if !a.Mode.set {
			p.Mode = fallback
		}
		out = append(out, p)
	}
	served := map[string]text{}
	for _, s := range doc.Services {
		out = append(out, c.service(s, served))
	}
	for _, o := range doc.Operators {
		out = append(out, c.operator(o))
	}
	return out
}

func (c *checker) declare(kind string, id text, at pos, in map[string]pos) {
	if !id.set {
		c.fail(at, "the %s has no id; give it one", kind)
		return
	}
	if err := schemas.CheckID(kind, id.value); err != nil {
		c.failName(id.at, err, "choose another id")
		return
	}
	if id.value == schemas.MemoryID {
		c.fail(id.at, "the id %q belongs to the built-in memory service; choose another id", id.value)
		return
	}
	for _, declared := range []map[string]pos{c.agents, c.services, c.operators} {
		if first, ok := declared[id.value]; ok {
			c.fail(id.at, "the id %q is already declared in line %d; agents, services and operators share one set of ids", id.value, first.line)
			return
		}
	}
	in[id.value] = id.at
}

func (c *checker) agent(a agent) schemas.Principal {
	p := schemas.Principal{ID: a.ID.value, Kind: schemas.KindAgent, Owner: c.prose("owner", a.Owner), MemoryBytes: a.MemoryBytes.value,
		TwoPerson: a.TwoPerson.value, Mode: c.mode(a.Mode), DelegatedOnly: a.DelegatedOnly.value}
	if a.MemoryBytes.value > maxMemory {
		c.fail(a.MemoryBytes.at, "memory_bytes %d is more than %d; lower it", a.MemoryBytes.value, int64(maxMemory))
	}
	p.MayIssueFor = c.list("may_issue_for", a.MayIssueFor, func(t text) {
		if _, ok := c.agents[t.value]; !ok {
			c.fail(t.at, "may_issue_for names %q, which is no agent of this file; declare it, or remove it here", t.value)
		}
	})
	if a.Ceiling != nil {
		p.Ceiling = c.ceiling(a.Ceiling)
	}
	if a.Rate != nil {
		p.Rate = c.rate(a.Rate)
	}
	if a.Thresholds != nil {
		p.Thresholds = c.thresholds(a.Thresholds)
	}
	return p
}

// mode reads a mode; enforce is what the empty mode means.
func (c *checker) mode(t text) string {
	switch {
	case !t.set, t.value == "enforce":
		return ""
	case t.value != schemas.ModeObserve:
		c.fail(t.at, "mode %q is neither enforce nor observe", t.value)
	}
	return schemas.ModeObserve
}

// exceptions check scopes that a ceiling admits for a time.
func (c *checker) exceptions(in []exception) []schemas.Exception {
	var out []schemas.Exception
	for _, x := range in {
		c.scope(x.Scope)
		until, err := time.Parse(time.RFC3339, x.Until.value)
		if err != nil {
			c.fail(or(x.Until.at, x.at), "until is %q; write when the exception ends, like 2026-12-01T00:00:00Z", x.Until.value)
		}
		if c.prose("reason", x.Reason) == "" {
			c.fail(x.at, "an exception needs a reason; say why it is made")
		}
		out = append(out, schemas.Exception{Scope: x.Scope.value, Until: until.UTC(), Reason: x.Reason.value})
	}
	return out
}

func (c *checker) operator(o operator) schemas.Principal {
	p := schemas.Principal{ID: o.ID.value, Kind: schemas.KindOperator, Owner: c.prose("owner", o.Owner), Role: schemas.Role(o.Role.value)}
	if !p.Role.Valid() {
		c.fail(or(o.Role.at, o.at), "the role of operator %q is %q; viewer, reviewer, operator and admin are possible", o.ID.value, o.Role.value)
	}
	return p
}

func (c *checker) ceiling(in *ceiling) *schemas.Ceiling {
	out := &schemas.Ceiling{TTLSeconds: 300, MaxTokens: in.MaxTokens.value}
	forbidden := map[string]bool{}
	out.ForbiddenTools = c.list("forbidden_tools", in.ForbiddenTools, func(t text) {
		c.id("tool", t)
		forbidden[t.value] = true
	})
	contradiction := func(t text, tool string) {
		if forbidden[tool] {
			c.fail(t.at, "tool %q is granted here and stands in forbidden_tools too; keep one of the two", tool)
		}
	}
	tools := map[string]bool{}
	out.Tools = c.list("tools", in.Tools, func(t text) {
		c.id("tool", t)
		tools[t.value] = true
		contradiction(t, t.value)
	})
	out.Scope = c.list("scope", in.Scope, func(t text) {
		c.scope(t)
		if tool, ok := strings.CutPrefix(t.value, schemas.VerbCall+":"); ok {
			contradiction(t, tool)
			if tools[tool] {
				c.fail(t.at, "scope %q says the same as %q in tools; keep one of the two", t.value, tool)
			}
		}
	})
	out.Exceptions = c.exceptions(in.Exceptions)
	out.Jobs = c.list("jobs", in.Jobs, func(t text) { c.id("job", t) })
	out.Operations = c.list("operations", in.Operations, func(t text) { c.id("operation", t) })
	if in.TTL.set {
		out.TTLSeconds = in.TTL.value
		if out.TTLSeconds < 1 || out.TTLSeconds > maxTTL {
			c.fail(in.TTL.at, "ttl is %d s; 1s to 24h are possible", out.TTLSeconds)
		}
	}
	if out.MaxTokens > maxTokens {
		c.fail(in.MaxTokens.at, "max_tokens %d is more than %d; lower it", out.MaxTokens, int64(maxTokens))
	}
	if in.MaxTokensDay.set {
		out.MaxTokensPerDay = in.MaxTokensDay.value
		switch {
		case out.MaxTokensPerDay < 1 || out.MaxTokensPerDay > maxTokens:
			c.fail(in.MaxTokensDay.at, "max_tokens_per_day is %d; 1 to %d are possible, and without it there is no bound by day", out.MaxTokensPerDay, int64(maxTokens))
		case out.MaxTokens == 0:
			c.fail(in.MaxTokensDay.at, "max_tokens_per_day stands without max_tokens, so that no operation gets any; state it too, or remove this")
		}
	}
	return out
}

// scope checks one scope, and that whom it addresses is there.
func (c *checker) scope(t text) {
	if strings.ContainsAny(t.value, "*>") {
		c.fail(t.at, "scope %q holds a wildcard; scopes are exact: list each resource", t.value)
		return
	}
	if err := schemas.CheckScope(t.value); err != nil {
		c.failName(t.at, err, "write verb:resource, like read:data.sales")
		return
	}
	verb, to, _ := strings.Cut(t.value, ":")
	if verb != schemas.VerbSend && verb != schemas.VerbAsk {
		return
	}
	if _, ok := c.services[to]; ok {
		c.fail(t.at, "scope %q addresses %q, which is a service; messages go to agents, services are reached by call, read and write", t.value, to)
	} else if _, ok := c.agents[to]; !ok {
		c.fail(t.at, "scope %q addresses %q, which is no agent of this file; declare it, or remove the scope", t.value, to)
	}
}

func (c *checker) rate(r *rate) *schemas.Rate {
	if r.PerSecond.value <= 0 || r.PerSecond.value > maxRate {
		c.fail(or(r.PerSecond.at, r.at), "rate needs per_second above 0 and up to %d; it is %g", int(maxRate), r.PerSecond.value)
	}
	if r.Burst.value < 1 || r.Burst.value > maxRate {
		c.fail(or(r.Burst.at, r.at), "rate needs a burst of 1 to %d; it is %d", int(maxRate), r.Burst.value)
	}
	return &schemas.Rate{PerSecond: r.PerSecond.value, Burst: int(r.Burst.value)}
}

func (c *checker) thresholds(t *thresholds) *schemas.Thresholds {
	out := schemas.DefaultThresholds
	for _, f := range []struct {
		name string
		in   whole
		out  *int
	}{{"pause", t.Pause, &out.Pause}, {"suspend", t.Suspend, &out.Suspend}} {
		if !f.in.set {
			continue
		}
		if f.in.value < 1 || f.in.value > 100 {
			c.fail(f.in.at, "threshold %s is %d; 1 to 100 are possible", f.name, f.in.value)
			return &out
		}
		*f.out = int(f.in.value)
	}
	if out.Pause > out.Suspend {
		c.fail(t.at, "pause (%d) is above suspend (%d), so that no agent would ever be paused; swap them, or state both", out.Pause, out.Suspend)
	}
	return &out
}

func (c *checker) service(s service, served map[string]text) schemas.Principal {
	p := schemas.Principal{ID: s.ID.value, Kind: schemas.KindService, Owner: c.prose("owner", s.Owner),
		Streams: s.Streams.value, Meter: s.Meter.value}
	if s.Meter.set && s.Meter.value != schemas.MeterTokens {
		c.fail(s.Meter.at, "meter %q is unknown; write tokens, or remove it", s.Meter.value)
	}
	if s.Reserve.set {
		p.Reserve = s.Reserve.value
		switch {
		case !s.Meter.set:
			c.fail(s.Reserve.at, "reserve stands without meter, so that nothing is counted; write meter: tokens too, or remove it")
		case p.Reserve < 1 || p.Reserve > maxTokens:
			c.fail(s.Reserve.at, "reserve is %d; 1 to %d are possible", p.Reserve, int64(maxTokens))
		}
	}
	p.Serves = c.list("serves", s.Serves, func(t text) {
		if !c.prefix(t) {
			return
		}
		if first, ok := served[t.value]; ok {
			c.fail(t.at, "%q is served already, as line %d says; give one service a longer prefix, or run instances under one id", t.value, first.at.line)
			return
		}
		served[t.value] = t
	})
	for _, d := range s.Tools {
		c.id("tool", d.name)
		if p.Tools == nil {
			p.Tools = map[string]schemas.Tool{}
		}
		p.Tools[d.name.value] = schemas.Tool{Class: c.class(d.Class), Description: c.prose("description", d.Description)}
	}
	return p
}

func (c *checker) class(t text) string {
	if t.set && !slices.Contains([]string{"read", "write", "egress"}, t.value) {
		c.fail(t.at, "class %q is none of read, write, egress; what is not classed counts as egress", t.value)
	}
	return t.value
}

// prefix checks what a service serves: routing knows calls, reads and writes.
func (c *checker) prefix(t text) bool {
	if strings.ContainsAny(t.value, "*>") {
		c.fail(t.at, "%q holds a wildcard; a prefix serves all that lies under it without one", t.value)
		return false
	}
	a, err := schemas.ParseAction(t.value)
	if err != nil {
		c.failName(t.at, err, "write verb:prefix, like read:data")
		return false
	}
	switch a.Verb {
	case schemas.VerbCall, schemas.VerbRead, schemas.VerbWrite:
		return true
	}
	c.fail(t.at, "%q can't be served: services take call, read and write", t.value)
	return false
}

// list checks each entry of a list, refuses what stands twice, and gives the
// values sorted; nil for none.
func (c *checker) list(what string, in []text, check func(text)) []string {
	var out []string
	seen := map[string]bool{}
	for _, t := range in {
		if seen[t.value] {
			c.fail(t.at, "%s names %q twice; remove one", what, t.value)
			continue
		}
		seen[t.value] = true
		check(t)
		out = append(out, t.value)
	}
	slices.Sort(out)
	return out
}

func (c *checker) id(what string, t text) {
	if err := schemas.CheckID(what, t.value); err != nil {
		c.failName(t.at, err, "correct the name")
	}
}

// prose checks a text that people read: one line, nothing that deceives a
// terminal.
func (c *checker) prose(what string, t text) string {
	if !t.set {
		return ""
	}
	if t.value == "" || len(t.value) > maxText || strings.ContainsFunc(t.value, func(r rune) bool { return !unicode.IsPrint(r) }) {
		c.fail(t.at, "%s must be one line of 1 to %d printable bytes; shorten or clean it", what, maxText)
	}
	return t.value
}

func or(a, b pos) pos {
	if a == (pos{}) {
		return b
	}
	return a
}
