package monitor

import (
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Channels watch how much an agent does, not what: its pace, how slowly it is
// answered, its errors and what it spends. Each has a histogram of its own of the
// highest values of harmless runs, in half octaves of our fixed-point logarithm:
// a quantile sketch of known relative error (a factor of √2) that is the same
// bits on every machine, which those built on floating-point logarithms are not.
//
// They are a separate voice: a channel's p-value never enters the score. All
// channels together shall reach risk 70 in no more than one harmless run in
// five hundred, so that they cost behaviour next to none of its false alarms.
type channel uint8

const (
	chRate    channel = iota // actions, fading with rateHalf, in sixteenths
	chLatency                // slowest answer of the run, in microseconds
	chErrors                 // errors and refusals in answers, fading with HalfLife, in sixteenths
	chSpend                  // language-model tokens of the run
	channels
)

var channelIDs = [channels]string{"rate", "latency", "errors", "spend"}

// Timed reports whether a factor hangs on the clock and on what others answered
// when: the same actions at another pace have other ones. None of them is part of
// the score.
func Timed(factor string) bool {
	return factor == "slow" || slices.Contains(channelIDs[:], factor)
}

// channelUnits are what the value of a channel is shown in, and its divisor.
var channelUnits = [channels]struct {
	name string
	by   uint64
}{{" actions within a minute or so", 16}, {" ms for an answer", 1000}, {" errors within some minutes", 16}, {" tokens", 1}}

const (
	rateHalf    = time.Minute
	channelBins = 80              // half octaves: up to 2^40
	channelRuns = 1 << 12         // from there all bins are halved
	channelBits = fixed(348778)   // log2 of 40: one of four, at a tenth of the share that behaviour has
	maxExcess   = fixed(32) * one // bits beyond all that was seen
)

// channelMost bounds the risk that each comes to. Errors and latency are what
// others do to an agent: a service that fails, or stalls, would have the whole
// fleet paused at once, and a moment's slowness keep it from learning.
var channelMost = [channels]int{chRate: 100, chLatency: 39, chErrors: 69, chSpend: 100}

// levels are the values of one run.
type levels [channels]uint64

// A gauge is what fades, in sixteenths.
type gauge struct {
	n  fixed
	at time.Time
}

func (g gauge) now(at time.Time, half time.Duration) fixed {
	dt := at.Sub(g.at)
	if dt >= 40*half {
		return 0
	}
	return decay(g.n, dt*(HalfLife/half))
}

// up adds one at a time.
func (g *gauge) up(at time.Time, half time.Duration) {
	g.n = min(g.now(at, half)+16, 1<<40)
	if at.After(g.at) {
		g.at = at
	}
}

// A histogram counts runs by the half octave of their highest value.
type histogram struct {
	n    uint32
	bins []uint16 // as many as are needed
}

func binOf(value uint64) int { return int(min(2*log2(value+1)>>16, channelBins-1)) }

// bits is −log2 of the share of runs, this one among them, that came as high;
// beyond all that were seen, each octave counts one bit more.
func (h *histogram) bits(value uint64) fixed {
	bin, reached := binOf(value), uint64(0)
	for _, n := range h.bins[min(bin, len(h.bins)):] {
		reached += uint64(n)
	}
	bits := log2(uint64(h.n)+1) - log2(reached+1)
	if beyond := bin - len(h.bins); beyond > 0 {
		bits += min(fixed(beyond)*one/2, maxExcess)
	}
	return bits
}

// learn takes one run's highest value. One run moves the upper end by an octave
// at most: what one attack reached is not usual from then on.
func (h *histogram) learn(value uint64) {
	bin := binOf(value)
	if h.n >= minPooled {
		bin = min(bin, len(h.bins)+1)
	}
	for len(h.bins) <= bin {
		h.bins = append(h.bins, 0)
	}
	h.bins[bin]++
	if h.n++; h.n < channelRuns {
		return
	}
	h.n = 0
	for i := range h.bins {
		h.bins[i] /= 2
		h.n += uint32(h.bins[i])
	}
	for len(h.bins) > 0 && h.bins[len(h.bins)-1] == 0 {
		h.bins = h.bins[:len(h.bins)-1]
	}
}

// levelsOf are the values as an action finds them, itself among them.
func (a *agent) levelsOf(r *run, at time.Time) (l levels) {
	l[chRate] = uint64(a.rate.now(at, rateHalf) + 16)
	l[chErrors] = uint64(a.errors.now(at, HalfLife))
	l[chLatency], l[chSpend] = r.level[chLatency], r.level[chSpend]
	return l
}

// channels holds an action's values against those of earlier runs, and gives
// the risk of the strangest. Below minOwn runs of the agent nothing is known.
func (m *Model) channels(e *schemas.Event, c *considered, v *schemas.Verdict) {
	if c.run == nil || isAnswer(e.Kind) || c.agent.usual[chRate].n < minOwn {
		return
	}
	l := c.agent.levelsOf(c.run, e.Time)
	worst, most, risk := channel(0), fixed(0), 0
	for ch := range channels {
		bits := c.agent.usual[ch].bits(l[ch])
		if r := min(riskOf(max(bits-channelBits, 0)), channelMost[ch]); r > risk {
			worst, most, risk = ch, bits, r
		}
	}
	if risk == 0 || risk <= v.ActionRisk {
		return
	}
	v.ActionRisk = risk
	f := schemas.Factor{ID: channelIDs[worst], Bits: most, Support: int(c.agent.usual[worst].n)}
	if risk >= m.explainFrom {
		u := channelUnits[worst]
		top := uint64(1) << (len(c.agent.usual[worst].bins) / 2)
		f.Observed = m.say(l[worst]/u.by, u.name)
		f.Expected = m.say("at most about ", (top+u.by-1)/u.by, ", as in ", uint64(c.agent.usual[worst].n), " earlier runs")
	}
	v.Factors = append(v.Factors, f)
}

// acts counts an action.
func (a *agent) acts(r *run, at time.Time) {
	l := a.levelsOf(r, at)
	a.rate.up(at, rateHalf)
	for ch := range channels {
		r.level[ch] = max(r.level[ch], l[ch])
	}
}

// answeredWith counts what an answer told: how long it took, whether it was an
// error, and what it cost.
func (a *agent) answeredWith(r *run, e *schemas.Event) {
	r.level[chLatency] = max(r.level[chLatency], uint64(max(e.Latency.Microseconds(), 0)))
	r.level[chSpend] += uint64(min(max(e.Tokens, 0), 1<<40))
	if e.Code != 0 {
		a.errors.up(e.Time, HalfLife)
		r.level[chErrors] = max(r.level[chErrors], uint64(a.errors.n))
	}
}

// A run that ends tells by how little behaviour expected its highest score. The
// sum of that over an agent's runs, less what harmless runs come to and never
// below nothing (a CUSUM on ln p), shows who does a little wrong again and again
// and never enough at once. For harmless runs the surprise is exponential with a
// mean of 1.44 bits; with slowDrift taken off each, the sum reaches slowLimit
// once in some ten thousand runs.
const (
	slowDrift = 5 * one / 2
	slowLimit = 16 * one
	slowMost  = 8 * one // of one run
)

func (a *agent) sumUp(r *run) {
	if r.surprise > 0 || r.maxScore > -maxScore {
		a.slow = min(max(a.slow+min(r.surprise, slowMost)-slowDrift, 0), 2*slowLimit)
	}
}

// slowly adds what an agent's runs sum up to.
func (m *Model) slowly(c *considered, v *schemas.Verdict) {
	if c.agent.slow < slowLimit || v.ActionRisk >= maxBehaviour+1 {
		return
	}
	v.ActionRisk = maxBehaviour + 1
	v.Factors = append(v.Factors, schemas.Factor{ID: "slow", Bits: c.agent.slow,
		Observed: "run after run a little more unusual than harmless runs are", Expected: "now and then one"})
}
