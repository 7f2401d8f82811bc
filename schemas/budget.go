package schemas

import (
	"math"
	"strconv"
	"time"
)

// Budgets. What an action may use of a metered service is reserved when it is
// accepted, in log order, and settled by what the answers say. A capability
// that was derived reserves its whole budget from its parent's for as long as
// it counts; what it did not use goes back when it ends. So neither callers at
// the same time nor children can use more than there is.

// A purse is what became of one line's tokens.
type purse struct {
	account *account
	total   int64 // used and reserved by its own actions, and claimed by its children
	closed  bool  // it has ended: it claims what was used, and no more
}

// An account is an operation's budget. It outlives capabilities: issuing anew
// refills nothing.
type account struct {
	used    int64 // used and reserved by the operation and by all that was derived from it
	claimed int64 // the same, and what those that still count may yet use
}

// A reservation is made when an action to a metered service is accepted.
type reservation struct {
	line    *line
	agent   *Agent
	request string
	to      string
	left    int64 // not settled yet
	day     int64 // that it is counted in
	time    time.Time
}

// reserveFloor is how long a reservation stands at least where no answer comes:
// a deadline of a millisecond must not make free what a service does for
// minutes. An answer that comes later still is charged all the same.
const reserveFloor = 2 * time.Minute

// A lapse frees a reservation to which no answer came.
type lapse struct {
	seq  uint64
	when time.Time
}

// account is an operation's, made where it is missing.
func (a *Agent) account(operation string) *account {
	acc := a.accounts[operation]
	if acc == nil {
		acc = &account{}
		a.accounts[operation] = acc
	}
	return acc
}

// claim is what a line takes of its parent's budget.
func (l *line) claim() int64 {
	if l.closed {
		return l.total
	}
	return max(l.total, l.now.MaxTokens)
}

// pass tells the parent how the claim has changed.
func (l *line) pass(before int64) {
	if p := l.parent; p != nil && !p.own {
		if d := l.claim() - before; d != 0 {
			p.commit(d)
		}
	}
}

func (l *line) commit(d int64) {
	before := l.claim()
	l.total = plus(l.total, d)
	l.account.claimed = plus(l.account.claimed, d)
	l.pass(before)
}

func (l *line) open() { l.pass(0) }

func (l *line) close() {
	before := l.claim()
	l.closed = true
	l.pass(before)
}

// use books tokens that an action of the line itself reserves or uses, or,
// below 0, no longer does.
func (l *line) use(n int64) {
	for p := l; p != nil && !p.own; p = p.parent {
		p.account.used = plus(p.account.used, n)
	}
	l.commit(n)
}

