package plane

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A kept fold is under the ledger's new secret once that was replaced, and can't
// be opened or forged with a copy of the former one; what is nobody's stays
// refused.
func TestAKeptFoldGoesUnderTheNewSecret(t *testing.T) {
	data := t.TempDir()
	must(t, os.Mkdir(filepath.Join(data, foldDir), 0o700))
	old, err := newFoldStore(data, [32]byte{1}, 7)
	must(t, err)
	now, err := newFoldStore(data, [32]byte{2}, 7)
	must(t, err)
	plain := bytes.Repeat([]byte{5}, foldHead+9)
	path := filepath.Join(data, foldDir, foldFile)
	must(t, os.WriteFile(path, old.seal(plain), 0o600))
	foreign := old.seal(plain)
	foreign[len(foreign)-1] ^= 1
	must(t, os.WriteFile(filepath.Join(data, foldDir, foldOld), foreign, 0o600))
	var sealed []byte
	for range 2 { // as behind a crash
		for _, name := range []string{foldFile, foldOld} {
			must(t, now.reseal(name, old))
		}
		b, err := os.ReadFile(path)
		must(t, err)
		if got, err := now.unseal(b); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("under the new secret: %v", err)
		}
		if _, err := old.unseal(b); err == nil {
			t.Error("the former secret opens it")
		}
		if sealed != nil && !bytes.Equal(sealed, b) {
			t.Error("done again, it was sealed again")
		}
		sealed = b
	}
	if b, err := os.ReadFile(filepath.Join(data, foldDir, foldOld)); err != nil || !bytes.Equal(b, foreign) {
		t.Errorf("what is neither's: %v", err)
	}
	must(t, now.reseal("missing", old))
}
