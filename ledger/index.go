package ledger

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
)

// An indexCheck holds the two indexes against the records that they lead to,
// segment by segment: each posting must be of the agent, or trace, that its
// record names, and each record must have exactly one.
type indexCheck struct {
	r       pebble.Reader
	segment uint64
	from    uint64     // first record given, within the segment
	agents  [][16]byte // of the records given, in order
	traces  [][16]byte
	seen    []bool // which of them a posting led to
	bad     error
}

// newIndexCheck expects so many records, of one segment or of several.
func newIndexCheck(r pebble.Reader, records uint64) *indexCheck {
	n := min(records, segmentSize)
	return &indexCheck{r: r, agents: make([][16]byte, 0, n), traces: make([][16]byte, 0, n), seen: make([]bool, 0, n)}
}

// expect takes the next record that must be found through the indexes.
func (c *indexCheck) expect(r *proof.Record) {
	if len(c.agents) > 0 && r.Index>>segmentBits != c.segment {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	if len(c.agents) == 0 {
		c.segment, c.from = r.Index>>segmentBits, r.Index
	}
	c.agents, c.traces = append(c.agents, r.Agent), append(c.traces, r.Trace)
}

// compare ends the check: the indexes lead to what was expected and, in the
// segments that were looked at, to nothing else behind the first record given.
func (c *indexCheck) compare() error {
	if len(c.agents) > 0 {
		c.bad = firstError(c.bad, c.compareSegment())
	}
	return c.bad
}

func (c *indexCheck) compareSegment() error {
	err := firstError(c.compareIndex(keyByAgent, c.agents), c.compareIndex(keyByTrace, c.traces))
	c.agents, c.traces = c.agents[:0], c.traces[:0]
	return err
}

// compareIndex finds the first record that an index does not agree with. ids
// are what it should say of each; none has an id of zeros, and no posting.
func (c *indexCheck) compareIndex(letter byte, ids [][16]byte) error {
	c.seen = c.seen[:len(ids)]
	clear(c.seen)
	wrong := ^uint64(0)
	err := c.rows(letter, func(id *[16]byte, index uint64) {
		switch i := index - c.from; {
		case i >= uint64(len(ids)) || ids[i] != *id || *id == [16]byte{} || c.seen[i]:
			wrong = min(wrong, index)
		default:
			c.seen[i] = true
		}
	})
	if err != nil {
		return err
	}
	for i, seen := range c.seen {
		if !seen && ids[i] != [16]byte{} {
			wrong = min(wrong, c.from+uint64(i))
			break
		}
	}
	if wrong == ^uint64(0) {
		return nil
	}
	return c.disagrees(letter, wrong)
}

// disagrees is the finding that an index is wrong about a record, which may be
// one behind the last.
func (c *indexCheck) disagrees(letter byte, wrong uint64) (err error) {
	cur, err := openCursor(c.r, keyLeaves)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cur.close()) }()
	behind := c.from + uint64(len(c.agents))
	last, err := cur.record(min(wrong, behind-1))
	if err != nil {
		return err
	}
	seq := last.StreamSeq
	if wrong >= behind {
		seq++
	}
	name := "agent"
	if letter == keyByTrace {
		name = "trace"
	}
	return tampered(seq, "the index by %s does not agree with record %d", name, wrong)
}

// rows calls fn with each posting of the segment behind the first record
// given.
func (c *indexCheck) rows(letter byte, fn func(id *[16]byte, index uint64)) (err error) {
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
				fn(&id, index)
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
