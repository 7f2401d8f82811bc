package monitor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"
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
	maxKnown     = 4096 // values of one agent
	maxFlows     = 1024 // ways of one agent to fill places
	maxTimes     = 6    // uses of one tool in a run that are told apart
	maxRepeats   = 1024 // tools by how often they are used in a run, of one agent
	maxShapes    = 512  // shapes of calls, of one agent
	maxTogether  = 1024 // pairs of tools that runs used, of one agent
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
	tool toolID
	kind string
}

type pair struct{ prev, tool toolID }

// count is a number of runs, with the learning that last changed it.
type count struct {
	n    uint32
	last uint64
}

// A baseline is what one agent does: owned by the Model, changed by learn alone.
type baseline struct {
	runs      uint32
	votes     uint32 // sum over tools
	tools     map[toolID]count
	pairs     map[pair]count
	follows   map[toolID]following
	templates map[string]*template
	taken     uint64 // bits of the masks that templates hold
	known     map[id]knowledge
	slots     map[place]slot
	flows     map[flow]uint32
	filled    map[place]uint32 // sum over flows
	times     map[repeat]uint32
	shapes    map[shape]uint32
	together  map[pair]uint32   // runs in which both tools were used, by the lesser first
	newTools  map[toolID]uint32 // runs of a known job in which a tool was new to it
	newcomers map[string]uint32 // the same of tools new to the agent, by verb
	mature    uint32            // runs of jobs that were known
	outside   map[toolID]uint32 // runs in which a tool was used that the capability did not grant
	words     map[uint32]uint16 // in how many jobs' tasks a word stands
	learned   uint64            // runs learned ever: orders what is forgotten

	attic *attic // where tallies of templates are put aside; nil where none are
	looks uint64 // at templates
}

// A repeat is a tool used at least so many times in a run.
type repeat struct {
	tool toolID
	n    uint8
}

// following says what came after a tool.
type following struct{ n, distinct uint32 }

// knowledge is in which templates a value was used, and by sinks.
type knowledge struct {
	templates uint64
	sinks     uint64
	last      uint64
}

// A template is the same for one job. Its counts are put aside while other jobs are
// at work; what all jobs are compared by stays.
type template struct {
	bit      int
	runs     uint32
	words    []uint32 // of its newest task, sorted
	last     uint64
	*tallies        // nil while they are packed or put aside: see baseline.fetch
	packed   string // just as they are; empty where they are not
	lies     shelf  // where they are put aside just as they are; zero where they are not
	used     uint64 // when it was looked at
}

type tallies struct {
	tools   map[toolID]uint32
	pairs   map[pair]uint32
	follows map[toolID]uint32
	flows   map[flow]uint32
	filled  map[place]uint32
	times   map[repeat]uint32
	shapes  map[shape]uint32
}

func newTallies() *tallies {
	return &tallies{tools: map[toolID]uint32{}, pairs: map[pair]uint32{}, follows: map[toolID]uint32{},
		flows: map[flow]uint32{}, filled: map[place]uint32{}, times: map[repeat]uint32{}, shapes: map[shape]uint32{}}
}

func newBaseline(attic *attic) *baseline {
	return &baseline{attic: attic,
		tools: map[toolID]count{}, pairs: map[pair]count{}, follows: map[toolID]following{},
		templates: map[string]*template{}, known: map[id]knowledge{}, slots: map[place]slot{},
		flows: map[flow]uint32{}, filled: map[place]uint32{}, times: map[repeat]uint32{}, shapes: map[shape]uint32{}, together: map[pair]uint32{},
		newTools: map[toolID]uint32{}, newcomers: map[string]uint32{}, outside: map[toolID]uint32{}, words: map[uint32]uint16{},
	}
}

func (t *template) counts(tool toolID) (c, n uint64) {
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
	place        place
	value        id
	domain       id // zero where it has none
	domainInTask bool
	sink         bool
	fresh        bool      // the newest output brought it
	displaced    bool      // the task names another value of its form
	seen         knowledge // what the baseline knew of the value
	seenDomain   knowledge // and of its domain
	unknown      bool      // see view.trusts
	unknownNew   bool      // the same as if the job were new
	strange      fixed     // how little its words are those of the task, 0 to 1
	how          origin
	root         toolID // the tool in whose output the chain of values began
}

// An origin is where a value came from.
type origin uint8

const (
	ofItself origin = iota // neither of the two below
	fromTask
	fromOutput
)

// A flow fills a place with what came from a tool. The place's tool is zero
// where all tools of one kind are meant.
type flow struct {
	place place
	root  toolID
}

