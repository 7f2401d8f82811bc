package monitor

import (
	"github.com/writ-sh/writ/schemas"
)

// Bounds of an evidence, in bits, and of a score. A few hundred runs can't tell
// what one in a hundred does from what none does, and one odd thing in a harmless
// run is not to weigh as much as several in a hijacked one.
const (
	maxSurprise       = 6 * one
	maxScore    fixed = 1 << 40
)

// An evidence is one thing that speaks for or against an action. All but
// evCredit are 0 or more, and speak against it.
type evidence uint8

const (
	evNewTool   evidence = iota // a tool new to a job that is known: how rare that is
	evTool                      // how unusual the tool is for the job and the agent
	evSimilar                   // the same for jobs whose tasks use like words
	evPair                      // how unusual it is after the tool before it
	evTogether                  // how unusual it is beside the tools that the run used
	evRepeat                    // how unusual it is to use it once more in a run
	evShape                     // how unusual the names of its arguments are
	evSlot                      // an unknown value that an output brought: how rare that is in this place
	evUnknown                   // a value that is neither in the task nor known
	evTainted                   // an unknown value that an output brought
	evRecipient                 // the same, where it says where something goes
	evUnused                    // a value that an output brought and that no sink used before
	evDisplaced                 // an unknown recipient, where the task names one of the same form
	evDomain                    // the unknown domain of a mail address, or host
	evFresh                     // a value that the newest output brought
	evOrigin                    // how unusual it is for this place to be filled from that tool
	evIntent                    // how little the task speaks of a tool that is new to the job
	evOutside                   // the capability does not grant it
	evRare                      // the same, by how rarely harmless runs did that
	evBeyond                    // the same, by how little the task's words speak of the tool
	evCredit                    // all values come from the task
	evidences
)

// evidenceIDs name the evidences in verdicts.
var evidenceIDs = [evidences]string{
	evNewTool: "new_tool", evTool: "tool", evSimilar: "similar", evPair: "bigram", evTogether: "together", evRepeat: "repeat", evShape: "shape",
	evSlot: "slot", evUnknown: "unknown", evTainted: idTainted, evRecipient: "recipient", evUnused: "unused",
	evDisplaced: "displaced", evDomain: idDomain, evFresh: idFresh, evOrigin: "origin", evIntent: "intent",
	evOutside: idOutside, evRare: "rare", evBeyond: idBeyond, evCredit: "credit",
}

// Ids of the factors that the fold itself reads, or others do.
const (
	idBase     = "base"
	idDomain   = "domain"
	idFresh    = "fresh"
	idOutside  = "outside"
	idRefusals = "refusals"
	idTainted  = "tainted"
	idBeyond   = "beyond"
)

// features are the evidences of one action, in bits, and which of its values
// each is about.
type features struct {
	x     [evidences]fixed
	value [evidences]uint8
}

// worst keeps an evidence's highest value: so that no number of harmless
// values weighs more than one.
func (f *features) worst(ev evidence, bits fixed, value int) {
	if bits > f.x[ev] {
		f.x[ev], f.value[ev] = bits, uint8(value)
	}
}

// A view is a baseline as one job sees it.
type view struct {
	b       *baseline
	t       *template // nil where the job is new, or is taken to be
	without *template // whose part is left out, to see it as if it were new
}

// features gathers the evidences of a sink.
func (m *Model) features(c *considered, w view, uses []useOf) (f features) {
	tool, prev := w.seen(c.tool), w.seen(c.prev)
	f.x[evTool] = w.toolSurprise(tool)
	f.x[evNewTool] = w.newToolSurprise(c.tool)
	f.x[evPair] = w.pairSurprise(pair{prev, tool})
	f.x[evShape] = w.shapeSurprise(c.shape)
	name := one
	if c.run != nil {
		f.x[evSimilar] = w.similarSurprise(c.run, tool)
		f.x[evTogether] = w.togetherSurprise(c.run, tool)
		f.x[evRepeat] = w.repeatSurprise(c.run, c.tool)
		var desc fixed
		name, desc = c.trait.mismatch(c.run)
		if n, _ := w.t.counts(c.tool); n == 0 {
			f.x[evIntent] = (2*name + desc) / 3
		}
	}
	if c.standing == outOfScope || c.standing == forbidden {
		f.x[evOutside] = one
		f.x[evRare] = w.outsideSurprise(c.tool)
		if n, _ := w.t.counts(c.tool); n == 0 {
			f.x[evBeyond] = name
		}
	}
	f.x[evCredit] = one
	for i := range uses {
		if uses[i].how != fromTask {
			f.x[evCredit] = 0
			f.useOf(w, tool, &uses[i], i)
		}
	}
	if len(uses) == 0 {
		f.x[evCredit] = 0
	}
	return f
}

