package eval

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/monitor/traces"
)

// neutral weights are those that a fit begins with: what is judged before
// anything was fitted owes nothing to any recorded run.
func neutral() *monitor.Weights {
	w := new(monitor.Weights)
	for i, id := range monitor.Evidences() {
		w.Of[i] = int64(firstWeight * sign(id) * 65536)
	}
	w.Base = firstBase * 65536
	return w
}

// Evidence judges runs for a fit: by both protocols, with capabilities and
// without, under neutral weights.
func Evidence(ctx context.Context, o Options, sets ...*Set) ([]Judged, error) {
	o.Weights, o.Poison, o.Explain = neutral(), 0, false
	report, before, total := o.Progress, 0, 0
	for _, s := range sets {
		total += 4 * len(s.Test)
	}
	if report != nil {
		o.Progress = func(done, of int) { report(before+done, total) }
	}
	var out []Judged
	for _, s := range sets {
		for _, o.Protocol = range []string{Warm, Novel} {
			for _, o.Capability = range []bool{false, true} {
				o.Set = s
				judged, err := Judge(ctx, o)
				if err != nil {
					return nil, err
				}
				out = append(out, judged...)
				before += len(judged)
			}
		}
	}
	return out, nil
}

// CrossFit judges each tested run with weights that were fitted to runs of other
// tasks and other injections than its own. Tasks are divided into Options.CrossFit
// folds, and so are injections: for each pair of folds, weights are made as
// FitMean makes them, of what Evidence found in the runs of neither.
func CrossFit(ctx context.Context, o Options, evidence []Judged) ([]Judged, error) {
	f := fitter{evidence, o.CrossFit, map[[4]int]monitor.Weights{}}
	out := make([]Judged, len(o.Test))
	o.bodies = bodiesOf(o)
	report, before := o.Progress, 0
	for i := range f.folds {
		for j := range f.folds {
			w, err := f.mean(i, j)
			if err != nil {
				return nil, err
			}
			cell, n := o, 0
			cell.Weights = &w
			cell.only = func(r *traces.Run) bool { return taskFold(r, f.folds) == i && injectionFold(r, f.folds) == j }
			if report != nil {
				cell.Progress = func(done, of int) { n = done; report(before+done, len(out)) }
			}
			judged, err := Judge(ctx, cell)
			if err != nil {
				return nil, err
			}
			before += n
			for k, t := range judged {
				if cell.only(t.Run) {
					out[k] = t
				}
			}
		}
	}
	return out, nil
}

// FitMean is the mean of folds × folds fits, each to the runs of neither of a
// pair of folds: what hangs on a single task or injection is in some of them
// alone. The same evidence gives the same weights.
func FitMean(evidence []Judged, folds int) (monitor.Weights, error) {
	f := fitter{evidence, folds, map[[4]int]monitor.Weights{}}
	return f.mean(none, none)
}

// none is no fold.
const none = -1

// A fitter keeps its fits: those for two pairs of folds serve both.
type fitter struct {
	evidence []Judged
	folds    int
	done     map[[4]int]monitor.Weights
}

// mean is FitMean of the runs of neither of two folds.
func (f *fitter) mean(task, injection int) (mean monitor.Weights, err error) {
	for i := range f.folds {
		for j := range f.folds {
			w, err := f.fit([2]int{min(task, i), max(task, i)}, [2]int{min(injection, j), max(injection, j)})
			if err != nil {
				return mean, err
			}
			mean.Base += w.Base
			for ev := range w.Of {
				mean.Of[ev] += w.Of[ev]
			}
		}
	}
	n := int64(f.folds * f.folds)
	mean.Base /= n
	for ev := range mean.Of {
		mean.Of[ev] /= n
	}
	return mean, nil
}

// fit fits to the runs of none of these folds.
func (f *fitter) fit(tasks, injections [2]int) (monitor.Weights, error) {
	key := [4]int{tasks[0], tasks[1], injections[0], injections[1]}
	if w, ok := f.done[key]; ok {
		return w, nil
	}
	train, hijacked, harmless := f.without(tasks, injections)
	if hijacked == 0 || harmless == 0 {
		return monitor.Weights{}, fmt.Errorf("%d hijacked and %d harmless runs to fit to without the folds %v of the tasks and %v of the injections: both are needed", hijacked, harmless, tasks, injections)
	}
	f.done[key] = Fit(train)
	return f.done[key], nil
}

// without is what weights may be fitted to that are to owe these folds nothing.
func (f *fitter) without(tasks, injections [2]int) (train []Judged, hijacked, harmless int) {
	for _, e := range f.evidence {
		switch {
		case slices.Contains(tasks[:], taskFold(e.Run, f.folds)), Positive(e.Run) && slices.Contains(injections[:], injectionFold(e.Run, f.folds)):
			continue
		case Positive(e.Run):
			hijacked++
		default:
			harmless++
		}
		train = append(train, e)
	}
	return train, hijacked, harmless
}

// taskFold and injectionFold say in which fold a run is. A harmless run has no
// injection: it is in any one, so that each is judged once.
func taskFold(r *traces.Run, folds int) int { return foldOf(folds, r.Suite, r.UserTask) }

func injectionFold(r *traces.Run, folds int) int {
	if Negative(r) {
		return foldOf(folds, r.Suite, r.ID)
	}
	return foldOf(folds, r.Suite, r.Injection)
}

func foldOf(folds int, parts ...string) int {
	h := fnv.New32a()
	for _, p := range parts {
		h.Write([]byte(p + "\x00"))
	}
	return int(h.Sum32()>>8) % folds
}
