package schemas

import (
	"errors"
	"maps"
	"slices"
	"time"
)

// lineage is what hangs together by pointers in a state, as tables: places in
// them begin at 1, 0 is none.
type lineage struct {
	Lives    []liveFile        `json:"lives"`
	Lines    []lineFile        `json:"lines"`
	Accounts []accountFile     `json:"accounts"`
	Reserved []reservationFile `json:"reserved"`
	Lapses   []lapseFile       `json:"lapses"`
	Held     []int             `json:"held"` // lives that somebody else holds
}

type liveFile struct {
	Grant Grant  `json:"grant"`
	Seq   uint64 `json:"seq"`
	Ended string `json:"ended"`
	Never bool   `json:"never"`
	Line  int    `json:"line"`
}

type lineFile struct {
	Now     int   `json:"now"`
	Parent  int   `json:"parent"`
	Own     bool  `json:"own"`
	Account int   `json:"account"`
	Total   int64 `json:"total"`
	Closed  bool  `json:"closed"`
}

type accountFile struct {
	Used    int64 `json:"used"`
	Claimed int64 `json:"claimed"`
}

type reservationFile struct {
	Seq     uint64    `json:"seq"`
	Line    int       `json:"line"`
	Agent   string    `json:"agent"` // "" where it was removed since
	Request string    `json:"request"`
	To      string    `json:"to"`
	Left    int64     `json:"left"`
	Day     int64     `json:"day"`
	Time    time.Time `json:"time"`
}

type lapseFile struct {
	Seq  uint64    `json:"seq"`
	When time.Time `json:"when"`
}

// A lineageKeeper gives places in the order in which it is asked.
type lineageKeeper struct {
	f        *lineage
	lives    map[*Live]int
	lines    map[*line]int
	accounts map[*account]int
}

func newLineageKeeper(f *lineage) *lineageKeeper {
	return &lineageKeeper{f, map[*Live]int{}, map[*line]int{}, map[*account]int{}}
}

func (k *lineageKeeper) live(l *Live) int {
	if l == nil {
		return 0
	}
	if n := k.lives[l]; n > 0 {
		return n
	}
	k.f.Lives = append(k.f.Lives, liveFile{Grant: l.Grant, Seq: l.Seq, Ended: l.Ended, Never: l.never})
	n := len(k.f.Lives)
	k.lives[l] = n
	line := k.line(l.line)
	k.f.Lives[n-1].Line = line
	return n
}

func (k *lineageKeeper) line(l *line) int {
	if l == nil {
		return 0
	}
	if n := k.lines[l]; n > 0 {
		return n
	}
	k.f.Lines = append(k.f.Lines, lineFile{Own: l.own, Total: l.total, Closed: l.closed})
	n := len(k.f.Lines)
	k.lines[l] = n
	now, parent, account := k.live(l.now), k.line(l.parent), k.account(l.account)
	k.f.Lines[n-1].Now, k.f.Lines[n-1].Parent, k.f.Lines[n-1].Account = now, parent, account
	return n
}

func (k *lineageKeeper) account(a *account) int {
	if a == nil {
		return 0
	}
	if n := k.accounts[a]; n > 0 {
		return n
	}
	k.f.Accounts = append(k.f.Accounts, accountFile{a.used, a.claimed})
	k.accounts[a] = len(k.f.Accounts)
	return len(k.f.Accounts)
}

func (k *lineageKeeper) reservations(s *State) {
	for _, seq := range slices.Sorted(maps.Keys(s.reserved)) {
		r := s.reserved[seq]
		rf := reservationFile{Seq: seq, Line: k.line(r.line), Request: r.request, To: r.to, Left: r.left, Day: r.day, Time: r.time}
		if s.Agents[r.agent.ID] == r.agent {
			rf.Agent = r.agent.ID
		}
		k.f.Reserved = append(k.f.Reserved, rf)
	}
	for _, l := range s.lapses {
		k.f.Lapses = append(k.f.Lapses, lapseFile{l.seq, l.when})
	}
}

// A lineageOpener undoes a lineageKeeper; its first error stands for all.
type lineageOpener struct {
	f        *lineage
	lives    []*Live
	lines    []*line
	accounts []*account
	err      error
}

func openLineage(f *lineage) (*lineageOpener, error) {
	o := &lineageOpener{f: f, lives: make([]*Live, len(f.Lives)), lines: make([]*line, len(f.Lines)), accounts: make([]*account, len(f.Accounts))}
	for n, a := range f.Accounts {
		o.accounts[n] = &account{used: a.Used, claimed: a.Claimed}
	}
	for n, l := range f.Lives {
		o.lives[n] = &Live{Grant: l.Grant, Seq: l.Seq, Ended: l.Ended, never: l.Never}
	}
	for n, l := range f.Lines {
		o.lines[n] = &line{own: l.Own, purse: purse{account: o.account(l.Account), total: l.Total, closed: l.Closed}}
	}
	for n, l := range f.Lives {
		o.lives[n].line = o.line(l.Line)
	}
	for n, l := range f.Lines {
		o.lines[n].now, o.lines[n].parent = o.live(l.Now), o.line(l.Parent)
		if o.lines[n].now == nil || o.lines[n].account == nil && !l.Own {
			o.fail()
		}
	}
	for _, l := range o.lines {
		depth := 0
		for p := l; p != nil; p = p.parent {
			if depth++; depth > MaxDepth+2 {
				o.fail() // in a circle
				break
			}
		}
	}
	return o, o.err
}

func (o *lineageOpener) fail() {
	if o.err == nil {
		o.err = errors.New("a kept state: what hangs together does not")
	}
}

func at[T any](o *lineageOpener, list []*T, n int) *T {
	if n < 0 || n > len(list) {
		o.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	return list[n-1]
}

func (o *lineageOpener) live(n int) *Live       { return at(o, o.lives, n) }
func (o *lineageOpener) line(n int) *line       { return at(o, o.lines, n) }
func (o *lineageOpener) account(n int) *account { return at(o, o.accounts, n) }

func (o *lineageOpener) reservations(s *State) {
	for _, r := range o.f.Reserved {
		a := s.Agents[r.Agent]
		if a == nil { // removed since: what is booked on it counts for nobody
			a = &Agent{days: map[int64]int64{}}
		}
		l := o.line(r.Line)
		if l == nil {
			o.fail()
			continue
		}
		s.reserved[r.Seq] = &reservation{line: l, agent: a, request: r.Request, to: r.To, left: r.Left, day: r.Day, time: r.Time}
	}
	for _, l := range o.f.Lapses {
		s.lapses = append(s.lapses, lapse{l.Seq, l.When})
	}
}
