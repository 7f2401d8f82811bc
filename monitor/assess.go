package monitor

import (
	"github.com/writ-sh/writ/schemas"
)

// considered is an action with all that the fold says of it.
type considered struct {
	agent    *agent
	run      *run // nil where it is not followed
	job      string
	template *template // nil where the job was never learned
	task     []byte
	read     *run // whose outputs the agent has read
	tool     toolID
	trait    *trait // of the tool
	prev     toolID
	sink     bool
	standing standing
	shape    shape
	approved bool // a reviewer approved exactly this action
}

// consider gathers what the fold says of an action, changing nothing.
func (m *Model) consider(e *schemas.Event) considered {
	c := considered{agent: m.at(e.Agent), trait: m.trait(toolOf(e)), sink: m.isSink(e)}
	c.tool = c.trait.tool
	if c.agent == nil {
		c.agent = m.nobody
	}
	key := e.Operation
	if isAnswer(e.Kind) {
		key, c.job = answerKey(e.To, e.Operation), answerJob
	}
	if c.run = c.agent.runs[key]; c.run != nil && !isAnswer(e.Kind) {
		c.job = c.run.job
	}
	c.template = c.agent.baseline.templates[c.job]
	if c.template != nil && c.template.tallies == nil {
		c.agent = m.own(e.Agent) // which no fork reads meanwhile
		c.run, c.template = c.agent.runs[key], c.agent.baseline.templates[c.job]
	}
	c.agent.baseline.fetch(c.template)
	if c.run != nil {
		c.prev = c.run.prev
	}
	if isAnswer(e.Kind) {
		if asker := m.at(e.To); asker != nil && asker.runs[e.Operation] != nil {
			c.task = asker.runs[e.Operation].task
		}
	} else if c.run != nil {
		c.task, c.read = c.run.task, c.run
	}
	c.standing = standingOf(e, c.run)
	for _, seq := range c.agent.approved {
		c.approved = c.approved || seq == e.Ref
	}
	return c
}

// toolOf is what counts as the tool: of answers, all are one.
func toolOf(e *schemas.Event) schemas.Action {
	if isAnswer(e.Kind) {
		return schemas.Action{Verb: verbAnswer}
	}
	return e.Action
}

// Assess judges a draft of an action or of an agent's answer. It changes
// nothing: its result depends on the events folded, and on the draft's kind,
// agent, operation, action, recipient, capability, approval, time and body.
// Reads are given the agent's present risk without evidences. The verdict's
// factors hold until the next Assess: it keeps the room for them.
func (m *Model) Assess(e *schemas.Event) schemas.Verdict {
	if e.Kind == schemas.RiskChanged {
		return m.standingVerdict(e)
	}
	m.settle()
	c := m.consider(e)
	v := schemas.Verdict{AsOf: m.seq, Baseline: m.learned, Model: m.version, PPM: 1_000_000}
	aimed := c.sink && m.behaviour(e, &c, &v)
	if units := c.units(e, aimed); units > 0 {
		total := min(c.agent.refusedNow(e.Time)+units, maxRefused)
		if !aimed {
			v.ActionRisk = min(v.ActionRisk, maxMistake)
		}
		v.ActionRisk = max(v.ActionRisk, refusalRisk(total))
		refusalFactor(&v, total, c.standing.String())
	}
	m.channels(e, &c, &v)
	m.slowly(&c, &v)
	if c.approved {
		v.ActionRisk = 0
		v.Factors = append(v.Factors, schemas.Factor{ID: "approved", Observed: "a reviewer approved this action"})
	}
	m.conclude(e, c.agent, &v)
	if v.Factors != nil {
		m.factors = v.Factors
	}
	return v
}

// standingVerdict judges what stands against an agent without a new action:
// after a violation, which the server refused by itself.
func (m *Model) standingVerdict(e *schemas.Event) schemas.Verdict {
	m.settle()
	a := m.at(e.Agent)
	if a == nil {
		a = m.nobody
	}
	v := schemas.Verdict{AsOf: m.seq, Baseline: m.learned, Model: m.version, PPM: 1_000_000}
	if units := a.refusedNow(e.Time); units > 0 {
		v.ActionRisk = refusalRisk(units)
		refusalFactor(&v, units, "the server refused what the agent's own rights do not cover")
	}
	m.conclude(e, a, &v)
	return v
}

func refusalFactor(v *schemas.Verdict, units fixed, why string) {
	v.Factors = append(v.Factors, schemas.Factor{ID: idRefusals, Bits: units, Weight: one, Points: units,
		Observed: why, Expected: "no refusals within minutes of one another"})
	v.Score += units
}