// plus adds without overflow: what is used up stays used up.
func plus(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func dayOf(t time.Time) int64 { return t.Unix() / 86400 }

// BudgetOf tells of an operation's budget at a time. Who does not fold accepted
// actions and answers does not know what was used.
func (s *State) BudgetOf(agent, operation string, at time.Time) (b BudgetInfo) {
	a := s.Agents[agent]
	if a == nil {
		return b
	}
	b.Spent = a.Spent[operation]
	if acc := a.accounts[operation]; acc != nil {
		b.Used = acc.used
	}
	if g := a.Grants[operation]; g != nil && g.Over(at) == "" {
		free, _ := g.free(a, at)
		b.Free = max(free, 0)
	}
	return b
}

// free is how many tokens an action may reserve, and which bound says so.
func (l *Live) free(a *Agent, at time.Time) (n int64, bound func() *Refusal) {
	acc := l.line.account
	n = l.MaxTokens - acc.claimed
	bound = func() *Refusal {
		return Refuse(CodeBudget, "operation %s has used %d of its %d tokens, reservations and what was delegated included", l.Operation, acc.claimed, l.MaxTokens)
	}
	for p := l.line.parent; p != nil && !p.own; p = p.parent {
		if left := p.now.MaxTokens - p.account.used; left < n {
			n, bound = left, func() *Refusal {
				return Refuse(CodeBudget, "operation %s of %s, from which this one was derived, has %d of its %d tokens left", p.now.Operation, p.now.Agent, max(left, 0), p.now.MaxTokens)
			}
		}
	}
	if c := a.Ceiling; c != nil && c.MaxTokensPerDay > 0 {
		if left := c.MaxTokensPerDay - a.days[dayOf(at)]; left < n {
			n, bound = left, func() *Refusal {
				return Refuse(CodeBudget, "%s has %d of its %d tokens a day left; the day is that of UTC", a.ID, max(left, 0), c.MaxTokensPerDay)
			}
		}
	}
	return n, bound
}

// toReserve is what an action that states most tokens reserves at a metered
// service: that, or what the service declares, or all that is left.
func (l *Live) toReserve(a, service *Agent, most int64, at time.Time) (int64, *Refusal) {
	free, bound := l.free(a, at)
	need := most
	if need == 0 {
		need = service.Reserve
	}
	if need == 0 {
		need = max(free, 1)
	}
	if need > free {
		r := bound()
		r.Text += "; the action reserves " + plural(need)
		return 0, r
	}
	return need, nil
}

// reserve books what an accepted action reserves, where it is accepted in log
// order too.
func (s *State) reserve(a *Agent, e *Event) {
	if to := s.Agents[e.To]; to == nil || to.Meter != MeterTokens {
		return
	}
	ad, refusal := s.Accept(e)
	if refusal != nil || ad.Reserve == 0 {
		return
	}
	g, n := ad.Grant, ad.Reserve
	r := &reservation{line: g.line, agent: a, request: e.Request, to: e.To, left: n, day: dayOf(e.Time), time: e.Time}
	g.line.use(n)
	a.spendOn(r.day, n)
	s.reserved[e.Seq] = r
}

// spendOn books tokens on a day; days before the last are forgotten.
func (a *Agent) spendOn(day, n int64) {
	a.days[day] = plus(a.days[day], n)
	for d := range a.days {
		if d < day-1 {
			delete(a.days, d)
		}
	}
}

// settle charges what an answer says was used, and frees the rest with the
// last part. What a service uses beyond the reservation is charged too, and so
// is what it states after the deadline.
func (s *State) settle(e *Event) {
	to := s.Agents[e.To]
	if to == nil {
		return
	}
	r := s.reserved[e.Ref]
	if r != nil && (r.request != e.Request || r.to != e.Agent || r.agent != to) {
		return // not the answer to that request: release gives it to nobody
	}
	to.Spent[e.Operation] = plus(to.Spent[e.Operation], e.Tokens)
	if r == nil {
		if e.Tokens > 0 {
			to.charge(e.Operation, e.Tokens)
			to.spendOn(dayOf(e.Time), e.Tokens)
		}
		return
	}
	covered := min(e.Tokens, r.left)
	r.left -= covered
	if more := e.Tokens - covered; more > 0 {
		r.line.use(more)
		to.spendOn(r.day, more)
	}
	if e.Final {
		s.free(e.Ref)
	}
}

// charge books tokens of which no reservation is left.
func (a *Agent) charge(operation string, n int64) {
	if g := a.Grants[operation]; g != nil {
		g.line.use(n)
		return
	}
	acc := a.account(operation)
	acc.used, acc.claimed = plus(acc.used, n), plus(acc.claimed, n)
}

// free gives back what of a reservation was not used.
func (s *State) free(seq uint64) {
	if r := s.reserved[seq]; r != nil {
		r.line.use(-r.left)
		r.agent.spendOn(r.day, -r.left)
		delete(s.reserved, seq)
	}
}

// unanswered frees what an action reserved that has ended without an answer: at
// once where it was never delivered, else not before the floor.
func (s *State) unanswered(e *Event) {
	r := s.reserved[e.Ref]
	if r == nil {
		return
	}
	when := r.time.Add(reserveFloor)
	if e.Code != CodeCancelled && e.Code != CodeNoAnswer || !e.Time.Before(when) {
		s.free(e.Ref)
		return
	}
	s.lapses = append(s.lapses, lapse{e.Ref, when})
}

// lapsed frees what is due, in the order in which it ended.
func (s *State) lapsed(now time.Time) {
	for len(s.lapses) > 0 && !now.Before(s.lapses[0].when) {
		s.free(s.lapses[0].seq)
		s.lapses = s.lapses[1:]
	}
}

func plural(n int64) string {
	if n == 1 {
		return "1 token"
	}
	return strconv.FormatInt(n, 10) + " tokens"
}
