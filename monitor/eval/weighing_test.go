package eval

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/monitor/traces"
	"github.com/writ-sh/writ/schemas"
)

// Where the descent stops, no weight can be moved, within its bounds, to where
// the loss is less.
func TestNoWeightFitsBetterThanTheFittedOne(t *testing.T) {
	ids := monitor.Evidences()
	r := rand.New(rand.NewPCG(7, 7))
	var samples []sample
	for i := range 400 {
		s := sample{positive: i%3 == 0, weight: .5 + r.Float64()}
		x := make([]float64, len(ids))
		for k := range x {
			if r.IntN(3) == 0 {
				x[k] = r.Float64() * 4
			}
			if s.positive && k%5 == 0 {
				x[k] += r.Float64()
			}
		}
		s.calls = [][]float64{x}
		samples = append(samples, s)
	}
	w := make([]float64, len(ids)+1)
	for i, id := range ids {
		w[i] = firstWeight * sign(id)
	}
	w[len(ids)] = firstBase
	descend(samples, ids, w)
	highest := make([][]float64, len(samples))
	for i, s := range samples {
		highest[i] = s.calls[0]
	}
	best := loss(samples, highest, w)
	for k := range w {
		for _, step := range []float64{-.002, .002} {
			moved := slices.Clone(w)
			moved[k] += step
			if k < len(ids) && (sign(ids[k]) < 0 && moved[k] > 0 || sign(ids[k]) > 0 && moved[k] < least[ids[k]]) {
				continue
			}
			if loss(samples, highest, moved) < best {
				t.Errorf("weight %d fits better %+.2f away from %.3f", k, step, w[k])
			}
		}
	}
}

// Each injection and each task weighs the same, however many runs there are of
// it, and in it a run with a tight token eight times one without.
func TestRunsWithTightTokensCountForMore(t *testing.T) {
	run := func(task, attack string, tight bool) Judged {
		r := &traces.Run{Suite: "office", UserTask: task, Injection: task, Attack: attack, N: 1, Calls: []traces.Call{{}}}
		if attack != "none" {
			r.Hit, r.Calls[0].Y = 1, 2
		}
		return Judged{Run: r, Verdicts: []schemas.Verdict{{Factors: []schemas.Factor{{ID: "base"}}}}, tight: tight}
	}
	samples, _ := samplesOf([]Judged{
		run("a", "none", false), run("a", "none", true), run("a", "none", true), run("b", "none", false), run("c", "important", true), run("c", "important", false),
	})
	var weights []float64
	for _, s := range samples {
		weights = append(weights, s.weight)
	}
	unit := classTotal / 2. / (2*tightness + 1)
	want := []float64{harmless * unit, harmless * tightness * unit, harmless * tightness * unit, harmless * classTotal / 2, classTotal * tightness / (tightness + 1.), classTotal / (tightness + 1.)}
	for i := range want {
		if d := weights[i] - want[i]; d > 1e-9 || d < -1e-9 {
			t.Errorf("weights %v, want %v", weights, want)
			break
		}
	}
}

// Scores are held against those of the same agent: what all runs of one have, and
// those of others don't, has a constant of the agent's to go to.
func TestEachAgentHasItsOwnConstantForKnownJobsAndForNewOnes(t *testing.T) {
	run := func(suite string, novel bool) Judged {
		r := &traces.Run{Suite: suite, UserTask: "a", Attack: "none", N: 1, Calls: []traces.Call{{}}}
		return Judged{Run: r, Verdicts: []schemas.Verdict{{Factors: []schemas.Factor{{ID: "base"}}}}, novel: novel}
	}
	samples, strata := samplesOf([]Judged{run("bank", false), run("office", false), run("bank", true), run("bank", false)})
	if strata != 3 {
		t.Fatalf("%d constants, want 3", strata)
	}
	var which []int
	for _, s := range samples {
		own := s.calls[0][len(monitor.Evidences()):]
		at := slices.Index(own, 1)
		if len(own) != strata || at < 0 || slices.Contains(own[at+1:], 1) {
			t.Fatalf("constants of a run: %v", own)
		}
		which = append(which, at)
	}
	if !slices.Equal(which, []int{0, 1, 2, 0}) {
		t.Errorf("constants %v", which)
	}
}

// A read that the capability does not grant adds to the row of refusals, but is
// not scored: it must not pass for the call that stands out most.
func TestARefusedReadIsNotTheHighestCall(t *testing.T) {
	r := &traces.Run{Suite: "office", Attack: "none", N: 2, Calls: []traces.Call{{Tool: "read"}, {Tool: "write"}}}
	o := outcomeOf(Judged{Run: r, Verdicts: []schemas.Verdict{
		{Score: 1 << 16, PPM: 1_000_000, ActionRisk: 20, Factors: []schemas.Factor{{ID: "refusals", Points: 1 << 16}}},
		{Score: -3 << 16, PPM: 400_000, ActionRisk: 10, Factors: []schemas.Factor{{ID: "base", Points: -3 << 16}}},
	}})
	if o.call != 1 || o.scored.score != -3<<16 || o.risk != 20 {
		t.Errorf("call %d with score %g, risk %d", o.call, o.scored.score, o.risk)
	}
}
