package monitor

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

func weightsKey(t *testing.T, name string) (note.Signer, note.Verifier) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func otherWeights() *Weights {
	w := Reference
	w.Base -= one / 4
	return &w
}

// Who can write the file of weights would choose what the monitor sees.
func TestOnlyWeightsSignedWithTheDeclaredKeyServe(t *testing.T) {
	signer, verifier := weightsKey(t, "acme.example/weights")
	namesake, _ := weightsKey(t, "acme.example/weights")
	foreign, _ := weightsKey(t, "evil.example/weights")
	file, err := json.MarshalIndent(otherWeights(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := SignWeights(append(file, '\n'), signer)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := OpenWeights(signed, verifier); err != nil || *w != *otherWeights() {
		t.Fatalf("%+v, %v", w, err)
	}
	by := func(s note.Signer, text string) []byte {
		b, err := note.Sign(&note.Note{Text: text + "\n"}, s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	version := otherWeights().Version()
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"unsigned":               {file, "not signed"},
		"signed by a stranger":   {by(foreign, string(file)), "not with the key acme.example/weights"},
		"signed by a namesake":   {by(namesake, string(file)), "not with the key acme.example/weights"},
		"changed after":          {bytes.Replace(signed, []byte(`"base": -`), []byte(`"base": -1`), 1), "changed after"},
		"cut":                    {signed[:len(signed)-9], "changed after"},
		"nothing":                {nil, "not signed"},
		"of another model":       {by(signer, strings.Replace(string(file), version, "linear-2.00000000", 1)), "fit them anew"},
		"of no version":          {by(signer, strings.Replace(string(file), version, "", 1)), "fit them anew"},
		"another version's name": {by(signer, strings.Replace(string(file), version, Reference.Version(), 1)), "the file was changed"},
		"something else":         {by(signer, "acme.example\n12\nroot"), "invalid"},
	} {
		if w, err := OpenWeights(c.file, verifier); !errors.Is(err, ErrWeights) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
	}
	if _, err := SignWeights([]byte(`{"version":"linear-2.00000000"}`), signer); !errors.Is(err, ErrWeights) {
		t.Errorf("weights that nobody could serve with were signed: %v", err)
	}
}

// A log that two sets of weights judged, one after the other: each verdict is
// held against its own, and what is not here is named.
func TestReplayHoldsEachVerdictAgainstItsOwnWeights(t *testing.T) {
	p := trained(t, 25, "analyst")
	next := New(Options{Weights: otherWeights()})
	for _, e := range p.log { // the new weights serve: the log is folded anew
		if err := next.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	p.m = next
	for week := range 12 {
		p.weekly("analyst", 30+week).end()
	}
	byNew := 0
	for _, e := range p.log {
		if bytes.Contains(e.Verdict, []byte(otherWeights().Version())) {
			byNew++
		}
	}
	r, err := Replay(logOf(p.log), nil, otherWeights())
	if err != nil || r.Mismatches != 0 || r.OtherModel != 0 || byNew == 0 || r.Verdicts < 100 {
		t.Errorf("with both: %+v, %v", r, err)
	}
	r, err = Replay(logOf(p.log), nil)
	if err != nil || r.Mismatches != 0 || r.OtherModel != uint64(byNew) || len(r.Missing) != 1 || r.Missing[0] != otherWeights().Version() {
		t.Errorf("without the new: %+v, %v; %d are theirs", r, err, byNew)
	}
	for i, e := range p.log { // a verdict that another set of weights gave, under the name of one that is here
		if bytes.Contains(e.Verdict, []byte(otherWeights().Version())) && e.Action.Resource == "note" {
			changed := *e
			changed.Verdict = bytes.Replace(e.Verdict, []byte(otherWeights().Version()), []byte(Reference.Version()), 1)
			p.log[i] = &changed
			if r, err := Replay(logOf(p.log), nil, otherWeights()); err != nil || r.FirstMismatch != e.Seq {
				t.Errorf("under another's name: %+v, %v; want %d", r, err, e.Seq)
			}
			return
		}
	}
	t.Error("the log tried nothing")
}
