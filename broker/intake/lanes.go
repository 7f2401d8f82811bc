package intake

import (
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const (
	laneDepth    = 256      // messages that may wait for one agent
	serviceDepth = 16384    // answers that may wait for one service
	waitingBytes = 64 << 20 // of bodies and headers that may wait for one account
)

type limits struct {
	schemas.Rate
	service bool
}

// lanes hold what arrived, one queue per agent and per request that a service
// answers, and hand it out so that no two messages of one lane are in progress
// at once. A flood fills its own lane alone and is shed there, by the stamped
// account and before it is parsed.
type lanes struct {
	limits func(agent string) limits

	mu       sync.Mutex
	some     sync.Cond // there is something in ready, or closed is set
	ready    []*lane
	closed   bool
	lanes    map[string]*lane
	accounts map[string]*account
}

// An account is what is counted per sender.
type account struct {
	limits  limits
	tokens  float64
	last    time.Time
	waiting int
	bytes   int    // that wait
	heard   uint64 // newest answer that was given to the account
	stale   bool   // limits must be read anew
	second  int64  // in which the last shed message was let through to be logged
	shed    int    // since then
	subject string // of the newest of them
}

type lane struct {
	account *account
	key     string // of a lane that is made for one request's answers, and goes with them
	queue   []arrival
	busy    bool
	after   uint64 // sequence of the newest action, for the monitor to have seen
}

// An arrival is one message with what is known before it is parsed.
type arrival struct {
	msg  *nats.Msg
	shed int // over the rate, with this many more behind it; 0 where it is within
}

func newLanes(l func(string) limits) *lanes {
	ls := &lanes{limits: l, lanes: map[string]*lane{}, accounts: map[string]*account{}}
	ls.some.L = &ls.mu
	return ls
}

// put queues a message, or sheds it.
func (l *lanes) put(m *nats.Msg, now time.Time) {
	agent, _, rest := schemas.OutSender(m.Subject)
	if agent == "" || !bus.FromAgent(m) {
		return // the server stamps every subject; without that there is nobody to blame
	}
	if strings.HasPrefix(rest, "token.") {
		return // the issuer's
	}
	answer := strings.HasPrefix(rest, "_r.")
	l.mu.Lock()
	defer l.mu.Unlock()
	acc := l.accounts[agent]
	if acc == nil {
		lim := l.limits(agent)
		acc = &account{limits: lim, tokens: float64(lim.Burst), last: now}
		l.accounts[agent] = acc
	}
	if acc.stale {
		acc.limits, acc.stale = l.limits(agent), false
	}
	a := arrival{msg: m}
	if !acc.admit(answer, now) {
		if acc.second == now.Unix() {
			acc.shed++
			acc.subject = m.Subject
			return
		}
		a.shed = acc.shed + 1
		acc.second, acc.shed = now.Unix(), 0
	}
	l.queue(acc, agent, a, answer)
}

// tell lets go on, for each account of which messages were shed in an earlier
// second and not yet told of, a message without a body and without a reply: one
// that says how many. A flood that has ended would otherwise leave its last
// second untold.
func (l *lanes) tell(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for agent, acc := range l.accounts {
		if acc.shed == 0 || acc.second >= now.Unix() {
			continue
		}
		a := arrival{msg: &nats.Msg{Subject: acc.subject}, shed: acc.shed}
		acc.second, acc.shed = now.Unix(), 0
		l.queue(acc, agent, a, false)
	}
}

// queue puts an arrival into its lane. l.mu is held.
func (l *lanes) queue(acc *account, agent string, a arrival, answer bool) {
	// Answers to different requests need no order among one another; the
	// chunks of a stream do.
	key, passing := agent, ""
	if answer && acc.limits.service {
		key = a.msg.Subject
		passing = key
	}
	ln := l.lanes[key]
	if ln == nil {
		ln = &lane{account: acc, key: passing}
		l.lanes[key] = ln
	}
	ln.account = acc
	acc.waiting++
	acc.bytes += a.msg.Size()
	ln.queue = append(ln.queue, a)
	if !ln.busy {
		ln.busy = true
		l.ready = append(l.ready, ln)
		l.some.Signal()
	}
}

// admit takes one token from the account's bucket. A service's answers cost
// nothing: it is asked by many, and bounded by how much may wait.
func (a *account) admit(answer bool, now time.Time) bool {
	if answer && a.limits.service {
		return a.waiting < serviceDepth && a.bytes < waitingBytes
	}
	a.refill(now)
	if a.tokens < 1 || a.waiting >= laneDepth || a.bytes >= waitingBytes {
		return false
	}
	a.tokens--
	return true
}

func (a *account) refill(now time.Time) {
	a.tokens = min(float64(a.limits.Burst), a.tokens+a.limits.PerSecond*max(0, now.Sub(a.last).Seconds()))
	a.last = now
}

// astray takes a token for an answer that answers nothing, or what was answered
// already.
func (l *lanes) astray(ln *lane, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.account.refill(now)
	ln.account.tokens--
}

// owing reports whether a service has spent its tokens so: what it answers to
// requests that nobody here remembers is not looked up any more.
func (l *lanes) owing(ln *lane, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.account.refill(now)
	return ln.account.limits.service && ln.account.tokens < 1
}

// heard notes that an answer for an account is in the log.
func (l *lanes) heard(agent string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if acc := l.accounts[agent]; acc != nil {
		acc.heard = max(acc.heard, seq)
	}
}

// after is the sequence that the monitor must have folded before it judges the
// lane's next action: what the agent did, was granted and was told before.
func (l *lanes) after(ln *lane) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(ln.after, ln.account.heard)
}

// forget makes the next message read the account's limits anew.
func (l *lanes) forget(agent string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if acc := l.accounts[agent]; acc != nil {
		acc.stale = true
	}
}

// A task is a message on its way through intake; its lane is busy meanwhile.
type task struct {
	arrival
	lane  *lane
	event *schemas.Event // the draft, and then the event
}

// take waits for lanes that have something, and takes the first message of
// each: at most max, and at most so many bytes where it is more than one. It
// gives nil when the lanes are closed.
func (l *lanes) take(max, bytes int) []task {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) == 0 && !l.closed {
		l.some.Wait()
	}
	if l.closed {
		return nil
	}
	n := 0
	for n < min(len(l.ready), max) {
		bytes -= len(l.ready[n].queue[0].msg.Data)
		if bytes < 0 && n > 0 {
			break
		}
		n++
	}
	tasks := make([]task, n)
	for i, ln := range l.ready[:n] {
		tasks[i] = task{arrival: ln.queue[0], lane: ln}
		ln.queue[0] = arrival{}
		ln.queue = ln.queue[1:]
		l.ready[i] = nil
	}
	if l.ready = l.ready[n:]; len(l.ready) > 0 {
		l.some.Signal()
	}
	return tasks
}

// done frees the lanes of tasks for what waits in them.
func (l *lanes) done(tasks ...*task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range tasks {
		ln := t.lane
		ln.account.waiting--
		ln.account.bytes -= t.msg.Size()
		if len(ln.queue) == 0 {
			if ln.busy = false; ln.key != "" {
				delete(l.lanes, ln.key)
			}
			continue
		}
		l.ready = append(l.ready, ln)
		l.some.Signal()
	}
}

// close lets take return nil; what still waits is dropped, and answered by
// nobody.
func (l *lanes) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.some.Broadcast()
}
