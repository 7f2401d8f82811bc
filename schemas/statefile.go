package schemas

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// stateFile is a State as it is kept from one start to the next. Only the
// process that wrote it reads it back: whoever keeps it must hold it against
// change.
type stateFile struct {
	Seq         uint64               `json:"seq"`
	TrustDomain string               `json:"trust_domain"`
	Policy      string               `json:"policy"`
	Lockdown    string               `json:"lockdown"`
	LockdownSeq uint64               `json:"lockdown_seq"`
	Agents      map[string]agentFile `json:"agents"`
	Routes      map[string]string    `json:"routes"`
}

type agentFile struct {
	Principal  Principal            `json:"principal"`
	Lock       Lock                 `json:"lock"`
	LockSeq    uint64               `json:"lock_seq"`
	LockReason string               `json:"lock_reason"`
	Generation int                  `json:"generation"`
	Grants     map[string]*Live     `json:"grants"`
	Spent      map[string]int64     `json:"spent"`
	LastSeq    uint64               `json:"last_seq"`
	Risk       int                  `json:"risk"`
	RiskTime   time.Time            `json:"risk_time"`
	Held       map[uint64]*Event    `json:"held"`
	Invited    map[string]time.Time `json:"invited"`
	Approvals  []approvalFile       `json:"approvals"`
}

type approvalFile struct {
	Operation string    `json:"operation"`
	Action    string    `json:"action"`
	Digest    Digest    `json:"digest"`
	Seq       uint64    `json:"seq"`
	Expires   time.Time `json:"expires"`
}

// MarshalJSON gives the whole state, the same bytes for the same state.
func (s *State) MarshalJSON() ([]byte, error) {
	f := stateFile{Seq: s.Seq, TrustDomain: s.TrustDomain, Policy: s.Policy,
		Lockdown: s.Lockdown, LockdownSeq: s.LockdownSeq, Agents: make(map[string]agentFile, len(s.Agents)), Routes: s.routes}
	for id, a := range s.Agents {
		af := agentFile{Principal: a.Principal, Lock: a.Lock, LockSeq: a.LockSeq, LockReason: a.LockReason, Generation: a.Generation,
			Grants: a.Grants, Spent: a.Spent, LastSeq: a.LastSeq, Risk: a.Risk, RiskTime: a.RiskTime, Held: a.Held, Invited: a.invited}
		for k, v := range a.approvals {
			af.Approvals = append(af.Approvals, approvalFile{k.operation, k.action, k.digest, v.seq, v.expires})
		}
		slices.SortFunc(af.Approvals, func(a, b approvalFile) int {
			return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Action, b.Action), bytes.Compare(a.Digest[:], b.Digest[:]))
		})
		f.Agents[id] = af
	}
	return json.Marshal(f)
}

// UnmarshalJSON undoes MarshalJSON.
func (s *State) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f stateFile
	if err := dec.Decode(&f); err != nil {
		return fmt.Errorf("a kept state: %w", err)
	}
	*s = *NewState()
	s.Seq, s.TrustDomain, s.Policy, s.Lockdown, s.LockdownSeq = f.Seq, f.TrustDomain, f.Policy, f.Lockdown, f.LockdownSeq
	for id, af := range f.Agents {
		a := &Agent{Principal: af.Principal, Lock: af.Lock, LockSeq: af.LockSeq, LockReason: af.LockReason, Generation: af.Generation,
			Grants: orEmpty(af.Grants), Spent: orEmpty(af.Spent), LastSeq: af.LastSeq, Risk: af.Risk, RiskTime: af.RiskTime,
			Held: orEmpty(af.Held), invited: orEmpty(af.Invited), approvals: make(map[approvalKey]approval, len(af.Approvals))}
		for _, p := range af.Approvals {
			a.approvals[approvalKey{p.Operation, p.Action, p.Digest}] = approval{p.Seq, p.Expires}
		}
		s.Agents[id] = a
	}
	s.routes = orEmpty(f.Routes)
	return nil
}

func orEmpty[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return m
}

// Forget drops an agent, as if nothing had ever been known of it.
func (s *State) Forget(agent string) {
	if a := s.Agents[agent]; a != nil {
		s.unroute(a)
		delete(s.Agents, agent)
	}
}
