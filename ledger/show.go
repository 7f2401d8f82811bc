package ledger

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A page of what is shown. In JSON its bytes grow by a third, and with the
// proofs of all its records it must fit into one message.
const (
	showBytes   = 384 << 10 // of leaves, paths, headers and payloads
	showRecords = 500
)

// Show gives a page of records with all that opens and proves them, for an
// evidence bundle: also the ledger's own, and those of erased agents without
// their content, each with the record that says that it was erased.
func (l *Ledger) Show(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
	if err := ctx.Err(); err != nil {
		return schemas.ShowReply{}, err
	}
	if q.Size == 0 {
		cur, err := l.sign()
		if err != nil {
			return schemas.ShowReply{}, err
		}
		return l.show(q, l.cosigned(ctx, cur))
	}
	cur, err := l.checkpointOf(q.Size)
	if err != nil {
		return schemas.ShowReply{}, err
	}
	return l.show(q, cur)
}

// checkpointOf finds the checkpoint that was signed over the first size
// records.
func (l *Ledger) checkpointOf(size uint64) (*signed, error) {
	if cur := l.current.Load(); cur != nil && cur.Size == size {
		return cur, nil
	}
	msg, err := get(l.db, numberKey(keyCheckpoint, size))
	if err != nil {
		return nil, err
	}
	if msg == nil {
		return nil, schemas.Refuse(schemas.CodeNotFound, "no checkpoint was signed over the first %d records", size)
	}
	c, err := l.keys().stored(msg)
	if err != nil || c.Size != size {
		return nil, tampered(0, "the checkpoint of size %d: %v", size, err)
	}
	return &signed{Checkpoint: c, note: msg}, nil
}

// A shower fills one page.
type shower struct {
	l     *Ledger
	q     schemas.ShowRequest
	cur   *signed
	scan  *scanner
	rep   schemas.ShowReply
	bytes int
	known map[[16]byte]bool // pseudonyms whose redaction stands in the page
}

// show fills a page against a checkpoint.
func (l *Ledger) show(q schemas.ShowRequest, cur *signed) (rep schemas.ShowReply, err error) {
	s := &shower{l: l, q: q, cur: cur, known: map[[16]byte]bool{}}
	s.rep = schemas.ShowReply{Checkpoint: string(cur.note), Size: cur.Size, Records: []schemas.Shown{}}
	if s.scan, err = openScanner(l.db, l.subjects); err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, s.scan.close()) }()
	if q.Index == 0 && q.Offset == 0 {
		if s.rep.Handovers, err = l.shownHandovers(cur.Checkpoint); err != nil {
			return rep, err
		}
	}
	first, err := indexFrom(s.scan.leaves, q.From, cur.Size)
	if err != nil {
		return rep, err
	}
	err = l.walk(schemas.ReadRequest{Agent: q.Agent, Trace: q.Trace}, max(first, q.Index), cur.Size, s.page)
	return s.rep, err
}

// page takes one record, and says whether there is room for more.
func (s *shower) page(index uint64, agent *[16]byte) (more bool, err error) {
	r, err := s.scan.leaves.record(index)
	if err != nil || agent != nil && r.Agent != *agent {
		return true, err
	}
	if s.q.To != 0 && r.StreamSeq > s.q.To {
		return false, nil
	}
	size := proof.RecordSize + int(r.HeadersLen) + min(int(r.PayloadLen), showBytes)
	if n := len(s.rep.Records); n == showRecords || n > 0 && s.bytes+size > showBytes {
		s.rep.More, s.rep.Index = true, index
		return false, nil
	}
	shown, err := s.l.proven(&r, s.cur.Checkpoint)
	if err != nil {
		return false, err
	}
	headers, payload, err := s.scan.open(&r)
	switch {
	case errors.Is(err, ErrErased):
		err = s.redaction(&r)
	case err == nil:
		salt := s.l.subjects.saltOf(&r)
		if salt == nil {
			return false, fmt.Errorf("sequence %d: %w meanwhile; ask again", r.StreamSeq, ErrErased)
		}
		shown.Salt, shown.Headers = salt[:], headers
		s.cut(&shown, payload)
	}
	s.bytes += len(shown.Leaf) + len(shown.Path) + len(shown.Headers) + len(shown.Payload)
	s.rep.Records = append(s.rep.Records, shown)
	return !s.rep.More, err
}

// cut shows as much of a payload as there is room for. A large one goes over
// several pages.
func (s *shower) cut(shown *schemas.Shown, payload []byte) {
	var offset uint64
	if shown.Index == s.q.Index {
		offset = min(s.q.Offset, uint64(len(payload)))
	}
	shown.Payload = payload[offset:]
	if len(shown.Payload) > showBytes {
		shown.Payload = shown.Payload[:showBytes]
		s.rep.More, s.rep.Index, s.rep.Offset = true, shown.Index, offset+showBytes
	}
}

// proven gives a record without its content.
func (l *Ledger) proven(r *proof.Record, c proof.Checkpoint) (schemas.Shown, error) {
	path, err := tlog.ProveRecord(int64(c.Size), int64(r.Index), l.hashes(c))
	if err != nil {
		return schemas.Shown{}, fmt.Errorf("prove sequence %d: %w", r.StreamSeq, err)
	}
	shown := schemas.Shown{Index: r.Index, Seq: r.StreamSeq, Leaf: r.Append(nil), Path: make([]byte, 0, len(path)*hashSize)}
	for _, h := range path {
		shown.Path = append(shown.Path, h[:]...)
	}
	return shown, nil
}

// redaction adds the record that says that a record's agent was erased.
func (s *shower) redaction(r *proof.Record) error {
	if s.known[r.Agent] {
		return nil
	}
	by, err := s.l.redactionOf(r, s.cur.Size)
	if err != nil {
		return err
	}
	shown, err := s.l.proven(&by, s.cur.Checkpoint)
	if err != nil {
		return err
	}
	// A scanner of its own: this one stands at the record in hand.
	scan, err := openScanner(s.l.db, s.l.subjects)
	if err != nil {
		return err
	}
	headers, payload, err := scan.open(&by)
	if err := errors.Join(err, scan.close()); err != nil {
		return err
	}
	salt := s.l.subjects.saltOf(&by)
	if salt == nil {
		return tampered(by.StreamSeq, "the key of the ledger's own records is missing")
	}
	shown.Salt, shown.Headers, shown.Payload = salt[:], headers, payload
	s.known[r.Agent] = true
	s.rep.Redactions = append(s.rep.Redactions, shown)
	s.bytes += len(shown.Leaf) + len(shown.Path) + len(shown.Headers) + len(shown.Payload)
	return nil
}
