package issuer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
)

const (
	pushesOpen  = 256                     // account pushes awaited at once
	pushPause   = 250 * time.Millisecond  // between looks at what is due
	pushAgain   = 1100 * time.Millisecond // behind a lock, and behind a failure
	startTries  = 3                       // in vain, until the servers count as unreachable
	renewBefore = accounts.TTL / 2
)

// pushes keeps the accounts on the servers in step with the state.
//
// The JWTs of one account leave in the order of their issuing times: signing
// and sending are one step, under a mutex, and what is sent is what holds at
// that moment. So an older state can't overtake a lock on its way.
type pushes struct {
	i    *Issuer
	wake chan struct{}

	mu     sync.Mutex // guards the fields below
	asked  map[string]bool
	sent   map[string]*sent
	forced map[string]schemas.Lock // locks that are to hold before the log shows them
	busy   map[string]int          // commands that push by themselves, by principal
	ready  bool                    // all has been pushed once
}

// sent is what the servers were told last.
type sent struct {
	account accounts.Account
	iat     int64     // of the newest JWT
	taken   int64     // of the newest that all servers took
	due     time.Time // when the next must follow; zero: never
	repeat  time.Time // when the repetition behind a lock is owed; zero: not
}

func newPushes(i *Issuer) *pushes {
	return &pushes{i: i, wake: make(chan struct{}, 1), asked: map[string]bool{}, sent: map[string]*sent{}, forced: map[string]schemas.Lock{}, busy: map[string]int{}}
}

// want asks for a push of a principal's account, soon.
func (p *pushes) want(id string) {
	p.mu.Lock()
	if p.ready {
		p.asked[id] = true
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// force makes a lock hold on the servers although the log does not show it
// yet; unforce ends that, and says whether there was one.
func (p *pushes) force(id string, l schemas.Lock) {
	p.mu.Lock()
	p.forced[id] = l
	p.mu.Unlock()
}

func (p *pushes) unforce(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, forced := p.forced[id]
	delete(p.forced, id)
	return forced
}

// mine leaves a principal's pushes to the caller until it calls done: a command
// that carries a lock out counts connections first.
func (p *pushes) mine(id string) (done func()) {
	p.mu.Lock()
	p.busy[id]++
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		if p.busy[id]--; p.busy[id] == 0 {
			delete(p.busy, id)
		}
		p.mu.Unlock()
	}
}

// run pushes what is asked for and what is due, until the context ends.
func (p *pushes) run(ctx context.Context) error {
	tick := time.NewTicker(pushPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
		case <-tick.C:
		}
		if ids := p.due(); len(ids) > 0 {
			_, _ = p.several(ctx, ids) // logged there, and due again
		}
	}
}

