package monitor

import (
	"maps"
	"slices"

	"github.com/writ-sh/writ/schemas"
)

// Fork gives a model that goes on from here by itself. What neither of the two
// changes they share: an agent is copied when a fork first changes it. Forks of
// one model may be used in different goroutines, as long as that model itself
// is used no longer and each judges only agents that it has applied an event of.
func (m *Model) Fork() *Model {
	f := *m
	f.queue = slices.Clone(m.queue)
	f.agents, f.aside, f.pending = maps.Clone(m.agents), maps.Clone(m.aside), maps.Clone(m.pending)
	f.heard = maps.Clone(m.heard)
	f.traits = map[schemas.Action]*trait{}
	f.extract, f.scratch, f.uses, f.nobody = newExtractor(), make([]byte, 0, 1<<10), make([]useOf, 0, maxLeaves+1), newAgent(nil)
	f.stems, f.factors, f.packing = nil, nil, nil
	m.attic.lend(true)
	f.pool = m.pool.clone()
	for i := range f.maxima {
		f.maxima[i] = m.maxima[i].clone()
	}
	f.watch.frozen = m.watch.frozen.clone()
	f.mine = map[string]bool{}
	return &f
}

// own is an agent to be changed; nil where nothing is known of it.
func (m *Model) own(name string) *agent {
	a := m.at(name)
	if a == nil {
		return nil
	}
	if m.mine != nil && !m.mine[name] {
		a = a.clone()
		m.agents[name], m.mine[name] = a, true
	}
	m.changes(name, a)
	return a
}

// alone ends that anything is shared: no other fork is used any longer.
func (m *Model) alone() {
	m.mine = nil
	m.attic.lend(false)
}

func (c calibration) clone() calibration {
	c.maxima, c.sorted = slices.Clone(c.maxima), slices.Clone(c.sorted)
	return c
}

func (a *agent) clone() *agent {
	c := *a
	for i := range c.maxima {
		c.maxima[i] = a.maxima[i].clone()
	}
	for i := range c.usual {
		c.usual[i].bins = slices.Clone(a.usual[i].bins)
	}
	c.baseline = a.baseline.clone()
	c.said = slices.Clone(a.said)
	c.refusals, c.approved, c.history = slices.Clone(a.refusals), slices.Clone(a.approved), slices.Clone(a.history)
	copies := map[*run]*run{}
	c.runs = make(map[string]*run, len(a.runs))
	for key, r := range a.runs {
		copies[r] = r.clone()
		c.runs[key] = copies[r]
	}
	c.held = make(map[uint64]*heldAction, len(a.held))
	for seq, h := range a.held {
		g := *h
		if copies[h.run] == nil {
			copies[h.run] = h.run.clone()
		}
		g.run = copies[h.run]
		c.held[seq] = &g
	}
	c.causes = maps.Clone(a.causes)
	return &c
}

// clone copies what of a run changes in place.
func (r *run) clone() *run {
	c := *r
	if r.live == silence {
		return &c
	}
	l := *r.live
	c.live = &l
	c.seen = maps.Clone(r.seen)
	c.sources, c.asked, c.answered = slices.Clone(r.sources), slices.Clone(r.asked), slices.Clone(r.answered)
	c.votes = votes{words: slices.Clone(r.votes.words), times: slices.Clone(r.votes.times), outside: slices.Clone(r.votes.outside), tools: slices.Clone(r.votes.tools),
		pairs: slices.Clone(r.votes.pairs), shapes: slices.Clone(r.votes.shapes), uses: slices.Clone(r.votes.uses)}
	c.alike, c.rarity, c.alikeAt = nil, nil, 0 // refers to the templates copied from
	return &c
}

func (b *baseline) clone() *baseline {
	c := *b
	c.tools, c.pairs, c.follows = maps.Clone(b.tools), maps.Clone(b.pairs), maps.Clone(b.follows)
	c.known, c.slots, c.newTools = maps.Clone(b.known), maps.Clone(b.slots), maps.Clone(b.newTools)
	c.flows, c.filled, c.times = maps.Clone(b.flows), maps.Clone(b.filled), maps.Clone(b.times)
	c.shapes = maps.Clone(b.shapes)
	c.outside = maps.Clone(b.outside)
	c.newcomers = maps.Clone(b.newcomers)
	c.together, c.words = maps.Clone(b.together), maps.Clone(b.words)
	c.templates = make(map[string]*template, len(b.templates))
	for job, t := range b.templates {
		u := *t
		if n := t.tallies; n != nil {
			u.tallies = &tallies{maps.Clone(n.tools), maps.Clone(n.pairs), maps.Clone(n.follows),
				maps.Clone(n.flows), maps.Clone(n.filled), maps.Clone(n.times), maps.Clone(n.shapes)}
		}
		u.words = slices.Clone(t.words)
		c.templates[job] = &u
	}
	return &c
}
