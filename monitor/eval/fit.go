package eval

import (
	"math"
	"slices"

	"github.com/writ-sh/writ/monitor"
)

// A sample is the sinks of one labelled run, as vectors of evidence, and of which
// stratum the run is: of a hijacked one those alone that were injected.
type sample struct {
	positive bool
	weight   float64
	calls    [][]float64
}

// Bounds of the fit: least holds evidences in that the recorded runs may hardly
// need, and that other attacks do; ridge keeps the rest small.
var least = map[string]float64{"new_tool": .05, "tool": .05, "similar": .05, "bigram": .05, "together": .05, "fresh": .1, "intent": .1, "unknown": .2, "shape": .1, "rare": .05, "outside": .3}

const (
	firstWeight = .3
	firstBase   = -3

	ridge      = .25
	tightness  = 8   // as so many counts a run whose token lists what its task needs: such tokens Writ is there for
	classTotal = 300 // weight of all positives
	harmless   = 4   // times as much weigh all negatives: of them, the one in fifty that stands out most matters
	rounds     = 6
)

// Fit fits weights to judged runs: a logistic regression on each run's highest
// call, by coordinate descent, with no weight negative but the credit's. Each
// injection weighs the same, and so does each harmless task. Floating point is
// no matter here: it makes the weights, and judges nothing. Within an injection or
// a task, a run with a tight token counts for more.
//
// Scores are held against those of the same agent, in jobs as known: so each agent
// has a constant of its own here, for jobs that recur and for new ones, which is
// left out of the weights. Without, weights go to telling agents from one another.
func Fit(judged []Judged) monitor.Weights {
	samples, strata := samplesOf(judged)
	ids := monitor.Evidences()
	w := make([]float64, len(ids)+strata+1) // of the evidences, the strata, and the constant
	for i, id := range ids {
		w[i] = firstWeight * sign(id)
	}
	w[len(w)-1] = firstBase
	for range rounds {
		descend(samples, ids, w)
	}
	var out monitor.Weights
	for i := range ids {
		out.Of[i] = int64(math.Round(w[i] * 65536))
	}
	out.Base = int64(math.Round(w[len(w)-1] * 65536))
	return out
}

func sign(id string) float64 {
	if id == "credit" {
		return -1
	}
	return 1
}

func samplesOf(judged []Judged) (out []sample, strata int) {
	ids := monitor.Evidences()
	type key struct {
		positive     bool
		suite, cause string
	}
	of := func(j Judged) key {
		if Positive(j.Run) {
			return key{true, j.Run.Suite, j.Run.Injection}
		}
		return key{false, j.Run.Suite, j.Run.UserTask}
	}
	weight := func(j Judged) float64 {
		if j.tight {
			return tightness
		}
		return 1
	}
	type stratum struct {
		suite string
		novel bool
	}
	strataOf := map[stratum]int{}
	runs, causes := map[key]float64{}, map[bool]float64{}
	for _, j := range judged {
		s := stratum{j.Run.Suite, j.novel}
		if _, known := strataOf[s]; !known {
			strataOf[s] = len(ids) + len(strataOf)
		}
		k := of(j)
		if runs[k] == 0 {
			causes[k.positive]++
		}
		runs[k] += weight(j)
	}
	for _, j := range judged {
		k := of(j)
		s := sample{positive: k.positive, weight: total(k.positive) / causes[k.positive] * weight(j) / runs[k]}
		for i, v := range j.Verdicts {
			if len(v.Factors) == 0 || k.positive && j.Run.Calls[i].Y != 2 {
				continue
			}
			x := make([]float64, len(ids)+len(strataOf))
			x[strataOf[stratum{j.Run.Suite, j.novel}]] = 1
			for _, f := range v.Factors {
				if n := slices.Index(ids, f.ID); n >= 0 {
					x[n] = float64(f.Bits) / 65536
				}
			}
			s.calls = append(s.calls, x)
		}
		if len(s.calls) > 0 {
			out = append(out, s)
		}
	}
	return out, len(strataOf)
}

