package plane

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/broker/intake"
	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// source names an appender in the log: its role, and which of its instances.
func source(role keys.Role) string { return "writ/" + string(role) + "/1" }

// entryBuffer lets the ledger's batches grow while it syncs.
const entryBuffer = 4096

// startLedger starts the ledger and, behind it in the same process, release:
// what the one has on disk, the other lets out.
func (p *Process) startLedger(ctx context.Context) error {
	conn, err := p.connect(keys.RoleLedger)
	if err != nil {
		return err
	}
	last, created, err := streamSeq(ctx, conn)
	if err != nil {
		return err
	}
	if err := keys.SettleLedger(p.keys); err != nil {
		return err
	}
	o, err := ledgerOptions(p.keys, p.data)
	if err != nil {
		return err
	}
	o.StreamID = proof.StreamID(keys.CONTROL, schemas.Stream, created.UnixNano())
	o.Logger = p.log
	led, err := ledger.Open(o)
	if err != nil {
		return err
	}
	p.close = append(p.close, led.Close)
	p.ledger = led
	log, err := bus.NewAppender(conn)
	if err != nil {
		return err
	}
	publisher := newPublisher(led, log)
	if err := p.repair(ctx, led, last); err != nil {
		return err
	}
	folds, err := newFoldStore(p.data, o.Secret, o.StreamID)
	if err != nil {
		return err
	}
	rel, err := p.newRelease(led, folds)
	if err != nil {
		return err
	}
	if err := p.foldLog(led, rel, folds); err != nil {
		return err
	}
	if err := p.stages.start(ctx, "release", func(ctx context.Context, ready func()) error {
		ready()
		return rel.Run(ctx)
	}); err != nil {
		return err
	}
	if err := p.stages.start(ctx, "ledger", func(ctx context.Context, ready func()) error {
		if err := led.Serve(conn); err != nil {
			return err
		}
		k := &keeping{p: p, conn: conn, led: led, rel: rel, folds: folds, log: log}
		if err := k.serve(); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		if p.verifyShare > 0 {
			g.Go(func() error { return led.Watch(ctx, p.verifyShare) })
		}
		g.Go(func() error { return publisher.run(ctx) })
		g.Go(func() error {
			return p.follow(ctx, led, rel, bus.Follower{Conn: conn, Consumer: string(keys.RoleLedger), From: led.From()})
		})
		g.Go(func() error {
			if err := confirmed(ctx, led); err != nil {
				return err
			}
			if err := rel.Confirm(); err != nil {
				return err
			}
			ready()
			_, _, err := tellHandOver(ctx, p.keys, log)
			return err
		})
		if err := g.Wait(); err != nil {
			return err
		}
		return publisher.last(ctx)
	}); err != nil {
		return err
	}
	p.stages.raise("release") // what it writes last is in the ledger too
	return nil
}

