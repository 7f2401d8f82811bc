package plane

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// On a whole control plane an action at risk 69 passes and one at 70 is held, one at
// 89 is held and nobody is suspended, and at 90 the agent is. An outside source says
// so much of each agent; should the machine stall until that has faded by a point, it
// says it of another.
func TestRiskTriggersExactlyAtItsThresholds(t *testing.T) {
	const tries = 8
	var agents []string
	for i := range 4 {
		for try := range tries {
			agents = append(agents, fmt.Sprintf("a%d-%d", i, try))
		}
	}
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	must(t, os.WriteFile(file, []byte("trust_domain: acme.example\nagents: [{id: "+strings.Join(agents, ", ceiling: {scope: [memory:get]}}, {id: ")+", ceiling: {scope: [memory:get]}}]\n"+
		"signals: [{id: edr, agents: ["+strings.Join(agents, ", ")+"], weight: {seen: 100}}]\n"), 0o600))
	p, err := Start(t.Context(), Options{Data: t.TempDir(), Fleet: file, Actor: "test"})
	must(t, err)
	t.Cleanup(func() { must(t, p.Stop(t.Context())) })
	operator, err := p.Operator()
	must(t, err)
	t.Cleanup(operator.Close)

	for i, c := range []struct {
		risk  int
		held  bool
		state schemas.Lock
	}{{69, false, schemas.Active}, {70, true, schemas.Paused}, {89, true, schemas.Paused}, {90, false, schemas.Suspended}} {
		reached := false
		for try := 0; try < tries && !reached; try++ {
			reached = atRisk(t, p, operator, fmt.Sprintf("a%d-%d", i, try), c.risk, c.held, c.state)
		}
		if !reached {
			t.Errorf("no agent was at risk %d: each of %d signals had faded before it was judged", c.risk, tries)
		}
	}
}

// atRisk brings an agent to a risk, has it act, and holds what becomes of both against
// what shall; false where the risk had faded before.
func atRisk(t *testing.T, p *Plane, operator *nats.Conn, agent string, want int, held bool, state schemas.Lock) bool {
	t.Helper()
	grant, err := bus.Call[schemas.IssueReply](t.Context(), operator, schemas.CtlIssue,
		schemas.IssueRequest{AgentID: agent, OperationID: "op", Scope: []string{"memory:get"}, Actor: "test"})
	must(t, err)
	nc, err := nats.Connect(p.URL(), nats.UserCredentialBytes([]byte(grant.Creds)), nats.NoReconnect())
	must(t, err)
	defer nc.Close()
	_, err = bus.Call[schemas.SignalReply](t.Context(), operator, schemas.CtlSignal,
		schemas.SignalRequest{AgentID: agent, Source: "edr", Event: "seen", Points: &want, Reason: "test", Actor: "test"})
	must(t, err)
	history := func() []schemas.RiskPoint {
		r, err := bus.Call[schemas.RiskReply](t.Context(), operator, schemas.CtlRisk, schemas.RiskRequest{AgentID: agent})
		must(t, err)
		return r.History
	}
	locked := func() schemas.Lock {
		s, err := bus.Call[schemas.StatusReply](t.Context(), operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: agent})
		must(t, err)
		return s.Agents[0].State
	}
	until(t, func() bool { return len(history()) > 0 })
	if history()[0].Risk != want {
		return false
	}
	until(t, func() bool { return locked() == state })
	answer, err := nc.Request("out.op.memory.get.note", nil, 30*time.Second)
	if state == schemas.Suspended {
		if err == nil {
			t.Errorf("risk %d: a suspended agent was answered", want)
		}
		return true
	}
	must(t, err)
	if h := history(); len(h) > 1 {
		return false // the action was judged at less
	}
	if code := answer.Header.Get(schemas.HeaderErrorCode); (code == fmt.Sprint(schemas.CodeHeld)) != held || !held && code != "" && code != fmt.Sprint(schemas.CodeNotFound) {
		t.Errorf("risk %d: the action was answered with %q", want, code)
	}
	if got := locked(); got != state {
		t.Errorf("risk %d: the agent is %s, want %s", want, got, state)
	}
	return true
}

func until(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within a minute")
		}
	}
}
