package monitor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// A snapshot is a model as it stood behind one event: the fold up to there, so
// that what EVENTS has long forgotten stays known. It is, one behind the other,
// snapshotMagic, the version of the model, the id of the event, the state in
// the codec's one form, and the SHA-256 of all that. The sum tells damage, not
// forgery: who can write the monitor's folder is the monitor.

// snapshotMagic names the form; a change of what is kept changes the number.
const snapshotMagic = "writ monitor snapshot 2\n"

// ErrSnapshot is matched where a snapshot is damaged, or not of this model.
// What it holds is of no use then, and the log is folded anew.
var ErrSnapshot = errors.New("the snapshot is of no use")

// Snapshot writes the model down.
func (m *Model) Snapshot() []byte {
	c := codec{buf: []byte(snapshotMagic)}
	text(&c, &m.version)
	text(&c, &m.lastID)
	c.model(m)
	sum := sha256.Sum256(c.buf)
	return append(c.buf, sum[:]...)
}

// Restore gives the model that a snapshot holds. It goes on exactly as the one
// that wrote it would have.
func Restore(o Options, b []byte) (*Model, error) {
	body, ok := bytes.CutPrefix(b, []byte(snapshotMagic))
	if !ok || len(body) < sha256.Size {
		return nil, fmt.Errorf("%w: it is none, or of another form", ErrSnapshot)
	}
	body = body[:len(body)-sha256.Size]
	if sum := sha256.Sum256(b[:len(b)-sha256.Size]); !bytes.Equal(sum[:], b[len(b)-sha256.Size:]) {
		return nil, fmt.Errorf("%w: it is damaged", ErrSnapshot)
	}
	m := New(o)
	c := codec{reading: true, buf: body, texts: map[string]string{}}
	var version string
	if text(&c, &version); c.err == nil && version != m.version {
		return nil, fmt.Errorf("%w: model %s wrote it, and this is %s", ErrSnapshot, version, m.version)
	}
	text(&c, &m.lastID)
	c.model(m)
	if c.err == nil && len(c.buf) > 0 {
		c.err = fmt.Errorf("%d bytes are left over", len(c.buf))
	}
	if c.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, c.err)
	}
	return m, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// writeSnapshot puts a snapshot in the place of the one before, whole or not
// at all.
func writeSnapshot(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
