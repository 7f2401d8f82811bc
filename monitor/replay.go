package monitor

import (
	"bytes"
	"fmt"
	"iter"
	"slices"

	"github.com/writ-sh/writ/schemas"
)

// A ReplayReport says whether a log's verdicts are those that its events make.
type ReplayReport struct {
	Events        uint64   `json:"events"`
	Verdicts      uint64   `json:"verdicts"`
	Mismatches    uint64   `json:"mismatches"`
	FirstMismatch uint64   `json:"first_mismatch"`           // sequence; 0 where there is none
	OtherModel    uint64   `json:"other_model"`              // verdicts of versions of the model that are not here: folded, not compared
	Missing       []string `json:"missing_models,omitempty"` // these versions, sorted
}

// replayWindow is how many events may stand between a verdict's AsOf and the
// verdict: what the log takes in while one action is on its way, with room.
const replayWindow = 1 << 14

// Replay recomputes each verdict of a log, given in order and from its start,
// and compares it byte for byte; the risk and the lock that the event carries
// must follow from it. What another version of the model judged is counted apart:
// its bytes can't be made again, and it is folded as live: with the risk that
// stands in the log, and scored anew. A verdict whose AsOf does not lie within the 16,384
// events before it is a mismatch. Replay holds that many events, with at most
// 64 KiB of each body. Only the verdicts that only admits are compared and
// counted; nil admits all. Each verdict is held against the weights of its own
// version: those built in, or one of those given. All events are needed in any case, for each verdict
// rests on all that came before.
func Replay(events iter.Seq2[*schemas.Event, error], only func(*schemas.Event) bool, others ...*Weights) (ReplayReport, error) {
	first := New(Options{})
	r := replay{model: first, models: map[string]*Model{first.version: first}, only: only, due: map[uint64][]*schemas.Event{}}
	for _, w := range others {
		m := New(Options{Weights: w})
		r.models[m.version] = m
	}
	for e, err := range events {
		if err != nil {
			return r.report, fmt.Errorf("replay: %w", err)
		}
		if err := r.take(e); err != nil {
			return r.report, fmt.Errorf("replay: %w", err)
		}
	}
	for len(r.queue) > 0 {
		if err := r.fold(); err != nil {
			return r.report, fmt.Errorf("replay: %w", err)
		}
	}
	return r.report, nil
}

type replay struct {
	model  *Model            // one of models: all stand at the same event
	models map[string]*Model // by version
	only   func(*schemas.Event) bool
	queue  []*schemas.Event            // read, not yet folded
	due    map[uint64][]*schemas.Event // verdicts to recompute, by AsOf
	newest uint64
	report ReplayReport
}

// take reads one event ahead of the fold.
func (r *replay) take(e *schemas.Event) error {
	if len(e.Data) > maxRead+1 && carriesPayload(e.Kind) {
		short := *e
		short.Data = bytes.Clone(e.Data[:maxRead+1]) // one byte more tells that there was more
		e = &short
	}
	r.report.Events++
	if len(e.Verdict) > 0 && (r.only == nil || r.only(e)) {
		v, err := briefOf(e.Verdict)
		if err == nil && r.models[v.Model] == nil {
			r.missing(v.Model)
			return r.queued(e)
		}
		r.report.Verdicts++
		if err != nil || v.AsOf > r.newest || v.AsOf < r.model.seq {
			r.mismatch(e)
		} else {
			r.due[v.AsOf] = append(r.due[v.AsOf], e)
			if v.AsOf == r.model.seq {
				r.check()
			}
		}
	}
	return r.queued(e)
}

func (r *replay) queued(e *schemas.Event) error {
	r.newest = e.Seq
	r.queue = append(r.queue, e)
	if len(r.queue) > replayWindow {
		return r.fold()
	}
	return nil
}

func carriesPayload(k schemas.Kind) bool {
	return isAnswer(k) || k == schemas.MessageAccepted || k == schemas.MessageHeld || k == schemas.MessageDenied
}

// fold takes the oldest event that was read, and recomputes what was judged
// right after it.
func (r *replay) fold() error {
	e := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	for _, version := range sortedKeys(r.models) {
		if err := r.models[version].Apply(e); err != nil {
			return err
		}
	}
	r.check()
	return nil
}

func (r *replay) check() {
	for _, e := range r.due[r.model.seq] {
		logged, err := briefOf(e.Verdict)
		if err != nil {
			r.mismatch(e)
			continue
		}
		v := r.models[logged.Model].Assess(e)
		if !bytes.Equal(schemas.Marshal(v), e.Verdict) || v.Risk != e.Risk || lockOf(v.Decision) != e.Lock {
			r.mismatch(e)
		}
	}
	delete(r.due, r.model.seq)
}

// missing counts a verdict of a version that is not here. Their names come from
// the log: they are cut, and not more are named than anybody reads.
func (r *replay) missing(version string) {
	r.report.OtherModel++
	version = version[:min(len(version), 40)]
	if i, found := slices.BinarySearch(r.report.Missing, version); !found && len(r.report.Missing) < 16 {
		r.report.Missing = slices.Insert(r.report.Missing, i, version)
	}
}

func (r *replay) mismatch(e *schemas.Event) {
	r.report.Mismatches++
	if r.report.FirstMismatch == 0 || e.Seq < r.report.FirstMismatch {
		r.report.FirstMismatch = e.Seq
	}
}

// lockOf is the lock that a decision puts on.
func lockOf(decision string) schemas.Lock {
	switch decision {
	case schemas.Pause:
		return schemas.Paused
	case schemas.Suspend:
		return schemas.Suspended
	}
	return ""
}
