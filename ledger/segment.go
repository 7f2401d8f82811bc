package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A segment is verified by itself; the tree below its root is its own.
type segment struct {
	v          *verification
	first, end uint64
	sizes      []uint64 // of the checkpoints that end in it

	begun     bool             // its first record was read, and follows the segment before
	opening   proof.Record     // that record
	tiles     *pebble.Iterator // of level 0, in step with the records
	last      proof.Hash       // of the record read last; at first, that of the segment before
	lastSeq   uint64           // of that record
	tree      tree             // of the segment's own records
	snapshots []snapshot
	missing   map[[16]byte]missing // keys that are gone
	// redactions are the pseudonyms whose erasure is recorded, with the
	// index of the record.
	redactions map[[16]byte]uint64
	handovers  []place // records that hand over to another key
	bad        error
}

type place struct{ index, seq uint64 }

// A snapshot is the segment's frontier where a checkpoint ends.
type snapshot struct {
	size     uint64 // of the whole ledger
	seq      uint64
	frontier [segmentBits + 1]proof.Hash
}

type missing struct {
	first, last uint64 // records
	seq         uint64
}

const progressStep = 4096

// verify reads every row of the segment. It stops at the first record that is
// wrong.
func (s *segment) verify(ctx context.Context) (err error) {
	sc, err := openScanner(s.v.r, s.v.subjects)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sc.close()) }()
	if s.tiles, err = s.v.r.NewIter(&pebble.IterOptions{LowerBound: tileKey(0, s.first>>tileBits), UpperBound: tileKey(1, 0)}); err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	defer func() { err = errors.Join(err, s.tiles.Close()) }()
	s.missing, s.redactions = map[[16]byte]missing{}, map[[16]byte]uint64{}
	index := newIndexCheck(s.v.r, s.end-s.first)
	var tileBad error
	emit := func(level int, n uint64, tile []byte) {
		if level <= 1 { // above, the tile is not of this segment alone
			tileBad = firstError(tileBad, s.checkTile(level, n, tile))
		}
	}
	if err := s.before(sc); err != nil {
		return err
	}
	var room []byte
	var r proof.Record
	for i := s.first; i < s.end; i++ {
		if i%progressStep == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		leaf, err := s.record(sc, i, &r)
		if err != nil {
			return err
		}
		if s.v.contents {
			if room, err = s.content(sc, &r, room); err != nil {
				return err
			}
		}
		if r.Kind == proof.KindRedaction {
			s.redactions[r.Agent] = i
		}
		if r.Kind == proof.KindHandover {
			s.handovers = append(s.handovers, place{i, r.StreamSeq})
		}
		index.expect(&r)
		s.last, s.lastSeq = proof.LeafHash(leaf), r.StreamSeq
		s.tree.add(0, s.last, emit)
		if tileBad != nil {
			return tileBad
		}
		signed := len(s.sizes) > 0 && s.sizes[0] == i+1
		if signed || i+1 == s.end {
			// What comes next would tell of a changed record only behind
			// the checkpoint, whose root tells less.
			if err := s.followed(sc, i); err != nil {
				return err
			}
		}
		if signed {
			s.sizes = s.sizes[1:]
			snap := snapshot{size: i + 1, seq: r.StreamSeq}
			copy(snap.frontier[:], s.tree.frontier[:])
			s.snapshots = append(s.snapshots, snap)
		}
		if (i+1)%progressStep == 0 || i+1 == s.end {
			s.v.progressed((i-s.first)%progressStep + 1)
		}
	}
	if err := s.exact(sc); err != nil {
		return err
	}
	if s.end-s.first == segmentSize {
		if err := s.checkRow(); err != nil {
			return err
		}
	}
	return at(s.opening.StreamSeq, index.compare())
}

// record reads the next record into r and checks its place in the chain.
func (s *segment) record(sc *scanner, i uint64, r *proof.Record) (leaf []byte, err error) {
	here := s.lastSeq + 1 // the sequence that should stand here
	if leaf, err = sc.leaves.leaf(i); err != nil {
		return nil, at(here, err)
	}
	if err = r.Parse(leaf); err != nil {
		return nil, tampered(here, "record %d: %v", i, err)
	}
	switch {
	case r.Index != i:
		return nil, tampered(here, "record %d stands where %d should", r.Index, i)
	case r.StreamID != s.v.head.streamID:
		return nil, tampered(here, "record %d is of another stream", i)
	case !follows(s.lastSeq, r):
		return nil, tampered(here, "record %d bears sequence %d, where %d should follow", i, r.StreamSeq, here)
	case r.Prev != s.last:
		return nil, s.blame(sc, r)
	case !s.begun:
		s.begun, s.opening = true, *r
	}
	return leaf, nil
}

