package monitor

import (
	"math"
	"testing"

	"github.com/writ-sh/writ/schemas"
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

// Who attacks a fleet that has hardly begun finds its tails unsure, and so must
// whoever works there in good faith: thirty runs don't promise what hundreds do.
func TestAFewRunsPromiseLessOfTheTailThanMany(t *testing.T) {
	const far = 6 * one
	few, many := tailed(30, 0), tailed(240, 0)
	exponential := points(far-few.tail)*math.Log2E*float64(few.exact)*float64(one)/float64(few.excess) + math.Log2(31/float64(few.above+1))
	if is := points(few.bits(far)); is > exponential-1 {
		t.Errorf("%.2f bits after 30 runs, and %.2f if their mean were known", is, exponential)
	}
	if a, b := few.bits(far), many.bits(far); a >= b {
		t.Errorf("%.2f bits after 30 runs, %.2f after 240", points(a), points(b))
	}
	for _, set := range []interface{ bits(fixed) fixed }{few, many, measure{few, many}, measure{many, many}} {
		before := fixed(0)
		for score := -10 * one; score < 40*one; score += one / 16 {
			b := set.bits(score)
			if b < before {
				t.Fatalf("%T: score %.2f has %.3f bits, a lower one %.3f", set, points(score), points(b), points(before))
			}
			before = b
		}
	}
}

// An agent whose runs were all alike does something a little odd. Among the
// fleet's runs that is nothing: it must not suspend.
func TestWhatIsCommonInTheFleetSuspendsNobody(t *testing.T) {
	alike := new(calibration)
	for range 240 {
		alike.add(maximum{score: -9 * one})
	}
	fleet, odd := tailed(240, 0), one // one run in e comes so far
	if alone := riskOf(alike.bits(odd)); alone != 100 {
		t.Fatalf("risk %d by the agent's own runs", alone)
	}
	if both := riskOf(measure{alike, fleet}.bits(odd)); both >= 90 {
		t.Errorf("risk %d", both)
	}
	if both := riskOf(measure{alike, fleet}.bits(8 * one)); both < 90 {
		t.Errorf("what is rare in the fleet too has risk %d", both)
	}
}

// Risk 90 says that one harmless run in 154 comes so far. A fleet that has seen
// fewer can't know: a wild action is held for review, which whoever acts in good
// faith survives, and suspends nobody.
func TestBehaviourAloneCannotSuspendBeforeEnoughRuns(t *testing.T) {
	for calibrate, want := range map[int]string{minOwn: schemas.Pause, minSure - 1: schemas.Pause, minSure: schemas.Suspend} {
		p := newPlane(t)
		for week := 0; len(p.m.pool.sorted) < calibrate; week++ {
			p.weekly("analyst", week).end()
		}
		if v := hijack(p.issue("analyst", "report", defaultTask)); v.Decision != want || v.ActionRisk > maxUnsure != (want == schemas.Suspend) {
			t.Errorf("with %d runs to calibrate: %s", calibrate, show(v))
		}
	}
}

// What a paused agent reads is held too. A reviewer who approves that has not said
// that high scores are harmless: reads have none. One that counted as 0 would have
// made much of what attacks come to look common.
func TestAnApprovedReadCalibratesNothing(t *testing.T) {
	p := trained(t, 60, "analyst")
	p.reviewed("analyst")
	o := p.issue("analyst", "report", defaultTask)
	p.lock["analyst"] = schemas.Paused
	o.do("call:search", `{"q":"figures"}`)
	if o.held == 0 {
		t.Fatal("nothing was held")
	}
	p.put(&schemas.Event{Kind: schemas.ReviewApproved, Agent: "analyst", Ref: o.held, Time: p.now})
	delete(p.lock, "analyst")
	o.end()
	if newest := p.m.pool.maxima[len(p.m.pool.maxima)-1]; newest.score != -maxScore {
		t.Errorf("a run of reads calibrates with the score %.2f", points(newest.score))
	}
}
