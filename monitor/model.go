package monitor

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Options of a Model. The zero value is what Writ runs with.
type Options struct {
	Weights *Weights // of the evidences; Reference where nil
	Folder  string   // where agents and jobs that do nothing just now are put aside; all stay in memory where empty
	Explain bool     // say in words what every factor is about, however low the risk; live verdicts do so from risk 40
}

// A Model is the fold of the log that judges. It is not safe for concurrent
// use, Assess included: it keeps buffers.
type Model struct {
	weights     Weights
	explainFrom int    // risk
	version     string // of the model: weights and method

	seq     uint64 // last event folded
	lastID  string // its id
	learned uint64 // sequence of the event at which a run was last learned
	fleet   *schemas.State
	agents  map[string]*agent       // in memory
	aside   map[string]shelf        // as they were put aside; those that changed since are not in it
	attic   *attic                  // nil where all are in memory
	queue   []turn                  // of the agents in memory, oldest first; also such as have passed
	maxima  [maturities]calibration // of all agents, by maturity of the template
	pool    calibration             // of all
	watch   watch
	pending map[uint64]violation // whose risk.changed is not in the log yet
	heard   map[id]hearing       // tokens of outside signals that could still be repeated
	heardAt time.Time            // of the newest

	extract  *extractor
	factors  []schemas.Factor // of the last verdict
	scratch  []byte
	traits   map[schemas.Action]*trait // of tools, as the fleet stands now
	uses     []useOf
	stems    []uint32
	mine     map[string]bool // of a fork: the agents that it has copied; nil where all are its own
	packing  []byte          // room to put aside, and to fetch
	resident int             // agents, and jobs of one, in memory
	jobs     int
	nobody   *agent // stands for an agent without history; never changed
}

// New is the model before the first event.
func New(o Options) *Model {
	w := Reference
	if o.Weights != nil {
		w = *o.Weights
	}
	m := &Model{
		weights: w, version: w.Version(), explainFrom: explainFrom,
		fleet: schemas.NewState(), agents: map[string]*agent{}, aside: map[string]shelf{}, resident: residentAgents, jobs: residentJobs, traits: map[schemas.Action]*trait{}, pending: map[uint64]violation{}, heard: map[id]hearing{},
		extract: newExtractor(), scratch: make([]byte, 0, 1<<10), uses: make([]useOf, 0, maxLeaves+1), nobody: newAgent(nil),
	}
	if o.Explain {
		m.explainFrom = 0
	}
	if o.Folder != "" {
		m.attic = &attic{folder: o.Folder}
	}
	return m
}

// Seq is the last sequence folded.
func (m *Model) Seq() uint64 { return m.seq }

// Follows reports whether the model knows the capability that an action was
// admitted under. One that was issued a moment ago may still be on its way.
func (m *Model) Follows(e *schemas.Event) bool {
	if e.JTI == "" || isAnswer(e.Kind) {
		return true
	}
	a := m.at(e.Agent)
	return a != nil && a.runs[e.Operation] != nil && !a.runs[e.Operation].ended
}

// Apply folds one event. Events come in the order of the log; kinds that do
// not bear on behaviour change nothing. An error means that the event can't be
// read, and ends the fold.
func (m *Model) Apply(e *schemas.Event) error {
	if e.Seq <= m.seq {
		return fmt.Errorf("event %d after %d: out of order", e.Seq, m.seq)
	}
	m.settle()
	m.seq, m.lastID = e.Seq, e.ID
	if err := cmp.Or(m.apply(e), m.Err()); err != nil {
		return fmt.Errorf("event %d (%s of %s): %w", e.Seq, e.Kind, e.Agent, err)
	}
	return nil
}