// conclude sets the agent's risk and what is to be done about it.
func (m *Model) conclude(e *schemas.Event, a *agent, v *schemas.Verdict) {
	v.Risk = max(v.ActionRisk, a.riskNow(e.Time))
	m.sayings(a, e.Time, v)
	th := m.fleet.ThresholdsOf(e.Agent)
	switch {
	case v.Risk >= th.Suspend:
		v.Decision = schemas.Suspend
	case v.Risk >= th.Pause:
		v.Decision = schemas.Pause
	default:
		v.Decision = schemas.Pass
	}
}

// maxBehaviour is the most that behaviour alone can make while fewer than
// minPooled runs are known, maxUnsure while fewer than minSure are: that only one run
// in 154 comes so far, which is what risk 90 says, no fewer can show. And maxMistake the most that it makes of an action
// that was refused and not aimed: an honest agent errs so. From there on it is
// refusals that count.
const (
	maxBehaviour = 69
	maxUnsure    = 89
	maxMistake   = 69
)

// aimed says that an action is no mistake: it goes to a stranger, does what an
// answer said, or is the use, by an agent that is known, of a tool that neither
// the capability grants nor the task speaks of.
func (c *considered) aimed(f *features) bool {
	return f.x[evDomain]+f.x[evFresh]+f.x[evTainted] > 0 ||
		f.x[evBeyond] == one && c.standing == outOfScope && c.tool.action().Verb == schemas.VerbCall && c.agent.baseline.acted() >= minPooled
}

// behaviour scores a sink, and says whether it is aimed.
func (m *Model) behaviour(e *schemas.Event, c *considered, v *schemas.Verdict) (aimed bool) {
	uses := m.usesOf(e, c, false)
	w := view{b: c.agent.baseline, t: c.template}
	f := m.features(c, w, uses)
	v.Factors = append(m.factors[:0], schemas.Factor{ID: idBase, Bits: one, Weight: m.weights.Base, Points: m.weights.Base})
	v.Score = m.weights.Base
	for ev, x := range f.x {
		if x != 0 {
			m.point(v, schemas.Factor{ID: evidenceIDs[ev], Bits: x, Weight: m.weights.Of[ev]})
		}
	}
	aimed = c.aimed(&f)
	m.judgeScore(c, v)
	if v.ActionRisk >= m.explainFrom {
		i := 1
		for ev, x := range f.x {
			if x != 0 {
				m.explain(c, w, &f, uses, evidence(ev), &v.Factors[i])
				i++
			}
		}
	}
	return aimed
}

// explainFrom is the risk from which a verdict says in words what each of its
// factors is about; below, nobody reads them, and words cost.
const explainFrom = learnBelow

func (m *Model) judgeScore(c *considered, v *schemas.Verdict) {
	set, known := m.measureOf(c)
	if !known {
		bits := priorBits(v.Score)
		v.PPM, v.NCalibration = ppm(bits), len(m.pool.sorted)
		v.ActionRisk = min(riskOf(bits), maxBehaviour)
		return
	}
	bits := set.bits(v.Score)
	v.PPM, v.NCalibration = ppm(bits), len(set.own.sorted)
	v.ActionRisk = riskOf(bits)
	if len(m.pool.sorted) < minSure {
		v.ActionRisk = min(v.ActionRisk, maxUnsure)
	}
}

// score is the sum that the verdict's points make.
func (w *Weights) score(f *features) fixed {
	s := w.Base
	for ev, x := range f.x {
		if x != 0 {
			s = clampFixed(s+mul(x, w.Of[ev]), -maxScore, maxScore)
		}
	}
	return s
}

// A maturity is whether a job is known: from knownRuns runs on, as for the
// evidences. Runs are calibrated among those of like maturity: a job's first runs
// are unusual in many ways, and harmless.
type maturity uint8

const maturities = 2

func maturityOf(t *template) maturity {
	if t == nil || t.runs < knownRuns {
		return 0
	}
	return 1
}

// measureOf is what an action's score is held against: the runs of its agent, if
// they are enough, and those of all agents, of like maturity or else of any; not
// known while there are too few.
func (m *Model) measureOf(c *considered) (set measure, known bool) {
	class := maturityOf(c.template)
	switch fleet := &m.maxima[class]; {
	case len(fleet.sorted) >= minOwn:
		set.fleet = fleet
	case len(m.pool.sorted) >= minPooled:
		set.fleet = &m.pool
	default:
		return set, false
	}
	set.own = set.fleet
	if own := &c.agent.maxima[class]; len(own.sorted) >= minOwn {
		set.own = own
	}
	return set, true
}

// point adds an evidence to the score and, unless it is nothing, to its
// explanation.
func (m *Model) point(v *schemas.Verdict, f schemas.Factor) {
	f.Points = mul(f.Bits, f.Weight)
	v.Score = clampFixed(v.Score+f.Points, -maxScore, maxScore)
	v.Factors = append(v.Factors, f)
}