// confirmed returns when the ledger's tail has been compared with the log:
// from then on it signs.
func confirmed(ctx context.Context, led *ledger.Ledger) error {
	for {
		_, err := led.Checkpoint(ctx, led.Head().Size)
		if !errors.Is(err, ledger.ErrUnconfirmed) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow is the straight line's middle: what stands in EVENTS goes through the
// ledger to release. At the end the ledger takes what is left: it would never
// get it if EVENTS forgot it before the next start.
func (p *Process) follow(ctx context.Context, led *ledger.Ledger, sink ledger.Sink, f bus.Follower) error {
	entries := make(chan bus.Entry, entryBuffer)
	g, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	take := func(e bus.Entry) error {
		select {
		case entries <- e:
			f.From = e.Seq + 1
			return nil
		case <-failed.Done():
			return failed.Err()
		}
	}
	g.Go(func() error {
		defer close(entries)
		following, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(failed, func() { cancel(failed.Err()) })()
		f.CaughtUp = func(end uint64) {
			if f.From <= end {
				cancel(forgot(led.Signs(), f.From, end))
			}
		}
		err := f.Run(following, take)
		if gap := context.Cause(following); errors.Is(gap, ledger.ErrGap) {
			return gap
		}
		if ctx.Err() == nil || failed.Err() != nil {
			return err
		}
		rest, done := context.WithTimeout(failed, restWithin)
		defer done()
		if err := f.Rest(rest, take); err != nil {
			return fmt.Errorf("the ledger has not taken all that stands in the log; start again before the log forgets it: %w", err)
		}
		return nil
	})
	// The ledger ends when the entries do: what it took is on disk then, and
	// signed.
	g.Go(func() error { return led.Run(context.WithoutCancel(ctx), entries, sink) })
	return g.Wait()
}

// forgot says what can be done where EVENTS lacks what the ledger must have. A
// gap is recorded by a ledger that signs, and none signs behind a tail that it
// could not compare.
func forgot(signs bool, from, end uint64) error {
	next := "restore the whole data folder from one backup; the gap can't be accepted, for the ledger's last records are not signed, and nothing is left to compare them with"
	if signs {
		next = "if they are lost for good, an operator must record the gap (writ ledger accept-gap), or restore the whole data folder from one backup"
	}
	return fmt.Errorf("%w: EVENTS has forgotten %d to %d before the ledger had confirmed them; %s", ledger.ErrGap, from, end, next)
}

// repair gives EVENTS back the tail that a loss of power took from it.
func (p *Process) repair(ctx context.Context, led *ledger.Ledger, last uint64) error {
	if led.Head().StreamSeq <= last {
		return nil
	}
	conn, err := p.connect(keys.RoleRepair)
	if err != nil {
		return err
	}
	log, err := bus.NewAppender(conn)
	if err != nil {
		return err
	}
	n, err := led.RepairTail(ctx, last, log.Restore)
	if err != nil {
		return err
	}
	p.log.Warn("the log lacked events that the ledger has; they were put back", "events", n, "behind", last)
	return nil
}

// foldLog brings release up to the ledger's end: from the fold that was kept,
// or else from the first event on.
func (p *Process) foldLog(led *ledger.Ledger, rel *release.Release, folds *foldStore) error {
	kept, seq, refused := folds.load(led)
	if kept != nil {
		if err := rel.Restore(kept); err != nil {
			refused, seq = errors.Join(refused, err), 0
		}
	}
	if pruned, err := led.Pruned(); err != nil || pruned > seq {
		return errors.Join(err, refused, fmt.Errorf("events up to %d are pruned, and no kept fold goes that far: fold them from their archives with writ ledger refold --archive DIR, or put %s back from the newest backup", pruned, filepath.Join(p.data, foldDir)))
	}
	if refused != nil {
		p.log.Warn("a kept fold of the log was refused; more of the ledger is folded", "from", seq+1, "error", refused)
	}
	return rel.Replay(func(yield func(*schemas.Event) error) error { return led.Replay(seq+1, yield) })
}

func (p *Process) newRelease(led *ledger.Ledger, folds *foldStore) (*release.Release, error) {
	control, err := p.connect(keys.RoleRelease)
	if err != nil {
		return nil, err
	}
	deliver, err := p.connect(keys.RoleDeliver)
	if err != nil {
		return nil, err
	}
	return release.New(release.Options{Control: control, Deliver: deliver, Source: source(keys.RoleRelease), Logger: p.log, Bodies: led,
		Keep: keeper(led, folds)})
}

// keeper keeps release's fold bound to the ledger's beginning that it is of.
func keeper(led *ledger.Ledger, folds *foldStore) func(seq uint64, fold []byte) error {
	return func(seq uint64, fold []byte) error {
		prefix, err := led.PrefixTo(seq)
		if err != nil {
			return err
		}
		return folds.keep(prefix, fold)
	}
}

// LedgerOptions are those of the ledger of a data folder, without the stream.
func LedgerOptions(data string) (ledger.Options, error) { return ledgerOptions(data, data) }

// ledgerOptions take the keys from one data folder and the database from
// another.
func ledgerOptions(keysOf, data string) (ledger.Options, error) {
	k, err := keys.OpenLedger(keysOf)
	if err != nil {
		return ledger.Options{}, err
	}
	verifier, err := note.NewVerifier(k.Verifier)
	if err != nil {
		return ledger.Options{}, fmt.Errorf("keys/ledger.pub: %w", err)
	}
	witnesses, err := readWitnesses(data)
	if err != nil {
		return ledger.Options{}, err
	}
	o := ledger.Options{Dir: filepath.Join(data, "ledger"), AnchorDir: filepath.Join(data, "anchor"),
		Signer: k.Signer, Verifier: verifier, Key: k.Verifier, Secret: k.Secret, Lookup: k.Lookup, Witnesses: witnesses,
		Turn: func(size uint64, to ledger.Handover) error { return keys.TurnLedger(keysOf, size, to.Actor, to.Reason) }}
	if k.Next != nil {
		o.Next = &ledger.Successor{Signer: k.Next.Signer, Key: k.Next.Verifier}
	}
	return o, nil
}

func (p *Process) startMonitor(ctx context.Context) error {
	conn, err := p.connect(keys.RoleMonitor)
	if err != nil {
		return err
	}
	s, err := monitor.NewService(monitor.ServiceOptions{Conn: conn, Consumer: string(keys.RoleMonitor),
		Source: source(keys.RoleMonitor), Logger: p.log, Snapshot: filepath.Join(p.data, "monitor", "snapshot"), Weights: p.weights, Shadow: p.shadow})
	if err != nil {
		return err
	}
	return p.stages.start(ctx, "monitor", s.Run)
}

// startIssuer starts the issuer, and behind it what keeps the memory service's
// credentials fresh.
func (p *Process) startIssuer(ctx context.Context) (*issuer.Issuer, error) {
	secrets, err := keys.OpenSecrets(p.keys)
	if err != nil {
		return nil, err
	}
	control, err := p.connect(keys.RoleIssuer)
	if err != nil {
		return nil, err
	}
	inlet, err := p.connect(keys.RoleIssuer)
	if err != nil {
		return nil, err
	}
	system, err := p.connect(keys.RoleSystem)
	if err != nil {
		return nil, err
	}
	authority, callout, err := p.startCallout(secrets.Trust.TrustDomain)
	if err != nil {
		return nil, err
	}
	served, err := servedWarrants(p.keys)
	if err != nil {
		return nil, err
	}
	i, err := issuer.New(issuer.Options{Control: control, Inlet: inlet, System: system, Callout: callout, CA: authority, Consumer: string(keys.RoleIssuer),
		Source: source(keys.RoleIssuer), Secrets: secrets, Served: served, Retention: p.retention, Logger: p.log})
	if err != nil {
		return nil, err
	}
	if err := p.stages.start(ctx, "issuer", i.Run); err != nil {
		return nil, err
	}
	return i, p.stages.start(ctx, "the memory service's credentials", p.keepMemoryCreds)
}

// startCallout opens what the issuer needs where TLS is on.
func (p *Process) startCallout(trustDomain string) (*ca.Authority, *nats.Conn, error) {
	authority, err := p.authority, error(nil)
	if authority == nil {
		authority, err = ca.Open(p.keys, trustDomain)
	}
	if err != nil || authority == nil {
		return nil, nil, err
	}
	conn, err := p.connect(keys.RoleCallout)
	return authority, conn, err
}

// startPlaneIssuer starts the issuer and tells it what the embedded server
// refuses.
func (p *Plane) startPlaneIssuer(ctx context.Context) error {
	i, err := p.startIssuer(ctx)
	if err != nil {
		return err
	}
	p.issuer = i
	return p.stages.start(ctx, "violations", func(ctx context.Context, ready func()) error {
		ready()
		for {
			select {
			case <-ctx.Done():
				return nil
			case v := <-p.server.Violations():
				if err := i.ReportViolation(ctx, v.Account, schemas.Violation{Subject: v.Subject, What: v.What, Count: v.Count}); err != nil {
					p.log.Error("a violation was not logged", "account", v.Account, "error", err)
				}
			}
		}
	})
}

// startBroker starts what works for agents in front of the log: their memory,
// and intake, which knows how much of it is declared for each.
func (p *Process) startBroker(ctx context.Context) error {
	conn, err := p.connect(keys.RoleIntake)
	if err != nil {
		return err
	}
	inlet, err := p.connect(keys.RoleIntake)
	if err != nil {
		return err
	}
	i, err := intake.New(intake.Options{Conn: conn, Inlet: inlet, Consumer: string(keys.RoleIntake), Source: source(keys.RoleIntake), Logger: p.log})
	if err != nil {
		return err
	}
	if err := p.startMemory(ctx, i.MemoryQuota); err != nil {
		return err
	}
	return p.stages.start(ctx, "intake", i.Run)
}

// trustDomain is that of the fleet file where there is one: a new data folder
// takes it over.
func (p *Plane) trustDomain() (string, error) {
	if p.o.Fleet != "" {
		f, err := p.readFleet()
		if err != nil {
			return "", err
		}
		return f.TrustDomain, nil
	}
	if p.o.TrustDomain != "" {
		return p.o.TrustDomain, nil
	}
	return DefaultTrustDomain, nil
}

func (p *Plane) readFleet() (*fleet.File, error) { return fleet.Load(p.o.Fleet) }

func (p *Plane) applyFleet(ctx context.Context) error {
	if p.o.Fleet == "" {
		return nil
	}
	f, err := p.readFleet()
	if err != nil {
		return err
	}
	operator, err := p.Operator()
	if err != nil {
		return err
	}
	defer operator.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err = bus.Call[schemas.ApplyReply](ctx, operator, schemas.CtlApply, schemas.ApplyRequest{
		TrustDomain: f.TrustDomain, Digest: f.Digest, Principals: f.Principals, Guardrails: f.Policies, Signals: f.Signals, Actor: p.o.Actor})
	if err != nil {
		return fmt.Errorf("apply %s: %w", p.o.Fleet, err)
	}
	return nil
}
