package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
)

// An indexCheck holds the two indexes against the records that they lead to,
// segment by segment. It compares sums over all postings of keyed hashes under
// fresh random keys: nobody can know how to change postings and keep the sums.
// Only where they differ are the postings compared one by one.
type indexCheck struct {
	r       pebble.Reader
	keys    [2]maphash.Seed
	segment uint64
	from    uint64 // first record given, within the segment
	count   uint64 // of records given
	agents  postingSum
	traces  postingSum
	bad     error
}

// A postingSum stands for a set of postings.
type postingSum struct{ n, a, b uint64 }

func newIndexCheck(r pebble.Reader) *indexCheck {
	return &indexCheck{r: r, keys: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

func (c *indexCheck) add(s *postingSum, id *[16]byte, index uint64) {
	var b [24]byte
	copy(b[:], id[:])
	binary.BigEndian.PutUint64(b[16:], index)
	s.n++
	s.a += maphash.Bytes(c.keys[0], b[:])
	s.b += maphash.Bytes(c.keys[1], b[:])
}

// expect takes the next record that must be found through the indexes.
func (c *indexCheck) expect(r *proof.Record) {
	if c.count > 0 && r.Index>>segmentBits != c.segment {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	if c.count == 0 {
		c.segment, c.from = r.Index>>segmentBits, r.Index
	}
	c.count++
	c.add(&c.agents, &r.Agent, r.Index)
	if r.Trace != [16]byte{} {
		c.add(&c.traces, &r.Trace, r.Index)
	}
}

// compare ends the check: the indexes lead to what was expected and, in the
// segments that were looked at, to nothing else behind the first record given.
func (c *indexCheck) compare() error {
	if c.count > 0 {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	return c.bad
}

func (c *indexCheck) compareSegment() error {
	err := firstError(c.compareSums(keyByAgent, c.agents), c.compareSums(keyByTrace, c.traces))
	c.count, c.agents, c.traces = 0, postingSum{}, postingSum{}
	return err
}

func (c *indexCheck) compareSums(letter byte, want postingSum) error {
	var found postingSum
	err := c.rows(letter, func(id *[16]byte, index uint64) error {
		c.add(&found, id, index)
		return nil
	})
	if err == nil && found != want {
		return c.compareEach(letter)
	}
	return err
}

// rows calls fn with each posting of the segment behind the first record
// given.
func (c *indexCheck) rows(letter byte, fn func(id *[16]byte, index uint64) error) (err error) {
	low := numberKey(letter, c.segment<<segmentBits)[:7]
	high := numberKey(letter, (c.segment+1)<<segmentBits)[:7]
	it, err := c.r.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: high})
	if err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read the database: %w", err)
		}
		id, index, ok := parsePostingKey(it.Key())
		if !ok {
			return tampered(0, "an index has the malformed key %x", it.Key())
		}
		for {
			if index >= c.from {
				if err := fn(&id, index); err != nil {
					return err
				}
			}
			if len(value) == 0 {
				break
			}
			if index, value, err = nextPosting(index, value); err != nil {
				return err
			}
		}
	}
	return it.Error()
}

// compareEach finds the first posting that is wrong.
func (c *indexCheck) compareEach(letter byte) (err error) {
	cur, err := openCursor(c.r, keyLeaves)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cur.close()) }()
	want := map[uint64][16]byte{}
	for i := c.from; i < c.from+c.count; i++ {
		r, err := cur.record(i)
		if err != nil {
			return err
		}
		if letter == keyByAgent {
			want[i] = r.Agent
		} else if r.Trace != [16]byte{} {
			want[i] = r.Trace
		}
	}
	wrong := ^uint64(0)
	err = c.rows(letter, func(id *[16]byte, index uint64) error {
		if want[index] != *id {
			wrong = min(wrong, index)
		}
		delete(want, index)
		return nil
	})
	if err != nil {
		return err
	}
	for index := range want {
		wrong = min(wrong, index)
	}
	name := "agent"
	if letter == keyByTrace {
		name = "trace"
	}
	last, err := cur.record(min(wrong, c.from+c.count-1))
	if err != nil {
		return err
	}
	seq := last.StreamSeq
	if wrong >= c.from+c.count {
		seq++
	}
	return tampered(seq, "the index by %s does not agree with record %d", name, wrong)
}
