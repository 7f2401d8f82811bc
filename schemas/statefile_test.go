package schemas

import (
	"reflect"
	"testing"
	"time"
)

// TestEveryFieldOfTheStateIsKept: a field that is folded and not kept would be
// forgotten by a restart, a lock or a lockdown among them. Who adds one adds
// it to statefile.go, to this list, and raises foldVersion in broker/release.
func TestEveryFieldOfTheStateIsKept(t *testing.T) {
	for _, c := range []struct {
		of   reflect.Type
		want []string
	}{
		{reflect.TypeFor[State](), []string{"Seq", "TrustDomain", "Policy", "Guardrails", "Signals", "Lockdown", "LockdownSeq", "Agents", "routes", "reserved", "lapses"}},
		{reflect.TypeFor[Agent](), []string{"Principal", "Lock", "LockSeq", "LockReason", "Generation", "Grants", "Spent", "LastSeq",
			"Risk", "RiskTime", "Held", "Causes", "invited", "approvals", "issues", "accounts", "days"}},
		{reflect.TypeFor[Live](), []string{"Grant", "Seq", "Ended", "line", "never"}},
		{reflect.TypeFor[line](), []string{"now", "parent", "own", "purse"}},
		{reflect.TypeFor[purse](), []string{"account", "total", "closed"}},
		{reflect.TypeFor[account](), []string{"used", "claimed"}},
		{reflect.TypeFor[reservation](), []string{"line", "agent", "request", "to", "left", "day", "time"}},
		{reflect.TypeFor[lapse](), []string{"seq", "when"}},
		{reflect.TypeFor[approval](), []string{"seq", "expires"}},
		{reflect.TypeFor[approvalKey](), []string{"operation", "action", "digest"}},
	} {
		var got []string
		for i := range c.of.NumField() {
			got = append(got, c.of.Field(i).Name)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s has the fields %v; kept are %v", c.of, got, c.want)
		}
	}
}

func TestAKeptStateIsTheState(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 7, time.UTC)
	s := NewState()
	s.Seq, s.TrustDomain, s.Policy, s.Guardrails, s.Lockdown, s.LockdownSeq = 9, "acme.example", "d1", "rails", "fire", 8
	s.routes["call:buy"] = "shop"
	s.Agents["a"] = &Agent{Principal: Principal{ID: "a", Kind: KindAgent, Owner: "o"}, Lock: Paused, LockSeq: 3, LockReason: "odd", Generation: 2,
		Grants: map[string]*Live{"op": {Grant: Grant{JTI: "j", Agent: "a", Operation: "op", Scope: []string{"call:buy"}, Expires: at}, Seq: 4, Ended: "revoked"}},
		Spent:  map[string]int64{"op": 5}, LastSeq: 6, Risk: 70, RiskTime: at,
		Held:    map[uint64]*Event{7: {Kind: MessageHeld, Agent: "a", Seq: 7, Time: at, Digest: Sum([]byte("x")), Verdict: []byte("{}"), Latency: 5}},
		Causes:  map[uint64]*Event{5: {Kind: MessageDenied, Agent: "a", Seq: 5, Time: at, To: "shop", Lock: Suspended, Actor: "rita"}},
		invited: map[string]time.Time{"i": at}, approvals: map[approvalKey]approval{{"op", "call:buy", Sum([]byte("x"))}: {7, at}}}
	// A capability, one that was derived from it, and one that release still
	// holds although another has taken its place.
	a, spent := s.Agents["a"], &account{used: 7, claimed: 20}
	a.days, a.accounts = map[int64]int64{3: 7}, map[string]*account{"op": spent}
	parent := &line{now: a.Grants["op"], purse: purse{account: spent, total: 20}}
	a.Grants["op"].line = parent
	a.issues = &line{own: true, now: &Live{Grant: Grant{Agent: "a"}}}
	child := &Live{Grant: Grant{JTI: "k", Agent: "b", Operation: "sub"}, Seq: 5, never: true}
	child.line = &line{now: child, parent: parent, purse: purse{account: &account{used: 1, claimed: 2}, total: 3, closed: true}}
	s.Agents["b"] = &Agent{Principal: Principal{ID: "b", Kind: KindAgent}, Lock: Active, Grants: map[string]*Live{"sub": child}, Spent: map[string]int64{},
		Held: map[uint64]*Event{}, Causes: map[uint64]*Event{}, invited: map[string]time.Time{}, approvals: map[approvalKey]approval{}, accounts: map[string]*account{"sub": child.line.account}, days: map[int64]int64{}}
	old := &Live{Grant: Grant{JTI: "before", Agent: "a", Operation: "op"}, line: parent}
	s.reserved[12] = &reservation{line: child.line, agent: s.Agents["b"], request: "r", to: "llm", left: 4, day: 3, time: at}
	s.lapses = []lapse{{12, at}}

	b := s.Keep([]*Live{old, nil, child})
	again, held, err := OpenState(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, again) {
		t.Errorf("kept as %s\nread as %+v", b, again)
	}
	got := again.Agents["b"].Grants["sub"]
	if len(held) != 3 || held[1] != nil || held[2] != got || held[0].JTI != "before" || held[0].line != got.line.parent || got.line.account != again.Agents["b"].accounts["sub"] ||
		again.reserved[12].agent != again.Agents["b"] || again.reserved[12].line != got.line || again.Agents["a"].Grants["op"].line != got.line.parent {
		t.Errorf("what was one is two: %+v", held)
	}
	if string(again.Keep(held)) != string(b) {
		t.Error("it is kept as other bytes than it was read from")
	}
}

func TestAKeptStateThatDoesNotHangTogetherIsRefused(t *testing.T) {
	for _, bad := range []string{
		`{"lives":[{"line":2}],"lines":[{"own":true,"now":1}]}`,
		`{"lives":[{"line":1}],"lines":[{"now":1}]}`,
		`{"lines":[{"own":true}]}`,
		`{"lives":[{"line":1}],"lines":[{"own":true,"now":1,"parent":1}]}`,
		`{"reserved":[{"seq":1}]}`,
		`{"held":[1]}`, `{"held":[-1]}`, `{"unknown":1}`, `[]`,
	} {
		if _, _, err := OpenState([]byte(bad)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
