package ledger

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
)

// An indexCheck holds the two indexes against the records that they lead to,
// segment by segment.
type indexCheck struct {
	r       pebble.Reader
	segment uint64
	from    uint64   // first record given, within the segment
	seqs    []uint64 // sequences of the records given
	agents  map[[16]byte][]uint64
	traces  map[[16]byte][]uint64
	bad     error
}

func newIndexCheck(r pebble.Reader) *indexCheck {
	return &indexCheck{r: r, agents: map[[16]byte][]uint64{}, traces: map[[16]byte][]uint64{}}
}

// expect takes the next record that must be found through the indexes.
func (c *indexCheck) expect(r *proof.Record) {
	if s := r.Index >> segmentBits; len(c.seqs) > 0 && s != c.segment {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	if len(c.seqs) == 0 {
		c.segment, c.from = r.Index>>segmentBits, r.Index
	}
	c.seqs = append(c.seqs, r.StreamSeq)
	c.agents[r.Agent] = append(c.agents[r.Agent], r.Index)
	if r.Trace != [16]byte{} {
		c.traces[r.Trace] = append(c.traces[r.Trace], r.Index)
	}
}

// compare ends the check: the indexes lead to what was expected and, in the
// segments that were looked at, to nothing else behind the first record given.
func (c *indexCheck) compare() error {
	if len(c.seqs) > 0 {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	return c.bad
}

func (c *indexCheck) compareSegment() error {
	err := firstError(c.compareRows(keyByAgent, c.agents), c.compareRows(keyByTrace, c.traces))
	c.seqs = c.seqs[:0]
	clear(c.agents)
	clear(c.traces)
	return err
}

func (c *indexCheck) compareRows(letter byte, want map[[16]byte][]uint64) (err error) {
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
		id, first, ok := parsePostingKey(it.Key())
		if !ok {
			return tampered(c.seqs[0], "an index has the malformed key %x", it.Key())
		}
		found, err := parsePostings(first, value)
		if err != nil {
			return tampered(c.seqs[0], "%v", err)
		}
		for _, index := range found {
			if index < c.from {
				continue
			}
			rest := want[id]
			if len(rest) == 0 || rest[0] != index {
				return c.wrong(letter, min(index, firstOf(rest, index)))
			}
			want[id] = rest[1:]
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	missing := ^uint64(0)
	for _, rest := range want {
		missing = min(missing, firstOf(rest, missing))
	}
	if missing != ^uint64(0) {
		return c.wrong(letter, missing)
	}
	return nil
}

func firstOf(indexes []uint64, otherwise uint64) uint64 {
	if len(indexes) == 0 {
		return otherwise
	}
	return indexes[0]
}

func (c *indexCheck) wrong(letter byte, index uint64) error {
	name := "agent"
	if letter == keyByTrace {
		name = "trace"
	}
	seq := c.seqs[len(c.seqs)-1] + 1
	if at := index - c.from; at < uint64(len(c.seqs)) {
		seq = c.seqs[at]
	}
	return tampered(seq, "the index by %s does not agree with record %d", name, index)
}
