package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/writ-sh/writ/schemas"
)

func (c *codec) model(m *Model) {
	number(c, &m.seq)
	number(c, &m.learned)
	c.fleet(&m.fleet)
	c.agents(m)
	for i := range m.maxima {
		c.calibration(&m.maxima[i])
	}
	c.calibration(&m.pool)
	c.watch(&m.watch)
	table(c, &m.pending, number[uint64], (*codec).violation)
	table(c, &m.heard, (*codec).id, (*codec).hearing)
	c.instant(&m.heardAt)
}

func (c *codec) watch(w *watch) {
	number(c, &w.runs)
	number(c, &w.accused)
	number(c, &w.approved)
	number(c, &w.denied)
	c.calibration(&w.frozen)
}

func (c *codec) fleet(p **schemas.State) {
	var raw []byte
	if !c.reading {
		raw = schemas.Marshal((*p).Declared())
	}
	text(c, &raw)
	if !c.reading || c.err != nil {
		return
	}
	var d schemas.Declared
	if err := schemas.Unmarshal(raw, &d); err != nil {
		c.fail(fmt.Errorf("the fleet in it: %w", err))
		return
	}
	*p = schemas.StateOf(d)
}

// agents goes through all agents in the way of table, with no more of them in
// memory than the model has: what was put aside is written as it lies.
func (c *codec) agents(m *Model) {
	var names []string
	if !c.reading {
		names = m.names()
	}
	n := c.length(len(names))
	before := ""
	for i := range n {
		if !c.reading {
			text(c, &names[i])
			if a := m.agents[names[i]]; a != nil {
				c.agent(a)
			} else {
				c.stored(m.aside[names[i]])
			}
			c.spill(streamed)
			continue
		}
		var name string
		a := new(agent)
		text(c, &name)
		if raw := written(text[string], &name); i > 0 && raw <= before {
			c.fail(errOrder)
		} else {
			before = raw
		}
		if c.agent(a); c.err != nil {
			return
		}
		m.agents[name] = a
		m.touch(name, a)
		m.settle()
	}
}

// stored writes a record of the attic as it lies there.
func (c *codec) stored(s shelf) {
	raw := c.attic.get(s, nil)
	if raw == nil {
		c.fail(c.attic.failed())
	}
	c.buf = append(c.buf, raw...)
}

func (c *codec) violation(v *violation) {
	text(c, &v.agent)
	text(c, &v.id)
	text(c, &v.why)
}

func (c *codec) hearing(h *hearing) {
	text(c, &h.source)
	number(c, &h.until)
	c.id(&h.digest)
}

func (c *codec) saying(s *saying) {
	text(c, &s.source)
	text(c, &s.event)
	text(c, &s.reason)
	number(c, &s.points)
	c.instant(&s.at)
}

func (c *codec) action(a *schemas.Action) {
	text(c, &a.Verb)
	text(c, &a.Resource)
}

func (c *codec) tool(t *toolID) {
	a := t.action()
	c.action(&a)
	if !c.reading {
		return
	}
	known, ok := c.tools[a]
	if !ok {
		if known = toolNamed(a); c.tools == nil || len(c.tools) >= mostTools {
			c.tools = map[schemas.Action]toolID{}
		}
		c.tools[a] = known
	}
	*t = known
}

func (c *codec) agent(a *agent) {
	if c.reading {
		a.baseline = &baseline{attic: c.attic}
	}
	c.baseline(a.baseline)
	table(c, &a.runs, text[string], owned((*codec).run))
	for i := range a.maxima {
		c.calibration(&a.maxima[i])
	}
	number(c, &a.refused)
	c.instant(&a.refusedAt)
	list(c, &a.refusals, (*codec).action)
	number(c, &a.risk)
	c.instant(&a.riskAt)
	for i := range a.usual {
		number(c, &a.usual[i].n)
		list(c, &a.usual[i].bins, number[uint16])
	}
	c.gauge(&a.rate)
	c.gauge(&a.errors)
	number(c, &a.slow)
	list(c, &a.said, (*codec).saying)
	c.held(a)
	list(c, &a.approved, number[uint64])
	table(c, &a.causes, number[uint64], owned(func(c *codec, x *cause) {
		text(c, &x.job)
		c.votes(&x.votes)
		number(c, &x.score)
		number(c, &x.scoreNew)
	}))
	number(c, &a.lastSeq)
	c.instant(&a.lastTime)
	c.action(&a.lastAction)
	text(c, &a.lastVerdict)
	if c.reading && len(a.lastVerdict) == 0 {
		a.lastVerdict = nil
	}
	list(c, &a.history, (*codec).point)
}

