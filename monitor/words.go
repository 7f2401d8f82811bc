package monitor

import (
	"cmp"
	"slices"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

// maxWordsOf bounds the words kept of one task.
const maxWordsOf = 48

// taskWords are the words of a task that can tell what it is about, as hashes
// of their first letters, sorted.
func taskWords(out []uint32, task []byte) []uint32 {
	for t := range tokens(task) {
		out = stems(out, t)
		if len(out) >= 4*maxWordsOf {
			break
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxWordsOf)]
}

// stems cuts a token into runs of letters, each to its first letters: a stem
// that serves well enough to compare words with words.
func stems(out []uint32, t []byte) []uint32 {
	for i := 0; i < len(t); {
		for i < len(t) && !letter(t[i]) {
			i++
		}
		from := i
		for i < len(t) && letter(t[i]) {
			i++
		}
		if n := i - from; n >= 3 && n <= 24 {
			w := t[from:i]
			if common(w) {
				continue
			}
			h := uint32(2166136261)
			for _, c := range w[:min(n, 5)] {
				h = (h ^ uint32(lower(c))) * 16777619
			}
			out = append(out, h)
		}
	}
	return out
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80 }

// common reports whether a word says nothing of what a task is about.
func common(w []byte) bool {
	switch string(w) {
	case "the", "and", "for", "with", "that", "this", "you", "your", "please", "can", "are", "was", "were", "have", "has", "had",
		"from", "into", "not", "but", "all", "any", "its", "his", "her", "him", "she", "they", "them", "their", "then", "than",
		"will", "would", "should", "could", "what", "which", "who", "when", "where", "how", "there", "here", "also", "about", "our",
		"out", "only", "some", "one", "two", "get", "set", "given", "should've", "need", "want", "like", "just", "via", "www", "com", "org", "net", "edu", "http", "https", "html", "gmail", "mail", "pdf", "txt", "using", "use":
		return true
	}
	return false
}

func (b *baseline) learnWords(t *template, words []uint32) {
	if slices.Equal(t.words, words) {
		return
	}
	for _, w := range t.words {
		if b.words[w]--; b.words[w] == 0 {
			delete(b.words, w)
		}
	}
	t.words = slices.Clone(words)
	for _, w := range t.words {
		b.words[w]++
	}
}

// rarity is how much a word tells, in bits.
func (w view) rarity(word uint32) fixed {
	df := uint64(w.b.words[word])
	if w.without != nil && df > 0 {
		if _, ok := slices.BinarySearch(w.without.words, word); ok {
			df--
		}
	}
	return surprise(2*df+1, 2*uint64(len(w.b.templates))+2, maxSurprise)
}

// A likeness is how much one job's task is like a run's, squared.
type likeness struct {
	of    *template
	s2    uint64 // 16 fractional bits
	tools map[toolID]uint32
}

// mostAlike bounds the jobs that a task is compared with, once it is known how
// alike they are.
const mostAlike = 4

// alike are the jobs whose tasks share words with the run's, most alike first.
// They are kept with the run until the baseline learns again.
func (r *run) alikeOf(b *baseline) []likeness {
	if len(r.votes.words) == 0 {
		return nil
	}
	if r.alikeAt == b.learned+1 {
		return r.alike
	}
	r.alikeAt, r.alike = b.learned+1, r.alike[:0]
	w := view{b: b}
	var all fixed
	rarity := r.rarity[:0]
	for _, x := range r.votes.words {
		rarity = append(rarity, w.rarity(x))
		all += rarity[len(rarity)-1]
	}
	r.rarity = rarity
	if all == 0 {
		return nil
	}
	for _, t := range b.templates {
		var s fixed
		for i, j := 0, 0; i < len(r.votes.words) && j < len(t.words); {
			switch x, y := r.votes.words[i], t.words[j]; {
			case x < y:
				i++
			case x > y:
				j++
			default:
				s += rarity[i]
				i, j = i+1, j+1
			}
		}
		s = s * one / all
		if s2 := uint64(mul(s, s)) * 4; s2 > 0 && t.runs > 0 {
			r.alike = append(r.alike, likeness{of: t, s2: s2})
		}
	}
	slices.SortFunc(r.alike, func(x, y likeness) int { return cmp.Or(cmp.Compare(y.s2, x.s2), cmp.Compare(x.of.bit, y.of.bit)) })
	r.alike = r.alike[:min(len(r.alike), mostAlike)]
	for i, l := range r.alike {
		n := l.of.tallies
		if n == nil {
			n = b.stored(l.of)
		}
		r.alike[i].tools = n.tools
	}
	return r.alike
}

// similarSurprise is how unusual a tool is for tasks whose words are like this
// one's: P = (Σ s²·rate + P_agent·1/4) / (Σ s² + 1/4).
func (w view) similarSurprise(r *run, tool toolID) fixed {
	pc, pn := w.counts(tool)
	num := uint64(one) / 4 * (2*pc + 1) / (2 * (pn + 1))
	den := uint64(one) / 4
	for _, l := range r.alikeOf(w.b) {
		if l.of == w.without {
			continue
		}
		den += l.s2
		num += l.s2 * uint64(l.tools[tool]) / uint64(max(l.of.runs, 1))
	}
	return surprise(max(num, 1), den, maxSurprise)
}

// A trait is what the fleet's declaration says of a tool, and its name.
type trait struct {
	tool       toolID
	reads      bool     // declared so by the service that serves it
	name, desc []uint32 // words
}

// trait is that of what counts as one tool: of memory the operation without its
// key.
func (m *Model) trait(a schemas.Action) *trait {
	if a.Verb == schemas.VerbMemory {
		a.Resource, _, _ = strings.Cut(a.Resource, ".")
	}
	if t := m.traits[a]; t != nil {
		return t
	}
	t := &trait{tool: toolNamed(a), name: taskWords(nil, []byte(a.Resource))}
	if svc := m.fleet.Agents[m.fleet.Route(a)]; svc != nil {
		t.desc = taskWords(nil, []byte(svc.Tools[a.Resource].Description))
		t.reads = svc.Tools[a.Resource].Class == "read"
	}
	if len(m.traits) >= maxTraits {
		clear(m.traits)
	}
	m.traits[a] = t
	return t
}

const maxTraits = 4096

// mismatch is how little the task's words speak of a tool: of its name, and of
// its description.
func (t *trait) mismatch(r *run) (name, desc fixed) {
	return unshared(t.name, r.votes.words, 2), unshared(t.desc, r.votes.words, 3)
}

func unshared(of, words []uint32, most int) fixed {
	if len(of) == 0 {
		return one
	}
	hits := 0
	for _, x := range of {
		if _, ok := slices.BinarySearch(words, x); ok {
			hits++
		}
	}
	return one - fixed(min(hits, most))*one/fixed(min(most, len(of)))
}

// strangeness is how little a value's words are those of a task: 1 where none
// of them stands there, or where it has none.
func (m *Model) strangeness(task []uint32, value []byte) fixed {
	m.stems = stems(m.stems[:0], value)
	if len(m.stems) == 0 {
		return one
	}
	hits := 0
	for _, x := range m.stems {
		if _, ok := slices.BinarySearch(task, x); ok {
			hits++
		}
	}
	return one - fixed(hits)*one/fixed(len(m.stems))
}
