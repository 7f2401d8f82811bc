package ledger

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
)

func TestTilesAreOfTheSignedTreeAndHoldNoContents(t *testing.T) {
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	entries := benchEntries(600)
	mustFeed(t, l, &recorder{}, entries...)
	dir := filepath.Join(t.TempDir(), "tiles")
	c, files, err := WriteTiles(t.Context(), l.Tile, l.o.Verifier, dir)
	if err != nil || c.Size != 600 || files != 3+3+1+1 {
		t.Fatalf("%+v, %d files, %v", c, files, err)
	}
	if _, _, err := WriteTiles(t.Context(), l.Tile, l.o.Verifier, dir); err == nil {
		t.Error("written over what was there")
	}
	var hashes []tlog.Hash
	for _, name := range []string{"000", "001", "002.p/88"} {
		level0, err := os.ReadFile(filepath.Join(dir, "tile", "0", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := os.ReadFile(filepath.Join(dir, "tile", "entries", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		for len(bundle) > 0 {
			leaf := bundle[2 : 2+proof.RecordSize]
			h := proof.LeafHash(leaf)
			if !bytes.Equal(bundle[:2], []byte{0, proof.RecordSize}) || !bytes.Equal(level0[:32], h[:]) {
				t.Fatalf("%s: an entry is not the leaf of its tile", name)
			}
			hashes, bundle, level0 = append(hashes, h), bundle[2+proof.RecordSize:], level0[32:]
		}
	}
	if len(hashes) != 600 {
		t.Fatalf("%d entries", len(hashes))
	}
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{"analyst", "warehouse", string(entries[0].Data[:16])} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %q", path, secret)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTilesReachNoFurtherThanTheCheckpoint(t *testing.T) {
	l := mustOpen(t, testOptions(t, newMem(t)))
	defer l.Close()
	mustFeed(t, l, &recorder{}, benchEntries(300)...)
	for path, there := range map[string]bool{
		"checkpoint": true, "tile/0/000": true, "tile/0/001.p/44": true, "tile/entries/001.p/44": true, "tile/1/000.p/1": true, "tile/0/001.p/1": true,
		"tile/0/001": false, "tile/0/001.p/45": false, "tile/entries/001": false, "tile/1/000": false, "tile/2/000.p/1": false, "tile/7/000.p/1": false,
		"tile/63/000.p/1": false, "tile/0/x999/999": false, "tile/0/000.p/0": false, "tile/data/000": false, "": false, "../keys/ledger.note": false, "tile/0/-01": false,
	} {
		if _, err := l.Tile(path); (err == nil) != there || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", path, err)
		}
	}
	h := TileHandler(l.Tile)
	for path, c := range map[string]struct {
		method, path, cache string
		status              int
	}{
		"checkpoint": {"GET", "/checkpoint", "no-cache", 200}, "tile": {"GET", "/tile/0/000", "immutable", 200},
		"later": {"GET", "/tile/0/001", "no-store", 404}, "write": {"POST", "/tile/0/000", "", http.StatusMethodNotAllowed},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if cache := rec.Header().Get("Cache-Control"); rec.Code != c.status || !strings.Contains(cache, c.cache) {
			t.Errorf("%s: %d, %q", path, rec.Code, cache)
		}
	}
}
