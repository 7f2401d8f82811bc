package issuer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// JWKS is the set of keys that verify capabilities.
func (i *Issuer) JWKS() []byte {
	i.signing.RLock()
	defer i.signing.RUnlock()
	return slices.Clone(i.jwks)
}

// rotate has another key sign. The keys are on disk first and in the log
// second: whatever happens in between, nothing is signed with a key that is not
// published, and the log is told at last.
func (i *Issuer) rotate(ctx context.Context, req schemas.RotateRequest) (schemas.RotateReply, error) {
	if err := checkActor(req.Actor); err != nil {
		return schemas.RotateReply{}, err
	}
	if err := checkReason(req.Reason); err != nil {
		return schemas.RotateReply{}, err
	}
	switch req.Key {
	case schemas.RotateAccounts:
		return i.rotateAccounts(ctx, req)
	case schemas.RotateCA:
		return i.rotateCA(ctx, req)
	case "", schemas.RotateCapability:
	default:
		return schemas.RotateReply{}, schemas.Refuse(schemas.CodeMalformed, "key %.40q: %s, %s and %s can be rotated", req.Key, schemas.RotateCapability, schemas.RotateAccounts, schemas.RotateCA)
	}
	i.signing.Lock()
	defer i.signing.Unlock()
	if err := i.ring.Rotate(i.Now(), req.Compromised, req.Actor, req.Reason); err != nil {
		return schemas.RotateReply{}, err
	}
	turn := *i.ring.Untold
	if err := i.takeKeys(); err != nil {
		return schemas.RotateReply{}, err
	}
	seq, err := i.tellTurn(ctx, turn)
	if err != nil {
		err = fmt.Errorf("key %s signs already, and the log is told as soon as it can be: %w", turn.Rotation.KeyID, err)
	}
	return schemas.RotateReply{Rotation: turn.Rotation, Seq: seq}, err
}

// takeKeys signs and publishes what the ring says. i.signing is held, or nobody
// else knows the issuer yet.
func (i *Issuer) takeKeys() error {
	signer, err := capability.NewSigner(i.Secrets.Trust.TrustDomain, i.ring.Signer())
	if err != nil {
		return err
	}
	set, err := capability.MarshalJWKS(i.ring.Public(i.Now())...)
	if err != nil {
		return err
	}
	i.signer, i.jwks = signer, set
	return nil
}

// tellTurn logs a rotation. i.signing is held.
func (i *Issuer) tellTurn(ctx context.Context, t keys.Turn) (uint64, error) {
	seq, err := i.logTurn(ctx, t)
	if err != nil {
		return 0, err
	}
	return seq, i.ring.Told()
}

func (i *Issuer) logTurn(ctx context.Context, t keys.Turn) (uint64, error) {
	return i.append(ctx, &schemas.Event{ID: "issuer-rotated-" + t.Rotation.KeyID, Kind: schemas.PolicyRotated, Agent: schemas.Fleet,
		Reason: schemas.HeaderText(t.Reason), Actor: t.Actor, ContentType: jsonType, Data: schemas.Marshal(t.Rotation)})
}

// tendKeys tells the log of a rotation that it doesn't know, and takes out the
// keys behind whose last token the clock is.
func (i *Issuer) tendKeys(ctx context.Context, now time.Time) {
	i.signing.RLock()
	due := i.ring.Due(now)
	i.signing.RUnlock()
	if !due {
		return // nobody waits for the lock each second
	}
	i.signing.Lock()
	defer i.signing.Unlock()
	if turn := i.ring.Untold; turn != nil {
		if _, err := i.tellTurn(ctx, *turn); err != nil && ctx.Err() == nil {
			i.Logger.Warn("rotation of the capability key not logged; trying again", "error", err)
		}
	}
	gone, err := i.ring.Prune(now)
	if gone && err == nil {
		err = i.takeKeys()
	}
	if err != nil {
		i.Logger.Warn("old capability keys not taken out; trying again", "error", err)
	}
}
