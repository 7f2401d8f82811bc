package ledger

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sort"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

const (
	pageDefault = 100
	pageMax     = 1000
	pageBytes   = 512 << 10 // of bodies; a single larger one still makes a page
)

// A scanner reads records with their contents, best in order.
type scanner struct {
	subjects *subjects
	leaves   *cursor
	contents *cursor
	split    [][]byte // of the current block of contents
	first    uint64
	pruned   uint64 // so many records have no content any more
}

func openScanner(r pebble.Reader, s *subjects) (*scanner, error) {
	leaves, err := openCursor(r, keyLeaves)
	if err != nil {
		return nil, err
	}
	contents, err := openCursor(r, keyContents)
	if err != nil {
		return nil, errors.Join(err, leaves.close())
	}
	sc := &scanner{subjects: s, leaves: leaves, contents: contents}
	p, err := readPruned(r)
	if err != nil {
		return nil, errors.Join(err, sc.close())
	}
	sc.pruned = p.records
	return sc, nil
}

func (s *scanner) close() error { return errors.Join(s.leaves.close(), s.contents.close()) }

// sealed gives a record's sealed content, valid until the next call.
func (s *scanner) sealed(index uint64) ([]byte, error) {
	if index < s.pruned {
		return nil, fmt.Errorf("record %d: %w", index, ErrPruned)
	}
	if s.split == nil || index < s.first || index-s.first >= uint64(len(s.split)) {
		s.split = nil
		if err := s.contents.load(index); err != nil {
			return nil, err
		}
		if s.contents.value == nil {
			return nil, tampered(0, "the content of record %d is missing", index)
		}
		split, err := splitContents(s.contents.value)
		if err != nil || len(split) > blockSize {
			return nil, tampered(0, "the content of record %d: a block of contents is malformed", index)
		}
		s.split, s.first = split, s.contents.first
	}
	if index-s.first >= uint64(len(s.split)) {
		return nil, tampered(0, "the content of record %d is missing", index)
	}
	return s.split[index-s.first], nil
}

// open gives a record's content, checked against its commitments. Errors match
// ErrErased where there is no key for it.
func (s *scanner) open(r *proof.Record) (headers, payload []byte, err error) {
	sealed, err := s.sealed(r.Index)
	if err != nil {
		return nil, nil, err
	}
	u := s.subjects.opener(r)
	if u == nil {
		return nil, nil, fmt.Errorf("sequence %d: %w", r.StreamSeq, ErrErased)
	}
	headers, payload, err = u.openContent(nil, r, sealed)
	if err != nil {
		return nil, nil, tampered(r.StreamSeq, "record %d: %v", r.Index, err)
	}
	return headers, payload, nil
}

// stored gives an event as it was taken.
func (s *scanner) stored(r *proof.Record) (schemas.Record, error) {
	headers, payload, err := s.open(r)
	if err != nil {
		return schemas.Record{}, err
	}
	subject, h, err := proof.ParseHeaders(headers)
	if err != nil {
		return schemas.Record{}, tampered(r.StreamSeq, "%v", err)
	}
	return schemas.Record{Seq: r.StreamSeq, Subject: subject, Header: h, Data: payload}, nil
}

func (s *scanner) event(r *proof.Record) (*schemas.Event, error) {
	rec, err := s.stored(r)
	if err != nil {
		return nil, err
	}
	ev, err := schemas.Decode(rec.Subject, rec.Header, rec.Data)
	if err != nil {
		return nil, tampered(r.StreamSeq, "%v", err)
	}
	ev.Seq = rec.Seq
	return ev, nil
}

