package plane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
)

// Rewrap puts what hangs on the ledger's secret under another one: the agents'
// keys and the kept folds. No control plane may run on the folder. It can be
// done again.
func Rewrap(data string, from, to [32]byte) error {
	dir, anchor := filepath.Join(data, "ledger"), filepath.Join(data, "anchor")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // it never ran
	}
	vkey, err := os.ReadFile(filepath.Join(data, keys.Dir, "ledger.pub"))
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return fmt.Errorf("keys/ledger.pub: %w", err)
	}
	r, err := ledger.OpenReader(ledger.Options{Dir: dir, AnchorDir: anchor, Verifier: v})
	if err != nil {
		return err
	}
	id, err := r.StreamID()
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if _, err := ledger.Rewrap(nil, anchor, from, to); err != nil {
		return err
	}
	old, err := newFoldStore(data, from, id)
	if err != nil {
		return err
	}
	store, err := newFoldStore(data, to, id)
	if err != nil {
		return err
	}
	return errors.Join(store.reseal(foldFile, old), store.reseal(foldOld, old))
}

// reseal takes over a fold that another store sealed. One that is neither's is
// left: a start refuses it, as before.
func (s *foldStore) reseal(name string, from *foldStore) error {
	path := filepath.Join(s.dir, name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	plain, err := from.unseal(b)
	if err != nil {
		return nil
	}
	if err := writeSynced(path+".new", s.seal(plain)); err != nil {
		return err
	}
	return errors.Join(os.Rename(path+".new", path), syncFolder(s.dir))
}
