package schemas

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// handed is what an agent was handed on from another's capability.
func handed(from, parentOp, jti string, act ...string) func(*Grant) {
	return func(g *Grant) {
		g.ParentAgent, g.ParentOperation, g.Parent, g.Act = from, parentOp, jti, append([]string{from}, act...)
	}
}

// family is alice, who holds op, from which bob's part derives, from which
// carol's detail does.
func family(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, Principal{ID: "shop", Serves: []string{"call:pandas", "read:data"}})
	for _, id := range []string{"carol", "dave"} {
		w.declare(Principal{ID: id, Kind: KindAgent})
	}
	w.grant("alice", "op")
	w.grant("bob", "part", handed("alice", "op", "j-op"))
	w.grant("carol", "detail", handed("bob", "part", "j-part", "alice"))
	return w
}

func (w *world) counts(want bool, agent, op string) {
	w.t.Helper()
	_, r := w.admit(agent, op, "call:pandas", Digest{1})
	if (r == nil) != want {
		w.t.Errorf("%s in %s: %v, want it to count: %v", agent, op, r, want)
	}
}

// Whatever ends a capability ends what hangs on it, in that event and without
// another: release, which asks here, delivers nothing behind it.
func TestWhatEndsAParentEndsAllThatDerivesFromIt(t *testing.T) {
	for name, e := range map[string]Event{
		"revoked":   {Kind: TokenRevoked, Agent: "alice", JTI: "j-op", Reason: "why"},
		"given up":  {Kind: OperationEnded, Agent: "alice", Operation: "op", JTI: "j-op", Reason: "given up"},
		"killed":    {Kind: AgentKilled, Agent: "alice", Reason: "why"},
		"suspended": {Kind: AgentSuspended, Agent: "alice", Reason: "why"},
		"by risk":   {Kind: MessageDenied, Agent: "alice", Lock: Suspended, Reason: "risk 95"},
		"removed":   {Kind: AgentRemoved, Agent: "alice"},
		"replaced": {Kind: TokenIssued, Agent: "alice", Operation: "op", JTI: "j-2", Data: Marshal(Grant{JTI: "j-2", Agent: "alice", Operation: "op",
			Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)})},
	} {
		t.Run(name, func(t *testing.T) {
			w := family(t)
			w.counts(true, "bob", "part")
			w.counts(true, "carol", "detail")
			w.apply(e)
			w.counts(false, "bob", "part")
			w.counts(false, "carol", "detail")
			if name == "suspended" { // a resumed agent asks anew; so do those who hung on it
				w.apply(Event{Kind: AgentResumed, Agent: "alice", Reason: "why"})
				w.grant("alice", "op")
				w.counts(true, "alice", "op")
				w.counts(false, "carol", "detail")
			}
		})
	}
}

func TestAParentsPauseAndSiblingsEndNothing(t *testing.T) {
	w := family(t)
	w.grant("dave", "other", handed("alice", "op", "j-op"))
	w.apply(Event{Kind: AgentPaused, Agent: "alice", Reason: "why"})
	w.apply(Event{Kind: TokenRevoked, Agent: "dave", JTI: "j-other", Reason: "why"})
	w.counts(true, "bob", "part")
	w.counts(true, "carol", "detail")
}

// What a refresh would otherwise allow: a parent that expired a second ago, and
// one that was narrowed.
func TestARefreshKeepsChildrenAndNarrowsThem(t *testing.T) {
	w := family(t)
	start := w.now
	refresh := func(g *Grant) { g.JTI, g.Refreshes, g.Expires = "j-op2", "j-op", start.Add(2*time.Hour) }
	w.now = start.Add(30 * time.Minute)
	w.grant("alice", "op", refresh)
	w.counts(true, "carol", "detail")
	w.now = start.Add(45 * time.Minute)
	w.grant("alice", "op", func(g *Grant) {
		g.JTI, g.Refreshes, g.Expires, g.Scope = "j-op3", "j-op2", start.Add(50*time.Minute), []string{"read:data.x"}
	})
	w.counts(false, "carol", "detail")
	if code := w.code("carol", "detail", "read:data.x"); code != 0 {
		t.Errorf("what the parent still holds gives %d", code)
	}
	w.now = start.Add(50*time.Minute - time.Second)
	if code := w.code("carol", "detail", "read:data.x"); code != 0 {
		t.Errorf("a second before the parent's end: %d", code)
	}
	w.now = start.Add(50 * time.Minute)
	if code := w.code("carol", "detail", "read:data.x"); code != CodeUnauthorized {
		t.Errorf("at the parent's end: %d", code)
	}
}

