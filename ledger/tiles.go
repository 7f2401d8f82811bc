package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
)

// TilesCheckpoint is the path of the checkpoint among the tiles.
const TilesCheckpoint = "checkpoint"

const entryLevel = -1 // of a tile whose hashes are replaced by the leaves

// Tiles gives the files of a log by path, as C2SP tlog-tiles lays them out:
// "checkpoint", "tile/LEVEL/N[.p/W]" and "tile/entries/N[.p/W]". Errors match
// ErrNotFound where there is no such file.
type Tiles func(path string) ([]byte, error)

// Tile is the ledger as Tiles. Its entries are the records of 180 bytes, and
// never contents: whose record it is stands there as a pseudonym. The checkpoint
// is the one that witnesses have cosigned, where a policy says so, and no tile
// reaches behind it.
func (l *Ledger) Tile(path string) ([]byte, error) {
	cur := l.current.Load()
	if l.published.policy != nil {
		if cur = l.published.newest(); cur == nil {
			return nil, fmt.Errorf("%w: no checkpoint has been cosigned yet", ErrNotFound)
		}
	}
	return tileOf(path, cur, tiles{r: l.db, live: &l.chain.tree})
}

// Tile is Ledger.Tile against the anchor's checkpoint.
func (r *Reader) Tile(path string) (b []byte, err error) {
	err = r.l.guard.run(func() error {
		c, msg, err := r.anchored()
		if err != nil {
			return err
		}
		if p := r.l.readPublished(); p != nil && p.Checkpoint == c {
			msg = p.note
		}
		b, err = tileOf(path, &signed{Checkpoint: c, note: msg}, tiles{r: r.l.db})
		return err
	})
	return b, err
}

func (p *publication) newest() *signed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// tileOf reads one file of the tree of a checkpoint.
func tileOf(path string, cur *signed, s tiles) ([]byte, error) {
	if path == TilesCheckpoint {
		return cur.note, nil
	}
	t, err := torchwood.ParseTilePath(path)
	if err != nil || torchwood.TilePath(t) != path {
		return nil, fmt.Errorf("%w: %.100q is no path of a tile", ErrNotFound, path)
	}
	level := max(t.L, 0)
	if level >= levels || uint64(t.N)<<tileBits+uint64(t.W) > cur.Size>>(level*tileBits) {
		return nil, fmt.Errorf("%w: the log of %d records has no %s", ErrNotFound, cur.Size, path)
	}
	if t.L != entryLevel {
		return s.tile(t)
	}
	c, err := openCursor(s.r, keyLeaves)
	if err != nil {
		return nil, err
	}
	defer c.close()
	b := make([]byte, 0, t.W*(proof.RecordSize+2))
	for i := range uint64(t.W) {
		leaf, err := c.leaf(uint64(t.N)<<tileBits + i)
		if err != nil {
			return nil, err
		}
		if b, err = torchwood.AppendTileEntry(b, leaf); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// tilePaths lists the files of a tree of size leaves, the checkpoint left out.
func tilePaths(size uint64, yield func(path string) error) error {
	for level := entryLevel; level < levels; level++ {
		end := size >> (max(level, 0) * tileBits)
		for n := uint64(0); n<<tileBits < end; n++ {
			w := min(end-n<<tileBits, tileSize)
			t := tlog.Tile{H: tileBits, L: level, N: int64(n), W: int(w)}
			if err := yield(torchwood.TilePath(t)); err != nil {
				return err
			}
		}
	}
	return nil
}

// WriteTiles writes all files of a log into a folder that is not there yet or
// empty, the checkpoint last, and gives that and how many files they are.
func WriteTiles(ctx context.Context, get Tiles, v note.Verifier, dir string) (c proof.Checkpoint, files int, err error) {
	msg, err := get(TilesCheckpoint)
	if err != nil {
		return c, 0, fmt.Errorf("export tiles: %w", err)
	}
	if c, err = proof.OpenCheckpoint(msg, v); err != nil {
		return c, 0, fmt.Errorf("export tiles: %w", err)
	}
	if old, err := os.ReadDir(dir); err == nil && len(old) > 0 {
		return c, 0, fmt.Errorf("export tiles: %s is not empty, and stays as it is", dir)
	}
	write := func(path string, b []byte) error {
		name := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("export tiles: %w", err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return fmt.Errorf("export tiles: %w", err)
		}
		files++
		return nil
	}
	err = tilePaths(c.Size, func(path string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := get(path)
		if err != nil {
			return fmt.Errorf("export tiles: %s: %w", path, err)
		}
		return write(path, b)
	})
	if err == nil {
		err = write(TilesCheckpoint, msg)
	}
	return c, files, err
}

// TileHandler serves a log's tiles, read-only, under the path "/". What a path
// once named never changes, the checkpoint apart, so that caches may keep it.
func TileHandler(get Tiles) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/")
		b, err := get(path)
		if err != nil {
			// One who asks too early must not be told so for ever.
			w.Header().Set("Cache-Control", "no-store")
			if errors.Is(err, ErrNotFound) {
				http.NotFound(w, r)
				return
			}
			http.Error(w, "the ledger can't read that", http.StatusInternalServerError)
			return
		}
		if path == TilesCheckpoint {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-cache")
		} else {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		_, _ = w.Write(b) // the client went away
	})
	return mux
}