// events hands over the events among the records [from, to). Those of erased
// agents are left out, if a record says that they were erased.
func (l *Ledger) events(from, to uint64, fn func(*schemas.Event) error) (err error) {
	s, err := openScanner(l.db, l.subjects)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	erased := map[[16]byte]bool{}
	for i := from; i < to; i++ {
		r, err := s.leaves.record(i)
		if err != nil {
			return err
		}
		if r.Kind != proof.KindEvent {
			continue
		}
		ev, err := s.event(&r)
		if errors.Is(err, ErrErased) {
			if !erased[r.Agent] {
				if err := l.checkErased(&r, to); err != nil {
					return err
				}
				erased[r.Agent] = true
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(ev); err != nil {
			return err
		}
	}
	return nil
}

// checkErased looks for the record that says that an agent was erased.
func (l *Ledger) checkErased(r *proof.Record, end uint64) error {
	_, err := l.redactionOf(r, end)
	return err
}

// redactionOf finds, among the first end records, the one that says that a
// record's agent was erased: the last that bears the pseudonym.
func (l *Ledger) redactionOf(r *proof.Record, end uint64) (none proof.Record, err error) {
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return none, err
	}
	defer c.close()
	for segment := (end - 1) >> segmentBits; ; segment-- {
		found, err := postingsIn(l.db, keyByAgent, r.Agent, segment)
		if err != nil {
			return none, err
		}
		if len(found) > 0 {
			last, err := c.record(found[len(found)-1])
			if err != nil {
				return none, err
			}
			if last.Kind == proof.KindRedaction && last.Agent == r.Agent && last.Index < end {
				return last, nil
			}
			break
		}
		if segment == 0 {
			break
		}
	}
	return none, tampered(r.StreamSeq, "the key of this record's agent is missing, and no record says that it was erased; restore the file %s", subjectsFile)
}

// postingsIn lists an id's records in one segment.
func postingsIn(r pebble.Reader, letter byte, id [16]byte, segment uint64) (out []uint64, err error) {
	low := postingKey(letter, id, segment<<segmentBits)
	high := append(postingKey(letter, id, segment<<segmentBits|(segmentSize-1)), 0)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: high})
	if err != nil {
		return nil, fmt.Errorf("read the database: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, fmt.Errorf("read the database: %w", err)
		}
		_, first, _ := parsePostingKey(it.Key())
		found, err := parsePostings(first, value)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, it.Error()
}

// indexFrom is the index of the first record whose sequence is seq or above,
// size where there is none.
func indexFrom(c *cursor, seq, size uint64) (uint64, error) {
	if guess := seq - 1; seq > 0 && guess < size {
		// Without gaps and records of the ledger's own, this is it.
		r, err := c.record(guess)
		if err == nil && r.StreamSeq == seq && r.Kind == proof.KindEvent {
			return guess, nil
		}
	}
	var failed error
	i := sort.Search(int(size), func(i int) bool {
		r, err := c.record(uint64(i))
		failed = firstError(failed, err)
		return err != nil || r.StreamSeq >= seq
	})
	return uint64(i), failed
}

// find gives the record of an event.
func (l *Ledger) find(seq uint64) (r proof.Record, err error) {
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return r, err
	}
	defer c.close()
	now := l.durable.get()
	i, err := indexFrom(c, seq, now.size)
	if err != nil {
		return r, err
	}
	if i < now.size {
		if r, err = c.record(i); err != nil {
			return r, err
		}
		if r.Kind == proof.KindEvent && r.StreamSeq == seq {
			return r, nil
		}
		return r, fmt.Errorf("sequence %d: %w: the log lost it, and record %d says so", seq, ErrNotFound, i)
	}
	return r, fmt.Errorf("sequence %d: %w, which ends at %d", seq, ErrNotFound, now.streamSeq)
}

// Event reads one event back. Errors match ErrNotFound and ErrErased.
func (l *Ledger) Event(seq uint64) (*schemas.Event, error) {
	r, err := l.find(seq)
	if err != nil {
		return nil, err
	}
	s, err := openScanner(l.db, l.subjects)
	if err != nil {
		return nil, err
	}
	ev, err := s.event(&r)
	return ev, errors.Join(err, s.close())
}

// Replay hands over, in order, the durable events from a sequence on. Those of
// erased agents are left out.
func (l *Ledger) Replay(from uint64, fn func(*schemas.Event) error) error {
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return err
	}
	size := l.durable.get().size
	first, err := indexFrom(c, from, size)
	if err := errors.Join(err, c.close()); err != nil {
		return err
	}
	return l.events(first, size, fn)
}

// Read gives a page of events as they were taken. Those of erased agents are
// left out.
func (l *Ledger) Read(q schemas.ReadRequest) (rep schemas.ReadReply, err error) {
	if q.Limit == 0 {
		q.Limit = pageDefault
	}
	if q.Limit < 1 || q.Limit > pageMax {
		return rep, schemas.Refuse(schemas.CodeMalformed, "limit %d is not within 1 and %d", q.Limit, pageMax)
	}
	if q.Begin < 0 || q.Begin > pageBytes {
		return rep, schemas.Refuse(schemas.CodeMalformed, "the beginning of a body, of %d bytes, is not within 0 and %d", q.Begin, pageBytes)
	}
	now := l.durable.get()
	rep = schemas.ReadReply{Records: []schemas.Record{}, Head: now.streamSeq, Unknown: q.Agent != "" && l.subjects.find(q.Agent) == nil}
	s, err := openScanner(l.db, l.subjects)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	first, err := indexFrom(s.leaves, q.From, now.size)
	if err != nil {
		return rep, err
	}
	if first < min(s.pruned, now.size) {
		first = s.pruned
		last, err := s.leaves.record(first - 1)
		if err != nil {
			return rep, err
		}
		rep.Pruned = last.StreamSeq
	}
	bytes := 0
	page := func(index uint64, agent *[16]byte) (more bool, err error) {
		r, err := s.leaves.record(index)
		if err != nil || r.Kind != proof.KindEvent || agent != nil && r.Agent != *agent {
			return true, err
		}
		if q.To != 0 && r.StreamSeq > q.To {
			return false, nil
		}
		if len(rep.Records) == q.Limit || bytes > 0 && bytes+int(r.PayloadLen+r.HeadersLen) > pageBytes {
			rep.Next = r.StreamSeq
			return false, nil
		}
		rec, err := s.stored(&r)
		if errors.Is(err, ErrErased) {
			return true, nil
		}
		// One body alone must not make the answer longer than a message may be.
		if !q.Data {
			rec.Data = nil
		} else if r.PayloadLen > pageBytes {
			rec.Data = rec.Data[:min(q.Begin, len(rec.Data))]
		}
		bytes += int(r.HeadersLen) + len(rec.Data)
		rep.Records = append(rep.Records, rec)
		return true, err
	}
	err = l.walk(q, first, now.size, page)
	return rep, err
}

