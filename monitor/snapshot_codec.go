package monitor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A codec walks state in one fixed order and either writes it or reads it: one
// walk for both ways, so that they can't come apart. Numbers are varints,
// texts and lists carry their length, tables are sorted by the bytes of their
// keys: equal states give equal bytes, and there is no second way to write one.
type codec struct {
	reading bool
	buf     []byte            // written so far, or what is left to read
	err     error             // the first; all that follows is nothing
	texts   map[string]string // read so far, so that equal texts share memory
	attic   *attic            // holds what the state put aside; nil where it put nothing

	in   *io.LimitedReader // more to read; nil where buf is all
	out  io.Writer         // takes what was written; nil where buf keeps it
	hold bool              // buf must stand still

	spare *live // room for the next run that is read
}

// streamed is how much is in memory of what is read or written, at least.
const (
	streamed  = 1 << 20
	mostKey   = 1 << 16 // bytes of a table's key
	mostTexts = 1 << 14 // that share memory
)

// want reads on until n bytes are at hand, or all.
func (c *codec) want(n int) {
	if c.in == nil || c.hold || len(c.buf) >= n {
		return
	}
	n = int(min(int64(n), int64(len(c.buf))+c.in.N)) // whatever a damaged length says
	more := make([]byte, len(c.buf), max(n, streamed))
	copy(more, c.buf)
	got, err := io.ReadFull(c.in, more[len(more):cap(more)])
	c.buf = more[:len(more)+got]
	if err != nil {
		c.in = nil
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			c.fail(err)
		}
	}
}

// spill hands on what was written.
func (c *codec) spill(least int) {
	if c.out == nil || len(c.buf) < least || c.err != nil {
		return
	}
	if _, err := c.out.Write(c.buf); err != nil {
		c.fail(err)
	}
	c.buf = c.buf[:0]
}

var (
	errShort = errors.New("it ends too early, or a length in it is wrong")
	errOrder = errors.New("a table in it is out of order")
)

func (c *codec) fail(err error) {
	if c.err == nil {
		c.err, c.buf = err, nil
	}
}

type integer interface {
	~int | ~int64 | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

func number[T integer](c *codec, p *T) {
	if !c.reading {
		c.buf = binary.AppendVarint(c.buf, int64(*p))
		return
	}
	c.want(binary.MaxVarintLen64)
	x, n := binary.Varint(c.buf)
	if n <= 0 || int64(T(x)) != x || n > 1 && c.buf[n-1] == 0 {
		c.fail(errShort)
		return
	}
	*p, c.buf = T(x), c.buf[n:]
}

func (c *codec) flag(p *bool) {
	var n uint8
	if *p {
		n = 1
	}
	if number(c, &n); !c.reading {
		return // who writes changes nothing: others may be reading
	}
	if n > 1 {
		c.fail(errors.New("a flag is neither set nor not"))
	}
	*p = n == 1
}

// length is of what takes a byte at least for each.
func (c *codec) length(n int) int {
	number(c, &n)
	if c.reading {
		c.want(n)
	}
	if c.reading && (n < 0 || n > len(c.buf)) {
		c.fail(errShort)
		return 0
	}
	return n
}

func text[T ~string | ~[]byte](c *codec, p *T) {
	n := c.length(len(*p))
	if !c.reading {
		c.buf = append(c.buf, *p...)
		return
	}
	raw := c.buf[:n]
	c.buf = c.buf[n:]
	if _, isString := any(*p).(string); isString && n <= maxValue {
		s, ok := c.texts[string(raw)]
		if !ok {
			if len(c.texts) >= mostTexts {
				clear(c.texts)
			}
			s = string(raw)
			c.texts[s] = s
		}
		*p = T(s)
		return
	}
	*p = T(bytes.Clone(raw))
}

// instant is a time of UTC.
func (c *codec) instant(p *time.Time) {
	s, ns := p.Unix(), int64(p.Nanosecond())
	number(c, &s)
	number(c, &ns)
	if c.reading {
		*p = time.Unix(s, ns).UTC()
	}
}

func list[T any](c *codec, p *[]T, each func(*codec, *T)) {
	n := c.length(len(*p))
	if c.reading {
		*p = nil
		for range n {
			var x T
			if each(c, &x); c.err != nil {
				return
			}
			*p = append(*p, x)
		}
		return
	}
	for i := range *p {
		each(c, &(*p)[i])
	}
}

// table goes through a map in the order of its keys' bytes.
func table[K comparable, V any](c *codec, p *map[K]V, key func(*codec, *K), value func(*codec, *V)) {
	n := c.length(len(*p))
	if c.reading {
		*p = make(map[K]V, n)
		var before []byte
		for i := range n {
			var k K
			var v V
			c.want(mostKey)
			from := c.buf
			c.hold = true
			key(c, &k)
			c.hold = false
			if c.err != nil {
				return
			}
			raw := from[:len(from)-len(c.buf)]
			if i > 0 && bytes.Compare(before, raw) >= 0 {
				c.fail(errOrder)
				return
			}
			before = raw
			if value(c, &v); c.err != nil {
				return
			}
			(*p)[k] = v
		}
		return
	}
	type entry struct {
		raw []byte
		key K
	}
	entries := make([]entry, 0, n)
	keys := codec{}
	for k := range *p {
		from := len(keys.buf)
		key(&keys, &k)
		entries = append(entries, entry{keys.buf[from:len(keys.buf):len(keys.buf)], k})
	}
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.raw, b.raw) })
	for _, e := range entries {
		v := (*p)[e.key]
		c.buf = append(c.buf, e.raw...)
		value(c, &v)
	}
}

