package release

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Core is what release knows and decides: a fold of the log, without clock,
// network or disk. Step folds one durable event and says what is to be done
// about it; Due says what time has brought about. Both are called in log order
// by one goroutine.
//
// What Step wants logged (Emit) changes the state only when it comes back from
// the log, so that a restart from the log comes to the same state.
type Core struct {
	state *schemas.State
	open  map[uint64]*item   // accepted or held, and not yet closed
	pairs map[pair]*pairLine // sends, in order, one outstanding
	asks  map[pair]int       // accepted requests that are open
	ids   map[string]*seen   // idempotency keys, by agent
	due   dueHeap
}

// An item is one action between its acceptance and its end.
type item struct {
	ev      *schemas.Event // without body once delivered
	stage   stage
	tries   int           // deliveries so far
	next    time.Time     // of a send's next delivery, of anything's expiry
	told    bool          // its sender has been acknowledged, or told that it is held
	first   uint64        // of a repetition: the sequence that it repeats
	grant   *schemas.Live // under which it was accepted or held; nil where there was none
	reserve int64         // tokens that it reserved of a metered service
	endKind schemas.Kind
	refusal *schemas.Refusal
}

type stage uint8

const (
	waiting   stage = iota // a send behind another of its pair
	delivered              // given to its recipient; the answer is awaited
	held                   // awaits a review
	closing                // its end has been sent to the log
)

type pair struct{ from, to string }

type pairLine struct{ queue []uint64 }

// queueMost is how many sends, and how many requests, of one pair wait. Each is
// remembered until its recipient takes it, which may be never, and each is
// cancelled by a kill.
const queueMost = 10_000

// Redelivery of a send that its recipient left unanswered: after 1 s, doubling
// to 60 s. A recipient without a connection is tried again after 1 s, doubling
// to 5 s.
const (
	retryFirst = time.Second
	retryMost  = 60 * time.Second
	absentMost = 5 * time.Second
)

// NewCore is the core before the first event.
func NewCore() *Core {
	return &Core{state: schemas.NewState(), open: map[uint64]*item{}, pairs: map[pair]*pairLine{}, asks: map[pair]int{}, ids: map[string]*seen{}}
}

// An Effect is one thing to be done in the world.
type Effect interface{ seq() uint64 }

// Deliver gives an action to its recipient. The body is that of the event,
// which the core does not keep.
type Deliver struct {
	Event   *schemas.Event // the action; Data may be missing, then the ledger has it
	To      string
	Token   string // the sender's capability, for the recipient to verify
	Attempt int    // 1 for the first
	Reserve int64  // tokens that a metered service may use; 0 where it is none
}

// Answer answers a requester. Final frees the reply at the server.
type Answer struct {
	Seq    uint64 // event that allows it
	Reply  string
	Header schemas.Header
	Body   []byte
	Final  bool
}

// Cancel tells a recipient that what it was given is void.
type Cancel struct {
	Seq uint64
	To  string
	Ref uint64 // the action
}

// Emit appends an event.
type Emit struct{ Event *schemas.Event }

func (d Deliver) seq() uint64 { return d.Event.Seq }
func (a Answer) seq() uint64  { return a.Seq }
func (c Cancel) seq() uint64  { return c.Seq }
func (e Emit) seq() uint64    { return e.Event.Ref }