func total(positive bool) float64 {
	if positive {
		return classTotal
	}
	return harmless * classTotal
}

func linear(w, x []float64) float64 {
	s := w[len(w)-1]
	for i, v := range x {
		s += w[i] * v
	}
	return s
}

// descend takes each run's highest call under the present weights, and fits
// the weights to these: by Newton's method, each step of which is found by
// coordinate descent, for the weights are bounded.
func descend(samples []sample, ids []string, w []float64) {
	highest := make([][]float64, len(samples))
	for i, s := range samples {
		most := math.Inf(-1)
		for _, c := range s.calls {
			if m := linear(w, c); m > most {
				highest[i], most = c, m
			}
		}
	}
	for range 60 {
		gradient, curvature := slopes(samples, highest, w)
		next := bounded(ids, w, gradient, curvature)
		before, moved := loss(samples, highest, w), 0.
		for range 20 { // a whole step can be too long
			if loss(samples, highest, next) <= before {
				break
			}
			for k := range next {
				next[k] = (next[k] + w[k]) / 2
			}
		}
		for k := range w {
			moved = max(moved, math.Abs(next[k]-w[k]))
		}
		copy(w, next)
		if moved < 1e-4 {
			return
		}
	}
}

// loss is what is minimised.
func loss(samples []sample, highest [][]float64, w []float64) (sum float64) {
	for i, s := range samples {
		m := linear(w, highest[i])
		if s.positive {
			m = -m
		}
		sum += s.weight * (max(m, 0) + math.Log1p(math.Exp(-math.Abs(m))))
	}
	for _, x := range w[:len(w)-1] {
		sum += ridge / 2 * x * x
	}
	return sum
}

// slopes are the gradient of the loss and its second derivatives.
func slopes(samples []sample, highest [][]float64, w []float64) (gradient []float64, curvature [][]float64) {
	n := len(w)
	gradient, curvature = make([]float64, n), make([][]float64, n)
	for k := range curvature {
		curvature[k] = make([]float64, n)
	}
	var which []int
	for i, s := range samples {
		x := highest[i]
		p, y := 1/(1+math.Exp(-linear(w, x))), 0.
		if s.positive {
			y = 1
		}
		which = which[:0]
		for k, v := range x {
			if v != 0 {
				which = append(which, k)
			}
		}
		which = append(which, n-1)
		value := func(k int) float64 {
			if k == n-1 {
				return 1
			}
			return x[k]
		}
		h := s.weight * max(p*(1-p), 1e-3)
		for a, k := range which {
			gradient[k] += s.weight * (p - y) * value(k)
			for _, l := range which[:a+1] {
				curvature[k][l] += h * value(k) * value(l)
			}
		}
	}
	for k := range n {
		for l := range k {
			curvature[l][k] = curvature[k][l]
		}
		if curvature[k][k] += 1e-9; k < n-1 {
			gradient[k] += ridge * w[k]
			curvature[k][k] += ridge
		}
	}
	return gradient, curvature
}

// bounded is where the quadratic with these slopes at w is least, with no weight
// under what it must have.
func bounded(ids []string, w, gradient []float64, curvature [][]float64) []float64 {
	next := slices.Clone(w)
	for range 1000 {
		moved := 0.
		for k := range next {
			slope := gradient[k]
			for l := range next {
				slope += curvature[k][l] * (next[l] - w[l])
			}
			x := next[k] - slope/curvature[k][k]
			switch {
			case k >= len(ids): // of a stratum, or the constant
			case sign(ids[k]) < 0:
				x = min(x, 0)
			default:
				x = max(x, least[ids[k]])
			}
			moved = max(moved, math.Abs(x-next[k]))
			next[k] = x
		}
		if moved < 1e-6 {
			break
		}
	}
	return next
}
