package plane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// keeping is what operators ask of ledger and release together: backups,
// pruning and erasure. Neither knows of the other.
type keeping struct {
	p     *Process
	conn  *nats.Conn
	led   *ledger.Ledger
	rel   *release.Release
	folds *foldStore
	log   *bus.Appender

	mu sync.Mutex // one at a time
}

func (k *keeping) serve() error {
	return errors.Join(
		bus.Handle(k.conn, k.p.log, schemas.CtlErase, k.erase),
		bus.Handle(k.conn, k.p.log, schemas.CtlBackup, k.backup),
		bus.Handle(k.conn, k.p.log, schemas.CtlPrune, k.prune),
		bus.Handle(k.conn, k.p.log, schemas.CtlHandOver, k.handOver),
	)
}

// erase forgets an agent everywhere: what release keeps, what the memory
// service keeps, and last, since only then nobody needs it, its key. What
// EVENTS holds ages out.
func (k *keeping) erase(ctx context.Context, q schemas.EraseRequest) (rep schemas.EraseReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := schemas.CheckID("agent", q.AgentID); err != nil {
		return rep, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if q.Authority == "" || q.Reason == "" {
		return rep, schemas.Refuse(schemas.CodeMalformed, "an erasure needs an authority and a reason: both stand in the ledger for good")
	}
	if err := k.forget(ctx, q.AgentID); err != nil {
		return rep, schemas.Refuse(schemas.CodeConflict, "%v; kill the agent first, and wait until everything of it is ended", err)
	}
	if rep.Memory, err = k.forgetMemories(ctx, q.AgentID); err != nil {
		return rep, err
	}
	err = k.led.Erase(q.AgentID, q.Authority, q.Reason, time.Now())
	if errors.Is(err, ledger.ErrNotFound) {
		return rep, schemas.Refuse(schemas.CodeNotFound, "nothing is recorded of %s, or it is erased already", q.AgentID)
	}
	rep.AgentID, rep.Checkpoint = q.AgentID, k.led.Head().Checkpoint
	return rep, err
}

// endWithin is how long a kill has to end what was under way.
const endWithin = 15 * time.Second

// forget waits for what a kill has cancelled to be ended.
func (k *keeping) forget(ctx context.Context, agent string) error {
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	for {
		err := k.rel.Forget(agent)
		if !errors.Is(err, release.ErrNotEnded) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// forgetMemories deletes an agent's memories, where the credentials for it are
// at hand.
func (k *keeping) forgetMemories(ctx context.Context, agent string) (bool, error) {
	creds, err := keys.Creds(k.p.keys, keys.RoleInitMemory)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	nc, err := k.p.dial(string(keys.RoleInitMemory), creds)
	if err != nil {
		return false, err
	}
	defer nc.Close()
	return true, embed.ForgetMemories(ctx, nc, agent)
}

// backup copies ledger, anchor, agents' keys and fold into a folder. The fold
// comes first: it may be behind the ledger, and never ahead of it.
func (k *keeping) backup(_ context.Context, q schemas.BackupRequest) (rep schemas.BackupReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !filepath.IsAbs(q.Dir) {
		return rep, schemas.Refuse(schemas.CodeMalformed, "the folder of a backup must be named from the root on")
	}
	for _, name := range []string{"ledger", "anchor", foldDir} {
		if _, err := os.Lstat(filepath.Join(q.Dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return rep, schemas.Refuse(schemas.CodeConflict, "%s is there already: a backup goes into a new folder", filepath.Join(q.Dir, name))
		}
	}
	if _, err := k.rel.KeepFor(); err != nil {
		return rep, err
	}
	if err := os.MkdirAll(filepath.Join(q.Dir, foldDir), 0o700); err != nil {
		return rep, err
	}
	fold, err := os.ReadFile(filepath.Join(k.folds.dir, foldFile))
	if err == nil {
		err = writeSynced(filepath.Join(q.Dir, foldDir, foldFile), fold)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // nothing was released yet
		return rep, fmt.Errorf("backup: %w", err)
	}
	head, err := k.led.Backup(filepath.Join(q.Dir, "ledger"), filepath.Join(q.Dir, "anchor"))
	return schemas.BackupReply{Size: head.Size, StreamSeq: head.StreamSeq, Checkpoint: head.Checkpoint}, err
}

// prune says what may be pruned, and with archives prunes it. What EVENTS still
// holds stays: monitor and issuer fold it when they start, and the ledger gives
// back what it lost. So does what release needs: the bodies of what is open,
// and all behind the fold that it keeps.
func (k *keeping) prune(ctx context.Context, q schemas.PruneRequest) (rep schemas.PruneReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before, err := k.led.Pruned()
	if err != nil {
		return rep, err
	}
	most, limit, err := k.prunable(ctx)
	if err != nil {
		return rep, err
	}
	wanted := q.LastSeq
	if wanted == 0 {
		wanted = ^uint64(0)
	}
	if len(q.Archives) > 0 && wanted > most {
		return rep, schemas.Refuse(schemas.CodeConflict, "events can be pruned up to %d and no further: %s", most, limit)
	}
	last, err := k.led.Prunable(q.Before, min(wanted, most))
	if err != nil || last <= before {
		return schemas.PruneReply{Limit: limit}, err
	}
	rep.FirstSeq, rep.LastSeq = before+1, last
	if wanted > most {
		rep.Limit = limit
	}
	if len(q.Archives) == 0 {
		return rep, nil
	}
	next := before + 1
	p := ledger.Prune{LastSeq: last, Reason: q.Reason, Actor: schemas.RootActor + q.Actor}
	for _, a := range q.Archives {
		if a.FirstSeq > next || a.LastSeq < a.FirstSeq || len(a.SHA256) != 64 {
			return rep, schemas.Refuse(schemas.CodeMalformed, "the archives do not hold event %d", next)
		}
		next = max(next, a.LastSeq+1)
		p.Archives = append(p.Archives, proof.Archive(a))
	}
	if next <= last {
		return rep, schemas.Refuse(schemas.CodeMalformed, "the archives do not hold event %d", next)
	}
	if p, err = k.led.Prune(p, time.Now()); err != nil {
		return rep, err
	}
	rep.Records, rep.Checkpoint = p.Records, k.led.Head().Checkpoint
	if err := k.led.Compact(); err != nil {
		return rep, err
	}
	rep.LastSeq, err = k.led.Pruned()
	return rep, err
}

// prunable is the newest event that nobody needs any more, and why no newer
// one.
func (k *keeping) prunable(ctx context.Context) (seq uint64, limit string, err error) {
	free, err := k.rel.KeepFor()
	if err != nil {
		return 0, "", err
	}
	js, err := jetstream.New(k.conn)
	if err != nil {
		return 0, "", err
	}
	s, err := js.Stream(ctx, schemas.Stream)
	if err != nil {
		return 0, "", fmt.Errorf("the log: %w", err)
	}
	if first := s.CachedInfo().State.FirstSeq; first <= free {
		return max(first, 1) - 1, fmt.Sprintf("EVENTS still holds what begins with %d", first), nil
	}
	return free, fmt.Sprintf("event %d is not ended, or is needed to start", free+1), nil
}