func (c *codec) gauge(g *gauge) {
	number(c, &g.n)
	c.instant(&g.at)
}

func (c *codec) point(p *schemas.RiskPoint) {
	number(c, &p.Seq)
	c.instant(&p.Time)
	number(c, &p.Risk)
}

// held goes through the held actions. Several can be of one run, which need not
// be followed any longer: each names its run by its place among the runs, then
// among those that only held actions know.
func (c *codec) held(a *agent) {
	if c.nothingHeld(a) {
		return
	}
	var runs, lone []*run
	for _, key := range sortedKeys(a.runs) {
		runs = append(runs, a.runs[key])
	}
	for _, seq := range sortedKeys(a.held) {
		if r := a.held[seq].run; !slices.Contains(runs, r) && !slices.Contains(lone, r) {
			lone = append(lone, r)
		}
	}
	list(c, &lone, owned((*codec).run))
	runs = append(runs, lone...)
	table(c, &a.held, number[uint64], owned(func(c *codec, h *heldAction) {
		i := slices.Index(runs, h.run)
		number(c, &i)
		if i < 0 || i >= len(runs) {
			c.fail(errors.New("a held action in it belongs to no run"))
			return
		}
		if c.reading {
			h.run = runs[i]
		}
		c.shape(&h.shape)
		c.tool(&h.prev)
		list(c, &h.uses, (*codec).use)
		number(c, &h.score)
		number(c, &h.scoreNew)
	}))
}

// nothingHeld passes over the two lengths of nothing, as nearly always, before the
// runs are put in order.
func (c *codec) nothingHeld(a *agent) bool {
	none := [2]byte{}
	if c.want(len(none)); c.reading && bytes.HasPrefix(c.buf, none[:]) {
		c.buf, a.held = c.buf[len(none):], map[uint64]*heldAction{}
		return true
	}
	if !c.reading && len(a.held) == 0 {
		c.buf = append(c.buf, none[:]...)
		return true
	}
	return false
}

func (c *codec) run(r *run) {
	text(c, &r.job)
	c.flag(&r.ended)
	number(c, &r.last)
	silent := r.live == silence
	if c.flag(&silent); c.reading {
		if r.live = silence; !silent {
			r.live = new(live)
		}
	}
	if !silent {
		c.live(r.live)
	}
}

func (c *codec) live(r *live) {
	text(c, &r.jti)
	text(c, &r.task)
	number(c, &r.forms)
	list(c, &r.scope, text[string])
	list(c, &r.forbidden, text[string])
	c.deeds(r)
}

// deeds are what a run did.
func (c *codec) deeds(r *live) {
	c.tool(&r.prev)
	number(c, &r.outputs)
	table(c, &r.seen, number[uint64], func(c *codec, s *sighting) {
		number(c, &s.output)
		number(c, &s.source)
	})
	list(c, &r.sources, (*codec).source)
	number(c, &r.flooded)
	list(c, &r.asked, (*codec).source)
	c.votes(&r.votes)
	number(c, &r.maxRisk)
	number(c, &r.maxScore)
	number(c, &r.maxNew)
	number(c, &r.surprise)
	for i := range r.level {
		number(c, &r.level[i])
	}
	c.flag(&r.accused)
	number(c, &r.reviews)
	list(c, &r.answered, func(c *codec, a *answerer) {
		text(c, &a.agent)
		text(c, &a.key)
	})
}

// written is how a state is written.
func written[T any](walk func(*codec, T), x T) string {
	c := codec{}
	walk(&c, x)
	return string(c.buf)
}

func (c *codec) source(s *source) {
	c.tool(&s.tool)
	c.tool(&s.root)
}

func (c *codec) votes(v *votes) {
	list(c, &v.words, number[uint32])
	list(c, &v.outside, (*codec).tool)
	list(c, &v.times, number[uint8])
	list(c, &v.tools, (*codec).tool)
	list(c, &v.pairs, (*codec).pair)
	list(c, &v.shapes, (*codec).shape)
	list(c, &v.uses, (*codec).use)
}

func (c *codec) use(u *useOf) {
	c.place(&u.place)
	c.id(&u.value)
	c.id(&u.domain)
	c.flag(&u.domainInTask)
	c.flag(&u.sink)
	c.flag(&u.fresh)
	c.flag(&u.displaced)
	c.knowledge(&u.seen)
	c.knowledge(&u.seenDomain)
	c.flag(&u.unknown)
	c.flag(&u.unknownNew)
	number(c, &u.strange)
	number(c, &u.how)
	c.tool(&u.root)
}

