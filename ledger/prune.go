package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A prunedRow says how many records have no content any more, and which record
// says so.
type prunedRow struct{ records, by uint64 }

func (p prunedRow) append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, p.records), p.by)
}

func readPruned(r pebble.Reader) (p prunedRow, err error) {
	b, err := get(r, prunedKey)
	if err != nil || b == nil {
		return p, err
	}
	if len(b) != 16 {
		return p, tampered(0, "the row of what was pruned is malformed")
	}
	return prunedRow{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}

// checkPruned holds the row of what was pruned against the record that allows
// it, with its content where contents are looked at.
func checkPruned(r pebble.Reader, s *subjects, size uint64, contents bool) (p prunedRow, err error) {
	if p, err = readPruned(r); err != nil || p.records == 0 {
		return p, err
	}
	if p.by >= size || p.records > p.by {
		return p, tampered(0, "%d records are marked as pruned, by record %d of %d", p.records, p.by, size)
	}
	sc, err := openScanner(r, s)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, sc.close()) }()
	rec, err := sc.leaves.record(p.by)
	if err != nil {
		return p, err
	}
	if rec.Kind != proof.KindPrune {
		return p, tampered(rec.StreamSeq, "%d records are marked as pruned, and record %d says nothing of it", p.records, p.by)
	}
	if !contents {
		return p, nil
	}
	_, body, err := sc.open(&rec)
	if err != nil {
		return p, err
	}
	var said Prune
	if err := schemas.Unmarshal(body, &said); err != nil || said.Records != p.records {
		return p, tampered(rec.StreamSeq, "%d records are marked as pruned, and record %d says %d", p.records, p.by, said.Records)
	}
	return p, nil
}

// Pruned is the sequence of the newest event whose content was pruned, 0 where
// none was.
func (l *Ledger) Pruned() (seq uint64, err error) {
	p, err := readPruned(l.db)
	if err != nil || p.records == 0 {
		return 0, err
	}
	prefix, err := l.PrefixOf(p.records)
	return prefix.Seq, err
}

// Prunable is the newest sequence at or before most, and of a time before at,
// that Prune takes, 0 where there is none; what bears no signature yet is
// never pruned. A zero time is no limit.
func (l *Ledger) Prunable(at time.Time, most uint64) (seq uint64, err error) {
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return 0, err
	}
	defer c.close()
	size := l.current.Load().Size
	if most != ^uint64(0) {
		if size, err = indexFrom(c, most+1, size); err != nil {
			return 0, err
		}
	}
	if !at.IsZero() {
		var failed error
		size = uint64(sort.Search(int(size), func(i int) bool {
			r, err := c.record(uint64(i))
			failed = firstError(failed, err)
			return err != nil || r.Time >= at.UnixNano()
		}))
		if failed != nil {
			return 0, failed
		}
	}
	if size, err = l.wholeBlocks(size); err != nil || size == 0 {
		return 0, err
	}
	last, err := c.record(size - 1)
	if err != nil {
		return 0, err
	}
	next, err := c.record(size)
	if err == nil && next.StreamSeq == last.StreamSeq {
		return last.StreamSeq - 1, nil // the sequence goes on behind the block
	}
	return last.StreamSeq, nil
}

// wholeBlocks rounds a number of records down to where a block of contents
// ends.
func (l *Ledger) wholeBlocks(size uint64) (uint64, error) {
	c, err := openCursor(l.db, keyContents)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.load(size); err != nil || c.value == nil {
		return 0, err
	}
	split, err := splitContents(c.value)
	if err != nil {
		return 0, tampered(0, "%v", err)
	}
	if c.first+uint64(len(split)) == size {
		return size, nil // the last block ends there
	}
	return c.first, nil
}

// Prune deletes the contents of all records up to p.LastSeq, rounded down to
// whole blocks, after a signed record that says where they are archived. The
// caller vouches for the archives, and that nobody needs the contents any
// more. What was pruned before is no part of it. It gives the record's content
// as it was written.
func (l *Ledger) Prune(p Prune, at time.Time) (Prune, error) {
	if p.Reason == "" || p.Actor == "" || len(p.Archives) == 0 {
		return p, errors.New("prune: it needs archives, a reason and an actor")
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if !l.trusted.Load() {
		return p, fmt.Errorf("prune: %w", ErrUnconfirmed)
	}
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return p, err
	}
	end, err := indexFrom(c, p.LastSeq+1, l.durable.get().size)
	if err := errors.Join(err, c.close()); err != nil {
		return p, err
	}
	if end, err = l.wholeBlocks(end); err != nil {
		return p, err
	}
	before, err := readPruned(l.db)
	if err != nil {
		return p, err
	}
	if signed := l.current.Load().Size; end <= before.records || end > signed {
		return p, fmt.Errorf("prune: nothing is left to prune up to sequence %d: %d records are pruned already, %d are signed", p.LastSeq, before.records, signed)
	}
	fleet, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		return p, err
	}
	p.Records = end
	by := l.chain.size
	r := proof.Record{Kind: proof.KindPrune, StreamSeq: l.chain.streamSeq, Agent: fleet.pseudo, Time: at.UnixNano()}
	if err := l.appendOwn(r, fleet, proof.PruneSubject, schemas.Marshal(p)); err != nil {
		return p, err
	}
	b := l.db.NewBatch()
	low, high := numberKey(keyContents, 0), numberKey(keyContents, end)
	row := prunedRow{end, by}
	err = errors.Join(b.DeleteRange(low, high, nil), b.Set(prunedKey, row.append(nil), nil))
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return p, l.guard.halt(&HaltError{Err: fmt.Errorf("prune: %w", err)})
	}
	return p, nil
}

// Compact gives the room of what was pruned back to the disk.
func (l *Ledger) Compact() error {
	p, err := readPruned(l.db)
	if err != nil || p.records == 0 {
		return err
	}
	return l.guard.run(func() error {
		return errors.Join(l.db.Flush(), l.db.Compact(context.Background(), numberKey(keyContents, 0), numberKey(keyContents, p.records), false))
	})
}
