package monitor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// A stand is a monitor on a real server, with the users that meet it.
type stand struct {
	t      *testing.T
	server *embed.Server
	data   string
	intake *nats.Conn
	append map[keys.Role]*bus.Appender
	n      int
	keep   string // file of the monitor's snapshot
	logged strings.Builder

	weights *monitor.Weights
}

func newStand(t *testing.T) *stand {
	t.Helper()
	s := &stand{t: t, data: t.TempDir(), append: map[keys.Role]*bus.Appender{}}
	if err := keys.Init(s.data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.server, err = embed.Start(embed.Options{Data: s.data, DontListen: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.server.Stop)
	if err := s.server.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.intake = s.connect(keys.RoleIntake)
	for role, nc := range map[keys.Role]*nats.Conn{keys.RoleIntake: s.intake, keys.RoleIssuer: s.connect(keys.RoleIssuer)} {
		if s.append[role], err = bus.NewAppender(nc); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *stand) connect(role keys.Role) *nats.Conn {
	s.t.Helper()
	creds, err := keys.Creds(s.data, role)
	if err != nil {
		s.t.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(role), Server: s.server, Creds: creds})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

func (s *stand) options() monitor.ServiceOptions {
	return monitor.ServiceOptions{Conn: s.connect(keys.RoleMonitor), Consumer: "monitor",
		Source: "monitor/1", Logger: slog.New(slog.NewTextHandler(&s.logged, nil)), Snapshot: s.keep, Weights: s.weights}
}

// serve runs a monitor until the test or stop ends it.
func (s *stand) serve() (stop func()) {
	s.t.Helper()
	svc, err := monitor.NewService(s.options())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- svc.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		s.t.Fatalf("the monitor ended before it was ready: %v", err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the monitor ended with %v", err)
		}
	}
	s.t.Cleanup(stop)
	return stop
}

func (s *stand) put(role keys.Role, e *schemas.Event) uint64 {
	s.t.Helper()
	s.n++
	e.ID, e.Source, e.Time = fmt.Sprintf("e-%d", s.n), string(role)+"/1", time.Now().UTC()
	seq, err := s.append[role].Append(s.t.Context(), e)
	if err != nil {
		s.t.Fatal(err)
	}
	return seq
}

func (s *stand) grant(op string) uint64 {
	s.t.Helper()
	g := schemas.Grant{JTI: "jti-" + op, Agent: "analyst", Operation: op, Scope: []string{"call:mail"}, ForbiddenTools: []string{"shell"}, Task: "mail"}
	return s.put(keys.RoleIssuer, &schemas.Event{Kind: schemas.TokenIssued, Agent: "analyst", Operation: op, JTI: g.JTI, Trace: trace, Data: schemas.Marshal(g)})
}

var trace = schemas.Trace{ID: strings.Repeat("1", 32), Span: strings.Repeat("2", 16)}

func draft(op, tool string) *schemas.Event {
	body := []byte(`{"to":"team@acme.example"}`)
	return &schemas.Event{Kind: schemas.MessageAccepted, Agent: "analyst", ID: "draft-" + op + tool, Source: "intake/1", Time: time.Now().UTC(),
		Trace: trace, Operation: op, Action: schemas.Action{Verb: "call", Resource: tool}, To: "tools", JTI: "jti-" + op,
		Request: strings.Repeat("3", 32), Expires: time.Now().UTC().Add(time.Minute), Digest: schemas.Sum(body), Data: body}
}

func (s *stand) assess(after uint64, drafts ...*schemas.Event) ([]schemas.Verdict, error) {
	s.t.Helper()
	req := schemas.AssessRequest{After: after, Patient: true}
	for _, e := range drafts {
		req.Drafts = append(req.Drafts, schemas.DraftOf(e))
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	rulings, err := bus.AskVerdicts(ctx, s.intake, &req)
	if err != nil {
		return nil, err
	}
	verdicts := make([]schemas.Verdict, len(rulings))
	for i, r := range rulings {
		if err := json.Unmarshal(r.Verdict, &verdicts[i]); err != nil {
			s.t.Fatal(err)
		}
		if v := verdicts[i]; v.Risk != r.Risk || v.Decision != r.Decision {
			s.t.Errorf("the ruling says %d, %s, its verdict %d, %s", r.Risk, r.Decision, v.Risk, v.Decision)
		}
	}
	return verdicts, nil
}

func TestServiceJudgesAfterWhatItWasToldToAwait(t *testing.T) {
	s := newStand(t)
	s.serve()
	seq := s.grant("op-1")
	v, err := s.assess(seq, draft("op-1", "mail"), draft("op-1", "shell"))
	if err != nil {
		t.Fatal(err)
	}
	if v[0].AsOf < seq || v[0].Decision != schemas.Pass {
		t.Errorf("%+v", v[0])
	}
	if v[1].Risk < 40 {
		t.Errorf("a forbidden tool: %+v", v[1])
	}
}

// A draft whose capability the monitor does not know yet must not keep those
// that came with it waiting; whoever asks for it alone is patient.
func TestAnUnknownCapabilityDelaysNobodyElse(t *testing.T) {
	s := newStand(t)
	s.serve()
	seq := s.grant("op-1")
	req := &schemas.AssessRequest{After: seq, Drafts: []schemas.Draft{
		schemas.DraftOf(draft("op-1", "mail")), schemas.DraftOf(draft("op-2", "mail"))}}
	rulings, err := bus.AskVerdicts(t.Context(), s.intake, req)
	if err != nil {
		t.Fatal(err)
	}
	if rulings[0].Unknown || !rulings[1].Unknown || len(rulings[1].Verdict) > 0 {
		t.Fatalf("%+v", rulings)
	}
	// Patience ends: the draft is then judged as what it is.
	v, err := s.assess(seq, draft("op-2", "mail"))
	if err != nil || len(v) != 1 || v[0].Decision == "" {
		t.Errorf("an operation that was never granted: %+v, %v", v, err)
	}
}

func TestServiceRefusesWhatItCannotJudge(t *testing.T) {
	s := newStand(t)
	s.serve()
	seq := s.grant("op-1")
	// An action that is to be judged after what never comes must not keep one
	// behind it waiting.
	late := make(chan error)
	go func() {
		_, err := s.assess(seq+1000, draft("op-1", "mail"))
		late <- err
	}()
	if _, err := s.assess(seq, draft("op-1", "mail")); err != nil {
		t.Error(err)
	}
	var r *schemas.Refusal
	if err := <-late; !errors.As(err, &r) || r.Code != schemas.CodeUnavailable {
		t.Errorf("judged without what it was to await: %v", err)
	}
	for name, change := range map[string]func(*schemas.Draft){
		"another's event":        func(d *schemas.Draft) { d.Kind = schemas.AgentKilled },
		"a change of risk":       func(d *schemas.Draft) { d.Kind = schemas.RiskChanged },
		"no agent":               func(d *schemas.Draft) { d.Agent = "" },
		"a wildcard for agent":   func(d *schemas.Draft) { d.Agent = "*" },
		"no action of ours":      func(d *schemas.Draft) { d.Action = "call.>" },
		"an operation with dots": func(d *schemas.Draft) { d.Operation = "a.b" },
		"a body past the bound":  func(d *schemas.Draft) { d.Body = make([]byte, schemas.MaxJudged+2) },
	} {
		d := schemas.DraftOf(draft("op-1", "mail"))
		change(&d)
		_, err := bus.AskVerdicts(t.Context(), s.intake, &schemas.AssessRequest{After: seq, Drafts: []schemas.Draft{d}})
		if !errors.As(err, &r) || r.Code != schemas.CodeMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "JSON": []byte(`{"after":1}`), "an array that ends": {0x83, 0x01},
		"a string of indefinite length": {0x83, 0x01, 0xf4, 0x81, 0x5f, 0x41, 0x00, 0xff}, "trailing bytes": {0x83, 0x01, 0xf4, 0x80, 0x00},
	} {
		answer, err := s.intake.Request(schemas.Assess, data, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if r := bus.ReadRefusal(answer); r == nil || r.Code != schemas.CodeMalformed {
			t.Errorf("%s: %v, %s", name, r, answer.Data)
		}
	}
}

func TestViolationsRaiseRiskOnceEachAlsoWhenNobodyServedThen(t *testing.T) {
	s := newStand(t)
	violation := schemas.Marshal(schemas.Violation{Subject: "writ.in.boss.x", What: "publish", Count: 1})
	s.put(keys.RoleIssuer, &schemas.Event{Kind: schemas.AgentViolation, Agent: "analyst", Data: violation})
	stop := s.serve()
	s.put(keys.RoleIssuer, &schemas.Event{Kind: schemas.AgentViolation, Agent: "analyst", Data: violation})
	changes := s.follow(2)
	if changes[0].Ref != 1 || changes[1].Risk < 70 || changes[1].Lock != schemas.Paused {
		t.Errorf("changes of risk: %+v", changes)
	}
	stop()
	s.serve()
	s.put(keys.RoleIssuer, &schemas.Event{Kind: schemas.AgentViolation, Agent: "analyst", Data: violation})
	if changes = s.follow(3); changes[2].Risk < 87 {
		t.Errorf("the third: risk %d", changes[2].Risk)
	}
	operator := s.connect(keys.RoleOperator)
	rep := s.riskAt(operator, changes[2].Seq)
	if rep.Risk < 80 || len(rep.Factors) == 0 || len(rep.History) != 3 {
		t.Errorf("%+v", rep)
	}
	if _, err := bus.Call[schemas.RiskReply](t.Context(), operator, schemas.CtlRisk, schemas.RiskRequest{AgentID: "nobody"}); err == nil || bus.AsRefusal(err).Code != schemas.CodeNotFound {
		t.Errorf("an unknown agent: %v", err)
	}
}

// riskAt asks for the analyst's risk until the monitor, which follows the log
// by itself, has come to a sequence.
func (s *stand) riskAt(operator *nats.Conn, seq uint64) schemas.RiskReply {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for {
		rep, err := bus.Call[schemas.RiskReply](ctx, operator, schemas.CtlRisk, schemas.RiskRequest{AgentID: "analyst"})
		if err != nil {
			s.t.Fatal(err)
		}
		if rep.Seq >= seq {
			return rep
		}
	}
}

// follow reads the log until it holds so many changes of risk, and fails on
// one more for the same violation.
func (s *stand) follow(n int) (out []*schemas.Event) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	seen := map[uint64]bool{}
	f := bus.Follower{Conn: s.connect(keys.RoleLedger), Consumer: "ledger"}
	_ = f.Run(ctx, func(entry bus.Entry) error {
		e, err := entry.Event()
		if err != nil {
			s.t.Error(err)
			return err
		}
		if e.Kind == schemas.RiskChanged {
			if seen[e.Ref] {
				s.t.Errorf("two changes of risk for %d", e.Ref)
			}
			seen[e.Ref] = true
			if out = append(out, e); len(out) == n {
				cancel()
			}
		}
		return nil
	})
	if len(out) < n {
		s.t.Fatalf("%d changes of risk, want %d", len(out), n)
	}
	return out
}
