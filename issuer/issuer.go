// Package issuer alone holds signing keys: it declares the fleet, enrols
// agents, issues and renews capabilities, puts locks on and carries them out
// on the wire.
//
// All that it does is an event first. It keeps nothing of its own: its state
// is a fold of the log, and every account is derived from one secret, the
// agent's id and how often its keys were replaced. What it answers is decided
// by pure functions of that state (decide…); the rest of the package carries
// decisions out.
//
// Guarantees:
//
//   - A capability is granted whole or refused; never clamped, never wider
//     than the ceiling, and never to an agent under a lock: a lock that comes
//     in between wins.
//   - Who asks is the account that the server stamped, also of operators, or
//     somebody with the data folder's own credential; no name in a request
//     counts.
//   - What an agent hands on to another is within a capability of its own in
//     everything, and ends with it.
//   - A kill or suspension stands in the log before it is pushed; it is pushed
//     to all servers and all connections are closed at the same time, those that
//     are known by then even before, and it is pushed a second later again, for a
//     server that was away. Issuing times of an account's JWTs strictly rise.
//   - A lock that a verdict put on in the log is carried out in the same way.
//   - With TLS nobody connects as an agent but with the agent's certificate, the
//     key of its credentials, and the state's consent, at that moment.
//   - No secret appears in an event, a log line or an error.
package issuer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/guard"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// Filters are the events that the issuer folds: what bears on what an agent
// may do, and what became of its actions. Accepted ones change nothing here,
// and are most of the log.
var Filters = []string{"ev.*.agent.>", "ev.*.token.>", "ev.*.review.>", "ev.*.policy.>",
	"ev.*.operation.>", "ev.*.risk.>", "ev.*.message.held", "ev.*.message.denied", "ev.*.message.cancelled", "ev.*.message.expired", "ev.*.response.held", "ev.*.response.denied",
	"ev.*.release.mark"}

// Options of an Issuer. All but Now are needed, Callout and CA where TLS is on.
type Options struct {
	Control   *nats.Conn // in CONTROL, as the user issuer: the log and operators
	Inlet     *nats.Conn // as the same user: what agents ask; a flood of it delays no lock
	System    *nats.Conn // in SYS
	Callout   *nats.Conn // in AUTH: the servers' questions who may connect
	CA        *ca.Authority
	Consumer  string // name of the consumer over Filters
	Source    string // ce-source of what it appends
	Secrets   *keys.Secrets
	Retention time.Duration // of the log
	Served    []string      // death warrants that were served on this machine
	Logger    *slog.Logger
	Now       func() time.Time // the clock; time.Now where nil
}

// An Issuer is one replica.
type Issuer struct {
	Options
	log    *bus.Appender
	reader *bus.Reader
	maker  *accounts.Maker
	wire   *wire
	pushes *pushes
	folded *bus.Watermark
	orders map[string]order // what operators may ask here, by control subject
	gates  *gates           // one command at a time issues for a principal
	locks  *gates           // one command at a time locks a principal, or declares it
	limits *limiters        // of agents' requests
	paces  *limiters        // of operators' commands

	signing sync.RWMutex // guards the fields below: the key that signs is another from its event on
	ring    *keys.Ring
	signer  *capability.Signer
	jwks    []byte

	turning sync.Mutex   // one step of a rotation of the accounts' keys, or of the authority, at a time
	asked   atomic.Int64 // epoch of the accounts' keys for which the servers have AUTH, and one

	applying sync.Mutex // one declaration of the fleet at a time

	mu     sync.RWMutex // guards the fields below
	state  *schemas.State
	rails  *guard.Rails // what the state's guard rails say
	tracks *tracks
	byKey  map[string]bearer    // of an account
	told   map[string]time.Time // newest declaration, by principal
	born   map[string]time.Time // since when its credentials count, by principal
	svids  map[string]time.Time // end of the newest certificate, by principal
	since  map[string]time.Time // behind which its certificates count, by principal that was killed or removed

	forgotten map[string]schemas.LockInfo // locks of principals that EVENTS does not know any more; see recall
}

// New prepares an issuer; Run starts it.
func New(o Options) (*Issuer, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if (o.CA == nil) != (o.Secrets.Auth == nil) || (o.CA == nil) != (o.Callout == nil) {
		return nil, errors.New("issuer: TLS is half on; keys/tls is there or not for all of it")
	}
	log, err := bus.NewAppender(o.Control)
	if err != nil {
		return nil, err
	}
	reader, err := bus.NewReader(o.Control)
	if err != nil {
		return nil, err
	}
	i := &Issuer{Options: o, log: log, reader: reader, maker: accounts.NewMaker(o.Secrets), ring: o.Secrets.Capability,
		wire: &wire{nc: o.System}, folded: bus.NewWatermark(), orders: map[string]order{}, gates: newGates(), locks: newGates(), limits: newLimiters(tokensPerSecond, tokensBurst), paces: newLimiters(operatorLimit, 2*operatorLimit),
		state: schemas.NewState(), tracks: newTracks(), byKey: map[string]bearer{}, told: map[string]time.Time{}, born: map[string]time.Time{}, svids: map[string]time.Time{}, since: map[string]time.Time{}}
	i.pushes = newPushes(i)
	return i, i.takeKeys()
}

