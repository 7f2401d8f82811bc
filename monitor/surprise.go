package monitor

import (
	"math/bits"
	"slices"
)

// The rarities below are −log2 of how often harmless runs did the like, with
// half a run added (Krichevsky–Trofimov) so that nothing is impossible, and
// shrunk from the job to the agent where both know something. A view without a
// template leaves that template's part out of the agent's.

// less leaves a part out of a count. Parts are kept within tighter bounds than
// wholes, and wholes are halved: the difference is 0 at least.
func less(all, part uint32) uint64 { return uint64(all) - uint64(min(all, part)) }

func part[K comparable](w view, of func(*template) map[K]uint32, k K) uint32 {
	if w.without == nil {
		return 0
	}
	return of(w.without)[k]
}

func toolsIn(t *template) map[toolID]uint32 { return t.tools }

// counts are in how many runs of the agent a tool was used, and how many there
// were.
func (w view) counts(tool toolID) (c, n uint64) {
	runs := uint32(0)
	if w.without != nil {
		runs = w.without.runs
	}
	return less(w.b.tools[tool].n, part(w, toolsIn, tool)), less(w.b.runs, runs)
}

// seen is a tool as the agent's statistics know it: one that it never used
// counts as any first of its verb. Who writes under another name each week has
// used many of those.
func (w view) seen(tool toolID) toolID {
	if c, _ := w.counts(tool); c == 0 {
		return tool.first()
	}
	return tool
}

// acted is how many runs were learned in which the agent itself acted, and did
// not only answer.
func (b *baseline) acted() uint32 {
	answers := uint32(0)
	if t := b.templates[answerJob]; t != nil {
		answers = t.runs
	}
	return b.runs - min(answers, b.runs)
}

// toolSurprise shrinks from the job's runs to the agent's:
// P = (c_job + 3·P_agent)/(n_job + 3), P_agent = (c + ½)/(n + 1).
func (w view) toolSurprise(tool toolID) fixed {
	c, n := w.counts(tool)
	ct, nt := w.t.counts(tool)
	return surprise(ct*2*(n+1)+3*(2*c+1), 2*(n+1)*(nt+3), maxSurprise)
}

// knownRuns is from how many runs on a job counts as known.
const knownRuns = 3

// newToolSurprise is how rare it is that a run of a known job uses this tool
// though no run of the job did before. Some tools are used on a whim: they are
// less of a surprise. One that is new to the agent is as rare as such tools are
// among those of its verb: who writes under another name each week does so again.
func (w view) newToolSurprise(tool toolID) fixed {
	if w.t == nil || w.t.runs < knownRuns || w.t.tools[tool] > 0 {
		return 0
	}
	k := w.b.newTools[tool]
	if w.b.tools[tool].n == 0 {
		k = w.b.newcomers[tool.action().Verb]
	}
	return surprise(2*uint64(k)+1, 2*uint64(w.b.mature)+2, maxSurprise)
}

// outsideSurprise is how rare it is that a run uses this tool though its
// capability does not grant it: agents try some on a whim.
func (w view) outsideSurprise(tool toolID) fixed {
	return surprise(2*uint64(w.b.outside[tool])+1, 2*uint64(w.b.runs)+2, maxSurprise)
}

// pairSurprise is Witten–Bell for the agent, then the same shrink to the job:
// P = (c(prev,tool) + T·P(tool))/(c(prev) + T), T the number of different tools
// seen after prev.
func (w view) pairSurprise(p pair) fixed {
	f := w.b.follows[p.prev]
	cp := less(w.b.pairs[p].n, part(w, func(t *template) map[pair]uint32 { return t.pairs }, p))
	np := less(f.n, part(w, func(t *template) map[toolID]uint32 { return t.follows }, p.prev))
	c := less(w.b.tools[p.tool].n, part(w, toolsIn, p.tool))
	num, den := 2*c+1, 2*uint64(w.b.votes)+uint64(len(w.b.tools))+1
	if n := np + uint64(f.distinct); n > 0 {
		num, den = cp*den+uint64(f.distinct)*num, n*den
	}
	ct, nt := w.t.pairCounts(p)
	return surprise(ct*den+3*num, (nt+3)*den, maxSurprise)
}

