package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/ledger/proof"
)

const (
	segmentBits = 16
	segmentSize = 1 << segmentBits // records
	blockSize   = 64               // records in a block, at most
	blockBytes  = 256 << 10        // a block of contents is closed when it holds as much
	tileBits    = 8
	tileSize    = 1 << tileBits
	hashSize    = 32
)

// The first letters of keys.
const (
	keyLeaves     = 'l'
	keyContents   = 'p'
	keyByAgent    = 'a'
	keyByTrace    = 't'
	keyTile       = 'T'
	keySegment    = 's'
	keyCheckpoint = 'c'
	keyHandover   = 'h'
	keyMeta       = 'm'
)

var (
	headKey   = []byte("mhead")
	prunedKey = []byte("mpruned")
)

func numberKey(letter byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{letter}, n)
}

func tileKey(level int, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyTile, byte(level)}, n)
}

// postingKey begins with the segment's six bytes, which are the first six of
// every index in it.
func postingKey(letter byte, id [16]byte, index uint64) []byte {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], index)
	k := append(make([]byte, 0, 25), letter)
	k = append(k, n[:6]...)
	k = append(k, id[:]...)
	return append(k, n[6:]...)
}

const postingKeySize = 1 + 6 + 16 + 2

func parsePostingKey(k []byte) (id [16]byte, index uint64, ok bool) {
	if len(k) != postingKeySize {
		return id, 0, false
	}
	copy(id[:], k[7:])
	var n [8]byte
	copy(n[:6], k[1:7])
	copy(n[6:], k[23:])
	return id, binary.BigEndian.Uint64(n[:]), true
}

// parsePostings gives the indexes that a posting row holds, of which the first
// stands in its key.
func parsePostings(first uint64, value []byte) (out []uint64, err error) {
	out = append(make([]uint64, 0, len(value)+1), first)
	for len(value) > 0 {
		if first, value, err = nextPosting(first, value); err != nil {
			return nil, err
		}
		out = append(out, first)
	}
	return out, nil
}

// nextPosting reads the distance to the next posting: a uvarint in its
// shortest form, not 0.
func nextPosting(index uint64, value []byte) (uint64, []byte, error) {
	d, n := binary.Uvarint(value)
	if n <= 0 || d == 0 || d >= segmentSize || index>>segmentBits != (index+d)>>segmentBits || n > 1 && value[n-1] == 0 {
		return 0, nil, tampered(0, "a row of an index is malformed")
	}
	return index + d, value[n:], nil
}

// parseNumberKey undoes numberKey.
func parseNumberKey(letter byte, k []byte) (uint64, bool) {
	if len(k) != 9 || k[0] != letter {
		return 0, false
	}
	return binary.BigEndian.Uint64(k[1:]), true
}

// A head is the durable end of the chain, as it stands in m|head.
type head struct {
	size      uint64 // records
	streamID  uint64
	streamSeq uint64     // of the last record
	last      proof.Hash // leaf hash of the last record, zero without one
	frontier  frontier
}

const headVersion = 1

func (h *head) append(b []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, headVersion)
	b = be.AppendUint64(b, h.size)
	b = be.AppendUint64(b, h.streamID)
	b = be.AppendUint64(b, h.streamSeq)
	b = append(b, h.last[:]...)
	for level := bits.Len64(h.size) - 1; level >= 0; level-- {
		if h.size>>level&1 == 1 {
			b = append(b, h.frontier[level][:]...)
		}
	}
	return b
}

func parseHead(b []byte) (h head, err error) {
	be := binary.BigEndian
	const fixed = 2 + 3*8 + hashSize
	if len(b) < fixed || be.Uint16(b) != headVersion {
		return h, tampered(0, "the head row is malformed")
	}
	h.size, h.streamID, h.streamSeq = be.Uint64(b[2:]), be.Uint64(b[10:]), be.Uint64(b[18:])
	copy(h.last[:], b[26:])
	b = b[fixed:]
	if h.size >= 1<<56 || len(b) != bits.OnesCount64(h.size)*hashSize {
		return h, tampered(0, "the head row is malformed")
	}
	for level := bits.Len64(h.size) - 1; level >= 0; level-- {
		if h.size>>level&1 == 1 {
			copy(h.frontier[level][:], b)
			b = b[hashSize:]
		}
	}
	return h, nil
}

// readHead gives the stored head; ok says whether there is one.
func readHead(r pebble.Reader) (h head, ok bool, err error) {
	b, err := get(r, headKey)
	if err != nil || b == nil {
		return h, false, err
	}
	h, err = parseHead(b)
	return h, err == nil, err
}

// get copies a value, nil where there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the database: %w", err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, closer.Close()
}

