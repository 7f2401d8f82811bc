package keys

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
)

// ReadSecret reads a secret file of a data folder's keys/, which nobody else
// may be able to read. The name is relative to keys/. The trailing newline is
// not part of it.
func ReadSecret(data, name string) ([]byte, error) {
	return readSecret(filepath.Join(data, Dir), name)
}

// WriteSecret writes one, durably, whole or not at all, in place of what is
// there.
//
// It waits while Seal or Unseal is at work: what was written beside them could
// stay in clear in a folder that is sealed.
func WriteSecret(data, name string, content []byte) error {
	d := &draft{dir: filepath.Join(data, Dir), replace: true}
	if _, err := sealOf(d.dir); err != nil { // asks, where it has to, while nobody waits
		return fmt.Errorf("write keys/%s: %w", name, err)
	}
	err := exclusively(data, func() error {
		d.write(name, content)
		return d.err
	})
	if err != nil {
		return fmt.Errorf("write keys/%s: %w", name, err)
	}
	return nil
}

// lockFile of a data folder is held by whoever changes how its secrets lie on
// the disk. It stays: removing it would let two lock two files of one name.
const lockFile = "keys.lock"

func exclusively(data string, do func() error) error {
	lock := flock.New(filepath.Join(data, lockFile), flock.SetPermissions(0o600))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("lock the folder of keys: %w", err)
	}
	return errors.Join(do(), lock.Unlock())
}

// readSecret is where every secret of a folder of keys is read. Errors never
// quote it.
func readSecret(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if err := closed(path, info); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if b, err = unwrapped(dir, name, b); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b, "\n"), nil
}

// readText reads what is public.
func readText(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("read keys: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// readHex reads a secret of 32 bytes written as hex.
func readHex(dir, name string) ([]byte, error) {
	text, err := readSecret(dir, name)
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != 32 {
		return nil, fmt.Errorf("keys/%s is damaged: not 64 hex digits; restore it from a backup", name)
	}
	return b, nil
}

// A draft is a folder in the making; its first error stands for all.
type draft struct {
	dir     string
	replace bool   // the folder is in use: a file is written whole, in place of an old one
	sealed  string // the folder under whose seal it is written; dir where empty
	err     error
}

// write is where every file of a folder of keys is written, sealed where it is
// a secret and the folder is sealed.
func (d *draft) write(name string, content []byte) {
	if d.err != nil {
		return
	}
	file, err := wrapped(cmp.Or(d.sealed, d.dir), name, append(bytes.Clone(content), '\n'))
	if err != nil {
		d.err = err
		return
	}
	d.put(name, file)
}

// put writes a file as it is.
func (d *draft) put(name string, file []byte) {
	if d.err != nil {
		return
	}
	path := filepath.Join(d.dir, name)
	if d.err = os.MkdirAll(filepath.Dir(path), 0o700); d.err != nil {
		return
	}
	end, flags := path, os.O_EXCL
	if d.replace {
		path, flags = path+".tmp", os.O_TRUNC
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if err != nil {
		d.err = err
		return
	}
	_, err = f.Write(file)
	if d.err = errors.Join(err, f.Sync(), f.Close()); d.err == nil && d.replace {
		d.err = errors.Join(os.Rename(path, end), syncDir(filepath.Dir(end)))
	}
}

// syncDir makes a folder's entries durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
