package schemas

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
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
	Guardrails  string               `json:"guardrails"`
	Signals     []SignalSource       `json:"signals"`
	Lockdown    string               `json:"lockdown"`
	LockdownSeq uint64               `json:"lockdown_seq"`
	Agents      map[string]agentFile `json:"agents"`
	Routes      map[string]string    `json:"routes"`
	lineage
}

type agentFile struct {
	Principal  Principal            `json:"principal"`
	Lock       Lock                 `json:"lock"`
	LockSeq    uint64               `json:"lock_seq"`
	LockReason string               `json:"lock_reason"`
	Generation int                  `json:"generation"`
	Grants     map[string]int       `json:"grants"` // places among the lives
	Issues     int                  `json:"issues"` // place among the lines, 0 for none
	Accounts   map[string]int       `json:"accounts"`
	Days       map[int64]int64      `json:"days"`
	Spent      map[string]int64     `json:"spent"`
	LastSeq    uint64               `json:"last_seq"`
	Risk       int                  `json:"risk"`
	RiskTime   time.Time            `json:"risk_time"`
	Held       map[uint64]*Event    `json:"held"`
	Causes     map[uint64]*Event    `json:"causes"`
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

// Keep gives the whole state, and capabilities that somebody else holds of it,
// the same bytes for the same state.
func (s *State) Keep(held []*Live) []byte {
	f := stateFile{Seq: s.Seq, TrustDomain: s.TrustDomain, Policy: s.Policy, Guardrails: s.Guardrails, Signals: s.Signals,
		Lockdown: s.Lockdown, LockdownSeq: s.LockdownSeq, Agents: make(map[string]agentFile, len(s.Agents)), Routes: s.routes}
	k := newLineageKeeper(&f.lineage)
	for _, id := range slices.Sorted(maps.Keys(s.Agents)) {
		a := s.Agents[id]
		af := agentFile{Principal: a.Principal, Lock: a.Lock, LockSeq: a.LockSeq, LockReason: a.LockReason, Generation: a.Generation,
			Grants: map[string]int{}, Issues: k.line(a.issues), Accounts: map[string]int{}, Days: a.days,
			Spent: a.Spent, LastSeq: a.LastSeq, Risk: a.Risk, RiskTime: a.RiskTime, Held: a.Held, Causes: a.Causes, Invited: a.invited}
		for _, op := range slices.Sorted(maps.Keys(a.Grants)) {
			af.Grants[op] = k.live(a.Grants[op])
		}
		for _, op := range slices.Sorted(maps.Keys(a.accounts)) {
			af.Accounts[op] = k.account(a.accounts[op])
		}
		for key, v := range a.approvals {
			af.Approvals = append(af.Approvals, approvalFile{key.operation, key.action, key.digest, v.seq, v.expires})
		}
		slices.SortFunc(af.Approvals, func(a, b approvalFile) int {
			return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Action, b.Action), bytes.Compare(a.Digest[:], b.Digest[:]))
		})
		f.Agents[id] = af
	}
	k.reservations(s)
	for _, l := range held {
		f.Held = append(f.Held, k.live(l))
	}
	return Marshal(f)
}

// OpenState undoes Keep.
func OpenState(b []byte) (s *State, held []*Live, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f stateFile
	if err := dec.Decode(&f); err != nil {
		return nil, nil, fmt.Errorf("a kept state: %w", err)
	}
	o, err := openLineage(&f.lineage)
	if err != nil {
		return nil, nil, err
	}
	s = NewState()
	s.Seq, s.TrustDomain, s.Policy, s.Guardrails, s.Signals, s.Lockdown, s.LockdownSeq = f.Seq, f.TrustDomain, f.Policy, f.Guardrails, f.Signals, f.Lockdown, f.LockdownSeq
	for id, af := range f.Agents {
		a := &Agent{Principal: af.Principal, Lock: af.Lock, LockSeq: af.LockSeq, LockReason: af.LockReason, Generation: af.Generation,
			Grants: map[string]*Live{}, issues: o.line(af.Issues), accounts: map[string]*account{}, days: orEmpty(af.Days),
			Spent: orEmpty(af.Spent), LastSeq: af.LastSeq, Risk: af.Risk, RiskTime: af.RiskTime,
			Held: orEmpty(af.Held), Causes: orEmpty(af.Causes), invited: orEmpty(af.Invited), approvals: make(map[approvalKey]approval, len(af.Approvals))}
		for op, n := range af.Grants {
			a.Grants[op] = o.live(n)
		}
		for op, n := range af.Accounts {
			a.accounts[op] = o.account(n)
		}
		for _, p := range af.Approvals {
			a.approvals[approvalKey{p.Operation, p.Action, p.Digest}] = approval{p.Seq, p.Expires}
		}
		s.Agents[id] = a
	}
	s.routes = orEmpty(f.Routes)
	o.reservations(s)
	for _, n := range f.Held {
		held = append(held, o.live(n))
	}
	return s, held, o.err
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