// maxBeside bounds the tools of a run that one is held against: the newest.
const maxBeside = 4

// togetherSurprise is how rare a tool is in runs that used one of the others
// that this run used: the one that it goes with best.
func (w view) togetherSurprise(r *run, tool toolID) fixed {
	c, n := w.counts(tool)
	least := surprise(2*c+1, 2*(n+1), maxSurprise)
	own := part(w, toolsIn, tool)
	for _, u := range r.votes.tools[max(len(r.votes.tools)-maxBeside, 0):] {
		if u = w.seen(u); u == tool {
			continue
		}
		cu, _ := w.counts(u)
		both := less(w.b.together[pairOf(u, tool)], min(part(w, toolsIn, u), own))
		least = min(least, surprise(both*2*(n+1)+2*c+1, (cu+1)*2*(n+1), maxSurprise))
	}
	return least
}

func pairOf(a, b toolID) pair {
	if x, y := a.action(), b.action(); x.Verb > y.Verb || x.Verb == y.Verb && x.Resource > y.Resource {
		a, b = b, a
	}
	return pair{a, b}
}

// repeatSurprise is how rare it is that a run which used a tool so often uses
// it once more.
func (w view) repeatSurprise(r *run, tool toolID) fixed {
	k := min(r.votes.used(tool), maxTimes-1)
	if k == 0 {
		return 0
	}
	more, before := repeat{tool, k + 1}, repeat{tool, k}
	times := func(t *template) map[repeat]uint32 { return t.times }
	c, n := less(w.b.times[more], part(w, times, more)), less(w.b.times[before], part(w, times, before))
	var ct, nt uint64
	if w.t != nil {
		ct, nt = uint64(w.t.times[more]), uint64(w.t.times[before])
	}
	return surprise(ct*2*(n+1)+2*(2*c+1), (nt+2)*2*(n+1), maxSurprise)
}

// A shape is a tool with the names of the arguments that it was given.
type shape struct {
	tool toolID
	keys uint64
}

// shapeSurprise is how rare it is that a run which uses a tool gives it just
// these arguments: whoever is told to make an entry fills in other fields than
// one who has read what belongs there. A tool new to the agent has no usual ones.
func (w view) shapeSurprise(s shape) fixed {
	n := less(w.b.tools[s.tool].n, part(w, toolsIn, s.tool))
	if n == 0 || s.keys == 0 {
		return 0
	}
	c := less(w.b.shapes[s], part(w, func(t *template) map[shape]uint32 { return t.shapes }, s))
	var ct, nt uint64
	if w.t != nil {
		ct, nt = uint64(w.t.shapes[s]), uint64(w.t.tools[s.tool])
	}
	return surprise(ct*2*(n+1)+2*(2*c+1), (nt+2)*2*(n+1), maxSurprise)
}

// flowSurprise is how rare it is for a place to be filled with what that tool
// brought: shrunk from job to agent to all places of the kind.
func (w view) flowSurprise(p place, root toolID) fixed {
	root = w.seen(root)
	flows, filled := func(t *template) map[flow]uint32 { return t.flows }, func(t *template) map[place]uint32 { return t.filled }
	f, any := flow{p, root}, flow{place{kind: p.kind}, root}
	ck, nk := less(w.b.flows[any], part(w, flows, any)), less(w.b.filled[any.place], part(w, filled, any.place))
	c, n := less(w.b.flows[f], part(w, flows, f)), less(w.b.filled[p], part(w, filled, p))
	var ct, nt uint64
	if w.t != nil {
		ct, nt = uint64(w.t.flows[f]), uint64(w.t.filled[p])
	}
	num, den := 2*ck+1, 2*(nk+1)
	num, den = c*den+num, (n+1)*den
	return surprise(ct*den+num, (nt+1)*den, maxSurprise)
}

// A slot counts the runs that filled a place, and those that filled it with an
// unknown value that an output had brought: in runs of jobs that were known,
// and in all runs as if their job were new.
type slot struct{ known, new innovations }

type innovations struct{ n, tainted uint32 }