// before reads what the segment's first record has to follow. Where that is
// damaged, the segment before reports it as well, and is heard first.
func (s *segment) before(sc *scanner) error {
	if s.first == 0 {
		return nil
	}
	leaf, err := sc.leaves.leaf(s.first - 1)
	if err != nil {
		return at(s.first, err) // without gaps, its sequence
	}
	r, err := proof.ParseRecord(leaf)
	if err != nil {
		return tampered(s.first, "record %d: %v", s.first-1, err)
	}
	s.last, s.lastSeq = proof.LeafHash(leaf), r.StreamSeq
	sc.leaves.value, sc.leaves.uneven = nil, false // the segment's own blocks begin anew
	return nil
}

// followed checks that what stands behind record i, the one read last, holds
// its hash: the next record, or the head. A next record that can't be read is
// a finding at its own sequence.
func (s *segment) followed(sc *scanner, i uint64) error {
	if i+1 == s.v.head.size {
		if s.v.head.last != s.last {
			return tampered(s.lastSeq, "record %d is not the one whose hash the head holds", i)
		}
		return nil
	}
	next, err := sc.leaves.record(i + 1)
	if err != nil || next.Prev == s.last {
		return nil
	}
	return s.blame(sc, &next)
}

// blame says which of two neighbours was changed where the second does not
// hold the hash of the first: the first, if what follows knows the second.
func (s *segment) blame(sc *scanner, r *proof.Record) error {
	known := s.v.head.last
	if r.Index+1 < s.v.head.size {
		next, err := sc.leaves.record(r.Index + 1)
		if err == nil {
			known = next.Prev
		}
	}
	if proof.LeafHash(r.Append(nil)) == known {
		return tampered(s.lastSeq, "record %d was changed: the one behind it holds another hash of it", r.Index-1)
	}
	return tampered(r.StreamSeq, "record %d was changed: it does not follow the one before it", r.Index)
}

// at gives a finding that knows no sequence one.
func at(seq uint64, err error) error {
	var halt *HaltError
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case !errors.As(err, &halt):
		return tampered(seq, "%v", err)
	case halt.Seq == 0:
		return &HaltError{Seq: seq, Err: halt.Err}
	}
	return err
}

// content checks that the record's content is what it committed to, and that
// the record repeats it rightly.
func (s *segment) content(sc *scanner, r *proof.Record, room []byte) ([]byte, error) {
	if r.Index < s.v.pruned.records {
		return room, nil // the prune record, which was checked, says where it is
	}
	sealed, err := sc.sealed(r.Index)
	if err != nil {
		return room, at(r.StreamSeq, err)
	}
	u := sc.subjects.of(r.Agent)
	if r.Kind != proof.KindEvent {
		u = sc.subjects.find(schemas.Fleet)
	}
	if u == nil {
		m, ok := s.missing[r.Agent]
		if !ok {
			m = missing{first: r.Index, seq: r.StreamSeq}
		}
		m.last = r.Index
		s.missing[r.Agent] = m
		return room, nil
	}
	headers, payload, err := u.openContent(room, r, sealed)
	if err != nil {
		return room, tampered(r.StreamSeq, "record %d: %v", r.Index, err)
	}
	if r.Kind != proof.KindEvent {
		return headers[:0], nil
	}
	subject, h, err := proof.ParseHeaders(headers)
	if err != nil {
		return room, tampered(r.StreamSeq, "record %d: %v", r.Index, err)
	}
	ev, err := schemas.Decode(subject, h, payload)
	if err != nil {
		return room, tampered(r.StreamSeq, "record %d: %v", r.Index, err)
	}
	ev.Seq = r.StreamSeq
	want := eventRecord(ev, u.pseudo, r.StreamID)
	if sc.subjects.find(ev.Agent) != u || r.Time != want.Time || r.Trace != want.Trace {
		return room, tampered(r.StreamSeq, "record %d says another agent, time or trace than its event", r.Index)
	}
	return headers[:0], nil
}

