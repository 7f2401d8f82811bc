package monitor

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

func logOf(events []*schemas.Event) iter.Seq2[*schemas.Event, error] {
	return func(yield func(*schemas.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// recorded is a log with all that a verdict can hang on: reviews, resumes,
// violations, answers of agents, and events between a verdict and its event.
func recorded(t *testing.T) []*schemas.Event { return recordedRuns(t, 120) }

func recordedRuns(t *testing.T, runs int) []*schemas.Event {
	p := trained(t, 25, "analyst", "writer")
	p.reviewed("analyst")
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range runs {
		p.lag = rng.IntN(5)
		o := p.issue("analyst", "report", defaultTask)
		randomAction(rng, o, i)
		if i%7 == 0 {
			hijack(o)
			if o.held != 0 {
				p.put(&schemas.Event{Kind: schemas.ReviewApproved, Agent: "analyst", Ref: o.held, Time: p.now})
				again := o.draft("call:mail", exfil)
				again.Ref = o.held
				o.log(again)
			}
		}
		if i%11 == 0 {
			p.violate("analyst", "writ.in.boss.x")
		}
		if i%17 == 0 {
			w := p.issue("writer", "report", defaultTask)
			hijack(w)
			p.vouch("writer", w.cause)
			p.resume("writer")
		}
		o.end()
		p.resume("analyst")
	}
	return p.log
}

func TestReplayGivesTheSameBytes(t *testing.T) {
	events := recorded(t)
	r, err := Replay(logOf(events), nil)
	if err != nil || r.Mismatches != 0 || r.Verdicts < 300 || r.Events != uint64(len(events)) {
		t.Errorf("%+v, %v", r, err)
	}
}

// After an upgrade the log holds verdicts of the model before: they are no
// mismatch, and they are not passed over in silence.
func TestReplayCountsWhatAnotherModelJudged(t *testing.T) {
	events := recorded(t)
	changed := 0
	for i, e := range events {
		if len(e.Verdict) > 0 && changed < 40 {
			c := *e
			c.Verdict = bytes.Replace(e.Verdict, []byte(`"model_version":"linear-6.`), []byte(`"model_version":"linear-5.`), 1)
			events[i] = &c
			changed++
		}
	}
	r, err := Replay(logOf(events), nil)
	if err != nil || r.Mismatches != 0 || r.OtherModel != 40 || r.Verdicts < 300 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestReplayNamesTheFirstVerdictThatWasChanged(t *testing.T) {
	for name, change := range map[string]func(e *schemas.Event){
		"verdict": func(e *schemas.Event) {
			e.Verdict = bytes.Replace(e.Verdict, []byte(`"p_ppm":`), []byte(`"p_ppm":1`), 1)
		},
		"risk": func(e *schemas.Event) { e.Risk++ },
		"lock": func(e *schemas.Event) { e.Lock = schemas.Killed },
		"as_of ahead": func(e *schemas.Event) {
			e.Verdict = bytes.Replace(e.Verdict, []byte(`"as_of":`), []byte(`"as_of":9`), 1)
		},
		"body": func(e *schemas.Event) { e.Data = []byte(`{"to":"someone@else.example"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			events := recorded(t)
			at := -1
			for i, e := range events {
				if e.Kind == schemas.MessageAccepted && e.Action.Resource == "mail" && i > len(events)/2 {
					at = i
					break
				}
			}
			changed := *events[at]
			change(&changed)
			events[at] = &changed
			r, err := Replay(logOf(events), nil)
			if err != nil || r.Mismatches == 0 || r.FirstMismatch != changed.Seq {
				t.Errorf("%+v, %v; want %d", r, err, changed.Seq)
			}
		})
	}
}

func TestReplayTellsAVerdictThatIsTooFarBehind(t *testing.T) {
	p := newPlane(t)
	p.lag = replayWindow + 1
	p.issue("analyst", "report", "").do("call:mail", `{}`)
	if r, err := Replay(logOf(p.log), nil); err != nil || r.Mismatches != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAnEventOutOfOrderEndsTheFold(t *testing.T) {
	p := newPlane(t)
	if err := p.m.Apply(&schemas.Event{Kind: schemas.ReleaseMark, Seq: p.seq}); err == nil {
		t.Error("the same sequence was folded twice")
	}
	if err := p.m.Apply(&schemas.Event{Kind: schemas.TokenIssued, Seq: p.seq + 1, Data: []byte("{")}); err == nil {
		t.Error("an unreadable grant was passed over")
	}
}
