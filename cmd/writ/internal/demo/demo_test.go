package demo

import (
	"testing"
)

func TestTheStoryHoldsToItsEnd(t *testing.T) {
	report, err := Run(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range report.Steps {
		t.Logf("%2d %-20s ok %t\n   expected: %s\n   observed: %s", i+1, s.Name, s.OK, s.Expected, s.Observed)
		if !s.OK {
			t.Errorf("step %q: observed %s", s.Name, s.Observed)
		}
	}
	if !report.OK {
		t.Error("the report is not ok")
	}
	if len(report.Steps) < 12 {
		t.Errorf("%d steps", len(report.Steps))
	}
}