// Step folds one event of the log.
func (c *Core) Step(e *schemas.Event) ([]Effect, error) {
	var out []Effect
	switch e.Kind {
	case schemas.MessageAccepted:
		out = c.accepted(e) // judged by the state before it
	case schemas.ResponseAccepted:
		out = c.answered(e)
	}
	before := c.lockOf(e.Agent)
	revoked := c.revoked(e)
	if err := c.state.Apply(e); err != nil {
		return nil, err
	}
	switch e.Kind {
	case schemas.MessageHeld:
		out = c.hold(e)
	case schemas.MessageDenied:
		out = refuse(e.Seq, e.Reply, &schemas.Refusal{Code: e.Code, Text: e.Reason, Seq: e.Seq})
	case schemas.ResponseHeld:
		c.open[e.Seq] = &item{ev: e, stage: held, next: e.Time.Add(ResponseHold)}
		c.schedule(e.Seq)
	case schemas.MessageCancelled, schemas.MessageExpired:
		out = c.closed(e)
	case schemas.ReviewApproved:
		out = c.approved(e)
	case schemas.ReviewDenied:
		out = c.denied(e)
	case schemas.PolicyLockdown:
		out = c.cancelWhere(e, schemas.CodeCancelled, "the fleet is locked down: "+e.Reason, func(*item) bool { return true })
	case schemas.TokenRevoked:
		if revoked != nil {
			out = c.cancelWhere(e, schemas.CodeCancelled, "the capability was revoked, or one that it was derived from", func(it *item) bool {
				return it.grant != nil && it.grant.DerivesFrom(revoked)
			})
		}
	}
	if after := c.lockOf(e.Agent); after != before && (after == schemas.Suspended || after == schemas.Killed) {
		out = append(out, c.cancelWhere(e, schemas.CodeCancelled, fmt.Sprintf("%s is %s", e.Agent, after), func(it *item) bool {
			return it.ev.Agent == e.Agent || it.ev.To == e.Agent || it.grant != nil && it.grant.DerivesFromAgent(e.Agent)
		})...)
	}
	return out, nil
}

// revoked is the capability that an event revokes, as it stood before.
func (c *Core) revoked(e *schemas.Event) *schemas.Live {
	if e.Kind != schemas.TokenRevoked {
		return nil
	}
	if a := c.state.Agents[e.Agent]; a != nil {
		return a.ByJTI(e.JTI)
	}
	return nil
}

// ResponseHold is how long an answer of a paused agent awaits its review.
const ResponseHold = 24 * time.Hour

func (c *Core) lockOf(agent string) schemas.Lock {
	if a := c.state.Agents[agent]; a != nil {
		return a.Lock
	}
	return schemas.Killed
}

// accepted decides, in log order, whether what intake let through is
// delivered.
func (c *Core) accepted(e *schemas.Event) []Effect {
	it := &item{ev: e, next: e.Expires}
	c.open[e.Seq] = it
	c.ask(it, 1)
	if r := c.refused(e, it); r != nil {
		return c.end(e.Seq, schemas.MessageCancelled, r)
	}
	c.schedule(e.Seq)
	if !e.Action.Request() {
		it.told = true
		return append(ack(e.Seq, e.Reply, schemas.Ack{Stream: schemas.Stream, Seq: e.Seq}), c.enqueue(e)...)
	}
	it.stage = delivered
	return []Effect{c.deliver(it)}
}

// refused is the exact check: by the state at the event's place in the log.
func (c *Core) refused(e *schemas.Event, it *item) *schemas.Refusal {
	ad, r := c.state.Accept(e)
	it.grant, it.reserve = ad.Grant, ad.Reserve
	if r != nil {
		return r
	}
	p := pair{e.Agent, e.To}
	if line := c.pairs[p]; !e.Action.Request() && line != nil && len(line.queue) >= queueMost {
		return schemas.Refuse(schemas.CodeRate, "%d messages to %s wait for it to take them; send again when it has taken some", len(line.queue), e.To)
	}
	if n := c.asks[p] - 1; e.Action.Request() && n >= queueMost { // without this one
		return schemas.Refuse(schemas.CodeRate, "%d requests to %s wait for an answer; ask again when it has given some", n, e.To)
	}
	return c.repeated(e, it)
}

// ask counts a request that was accepted, or, below 0, no longer is open.
func (c *Core) ask(it *item, n int) {
	if it.ev.Kind != schemas.MessageAccepted || !it.ev.Action.Request() {
		return
	}
	p := pair{it.ev.Agent, it.ev.To}
	if c.asks[p] += n; c.asks[p] == 0 {
		delete(c.asks, p)
	}
}

// deliver is the effect that gives it to its recipient.
func (c *Core) deliver(it *item) Effect {
	e := *it.ev
	it.tries++
	d := Deliver{Event: &e, To: e.To, Attempt: it.tries, Reserve: it.reserve}
	if it.grant != nil { // the operation may have ended while its recipient was away
		d.Token = it.grant.Newest().Token
	}
	slim := e
	slim.Data = nil
	it.ev = &slim // the ledger keeps the body
	return d
}

