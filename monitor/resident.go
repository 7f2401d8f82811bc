package monitor

import (
	"cmp"
	"errors"
	"slices"
)

// What is in memory. Which agents and jobs that are bears on no verdict, and on no
// byte of a snapshot: what is put aside comes back exactly as it went.
const (
	residentAgents = 1024 // agents, those of the newest events
	residentJobs   = 8    // jobs of one agent, those looked at last
)

// at is what is known of an agent, to be read; nil where that is nothing, or where
// it can't be fetched, see Err.
func (m *Model) at(name string) *agent {
	if a := m.agents[name]; a != nil {
		return a
	}
	s, aside := m.aside[name]
	if !aside {
		return nil
	}
	a := new(agent)
	c := codec{reading: true, buf: m.attic.get(s, m.packing), attic: m.attic}
	if c.buf == nil {
		return nil
	}
	m.packing, c.record = c.buf, string(c.buf)
	if c.agent(a); c.err == nil && len(c.buf) > 0 {
		c.err = errors.New("it is longer than what was put aside")
	}
	if c.err != nil {
		m.attic.fail(c.err)
		return nil
	}
	m.agents[name] = a
	m.touch(name, a)
	if m.mine != nil {
		m.mine[name] = true
	}
	return a
}

// changes notes that an agent is no longer as it was put aside, if it was.
func (m *Model) changes(name string, a *agent) {
	m.touch(name, a)
	if s, aside := m.aside[name]; aside {
		delete(m.aside, name)
		m.attic.drop(s)
	}
	a.baseline.settle(m.jobs)
}

// touch notes that an agent is looked at now.
func (m *Model) touch(name string, a *agent) {
	if m.attic == nil || a.used == m.seq+1 {
		return
	}
	a.used = m.seq + 1
	m.queue = append(m.queue, turn{name, a.used})
	if len(m.queue) > 4*len(m.agents)+1024 {
		m.queue = slices.DeleteFunc(m.queue, m.passed)
	}
}

// A turn is when an agent was looked at: one more than the event before.
type turn struct {
	name string
	used uint64
}

// passed reports whether an agent was looked at again since, or is not here.
func (m *Model) passed(t turn) bool {
	a := m.agents[t.name]
	return a == nil || a.used != t.used
}

// settle puts aside the agents that were silent for longest. Nobody may hold one
// meanwhile.
func (m *Model) settle() {
	if m.attic == nil {
		return
	}
	for len(m.agents) > m.resident && len(m.queue) > 0 {
		if t := m.queue[0]; !m.passed(t) {
			m.putAside(t.name)
		}
		m.queue = m.queue[1:]
	}
}

func (m *Model) putAside(name string) {
	a := m.agents[name]
	if _, aside := m.aside[name]; !aside {
		c := codec{buf: m.packing[:0], attic: m.attic}
		if c.agent(a); c.err != nil {
			m.attic.fail(c.err)
			return
		}
		m.packing = c.buf
		m.aside[name] = m.attic.put(c.buf)
	}
	for _, t := range a.baseline.templates { // are in it
		m.attic.drop(t.lies)
	}
	delete(m.agents, name)
	delete(m.mine, name)
}

// forgetAgent leaves nothing of an agent.
func (m *Model) forgetAgent(name string) {
	if a := m.agents[name]; a != nil {
		for _, t := range a.baseline.templates {
			a.baseline.attic.drop(t.lies)
		}
	}
	if s, aside := m.aside[name]; aside {
		m.attic.drop(s)
	}
	delete(m.agents, name)
	delete(m.aside, name)
}

// names are of all agents of which something is known, in the order of a
// snapshot: that of their texts as the codec writes them.
func (m *Model) names() []string {
	type entry struct{ raw, name string }
	entries := make([]entry, 0, len(m.agents)+len(m.aside))
	for name := range m.agents {
		entries = append(entries, entry{written(text[string], &name), name})
	}
	for name := range m.aside {
		if m.agents[name] == nil {
			entries = append(entries, entry{written(text[string], &name), name})
		}
	}
	slices.SortFunc(entries, func(x, y entry) int { return cmp.Compare(x.raw, y.raw) })
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.name
	}
	return names
}

// Err says why the model judges no longer: what it put aside was lost or damaged.
// What Assess gave since is void. Without an attic there is no such thing.
func (m *Model) Err() error { return m.attic.failed() }

// Close gives the attic up, if there is one. Nothing may be asked of the model then.
func (m *Model) Close() error {
	if m.attic == nil {
		return nil
	}
	return m.attic.close()
}

// fetch gives a template its counts, if they were put aside.
func (b *baseline) fetch(t *template) {
	if t == nil || b.attic == nil {
		return
	}
	b.looks++
	t.used = b.looks
	if t.tallies == nil {
		t.tallies = b.stored(t)
	}
}

// stored reads a template's counts, and leaves them where they are.
func (b *baseline) stored(t *template) *tallies {
	raw := t.packed
	if raw == "" {
		raw = string(b.attic.get(t.lies, nil))
	}
	n, err := unpacked(raw)
	if err != nil {
		b.attic.fail(err)
		return newTallies()
	}
	return n
}

// settle puts aside the counts of those jobs that were not looked at for longest.
func (b *baseline) settle(most int) {
	if b.attic == nil || len(b.templates) <= most {
		return
	}
	var here []*template
	for _, t := range b.templates {
		if t.tallies != nil {
			here = append(here, t)
		}
	}
	if len(here) <= most {
		return
	}
	slices.SortFunc(here, func(x, y *template) int { return cmp.Or(cmp.Compare(x.used, y.used), cmp.Compare(x.bit, y.bit)) })
	for _, t := range here[:len(here)-most] {
		if t.packed == "" && t.lies == (shelf{}) {
			t.lies = b.attic.put([]byte(written((*codec).tallies, t.tallies)))
		}
		t.tallies = nil
	}
}

// changes notes that a template's counts are no longer as they were put aside.
func (b *baseline) changes(t *template) {
	t.packed = ""
	if t.lies != (shelf{}) {
		b.attic.drop(t.lies)
		t.lies = shelf{}
	}
}