func (c *codec) id(v *id) {
	number(c, &v.hi)
	number(c, &v.lo)
}

func (c *codec) place(p *place) {
	c.tool(&p.tool)
	text(c, &p.kind)
}

func (c *codec) pair(p *pair) {
	c.tool(&p.prev)
	c.tool(&p.tool)
}

func (c *codec) flow(f *flow) {
	c.place(&f.place)
	c.tool(&f.root)
}

func (c *codec) repeat(r *repeat) {
	c.tool(&r.tool)
	number(c, &r.n)
}

func (c *codec) shape(s *shape) {
	c.tool(&s.tool)
	number(c, &s.keys)
}

func (c *codec) knowledge(k *knowledge) {
	number(c, &k.templates)
	number(c, &k.sinks)
	number(c, &k.last)
}

func (c *codec) count(n *count) {
	number(c, &n.n)
	number(c, &n.last)
}

func (c *codec) innovations(x *innovations) {
	number(c, &x.n)
	number(c, &x.tainted)
}

func (c *codec) baseline(b *baseline) {
	number(c, &b.runs)
	number(c, &b.votes)
	table(c, &b.tools, (*codec).tool, (*codec).count)
	table(c, &b.pairs, (*codec).pair, (*codec).count)
	table(c, &b.follows, (*codec).tool, func(c *codec, f *following) {
		number(c, &f.n)
		number(c, &f.distinct)
	})
	table(c, &b.templates, text[string], owned((*codec).template))
	number(c, &b.taken)
	table(c, &b.known, (*codec).id, (*codec).knowledge)
	table(c, &b.slots, (*codec).place, func(c *codec, s *slot) {
		c.innovations(&s.known)
		c.innovations(&s.new)
	})
	table(c, &b.flows, (*codec).flow, number[uint32])
	table(c, &b.filled, (*codec).place, number[uint32])
	table(c, &b.times, (*codec).repeat, number[uint32])
	table(c, &b.shapes, (*codec).shape, number[uint32])
	table(c, &b.together, (*codec).pair, number[uint32])
	table(c, &b.newTools, (*codec).tool, number[uint32])
	table(c, &b.newcomers, text[string], number[uint32])
	number(c, &b.mature)
	table(c, &b.outside, (*codec).tool, number[uint32])
	table(c, &b.words, number[uint32], number[uint16])
	number(c, &b.learned)
}

func (c *codec) template(t *template) {
	number(c, &t.bit)
	number(c, &t.runs)
	c.packed(t)
	list(c, &t.words, number[uint32])
	number(c, &t.last)
}

// packed goes through a template's counts, of which the length is written first, so
// that those of jobs that nobody looks at are passed over. In a snapshot, which
// somebody may have damaged, all are read.
func (c *codec) packed(t *template) {
	raw := t.packed
	if !c.reading && raw == "" {
		if t.tallies != nil {
			raw = written((*codec).tallies, t.tallies)
		} else if raw = string(c.attic.get(t.lies, nil)); raw == "" {
			c.fail(c.attic.failed())
		}
	}
	if text(c, &raw); !c.reading || c.err != nil {
		return
	}
	if t.packed = raw; c.record != "" {
		return
	}
	var err error
	if t.tallies, err = unpacked(raw); err != nil {
		c.fail(err)
	}
	t.packed = ""
}

func unpacked(raw string) (*tallies, error) {
	n, c := new(tallies), codec{reading: true, buf: []byte(raw), record: raw}
	if c.tallies(n); c.err == nil && len(c.buf) > 0 {
		c.err = errors.New("it is longer than what was put aside")
	}
	return n, c.err
}

func (c *codec) tallies(t *tallies) {
	table(c, &t.tools, (*codec).tool, number[uint32])
	table(c, &t.pairs, (*codec).pair, number[uint32])
	table(c, &t.follows, (*codec).tool, number[uint32])
	table(c, &t.flows, (*codec).flow, number[uint32])
	table(c, &t.filled, (*codec).place, number[uint32])
	table(c, &t.times, (*codec).repeat, number[uint32])
	table(c, &t.shapes, (*codec).shape, number[uint32])
}

func (c *codec) calibration(s *calibration) {
	list(c, &s.maxima, func(c *codec, m *maximum) {
		number(c, &m.score)
		c.flag(&m.censored)
	})
	list(c, &s.sorted, number[fixed])
	number(c, &s.censored)
	number(c, &s.ever)
	number(c, &s.tail)
	number(c, &s.above)
	number(c, &s.excess)
	number(c, &s.exact)
}
