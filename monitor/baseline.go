package monitor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of what is kept for one agent. What is over a bound is forgotten,
// least recently learned first.
const (
	maxTemplates = 64   // jobs of one agent: the bits of a known value's mask
	maxTools     = 256  // tools of one agent
	maxPairs     = 512  // pairs of tools, of one agent
	maxJobTools  = 64   // tools of one template
	maxJobPairs  = 256  // pairs of one template
	maxPlaces    = 512  // places (a tool and a kind) of one agent
	maxKnown     = 4096 // values of one agent, and values in places
	maxRuns      = 4096 // learned runs; from there all counts are halved
)

// id names a value, or a value in a place: the first half of a SHA-256, so that
// nobody can craft an unknown value that passes for a known one.
type id struct{ hi, lo uint64 }

func idOf(text []byte) id {
	sum := sha256.Sum256(text)
	return id{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

func (a id) compare(b id) int {
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
}

// A place is where a value stands: an argument of a tool.
type place struct {
	tool schemas.Action
	kind string
}

type pair struct{ prev, tool schemas.Action }

// count is a number of runs, with the learning that last changed it.
type count struct {
	n    uint32
	last uint64
}

// A baseline is what one agent does: owned by the Model, changed by learn alone.
type baseline struct {
	runs      uint32
	votes     uint32 // sum over tools
	tools     map[schemas.Action]count
	pairs     map[pair]count
	follows   map[schemas.Action]following
	templates map[string]*template
	taken     uint64 // bits of the masks that templates hold
	known     map[id]knowledge
	places    map[place]usage
	used      map[id]count // a value in a place
	learned   uint64       // runs learned ever: orders what is forgotten
}

// following says what came after a tool.
type following struct{ n, distinct uint32 }

// knowledge is in which templates a value was used.
type knowledge struct {
	templates uint64
	last      uint64
}

// usage is how often a place was filled, and with how many different values.
type usage struct {
	n, distinct uint32
	last        uint64
}

// A template is the same for one job.
type template struct {
	bit     int
	runs    uint32
	tools   map[schemas.Action]uint32
	pairs   map[pair]uint32
	follows map[schemas.Action]uint32
	last    uint64
}

func newBaseline() *baseline {
	return &baseline{
		tools: map[schemas.Action]count{}, pairs: map[pair]count{}, follows: map[schemas.Action]following{},
		templates: map[string]*template{}, known: map[id]knowledge{}, places: map[place]usage{}, used: map[id]count{},
	}
}

// toolSurprise shrinks from the job's runs to the agent's:
// P = (c_job + 3·P_agent)/(n_job + 3), P_agent = (c + ½)/(n + 1).
func (b *baseline) toolSurprise(t *template, tool schemas.Action) fixed {
	c, n := uint64(b.tools[tool].n), uint64(b.runs)
	ct, nt := t.counts(tool)
	return surprise(ct*2*(n+1)+3*(2*c+1), 2*(n+1)*(nt+3), maxSurprise)
}

// pairSurprise is Witten–Bell for the agent, then the same shrink to the job:
// P = (c(prev,tool) + T·P(tool))/(c(prev) + T), T the number of different tools
// seen after prev.
func (b *baseline) pairSurprise(t *template, p pair) fixed {
	f := b.follows[p.prev]
	num, den := 2*uint64(b.tools[p.tool].n)+1, 2*uint64(b.votes)+uint64(len(b.tools))+1
	if n := uint64(f.n + f.distinct); n > 0 {
		num, den = uint64(b.pairs[p].n)*den+uint64(f.distinct)*num, n*den
	}
	ct, nt := t.pairCounts(p)
	return surprise(ct*den+3*num, (nt+3)*den, maxSurprise)
}

// slotNovelty is 1 − log2((distinct + ½)/(n + 1)) for a value that was never
// used in a place, and 0 for one that was.
func (b *baseline) slotNovelty(p place, value id) (bits fixed, u usage) {
	u = b.places[p]
	if _, used := b.used[value]; used {
		return 0, u
	}
	return min(one+surprise(2*uint64(u.distinct)+1, 2*(uint64(u.n)+1), maxSurprise), maxSurprise), u
}

// isKnown reports whether a value was used in this template, or in two others:
// one job alone can teach no other.
func (b *baseline) isKnown(t *template, value id) bool {
	mask := b.known[value].templates
	return t != nil && mask>>t.bit&1 == 1 || bits.OnesCount64(mask) >= 2
}

func (t *template) counts(tool schemas.Action) (c, n uint64) {
	if t == nil {
		return 0, 0
	}
	return uint64(t.tools[tool]), uint64(t.runs)
}

func (t *template) pairCounts(p pair) (c, n uint64) {
	if t == nil {
		return 0, 0
	}
	return uint64(t.pairs[p]), uint64(t.follows[p.prev])
}

// A useOf is a value in a place, as a run used it.
type useOf struct {
	place  place
	inside id // the value in its place
	value  id
	domain id // zero where it has none
}

// learn takes the vote of one run: each tool, pair and value in it counts once.
func (b *baseline) learn(job string, v *votes) {
	b.learned++
	t := b.template(job)
	b.runs, t.runs = b.runs+1, t.runs+1
	for _, tool := range v.tools {
		if c, ok := b.tools[tool]; ok || len(b.tools) < maxTools {
			b.tools[tool] = count{c.n + 1, b.learned}
			b.votes++
			add(t.tools, tool, maxJobTools)
		}
	}
	for _, p := range v.pairs {
		b.learnPair(t, p)
	}
	b.sign(t, v.uses)
	if b.runs >= maxRuns {
		b.halve()
	}
}

func (b *baseline) learnPair(t *template, p pair) {
	c, ok := b.pairs[p]
	if !ok && len(b.pairs) >= maxPairs {
		return
	}
	b.pairs[p] = count{c.n + 1, b.learned}
	f := b.follows[p.prev]
	f.n++
	if !ok {
		f.distinct++
	}
	b.follows[p.prev] = f
	add(t.pairs, p, maxJobPairs)
	add(t.follows, p.prev, maxJobTools)
}

// add counts one, if there is room for it.
func add[K comparable](m map[K]uint32, k K, most int) {
	if n, ok := m[k]; ok || len(m) < most {
		m[k] = n + 1
	}
}

// sign makes values known to a template.
func (b *baseline) sign(t *template, uses []useOf) {
	for _, u := range uses {
		b.know(t, u.value)
		if u.domain != (id{}) {
			b.know(t, u.domain)
		}
		old := b.places[u.place]
		_, again := b.used[u.inside]
		b.used[u.inside] = count{1, b.learned}
		old.n, old.last = old.n+1, b.learned
		if !again {
			old.distinct++
		}
		b.places[u.place] = old
	}
	forget(b.known, maxKnown, func(k knowledge) uint64 { return k.last }, id.compare)
	forget(b.used, maxKnown, func(c count) uint64 { return c.last }, id.compare)
	forget(b.places, maxPlaces, func(u usage) uint64 { return u.last }, place.compare)
}

func (b *baseline) know(t *template, value id) {
	k := b.known[value]
	b.known[value] = knowledge{k.templates | 1<<t.bit, b.learned}
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.tool.Verb, q.tool.Verb), cmp.Compare(p.tool.Resource, q.tool.Resource), cmp.Compare(p.kind, q.kind))
}

