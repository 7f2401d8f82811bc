package issuer

import (
	"context"
	"fmt"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// rotateCA has another authority sign certificates. Everybody has trusted it for
// as long as any certificate is valid, and the one before it counts for as long
// again; so nobody is cut off. It is on disk first and in the log second, as any
// rotation is.
//
// Of one that is compromised nothing stays. Who got in with what a thief signed
// has to go, and a certificate alone lets nobody in: the thief has the keys of
// users, too. So those are replaced with it, which closes every connection.
func (i *Issuer) rotateCA(ctx context.Context, req schemas.RotateRequest) (schemas.RotateReply, error) {
	if i.CA == nil {
		return schemas.RotateReply{}, schemas.Refuse(schemas.CodeConflict, "there is no certificate authority: TLS is off")
	}
	i.turning.Lock()
	defer i.turning.Unlock()
	if err := i.CA.Rotate(i.Now(), req.Compromised, req.Actor, req.Reason); err != nil {
		return schemas.RotateReply{}, err
	}
	turn := *i.CA.Untold()
	if req.Compromised {
		err := i.Secrets.Masters.Succeed(true, req.Actor, req.Reason)
		if err == nil {
			_, _, err = i.turn(ctx, i.Now())
		}
		if err != nil {
			return schemas.RotateReply{Rotation: turn.Rotation}, fmt.Errorf("the authority is replaced, and not everybody is cut off yet: restart the control plane, and rotate the keys of agents' accounts: %w", err)
		}
	}
	seq, err := i.tellCA(ctx)
	if err != nil {
		err = fmt.Errorf("authority %s signs already, and the log is told as soon as it can be: %w", turn.Rotation.KeyID, err)
	}
	return schemas.RotateReply{Rotation: turn.Rotation, Seq: seq}, err
}

// tellCA logs a rotation that the log may not know. i.turning is held.
func (i *Issuer) tellCA(ctx context.Context) (uint64, error) {
	turn := i.CA.Untold()
	if turn == nil {
		return 0, nil
	}
	seq, err := i.logTurn(ctx, *turn)
	if err != nil {
		return 0, err
	}
	return seq, i.CA.Told()
}

// tendCA tells the log of a rotation that it doesn't know, and drops the former
// authority when the last certificate that it signed has ended.
func (i *Issuer) tendCA(ctx context.Context, now time.Time) {
	if i.CA == nil || !i.CA.Due(now) || !i.turning.TryLock() {
		return
	}
	defer i.turning.Unlock()
	_, err := i.tellCA(ctx)
	if terr := i.CA.Tend(now); err == nil {
		err = terr
	}
	if err != nil && ctx.Err() == nil {
		i.Logger.Warn("rotation of the certificate authority not finished; trying again", "error", err)
	}
}
