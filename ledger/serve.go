package ledger

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Serve answers operators' requests for head, verification, proofs and
// records, until the connection ends.
func (l *Ledger) Serve(nc *nats.Conn) error {
	log := l.o.Logger
	return errors.Join(
		bus.Handle(nc, log, schemas.CtlHealth, func(context.Context, struct{}) (schemas.Health, error) {
			h := schemas.Health{Service: "ledger", OK: true, Seq: l.Head().StreamSeq}
			if err := firstError(l.Err(), l.alarm(), l.published.alarmed()); err != nil {
				h.OK, h.Error = false, err.Error()
			}
			return h, nil
		}),
		bus.Handle(nc, log, schemas.CtlHead, func(ctx context.Context, q schemas.HeadRequest) (schemas.Head, error) {
			if q.Min == 0 {
				return l.Head(), l.Err()
			}
			return l.Checkpoint(ctx, q.Min)
		}),
		bus.Handle(nc, log, schemas.CtlVerify, func(ctx context.Context, _ struct{}) (schemas.VerifyReply, error) {
			return l.Verify(ctx, nil)
		}),
		bus.Handle(nc, log, schemas.CtlProve, func(ctx context.Context, q schemas.ProveRequest) (schemas.Proof, error) {
			p, err := l.Prove(ctx, q.Seq)
			return p, refusal(err)
		}),
		bus.Handle(nc, log, schemas.CtlShow, func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
			rep, err := l.Show(ctx, q)
			return rep, refusal(err)
		}),
		bus.Handle(nc, log, schemas.CtlRead, func(_ context.Context, q schemas.ReadRequest) (schemas.ReadReply, error) {
			rep, err := l.Read(q)
			return rep, refusal(err)
		}),
	)
}

// refusal tells what is not there from what failed.
func refusal(err error) error {
	if errors.Is(err, ErrNotFound) {
		return schemas.Refuse(schemas.CodeNotFound, "%v", err)
	}
	return err
}