// enqueue puts a send behind those of its pair.
func (c *Core) enqueue(e *schemas.Event) []Effect {
	p := pair{e.Agent, e.To}
	line := c.pairs[p]
	if line == nil {
		line = &pairLine{}
		c.pairs[p] = line
	}
	line.queue = append(line.queue, e.Seq)
	if len(line.queue) > 1 {
		slim := *e
		slim.Data = nil
		c.open[e.Seq].ev = &slim
		return nil
	}
	return c.sendFirst(line, e.Time)
}

// sendFirst delivers the head of a pair's line. One that is about to end is
// passed over: its end, once in the log, brings up the next.
func (c *Core) sendFirst(line *pairLine, now time.Time) []Effect {
	it := c.open[line.queue[0]]
	if it.stage == closing {
		return nil
	}
	it.stage = delivered
	eff := c.deliver(it)
	c.retryAt(it, now, retryMost)
	return []Effect{eff}
}

func (c *Core) retryAt(it *item, now time.Time, most time.Duration) {
	wait := retryFirst << min(it.tries-1, 10)
	it.next = now.Add(min(wait, most))
	if it.next.After(it.ev.Expires) {
		it.next = it.ev.Expires
	}
	c.schedule(it.ev.Seq)
}

// answered takes an answer from the one who was asked, the first in log order.
func (c *Core) answered(e *schemas.Event) []Effect {
	it := c.open[e.Ref]
	if it == nil || it.stage != delivered || it.ev.Request != e.Request || it.ev.To != e.Agent {
		return nil // too late, or not theirs: logged, and given to nobody
	}
	if lock := c.lockOf(e.Agent); lock != schemas.Active {
		return nil
	}
	if !it.ev.Action.Request() {
		return c.close(it, e.Time)
	}
	if e.Final {
		c.close(it, e.Time)
	}
	return []Effect{c.answer(it, e)}
}

func (c *Core) answer(it *item, e *schemas.Event) Effect {
	h := schemas.Header{schemas.HeaderFrom: {e.Agent}, schemas.HeaderOperation: {e.Operation},
		schemas.HeaderSeq: {fmt.Sprint(it.ev.Seq)}, schemas.HeaderTrace: {schemas.Trace{ID: e.Trace.ID, Span: fmt.Sprintf("%016x", e.Seq)}.Traceparent()}}
	if e.ContentType != "" {
		h[schemas.HeaderType] = []string{e.ContentType}
	}
	if e.Code != 0 {
		h[schemas.HeaderErrorCode], h[schemas.HeaderError] = []string{fmt.Sprint(e.Code)}, []string{e.Reason}
	}
	return Answer{Seq: e.Seq, Reply: it.ev.Reply, Header: h, Body: e.Data, Final: e.Final}
}

// hold keeps what a paused agent sent, or what its risk stopped.
func (c *Core) hold(e *schemas.Event) []Effect {
	slim := *e
	slim.Data = nil
	it := &item{ev: &slim, stage: held, next: e.Expires, grant: c.state.GrantOf(e.Agent, e.Operation)}
	if e.Action.Request() {
		// The caller is told at once and asks again once it is approved;
		// what it sent stays listed for as long as a send would.
		it.next = e.Time.Add(ResponseHold)
	}
	it.told = true
	c.open[e.Seq] = it
	c.schedule(e.Seq)
	if lock := c.lockOf(e.Agent); lock == schemas.Suspended || lock == schemas.Killed {
		it.told = false
		return c.end(e.Seq, schemas.MessageCancelled, schemas.Refuse(schemas.CodeCancelled, "%s is %s", e.Agent, lock))
	}
	if c.state.Lockdown != "" {
		it.told = false
		return c.end(e.Seq, schemas.MessageCancelled, schemas.Refuse(schemas.CodeCancelled, "the fleet is locked down: %s", c.state.Lockdown))
	}
	if it.grant != nil && !it.grant.Admitted(e) { // as State.Accept has it: who holds the next, perhaps enrolled anew, has not done it
		it.told = false
		return c.end(e.Seq, schemas.MessageCancelled, schemas.Refuse(schemas.CodeUnauthorized, "the capability that admitted it was replaced"))
	}
	if over := c.over(it.grant, e.Time); over != "" { // it ended while this was on its way: there is nothing to review
		it.told = false
		return c.end(e.Seq, schemas.MessageCancelled, schemas.Refuse(schemas.CodeUnauthorized, "%s", over))
	}
	if e.Action.Request() {
		return refuse(e.Seq, e.Reply, &schemas.Refusal{Code: schemas.CodeHeld, Text: e.Reason, Seq: e.Seq})
	}
	return ack(e.Seq, e.Reply, schemas.Ack{Stream: schemas.Stream, Seq: e.Seq})
}

