package plane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WarrantsDir is the folder of a data folder where death warrants are kept that
// were served from this machine, for the issuer to log.
const WarrantsDir = "warrants"

// KeepWarrant keeps a death warrant that is about to be served.
func KeepWarrant(data, account, token string) error {
	dir := filepath.Join(data, WarrantsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the warrant: %w", err)
	}
	f, err := os.CreateTemp(dir, ".writ-*")
	if err != nil {
		return fmt.Errorf("keep the warrant: %w", err)
	}
	_, err = f.WriteString(token + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, account+".jwt"))
	}
	if err != nil {
		return fmt.Errorf("keep the warrant: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// servedWarrants are all that KeepWarrant kept.
func servedWarrants(data string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(data, WarrantsDir, "*.jwt"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a served death warrant: %w", err)
		}
		out = append(out, strings.TrimSpace(string(b)))
	}
	return out, nil
}
