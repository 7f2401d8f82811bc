package monitor

import (
	"slices"
)

// Sizes of calibration sets.
const (
	maxMaxima   = 256 // runs of one set; the oldest makes room
	immature    = 20  // first runs of a set that make room once there are more: all was new then
	minPooled   = 20  // runs of the fleet below which behaviour alone can't pause
	minSure     = 153 // runs of the fleet below which behaviour alone can't suspend
	minOwn      = 30  // runs of an agent from which its own set is used
	censoredOne = 8   // at most one run in so many may be censored
)

// A maximum is the highest score of one run that ended well. Of a run whose
// risk reached learnBelow only that is known: its score is censored, it stands
// at the score that reaches learnBelow. So a run that may be an attack can
// neither teach what a high score looks like, nor, as the censored are few,
// make high scores common.
type maximum struct {
	score    fixed
	censored bool
}

// A calibration is the highest scores of harmless runs, oldest first, and what
// follows from them. Changed by add alone.
type calibration struct {
	maxima   []maximum
	sorted   []fixed
	censored int
	ever     int // runs added

	tail   fixed // the score from which the estimated tail holds
	above  int   // runs at or over it
	excess fixed // by how much runs are over it, all together
	exact  fixed // of how many runs
}

// addRun takes the highest score of one more run. A censored one stands at the
// score from which runs teach nothing.
func (c *calibration) addRun(score fixed, censored bool) {
	if censored {
		bits := priorBits
		if len(c.sorted) >= minPooled {
			bits = c.bits
		}
		score = min(score, scoreAt(learnBelow, bits))
	}
	c.add(maximum{score, censored})
}

// add takes the highest score of one more run.
func (c *calibration) add(m maximum) {
	if m.censored && (c.censored+1)*censoredOne > len(c.maxima)+1 {
		return
	}
	c.ever = min(c.ever+1, 2*maxMaxima)
	for len(c.maxima) >= min(maxMaxima, max(minPooled, c.ever-immature)) {
		c.drop(c.maxima[0])
	}
	c.maxima = append(c.maxima, m)
	i, _ := slices.BinarySearch(c.sorted, m.score)
	c.sorted = slices.Insert(c.sorted, i, m.score)
	if m.censored {
		c.censored++
	}
	c.fit()
}

func (c *calibration) drop(m maximum) {
	c.maxima = slices.Delete(c.maxima, 0, 1)
	i, _ := slices.BinarySearch(c.sorted, m.score)
	c.sorted = slices.Delete(c.sorted, i, i+1)
	if m.censored {
		c.censored--
	}
}

// fit estimates the tail above the 95th percentile. Excesses over it are taken
// for exponential, of a mean that is not known but estimated, with usualScale
// standing in for usualRuns runs: a dozen runs don't tell it well, and what they
// leave open makes high scores likelier than their mean alone would (see bits).
// Where the percentile lies among the censored, the tail begins there; what a
// censored run's excess is at least counts, and the run doesn't.
func (c *calibration) fit() {
	n := len(c.sorted)
	from := n * 95 / 100
	c.tail, c.above = c.sorted[from], n-from
	for from > 0 && c.sorted[from-1] == c.tail {
		from--
		c.above++
	}
	c.excess, c.exact = usualRuns*usualScale, usualRuns
	for _, m := range c.maxima {
		if m.score > c.tail {
			c.excess += m.score - c.tail
			if !m.censored {
				c.exact++
			}
		}
	}
	c.excess = max(c.excess, c.exact*minScale)
}

// usualScale is the mean excess in most sets.
const (
	usualScale       = one * 7 / 8
	usualRuns  fixed = 7
)

// minScale keeps the tail of a set of equal scores from having no width.
const minScale = one / 2

// log2e is the binary logarithm of e.
const log2e fixed = 94548

// bits is −log2 of the conformal p-value of a score: the share of runs, this
// one among them, that reached it. In the tail it is what the runs over it predict
// of one more: (1 + x/excess)^−exact of those reach x, which for many runs is the
// exponential, and for few is more.
func (c *calibration) bits(score fixed) fixed {
	n := uint64(len(c.sorted))
	if score <= c.tail {
		i, _ := slices.BinarySearch(c.sorted, score)
		return log2(n+1) - log2(n-uint64(i)+1)
	}
	over := uint64(score-c.tail) + uint64(c.excess)
	return log2(n+1) - log2(uint64(c.above)+1) + c.exact*(log2(over)-log2(uint64(c.excess)))
}

// A measure is what an action's score is held against: the runs of its agent, with
// those of the fleet standing in for fleetRuns more. What no run of one agent
// shows, such as how high harmless scores can be, those of others do.
type measure struct{ own, fleet *calibration }

const fleetRuns = 60

// bits is −log2 of the p-value by both.
func (m measure) bits(score fixed) fixed {
	if m.own == m.fleet {
		return m.own.bits(score)
	}
	n := uint64(len(m.own.sorted))
	p := n*exp2neg(m.own.bits(score)) + fleetRuns*exp2neg(m.fleet.bits(score))
	return 32*one + log2(n+fleetRuns) - log2(max(p, 1))
}

func tailBits(excess, scale fixed) fixed {
	return min(excess, 64*scale) * log2e / scale
}

// prior is what holds of a fleet of which nothing is known: one run in five
// reaches a score of tail, and the excess over it is exponential.
var prior = struct{ tail, scale fixed }{tail: 0, scale: one * 3 / 4}

// log2Five is the binary logarithm of 5.
const log2Five fixed = 152170

func priorBits(score fixed) fixed {
	if score <= prior.tail {
		return 0
	}
	return log2Five + tailBits(score-prior.tail, prior.scale)
}

// log2Fifty is −log2 0.02: the p-value that makes risk 70.
const log2Fifty fixed = 369876

// riskOf is 70·ln p / ln 0.02, within 0 and 100, rounded down, for p = 2^−bits.
func riskOf(bits fixed) int {
	return int(min(70*bits/log2Fifty, 100))
}

// scoreAt is the least score whose risk reaches r in this set.
func scoreAt(r int, bits func(fixed) fixed) fixed {
	low, high := -maxScore, maxScore
	for low < high {
		mid := low + (high-low)/2
		if riskOf(bits(mid)) >= r {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// ppm is 2^−bits in millionths.
func ppm(bits fixed) int64 {
	return int64(exp2neg(bits) * 1_000_000 >> 32)
}
