package plane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// WarrantsDir is the folder of a data folder where death warrants are kept that
// were served from this machine, for the issuer to log.
const WarrantsDir = "warrants"

// KeepWarrant keeps a death warrant that is about to be served, as whoever owns
// the data folder: root may serve it, and the issuer must be able to read it.
func KeepWarrant(data, account, token string) error {
	dir := filepath.Join(data, WarrantsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the warrant: %w", err)
	}
	if err := giveTo(data, dir); err != nil {
		return fmt.Errorf("keep the warrant: %w", err)
	}
	f, err := os.CreateTemp(dir, ".writ-*")
	if err != nil {
		return fmt.Errorf("keep the warrant: %w", err)
	}
	_, err = f.WriteString(token + "\n")
	if err = errors.Join(err, giveTo(data, f.Name()), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, account+".jwt"))
	}
	if err != nil {
		return fmt.Errorf("keep the warrant: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// unreadable says why no issuer starts: it would let in who was killed.
func unreadable(dir string, err error) error {
	return fmt.Errorf("read the death warrants that were served, without which who was killed by one could be let in again: %w; give %s and all in it to the user who runs this (chown -R)", err, dir)
}

// servedWarrants are all that KeepWarrant kept.
func servedWarrants(data string) ([]string, error) {
	dir := filepath.Join(data, WarrantsDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(dir, err)
	}
	var out []string
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".jwt" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, unreadable(dir, err)
		}
		out = append(out, strings.TrimSpace(string(b)))
	}
	return out, nil
}