// owned is what a pointer points to, never nil.
func owned[T any](walk func(*codec, *T)) func(*codec, **T) {
	return func(c *codec, p **T) {
		if c.reading {
			*p = new(T)
		}
		walk(c, *p)
	}
}

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
	raw := c.attic.get(s)
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
	if c.reading {
		*t = toolNamed(a)
	}
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
	runs := make([]*run, 0, len(a.runs))
	for _, key := range sortedKeys(a.runs) {
		runs = append(runs, a.runs[key])
	}
	var lone []*run
	if !c.reading {
		for _, seq := range sortedKeys(a.held) {
			if r := a.held[seq].run; !slices.Contains(runs, r) && !slices.Contains(lone, r) {
				lone = append(lone, r)
			}
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

func (c *codec) run(r *run) {
	if c.reading {
		if r.live = c.spare; r.live == nil {
			r.live = new(live)
		}
		c.spare = nil
	}
	text(c, &r.jti)
	text(c, &r.job)
	text(c, &r.task)
	number(c, &r.forms)
	list(c, &r.scope, text[string])
	list(c, &r.forbidden, text[string])
	c.flag(&r.ended)
	number(c, &r.last)
	if c.reading && r.ended && c.silent(r.live) {
		c.spare, r.live = r.live, silence
		*c.spare = live{}
		return
	}
	c.deeds(r.live)
}

// silent reports whether nothing is left of a run that ended, and passes over what
// says so.
func (c *codec) silent(l *live) bool {
	c.want(len(silentDeeds))
	if l.jti != "" || len(l.task) > 0 || l.forms != 0 || l.scope != nil || l.forbidden != nil || !bytes.HasPrefix(c.buf, silentDeeds) {
		return false
	}
	c.buf = c.buf[len(silentDeeds):]
	return true
}

var silentDeeds = []byte(written((*codec).deeds, silence))

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
	switch {
	case c.reading:
		t.tallies = new(tallies)
		c.tallies(t.tallies)
	case t.tallies != nil:
		c.tallies(t.tallies)
	default:
		c.stored(t.lies)
	}
	list(c, &t.words, number[uint32])
	number(c, &t.last)
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
	number(c, &s.scale)
}