// A cursor walks blocks of leaves or of contents, best in order.
type cursor struct {
	it     *pebble.Iterator
	letter byte
	first  uint64 // index of the first record in the current block
	value  []byte // the current block; nil before the first
	uneven bool   // blocks did not follow one another, or held something else than they may
}

func openCursor(r pebble.Reader, letter byte) (*cursor, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: []byte{letter}, UpperBound: []byte{letter + 1}})
	if err != nil {
		return nil, fmt.Errorf("read the database: %w", err)
	}
	return &cursor{it: it, letter: letter}, nil
}

func (c *cursor) close() error { return c.it.Close() }

// load makes the newest block at or before index the current one. Without one,
// value is nil.
func (c *cursor) load(index uint64) error {
	if c.value != nil {
		if c.first < index && c.it.Next() {
			if n, ok := parseNumberKey(c.letter, c.it.Key()); ok && n == index {
				return c.take()
			}
		}
		c.value, c.uneven = nil, true
	}
	if !c.it.SeekLT(numberKey(c.letter, index+1)) {
		if err := c.it.Error(); err != nil {
			return fmt.Errorf("read record %d: %w", index, err)
		}
		return nil
	}
	err := c.take()
	c.uneven = c.uneven || c.first != index
	return err
}

func (c *cursor) take() (err error) {
	var ok bool
	if c.first, ok = parseNumberKey(c.letter, c.it.Key()); !ok {
		return tampered(0, "a row has the malformed key %x", c.it.Key())
	}
	if c.value, err = c.it.ValueAndErr(); err != nil {
		return fmt.Errorf("read record %d: %w", c.first, err)
	}
	if n := len(c.value); c.letter == keyLeaves && (n == 0 || n%proof.RecordSize != 0 || n > blockSize*proof.RecordSize) {
		c.uneven = true
	}
	return nil
}

// even reports whether who read every record up to end, in order, went over
// blocks that hold these and nothing else; the current one, if it does not begin
// at end, holds so many records. It ends the walk.
func (c *cursor) even(records int, end uint64) bool {
	switch {
	case c.uneven || c.value == nil:
		return false
	case c.first >= end:
		return c.first == end
	case c.first+uint64(records) != end:
		return false
	}
	c.value = nil
	if !c.it.Next() {
		return true // its owner asks for the iterator's error
	}
	n, ok := parseNumberKey(c.letter, c.it.Key())
	return ok && n >= end
}

// leaf gives one encoded record; the bytes are valid until the next call.
func (c *cursor) leaf(index uint64) ([]byte, error) {
	if b := c.inBlock(index); b != nil {
		return b, nil
	}
	if err := c.load(index); err != nil {
		return nil, err
	}
	if b := c.inBlock(index); b != nil {
		return b, nil
	}
	return nil, tampered(0, "record %d is missing", index)
}

func (c *cursor) inBlock(index uint64) []byte {
	if c.value == nil || index < c.first || index-c.first >= blockSize {
		return nil
	}
	at := int(index-c.first) * proof.RecordSize
	if at+proof.RecordSize > len(c.value) {
		return nil
	}
	return c.value[at : at+proof.RecordSize]
}

// record gives one decoded record.
func (c *cursor) record(index uint64) (proof.Record, error) {
	b, err := c.leaf(index)
	if err != nil {
		return proof.Record{}, err
	}
	r, err := proof.ParseRecord(b)
	if err == nil && r.Index != index {
		err = fmt.Errorf("%w: record %d stands where %d should", proof.ErrRecord, r.Index, index)
	}
	if err != nil {
		return r, tampered(0, "record %d: %v", index, err)
	}
	return r, nil
}

// splitContents gives the sealed contents in a block. They share its memory.
func splitContents(block []byte) ([][]byte, error) {
	var out [][]byte
	for len(block) > 0 {
		n, used := binary.Uvarint(block)
		if used <= 0 || uint64(len(block)-used) < n {
			return nil, errors.New("a block of contents is malformed")
		}
		out = append(out, block[used:uint64(used)+n])
		block = block[uint64(used)+n:]
	}
	return out, nil
}

// pebbleOptions are those that were measured to help: contents are sealed, so
// compression finds nothing, and large memtables keep appending from waiting.
func pebbleOptions(fs vfs.FS, g *guard) *pebble.Options {
	o := &pebble.Options{
		FS:                          fs,
		Logger:                      g,
		EventListener:               g.listener(),
		FormatMajorVersion:          pebble.FormatNewest,
		CacheSize:                   64 << 20,
		MemTableSize:                64 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               256 << 20,
		DisableTableStats:           true,
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	return o
}
