package monitor

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/writ-sh/writ/schemas"
)

// A ReplayReport says whether a log's verdicts are those that its events make.
type ReplayReport struct {
	Events        uint64 `json:"events"`
	Verdicts      uint64 `json:"verdicts"`
	Mismatches    uint64 `json:"mismatches"`
	FirstMismatch uint64 `json:"first_mismatch"` // sequence; 0 where there is none
	OtherModel    uint64 `json:"other_model"`    // verdicts of another version of the model: folded, not compared
}

// replayWindow is how many events may stand between a verdict's AsOf and the
// verdict: what the log takes in while one action is on its way, with room.
const replayWindow = 1 << 14

// Replay recomputes each verdict of a log, given in order and from its start,
// and compares it byte for byte; the risk and the lock that the event carries
// must follow from it. What another version of the model judged is counted apart:
// its bytes can't be made again, and its risk is folded as it stands in the log,
// as live. A verdict whose AsOf does not lie within the 16,384
// events before it is a mismatch. Replay holds that many events, with at most
// 64 KiB of each body. Only the verdicts that only admits are compared and
// counted; nil admits all. All events are needed in any case, for each verdict
// rests on all that came before.
func Replay(events iter.Seq2[*schemas.Event, error], only func(*schemas.Event) bool) (ReplayReport, error) {
	r := replay{model: New(Options{}), only: only, due: map[uint64][]*schemas.Event{}}
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
	model  *Model
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
		if err == nil && v.Model != r.model.version {
			r.report.OtherModel++
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
	if err := r.model.Apply(e); err != nil {
		return err
	}
	r.check()
	return nil
}

func (r *replay) check() {
	for _, e := range r.due[r.model.seq] {
		v := r.model.Assess(e)
		if !bytes.Equal(schemas.Marshal(v), e.Verdict) || v.Risk != e.Risk || lockOf(v.Decision) != e.Lock {
			r.mismatch(e)
		}
	}
	delete(r.due, r.model.seq)
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
