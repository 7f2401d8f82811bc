package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A step of a conversion leaves a folder in which every secret is whole. What
// stops behind any of them, or within, is begun again from the first.
type step func() error

func walk(steps []step) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// Seal seals the secrets of a folder, in place: each is in its file all the
// time, before as it was and then sealed. It goes on where sealing or unsealing
// was interrupted. Nobody else may use the folder meanwhile.
//
// What a disk keeps of a file that was replaced is beyond it: a folder that is
// sealed from the beginning has never been there in clear.
func Seal(data string, with *Opener) error {
	if _, err := Open(data); err != nil {
		return err
	}
	return exclusively(data, func() error {
		steps, err := sealing(data, with)
		if err != nil {
			return err
		}
		return walk(steps)
	})
}

func sealing(data string, with *Opener) ([]step, error) {
	dir := filepath.Join(data, Dir)
	s, err := sealOf(dir)
	if err != nil {
		return nil, err
	}
	if s != nil && s.State == whole {
		return nil, ErrIsSealed
	}
	key := newSeal(half, with)
	if s != nil {
		key.Key = s.Key // some files are under it
	}
	d := &draft{dir: dir, replace: true}
	steps := []step{
		func() error { return dropTemporary(data) },
		func() error { return key.put(d) },
	}
	names, err := secrets(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		steps = append(steps, func() error { return key.convert(d, name) })
	}
	return append(steps, func() error { return (&seal{key.Key, whole, with}).put(d) }), nil
}

// convert seals one file, unless it is.
func (s *seal) convert(d *draft, name string) error {
	file, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return fmt.Errorf("seal keys/%s: %w", name, err)
	}
	if isSealed(file) {
		_, err := s.open(name, file)
		return err
	}
	sealed, err := s.close(name, file)
	if err != nil {
		return fmt.Errorf("seal keys/%s: %w", name, err)
	}
	if back, err := s.open(name, sealed); err != nil || !bytes.Equal(back, file) {
		return fmt.Errorf("seal keys/%s: what was sealed is not what comes back; it stays as it is", name)
	}
	if d.put(name, sealed); d.err != nil {
		return fmt.Errorf("seal keys/%s: %w", name, d.err)
	}
	return nil
}

// Unseal gives the secrets of a sealed folder back in clear, as Seal seals
// them. The folder is opened as OpenWith says.
func Unseal(data string) error {
	if _, err := Open(data); err != nil {
		return err
	}
	return exclusively(data, func() error {
		steps, err := unsealing(data)
		if err != nil {
			return err
		}
		return walk(steps)
	})
}

func unsealing(data string) ([]step, error) {
	dir := filepath.Join(data, Dir)
	s, err := sealOf(dir)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errors.New("the keys are not sealed")
	}
	names, err := secrets(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names { // before anything is changed
		if err := s.holds(dir, name); err != nil {
			return nil, err
		}
	}
	d := &draft{dir: dir, replace: true}
	steps := []step{
		func() error { return dropTemporary(data) },
		func() error { return (&seal{s.Key, half, s.with}).put(d) },
	}
	for _, name := range names {
		steps = append(steps, func() error { return s.revert(d, name) })
	}
	return append(steps, func() error {
		return errors.Join(os.Remove(filepath.Join(dir, sealFile)), syncDir(dir))
	}), nil
}

// holds reports whether a file can be unsealed. In a folder that is half sealed
// it may be in clear.
func (s *seal) holds(dir, name string) error {
	file, err := os.ReadFile(filepath.Join(dir, name))
	switch {
	case err != nil:
		return fmt.Errorf("unseal keys/%s: %w", name, err)
	case isSealed(file):
		_, err := s.open(name, file)
		return err
	case s.State == whole:
		return fmt.Errorf("keys/%s is not sealed, and the folder is: somebody put it there; restore it from a backup, or remove it", name)
	}
	return nil
}

func (s *seal) revert(d *draft, name string) error {
	file, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return fmt.Errorf("unseal keys/%s: %w", name, err)
	}
	if !isSealed(file) {
		return nil
	}
	content, err := s.open(name, file)
	if err != nil {
		return err
	}
	if d.put(name, content); d.err != nil {
		return fmt.Errorf("unseal keys/%s: %w", name, d.err)
	}
	return nil
}

// Reseal seals the key of a folder to another passphrase or identity. The key
// stays: with a copy of the folder from before, the old passphrase opens what
// the folder holds now. Where somebody may have both, replace the keys.
func Reseal(data string, with *Opener) error {
	if _, err := Open(data); err != nil {
		return err
	}
	dir := filepath.Join(data, Dir)
	s, err := sealOf(dir)
	if err != nil {
		return err
	}
	if s == nil {
		return errors.New("the keys are not sealed; writ keys seal seals them")
	}
	if err := s.ready(); err != nil {
		return err
	}
	return (&seal{s.Key, whole, with}).put(&draft{dir: dir, replace: true})
}

// secrets names the files of a folder of keys that are no public ones.
func secrets(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || isPublic(name) || isTemporary(name) {
			return err
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("keys/%s is no regular file, so it can't be sealed; put the file itself there", name)
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("seal the keys: %w", err)
	}
	return names, nil
}

func isTemporary(name string) bool {
	return strings.HasSuffix(name, ".tmp") || strings.HasPrefix(filepath.Base(name), ".new-")
}

// dropTemporary removes what a process left that was killed while it wrote:
// there could be secrets in it.
func dropTemporary(data string) error {
	if err := removeAll(filepath.Join(data, tlsDraft+"*")); err != nil {
		return err
	}
	err := filepath.WalkDir(filepath.Join(data, Dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !isTemporary(path) {
			return err
		}
		return os.Remove(path)
	})
	if err != nil {
		return fmt.Errorf("remove what was left half written: %w", err)
	}
	return dropDrafts(data)
}