// useOf takes the evidences of one value that is not in the task. The tool is as
// the statistics know it.
func (f *features) useOf(w view, tool toolID, u *useOf, i int) {
	p := place{tool, u.place.kind}
	if u.place.kind == overflow { // it could be anything
		for _, ev := range []evidence{evUnknown, evTainted, evRecipient, evUnused, evDomain, evFresh} {
			f.worst(ev, one, i)
		}
		f.worst(evSlot, w.innovation(p), i)
		return
	}
	if u.how == fromOutput {
		f.worst(evOrigin, w.flowSurprise(p, u.root), i)
		if !w.trusts(u.seen.sinks) {
			f.worst(evUnused, max(u.strange, one/4), i)
		}
		if u.fresh {
			f.worst(evFresh, one, i)
		}
	}
	if u.domain != (id{}) && !u.domainInTask && !w.trusts(u.seenDomain.templates) {
		f.worst(evDomain, one, i)
	}
	if w.trusts(u.seen.templates) {
		return
	}
	f.worst(evUnknown, u.strange, i)
	if u.displaced {
		f.worst(evDisplaced, one, i)
	}
	if u.how == fromOutput {
		f.worst(evSlot, mul(u.strange, w.innovation(p)), i)
		f.worst(evTainted, u.strange, i)
		if destination(u.place.kind) {
			f.worst(evRecipient, u.strange, i)
		}
	}
}

// destination reports whether a kind says where something goes.
func destination(kind string) bool {
	switch kind {
	case "to", "url", "user", "chan", "account", "repo", "from":
		return true
	}
	return false
}

// explain says what an evidence observed, and what it would have expected.
func (m *Model) explain(c *considered, w view, f *features, uses []useOf, ev evidence, x *schemas.Factor) {
	b := w.b
	switch ev {
	case evNewTool:
		x.Support, x.Observed = int(b.mature), c.tool.String()
		x.Expected = m.say("new to its job in ", uint64(b.newTools[c.tool]), " of ", uint64(b.mature), " runs")
	case evTool, evSimilar:
		tool := w.seen(c.tool)
		ct, nt := w.t.counts(tool)
		x.Support, x.Observed = int(nt), c.tool.String()
		if tool != c.tool {
			x.Observed = m.say(x.Observed, ", the first of its name")
		}
		x.Expected = m.say("in ", ct, " of ", nt, " runs of the job, ", uint64(b.tools[tool].n), " of ", uint64(b.runs), " of the agent")
	case evPair:
		p := pair{w.seen(c.prev), w.seen(c.tool)}
		fl := b.follows[p.prev]
		x.Observed = "as the first action"
		if c.prev != (toolID{}) {
			x.Observed = "after " + c.prev.String()
		}
		x.Support, x.Expected = int(fl.n), m.say(uint64(b.pairs[p].n), " of ", uint64(fl.n), " times")
	case evTogether:
		x.Support, x.Observed, x.Expected = int(b.runs), c.tool.String(), "beside tools that it was used with before"
	case evRepeat:
		x.Observed, x.Expected = m.say("once more, after ", uint64(c.run.votes.used(c.tool)), " times in this run"), "as often as earlier runs did"
	case evShape:
		n := uint64(b.tools[c.tool].n)
		x.Support, x.Observed = int(n), m.say(c.tool.String(), " with other arguments than usual")
		x.Expected = m.say("with just these in ", uint64(b.shapes[c.shape]), " of ", n, " runs")
	case evSlot:
		p := uses[f.value[ev]].place
		p.tool = w.seen(p.tool)
		s := b.slots[p].of(w)
		x.Support, x.Observed = int(s.n), m.named(int(f.value[ev]))
		x.Expected = m.say("new from an output in ", uint64(s.tainted), " of ", uint64(s.n), " uses")
	case evUnknown, evTainted, evRecipient:
		x.Support, x.Observed, x.Expected = len(b.known), m.named(int(f.value[ev])), "a value from the task, or one that earlier runs used"
	case evUnused:
		x.Support, x.Observed, x.Expected = len(b.known), m.named(int(f.value[ev])), "a value from the task, or one that was written or sent before"
	case evDisplaced:
		x.Observed, x.Expected = m.named(int(f.value[ev])), "the one that the task names"
	case evDomain:
		x.Support, x.Observed, x.Expected = len(b.known), m.named(int(f.value[ev])), "a domain from the task, or one that earlier runs used"
	case evFresh:
		x.Observed, x.Expected = m.named(int(f.value[ev])), "a value that did not just come out of the previous call"
	case evOrigin:
		u := &uses[f.value[ev]]
		x.Support, x.Expected = int(b.filled[u.place]), "a source that earlier runs filled it from"
		x.Observed = m.say(m.named(int(f.value[ev])), " from ", u.root.String())
	case evIntent:
		x.Observed, x.Expected = c.tool.String(), "a tool that the task's words speak of"
	case evOutside:
		x.Observed, x.Expected = c.standing.String(), "what the capability grants"
	case evRare:
		x.Support, x.Observed = int(b.runs), c.tool.String()
		x.Expected = m.say("used without a grant in ", uint64(b.outside[c.tool]), " of ", uint64(b.runs), " runs")
	case evBeyond:
		x.Observed, x.Expected = c.tool.String(), "what the capability grants, or at least the task speaks of"
	case evCredit:
		x.Observed = "all that it names stands in the task"
	}
}
