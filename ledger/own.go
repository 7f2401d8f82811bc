package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// Gap and Redaction are the bodies of the ledger's own records.
type (
	Gap       = proof.Gap
	Redaction = proof.Redaction
	Prune     = proof.Prune
)

// RecordGap records, durably and signed, that the sequences from From() to
// last are lost, so that Run can go on behind them. It is never done by
// itself.
func (l *Ledger) RecordGap(last uint64, reason, actor string, at time.Time) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if !l.trusted.Load() {
		return fmt.Errorf("record a gap: %w", ErrUnconfirmed)
	}
	if reason == "" || actor == "" || last < l.next {
		return errors.New("record a gap: it needs a reason, an actor, and a last sequence that the ledger does not have")
	}
	u, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		return err
	}
	r := proof.Record{Kind: proof.KindGap, StreamSeq: last, Agent: u.pseudo, Time: at.UnixNano()}
	body := schemas.Marshal(Gap{First: l.next, Last: last, Reason: reason, Actor: actor})
	if err := l.appendOwn(r, u, proof.GapSubject, body); err != nil {
		return err
	}
	l.next = last + 1
	return nil
}

// Erase destroys an agent's key: nobody can open its contents any more, here
// or in a backup, or link its pseudonym to it. A signed record says so first,
// on whose authority, and why; every proof still holds. Errors match
// ErrNotFound where nothing was recorded of the agent.
func (l *Ledger) Erase(agent, authority, reason string, at time.Time) error {
	if agent == schemas.Fleet {
		return errors.New("erase: the fleet's own records are nobody's personal data")
	}
	if authority == "" || reason == "" {
		return errors.New("erase: it needs an authority and a reason")
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if !l.trusted.Load() {
		return fmt.Errorf("erase: %w", ErrUnconfirmed)
	}
	gone := l.subjects.find(agent)
	if gone == nil {
		return fmt.Errorf("erase %s: %w", agent, ErrNotFound)
	}
	fleet, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		return err
	}
	r := proof.Record{Kind: proof.KindRedaction, StreamSeq: l.chain.streamSeq, Agent: gone.pseudo, Time: at.UnixNano()}
	if err := l.appendOwn(r, fleet, proof.RedactionSubject, schemas.Marshal(Redaction{Authority: authority, Reason: reason})); err != nil {
		return err
	}
	return l.subjects.destroy(agent)
}

// appendOwn appends a record of the ledger's own and waits until it is durable
// and signed. The caller holds wmu.
func (l *Ledger) appendOwn(r proof.Record, u *subject, subject string, body []byte) error {
	if err := l.guard.err(); err != nil {
		return err
	}
	r.StreamID, r.Index = l.chain.streamID, l.chain.size
	b, err := proof.AppendHeaders(nil, subject, nil)
	if err != nil {
		return err
	}
	n := len(b)
	sealed := u.sealContent(&r, append(b, body...), n)
	batch, sum, err := l.writeRun([]sealedEvent{{record: r, sealed: sealed}})
	if err == nil {
		err = synced(batch)
	}
	if err != nil {
		return l.guard.halt(err)
	}
	l.durable.publish(sum)
	_, err = l.sign()
	return err
}

// RepairTail gives EVENTS back what it lost to a power failure and the ledger
// has: everything behind last, the stream's last sequence. publish must append
// one entry under the condition that the stream's last sequence is the one
// before the entry's, and give the sequence that it got. Intake must be closed
// meanwhile. It gives the number of entries published, and fails at the first
// that gets another sequence, or whose content is erased.
func (l *Ledger) RepairTail(ctx context.Context, last uint64, publish func(context.Context, Entry) (uint64, error)) (repaired int, err error) {
	s, err := openScanner(l.db, l.subjects)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	size := l.durable.get().size
	i, err := indexFrom(s.leaves, last+1, size)
	if err != nil {
		return 0, err
	}
	for ; i < size; i++ {
		r, err := s.leaves.record(i)
		if err != nil {
			return repaired, err
		}
		if r.Kind == proof.KindRedaction || r.Kind == proof.KindPrune || r.Kind == proof.KindHandover {
			continue
		}
		if r.Kind != proof.KindEvent || r.StreamSeq != last+1 {
			return repaired, fmt.Errorf("repair EVENTS: sequence %d can't be given back: the ledger records it as lost", last+1)
		}
		rec, err := s.stored(&r)
		if err != nil {
			return repaired, fmt.Errorf("repair EVENTS: %w", err)
		}
		got, err := publish(ctx, Entry{Seq: rec.Seq, Subject: rec.Subject, Header: rec.Header, Data: rec.Data})
		if err != nil {
			return repaired, fmt.Errorf("repair EVENTS: publish sequence %d: %w", rec.Seq, err)
		}
		if got != rec.Seq {
			return repaired, fmt.Errorf("repair EVENTS: sequence %d was given out as %d: somebody else appends meanwhile; close intake first", rec.Seq, got)
		}
		last = got
		repaired++
	}
	return repaired, nil
}