// checkTile compares a tile of the segment with the stored one.
func (s *segment) checkTile(level int, n uint64, tile []byte) error {
	if level == 0 && s.stands(n, tile) {
		return nil
	}
	n += s.first >> (level*tileBits + tileBits)
	stored, err := fullTile(s.v.r, level, n)
	if err != nil {
		return at(s.lastSeq, err)
	}
	if bytes.Equal(stored, tile) {
		return nil
	}
	// The tile was just filled by the record of lastSeq: count back to the
	// first hash that differs.
	wrong := 0
	for stored != nil && hashAt(stored, wrong) == hashAt(tile, wrong) {
		wrong++
	}
	back := uint64(tileSize-wrong)<<(level*tileBits) - 1
	return tampered(s.lastSeq-min(back, s.lastSeq-s.opening.StreamSeq), "tile %d of level %d is not that of its records", n, level)
}

// stands reports whether the next tile of level 0 in the database is the
// segment's n-th, and the same. Tiles are asked for in order.
func (s *segment) stands(n uint64, tile []byte) bool {
	if n == 0 {
		s.tiles.First()
	} else if s.tiles.Valid() {
		s.tiles.Next()
	}
	if !s.tiles.Valid() || !bytes.Equal(s.tiles.Key(), tileKey(0, s.first>>tileBits+n)) {
		return false
	}
	stored, err := s.tiles.ValueAndErr()
	return err == nil && bytes.Equal(stored, tile)
}

// exact reports blocks that overlap, or hold more than they should: every byte
// of the segment's blocks must belong to one record.
func (s *segment) exact(sc *scanner) error {
	for _, c := range []*cursor{sc.leaves, sc.contents} {
		next, held := s.first, len(c.value)/proof.RecordSize
		if c == sc.contents {
			if !s.v.contents {
				continue
			}
			next, held = min(max(s.first, s.v.pruned.records), s.end), len(sc.split)
		}
		if c.even(held, s.end) {
			if err := c.it.Error(); err != nil {
				return err
			}
			continue
		}
		for ok := c.it.SeekGE(numberKey(c.letter, next)); ok; ok = c.it.Next() {
			if next >= s.end {
				break
			}
			if err := c.take(); err != nil {
				return err
			}
			n, whole := len(c.value)/proof.RecordSize, len(c.value)%proof.RecordSize == 0
			if c == sc.contents {
				split, err := splitContents(c.value)
				n, whole = len(split), err == nil
			}
			if c.first != next || !whole || n == 0 || n > blockSize {
				return tampered(s.seqNear(min(next, c.first)), "the block of record %d does not begin or end where it should", c.first)
			}
			next += uint64(n)
		}
		c.value = nil
		if err := c.it.Error(); err != nil {
			return err
		}
		if next != s.end {
			return tampered(s.seqNear(next), "the blocks hold %d records, where there should be %d", next-s.first, s.end-s.first)
		}
	}
	return nil
}

// seqNear is the sequence of a record, or of the segment's last.
func (s *segment) seqNear(index uint64) uint64 {
	c, err := openCursor(s.v.r, keyLeaves)
	if err != nil {
		return s.lastSeq
	}
	defer c.close()
	r, err := c.record(min(index, s.end-1))
	if err != nil {
		return s.lastSeq
	}
	return r.StreamSeq
}

// checkRow compares the row of a full segment with its records.
func (s *segment) checkRow() error {
	b, err := get(s.v.r, numberKey(keySegment, s.first>>segmentBits))
	if err != nil {
		return err
	}
	want := append(append(append([]byte(nil), s.tree.segment[:]...), s.opening.Prev[:]...), s.last[:]...)
	if !bytes.Equal(b, want) {
		return tampered(s.lastSeq, "the row of segment %d is not that of its records", s.first>>segmentBits)
	}
	return nil
}

// rootAt is the root of the whole tree at a snapshot, given the tree of the
// segments before.
func (s *segment) rootAt(before *tree, snap snapshot) proof.Hash {
	f := before.frontier
	own := snap.size - s.first
	if own == segmentSize {
		// The full segment joins those before it.
		h, level := snap.frontier[segmentBits], segmentBits
		for ; before.size>>level&1 == 1; level++ {
			h = tlog.NodeHash(f[level], h)
		}
		f[level] = h
		return f.root(snap.size)
	}
	copy(f[:segmentBits], snap.frontier[:])
	return f.root(snap.size)
}

// joinTree appends the segment to the tree of those before.
func (s *segment) joinTree(t *tree, emit func(int, uint64, []byte)) {
	if s.tree.size == segmentSize {
		t.add(segmentBits, s.tree.frontier[segmentBits], emit)
		return
	}
	for level := segmentBits - 1; level >= 0; level-- {
		if s.tree.size>>level&1 == 1 {
			// Tiles of the lower levels were compared already, and are
			// not put together here.
			t.frontier[level] = s.tree.frontier[level]
		}
	}
	t.size += s.tree.size
}