func (c *Core) over(g *schemas.Live, at time.Time) string {
	if g == nil {
		return "no capability was issued for the operation, or it has ended"
	}
	if why := g.Over(at); why != "" {
		return "the capability is no longer valid (" + why + ")"
	}
	return ""
}

// approved lets a held action go. A request is not carried out now: its caller
// was told to ask again, and one repetition is admitted.
func (c *Core) approved(e *schemas.Event) []Effect {
	it := c.open[e.Ref]
	if it == nil || it.stage != held || it.ev.Agent != e.Agent {
		return nil
	}
	switch {
	case it.ev.Kind == schemas.ResponseHeld:
		delete(c.open, e.Ref)
		asked := c.open[it.ev.Ref]
		if asked == nil || asked.stage != delivered || asked.ev.Request != it.ev.Request {
			return nil
		}
		if it.ev.Final {
			c.close(asked, e.Time)
		}
		return []Effect{c.answer(asked, it.ev)}
	case it.ev.Action.Request():
		delete(c.open, e.Ref)
		return nil
	}
	it.stage, it.next = waiting, it.ev.Expires
	c.schedule(e.Ref)
	return c.enqueue(it.ev)
}

// denied ends a held action: what was held is cancelled, and that is logged.
func (c *Core) denied(e *schemas.Event) []Effect {
	it := c.open[e.Ref]
	if it == nil || it.stage != held || it.ev.Agent != e.Agent {
		return nil
	}
	return c.end(e.Ref, schemas.MessageCancelled, schemas.Refuse(schemas.CodeForbidden, "a reviewer denied it: %s", e.Reason))
}

// end sends the end of an action to the log; closed takes it from there.
func (c *Core) end(seq uint64, kind schemas.Kind, r *schemas.Refusal) []Effect {
	it := c.open[seq]
	if it.stage == closing {
		return nil
	}
	it.refusal, it.endKind = r, kind
	e := &schemas.Event{Kind: kind, Agent: it.ev.Agent, Ref: seq, Code: r.Code, Reason: r.Text, Trace: it.ev.Trace,
		Operation: it.ev.Operation, Action: it.ev.Action, To: it.ev.To}
	it.stage = closing
	return []Effect{Emit{Event: e}}
}