func (m *Model) apply(e *schemas.Event) error {
	switch e.Kind {
	case schemas.PolicyApplied, schemas.AgentDeclared:
		clear(m.traits)
		return m.fleet.Apply(e)
	case schemas.AgentRemoved:
		clear(m.traits)
		m.forgetAgent(e.Agent)
		return m.fleet.Apply(e)
	case schemas.TokenIssued:
		return m.issued(e)
	case schemas.OperationEnded:
		m.ended(e)
	case schemas.AgentSuspended:
		m.agent(e.Agent).dropRuns()
	case schemas.AgentKilled:
		m.agent(e.Agent).dropRuns()
		clear(m.agent(e.Agent).causes)
	case schemas.AgentResumed:
		m.agent(e.Agent).pardon()
	case schemas.AgentEnrolled:
		if e.Ref != 0 { // the kill that it undoes: another incarnation begins, without the risk of the former
			m.agent(e.Agent).pardon()
		}
	case schemas.ReviewApproved:
		m.approved(e)
	case schemas.ReviewVouched:
		m.vouched(e)
	case schemas.ReviewDenied:
		m.watch.denied++
		delete(m.agent(e.Agent).held, e.Ref)
	case schemas.MessageCancelled, schemas.MessageExpired:
		delete(m.agent(e.Agent).held, e.Ref) // its run teaches nothing: nobody vouched for it
	case schemas.AgentViolation:
		return m.violation(e)
	case schemas.RiskSignal:
		return m.signal(e)
	case schemas.RiskChanged:
		delete(m.pending, e.Ref)
		return m.judged(e)
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied,
		schemas.ResponseAccepted, schemas.ResponseHeld, schemas.ResponseDenied:
		return m.judged(e)
	}
	return nil
}

func (m *Model) agent(name string) *agent {
	a := m.own(name)
	if a == nil {
		a = newAgent(m.attic)
		m.agents[name] = a
		m.touch(name, a)
		if m.mine != nil {
			m.mine[name] = true
		}
	}
	return a
}

// issued starts a run, or renews the capability of one.
func (m *Model) issued(e *schemas.Event) error {
	g, err := schemas.ReadGrant(e.Data)
	if err != nil {
		return err
	}
	a := m.agent(e.Agent)
	if r := a.runs[g.Operation]; r != nil && (r.ended || r.job != g.Job) {
		delete(a.runs, g.Operation) // the name of an operation, used again
	}
	r := a.run(g.Operation)
	r.last = e.Seq
	r.grant(&g)
	return nil
}

// ended learns from a run that is over, and from what others answered in it.
func (m *Model) ended(e *schemas.Event) {
	a := m.own(e.Agent)
	if a == nil || a.runs[e.Operation] == nil || a.runs[e.Operation].ended {
		return
	}
	r := a.runs[e.Operation]
	a.sumUp(r)
	m.watch.ended(r, &m.pool)
	m.learn(a, r)
	for _, who := range r.answered {
		if b := m.own(who.agent); b != nil && b.runs[who.key] != nil {
			m.learn(b, b.runs[who.key])
			delete(b.runs, who.key)
		}
	}
	// What is left tells a late action of this operation from one of an
	// operation that never was.
	a.runs[e.Operation] = over(r.job, e.Seq)
}

// learn calibrates with a run, and takes its vote if nothing in it was
// unusual.
func (m *Model) learn(a *agent, r *run) {
	if !r.teaches() {
		return
	}
	below := learnBelow
	if len(m.pool.sorted) < minPooled {
		below = maxBehaviour
	}
	censored := r.maxRisk >= below
	m.calibrate(a, r.job, r.maxScore, r.maxNew, censored)
	if !censored {
		a.baseline.learn(r.job, &r.votes)
		for ch := range a.usual {
			if r.job != answerJob {
				a.usual[ch].learn(r.level[ch])
			}
		}
		m.learned = m.seq
	}
}

// calibrate adds the highest score of a run, and what it would have been if the job
// were new.
func (m *Model) calibrate(a *agent, job string, score, scoreNew fixed, censored bool) {
	if class := maturityOf(a.baseline.templates[job]); class > 0 {
		a.maxima[class].addRun(score, censored)
		m.maxima[class].addRun(score, censored)
	}
	a.maxima[0].addRun(scoreNew, censored)
	m.maxima[0].addRun(scoreNew, censored)
	m.pool.addRun(score, censored)
}

