package adversary

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

const familyFleet = `trust_domain: acme.example
agents:
  - id: lead
    may_issue_for: [hand, eve]
    ceiling: {tools: [llm, shop], max_tokens: 5000, ttl: 1h}
  - id: hand
    may_issue_for: [finger, lead]
    delegated_only: true
    ceiling: {tools: [llm, shop, vault], max_tokens: 5000, ttl: 1h}
  - id: finger
    ceiling: {tools: [llm, shop, vault], max_tokens: 5000, ttl: 1h}
  - id: eve
    may_issue_for: [hand, finger]
    ceiling: {tools: [shop], ttl: 1h}
services:
  - id: llm
    serves: ["call:llm"]
    tools: {llm: {class: read, description: "a language model"}}
    meter: tokens
    reserve: 30
  - id: shop
    serves: ["call:shop", "call:vault"]
    tools: {shop: {class: read, description: "a shop"}, vault: {class: read, description: "a vault"}}
`

// handOn asks, as an agent, for a capability for another.
func (r *rig) handOn(nc *nats.Conn, req schemas.IssueRequest) (schemas.IssueReply, *schemas.Refusal) {
	r.t.Helper()
	m, refusal := ask(r.t, nc, &nats.Msg{Subject: "out.token.issue", Data: schemas.Marshal(req)})
	var reply schemas.IssueReply
	if refusal == nil {
		must(r.t, json.Unmarshal(m.Data, &reply))
	}
	return reply, refusal
}

