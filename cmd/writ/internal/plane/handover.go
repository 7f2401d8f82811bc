package plane

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

// handOver has another key sign the ledger's checkpoints. The key is on disk
// first, the record in the ledger second, the files third and the event last:
// wherever it ends, the next start goes on there.
func (k *keeping) handOver(ctx context.Context, q schemas.HandOverRequest) (rep schemas.HandOverReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !q.Prepare && (q.Reason == "" || q.Actor == "" || schemas.HeaderText(q.Reason) != q.Reason) {
		return rep, schemas.Refuse(schemas.CodeMalformed, "a handover needs an actor, and a reason of one line: both stand in the ledger for good")
	}
	next, err := keys.NextLedger(k.p.keys)
	if err != nil {
		return rep, err
	}
	rep.Key = next.Verifier
	if rep.Prepared = q.Prepare; q.Prepare {
		return rep, nil
	}
	actor := schemas.RootActor + q.Actor
	if rep.Size, err = k.led.HandOver(&ledger.Successor{Signer: next.Signer, Key: next.Verifier}, q.Reason, actor, time.Now()); err != nil {
		return rep, err
	}
	rep.Checkpoint = k.led.Head().Checkpoint
	turn, seq, err := tellHandOver(ctx, k.p.keys, k.log)
	if err != nil {
		return rep, fmt.Errorf("key %s signs already, and the log is told at the next start: %w", rep.Key, err)
	}
	rep.Replaced, rep.Seq = turn.Rotation.Replaced, seq
	return rep, nil
}

// tellHandOver tells the log of a rotation that it may not know of. The turn is
// nil where there is none.
func tellHandOver(ctx context.Context, data string, log *bus.Appender) (t *keys.Turn, seq uint64, err error) {
	if t, err = keys.LedgerTurn(data); err != nil || t == nil {
		return t, 0, err
	}
	seq, err = log.Append(ctx, &schemas.Event{ID: "ledger-rotated-" + t.Rotation.KeyID, Kind: schemas.PolicyRotated, Agent: schemas.Fleet,
		Source: source(keys.RoleLedger), Time: time.Now().UTC(), Reason: t.Reason, Actor: t.Actor, ContentType: "application/json", Data: schemas.Marshal(t.Rotation)})
	if err != nil {
		return t, 0, err
	}
	return t, seq, keys.LedgerTold(data)
}