func (a *agent) dropRuns() {
	clear(a.runs)
	clear(a.held)
	a.approved = nil
}

// approved signs a held action in: its values are known to its job from now
// on, and it counts for its run as if it had passed.
func (m *Model) approved(e *schemas.Event) {
	a := m.agent(e.Agent)
	a.pardon()
	h := a.held[e.Ref]
	if h == nil {
		return
	}
	delete(a.held, e.Ref)
	m.watch.approved++
	h.run.stir()
	h.run.reviews--
	h.run.accused = true
	h.run.maxScore, h.run.maxNew = max(h.run.maxScore, h.score), max(h.run.maxNew, h.scoreNew)
	h.run.votes.add(h.shape, h.prev, h.uses)
	a.baseline.learned++
	a.baseline.sign(a.baseline.template(h.run.job), h.uses)
	m.learned = e.Seq
	if len(a.approved) == maxApproved {
		a.approved = a.approved[1:]
	}
	a.approved = append(a.approved, e.Ref)
}

// vouched learns an action that suspended its agent, for an operator who has looked
// let the agent go on: as a run of its own that did nothing else. What the run did
// besides nobody looked at, and it stays unlearned.
func (m *Model) vouched(e *schemas.Event) {
	a := m.agent(e.Agent)
	c := a.causes[e.Ref]
	if c == nil {
		return
	}
	delete(a.causes, e.Ref)
	m.watch.approved++
	m.watch.count(true)
	m.calibrate(a, c.job, c.score, c.scoreNew, false)
	a.baseline.learn(c.job, &c.votes)
	m.learned = e.Seq
}

func (m *Model) violation(e *schemas.Event) error {
	var v schemas.Violation
	if err := schemas.Unmarshal(e.Data, &v); err != nil {
		return err
	}
	a := m.agent(e.Agent)
	a.refuse(a.violationUnits(v), e.Time)
	if len(m.pending) < maxPending {
		m.pending[e.Seq] = violation{e.Agent, e.ID, "after " + v.String()}
	}
	return nil
}

// A violation, or a signal from outside, awaits its change of risk.
type violation struct{ agent, id, why string }

// Changes are the changes of risk that violations and signals brought about and that are
// not in the log yet, in order of the log, to be appended with the given time.
// One violation always gives an event of the same id.
func (m *Model) Changes(at time.Time, source string) []*schemas.Event {
	var out []*schemas.Event
	for _, seq := range slices.Sorted(maps.Keys(m.pending)) {
		p := m.pending[seq]
		id := sha256.Sum256([]byte("risk.changed\x00" + p.id))
		e := &schemas.Event{Kind: schemas.RiskChanged, Agent: p.agent, ID: hex.EncodeToString(id[:16]), Source: source, Time: at, Ref: seq}
		v := m.Assess(e)
		e.Verdict, e.Risk, e.Lock = schemas.Marshal(v), v.Risk, lockOf(v.Decision)
		if e.Lock != "" {
			e.Reason = schemas.HeaderText(strings.ToValidUTF8(fmt.Sprintf("risk %d %s", v.Risk, p.why), "?"))
		}
		out = append(out, e)
	}
	return out
}

// maxPending bounds the violations that await their risk.changed.
const maxPending = 1 << 12

// brief is what of a verdict the fold needs.
type brief struct {
	Model      string `json:"model_version"`
	AsOf       uint64 `json:"as_of"`
	ActionRisk int    `json:"action_risk"`
	Score      int64  `json:"score"`
	Factors    []struct {
		ID     string `json:"id"`
		Bits   int64  `json:"bits"`
		Points int64  `json:"points"`
	} `json:"factors"`
}

func briefOf(raw []byte) (v brief, err error) {
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("verdict: %w", err)
	}
	return v, nil
}

