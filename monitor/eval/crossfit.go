package eval

import (
	"context"
	"fmt"
	"hash/fnv"

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
// folds, and so are injections: for each pair of folds there is one fit, to
// what Evidence found in the runs of neither.
func CrossFit(ctx context.Context, o Options, evidence []Judged) ([]Judged, error) {
	folds := o.CrossFit
	out := make([]Judged, len(o.Test))
	report, before := o.Progress, 0
	for i := range folds {
		for j := range folds {
			train, hijacked, harmless := fitted(evidence, folds, i, j)
			if hijacked == 0 || harmless == 0 {
				return nil, fmt.Errorf("%d hijacked and %d harmless runs to fit to without fold %d of the tasks and %d of the injections: both are needed", hijacked, harmless, i, j)
			}
			w := Fit(train)
			cell, n := o, 0
			cell.Weights = &w
			cell.only = func(r *traces.Run) bool { return taskFold(r, folds) == i && injectionFold(r, folds) == j }
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

// fitted is what weights for a pair of folds may be fitted to.
func fitted(evidence []Judged, folds, task, injection int) (train []Judged, hijacked, harmless int) {
	for _, e := range evidence {
		switch {
		case taskFold(e.Run, folds) == task, Positive(e.Run) && injectionFold(e.Run, folds) == injection:
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
