package monitor

import (
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

// usesOf gives an action's values with their ids, in the order of the
// extractor's values; both hold until the next use.
func (m *Model) usesOf(e *schemas.Event, c *considered) []useOf {
	values := m.extract.read(e.Data)
	tool := c.tool
	if tool.Verb == schemas.VerbMemory && len(e.Action.Resource) > len(tool.Resource)+1 {
		m.extract.add("key", []byte(e.Action.Resource[len(tool.Resource)+1:]))
		values = m.extract.values
	}
	m.uses = m.uses[:0]
	asNow, asNew := view{b: c.agent.baseline, t: c.template}, view{b: c.agent.baseline, without: c.template}
	for _, v := range values {
		u := useOf{place: place{tool, v.kind}, sink: c.sink, value: idOf(v.text)}
		if d := domainOf(v); len(d) > 0 {
			m.scratch = append(append(m.scratch[:0], "domain\x00"...), d...)
			u.domain, u.domainInTask = idOf(m.scratch), inText(c.task, d)
		}
		if c.read != nil {
			if out, root, ok := c.read.origin(v.text); ok {
				u.how, u.root, u.fresh = fromOutput, root, out == c.read.outputs
			}
		}
		if inText(c.task, v.text) {
			u.how, u.root = fromTask, schemas.Action{}
		} else {
			u.unknown, u.unknownNew = !asNow.known(u.value), !asNew.known(u.value)
			u.strange = one
			if c.run != nil {
				u.strange = m.strangeness(c.run.votes.words, v.text)
				u.displaced = destination(v.kind) && c.run.forms&formOf(v.text) != 0
			}
		}
		m.uses = append(m.uses, u)
	}
	return m.uses
}