// behaviour is the score without the refusals, and the evidences by which an
// action is aimed.
func (v brief) behaviour() (score fixed, f features) {
	score = v.Score
	for _, x := range v.Factors {
		switch x.ID {
		case idRefusals:
			score -= x.Points
		case idDomain:
			f.x[evDomain] = x.Bits
		case idFresh:
			f.x[evFresh] = x.Bits
		case idTainted:
			f.x[evTainted] = x.Bits
		case idBeyond:
			f.x[evBeyond] = x.Bits
		}
	}
	return score, f
}

// judged folds an action, or an answer, as it was logged.
func (m *Model) judged(e *schemas.Event) error {
	if len(e.Verdict) == 0 {
		if e.Kind == schemas.ResponseAccepted {
			m.output(e)
		}
		return nil
	}
	v, err := briefOf(e.Verdict)
	if err != nil {
		return err
	}
	a := m.agent(e.Agent)
	if e.Kind != schemas.RiskChanged {
		m.observe(a, e, v)
	}
	if v.ActionRisk >= a.peakNow(e.Time) {
		a.risk, a.riskAt = v.ActionRisk, e.Time
	}
	a.remember(e)
	if e.Lock == schemas.Suspended || e.Lock == schemas.Killed {
		a.dropRuns()
	}
	if e.Kind == schemas.ResponseAccepted {
		m.output(e)
	}
	return nil
}

// observe takes an action into its run.
func (m *Model) observe(a *agent, e *schemas.Event, v brief) {
	c := m.consider(e)
	c.agent = a
	score, found := v.behaviour()
	if units := c.units(e, c.aimed(&found)); units > 0 {
		a.refuse(units, e.Time)
		a.noteRefusal(e.Action)
	}
	if c.run == nil && !isAnswer(e.Kind) {
		return // followed no longer
	}
	r := m.openRun(a, e, c)
	r.stir()
	r.last = e.Seq
	uses := m.usesOf(e, &c, true)
	switch {
	case !c.sink:
		score = -maxScore // it was not scored: nothing of it calibrates, though a reviewer approves it
	case v.Model != m.version:
		score = m.anew(&c, uses, &v)
	}
	scoreNew := score
	if c.sink && c.template != nil {
		f := m.features(&c, view{c.agent.baseline, nil, c.template}, uses)
		scoreNew = m.weights.score(&f)
	}
	r.ask(c.tool, uses)
	held := e.Kind == schemas.MessageHeld || e.Kind == schemas.ResponseHeld
	if c.sink && !held && !c.approved && c.standing != expired {
		r.maxRisk, r.maxScore = max(r.maxRisk, v.ActionRisk), max(r.maxScore, score)
		r.maxNew = max(r.maxNew, scoreNew)
		if set, known := m.measureOf(&c); known {
			r.surprise = max(r.surprise, set.bits(score))
		}
	}
	if !isAnswer(e.Kind) {
		a.acts(r, e.Time)
	}
	if a.saidNow(e.Time) >= learnBelow { // who is under suspicion teaches nothing
		r.maxRisk = max(r.maxRisk, maxBehaviour)
	}
	if (c.standing == outOfScope || c.standing == forbidden) && len(r.votes.outside) < maxVoteTools && !slices.Contains(r.votes.outside, c.tool) {
		r.votes.outside = append(r.votes.outside, c.tool)
	}
	if c.standing == forbidden { // teaches nothing, whatever is known
		r.maxRisk = max(r.maxRisk, v.ActionRisk, maxBehaviour)
	}
	if !c.sink { // reads are not scored, whatever an operator says of one
		score, scoreNew = -maxScore, -maxScore
	}
	switch {
	case e.Kind == schemas.MessageAccepted || e.Kind == schemas.ResponseAccepted:
		if c.approved { // its vote was taken when it was approved
			a.approved = deleteFirst(a.approved, e.Ref)
			break
		}
		r.votes.add(c.shape, c.prev, uses)
		r.prev = c.tool
	case held:
		r.reviews++
		a.hold(e.Seq, &heldAction{run: r, shape: c.shape, prev: c.prev, uses: slices.Clone(uses), score: score, scoreNew: scoreNew})
		r.prev = c.tool
	case schemas.Suspects(e) && c.standing == granted:
		a.suspect(e.Seq, causeOf(r, &c, uses, score, scoreNew))
	}
}

