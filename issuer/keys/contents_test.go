package keys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// The machine stops at any step of a rotation of the ledger's secret: until it
// was run again to its end, the ledger doesn't open, for with one secret alone it
// would take what is under the other for damaged.
func TestAnInterruptedRotationOfTheLedgersSecretIsDoneAgain(t *testing.T) {
	data := initialised(t)
	first := signsLedger(t, data).Secret
	lookup := func(s [32]byte) []byte { return append(make([]byte, 0, 32), s[:]...) }
	stop := errors.New("stopped")
	var from, to [32]byte
	if _, err := RotateContents(data, "root/ada", "test", lookup, func(a, b [32]byte) error {
		from, to = a, b
		return stop
	}); !errors.Is(err, stop) || from != first || to == first {
		t.Fatal(err)
	}
	if _, err := OpenLedger(data); !errors.Is(err, ErrHalfRotated) {
		t.Fatalf("half rotated, it opens: %v", err)
	}
	again := func(a, b [32]byte) error {
		if a != from || b != to {
			t.Error("another secret was made")
		}
		return nil
	}
	part := copied(t, data)
	r, err := RotateContents(data, "root/ada", "each year", lookup, again)
	if err != nil || r.KeyID == "" || r.KeyID == r.Replaced {
		t.Fatalf("%+v, %v", r, err)
	}
	// Stopped behind the turn, which the log is told once.
	b, err := os.ReadFile(filepath.Join(data, Dir, contentsTurn))
	if err == nil {
		err = os.WriteFile(filepath.Join(part, Dir, contentsTurn), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := RotateContents(part, "root/ada", "each year", lookup, again); err != nil || again != r {
		t.Errorf("behind the turn: %+v, %v", again, err)
	}
	l := signsLedger(t, data)
	if l.Secret != to || string(l.Lookup) != string(first[:]) {
		t.Errorf("%x finds under %x", l.Secret, l.Lookup)
	}
	if _, err := RotateContents(data, "root/ada", "test", lookup, again); err == nil {
		t.Error("twice, before the log knows")
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	turn, told, err := s.Untold()
	if err != nil || turn == nil || turn.Rotation != r {
		t.Fatalf("for the log: %+v, %v", turn, err)
	}
	if err := told(); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateContents(data, "root/ada", "test", lookup, func(a, b [32]byte) error {
		if a != to {
			t.Errorf("from %x", a)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if l := signsLedger(t, data); l.Secret == to || string(l.Lookup) != string(first[:]) {
		t.Errorf("rotated twice, it finds under %x", l.Lookup)
	}
	for _, bad := range []string{`{"secret":"00"}`, `{"secret":""}`, `{"secret":"zz"}`, `{}`, "", "00", `{"secret":"` + string(make([]byte, 64)) + `"}`} {
		if err := WriteSecret(data, contentsFile, []byte(bad)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenLedger(data); !errors.Is(err, errContents) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
