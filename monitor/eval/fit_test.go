package eval

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/writ-sh/writ/monitor"
)

func TestFittedWeightsTellHijackedRuns(t *testing.T) {
	path := recorded(t, 4, 8)
	set, err := Load([]string{path}, []string{path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Set: set, Manifest: manifest, Protocol: Novel}
	judged, err := Judge(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	w := Fit(judged)
	for i, id := range monitor.Evidences() {
		if x := w.Of[i]; x < 0 && id != "credit" || x > 0 && id == "credit" {
			t.Errorf("weight of %s: %d", id, x)
		}
	}
	o.Weights = &w
	if judged, err = Judge(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if r := Summarise(o, judged, false); r.AUROC < .99 || r.Model == "" {
		t.Errorf("%+v", r.Figures)
	}
	raw, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var back monitor.Weights
	if err := json.Unmarshal(raw, &back); err != nil || back != w {
		t.Errorf("the weights changed in their file: %v", err)
	}
	for name, bad := range map[string]string{
		"another evidence": strings.Replace(string(raw), `"fresh"`, `"stale"`, 1),
		"a changed weight": strings.Replace(string(raw), `"base":-`, `"base":-1`, 1),
		"a negative one":   strings.Replace(string(raw), `"domain":`, `"domain":-`, 1),
		"one left out":     `{"base":-3,"evidences":{}}`,
	} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
