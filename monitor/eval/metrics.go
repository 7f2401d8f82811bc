package eval

import (
	"cmp"
	"math"
	"slices"
)

// A scored is a run's highest score.
type scored struct {
	score    float64
	positive bool
}

// auroc is the share of pairs of a positive and a negative in which the
// positive scores higher; ties count half.
func auroc(s []scored) float64 {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b scored) int { return cmp.Compare(a.score, b.score) })
	var below, won, pos, neg float64
	for i := 0; i < len(s); {
		j, p, n := i, 0., 0.
		for ; j < len(s) && s[j].score == s[i].score; j++ {
			if s[j].positive {
				p++
			} else {
				n++
			}
		}
		won += p * (below + n/2)
		below += n
		pos, neg = pos+p, neg+n
		i = j
	}
	if pos == 0 || neg == 0 {
		return 0
	}
	return won / (pos * neg)
}

// tprAt is the share of positives above the lowest threshold that at most the
// given share of negatives reaches.
func tprAt(s []scored, fpr float64) float64 {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b scored) int { return cmp.Compare(b.score, a.score) })
	pos, neg := 0, 0
	for _, x := range s {
		if x.positive {
			pos++
		} else {
			neg++
		}
	}
	if pos == 0 {
		return 0
	}
	tp, fp, best := 0, 0, 0
	for i := 0; i < len(s); {
		j := i
		for ; j < len(s) && s[j].score == s[i].score; j++ {
			if s[j].positive {
				tp++
			} else {
				fp++
			}
		}
		if float64(fp) > fpr*float64(neg) {
			break
		}
		best = tp
		i = j
	}
	return float64(best) / float64(pos)
}

// roc is the curve, from the highest threshold to the lowest.
func roc(all []outcome) []Point {
	s := make([]scored, len(all))
	pos, neg := 0, 0
	for i, o := range all {
		s[i] = o.scored
		if s[i].positive {
			pos++
		} else {
			neg++
		}
	}
	slices.SortFunc(s, func(a, b scored) int { return cmp.Compare(b.score, a.score) })
	out := []Point{{0, 0}}
	tp, fp := 0, 0
	for i, x := range s {
		if x.positive {
			tp++
		} else {
			fp++
		}
		if i+1 == len(s) || s[i+1].score != x.score {
			out = append(out, Point{share(fp, neg), share(tp, pos)})
		}
	}
	return out
}

func share(k, n int) float64 {
	if n == 0 {
		return 0
	}
	return float64(k) / float64(n)
}

const z95 = 1.959963984540054 // of the normal distribution

// wilson is the 95 % interval of a share of n (Wilson 1927).
func wilson(p float64, n int) Interval {
	if n == 0 {
		return Interval{0, 1}
	}
	z2 := z95 * z95 / float64(n)
	mid, half := (p+z2/2)/(1+z2), z95*math.Sqrt(p*(1-p)/float64(n)+z2/(4*float64(n)))/(1+z2)
	return Interval{max(mid-half, 0), min(mid+half, 1)}
}

// hanley is the 95 % interval of an area under the curve (Hanley and McNeil
// 1982).
func hanley(a float64, pos, neg int) Interval {
	if pos == 0 || neg == 0 {
		return Interval{0, 1}
	}
	q1, q2 := a/(2-a), 2*a*a/(1+a)
	se := math.Sqrt((a*(1-a) + float64(pos-1)*(q1-a*a) + float64(neg-1)*(q2-a*a)) / (float64(pos) * float64(neg)))
	return Interval{max(a-z95*se, 0), min(a+z95*se, 1)}
}

func sqrt(x float64) float64 { return math.Sqrt(x) }