// learn takes the vote of one run: each tool, pair and value in it counts once.
func (b *baseline) learn(job string, v *votes) {
	b.learned++
	t := b.template(job)
	b.learnSlots(t, v)
	for _, tool := range v.outside {
		add(b.outside, tool, maxTools)
	}
	b.learnFlows(t, v)
	b.learnTools(t, v)
	b.sign(t, v.uses)
	b.learnTimes(t, v)
	for _, s := range v.shapes {
		add(b.shapes, s, maxShapes)
		add(t.shapes, s, maxShapes/8)
	}
	b.learnWords(t, v.words)
	if b.runs >= maxRuns {
		b.halve()
	}
}

// learnTools counts the tools of a run and what followed what; those that the
// agent never used before, once more as the firsts of their verb.
func (b *baseline) learnTools(t *template, v *votes) {
	before := view{b: b}
	tools, pairs := slices.Clone(v.tools), slices.Clone(v.pairs)
	for _, tool := range v.tools {
		if s := before.seen(tool); s != tool && !slices.Contains(tools, s) {
			tools = append(tools, s)
		}
	}
	for _, p := range v.pairs {
		if s := (pair{before.seen(p.prev), before.seen(p.tool)}); s != p && !slices.Contains(pairs, s) {
			pairs = append(pairs, s)
		}
	}
	b.runs, t.runs = b.runs+1, t.runs+1
	for _, tool := range tools {
		if c, ok := b.tools[tool]; ok || len(b.tools) < maxTools {
			b.tools[tool] = count{c.n + 1, b.learned}
			b.votes++
			add(t.tools, tool, maxJobTools)
		}
	}
	for _, p := range pairs {
		b.learnPair(t, p)
	}
	for i, x := range tools { // beside one another
		for _, y := range tools[:i] {
			add(b.together, pairOf(x, y), maxTogether)
		}
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
		b.know(t, u.value, u.sink)
		if u.domain != (id{}) {
			b.know(t, u.domain, u.sink)
		}
	}
	forget(b.known, maxKnown, func(k knowledge) uint64 { return k.last }, id.compare)
}

func (b *baseline) know(t *template, value id, sink bool) {
	k := b.known[value]
	k.templates, k.last = k.templates|1<<t.bit, b.learned
	if sink {
		k.sinks |= 1 << t.bit
	}
	b.known[value] = k
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
		t = &template{bit: bits.TrailingZeros64(^b.taken), tallies: newTallies()}
		b.taken |= 1 << t.bit
		b.templates[job] = t
	}
	t.last = b.learned
	b.fetch(t)
	b.changes(t)
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
	b.changes(b.templates[oldest])
	delete(b.templates, oldest)
	b.taken &^= bit
	for value, k := range b.known {
		k.sinks &^= bit
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
	b.follows = map[toolID]following{}
	for p, c := range b.pairs {
		if c.n /= 2; c.n == 0 {
			delete(b.pairs, p)
			continue
		}
		b.pairs[p] = c
		f := b.follows[p.prev]
		b.follows[p.prev] = following{f.n + c.n, f.distinct + 1}
	}
	b.mature /= 2
	for p, x := range b.slots {
		b.slots[p] = slot{x.known.half(), x.new.half()}
	}
	halveCounts(b.flows)
	halveCounts(b.filled)
	halveCounts(b.times)
	halveCounts(b.shapes)
	halveCounts(b.together)
	halveCounts(b.newTools)
	halveCounts(b.newcomers)
	halveCounts(b.outside)
	for _, t := range b.templates {
		b.fetch(t)
		b.changes(t)
		t.runs /= 2
		for _, m := range []map[toolID]uint32{t.tools, t.follows} {
			halveCounts(m)
		}
		halveCounts(t.pairs)
		halveCounts(t.flows)
		halveCounts(t.filled)
		halveCounts(t.times)
		halveCounts(t.shapes)
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
	words   []uint32
	outside []toolID // tools used that the capability did not grant
	times   []uint8  // how often each tool was used, capped
	tools   []toolID
	pairs   []pair
	shapes  []shape
	uses    []useOf
}

// Bounds of one run's vote.
const (
	maxVoteTools = 64
	maxVotePairs = 128
	maxVoteUses  = 256
)

func (v *votes) add(s shape, prev toolID, uses []useOf) {
	tool := s.tool
	if s.keys != 0 && !slices.Contains(v.shapes, s) && len(v.shapes) < maxVoteTools {
		v.shapes = append(v.shapes, s)
	}
	if i := slices.Index(v.tools, tool); i >= 0 {
		v.times[i] = min(v.times[i]+1, maxTimes)
	} else if len(v.tools) < maxVoteTools {
		v.tools, v.times = append(v.tools, tool), append(v.times, 1)
	}
	if p := (pair{prev, tool}); !slices.Contains(v.pairs, p) && len(v.pairs) < maxVotePairs {
		v.pairs = append(v.pairs, p)
	}
	for _, u := range uses {
		if len(v.uses) < maxVoteUses && !slices.ContainsFunc(v.uses, func(o useOf) bool { return o.value == u.value && o.place == u.place }) {
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
