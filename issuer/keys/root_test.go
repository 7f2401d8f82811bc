package keys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheRootKeyLeavesAndComesBack(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		data, o, exportTo := filled(t), opener(t, testPhrase), opener(t, "another passphrase")
		if sealed {
			another(t, o)
			if err := Seal(data, o); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(t, data)
		root := before[rootSeed]
		if root == "" {
			t.Fatal("there is no root key")
		}
		export, err := ExportRoot(data, exportTo)
		if err != nil {
			t.Fatal(err)
		}
		if found := search(t, onDisk(t, export), patterns(t, before)); len(found) > 0 {
			t.Error(found)
		}
		if err := CheckRoot(data, export, exportTo); err != nil {
			t.Error(err)
		}

		// Nothing is removed that the export does not hold.
		bits := bytes.Clone(export)
		bits[len(bits)/2] ^= 1
		for what, err := range map[string]error{
			"a changed export":     RemoveRoot(data, bits, exportTo),
			"half an export":       RemoveRoot(data, export[:len(export)/2], exportTo),
			"another's passphrase": RemoveRoot(data, export, o),
			"no export":            RemoveRoot(data, nil, exportTo),
			"a file more": func() error {
				more := filepath.Join(data, Dir, offlineDir, "notes")
				werr := os.WriteFile(more, []byte("mine"), 0o600)
				err := RemoveRoot(data, export, exportTo)
				if rerr := errors.Join(werr, os.Remove(more)); rerr != nil {
					t.Fatal(rerr)
				}
				return err
			}(),
			"a key more": func() error {
				more := filepath.Join(offlineDir, "LATER"+seedExt)
				werr := WriteSecret(data, more, []byte(root))
				err := RemoveRoot(data, export, exportTo)
				if rerr := errors.Join(werr, os.Remove(filepath.Join(data, Dir, more))); rerr != nil {
					t.Fatal(rerr)
				}
				return err
			}(),
		} {
			if err == nil {
				t.Errorf("%s: the root key was removed", what)
			} else if strings.Contains(err.Error(), root) {
				t.Errorf("%s: the error holds it", what)
			}
		}
		if contents(t, data)[rootSeed] != root {
			t.Fatal("a refused removal removed it")
		}

		if err := RemoveRoot(data, export, exportTo); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(data, Dir, offlineDir)); !os.IsNotExist(err) {
			t.Errorf("it is still here: %v", err)
		}
		if _, err := ExportRoot(data, exportTo); !errors.Is(err, ErrNoRoot) {
			t.Errorf("an export of nothing: %v", err)
		}
		// All that Writ does with keys goes on without it.
		if _, err := OpenSecrets(data); err != nil {
			t.Error(err)
		}
		if err := Renew(data); err != nil {
			t.Error(err)
		}
		foreign := filepath.Join(t.TempDir(), "data")
		if err := Init(foreign, "acme.example"); err != nil {
			t.Fatal(err)
		}
		if err := ImportRoot(foreign, export, exportTo); err == nil || !strings.Contains(err.Error(), "it is the root key of") {
			t.Errorf("another control plane's: %v", err)
		}
		if err := ImportRoot(data, export, o); err == nil {
			t.Error("a wrong passphrase opens it")
		}
		if err := ImportRoot(data, export, exportTo); err != nil {
			t.Fatal(err)
		}
		after := contents(t, data)
		for name, content := range before {
			if strings.HasPrefix(name, offlineDir) && after[name] != content {
				t.Errorf("%s is another", name)
			}
		}
		if b, err := os.ReadFile(filepath.Join(data, Dir, rootSeed)); err != nil || isSealed(b) != sealed {
			t.Errorf("sealed %v, the imported one %v, %v", sealed, isSealed(b), err)
		}
	}
}

// An export with a seed that is not this control plane's must not become one.
func TestAForgedExportIsRefused(t *testing.T) {
	data, other, o := filled(t), filled(t), opener(t, testPhrase)
	trust, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := offlineOf(data, trust)
	if err != nil {
		t.Fatal(err)
	}
	theirs := contents(t, other)
	for what, change := range map[string]func(*root){
		"another's root":         func(r *root) { r.Seeds["operator"] = theirs[rootSeed] },
		"another's account":      func(r *root) { r.Seeds[SYS] = theirs["offline/SYS.seed"] },
		"no root":                func(r *root) { delete(r.Seeds, "operator") },
		"no seed":                func(r *root) { r.Seeds[SYS] = "SA" },
		"a name that leads away": func(r *root) { r.Seeds["../../x"] = r.Seeds[SYS] },
		"another trust domain":   func(r *root) { r.TrustDomain = "other.example" },
	} {
		r := &root{TrustDomain: mine.TrustDomain, Operator: mine.Operator, Seeds: map[string]string{}}
		for id, seed := range mine.Seeds {
			r.Seeds[id] = seed
		}
		if err := r.check(trust); err != nil {
			t.Fatal(err)
		}
		change(r)
		export, err := r.encrypt(o)
		if err != nil {
			t.Fatal(err)
		}
		err = ImportRoot(data, export, o)
		if err == nil {
			t.Errorf("%s: it was imported", what)
			continue
		}
		for _, seed := range r.Seeds {
			if len(seed) > 2 && strings.Contains(err.Error(), seed) {
				t.Errorf("%s: the error holds a seed", what)
			}
		}
	}
}

func onDisk(t *testing.T, file []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "export"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