// Sixty-four callers at once, some with what was handed on to them, state more
// and less than they may, against a model that uses all that it is allowed. At
// no moment does it use, or work on, more than there is.
func TestSixtyFourCallersAtOnceOverspendNothing(t *testing.T) {
	r := start(t, familyFleet)
	const total, part = 3000, 1200
	var mu sync.Mutex
	spent, working := map[string]int64{}, map[string]int64{}
	over := ""
	r.serve(r.client(r.enroll("llm")), "in.call.llm", func(m *nats.Msg) {
		from := m.Header.Get(schemas.HeaderFrom)
		most, err := strconv.ParseInt(m.Header.Get(schemas.HeaderReserve), 10, 64)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || most < 1 {
			over = fmt.Sprintf("told to use %q", m.Header.Get(schemas.HeaderReserve))
		}
		working[from] += most
		if all := spent["lead"] + spent["hand"] + working["lead"] + working["hand"]; all > total || spent["hand"]+working["hand"] > part {
			over = fmt.Sprintf("used %v, at work on %v", spent, working)
		}
		used := most - rand.Int64N(3)%most
		spent[from], working[from] = spent[from]+used, working[from]-most
		_ = m.RespondMsg(&nats.Msg{Data: []byte("x"), Header: nats.Header{schemas.HeaderUsage: {strconv.FormatInt(used, 10)}}})
	})
	lead := r.issue(schemas.IssueRequest{AgentID: "lead", OperationID: "plan", Tools: []string{"llm"}, MaxTokens: total})
	leads := r.client(lead.Creds)
	hand, refusal := r.handOn(leads, schemas.IssueRequest{AgentID: "hand", OperationID: "part", Tools: []string{"llm"}, MaxTokens: part})
	if refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := r.handOn(leads, schemas.IssueRequest{AgentID: "hand", OperationID: "more", Tools: []string{"llm"}, MaxTokens: total - part + 1}); refusal == nil || refusal.Code != schemas.CodeBudget {
		t.Errorf("more was handed on than is left: %v", refusal)
	}
	hands := r.client(hand.Creds)
	var callers sync.WaitGroup
	codes := map[int]int{}
	for n := range 64 {
		nc, subject := leads, "out.plan.call.llm"
		if n%2 == 1 {
			nc, subject = hands, "out.part.call.llm"
		}
		callers.Go(func() {
			for k := range 6 {
				m := nats.NewMsg(subject)
				if k%3 > 0 { // else what the service declares
					m.Header.Set(schemas.HeaderReserve, strconv.Itoa(1+(n*37+k*11)%90))
				}
				answer, err := nc.RequestMsg(m, within)
				mu.Lock()
				switch refusal := bus.ReadRefusal(answer); {
				case err != nil:
					over = err.Error()
				case refusal != nil:
					codes[refusal.Code]++
				default:
					codes[0]++
				}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	if over != "" {
		t.Fatal(over)
	}
	if codes[0] == 0 || codes[schemas.CodeBudget] == 0 || codes[0]+codes[schemas.CodeBudget]+codes[schemas.CodeRate] != 64*6 {
		t.Errorf("answered: %v", codes)
	}
	got := call[schemas.BudgetsReply](r, schemas.CtlBudgets, schemas.BudgetsRequest{Of: []schemas.OperationRef{{AgentID: "lead", OperationID: "plan"}, {AgentID: "hand", OperationID: "part"}}})
	if got.Budgets[0].Spent != spent["lead"] || got.Budgets[1].Spent != spent["hand"] || got.Budgets[0].Used != spent["lead"]+spent["hand"] {
		t.Errorf("the model used %v, release knows of %+v", spent, got)
	}
	r.sound()
}

// Somebody has taken over lead, and works through those to whom it hands on.
// The revocation of its capability is the end of all: whoever waits is told, the
// services are told, nothing more gets through, and the receipt names it all.
func TestARevokedParentTakesItsFamilyAlong(t *testing.T) {
	r := start(t, familyFleet)
	shop := r.client(r.enroll("shop"))
	taken, void := &tap{}, &tap{}
	taken.listen(shop, "", "in.call.shop") // and never answers
	void.listen(shop, "", "in.cancel.*")
	must(t, shop.Flush())
	lead := r.issue(schemas.IssueRequest{AgentID: "lead", OperationID: "plan", Tools: []string{"shop"}})
	conns := []*nats.Conn{r.client(lead.Creds)}
	jtis := []string{lead.JTI}
	for _, to := range []string{"hand", "finger"} {
		g, refusal := r.handOn(conns[len(conns)-1], schemas.IssueRequest{AgentID: to, OperationID: "plan", Tools: []string{"shop"}})
		if refusal != nil {
			t.Fatal(refusal)
		}
		conns, jtis = append(conns, r.client(g.Creds)), append(jtis, g.JTI)
	}
	refused := make(chan *schemas.Refusal, len(conns))
	var waiting sync.WaitGroup
	for _, nc := range conns {
		waiting.Go(func() {
			answer, err := nc.RequestMsg(&nats.Msg{Subject: "out.plan.call.shop", Data: []byte("x")}, within)
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			refused <- bus.ReadRefusal(answer)
		})
	}
	until(t, "all three are with the shop", func() bool { return len(taken.holding("Writ-From")) == 3 })
	if chains := taken.holding("Writ-From:[finger]"); len(chains) != 1 || !strings.Contains(chains[0], "Writ-Token") {
		t.Errorf("the shop sees %v", chains)
	}
	receipt := call[schemas.RevokeReply](r, schemas.CtlRevoke, schemas.RevokeRequest{JTI: lead.JTI, Reason: "taken over", Actor: "rig"})
	waiting.Wait()
	close(refused)
	for refusal := range refused {
		if refusal == nil || refusal.Code != schemas.CodeCancelled {
			t.Errorf("who waited was told %v", refusal)
		}
	}
	until(t, "the shop was told of all three", func() bool { return len(void.holding("in.cancel.")) == 3 })
	var want []uint64
	for _, e := range r.log() {
		if e.Kind == schemas.MessageAccepted {
			want = append(want, e.Seq)
		}
	}
	if !slices.Equal(receipt.Cancelled, want) || !slices.Equal(receipt.Revoked, jtis) || receipt.Partial {
		t.Errorf("the receipt says %+v; %v were open, of %v", receipt, want, jtis)
	}
	for n, nc := range conns[:2] { // the third is suspended soon: it tries doors
		if _, refusal := ask(t, nc, &nats.Msg{Subject: "out.plan.call.shop"}); refusal == nil || refusal.Code != schemas.CodeUnauthorized {
			t.Errorf("%d goes on: %v", n, refusal)
		}
		if _, refusal := ask(t, nc, &nats.Msg{Subject: "out.token.refresh", Data: []byte(`{"operation_id":"plan"}`)}); refusal == nil || refusal.Code != schemas.CodeUnauthorized {
			t.Errorf("%d refreshes: %v", n, refusal)
		}
	}
	if got := len(taken.holding("Writ-From")); got != 3 {
		t.Errorf("%d calls reached the shop", got)
	}
	r.sound()
}

// An agent that holds little asks, for itself or through others, for what it
// was not given.
func TestNobodyGetsMoreByWayOfOthers(t *testing.T) {
	r := start(t, familyFleet)
	lead := r.issue(schemas.IssueRequest{AgentID: "lead", OperationID: "plan", Tools: []string{"shop"}})
	leads := r.client(lead.Creds)
	hand, refusal := r.handOn(leads, schemas.IssueRequest{AgentID: "hand", OperationID: "part", Tools: []string{"shop"}, TTLSeconds: 1800})
	if refusal != nil {
		t.Fatal(refusal)
	}
	hands, eve := r.client(hand.Creds), r.client(r.enroll("eve"))
	for name, c := range map[string]struct {
		nc   *nats.Conn
		req  schemas.IssueRequest
		code int
	}{
		"for itself, up to its ceiling":             {hands, schemas.IssueRequest{OperationID: "own", Tools: []string{"vault"}}, schemas.CodeForbidden},
		"for itself, what it was handed":            {hands, schemas.IssueRequest{OperationID: "part", Tools: []string{"shop"}}, schemas.CodeForbidden},
		"for another, what its ceiling admits":      {hands, schemas.IssueRequest{AgentID: "finger", OperationID: "x", Tools: []string{"vault"}}, schemas.CodeForbidden},
		"back to where it came from":                {hands, schemas.IssueRequest{AgentID: "lead", OperationID: "x", Tools: []string{"shop"}}, schemas.CodeForbidden},
		"for somebody it may not":                   {hands, schemas.IssueRequest{AgentID: "eve", OperationID: "x", Tools: []string{"shop"}}, schemas.CodeForbidden},
		"in another's name":                         {eve, schemas.IssueRequest{AgentID: "hand", OperationID: "x", Tools: []string{"shop"}, Actor: "lead"}, schemas.CodeUnauthorized},
		"of another's operation":                    {eve, schemas.IssueRequest{AgentID: "hand", OperationID: "x", ParentOperation: "plan", Tools: []string{"shop"}}, schemas.CodeUnauthorized},
		"without holding anything":                  {eve, schemas.IssueRequest{AgentID: "finger", OperationID: "x"}, schemas.CodeUnauthorized},
		"in the place of what another was handed":   {eve, schemas.IssueRequest{AgentID: "hand", OperationID: "part"}, schemas.CodeUnauthorized},
		"for longer than what it was handed counts": {hands, schemas.IssueRequest{AgentID: "finger", OperationID: "x", Tools: []string{"shop"}, TTLSeconds: 3600}, schemas.CodeForbidden},
	} {
		if g, refusal := r.handOn(c.nc, c.req); refusal == nil || refusal.Code != c.code {
			t.Errorf("%s: %v, %+v", name, refusal, g)
		}
	}
	for _, e := range r.log() {
		if e.Kind == schemas.TokenIssued && e.JTI != lead.JTI && e.JTI != hand.JTI {
			t.Errorf("issued: %+v", e)
		}
	}
}
