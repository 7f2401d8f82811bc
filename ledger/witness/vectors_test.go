package witness

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
)

// Vectors that are there are never changed: -vectors adds those that are not.
var addVectors = flag.Bool("vectors", false, "write the test vectors that are missing")

// A vector is a bundle and a policy of testdata, and what a verifier must make
// of them.
type vector struct {
	File      string   `json:"file"`
	Policy    string   `json:"policy"`
	About     string   `json:"about"`
	OK        bool     `json:"ok"`
	Reason    string   `json:"reason,omitempty"`
	BadSeq    uint64   `json:"first_bad_seq,omitempty"`
	Witnessed []string `json:"witnessed,omitempty"` // names whose cosignatures hold
}

// cosigner is a witness's key, always the same.
func cosigner(t *testing.T, name string, seed byte) (s note.Signer, vkey string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)), name)
	if err == nil {
		s, err = cosign.NewSignerForCosignatureV1(skey)
	}
	if err == nil {
		vkey, err = cosign.VKeyToCosignatureV1(vkey)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s, vkey
}

// lineOf is a cosignature of a checkpoint.
func lineOf(t *testing.T, s note.Signer, checkpoint string) string {
	t.Helper()
	text, _, _ := strings.Cut(checkpoint, "\n\n")
	signed, err := note.Sign(&note.Note{Text: text + "\n"}, s)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfterN(string(signed), "\n\n", 2)[1]
}

// vectorFiles makes all files, the same at each run: the clock stands still.
func vectorFiles(t *testing.T) (files map[string][]byte, vectors []vector) {
	t.Helper()
	a, akey := cosigner(t, "a.example", 1)
	b, bkey := cosigner(t, "b.example", 2)
	thief, _ := cosigner(t, "a.example", 3)
	log, err := os.ReadFile(filepath.Join("..", "proof", "testdata", "acme.example.pub"))
	if err != nil {
		t.Fatal(err)
	}
	members := "log " + strings.TrimSpace(string(log)) + "\nwitness a " + akey + " https://a.example\nwitness b " + bkey + " https://b.example\n"
	files = map[string][]byte{
		"both.policy": []byte(members + "group both all a b\nquorum both\n"),
		"any.policy":  []byte(members + "group either any a b\nquorum either\n"),
	}
	whole := wholeBundle(t)
	with := func(lines ...string) []byte {
		c := *whole
		c.Checkpoint += strings.Join(lines, "")
		data, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ofA, ofB := lineOf(t, a, whole.Checkpoint), lineOf(t, b, whole.Checkpoint)
	another := strings.Replace(whole.Checkpoint, "\n5\n", "\n6\n", 1)
	add := func(about, policy string, data []byte) {
		name := fmt.Sprintf("%02d.bundle", len(vectors)+1)
		files[name] = data
		vectors = append(vectors, vector{File: name, Policy: policy, About: about})
	}
	add("cosigned by both, and both are asked for", "both.policy", with(ofA, ofB))
	add("cosigned by one, and both are asked for", "both.policy", with(ofA))
	add("cosigned by one, and one is asked for", "any.policy", with(ofB))
	add("cosigned by nobody", "any.policy", with())
	add("cosigned twice by one, and both are asked for", "both.policy", with(ofA, lineOf(t, a, whole.Checkpoint)))
	add("a cosignature of another checkpoint", "any.policy", with(lineOf(t, a, another)))
	add("a cosignature by another key of the same name", "any.policy", with(lineOf(t, thief, whole.Checkpoint)))
	add("a cosignature by somebody unknown beside those that are asked for", "both.policy", with(ofB, lineOf(t, thief, whole.Checkpoint), ofA))
	return files, vectors
}

func wholeBundle(t *testing.T) *proof.Bundle {
	t.Helper()
	dir := filepath.Join("..", "proof", "testdata")
	raw, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(v vector) bool { return v.About == "whole" })
	if i < 0 {
		t.Fatal("there is no vector of a whole bundle")
	}
	data, err := os.ReadFile(filepath.Join(dir, all[i].File))
	if err != nil {
		t.Fatal(err)
	}
	b, err := proof.OpenBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// outcome is what this program makes of a bundle.
func (v vector) outcome(t *testing.T, data, policy []byte) vector {
	t.Helper()
	p, err := ParseKeyPolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proof.OpenBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	out := vector{File: v.File, Policy: v.Policy, About: v.About}
	ev, err := b.Verify(p)
	var bad *proof.BundleError
	switch {
	case err == nil:
		out.OK = true
		for _, c := range ev.Cosignatures {
			out.Witnessed = append(out.Witnessed, c.Witness)
		}
	case errors.As(err, &bad) && errors.Is(err, proof.ErrUnwitnessed):
		out.Reason, out.BadSeq = "unwitnessed", bad.Seq
	default:
		t.Fatal(err)
	}
	return out
}

func TestTheCosignedVectorsAreWhatTheyWere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files, made := vectorFiles(t)
		list := filepath.Join("testdata", "vectors.json")
		if *addVectors {
			var all []vector
			if raw, err := os.ReadFile(list); err == nil {
				if err := json.Unmarshal(raw, &all); err != nil {
					t.Fatal(err)
				}
			}
			for _, v := range made[len(all):] {
				all = append(all, v.outcome(t, files[v.File], files[v.Policy]))
			}
			raw, err := json.MarshalIndent(all, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			files["vectors.json"] = append(raw, '\n')
			for name, data := range files {
				path := filepath.Join("testdata", name)
				if _, err := os.Stat(path); err == nil && name != "vectors.json" {
					continue
				}
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			delete(files, "vectors.json")
		}
		raw, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		var vectors []vector
		if err := json.Unmarshal(raw, &vectors); err != nil {
			t.Fatal(err)
		}
		if len(vectors) != len(made) {
			t.Errorf("%d vectors, and this program makes %d; run go test ./ledger/witness -vectors", len(vectors), len(made))
		}
		for name, data := range files {
			if stored, err := os.ReadFile(filepath.Join("testdata", name)); err != nil || !bytes.Equal(stored, data) {
				t.Errorf("%s: this program writes other bytes than it did (%v)", name, err)
			}
		}
		for _, want := range vectors {
			if got := want.outcome(t, files[want.File], files[want.Policy]); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %+v, want %+v", want.About, got, want)
			}
		}
	})
}
