package monitor

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of one agent's present.
const (
	maxLive     = 64      // operations followed at once
	maxTask     = 2 << 10 // bytes of a task that are compared with
	maxSeen     = 1024    // words remembered of the outputs of one run
	maxAnswered = 16      // agents whose answers to one operation are followed
	maxHeld     = 32      // held actions whose values an approval can sign in
	maxApproved = 16      // approved actions that await their repetition
	maxScope    = 256     // scopes of one capability
	maxHistory  = 32      // points of risk
)

// learnBelow is the risk from which a run teaches nothing. Before minPooled runs
// calibrate, risk says little, and only what is as wild as it can be then,
// maxBehaviour, teaches nothing.
const learnBelow = 40

// A run is one operation of an agent, or what it answers to one operation of
// another. Changed by Apply alone.
type run struct {
	job   string
	ended bool
	last  uint64 // sequence of the newest event of it
	*live
}

// A live is all of a run that its end forgets.
type live struct {
	jti       string
	task      []byte // normalised
	forms     forms  // of the values that the task names
	scope     []string
	forbidden []string

	prev    toolID // the tool before, zero at the start
	outputs uint16 // outputs seen so far
	seen    map[uint64]sighting
	sources []source // of the outputs seen
	flooded uint16   // the newest output that had more than could be remembered

	alike   []likeness // see alikeOf
	alikeAt uint64
	rarity  []fixed

	asked []source // by what the newest call of each tool was led

	votes    votes
	maxRisk  int
	maxScore fixed
	maxNew   fixed // as if the job were new
	surprise fixed // of its highest score, in bits
	level    levels
	accused  bool // a reviewer approved what was held in it
	reviews  int  // held actions that nobody has approved
	answered []answerer
}

// silence is the live of runs that ended and did nothing since: most that an agent
// has. It is shared, and never changed.
var silence = new(live)

// over is what is left of a run that ended.
func over(job string, last uint64) *run {
	return &run{job: job, ended: true, last: last, live: silence}
}

// stir is what a late action of a run that ended needs before it changes it.
func (r *run) stir() {
	if r.live == silence {
		r.live = new(live)
	}
}

// answerer is whose answers to a run are followed, as a run of their own.
type answerer struct{ agent, key string }

// answerJob is the template of what an agent answers; no job is named so.
const answerJob = "/answer"

// answerKey is the key, among the answerer's runs, of what it answers to an
// operation; no operation is named so.
func answerKey(agent, operation string) string { return agent + "/" + operation }

func newRun() *run { return &run{live: &live{maxScore: -maxScore, maxNew: -maxScore}} }

// grant takes over what a capability says.
func (r *run) grant(g *schemas.Grant) {
	r.jti, r.job, r.ended = g.JTI, g.Job, false
	r.task = normal([]byte(g.Task[:min(len(g.Task), maxTask)]))
	r.forms = 0
	for token := range tokens(r.task) {
		r.forms |= formOf(token)
	}
	r.votes.words, r.alikeAt = taskWords(r.votes.words[:0], r.task), 0
	r.scope, r.forbidden = g.Scope[:min(len(g.Scope), maxScope)], g.ForbiddenTools[:min(len(g.ForbiddenTools), maxScope)]
}

// A source is a tool whose output was seen, and the tool in whose output the
// chain of values began that led to the call: the tool itself where the call
// named nothing that another output had brought.
type source struct{ tool, root toolID }

// A sighting is the output that brought a word, and the index of its source.
type sighting struct {
	output uint16
	source uint8
}

const maxSources = 32

// ask notes by which values a call was led.
func (r *run) ask(tool toolID, uses []useOf) {
	q := source{tool, tool}
	for i := range uses {
		if uses[i].how == fromOutput {
			q.root = uses[i].root
		}
	}
	if i := slices.IndexFunc(r.asked, func(s source) bool { return s.tool == tool }); i >= 0 {
		r.asked[i] = q
	} else if len(r.asked) < maxSources {
		r.asked = append(r.asked, q)
	}
}

