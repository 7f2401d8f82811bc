package schemas

import (
	"encoding/json"
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
		{reflect.TypeFor[State](), []string{"Seq", "TrustDomain", "Policy", "Lockdown", "LockdownSeq", "Agents", "routes"}},
		{reflect.TypeFor[Agent](), []string{"Principal", "Lock", "LockSeq", "LockReason", "Generation", "Grants", "Spent", "LastSeq",
			"Risk", "RiskTime", "Held", "invited", "approvals"}},
		{reflect.TypeFor[Live](), []string{"Grant", "Seq", "Ended"}},
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
	s.Seq, s.TrustDomain, s.Policy, s.Lockdown, s.LockdownSeq = 9, "acme.example", "d1", "fire", 8
	s.routes["call:buy"] = "shop"
	s.Agents["a"] = &Agent{Principal: Principal{ID: "a", Kind: KindAgent, Owner: "o"}, Lock: Paused, LockSeq: 3, LockReason: "odd", Generation: 2,
		Grants: map[string]*Live{"op": {Grant: Grant{JTI: "j", Agent: "a", Operation: "op", Scope: []string{"call:buy"}, Expires: at}, Seq: 4, Ended: "revoked"}},
		Spent:  map[string]int64{"op": 5}, LastSeq: 6, Risk: 70, RiskTime: at,
		Held:    map[uint64]*Event{7: {Kind: MessageHeld, Agent: "a", Seq: 7, Time: at, Digest: Sum([]byte("x")), Verdict: []byte("{}"), Latency: 5}},
		invited: map[string]time.Time{"i": at}, approvals: map[approvalKey]approval{{"op", "call:buy", Sum([]byte("x"))}: {7, at}}}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again State
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*s, again) {
		t.Errorf("kept as %s\nread as %+v", b, again)
	}
}