// forget brings a map that grew over its bound down to seven eighths of it,
// least recently learned first, by key among equals: never by map order.
func forget[K comparable, V any](m map[K]V, most int, age func(V) uint64, compare func(a, b K) int) {
	if len(m) <= most {
		return
	}
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b K) int { return cmp.Or(cmp.Compare(age(m[a]), age(m[b])), compare(a, b)) })
	for _, k := range keys[:len(m)-most*7/8] {
		delete(m, k)
	}
}

// template finds a job's template, or makes one in the place of the one that
// was not learned for longest.
func (b *baseline) template(job string) *template {
	t := b.templates[job]
	if t == nil {
		if len(b.templates) == maxTemplates {
			b.forgetTemplate()
		}
		t = &template{bit: bits.TrailingZeros64(^b.taken), tools: map[schemas.Action]uint32{},
			pairs: map[pair]uint32{}, follows: map[schemas.Action]uint32{}}
		b.taken |= 1 << t.bit
		b.templates[job] = t
	}
	t.last = b.learned
	return t
}

func (b *baseline) forgetTemplate() {
	oldest := ""
	for job, t := range b.templates { // each has learned at another time
		if oldest == "" || t.last < b.templates[oldest].last {
			oldest = job
		}
	}
	bit := uint64(1) << b.templates[oldest].bit
	delete(b.templates, oldest)
	b.taken &^= bit
	for value, k := range b.known {
		if k.templates &^= bit; k.templates == 0 {
			delete(b.known, value)
		} else {
			b.known[value] = k
		}
	}
}

// halve makes what is long past weigh less, and keeps counts bounded.
func (b *baseline) halve() {
	b.runs /= 2
	b.votes = 0
	for tool, c := range b.tools {
		c.n /= 2
		b.votes += c.n
		if b.tools[tool] = c; c.n == 0 {
			delete(b.tools, tool)
		}
	}
	b.follows = map[schemas.Action]following{}
	for p, c := range b.pairs {
		if c.n /= 2; c.n == 0 {
			delete(b.pairs, p)
			continue
		}
		b.pairs[p] = c
		f := b.follows[p.prev]
		b.follows[p.prev] = following{f.n + c.n, f.distinct + 1}
	}
	for p, u := range b.places {
		u.n, u.distinct = (u.n+1)/2, (u.distinct+1)/2
		b.places[p] = u
	}
	for _, t := range b.templates {
		t.runs /= 2
		for _, m := range []map[schemas.Action]uint32{t.tools, t.follows} {
			halveCounts(m)
		}
		halveCounts(t.pairs)
	}
}

func halveCounts[K comparable](m map[K]uint32) {
	for k, n := range m {
		if m[k] = n / 2; n < 2 {
			delete(m, k)
		}
	}
}

// A votes is one run's vote: distinct tools, pairs and values, in the order of
// their first use.
type votes struct {
	tools []schemas.Action
	pairs []pair
	uses  []useOf
}

// Bounds of one run's vote.
const (
	maxVoteTools = 64
	maxVotePairs = 128
	maxVoteUses  = 256
)

func (v *votes) add(tool, prev schemas.Action, uses []useOf) {
	if !slices.Contains(v.tools, tool) && len(v.tools) < maxVoteTools {
		v.tools = append(v.tools, tool)
	}
	if p := (pair{prev, tool}); !slices.Contains(v.pairs, p) && len(v.pairs) < maxVotePairs {
		v.pairs = append(v.pairs, p)
	}
	for _, u := range uses {
		if len(v.uses) < maxVoteUses && !slices.ContainsFunc(v.uses, func(o useOf) bool { return o.inside == u.inside }) {
			v.uses = append(v.uses, u)
		}
	}
}

// inText reports whether a value stands in a text as words of its own; both
// are normalised.
func inText(text, value []byte) bool {
	for from := 0; len(value) > 0; {
		i := bytes.Index(text[from:], value)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(value)
		if (start == 0 || !alphanumeric(text[start-1])) && (end == len(text) || !alphanumeric(text[end])) {
			return true
		}
		from = start + 1
	}
	return false
}

func alphanumeric(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
