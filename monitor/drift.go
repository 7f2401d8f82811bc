package monitor

import "fmt"

// A watch looks after the monitor itself: whether it accuses the harmless more
// often than it promises, and whether what it takes for harmless has moved. It
// bears on no verdict.
type watch struct {
	runs     uint32      // that ended, and in which something was judged
	accused  uint32      // of them: a reviewer approved what had been held, or an operator vouched for what had suspended the agent
	approved uint32      // held actions that reviewers approved, and others that were vouched for
	denied   uint32      // and denied
	frozen   calibration // the pool as it was when it had frozenAt runs: never changed after
}

const (
	frozenAt    = 128     // runs
	fewAccused  = 5       // accused runs below which a rate says nothing
	mostAccused = 25      // one in so many is twice what risk 70 promises
	watchedRuns = 1 << 12 // from there all counts are halved
)

// ended counts a run.
func (w *watch) ended(r *run, pool *calibration) {
	if r.maxScore == -maxScore && !r.accused {
		return
	}
	w.count(r.accused)
	if len(w.frozen.sorted) == 0 && len(pool.sorted) >= frozenAt {
		w.frozen = pool.clone()
	}
}

func (w *watch) count(accused bool) {
	w.runs++
	if accused {
		w.accused++
	}
	if w.runs >= watchedRuns {
		w.runs, w.accused, w.approved, w.denied = w.runs/2, w.accused/2, w.approved/2, w.denied/2
	}
}

// Alarms says what an operator should look into, in words; nothing where all
// is as promised.
func (m *Model) Alarms() (out []string) {
	w := &m.watch
	if w.accused >= fewAccused && w.accused*mostAccused > w.runs {
		out = append(out, fmt.Sprintf("%d of the last %d runs were held though reviewers then approved them: more than one in %d; look whether the fleet's tasks or tools have changed", w.accused, w.runs, mostAccused))
	}
	if len(w.frozen.sorted) == 0 || len(m.pool.sorted) < minPooled {
		return out
	}
	now := scoreAt(70, m.pool.bits)
	if was := riskOf(w.frozen.bits(now)); was >= 90 {
		out = append(out, fmt.Sprintf("what has risk 70 now would have had risk %d by the first %d runs: either the agents' work has changed, or somebody teaches the monitor, run by run, that harm is usual; compare recent runs with old ones", was, frozenAt))
	}
	return out
}
