package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/broker/memory"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// memoryRenew is how often the memory service's credentials are made anew:
// often enough that they never run out, for they are valid for a week.
const memoryRenew = 24 * time.Hour

// memoryCreds is the file of keys/ in which the memory service finds the
// credentials of the governed service that it is. The issuer's process writes
// it.
const memoryCreds = "creds/memory-service.creds"

// keepMemoryCreds declares the memory service where it is new, and keeps its
// credentials fresh.
func (p *Process) keepMemoryCreds(ctx context.Context, ready func()) error {
	operator, err := p.Operator()
	if err != nil {
		return err
	}
	defer operator.Close()
	if err := p.renewMemoryCreds(ctx, operator); err != nil {
		return err
	}
	ready()
	tick := time.NewTicker(memoryRenew)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := p.renewMemoryCreds(ctx, operator); err != nil && ctx.Err() == nil {
				p.log.Error("the memory service's credentials were not renewed; trying again tomorrow", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// renewMemoryCreds leaves a memory service that an operator cut off as it is:
// enrolling it would bring it back.
func (p *Process) renewMemoryCreds(ctx context.Context, operator *nats.Conn) error {
	// The account is declared with the first fleet.
	if _, err := bus.Call[schemas.ApplyReply](ctx, operator, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "writ"}); err != nil {
		return fmt.Errorf("declare the memory service: %w", err)
	}
	status, err := bus.Call[schemas.StatusReply](ctx, operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: schemas.MemoryID})
	if err != nil || len(status.Agents) != 1 {
		return fmt.Errorf("find the memory service: %w", err)
	}
	if state := status.Agents[0].State; state == schemas.Suspended || state == schemas.Killed {
		p.log.Warn("the memory service is cut off and stays so", "state", state, "reason", status.Agents[0].Reason)
		return nil
	}
	e, err := bus.Call[schemas.EnrollReply](ctx, operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: schemas.MemoryID, Actor: "writ"})
	if err != nil {
		return fmt.Errorf("enroll the memory service: %w", err)
	}
	return keys.WriteSecret(p.keys, memoryCreds, []byte(e.Creds))
}

// memoryRetry is how long the memory service waits before it asks again to be
// let in.
const memoryRetry = 2 * time.Second

// startMemory connects the memory service twice: to its bucket, and as the
// governed service that it is.
func (p *Process) startMemory(ctx context.Context) error {
	bucket, err := p.connect(keys.RoleMemory)
	if err != nil {
		return err
	}
	creds, err := keys.ReadSecret(p.keys, memoryCreds)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; the issuer writes the file into its own key folder when it starts: start it first, and copy the file where the folder is another", err)
	}
	if err != nil {
		return err
	}
	return p.stages.start(ctx, "memory", func(ctx context.Context, ready func()) error {
		agent, err := p.dialMemory(creds)
		if err != nil {
			// One that is killed or suspended holds nothing else up.
			p.log.Error("agents' memory is not served: the memory service is not let in; writ status memory says whether it was cut off", "error", err)
			ready()
		}
		for ; err != nil; agent, err = p.dialMemory(creds) {
			select {
			case <-time.After(memoryRetry):
			case <-ctx.Done():
				return nil
			}
		}
		p.keep(agent)
		return memory.Run(ctx, memory.Options{Bucket: bucket, Agent: agent, Logger: p.log}, ready)
	})
}

// dialMemory connects with the newest credentials, now and whenever the
// connection breaks.
func (p *Process) dialMemory(creds []byte) (*nats.Conn, error) {
	newest := func() ([]byte, error) { return keys.ReadSecret(p.keys, memoryCreds) }
	token := func() (string, error) {
		creds, err := newest()
		if err != nil {
			return "", err
		}
		return nkeys.ParseDecoratedJWT(creds)
	}
	sign := func(nonce []byte) ([]byte, error) {
		creds, err := newest()
		if err != nil {
			return nil, err
		}
		user, err := nkeys.ParseDecoratedNKey(creds)
		if err != nil {
			return nil, errors.New("the memory service's credentials are damaged")
		}
		defer user.Wipe()
		return user.Sign(nonce)
	}
	return p.dial(schemas.MemoryID, creds, nats.UserJWT(token, sign), nats.IgnoreAuthErrorAbort())
}
