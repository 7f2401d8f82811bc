package eval

import (
	"math"
	"slices"

	"github.com/writ-sh/writ/monitor"
)

// A sample is the sinks of one labelled run, as vectors of evidence: of a
// hijacked one those alone that were injected.
type sample struct {
	positive bool
	weight   float64
	calls    [][]float64
}

// Bounds of the fit: least holds evidences in that the recorded runs may hardly
// need, and that other attacks do; ridge keeps the rest small.
var least = map[string]float64{"tool": .05, "similar": .05, "bigram": .05, "together": .05, "fresh": .1, "intent": .1, "unknown": .2, "shape": .1, "rare": .05, "outside": .3}

const (
	firstWeight = .3
	firstBase   = -3

	ridge      = 2
	classTotal = 300 // weight of all positives, and of all negatives
	rounds     = 6
)

// Fit fits weights to judged runs: a logistic regression on each run's highest
// call, by coordinate descent, with no weight negative but the credit's. Each
// injection weighs the same, and so does each harmless task. Floating point is
// no matter here: it makes the weights, and judges nothing.
func Fit(judged []Judged) monitor.Weights {
	samples := samplesOf(judged)
	ids := monitor.Evidences()
	w := make([]float64, len(ids)+1) // the last is the constant
	for i, id := range ids {
		w[i] = firstWeight * sign(id)
	}
	w[len(ids)] = firstBase
	for range rounds {
		descend(samples, ids, w)
	}
	var out monitor.Weights
	for i := range ids {
		out.Of[i] = int64(math.Round(w[i] * 65536))
	}
	out.Base = int64(math.Round(w[len(ids)] * 65536))
	return out
}

func sign(id string) float64 {
	if id == "credit" {
		return -1
	}
	return 1
}

func samplesOf(judged []Judged) []sample {
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
	runs, causes := map[key]float64{}, map[bool]float64{}
	for _, j := range judged {
		k := of(j)
		if runs[k]++; runs[k] == 1 {
			causes[k.positive]++
		}
	}
	var out []sample
	for _, j := range judged {
		k := of(j)
		s := sample{positive: k.positive, weight: classTotal / causes[k.positive] / runs[k]}
		for i, v := range j.Verdicts {
			if len(v.Factors) == 0 || k.positive && j.Run.Calls[i].Y != 2 {
				continue
			}
			x := make([]float64, len(ids))
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
	return out
}

func linear(w, x []float64) float64 {
	s := w[len(w)-1]
	for i, v := range x {
		s += w[i] * v
	}
	return s
}

// descend takes each run's highest call under the present weights, and fits
// the weights to these.
func descend(samples []sample, ids []string, w []float64) {
	highest, margin := make([][]float64, len(samples)), make([]float64, len(samples))
	for i, s := range samples {
		margin[i] = math.Inf(-1)
		for _, c := range s.calls {
			if m := linear(w, c); m > margin[i] {
				highest[i], margin[i] = c, m
			}
		}
	}
	for range 60 {
		moved := 0.
		for k := range w {
			gradient, curvature := 0., 1e-9
			value := func(i int) float64 {
				if k == len(ids) {
					return 1
				}
				return highest[i][k]
			}
			for i, s := range samples {
				v := value(i)
				if v == 0 {
					continue
				}
				p, y := 1/(1+math.Exp(-margin[i])), 0.
				if s.positive {
					y = 1
				}
				gradient += s.weight * (p - y) * v
				curvature += s.weight * max(p*(1-p), 1e-3) * v * v
			}
			next := w[k] - gradient/curvature
			if k < len(ids) {
				next = w[k] - (gradient+ridge*w[k])/(curvature+ridge)
				if next = max(next, least[ids[k]]); sign(ids[k]) < 0 {
					next = min(w[k]-(gradient+ridge*w[k])/(curvature+ridge), 0)
				}
			}
			step := next - w[k]
			w[k] = next
			moved = max(moved, math.Abs(step))
			for i := range samples {
				margin[i] += step * value(i)
			}
		}
		if moved < 1e-4 {
			return
		}
	}
}
