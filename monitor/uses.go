package monitor

import (
	"slices"
	"strconv"

	"github.com/writ-sh/writ/schemas"
)

// named shows the i-th value with its kind.
func (m *Model) named(i int) string {
	v := m.extract.values[i]
	return printable([]byte(v.kind)) + " " + printable(v.text)
}

// say puts words and numbers together.
func (m *Model) say(parts ...any) string {
	b := m.scratch[:0]
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		case uint64:
			b = strconv.AppendUint(b, p, 10)
		}
	}
	m.scratch = b
	return string(b)
}

// usesOf gives an action's values with what is known of them, in the order of
// the extractor's values; both hold until the next use. Only to be learned do
// they all need names: what stands in the task speaks for itself.
func (m *Model) usesOf(e *schemas.Event, c *considered, learn bool) []useOf {
	values := m.extract.read(e.Data)
	tool := c.tool
	c.shape = shape{tool, m.extract.keys}
	if a := tool.action(); a.Verb == schemas.VerbMemory && len(e.Action.Resource) > len(a.Resource)+1 {
		m.extract.add("key", []byte(e.Action.Resource[len(a.Resource)+1:]))
		values = m.extract.values
	}
	m.uses = slices.Grow(m.uses[:0], len(values))[:len(values)]
	for i, v := range values {
		u := &m.uses[i]
		*u = useOf{place: place{tool, v.kind}, sink: c.sink}
		if inText(c.task, v.text) {
			u.how = fromTask
		} else if c.read != nil {
			if out, root, ok := c.read.origin(v.text); ok {
				u.how, u.root, u.fresh = fromOutput, root, out == c.read.outputs
			}
		}
		if u.how != fromTask || learn {
			m.identify(u, c, v)
		}
	}
	return m.uses
}

// identify names a value and its domain, and says what is known of them.
func (m *Model) identify(u *useOf, c *considered, v value) {
	b := c.agent.baseline
	u.value = m.extract.idOf(v.text)
	if d := domainOf(v); len(d) > 0 {
		m.scratch = append(append(m.scratch[:0], "domain\x00"...), d...)
		u.domain, u.domainInTask = m.extract.idOf(m.scratch), inText(c.task, d)
		u.seenDomain = b.known[u.domain]
	}
	if u.how == fromTask {
		return
	}
	u.seen = b.known[u.value]
	now, new := view{b: b, t: c.template}, view{b: b, without: c.template}
	u.unknown, u.unknownNew = !now.trusts(u.seen.templates), !new.trusts(u.seen.templates)
	if !u.unknown && !u.unknownNew && now.trusts(u.seen.sinks) && new.trusts(u.seen.sinks) {
		return
	}
	u.strange = one
	if c.run != nil {
		u.strange = m.strangeness(c.run.votes.words, v.text)
		u.displaced = destination(v.kind) && c.run.forms&formOf(v.text) != 0
	}
}