// cancelWhere ends every open action that matches, in log order.
func (c *Core) cancelWhere(e *schemas.Event, code int, why string, match func(*item) bool) []Effect {
	var seqs []uint64
	for seq, it := range c.open {
		if seq != e.Seq && it.stage != closing && match(it) {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	var out []Effect
	for _, seq := range seqs {
		out = append(out, c.end(seq, schemas.MessageCancelled, schemas.Refuse(code, "%s", why))...)
	}
	return out
}

// closed takes an end back from the log, and tells those who wait.
func (c *Core) closed(e *schemas.Event) []Effect {
	it := c.open[e.Ref]
	if it == nil || it.ev.Agent != e.Agent {
		return nil
	}
	out := c.close(it, e.Time)
	if it.tries > 0 {
		out = append(out, Cancel{Seq: e.Seq, To: it.ev.To, Ref: e.Ref})
	}
	switch {
	case it.told:
		return out
	case it.first != 0:
		return append(out, ack(e.Seq, it.ev.Reply, schemas.Ack{Stream: schemas.Stream, Seq: it.first, Duplicate: true})...)
	}
	return append(out, refuse(e.Seq, it.ev.Reply, &schemas.Refusal{Code: e.Code, Text: e.Reason, Seq: e.Ref})...)
}

// close forgets an action; the next of its pair goes out.
func (c *Core) close(it *item, now time.Time) []Effect {
	delete(c.open, it.ev.Seq)
	c.ask(it, -1)
	if it.ev.Action.Request() || it.ev.Kind == schemas.ResponseHeld {
		return nil
	}
	p := pair{it.ev.Agent, it.ev.To}
	line := c.pairs[p]
	if line == nil {
		return nil
	}
	at := slices.Index(line.queue, it.ev.Seq)
	if at < 0 {
		return nil
	}
	line.queue = slices.Delete(line.queue, at, at+1)
	if len(line.queue) == 0 {
		delete(c.pairs, p)
		return nil
	}
	if at == 0 {
		return c.sendFirst(line, now)
	}
	return nil
}

// Due says what is to be done at a time: expiries, and sends to deliver again.
func (c *Core) Due(now time.Time) []Effect {
	var out []Effect
	for len(c.due) > 0 && !c.due[0].at.After(now) {
		d := heap.Pop(&c.due).(dueItem)
		it := c.open[d.seq]
		if it == nil || it.stage == closing || !it.next.Equal(d.at) {
			continue
		}
		if !now.Before(c.expiry(it)) {
			out = append(out, c.end(d.seq, schemas.MessageExpired, c.expired(it))...)
			continue
		}
		if it.stage == delivered && !it.ev.Action.Request() {
			out = append(out, c.deliver(it))
			c.retryAt(it, now, retryMost)
		}
	}
	return out
}

func (c *Core) expiry(it *item) time.Time {
	if it.stage == held {
		return it.next
	}
	return it.ev.Expires
}

func (c *Core) expired(it *item) *schemas.Refusal {
	switch {
	case it.stage == held:
		return schemas.Refuse(schemas.CodeNoAnswer, "nobody reviewed it in time")
	case it.ev.Action.Request():
		return schemas.Refuse(schemas.CodeNoAnswer, "%s gave no answer in time", it.ev.To)
	}
	return schemas.Refuse(schemas.CodeNoAnswer, "%s did not take it in time", it.ev.To)
}

// Absent says that a delivery found nobody. A request ends at once; a send is
// kept and tried again.
func (c *Core) Absent(seq uint64, request string, now time.Time) []Effect {
	it := c.open[seq]
	if it == nil || it.stage != delivered || it.ev.Request != request {
		return nil
	}
	if it.ev.Action.Request() {
		return c.end(seq, schemas.MessageExpired, schemas.Refuse(schemas.CodeNoAnswer, "%s is not connected, so nobody serves %s now", it.ev.To, it.ev.Action))
	}
	c.retryAt(it, now, absentMost)
	return nil
}

// Unfinished lists the ends that were decided and are not in the log: after a
// restart they are sent there once more.
func (c *Core) Unfinished() []Effect {
	var out []Effect
	for seq, it := range c.open {
		if it.stage == closing {
			it.stage = delivered
			out = append(out, c.end(seq, it.endKind, it.refusal)...)
		}
	}
	slices.SortFunc(out, func(a, b Effect) int { return cmp.Compare(a.seq(), b.seq()) })
	return out
}

func (c *Core) schedule(seq uint64) {
	heap.Push(&c.due, dueItem{c.open[seq].next, seq})
}

type dueItem struct {
	at  time.Time
	seq uint64
}

type dueHeap []dueItem

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(dueItem)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func ack(seq uint64, reply string, a schemas.Ack) []Effect {
	if reply == "" {
		return nil
	}
	return []Effect{Answer{Seq: seq, Reply: reply, Body: schemas.Marshal(a), Final: true}}
}

func refuse(seq uint64, reply string, r *schemas.Refusal) []Effect {
	if reply == "" {
		return nil
	}
	return []Effect{Answer{Seq: seq, Reply: reply, Header: r.Header(), Body: r.Body(), Final: true}}
}
