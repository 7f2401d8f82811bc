package schemas

import (
	"slices"
	"testing"
)

// Who begins to read behind a kill, at a declaration that was repeated, and who
// has read all must agree which enrolment undoes the kill: otherwise an agent is
// alive for one part of the control plane and dead for another, for good.
func TestARestatedDeclarationCarriesTheLock(t *testing.T) {
	whole := NewState()
	apply := func(s *State, e *Event) {
		t.Helper()
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	declared := Principal{ID: "a", Kind: KindAgent, Lock: Active, Generation: 7}
	apply(whole, &Event{Seq: 1, Kind: AgentDeclared, Agent: "a", Data: Marshal(declared)})
	apply(whole, &Event{Seq: 2, Kind: AgentKilled, Agent: "a", Reason: "stolen"})
	repeated := &Event{Seq: 3, Kind: AgentDeclared, Agent: "a", Data: Marshal(whole.Agents["a"].Restated(declared))}
	late := NewState()
	for _, s := range []*State{whole, late} {
		apply(s, repeated)
		if locks, more := s.Locks("", 1); !slices.Equal(locks, []LockInfo{{"a", Killed, 2, "stolen"}}) || more {
			t.Errorf("locks %+v, %t", locks, more)
		}
		if a := s.Agents["a"]; a.Generation != 8 {
			t.Errorf("generation %d", a.Generation)
		}
		apply(s, &Event{Seq: 4, Kind: AgentEnrolled, Agent: "a", Ref: 2})
		if a := s.Agents["a"]; a.Lock != Active {
			t.Errorf("enrolled behind the kill in 2, it is %s", a.Lock)
		}
	}
}

func TestLocksComeInPages(t *testing.T) {
	s := NewState()
	for n, id := range []string{"d", "a", "c", "b"} {
		lock := Paused
		if id == "c" {
			lock = Active
		}
		if err := s.Apply(&Event{Seq: uint64(n + 1), Kind: AgentDeclared, Agent: id, Data: Marshal(Principal{ID: id, Kind: KindAgent, Lock: lock})}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for after, more := "", true; more; {
		var page []LockInfo
		page, more = s.Locks(after, 2)
		for _, l := range page {
			got, after = append(got, l.AgentID), l.AgentID
		}
	}
	if !slices.Equal(got, []string{"a", "b", "d"}) {
		t.Errorf("%v", got)
	}
}
