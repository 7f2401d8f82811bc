package ledger

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
)

const levels = 56 / tileBits // of tiles

// A frontier holds, for each bit of a tree's size, the root of the full
// subtree of that many leaves: all that is needed to append, and to have the
// root.
type frontier [64]proof.Hash

// root is the Merkle tree head (RFC 6962, section 2.1) of a tree of size
// leaves.
func (f *frontier) root(size uint64) proof.Hash {
	if size == 0 {
		return proof.EmptyRoot
	}
	level := bits.TrailingZeros64(size)
	h := f[level]
	for level++; size>>level != 0; level++ {
		if size>>level&1 == 1 {
			h = tlog.NodeHash(f[level], h)
		}
	}
	return h
}

// A tree grows by appending, and gives its full tiles away.
type tree struct {
	size     uint64
	frontier frontier
	segment  proof.Hash // root of the newest full segment

	mu      sync.RWMutex   // guards what follows, above level 0, against readers
	parts   [levels][]byte // hashes in the tile that is not full yet, by level
	numbers [levels]uint64 // of those tiles
}

// add appends a full subtree of 2^level leaves, whose level must not be above
// the lowest bit set in size. emit takes each tile that is filled; it must not
// keep the slice.
func (t *tree) add(level int, h proof.Hash, emit func(level int, n uint64, tile []byte)) {
	t.put(level, h, emit)
	start := level
	for ; t.size>>level&1 == 1; level++ {
		h = tlog.NodeHash(t.frontier[level], h)
		t.put(level+1, h, emit)
	}
	t.frontier[level] = h
	t.size += 1 << start
}

// put takes a node whose subtree ends where the tree will end.
func (t *tree) put(level int, h proof.Hash, emit func(int, uint64, []byte)) {
	if level%tileBits != 0 {
		return
	}
	if level == segmentBits {
		t.segment = h
	}
	l := level / tileBits
	if l > 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	t.parts[l] = append(t.parts[l], h[:]...)
	if len(t.parts[l]) == tileSize*hashSize {
		emit(l, t.numbers[l], t.parts[l])
		t.parts[l] = t.parts[l][:0]
		t.numbers[l]++
	}
}

func (t *tree) root() proof.Hash { return t.frontier.root(t.size) }

// hashAt reads one hash of a tile.
func hashAt(tile []byte, i int) (h proof.Hash) {
	copy(h[:], tile[i*hashSize:])
	return h
}

// subtree is the root over 2^n hashes.
func subtree(hashes []byte) proof.Hash {
	var f frontier
	count := uint64(len(hashes) / hashSize)
	for i := uint64(0); i < count; i++ {
		h := hashAt(hashes, int(i))
		level := 0
		for ; i>>level&1 == 1; level++ {
			h = tlog.NodeHash(f[level], h)
		}
		f[level] = h
	}
	return f.root(count)
}

// fullTile reads a stored tile; nil where there is none.
func fullTile(r pebble.Reader, level int, n uint64) ([]byte, error) {
	b, err := get(r, tileKey(level, n))
	if err != nil || b == nil {
		return nil, err
	}
	if len(b) != tileSize*hashSize {
		return nil, tampered(0, "tile %d of level %d has %d bytes", n, level, len(b))
	}
	return b, nil
}

// loadTree builds the tree of the first size records from what is stored. It
// reads, per level, at most 255 tiles.
func loadTree(r pebble.Reader, size uint64) (*tree, error) {
	t := &tree{size: size}
	for l := 0; l < levels; l++ {
		end := size >> (l * tileBits)
		part, err := partTile(r, l, end&^(tileSize-1), int(end&(tileSize-1)))
		if err != nil {
			return nil, err
		}
		t.parts[l], t.numbers[l] = part, end>>tileBits
		rest := part
		for k := tileBits - 1; k >= 0; k-- {
			if end>>k&1 == 1 {
				n := hashSize << k
				t.frontier[l*tileBits+k] = subtree(rest[:n])
				rest = rest[n:]
			}
		}
	}
	return t, nil
}

// partTile computes width hashes of one tile of a level from the level below,
// beginning with entry first.
func partTile(r pebble.Reader, level int, first uint64, width int) ([]byte, error) {
	out := make([]byte, 0, tileSize*hashSize)
	if width == 0 {
		return out, nil
	}
	if level > 0 {
		for i := range width {
			tile, err := fullTile(r, level-1, first+uint64(i))
			if err != nil {
				return nil, err
			}
			if tile == nil {
				return nil, tampered(0, "tile %d of level %d is missing", first+uint64(i), level-1)
			}
			h := subtree(tile)
			out = append(out, h[:]...)
		}
		return out, nil
	}
	c, err := openCursor(r, keyLeaves)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for i := range width {
		leaf, err := c.leaf(first + uint64(i))
		if err != nil {
			return nil, err
		}
		h := proof.LeafHash(leaf)
		out = append(out, h[:]...)
	}
	return out, nil
}

// tiles serves the tiles of a stored tree to package tlog, which checks each
// against the signed root.
type tiles struct {
	r    pebble.Reader
	live *tree // where set: knows the tiles that are not full yet
}

func (s tiles) Height() int { return tileBits }

func (s tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (s tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(want))
	for i, t := range want {
		b, err := s.tile(t)
		if err != nil {
			return nil, fmt.Errorf("tile %d of level %d: %w", t.N, t.L, err)
		}
		out[i] = b
	}
	return out, nil
}

func (s tiles) tile(t tlog.Tile) ([]byte, error) {
	n := t.W * hashSize
	b, err := fullTile(s.r, t.L, uint64(t.N))
	if err != nil {
		return nil, err
	}
	if b == nil {
		b = s.unfinished(t, n)
	}
	if b == nil {
		b, err = partTile(s.r, t.L, uint64(t.N)<<tileBits, t.W)
	}
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

func (s tiles) unfinished(t tlog.Tile, n int) []byte {
	if s.live == nil || t.L == 0 {
		return nil // leaves are quickly hashed
	}
	s.live.mu.RLock()
	defer s.live.mu.RUnlock()
	part := s.live.parts[t.L]
	if len(part) < n || s.live.numbers[t.L] != uint64(t.N) {
		return nil
	}
	return append([]byte(nil), part[:n]...)
}