// anew scores what another version of the model judged: scores of two versions can't
// be held against one another, and what was harmless to one calibrates the other by
// what it says itself. The risk is what either says, whichever is more: who was
// suspected then teaches nothing now, and who would be suspected now neither.
func (m *Model) anew(c *considered, uses []useOf, v *brief) fixed {
	f := m.features(c, view{b: c.agent.baseline, t: c.template}, uses)
	own := schemas.Verdict{Score: m.weights.score(&f)}
	m.judgeScore(c, &own)
	v.ActionRisk = max(v.ActionRisk, own.ActionRisk)
	return own.Score
}

// openRun is the run that an action belongs to; what an agent answers to one
// operation of another is a run that starts by itself.
func (m *Model) openRun(a *agent, e *schemas.Event, c considered) *run {
	if !isAnswer(e.Kind) {
		return c.run
	}
	key := answerKey(e.To, e.Operation)
	r := a.run(key)
	r.job = answerJob
	if asker := m.own(e.To); asker != nil {
		if of := asker.runs[e.Operation]; of != nil && !of.ended && len(of.answered) < maxAnswered && !of.answeredBy(e.Agent) {
			of.answered = append(of.answered, answerer{e.Agent, key})
			r.task = of.task
		}
	}
	return r
}

func (r *run) answeredBy(agent string) bool {
	for _, a := range r.answered {
		if a.agent == agent {
			return true
		}
	}
	return false
}

// output takes an answer in as what the asker has now read.
func (m *Model) output(e *schemas.Event) {
	if asker := m.own(e.To); asker != nil {
		if r := asker.runs[e.Operation]; r != nil && !r.ended {
			r.output(m.trait(e.Action).tool, e.Data, m.extract)
			asker.answeredWith(r, e)
			r.last = e.Seq
		}
	}
}

func deleteFirst(s []uint64, v uint64) []uint64 {
	for i := range s {
		if s[i] == v {
			return append(s[:i:i], s[i+1:]...)
		}
	}
	return s
}

func isAnswer(k schemas.Kind) bool {
	return k == schemas.ResponseAccepted || k == schemas.ResponseHeld || k == schemas.ResponseDenied
}

// isSink reports whether an action writes, executes or sends.
func (m *Model) isSink(e *schemas.Event) bool {
	switch e.Action.Verb {
	case schemas.VerbRead:
		return isAnswer(e.Kind)
	case schemas.VerbMemory:
		return !strings.HasPrefix(e.Action.Resource, "get") && e.Action.Resource != "list"
	case schemas.VerbCall:
		return !m.trait(e.Action).reads
	}
	return true
}

// Risk is an agent's risk at a time, with the verdict behind it; false where
// nothing of it was ever judged.
func (m *Model) Risk(name string, at time.Time) (schemas.RiskReply, bool) {
	m.settle()
	a := m.at(name)
	if a == nil || a.lastVerdict == nil {
		return schemas.RiskReply{AgentID: name}, false
	}
	rep := schemas.RiskReply{AgentID: name, Risk: a.riskNow(at), Seq: a.lastSeq, Time: a.lastTime,
		History: append([]schemas.RiskPoint(nil), a.history...), Causes: sortedKeys(a.causes)}
	if a.lastAction != (schemas.Action{}) {
		rep.Action = a.lastAction.String()
	}
	a.counting(at, func(s *saying, now fixed) {
		rep.Signals = append(rep.Signals, schemas.RiskSaying{Source: s.source, Event: s.event, Reason: s.reason, Points: s.points,
			Now: int((abs(now) + one/2) >> 16), Time: s.at})
	})
	if err := json.Unmarshal(a.lastVerdict, &rep.Verdict); err != nil {
		return rep, false // judged has read it before
	}
	return rep, true
}
