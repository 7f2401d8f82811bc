package monitor

import (
	"cmp"
	"slices"
	"time"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// Bounds of what outside signals take.
const (
	maxSaid    = 32   // statements about one agent; the weakest makes room
	maxHeard   = 1024 // tokens of one source within their lifetime; more are refused
	maxSayings = 8    // statements that one verdict lists
)

// A saying is the newest that a source said of one event of an agent. It fades
// with HalfLife from when it was logged.
type saying struct {
	source, event string
	reason        string
	points        int // of risk; below 0 it speaks for the agent
	at            time.Time
}

func (s *saying) now(at time.Time) fixed {
	if s.points < 0 {
		return -decay(fixed(-s.points)*one, at.Sub(s.at))
	}
	return decay(fixed(s.points)*one, at.Sub(s.at))
}

// A hearing is a token that was taken, to be told from its repetition while it
// could still count.
type hearing struct {
	source string
	until  int64 // seconds since 1970
	digest id    // of the token
}

func hearingID(source, jti string) id { return idOf([]byte(source + "\x00" + jti)) }

// signal folds what somebody outside said. Who may say what was decided when it
// was logged, which the monitor alone can; a token counts once.
func (m *Model) signal(e *schemas.Event) error {
	var s schemas.Signal
	if err := schemas.Unmarshal(e.Data, &s); err != nil {
		return err
	}
	if s.Token != "" && !m.hear(e, &s) {
		return nil
	}
	points := min(max(s.Points, schemas.LeastPoints), schemas.MostPoints)
	m.agent(e.Agent).say(saying{s.Source, s.Event, e.Reason, points, e.Time})
	if len(m.pending) < maxPending {
		m.pending[e.Seq] = violation{e.Agent, e.ID, "after a signal of " + s.Source}
	}
	return nil
}

// hear notes a token; false where it was noted before.
func (m *Model) hear(e *schemas.Event, s *schemas.Signal) bool {
	if e.Time.After(m.heardAt) {
		m.heardAt = e.Time
	}
	for k, h := range m.heard {
		if h.until < m.heardAt.Unix() {
			delete(m.heard, k)
		}
	}
	k := hearingID(s.Source, s.Token)
	if _, known := m.heard[k]; known {
		return false
	}
	m.heard[k] = hearing{s.Source, s.Issued + int64(secevent.MaxAge/time.Second), digestID(e.Digest)}
	return true
}

func digestID(d schemas.Digest) id { return idOf(d[:]) }

// clock is a time that never stands before a token that was forgotten.
func (m *Model) clock(now time.Time) time.Time {
	if m.heardAt.After(now) {
		return m.heardAt
	}
	return now
}

// heardBefore reports whether the very token was taken, and refuses another of
// its name, and what there is no room to remember.
func (m *Model) heardBefore(s *secevent.Statement, digest schemas.Digest, now time.Time) (bool, error) {
	if h, known := m.heard[hearingID(s.Source, s.Token)]; known {
		if h.digest != digestID(digest) {
			return true, &secevent.Error{Code: secevent.InvalidRequest, Text: "another token had this jti before; each has its own"}
		}
		return true, nil
	}
	open := 0
	for _, h := range m.heard {
		if h.source == s.Source && h.until >= now.Unix() {
			open++
		}
	}
	if open >= maxHeard {
		return false, schemas.Refuse(schemas.CodeRate, "%s has sent %d tokens within %s; more are not remembered, and so not taken", s.Source, open, secevent.MaxAge)
	}
	return false, nil
}

func (s *saying) compare(o *saying) int {
	return cmp.Or(cmp.Compare(s.source, o.source), cmp.Compare(s.event, o.event))
}

// say takes one statement, in the place of what its source said of the event
// before. Sayings are sorted by source and event.
func (a *agent) say(s saying) {
	i, found := slices.BinarySearchFunc(a.said, s, func(x, y saying) int { return x.compare(&y) })
	switch {
	case found && s.points == 0:
		a.said = slices.Delete(a.said, i, i+1)
	case found:
		a.said[i] = s
	case s.points != 0:
		a.said = slices.Insert(a.said, i, s)
	}
	if len(a.said) <= maxSaid {
		return
	}
	weakest := 0
	for i := range a.said {
		if abs(a.said[i].now(s.at)) < abs(a.said[weakest].now(s.at)) {
			weakest = i
		}
	}
	a.said = slices.Delete(a.said, weakest, weakest+1)
}

func abs(x fixed) fixed { return max(x, -x) }

// counting calls fn with the sayings that count at a time: of each source the
// worst and the best, so that none outweighs what it is declared with by saying
// several things.
func (a *agent) counting(at time.Time, fn func(*saying, fixed)) {
	for from := 0; from < len(a.said); {
		worst, best, to := -1, -1, from
		for ; to < len(a.said) && a.said[to].source == a.said[from].source; to++ {
			switch x := a.said[to].now(at); {
			case x > 0 && (worst < 0 || x > a.said[worst].now(at)):
				worst = to
			case x < 0 && (best < 0 || x < a.said[best].now(at)):
				best = to
			}
		}
		for _, i := range []int{worst, best} {
			if i >= 0 {
				fn(&a.said[i], a.said[i].now(at))
			}
		}
		from = to
	}
}

// saidNow is the risk that outside signals make at a time, 0 to 100, rounded to
// the nearest. It stands beside what behaviour says: the agent's risk is the
// higher, so that nobody outside lowers what the agent itself did.
func (a *agent) saidNow(at time.Time) int {
	if len(a.said) == 0 {
		return 0
	}
	sum := fixed(0)
	a.counting(at, func(_ *saying, x fixed) { sum += x })
	return int((min(max(sum, 0), 100*one) + one/2) >> 16)
}

// sayings explains the outside signals in a verdict. They are no part of the
// score.
func (m *Model) sayings(a *agent, at time.Time, v *schemas.Verdict) {
	if len(a.said) == 0 {
		return
	}
	listed := 0
	a.counting(at, func(s *saying, x fixed) {
		if listed++; listed > maxSayings {
			return
		}
		f := schemas.Factor{ID: "signal", Bits: x}
		if v.Risk >= m.explainFrom {
			f.Observed, f.Expected = m.say(s.source, " says ", s.event, ": ", s.reason), "nothing from outside"
		}
		v.Factors = append(v.Factors, f)
	})
}
