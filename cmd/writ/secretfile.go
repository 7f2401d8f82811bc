package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// credsMark is how a file of NATS credentials begins.
var credsMark = []byte("-----BEGIN NATS USER JWT-----")

// canReplace says whether credentials may be written to a path: where nothing
// is, or older credentials are. Anything else stays as it is. It is asked
// before the control plane is, so that no credentials are made for nothing.
func canReplace(path string) error {
	const next = "name another file"
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return advise(fmt.Errorf("credentials can't be written to %s: its folder is not there", path), "make the folder, or name another file")
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return advise(fmt.Errorf("credentials can't be written: %w", err), next)
	case !info.Mode().IsRegular():
		return advise(fmt.Errorf("%s is no regular file, and credentials go to no other", path), next)
	}
	f, err := os.Open(path)
	if err != nil {
		return advise(fmt.Errorf("credentials can't be written: %w", err), next)
	}
	defer f.Close()
	head := make([]byte, len(credsMark))
	if n, _ := f.Read(head); n > 0 && !bytes.Equal(head[:n], credsMark) {
		return advise(fmt.Errorf("%s is there already and holds no credentials, so it stays as it is", path), next)
	}
	return nil
}

// writeSecret writes a file that only the user can read, whole or not at all.
func writeSecret(path string, content []byte) (err error) {
	defer func() {
		if err != nil {
			err = advise(fmt.Errorf("write credentials: %w", err), "check that you may write there, and ask again: what was issued was not kept")
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), ".writ-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