func (p *pushes) due() []string {
	now := p.i.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for id, s := range p.sent {
		if !s.due.IsZero() && !now.Before(s.due) {
			ids = append(ids, id)
			delete(p.asked, id)
		}
	}
	for id := range p.asked {
		if p.busy[id] > 0 {
			continue // looked at again when that is done
		}
		delete(p.asked, id)
		if s := p.sent[id]; s == nil || s.account != p.account(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// account is what a principal's account is made from now, with the lock that
// is to hold already. p.mu is held.
func (p *pushes) account(id string) accounts.Account {
	a, known := p.i.account(id)
	if s := p.sent[id]; s != nil && !known {
		a.Incarnation = s.account.Incarnation
	}
	a.Epoch = p.i.Secrets.Masters.Epoch()
	if forced := p.forced[id]; lockOrder[forced] > lockOrder[a.Lock] {
		a.Lock = forced
	} else {
		delete(p.forced, id) // the state says it now; who is enrolled behind that is another
	}
	if cutsOff(a.Lock) {
		a.Generation, a.Epoch = 0, 0 // such an account has none of the keys
	}
	return a
}

// now is what a principal's account is made from now.
func (p *pushes) now(id string) accounts.Account {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.account(id)
}

// several pushes accounts and logs what fails; that is left, to be tried again.
func (p *pushes) several(ctx context.Context, ids []string) (left []string, err error) {
	var g errgroup.Group
	g.SetLimit(pushesOpen)
	var mu sync.Mutex
	for _, id := range ids {
		g.Go(func() error {
			_, err := p.one(ctx, id)
			if err != nil && ctx.Err() == nil {
				p.i.Logger.Warn("account not pushed; trying again", "agent_id", id, "error", err)
			}
			if err != nil {
				mu.Lock()
				left = append(left, id)
				mu.Unlock()
			}
			return err
		})
	}
	err = g.Wait()
	return left, err
}

// all pushes every account: locks first, so that no one that is locked out
// gets in while the others are pushed.
func (p *pushes) all(ctx context.Context) error {
	p.mu.Lock()
	p.ready = true
	p.mu.Unlock()
	locked, free := p.known()
	return persist(ctx, locked, free, p.several)
}

// persist pushes until nothing is left. Servers that have much to do answer for
// some accounts in time and for others not: only where try after try brings
// nothing is it given up.
func persist(ctx context.Context, locked, free []string, push func(context.Context, []string) ([]string, error)) error {
	for vain := 0; ; {
		before := len(locked) + len(free)
		var lerr, ferr error
		locked, lerr = push(ctx, locked)
		free, ferr = push(ctx, free)
		if len(locked)+len(free) < before {
			vain = 0
		} else {
			vain++
		}
		if err := errors.Join(lerr, ferr); err == nil || vain == startTries || ctx.Err() != nil {
			return err
		}
	}
}

func (p *pushes) known() (locked, free []string) {
	p.i.mu.RLock()
	defer p.i.mu.RUnlock()
	for id, a := range p.i.state.Agents {
		if cutsOff(a.Lock) {
			locked = append(locked, id)
		} else {
			free = append(free, id)
		}
	}
	return locked, free
}

// one pushes an account as it must be now, awaits all servers and names those
// that took it. Connections of an account that is locked out are closed at the
// same time. What is pushed never takes the place of a kill: see heed.
func (p *pushes) one(ctx context.Context, id string) (nodes []string, err error) {
	if err := p.i.heed(ctx, id); err != nil {
		p.failed(id)
		return nil, err
	}
	q, lock, err := p.send(id)
	if err != nil {
		p.failed(id)
		return nil, err
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		nodes, err = p.i.wire.pushed(ctx, q)
		return err
	})
	if cutsOff(lock) {
		g.Go(func() error { return p.clear(ctx, id) })
	}
	if err := g.Wait(); err != nil {
		p.failed(id)
		return nodes, fmt.Errorf("account of %s: %w", id, err)
	}
	p.mu.Lock()
	p.sent[id].taken = max(p.sent[id].taken, q.iat)
	p.mu.Unlock()
	return nodes, nil
}

// clear closes an account's connections.
func (p *pushes) clear(ctx context.Context, id string) error {
	public, err := p.i.publicKey(id)
	if err != nil {
		return err
	}
	return p.i.wire.clear(ctx, public)
}

// send signs the account as it must be now, and sends it.
func (p *pushes) send(id string) (*question, schemas.Lock, error) {
	now := p.i.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.account(id)
	s := p.sent[id]
	if s == nil {
		s = &sent{}
		p.sent[id] = s
	}
	s.iat = max(now.Unix(), s.iat+1)
	token, err := p.i.maker.Account(a, time.Unix(s.iat, 0))
	if err != nil {
		return nil, a.Lock, err
	}
	switch {
	case !cutsOff(a.Lock):
		s.repeat = time.Time{}
	case s.account.Lock != a.Lock:
		s.repeat = now.Add(pushAgain)
	case !now.Before(s.repeat):
		s.repeat = time.Time{}
	}
	s.account, s.due = a, now.Add(renewBefore)
	switch {
	case !s.repeat.IsZero():
		s.due = s.repeat
	case a.Lock == schemas.Killed:
		s.due = time.Time{} // it holds for good
	}
	q, err := p.i.wire.push(token)
	if err == nil {
		q.iat = s.iat
	}
	return q, a.Lock, err
}

func (p *pushes) failed(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent[id] == nil { // what never left is owed all the same
		p.sent[id] = &sent{}
	}
	p.sent[id].due = p.i.Now().Add(pushAgain)
}

// account is what a principal's account is made from now. One that is not in
// the fleet (any more) gets a killed account.
func (i *Issuer) account(id string) (_ accounts.Account, known bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	a := i.state.Agents[id]
	if a == nil {
		return accounts.Account{ID: id, Lock: schemas.Killed}, false
	}
	return accounts.Account{ID: id, Role: a.Role, Lock: a.Lock, Keys: keysOf(a), RevokeUntil: i.born[id]}, true
}