// A grant in the log is held against its parent by every reader, whatever the
// issuer thought: who writes token.issued without being the issuer's decision
// gets nothing from it.
func TestAGrantBeyondItsParentNeverCounts(t *testing.T) {
	for name, change := range map[string]func(*Grant){
		"scope":                  func(g *Grant) { g.Scope = append(g.Scope, "call:rm") },
		"a longer scope":         func(g *Grant) { g.Scope = []string{"read:data.x.y"} },
		"a shorter scope":        func(g *Grant) { g.Scope = []string{"read:data"} },
		"another case":           func(g *Grant) { g.Scope = []string{"read:Data.x"} },
		"a wildcard":             func(g *Grant) { g.Scope = []string{"read:*"} },
		"budget":                 func(g *Grant) { g.MaxTokens = 101 },
		"end":                    func(g *Grant) { g.Expires = g.Expires.Add(time.Second) },
		"no such operation":      func(g *Grant) { g.ParentOperation = "other" },
		"no such parent":         func(g *Grant) { g.Parent = "j-other" },
		"no such agent":          func(g *Grant) { g.ParentAgent, g.Act = "ghost", []string{"ghost"} },
		"a service":              func(g *Grant) { g.ParentAgent, g.Act = "shop", []string{"shop"} },
		"no actors":              func(g *Grant) { g.Act = nil },
		"other actors":           func(g *Grant) { g.Act = []string{"bob"} },
		"an actor more":          func(g *Grant) { g.Act = []string{"alice", "bob"} },
		"its right to issue":     func(g *Grant) { g.ParentOperation, g.Parent, g.Act = "", "", []string{"alice", "bob"} },
		"forbidden tool dropped": func(g *Grant) { g.ForbiddenTools = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := family(t)
			w.grant("alice", "op", func(g *Grant) { g.JTI, g.Refreshes, g.ForbiddenTools = "j-op", "j-op", []string{"http"} })
			w.grant("dave", "test", handed("alice", "op", "j-op"), func(g *Grant) {
				g.Scope, g.ForbiddenTools = []string{"call:pandas"}, []string{"http"}
				change(g)
			})
			g := w.s.Agents["dave"].Grants["test"]
			if g.Ended == "" {
				t.Fatalf("it counts: %+v", g.Grant)
			}
			w.counts(false, "dave", "test")
		})
	}
}

func TestADelegationHasFiveHopsAndNoCircle(t *testing.T) {
	w := newWorld(t, Principal{ID: "shop", Serves: []string{"call:pandas"}})
	w.grant("alice", "op-0")
	holder, act := "alice", []string{}
	for depth := 1; depth <= MaxDepth+1; depth++ {
		id := fmt.Sprintf("a%d", depth)
		w.declare(Principal{ID: id, Kind: KindAgent})
		w.grant(id, fmt.Sprintf("op-%d", depth), handed(holder, fmt.Sprintf("op-%d", depth-1), fmt.Sprintf("j-op-%d", depth-1), act...))
		w.counts(depth <= MaxDepth, id, fmt.Sprintf("op-%d", depth))
		holder, act = id, append([]string{holder}, act...)
	}
	w.grant("alice", "back", handed("a1", "op-1", "j-op-1", "alice"))
	w.counts(false, "alice", "back")
	w.grant("alice", "self", handed("alice", "op-0", "j-op-0"))
	w.counts(false, "alice", "self")
	if why := w.s.Agents["alice"].Grants["back"].Ended; !strings.Contains(why, "circle") {
		t.Errorf("ended: %s", why)
	}
}

// A refresh never revives: neither what was revoked, nor by way of another
// parent.
func TestARefreshRevivesNothing(t *testing.T) {
	w := family(t)
	w.apply(Event{Kind: TokenRevoked, Agent: "alice", JTI: "j-op", Reason: "why"})
	w.grant("alice", "op", func(g *Grant) { g.JTI, g.Refreshes = "j-op2", "j-op" })
	w.counts(false, "alice", "op")
	w.counts(false, "bob", "part")

	w = family(t)
	w.grant("alice", "more", func(g *Grant) { g.JTI = "j-more" })
	w.grant("bob", "part", handed("alice", "more", "j-more"), func(g *Grant) { g.JTI, g.Refreshes = "j-part2", "j-part" })
	w.counts(false, "bob", "part")
	w.counts(false, "carol", "detail")
}

// An agent without a capability may have the right to issue; what it issued
// hangs on that.
func TestWhatAnIssuerIssuedEndsWithIt(t *testing.T) {
	w := newWorld(t, Principal{ID: "shop", Serves: []string{"call:pandas"}})
	w.declare(Principal{ID: "root", Kind: KindAgent})
	w.grant("alice", "op", handed("root", "", ""))
	w.grant("bob", "part", handed("alice", "op", "j-op", "root"))
	w.counts(true, "bob", "part")
	w.apply(Event{Kind: AgentSuspended, Agent: "root", Reason: "why"})
	w.counts(false, "alice", "op")
	w.counts(false, "bob", "part")
	w.apply(Event{Kind: AgentResumed, Agent: "root", Reason: "why"})
	w.counts(false, "bob", "part")
	w.grant("alice", "op2", handed("root", "", ""))
	w.counts(true, "alice", "op2")
}

// A reader who begins behind the parent's grant, because it has aged out, knows
// the child again from the first refresh behind one of the parent's.
func TestAReaderWhoBeginsLateKnowsAChildFromItsNextRefresh(t *testing.T) {
	w := newWorld(t, Principal{ID: "shop", Serves: []string{"call:pandas"}})
	w.grant("bob", "part", handed("alice", "op", "j-op"), func(g *Grant) { g.JTI, g.Refreshes = "j-part2", "j-part" })
	w.counts(false, "bob", "part")
	w.grant("alice", "op", func(g *Grant) { g.JTI, g.Refreshes = "j-op2", "j-op" })
	w.counts(false, "bob", "part")
	w.grant("bob", "part", handed("alice", "op", "j-op2"), func(g *Grant) { g.JTI, g.Refreshes = "j-part3", "j-part2" })
	w.counts(true, "bob", "part")
}
