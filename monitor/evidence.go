package monitor

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of an evidence, in bits, and of a score.
const (
	maxSurprise       = 8 * one
	maxScore    fixed = 1 << 40
)

// Ids of the factors that the fold itself reads.
const (
	idDomain   = "domain"
	idFresh    = "fresh"
	idRefusals = "refusals"
)

// Weights of the evidences, in 1/65536 per bit. None but Base is negative.
type Weights struct {
	Base    fixed
	Tool    fixed
	Pair    fixed
	Slot    fixed
	Unknown fixed
	Domain  fixed
	Fresh   fixed
	Outside fixed
}

// Reference holds the weights of a monotone logistic fit to recorded runs with
// capabilities, as the design gives them.
var Reference = Weights{
	Base:    -244449, // −3.73
	Tool:    11141,   // 0.17
	Pair:    4588,    // 0.07
	Slot:    26214,   // 0.40
	Unknown: 87163,   // 1.33
	Domain:  43581,   // half of the above
	Fresh:   83886,   // 1.28
	Outside: 157286,  // 2.40
}

// version names the method and the weights.
func (w Weights) version() string {
	var b []byte
	for _, x := range []fixed{w.Base, w.Tool, w.Pair, w.Slot, w.Unknown, w.Domain, w.Fresh, w.Outside} {
		b = binary.BigEndian.AppendUint64(b, uint64(x))
	}
	sum := sha256.Sum256(b)
	return "linear-1." + hex.EncodeToString(sum[:4])
}

// toolEvidence is about the tool, whatever its arguments.
func (m *Model) toolEvidence(c considered, v *schemas.Verdict) {
	b := c.agent.baseline
	if bits := b.toolSurprise(c.template, c.tool); bits > 0 {
		ct, nt := c.template.counts(c.tool)
		m.point(v, schemas.Factor{ID: "tool", Bits: bits, Weight: m.weights.Tool, Support: int(nt),
			Observed: c.tool.String(),
			Expected: m.say("in ", ct, " of ", nt, " runs of the job, ", uint64(b.tools[c.tool].n), " of ", uint64(b.runs), " of the agent")})
	}
	p := pair{c.prev, c.tool}
	if bits := b.pairSurprise(c.template, p); bits > 0 {
		f := b.follows[c.prev]
		after := "as the first action"
		if c.prev != (schemas.Action{}) {
			after = "after " + c.prev.String()
		}
		m.point(v, schemas.Factor{ID: "bigram", Bits: bits, Weight: m.weights.Pair, Support: int(f.n), Observed: after,
			Expected: m.say(uint64(b.pairs[p].n), " of ", uint64(f.n), " times")})
	}
}

// A finding is the worst that one evidence found among an action's values.
type finding struct {
	bits fixed
	use  int
}

func (f *finding) worst(bits fixed, use int) {
	if bits > f.bits {
		*f = finding{bits, use}
	}
}

// valueEvidence is about what the action names. Each evidence counts its worst
// value, so that no number of harmless values weighs more than one. Aimed says
// that it goes to a stranger, or does what an answer just said: a mistake does
// neither.
func (m *Model) valueEvidence(c considered, v *schemas.Verdict, uses []useOf) (aimed bool) {
	b := c.agent.baseline
	var slot, unknown, domain, fresh finding
	for i, u := range uses {
		text := m.extract.values[i].text
		inTask := inText(c.task, text)
		bits, _ := b.slotNovelty(u.place, u.inside)
		if inTask {
			slot.worst(bits/2, i)
			continue
		}
		slot.worst(bits, i)
		if u.place.kind == overflow { // it could be anything
			unknown.worst(one, i)
			domain.worst(one, i)
			fresh.worst(one, i)
			continue
		}
		if !b.isKnown(c.template, u.value) {
			unknown.worst(one, i)
		}
		if u.domain != (id{}) && !b.isKnown(c.template, u.domain) && !inText(c.task, domainOf(m.extract.values[i])) {
			domain.worst(one, i)
		}
		if c.read != nil && c.read.fresh(text) {
			fresh.worst(one, i)
		}
	}
	if slot.bits > 0 {
		u := b.places[uses[slot.use].place]
		m.point(v, schemas.Factor{ID: "slot", Bits: slot.bits, Weight: m.weights.Slot, Support: int(u.n), Observed: m.named(slot.use),
			Expected: m.say("one of ", uint64(u.distinct), " values in ", uint64(u.n), " uses")})
	}
	if unknown.bits > 0 {
		m.point(v, schemas.Factor{ID: "unknown", Bits: unknown.bits, Weight: m.weights.Unknown, Support: len(b.known), Observed: m.named(unknown.use),
			Expected: "a value from the task, or one that earlier runs used"})
	}
	if domain.bits > 0 {
		m.point(v, schemas.Factor{ID: idDomain, Bits: domain.bits, Weight: m.weights.Domain, Support: len(b.known),
			Observed: m.named(domain.use), Expected: "a domain from the task, or one that earlier runs used"})
	}
	if fresh.bits > 0 {
		m.point(v, schemas.Factor{ID: idFresh, Bits: fresh.bits, Weight: m.weights.Fresh, Observed: m.named(fresh.use),
			Expected: "a value that did not just come out of the previous call"})
	}
	return domain.bits+fresh.bits > 0
}

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
func (m *Model) usesOf(e *schemas.Event, tool schemas.Action) []useOf {
	values := m.extract.read(e.Data)
	if tool.Verb == schemas.VerbMemory && len(e.Action.Resource) > len(tool.Resource)+1 {
		m.extract.add("key", []byte(e.Action.Resource[len(tool.Resource)+1:]))
		values = m.extract.values
	}
	m.uses = m.uses[:0]
	for _, v := range values {
		u := useOf{place: place{tool, v.kind}, value: idOf(v.text)}
		b := append(m.scratch[:0], tool.Verb...)
		b = append(append(b, ':'), tool.Resource...)
		b = append(append(b, 0), v.kind...)
		b = append(append(b, 0), v.text...)
		u.inside, m.scratch = idOf(b), b
		if d := domainOf(v); len(d) > 0 {
			b = append(append(m.scratch[:0], "domain\x00"...), d...)
			u.domain, m.scratch = idOf(b), b
		}
		m.uses = append(m.uses, u)
	}
	return m.uses
}
