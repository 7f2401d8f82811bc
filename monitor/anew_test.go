package monitor

import (
	"reflect"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// heavier are weights under which every score is higher than under the reference.
func heavier() *Weights {
	w := Reference
	w.Base += 2 * one
	for ev := range w.Of {
		w.Of[ev] += w.Of[ev] / 2
	}
	return &w
}

// folded is a log as a model of those weights folds it.
func folded(t *testing.T, w *Weights, log []*schemas.Event) *Model {
	t.Helper()
	m := New(Options{Weights: w})
	for _, e := range log {
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// A hijacked agent waits for an upgrade: scores that the model before it gave are
// of another scale, and where they were lower, everything is rare after it; where
// they were higher, nothing. What the new one is calibrated by is its own.
func TestAfterAnUpgradeTheModelIsCalibratedByItsOwnScores(t *testing.T) {
	w := heavier()
	old := trained(t, 60, "analyst", "clerk")
	m := folded(t, w, old.log)
	var own []*schemas.Event
	for e, err := range Rejudge(logOf(old.log), Options{Weights: w}) {
		if err != nil {
			t.Fatal(err)
		}
		own = append(own, e)
	}
	want := folded(t, w, own)
	if !reflect.DeepEqual(m.pool, want.pool) || !reflect.DeepEqual(m.maxima, want.maxima) || m.learned != want.learned {
		t.Errorf("the pool after an upgrade: %+v\nif it had always been so: %+v", m.pool.sorted, want.pool.sorted)
	}
	if reflect.DeepEqual(m.pool, old.m.pool) {
		t.Error("both models give the same scores: nothing was tried")
	}
	// The same harm, before and after.
	o := old.issue("analyst", "report", defaultTask)
	harm := o.draft("call:pay", `{"to":"GB33BUKB20201555555555","amount":9000}`)
	if err := m.Apply(old.log[len(old.log)-1]); err != nil {
		t.Fatal(err)
	}
	if before, after := old.m.Assess(harm), m.Assess(harm); before.ActionRisk < 70 || after.ActionRisk < 70 {
		t.Errorf("risk %d before, %d after", before.ActionRisk, after.ActionRisk)
	}
}

// Runs that only one of two versions finds wrong teach nothing, whichever it is.
func TestAnUpgradeTeachesNoRunThatEitherModelFoundWrong(t *testing.T) {
	blind := Weights{Base: Reference.Base}
	for name, c := range map[string]struct{ before, after *Weights }{
		"found by the old": {&Reference, &blind},
		"found by the new": {&blind, &Reference},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			p.m = New(Options{Weights: c.before})
			for _, e := range p.log {
				if err := p.m.Apply(e); err != nil {
					t.Fatal(err)
				}
			}
			for week := range 60 {
				p.weekly("analyst", week).end()
			}
			p.event(schemas.AgentDeclared, "analyst", schemas.Marshal(schemas.Principal{ID: "analyst", Kind: schemas.KindAgent,
				Thresholds: &schemas.Thresholds{Pause: 101, Suspend: 101}})) // nothing but the risk speaks against it
			runs := func(m *Model) uint32 { return m.agents["analyst"].baseline.runs }
			usual := runs(p.m)
			o := p.weekly("analyst", 60)
			v := o.do("call:pay", `{"to":"GB33BUKB20201555555555","amount":9000}`)
			o.end()
			if learned := runs(p.m) > usual; o.held != 0 || learned == (v.ActionRisk >= learnBelow) {
				t.Fatalf("held: %d, risk %d, learned: %v", o.held, v.ActionRisk, learned)
			}
			if m := folded(t, c.after, p.log); runs(m) != usual {
				t.Errorf("%d runs were learned, %d were harmless", runs(m), usual)
			}
		})
	}
}