// source is the index of what answers now; the last stands for all that there
// was no room for.
func (r *run) source(tool toolID) uint8 {
	s := source{tool, tool}
	if i := slices.IndexFunc(r.asked, func(s source) bool { return s.tool == tool }); i >= 0 {
		s = r.asked[i]
	}
	i := slices.Index(r.sources, s)
	if i < 0 && len(r.sources) < maxSources {
		r.sources, i = append(r.sources, s), len(r.sources)
	}
	return uint8(min(uint(i), maxSources-1))
}

// output remembers which words a tool's output brought. Words that look like
// values come first, so that padding can't crowd them out; when even they are
// too many, whatever is not remembered counts as brought by it. Escapes of JSON are
// undone, as those of the values are that are looked for.
func (r *run) output(tool toolID, body []byte, x *extractor) {
	if r.outputs == 1<<16-1 {
		return
	}
	r.outputs++
	if r.seen == nil {
		r.seen = map[uint64]sighting{}
	}
	if len(body) > maxRead {
		body, r.flooded = body[:maxRead], r.outputs
	}
	body = x.plain(body)
	src := r.source(tool)
	var word [maxValue]byte
	for _, salient := range []bool{true, false} {
		for token := range tokens(body) {
			if salient != looksLikeValue(token) {
				continue
			}
			h := wordHash(normal(append(word[:0], token[:min(len(token), maxValue)]...)))
			if _, known := r.seen[h]; known {
				continue
			}
			if len(r.seen) >= maxSeen {
				r.flooded = r.outputs
				return
			}
			r.seen[h] = sighting{r.outputs, src}
		}
	}
}

func looksLikeValue(token []byte) bool {
	for _, c := range token {
		if isDigit(c) || c == '@' || c == '/' || c == '.' || c == '_' {
			return true
		}
	}
	return false
}

// origin is the newest output that first brought a word of the value; false
// where a word came from none.
func (r *run) origin(text []byte) (output uint16, root toolID, ok bool) {
	if r.outputs == 0 {
		return 0, root, false
	}
	newest := sighting{}
	var word [maxValue]byte
	for token := range tokens(text) {
		first, ok := r.seen[wordHash(normal(append(word[:0], token[:min(len(token), maxValue)]...)))]
		if !ok {
			if r.flooded != r.outputs {
				return 0, root, false
			}
			first = sighting{r.outputs, uint8(len(r.sources) - 1)}
		}
		if first.output >= newest.output {
			newest = first
		}
	}
	if newest.output == 0 {
		return 0, root, false
	}
	return newest.output, r.sources[newest.source].root, true
}

