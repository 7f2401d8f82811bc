package schemas

import (
	"maps"
	"slices"
	"time"
)

// Declared is what the declarations in a log have made: all of a State for
// those who fold nothing but policy.applied, agent.declared and agent.removed,
// the guard rails aside, which the issuer alone needs.
type Declared struct {
	Seq         uint64
	TrustDomain string
	Policy      string
	Principals  []Principal // by id
	Signals     []SignalSource
	Routes      map[string]string // prefix verb:resource → service
}

// Declared is what has been declared so far.
func (s *State) Declared() Declared {
	d := Declared{Seq: s.Seq, TrustDomain: s.TrustDomain, Policy: s.Policy, Signals: s.Signals, Routes: maps.Clone(s.routes)}
	for _, id := range slices.Sorted(maps.Keys(s.Agents)) {
		d.Principals = append(d.Principals, s.Agents[id].Principal)
	}
	return d
}

// StateOf is the state that a fold of declarations alone has reached.
func StateOf(d Declared) *State {
	s := NewState()
	s.Seq, s.TrustDomain, s.Policy, s.Signals = d.Seq, d.TrustDomain, d.Policy, d.Signals
	maps.Copy(s.routes, d.Routes)
	for _, p := range d.Principals {
		s.Agents[p.ID] = newAgentState(p)
	}
	return s
}

// Restated is what is declared with the lock, and of the keys what the agent
// has: whoever starts to read the log here must know them.
func (a *Agent) Restated(p Principal) Principal {
	p.Lock, p.LockSeq, p.LockReason = a.Lock, a.LockSeq, a.LockReason
	p.Generation, p.Incarnation, p.CredentialExpires = a.Generation, a.Incarnation, a.CredentialExpires
	return p
}

// Locks lists the locks that are on, by agent, of agents behind one and at most
// so many.
func (s *State) Locks(after string, most int) (locks []LockInfo, more bool) {
	locks = []LockInfo{}
	for _, id := range slices.Sorted(maps.Keys(s.Agents)) {
		a := s.Agents[id]
		if id <= after || a.Lock == Active {
			continue
		}
		if len(locks) == most {
			return locks, true
		}
		locks = append(locks, LockInfo{id, a.Lock, a.LockSeq, a.LockReason})
	}
	return locks, false
}

func newAgentState(p Principal) *Agent {
	a := &Agent{Principal: p, Lock: Active, Grants: map[string]*Live{}, Spent: map[string]int64{},
		Held: map[uint64]*Event{}, Causes: map[uint64]*Event{}, invited: map[string]time.Time{}, approvals: map[approvalKey]approval{},
		accounts: map[string]*account{}, days: map[int64]int64{}}
	if p.Lock != "" {
		a.Lock, a.LockSeq, a.LockReason, a.Generation = p.Lock, p.LockSeq, p.LockReason, p.Generation
	}
	return a
}
