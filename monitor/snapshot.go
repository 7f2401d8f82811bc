package monitor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
const snapshotMagic = "writ monitor snapshot 3\n"

// ErrSnapshot is matched where a snapshot is damaged, or not of this model.
// What it holds is of no use then, and the log is folded anew.
var ErrSnapshot = errors.New("the snapshot is of no use")

// Snapshot is the model, written down.
func (m *Model) Snapshot() []byte {
	var b bytes.Buffer
	if err := m.WriteSnapshot(&b); err != nil {
		return nil // which nothing restores; there is an error only where there is an attic
	}
	return b.Bytes()
}

// WriteSnapshot writes the model down, with no more of it in memory than is there
// already.
func (m *Model) WriteSnapshot(w io.Writer) error {
	sum := sha256.New()
	c := codec{buf: []byte(snapshotMagic), attic: m.attic, out: io.MultiWriter(w, sum)}
	text(&c, &m.version)
	text(&c, &m.lastID)
	c.model(m)
	if c.spill(0); c.err != nil {
		return c.err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Restore gives the model that a snapshot holds. It goes on exactly as the one
// that wrote it would have.
func Restore(o Options, b []byte) (*Model, error) {
	return ReadSnapshot(o, bytes.NewReader(b), int64(len(b)))
}

// ReadSnapshot restores a model from so many bytes of a reader.
func ReadSnapshot(o Options, r io.Reader, size int64) (*Model, error) {
	if size < int64(len(snapshotMagic))+sha256.Size {
		return nil, fmt.Errorf("%w: it is none, or of another form", ErrSnapshot)
	}
	sum := sha256.New()
	in := &io.LimitedReader{R: io.TeeReader(r, sum), N: size - sha256.Size}
	c := codec{reading: true, texts: map[string]string{}, in: in}
	if c.want(len(snapshotMagic)); !bytes.HasPrefix(c.buf, []byte(snapshotMagic)) {
		return nil, fmt.Errorf("%w: it is none, or of another form", ErrSnapshot)
	}
	c.buf = c.buf[len(snapshotMagic):]
	m := New(o)
	c.attic = m.attic
	err := m.read(&c)
	if _, rest := io.Copy(io.Discard, in); rest != nil {
		return nil, errors.Join(rest, m.Close())
	}
	stood := make([]byte, sha256.Size)
	if _, rest := io.ReadFull(r, stood); rest != nil {
		return nil, errors.Join(rest, m.Close())
	}
	switch {
	case !bytes.Equal(sum.Sum(nil), stood):
		err = fmt.Errorf("%w: it is damaged", ErrSnapshot)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrSnapshot, err)
	default:
		err = m.Err()
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// read takes the model from a snapshot, of which the sum is not known yet.
func (m *Model) read(c *codec) error {
	var version string
	if text(c, &version); c.err == nil && version != m.version {
		return fmt.Errorf("model %s wrote it, and this is %s", version, m.version)
	}
	text(c, &m.lastID)
	c.model(m)
	if c.want(1); c.err == nil && len(c.buf) > 0 {
		return fmt.Errorf("%d bytes are left over", len(c.buf))
	}
	return c.err
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// writeSnapshot puts a snapshot in the place of the one before, whole or not
// at all.
func writeSnapshot(path string, m *Model) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = m.WriteSnapshot(f)
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

func readSnapshot(path string, o Options) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return ReadSnapshot(o, f, info.Size())
}
