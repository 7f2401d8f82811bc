package compare

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"

	"github.com/writ-sh/writ/ledger"
)

// judge has Tessera's fsck read a folder of tiles: it hashes every entry, makes
// the tree anew, and compares each tile and the signed root.
func judge(t *testing.T, dir string) error {
	t.Helper()
	_, v := keys(t)
	hasher := func(bundle []byte) ([][]byte, error) {
		var b api.EntryBundle
		if err := b.UnmarshalText(bundle); err != nil {
			return nil, err
		}
		out := make([][]byte, len(b.Entries))
		for i, e := range b.Entries {
			out[i] = rfc6962.DefaultHasher.HashLeaf(e)
		}
		return out, nil
	}
	return fsck.New(origin, v, client.FileFetcher{Root: dir}, hasher, fsck.Opts{N: 2}).Check(t.Context())
}

func export(t *testing.T, n int) (dir string) {
	t.Helper()
	l := open(t, t.TempDir())
	in, s, stop := running(t, l)
	for _, e := range entries(t, n) {
		in <- e
	}
	s.wait(uint64(n))
	stop()
	_, v := keys(t)
	dir = filepath.Join(t.TempDir(), "tiles")
	if c, _, err := ledger.WriteTiles(t.Context(), l.Tile, v, dir); err != nil || c.Size != uint64(n) {
		t.Fatal(c, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTesserasFsckAcceptsTheTiles(t *testing.T) {
	for _, n := range []int{1, 256, 257, 66_000} {
		if err := judge(t, export(t, n)); err != nil {
			t.Errorf("%d records: %v", n, err)
		}
	}
}

// One byte is flipped in every file in turn, at several places of each.
func TestTesserasFsckRefusesTheTilesWithAByteFlipped(t *testing.T) {
	dir := export(t, 700)
	flipped, files := 0, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, at := range []int{0, 1, len(whole) / 3, len(whole) / 2, len(whole) - 1} {
			bad := append([]byte(nil), whole...)
			bad[at] ^= 1
			if err := os.WriteFile(path, bad, 0o644); err != nil {
				return err
			}
			if err := judge(t, dir); err == nil {
				t.Errorf("%s, byte %d: accepted", strings.TrimPrefix(path, dir), at)
			}
			flipped++
		}
		return os.WriteFile(path, whole, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := judge(t, dir); err != nil || files != 3+3+1+1 {
		t.Errorf("as it was: %d files, %v", files, err)
	}
	t.Logf("%d bytes flipped in %d files", flipped, files)
}
