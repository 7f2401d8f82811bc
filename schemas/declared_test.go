package schemas_test

import (
	"reflect"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// A fold of declarations goes on from what was written down as if it had never
// stopped, also where two services once served the same and one was removed.
func TestAStateOfDeclarationsIsWhatTheFoldMade(t *testing.T) {
	straight, seq := schemas.NewState(), uint64(0)
	apply := func(s *schemas.State, kind schemas.Kind, agent string, body any) {
		t.Helper()
		e := &schemas.Event{Seq: seq, Kind: kind, Agent: agent}
		if body != nil {
			e.Data = schemas.Marshal(body)
		}
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	broken := schemas.NewState()
	for _, step := range []struct {
		kind  schemas.Kind
		agent string
		body  any
	}{
		{schemas.PolicyApplied, schemas.Fleet, schemas.Policy{TrustDomain: "acme.example", Digest: "d"}},
		{schemas.AgentDeclared, "one", schemas.Principal{ID: "one", Kind: schemas.KindService, Serves: []string{"call:mail", "read:data"}}},
		{schemas.AgentDeclared, "two", schemas.Principal{ID: "two", Kind: schemas.KindService, Serves: []string{"call:mail"}, Tools: map[string]schemas.Tool{"mail": {Class: "write"}}}},
		{schemas.AgentDeclared, "a", schemas.Principal{ID: "a", Kind: schemas.KindAgent, Lock: schemas.Paused, Generation: 3, Thresholds: &schemas.Thresholds{Pause: 50, Suspend: 60}}},
		{schemas.AgentRemoved, "two", nil},
		{schemas.AgentDeclared, "one", schemas.Principal{ID: "one", Kind: schemas.KindService, Serves: []string{"read:data"}}},
	} {
		seq++
		apply(straight, step.kind, step.agent, step.body)
		apply(broken, step.kind, step.agent, step.body)
		d := broken.Declared()
		var read schemas.Declared
		if err := schemas.Unmarshal(schemas.Marshal(d), &read); err != nil {
			t.Fatal(err)
		}
		broken = schemas.StateOf(read)
		if !reflect.DeepEqual(broken.Declared(), straight.Declared()) {
			t.Fatalf("after %s of %s:\n%+v\n%+v", step.kind, step.agent, straight.Declared(), broken.Declared())
		}
		for _, scope := range []string{"call:mail", "read:data.x", "send:a"} {
			action, err := schemas.ParseAction(scope)
			if err != nil {
				t.Fatal(err)
			}
			if x, y := straight.Route(action), broken.Route(action); x != y {
				t.Errorf("after %s of %s, %s goes to %q and to %q", step.kind, step.agent, scope, x, y)
			}
		}
		if straight.ThresholdsOf("a") != broken.ThresholdsOf("a") {
			t.Error("thresholds differ")
		}
	}
}