// wordHash is FNV-1a. That it can be made to collide gives nobody anything:
// who controls two outputs can as well name a value in both.
func wordHash(t []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range t {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// teaches reports whether a run that ends now may be learned from.
func (r *run) teaches() bool { return r.reviews == 0 && len(r.votes.tools) > 0 }

// An agent is all that is known of one agent. Changed by Apply alone.
type agent struct {
	baseline *baseline
	runs     map[string]*run // by operation, or answerKey
	maxima   [maturities]calibration

	refused   fixed // units of refusals at refusedAt
	refusedAt time.Time
	refusals  []schemas.Action // the newest, oldest first
	risk      int              // the peak that has not yet decayed below a later one
	riskAt    time.Time

	usual        [channels]histogram // of harmless runs
	rate, errors gauge
	slow         fixed // see sumUp

	said []saying // what outside sources say of it

	held     map[uint64]*heldAction
	approved []uint64
	causes   map[uint64]*cause // actions that suspended it and that nobody vouched for

	lastSeq     uint64 // the action that set last
	lastTime    time.Time
	lastAction  schemas.Action
	lastVerdict []byte
	history     []schemas.RiskPoint

	used uint64 // see Model.touch
}

// heldAction is what an approval signs in.
type heldAction struct {
	run   *run
	shape shape
	prev  toolID
	uses  []useOf

	score, scoreNew fixed
}

// A cause is what an operator signs in who vouches for an action that suspended its
// agent: the vote of a run that did nothing else. It is never changed.
type cause struct {
	job             string
	votes           votes
	score, scoreNew fixed
}

func causeOf(r *run, c *considered, uses []useOf, score, scoreNew fixed) *cause {
	x := &cause{job: r.job, votes: votes{words: slices.Clone(r.votes.words)}, score: score, scoreNew: scoreNew}
	x.votes.add(c.shape, c.prev, uses)
	return x
}

func newAgent(attic *attic) *agent {
	return &agent{baseline: newBaseline(attic), runs: map[string]*run{}, held: map[uint64]*heldAction{}, causes: map[uint64]*cause{}}
}

// run finds or makes the run of an operation. The one that was silent for
// longest makes room, unlearned.
func (a *agent) run(key string) *run {
	r := a.runs[key]
	if r == nil {
		if len(a.runs) >= maxLive {
			a.forgetRun()
		}
		r = newRun()
		a.runs[key] = r
	}
	return r
}

func (a *agent) forgetRun() {
	keys := make([]string, 0, len(a.runs))
	for key := range a.runs {
		keys = append(keys, key)
	}
	delete(a.runs, slices.MinFunc(keys, func(x, y string) int {
		rx, ry := a.runs[x], a.runs[y]
		if rx.ended != ry.ended {
			if rx.ended {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(rx.last, ry.last), cmp.Compare(x, y))
	}))
}

// riskNow is the agent's risk at a time: of what it did, or what is said of it.
func (a *agent) riskNow(at time.Time) int { return max(a.peakNow(at), a.saidNow(at)) }

// peakNow is the risk of what the agent did, decayed, rounded to the nearest.
func (a *agent) peakNow(at time.Time) int {
	return int((decay(fixed(a.risk)*one, at.Sub(a.riskAt)) + one/2) >> 16)
}

func (a *agent) refusedNow(at time.Time) fixed { return decay(a.refused, at.Sub(a.refusedAt)) }

// refuse adds units to the row of refusals.
func (a *agent) refuse(units fixed, at time.Time) {
	if units == 0 {
		return
	}
	a.refused = min(a.refusedNow(at)+units, maxRefused)
	if at.After(a.refusedAt) {
		a.refusedAt = at
	}
}

// noteRefusal remembers a refused action, to tell its repetition.
func (a *agent) noteRefusal(action schemas.Action) {
	if slices.Contains(a.refusals, action) {
		return
	}
	if len(a.refusals) == maxRefusals {
		a.refusals = slices.Delete(a.refusals, 0, 1)
	}
	a.refusals = append(a.refusals, action)
}

// pardon forgets risk, refusals and signals, and keeps the baseline: an operator
// has looked.
func (a *agent) pardon() {
	a.risk, a.refused, a.refusals, a.slow, a.said = 0, 0, nil, 0, nil
}

func (a *agent) hold(seq uint64, h *heldAction) {
	dropOldest(a.held, maxHeld)
	a.held[seq] = h
}

func (a *agent) suspect(seq uint64, c *cause) {
	dropOldest(a.causes, schemas.MaxCauses)
	a.causes[seq] = c
}

// dropOldest makes room for one more.
func dropOldest[V any](of map[uint64]V, most int) {
	if len(of) < most {
		return
	}
	oldest := uint64(math.MaxUint64)
	for seq := range of {
		oldest = min(oldest, seq)
	}
	delete(of, oldest)
}

// remember notes what a verdict said, for an operator who asks.
func (a *agent) remember(e *schemas.Event) {
	a.lastSeq, a.lastTime, a.lastAction, a.lastVerdict = e.Seq, e.Time, e.Action, e.Verdict
	if n := len(a.history); n > 0 && a.history[n-1].Risk == e.Risk {
		return // only changes are worth a point
	}
	if len(a.history) == maxHistory {
		a.history = slices.Delete(a.history, 0, 1)
	}
	a.history = append(a.history, schemas.RiskPoint{Seq: e.Seq, Time: e.Time, Risk: e.Risk})
}

// forms is a set of the forms that values show by themselves: see inferred.
type forms uint8

func formOf(text []byte) forms {
	switch inferred(text) {
	case "to":
		return 1
	case "account":
		return 2
	case "url":
		return 4
	case "file":
		return 8
	}
	return 0
}
