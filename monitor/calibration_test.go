package monitor

import (
	"math"
	"testing"
)

// tailed is a set of runs whose highest scores are exponential, the last few of
// them unusual.
func tailed(runs, unusual int) *calibration {
	c := new(calibration)
	for i := range runs {
		k := i * 97 % runs // in no order
		score := fixed(math.Log(float64(runs)/(float64(k)+.5)) * float64(one))
		if i >= runs-unusual {
			score = 12 * one
		}
		c.add(maximum{score: score})
	}
	return c
}

// A few odd runs among hundreds must not let the attacker pass: what reaches 90
// is for most runs to say. With a tail from the 95th percentile on, and nothing
// standing in for runs, two odd ones in 240 take it by two thirds further.
func TestFewUnusualRunsHardlyMoveWhatReaches90(t *testing.T) {
	usual, odd := tailed(240, 0), tailed(240, 2)
	was, is := scoreAt(90, usual.bits), scoreAt(90, odd.bits)
	if is < was || is-was > was/2 {
		t.Errorf("two runs in 240 move it from %.2f to %.2f", points(was), points(is))
	}
	if right := math.Log(1 / .0065); math.Abs(points(was)-right) > right/5 {
		t.Errorf("%.2f reaches 90, and one run in 154 reaches %.2f", points(was), right)
	}
}
