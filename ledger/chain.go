package ledger

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A sealedEvent is an entry made ready for the chain: all of the record but
// its index and predecessor.
type sealedEvent struct {
	event  *schemas.Event // nil for the ledger's own records
	record proof.Record
	sealed []byte
}

// prepare decodes an entry, commits to it and seals it. It may run beside
// others.
func (s *subjects) prepare(streamID uint64, e Entry) (p sealedEvent, err error) {
	var room [32]schemas.HeaderPair
	ev, headers, err := schemas.DecodeSorted(e.Seq, e.Subject, e.Header, e.Data, room[:0])
	if err != nil {
		return p, err
	}
	u, err := s.need(ev.Agent)
	if err != nil {
		return p, err
	}
	b := proof.AppendSorted(s.takeRoom(2048+len(e.Data)), e.Subject, headers)
	n := len(b)
	p.event = ev
	p.record = eventRecord(ev, u.pseudo, streamID)
	p.sealed = u.sealContent(&p.record, append(b, e.Data...), n)
	return p, nil
}

// eventRecord fills in what the record repeats of its event.
func eventRecord(ev *schemas.Event, agent [16]byte, streamID uint64) proof.Record {
	r := proof.Record{Kind: proof.KindEvent, StreamID: streamID, StreamSeq: ev.Seq, Time: ev.Time.UnixNano(), Agent: agent}
	r.Trace = traceBytes(ev.Trace.ID)
	return r
}

// traceBytes is a trace id, which package schemas has checked, in bytes; zero
// where there is none.
func traceBytes(id string) (b [16]byte) {
	if len(id) == 2*len(b) {
		if _, err := hex.Decode(b[:], []byte(id)); err != nil {
			return [16]byte{}
		}
	}
	return b
}

// A chain is the writer's end of the ledger: what the next record follows. It
// runs ahead of what is durable.
type chain struct {
	tree
	streamID     uint64
	streamSeq    uint64
	last         proof.Hash
	segmentFirst proof.Hash // Prev of the current segment's first record
}

// link gives the record its place and appends it to the chain.
func (c *chain) link(r *proof.Record, leaf []byte, emit func(int, uint64, []byte)) []byte {
	r.Index, r.Prev = c.size, c.last
	if c.size%segmentSize == 0 {
		c.segmentFirst = c.last
	}
	leaf = r.Append(leaf)
	c.last = proof.LeafHash(leaf[len(leaf)-proof.RecordSize:])
	c.streamSeq = r.StreamSeq
	c.add(0, c.last, emit)
	return leaf
}

// segmentRow is the row of the segment that the chain just filled.
func (c *chain) segmentRow() []byte {
	b := append(make([]byte, 0, 3*hashSize), c.segment[:]...)
	b = append(b, c.segmentFirst[:]...)
	return append(b, c.last[:]...)
}

// scratch is reused from batch to batch.
type scratch struct {
	ready                  []sealedEvent
	leaves, contents, head []byte
	agents, traces         postings
}

// postings are a run's rows of one index.
type postings struct {
	rows map[[16]byte]*posting
	free []*posting
}

type posting struct {
	first, last uint64
	value       []byte
}

func (p *postings) add(id [16]byte, index uint64) {
	if p.rows == nil {
		p.rows = map[[16]byte]*posting{}
	}
	row := p.rows[id]
	if row == nil {
		if n := len(p.free); n > 0 {
			row, p.free = p.free[n-1], p.free[:n-1]
		} else {
			row = new(posting)
		}
		row.first, row.last, row.value = index, index, row.value[:0]
		p.rows[id] = row
		return
	}
	row.value = binary.AppendUvarint(row.value, index-row.last)
	row.last = index
}

func (p *postings) flush(w *pebble.Batch, letter byte) error {
	for id, row := range p.rows {
		if err := w.Set(postingKey(letter, id, row.first), row.value, nil); err != nil {
			return err
		}
		p.free = append(p.free, row)
	}
	clear(p.rows)
	return nil
}

// write appends records to the chain and all their rows to a batch. The caller
// holds wmu. Runs never cross a segment's end.
func (l *Ledger) write(w *pebble.Batch, run []sealedEvent) error {
	c, s := &l.chain, &l.scratch
	var failed error
	set := func(k, v []byte) {
		if err := w.Set(k, v, nil); err != nil && failed == nil {
			failed = err
		}
	}
	emit := func(level int, n uint64, tile []byte) { set(tileKey(level, n), tile) }
	flushLeaves := func() {
		if n := uint64(len(s.leaves) / proof.RecordSize); n > 0 {
			set(numberKey(keyLeaves, c.size-n), s.leaves)
			s.leaves = s.leaves[:0]
		}
	}
	var contents, first uint64
	flushContents := func() {
		if contents > 0 {
			set(numberKey(keyContents, first), s.contents)
			s.contents, contents = s.contents[:0], 0
		}
	}
	s.leaves, s.contents = s.leaves[:0], s.contents[:0]
	for i := range run {
		p := &run[i]
		s.leaves = c.link(&p.record, s.leaves, emit)
		index := p.record.Index
		if contents == 0 {
			first = index
		}
		s.contents = binary.AppendUvarint(s.contents, uint64(len(p.sealed)))
		s.contents = append(s.contents, p.sealed...)
		contents++
		s.agents.add(p.record.Agent, index)
		if p.record.Trace != [16]byte{} {
			s.traces.add(p.record.Trace, index)
		}
		end := c.size%segmentSize == 0
		if end || len(s.leaves) == blockSize*proof.RecordSize {
			flushLeaves()
		}
		if end || contents == blockSize || len(s.contents) >= blockBytes {
			flushContents()
		}
		if end {
			set(numberKey(keySegment, c.size>>segmentBits-1), c.segmentRow())
			failed = firstError(failed, s.agents.flush(w, keyByAgent), s.traces.flush(w, keyByTrace))
		}
		if !l.trusted.Load() && c.size == l.target.Size {
			if err := l.atTarget(); err != nil {
				return err
			}
		}
	}
	flushLeaves()
	flushContents()
	failed = firstError(failed, s.agents.flush(w, keyByAgent), s.traces.flush(w, keyByTrace))
	h := head{size: c.size, streamID: c.streamID, streamSeq: c.streamSeq, last: c.last, frontier: c.frontier}
	s.head = h.append(s.head[:0])
	set(headKey, s.head)
	if failed != nil {
		return fmt.Errorf("write to the database: %w", failed)
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// atTarget compares the chain, rebuilt from EVENTS up to the anchor's size,
// with the anchor.
func (l *Ledger) atTarget() error {
	if root := l.chain.root(); root != l.target.Root {
		return tampered(l.chain.streamSeq, "the records behind sequence %d were lost and taken from EVENTS again, but lead to the root %v, where the anchor says %v; EVENTS or the agents' keys were changed",
			l.opened.streamSeq, root, l.target.Root)
	}
	return nil
}