// walk calls page with the index of each record that a request may mean, and,
// where page has to look at it, the agent.
func (l *Ledger) walk(q schemas.ReadRequest, first, size uint64, page func(uint64, *[16]byte) (bool, error)) error {
	var letter byte
	var id [16]byte
	var agent *[16]byte
	if q.Agent != "" {
		u := l.subjects.find(q.Agent)
		if u == nil {
			return nil // nothing was ever recorded of it
		}
		letter, id = keyByAgent, u.pseudo
	}
	if q.Trace != "" {
		if err := schemas.CheckTrace(q.Trace); err != nil {
			return schemas.Refuse(schemas.CodeMalformed, "%v", err)
		}
		if letter != 0 {
			a := id
			agent = &a
		}
		letter, id = keyByTrace, traceBytes(q.Trace)
	}
	if letter == 0 {
		for i := first; i < size; i++ {
			if more, err := page(i, nil); !more || err != nil {
				return err
			}
		}
		return nil
	}
	for segment := first >> segmentBits; segment<<segmentBits < size; segment++ {
		found, err := postingsIn(l.db, letter, id, segment)
		if err != nil {
			return err
		}
		for _, i := range found {
			if i < first {
				continue
			}
			if i >= size {
				return nil
			}
			if more, err := page(i, agent); !more || err != nil {
				return err
			}
		}
	}
	return nil
}

// Prove proves that the ledger holds an event, against a checkpoint that
// covers it; package proof verifies it offline. Errors match ErrNotFound.
func (l *Ledger) Prove(ctx context.Context, seq uint64) (schemas.Proof, error) {
	r, err := l.find(seq)
	if err != nil {
		return schemas.Proof{}, err
	}
	cur := l.current.Load()
	if cur.Size <= r.Index {
		if cur, err = l.sign(); err != nil {
			return schemas.Proof{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return schemas.Proof{}, err
	}
	return l.prove(r, cur)
}

// prove proves a record against a checkpoint that covers it.
func (l *Ledger) prove(r proof.Record, cur *signed) (schemas.Proof, error) {
	path, err := tlog.ProveRecord(int64(cur.Size), int64(r.Index), l.hashes(cur.Checkpoint))
	if err != nil {
		return schemas.Proof{}, fmt.Errorf("prove sequence %d: %w", r.StreamSeq, err)
	}
	return schemas.Proof{Seq: r.StreamSeq, Index: r.Index, Leaf: base64.StdEncoding.EncodeToString(r.Append(nil)),
		Hashes: proof.MarshalPath(path), Checkpoint: string(cur.note)}, nil
}

// ProveConsistency proves that the newest checkpoint's tree continues that of
// an older size; proof.CheckConsistency verifies it.
func (l *Ledger) ProveConsistency(size uint64) ([]proof.Hash, proof.Checkpoint, error) {
	cur := l.current.Load().Checkpoint
	if size > cur.Size {
		return nil, cur, fmt.Errorf("%w: %d records are signed, not yet %d", ErrNotFound, cur.Size, size)
	}
	if size == 0 {
		return nil, cur, nil // every tree continues the empty one
	}
	path, err := tlog.ProveTree(int64(cur.Size), int64(size), l.hashes(cur))
	if err != nil {
		return nil, cur, fmt.Errorf("prove consistency: %w", err)
	}
	return path, cur, nil
}

// hashes reads tree hashes, each checked against the checkpoint's root.
func (l *Ledger) hashes(c proof.Checkpoint) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(c.Size), Hash: c.Root}, tiles{r: l.db, live: &l.chain.tree})
}
