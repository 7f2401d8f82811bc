package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// signed is a text under some keys.
func signed(t *testing.T, by ...note.Signer) []byte {
	t.Helper()
	msg, err := note.Sign(&note.Note{Text: "weights\n"}, by...)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// takes says whether a folder takes what is signed.
func takes(t *testing.T, data string, msg []byte) bool {
	t.Helper()
	v, err := WeightsVerifier(data)
	if err != nil {
		t.Fatal(err)
	}
	_, err = note.Open(msg, note.VerifierList(v))
	return err == nil
}

// A thief has the key of weights that was replaced: nothing of theirs serves,
// nor what it signed before, but for what was signed anew.
func TestNothingServesUnderAKeyOfWeightsThatWasReplaced(t *testing.T) {
	data := initialised(t)
	if _, err := RotateWeights(data, "root/ada", "test", func(...note.Signer) error { return nil }); err == nil || !strings.Contains(err.Error(), "no key of weights") {
		t.Errorf("without a key: %v", err)
	}
	former, err := WeightsSigner(data)
	if err != nil {
		t.Fatal(err)
	}
	before := signed(t, former)
	var kept []byte
	r, err := RotateWeights(data, "root/ada", "each year", func(both ...note.Signer) error {
		kept = signed(t, both...)
		if !takes(t, data, kept) {
			t.Error("signed anew, it does not serve before the rotation")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if takes(t, data, before) || takes(t, data, signed(t, former)) {
		t.Error("the former key's weights serve")
	}
	if !takes(t, data, kept) {
		t.Error("signed anew, it does not serve behind the rotation")
	}
	now, err := WeightsSigner(data)
	if err != nil || signerID(now) != r.KeyID || signerID(former) != r.Replaced || !takes(t, data, signed(t, now)) {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := RotateWeights(data, "root/ada", "test", func(...note.Signer) error { return nil }); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("twice, before the log knows: %v", err)
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	turn, told, err := s.Untold()
	if err != nil || turn == nil || turn.Rotation != r || turn.Reason != "each year" {
		t.Fatalf("for the log: %+v, %v", turn, err)
	}
	if err := told(); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateWeights(data, "root/ada", "test", func(...note.Signer) error { return errors.New("no such file") }); err == nil {
		t.Error("rotated, though what shall serve could not be signed")
	}
	if now, err := WeightsSigner(data); err != nil || signerID(now) != r.KeyID {
		t.Errorf("behind a rotation that failed: %v, %v", now, err)
	}
}

// The machine stops behind any of the files that a rotation of the key of
// weights writes or removes: what was signed anew serves throughout, and what is
// run again ends at the same key.
func TestAnInterruptedRotationOfTheKeyOfWeightsIsDoneAgain(t *testing.T) {
	first := initialised(t)
	former, err := WeightsSigner(first)
	if err != nil {
		t.Fatal(err)
	}
	before := signed(t, former)
	stop := errors.New("stopped")
	var kept []byte
	if _, err := RotateWeights(first, "root/ada", "test", func(both ...note.Signer) error {
		kept = signed(t, both...)
		return stop
	}); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	whole := copied(t, first)
	resign := func(both ...note.Signer) error {
		if string(signed(t, both...)) != string(kept) {
			t.Error("another key was made")
		}
		return nil
	}
	done, err := RotateWeights(whole, "root/ada", "test", resign)
	if err != nil {
		t.Fatal(err)
	}
	steps := []string{weightsTurn, weightsPublic, weightsSecret, "-" + weightsNext, "-" + weightsNexts}
	for n := range len(steps) + 1 {
		part := halfway(t, first, whole, steps[:n])
		if !takes(t, part, kept) {
			t.Errorf("behind %v: what was signed anew does not serve", steps[:n])
		}
		if takes(t, part, before) != (n < 2) {
			t.Errorf("behind %v: what the former key alone signed serves: %t", steps[:n], n >= 2)
		}
		if s, err := WeightsSigner(part); err == nil && !takes(t, part, signed(t, s)) {
			t.Errorf("behind %v: it signs what it does not take", steps[:n])
		}
		if n < 4 { // then it is whole, and a new one would begin
			if r, err := RotateWeights(part, "root/ada", "test", resign); err != nil || r != done {
				t.Errorf("behind %v: %+v, %v", steps[:n], r, err)
			}
		}
		if s, err := WeightsSigner(part); err != nil || signerID(s) != done.KeyID {
			t.Errorf("behind %v, once more: %v", steps[:n], err)
		}
		if _, err := os.Stat(filepath.Join(part, Dir, weightsNext)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("behind %v: the successor's file is left: %v", steps[:n], err)
		}
	}
}
