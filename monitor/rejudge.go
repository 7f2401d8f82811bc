package monitor

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/writ-sh/writ/schemas"
)

// Rejudge folds a log, given in order and from its start, and gives it on in
// the same order with the verdicts that o's model makes of the same actions at
// the same places: each judges, and learns from, what it would have said itself.
// Verdict and Risk of an event are new, all else stands as it was, its kind and
// its lock included: what happened has happened.
//
// Without o.Weights, verdicts of another version of the model stay as they are,
// for nobody said that they are to be made anew. So does a verdict whose AsOf
// does not lie within the 16,384 events before it. That many events are held,
// with at most 64 KiB of each body.
func Rejudge(events iter.Seq2[*schemas.Event, error], o Options) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		r := rejudge{model: New(o), all: o.Weights != nil, due: map[uint64][]*schemas.Event{}}
		for e, err := range events {
			if err != nil {
				yield(nil, err)
				return
			}
			r.take(e)
			if len(r.queue) > replayWindow && !r.give(yield) {
				return
			}
		}
		for len(r.queue) > 0 {
			if !r.give(yield) {
				return
			}
		}
	}
}

type rejudge struct {
	model  *Model
	all    bool                        // also what another version of the model judged
	queue  []*schemas.Event            // read, not yet folded
	due    map[uint64][]*schemas.Event // verdicts to make, by AsOf
	newest uint64
}

// take reads one event ahead of the fold.
func (r *rejudge) take(e *schemas.Event) {
	c := *e // another reader has the one that was given
	if len(c.Data) > maxRead+1 && carriesPayload(c.Kind) {
		c.Data = bytes.Clone(c.Data[:maxRead+1])
	}
	v, err := briefOf(e.Verdict)
	if len(e.Verdict) > 0 && err == nil && (r.all || v.Model == r.model.version) && v.AsOf <= r.newest && v.AsOf >= r.model.seq {
		if v.AsOf == r.model.seq {
			r.judge(&c)
		} else {
			r.due[v.AsOf] = append(r.due[v.AsOf], &c)
		}
	}
	r.newest = c.Seq
	r.queue = append(r.queue, &c)
}

// give folds the oldest event and hands it on. What judges it was folded
// before it, so that it has its verdict by now.
func (r *rejudge) give(yield func(*schemas.Event, error) bool) bool {
	e := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	if err := r.model.Apply(e); err != nil {
		yield(nil, fmt.Errorf("judge anew: %w", err))
		return false
	}
	for _, d := range r.due[e.Seq] {
		r.judge(d)
	}
	delete(r.due, e.Seq)
	return yield(e, nil)
}

func (r *rejudge) judge(e *schemas.Event) {
	v := r.model.Assess(e)
	e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
}