func (x *innovations) count(tainted bool) {
	x.n++
	if tainted {
		x.tainted++
	}
}

func (x innovations) half() innovations { return innovations{x.n / 2, x.tainted / 2} }

// of is the part of a slot that a view compares with.
func (s slot) of(w view) innovations {
	if w.t != nil && w.t.runs >= knownRuns {
		return s.known
	}
	return s.new
}

// innovation is how rare it is that a place is filled with an unknown value
// from an output, shrunk to all places of its kind.
func (w view) innovation(p place) fixed {
	x, k := w.b.slots[p].of(w), w.b.slots[place{kind: p.kind}].of(w)
	return surprise(uint64(x.tainted)*2*(uint64(k.n)+1)+2*uint64(k.tainted)+1, (uint64(x.n)+1)*2*(uint64(k.n)+1), maxSurprise)
}

func (w view) mask(templates uint64) uint64 {
	if w.without != nil {
		templates &^= 1 << w.without.bit
	}
	return templates
}

// trusts reports whether a value is known that was used in these templates: in
// this one, or in two others: one job alone can teach no other.
func (w view) trusts(templates uint64) bool {
	mask := w.mask(templates)
	return w.t != nil && mask>>w.t.bit&1 == 1 || bits.OnesCount64(mask) >= 2
}

func (v *votes) used(tool toolID) uint8 {
	if i := slices.Index(v.tools, tool); i >= 0 {
		return v.times[i]
	}
	return 0
}

// learnSlots counts what in a run was new, before it is learned.
func (b *baseline) learnSlots(t *template, v *votes) {
	known := t.runs >= knownRuns
	if known {
		b.mature++
		var verbs []string // that the run used a newcomer of
		for _, tool := range v.tools {
			if t.tools[tool] == 0 {
				add(b.newTools, tool, maxTools)
			}
			if b.tools[tool].n == 0 && !slices.Contains(verbs, tool.action().Verb) {
				verbs = append(verbs, tool.action().Verb)
				add(b.newcomers, tool.action().Verb, maxTools)
			}
		}
	}
	for i, u := range v.uses {
		if slices.ContainsFunc(v.uses[:i], func(o useOf) bool { return o.place == u.place }) {
			continue // the run's one vote on this place
		}
		var tainted, taintedNew bool
		for _, o := range v.uses[i:] {
			if o.place == u.place && o.how == fromOutput {
				tainted, taintedNew = tainted || o.unknown, taintedNew || o.unknownNew
			}
		}
		for _, p := range (view{b: b}).places(u.place) {
			x, ok := b.slots[p]
			if !ok && len(b.slots) >= maxPlaces {
				continue
			}
			if known {
				x.known.count(tainted)
			}
			if b.runs >= minPooled { // before, nearly all is unknown
				x.new.count(taintedNew)
			}
			b.slots[p] = x
		}
	}
}

// places are under which a value counts: its own, that of all tools of its
// kind, and where the tool is new to the agent, that of the firsts of its verb.
func (w view) places(p place) []place {
	out := [3]place{p, {kind: p.kind}, {w.seen(p.tool), p.kind}}
	if out[2] == p {
		return out[:2]
	}
	return out[:]
}

// learnFlows counts, once for each, from where a run's values came.
func (b *baseline) learnFlows(t *template, v *votes) {
	var done []flow
	before := view{b: b}
	for _, u := range v.uses {
		for _, p := range before.places(u.place) {
			f := flow{p, before.seen(u.root)}
			if slices.Contains(done, f) {
				continue
			}
			done = append(done, f)
			add(b.flows, f, maxFlows)
			add(b.filled, p, maxPlaces)
			add(t.flows, f, maxFlows/8)
			add(t.filled, p, maxPlaces/8)
		}
	}
}

// learnTimes counts how often a run used each tool.
func (b *baseline) learnTimes(t *template, v *votes) {
	for i, x := range v.tools {
		for k := uint8(1); k <= v.times[i]; k++ {
			add(b.times, repeat{x, k}, maxRepeats)
			add(t.times, repeat{x, k}, maxRepeats/8)
		}
	}
}
