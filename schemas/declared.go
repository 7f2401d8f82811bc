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

func newAgentState(p Principal) *Agent {
	a := &Agent{Principal: p, Lock: Active, Grants: map[string]*Live{}, Spent: map[string]int64{},
		Held: map[uint64]*Event{}, invited: map[string]time.Time{}, approvals: map[approvalKey]approval{},
		accounts: map[string]*account{}, days: map[int64]int64{}}
	if p.Lock != "" {
		a.Lock, a.Generation = p.Lock, p.Generation
	}
	return a
}