// Run serves until the context ends or the log can no longer be followed.
// ready is called when every account stands on every server and requests are
// taken.
func (i *Issuer) Run(ctx context.Context, ready func()) error {
	if err := i.wire.count(ctx); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	g, work := errgroup.WithContext(ctx)
	caughtUp := make(chan uint64, 1)
	f := bus.Follower{Conn: i.Control, Consumer: i.Consumer, Filters: Filters,
		CaughtUp: func(last uint64) { caughtUp <- last }, Reached: i.folded.Set}
	g.Go(func() error { return f.Run(work, i.fold) })
	g.Go(func() error { return i.pushes.run(work) })
	g.Go(func() error {
		select {
		case last := <-caughtUp:
			if err := i.recall(work, last); err != nil {
				return fmt.Errorf("issuer: %w", err)
			}
			return i.open(work, g, ready)
		case <-work.Done():
			return nil
		}
	})
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// open pushes all accounts, locked ones first, and takes requests.
func (i *Issuer) open(ctx context.Context, g *errgroup.Group, ready func()) error {
	warrants, err := i.serveWarrants(ctx) // before an account is pushed in the place of one
	if err != nil {
		return err
	}
	if err := i.honour(ctx); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	if err := i.pushAsked(ctx); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	if err := i.pushes.all(ctx); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	tokens, err := i.serveTokens(ctx, g)
	if err != nil {
		return err
	}
	if err := i.serveControl(); err != nil {
		return err
	}
	if err := i.serveCallout(ctx, g); err != nil {
		return err
	}
	for _, nc := range []*nats.Conn{i.Control, i.Inlet, i.System} {
		if err := nc.Flush(); err != nil {
			return fmt.Errorf("issuer: subscribe: %w", err)
		}
	}
	ready()
	i.tellOffline(ctx)
	err = i.sweepLoop(ctx)
	for _, sub := range []*nats.Subscription{tokens, warrants} {
		if uerr := sub.Unsubscribe(); uerr != nil && i.Inlet.IsConnected() && i.System.IsConnected() {
			err = errors.Join(err, fmt.Errorf("issuer: unsubscribe: %w", uerr))
		}
	}
	return err
}

// fold takes one event of the log into the state, and carries out the locks
// that it puts on.
func (i *Issuer) fold(entry bus.Entry) error {
	e, err := entry.Event()
	if err != nil {
		return err
	}
	i.mu.Lock()
	before, lockdown := i.stance(e.Agent), i.state.LockdownSeq
	ends := endingBy(i.state, e)
	if err := i.state.Apply(e); err != nil {
		i.mu.Unlock()
		return fmt.Errorf("issuer: fold: %w", err)
	}
	after := i.stance(e.Agent)
	i.tracks.fold(e, after.lock != before.lock || i.state.LockdownSeq != lockdown, ends)
	err = i.index(e)
	if after.known && (!before.known || before.lock == schemas.Killed && after.lock != schemas.Killed) {
		i.rebirth(e, !before.known)
	}
	i.mu.Unlock()
	if err != nil {
		return err
	}
	if before != after {
		i.pushes.want(e.Agent)
	}
	i.folded.Set(e.Seq)
	return nil
}

// rebirth notes since when a principal's credentials count: since it was
// enrolled behind a kill, or came into the fleet, which the generation of its
// first keys says, also where that declaration has aged out. Users may be
// issued a second behind that, ahead of the clock; the next time must be behind
// those too. i.mu is held.
func (i *Issuer) rebirth(e *schemas.Event, first bool) {
	at := e.Time
	if first {
		at = time.Unix(int64(i.state.Agents[e.Agent].Generation), 0)
	}
	if before, ok := i.born[e.Agent]; ok && at.Before(before.Add(time.Second)) {
		at = before.Add(time.Second)
	}
	i.born[e.Agent] = at
	if _, before := i.since[e.Agent]; before || !first {
		i.since[e.Agent] = at
		delete(i.svids, e.Agent)
	}
}

// A stance is what of a principal stands in its account.
type stance struct {
	known bool
	lock  schemas.Lock
	keys  accounts.Keys
	role  schemas.Role
}

func (i *Issuer) stance(id string) stance {
	a := i.state.Agents[id]
	if a == nil {
		return stance{}
	}
	return stance{true, a.Lock, keysOf(a), a.Role}
}

// index keeps what the state does not say: when a declaration was last made,
// and whose account is whose. i.mu is held.
func (i *Issuer) index(e *schemas.Event) error {
	switch e.Kind {
	case schemas.AgentDeclared:
		i.told[e.Agent] = e.Time
		delete(i.forgotten, e.Agent)
		return i.indexKey(e.Agent)
	case schemas.AgentEnrolled:
		return i.indexKey(e.Agent)
	case schemas.PolicyApplied:
		i.told[schemas.Fleet] = e.Time
		rails, err := guard.Parse("guardrails", i.state.Guardrails)
		if err != nil { // it was sound when it was declared: fail closed
			i.Logger.Error("the guard rails in force can't be read; nothing is issued", "error", err)
			rails = guard.Broken(err)
		}
		i.rails = rails
	case schemas.PolicyLockdown:
		if i.state.TrustDomain == "" { // no fleet was applied whole, with which it would be repeated
			i.told[schemas.Fleet] = e.Time
		}
	case schemas.AgentRemoved:
		delete(i.told, e.Agent)
		delete(i.svids, e.Agent)
		i.since[e.Agent] = e.Time
	case schemas.AgentCertified:
		var c schemas.Certificate
		if err := schemas.Unmarshal(e.Data, &c); err != nil {
			return fmt.Errorf("issuer: event %d: %w", e.Seq, err)
		}
		i.svids[e.Agent] = c.Expires
	}
	return nil
}

// A bearer is whose an account is: of one incarnation, which need not be the
// present one.
type bearer struct{ id, incarnation string }

// indexKey notes whose the account of a principal is now. i.mu is held.
func (i *Issuer) indexKey(id string) error {
	a := i.state.Agents[id]
	if a == nil {
		return nil
	}
	public, err := i.maker.PublicKey(id, a.Incarnation)
	if err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	i.byKey[public] = bearer{id, a.Incarnation}
	return nil
}

// account of a principal on the servers, as an NKey.
func (i *Issuer) publicKey(id string) (string, error) {
	return i.maker.PublicKey(id, i.pushes.now(id).Incarnation)
}

// append stamps and appends one event, and waits until the own state has it:
// what is decided next knows of it.
func (i *Issuer) append(ctx context.Context, e *schemas.Event) (uint64, error) {
	i.stamp(e)
	seq, err := i.log.Append(ctx, e)
	if err != nil {
		return 0, err
	}
	e.Seq = seq
	return seq, i.folded.Wait(ctx, seq, foldWait)
}

func (i *Issuer) stamp(e *schemas.Event) {
	if e.ID == "" {
		e.ID = "issuer-" + rand.Text()
	}
	e.Source, e.Time = i.Source, i.Now().UTC()
}

// view reads the state.
func view[T any](i *Issuer, read func(*schemas.State) T) T {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return read(i.state)
}

// newTrace is a random W3C trace id; newSpan a span id.
func newTrace() string { return randomHex(16) }
func newSpan() string  { return randomHex(8) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	b[0] |= 1 // all zero is no id
	return hex.EncodeToString(b)
}

// newIncarnation names an incarnation: no two are alike.
func newIncarnation() string { return strings.ToLower(rand.Text()) }

// newJTI is unique for ever: 128 random bits and more.
func newJTI() string { return strings.ToLower(rand.Text()) }

// ReportViolation logs what a server refused a principal's client. The account
// is a public key; one that belongs to nobody in the fleet is passed over.
func (i *Issuer) ReportViolation(ctx context.Context, account string, v schemas.Violation) error {
	i.mu.RLock()
	id := i.byKey[account].id
	i.mu.RUnlock()
	if id == "" {
		return nil
	}
	if view(i, func(s *schemas.State) bool { a := s.Agents[id]; return a != nil && a.Kind == schemas.KindOperator }) {
		// A person who tries what the role does not admit is told so, and not
		// locked out by a count.
		i.Logger.Warn("an operator was refused by the server", "operator", id, "what", v.What, "subject", v.Subject)
		return nil
	}
	flood := ""
	if v.What == schemas.FloodOfBytes || v.What == schemas.FloodOfMessages {
		flood = v.String()
	}
	if flood != "" && !view(i, func(s *schemas.State) bool { return floods(s.Agents[id], v) }) {
		return nil
	}
	_, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentViolation, Agent: id, Reason: schemas.HeaderText(strings.ToValidUTF8(v.String(), "?")), ContentType: jsonType, Data: schemas.Marshal(v)})
	if err != nil || flood == "" {
		return err
	}
	// Nothing behind the server can judge its messages: all others' drown there.
	_, _, partial, err := i.enforce(ctx, schemas.LockRequest{AgentID: id, Lock: schemas.Suspended, Actor: "writ", Reason: flood}, nil)
	if err == nil && partial {
		err = errors.New("a server did not acknowledge; its account is pushed again")
	}
	return err
}

// overRate is how many times its rate an agent must exceed for its messages to
// count as a flood; up to there they are shed, and that is all.
const overRate = 100

// floods reports whether what an account sends is an agent's flood. A service
// sends what it is asked for.
func floods(a *schemas.Agent, v schemas.Violation) bool {
	if a == nil || a.Kind != schemas.KindAgent || cutsOff(a.Lock) {
		return false
	}
	rate := schemas.DefaultRate
	if a.Rate != nil {
		rate = *a.Rate
	}
	return v.What != schemas.FloodOfMessages || float64(v.Count) >= overRate*rate.PerSecond/2
}

const jsonType = "application/json"
