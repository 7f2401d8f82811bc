package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// said logs what a source says, and the change of risk that the service logs
// behind it.
func (p *plane) said(agent, source, event string, points int) schemas.Verdict {
	p.t.Helper()
	p.put(&schemas.Event{Kind: schemas.RiskSignal, Agent: agent, Time: p.now, Reason: "it looks odd", Actor: "root/test",
		Data: schemas.Marshal(schemas.Signal{Source: source, Event: event, Points: points})})
	var v schemas.Verdict
	for _, e := range p.m.Changes(p.now, "monitor/1") {
		if err := json.Unmarshal(e.Verdict, &v); err != nil {
			p.t.Fatal(err)
		}
		if e.Lock != "" {
			p.lock[agent] = e.Lock
		}
		p.put(e)
	}
	return v
}

// A signal needs no history: it pauses and suspends an agent of which nothing is
// known.
func TestASignalCountsInFullAtOnce(t *testing.T) {
	for points, want := range map[int]string{69: schemas.Pass, 70: schemas.Pause, 89: schemas.Pause, 90: schemas.Suspend, 100: schemas.Suspend} {
		p := newPlane(t)
		v := p.said("analyst", "edr", "malware", points)
		f := factors(v)["signal"]
		if v.Risk != points || v.Decision != want || f.Bits != int64(points)*one || f.Observed != "edr says malware: it looks odd" || f.Points != 0 || v.Score != 0 {
			t.Errorf("%d points: %s", points, show(v))
		}
		if p.lock["analyst"] != lockOf(want) {
			t.Errorf("%d points: lock %q", points, p.lock["analyst"])
		}
		if o := p.issue("analyst", "report", defaultTask); o.do("call:search", `{}`).Risk < points-1 {
			t.Errorf("%d points: a read is judged as if nothing had been said", points)
		}
	}
}

func TestASignalFadesAndIsTakenBack(t *testing.T) {
	p := newPlane(t)
	p.said("analyst", "edr", "malware", 80)
	p.now = p.now.Add(HalfLife)
	if r, _ := p.m.Risk("analyst", p.now); r.Risk != 40 {
		t.Errorf("after ten minutes the risk is %d", r.Risk)
	}
	if v := p.said("analyst", "edr", "malware", 0); v.Risk != 0 || len(v.Factors) != 0 {
		t.Errorf("taken back: %s", show(v))
	}
	p.said("analyst", "edr", "malware", 80)
	p.resume("analyst")
	p.now = p.now.Add(-24 * time.Hour)
	if got := p.m.agents["analyst"].saidNow(p.now); got != 0 {
		t.Errorf("an operator looked, and %d points stand", got)
	}
}

// A source that was taken over says all that it may, again and again, or good
// things of an agent that misbehaves.
func TestASourceCantPassItsWeightNorHideWhatAnAgentDid(t *testing.T) {
	p := newPlane(t)
	for range 10 {
		p.said("analyst", "edr", "malware", 40)
		p.said("analyst", "edr", "odd", 30)
	}
	if v := p.said("analyst", "edr", "odd", 30); v.Risk != 40 {
		t.Errorf("said ten times, two of one source make %d", v.Risk)
	}
	if v := p.said("analyst", "idp", "stolen", 35); v.Risk != 75 {
		t.Errorf("two sources make %d", v.Risk)
	}
	if v := p.said("analyst", "hr", "trusted", -30); v.Risk != 45 {
		t.Errorf("with one that speaks for it: %d", v.Risk)
	}
	if v := p.said("writer", "hr", "trusted", -30); v.Risk != 0 {
		t.Errorf("praise alone: %d", v.Risk)
	}

	with, without := newPlane(t), newPlane(t)
	for range 30 {
		with.said("analyst", "hr", fmt.Sprintf("praise-%d", with.seq), -30)
	}
	for _, p := range []*plane{with, without} {
		p.now = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
		if p == with {
			p.said("analyst", "hr", "trusted", -30)
		}
		o := p.issue("analyst", "report", defaultTask)
		o.do("call:shell", `{"cmd":"id"}`)
		o.do("call:shell", `{"cmd":"ls"}`)
	}
	if a, b := with.m.agents["analyst"], without.m.agents["analyst"]; a.riskNow(with.now) != b.riskNow(without.now) || b.riskNow(without.now) < 50 {
		t.Errorf("praised %d, not praised %d", a.riskNow(with.now), b.riskNow(without.now))
	}
}

// What an agent does while somebody warns of it becomes nobody's habit.
func TestNothingIsLearnedUnderSuspicion(t *testing.T) {
	p := trained(t, 25, "analyst")
	before := p.m.agents["analyst"].baseline.learned
	p.said("analyst", "edr", "malware", 60)
	p.weekly2("analyst")
	if got := p.m.agents["analyst"].baseline.learned; got != before {
		t.Errorf("%d runs were learned", got-before)
	}
	p.now = p.now.Add(24 * time.Hour)
	p.weekly("analyst", 3).end()
	if got := p.m.agents["analyst"].baseline.learned; got != before+1 {
		t.Errorf("a day later %d runs were learned", got-before)
	}
}

// weekly2 is a harmless run at once, without the pause before it.
func (p *plane) weekly2(agent string) {
	o := p.issue(agent, "report", defaultTask)
	o.do("call:search", `{"q":"figures"}`)
	o.do("call:mail", `{"to":"team@acme.example","subject":"Week 1"}`)
	o.end()
}

// Many events of many sources can't fill an agent's memory, nor push out the
// one that matters.
func TestSayingsAreBoundedAndTheWeakestGoes(t *testing.T) {
	p := newPlane(t)
	p.said("analyst", "edr", "malware", 95)
	for i := range 200 {
		p.said("analyst", fmt.Sprintf("s%d", i%16), fmt.Sprintf("e%d", i), 1+i%20)
	}
	a := p.m.agents["analyst"]
	if len(a.said) != maxSaid || a.saidNow(p.now) < 95 {
		t.Errorf("%d sayings, %d points", len(a.said), a.saidNow(p.now))
	}
	o := p.issue("analyst", "report", defaultTask)
	if v := p.m.Assess(o.draft("call:mail", `{"to":"x@y.example"}`)); len(schemas.Marshal(v)) > 8<<10 {
		t.Errorf("the verdict has %d bytes", len(schemas.Marshal(v)))
	}
}

// Replay and restart know signals as the live monitor did.
func TestSignalsReplayExactly(t *testing.T) {
	p := trained(t, 25, "analyst", "writer")
	for i := range 40 {
		agent := []string{"analyst", "writer"}[i%2]
		p.said(agent, []string{"edr", "idp"}[i%3%2], []string{"malware", "odd"}[i%2], []int{60, -30, 85, 0, 40}[i%5])
		p.token(agent, fmt.Sprintf("t-%d", i/2), 30)
		o := p.issue(agent, "report", defaultTask)
		o.do("call:mail", `{"to":"team@acme.example"}`)
		o.end()
		p.now = p.now.Add(time.Minute)
		delete(p.lock, agent)
	}
	r, err := Replay(logOf(p.log), nil)
	if err != nil || r.Mismatches != 0 || r.Verdicts < 80 {
		t.Errorf("%+v, %v", r, err)
	}
	m := New(Options{})
	for i, e := range p.log {
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
		if i%9 == 0 || e.Kind == schemas.RiskSignal {
			if m, err = Restore(Options{}, m.Snapshot()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(m.Snapshot(), p.m.Snapshot()) {
		t.Error("restarted, the monitor stands elsewhere")
	}
}

// token logs what a token says, as the service does.
func (p *plane) token(agent, jti string, points int) {
	p.t.Helper()
	p.put(&schemas.Event{Kind: schemas.RiskSignal, Agent: agent, Time: p.now, Reason: "it looks odd", Actor: "signal/idp", Digest: schemas.Sum([]byte(jti)),
		Data: schemas.Marshal(schemas.Signal{Source: "idp", Event: "risk-level-change", Points: points, Token: jti, Issued: p.now.Unix()})})
}

// Who repeats a token, or has it logged twice, raises nobody once more; and a
// flood of tokens is refused rather than forgotten.
func TestATokenCountsOnce(t *testing.T) {
	p := newPlane(t)
	p.token("analyst", "t-1", 60)
	p.now = p.now.Add(5 * time.Minute)
	before := p.m.agents["analyst"].saidNow(p.now)
	p.token("analyst", "t-1", 60)
	if got := p.m.agents["analyst"].saidNow(p.now); got != before {
		t.Errorf("repeated, it makes %d of %d", got, before)
	}
	st := &secevent.Statement{Agent: "analyst", Signal: schemas.Signal{Source: "idp", Token: "t-1"}}
	if again, err := p.m.heardBefore(st, schemas.Sum([]byte("t-1")), p.now); !again || err != nil {
		t.Errorf("the same token: %t, %v", again, err)
	}
	var wrong *secevent.Error
	if _, err := p.m.heardBefore(st, schemas.Sum([]byte("other")), p.now); !errors.As(err, &wrong) {
		t.Errorf("another token of that jti: %v", err)
	}
	for i := range maxHeard {
		p.token("analyst", fmt.Sprintf("f-%d", i), 1)
	}
	st.Token = "one more"
	if _, err := p.m.heardBefore(st, schemas.Sum(nil), p.now); err == nil || !strings.Contains(err.Error(), "not remembered") {
		t.Errorf("more tokens than there is room for: %v", err)
	}
	st.Source = "edr"
	if _, err := p.m.heardBefore(st, schemas.Sum(nil), p.now); err != nil {
		t.Errorf("another source pays for it: %v", err)
	}
	// Forgotten once it could not count any longer, and not before: the clock
	// that tokens are held against never goes back behind that.
	p.now = p.now.Add(secevent.MaxAge + time.Minute)
	p.token("analyst", "late", 1)
	if len(p.m.heard) != 1 {
		t.Errorf("%d tokens are remembered", len(p.m.heard))
	}
	if c := p.m.clock(p.now.Add(-time.Hour)); !c.Equal(p.now) {
		t.Errorf("with the clock set back, tokens are held against %s", c)
	}
}

func TestARequestStaysWithinTheDeclaration(t *testing.T) {
	s := schemas.StateOf(schemas.Declared{Principals: []schemas.Principal{{ID: "analyst", Kind: schemas.KindAgent}, {ID: "writer", Kind: schemas.KindAgent}, {ID: "tools", Kind: schemas.KindService}},
		Signals: []schemas.SignalSource{{ID: "edr", Agents: []string{"analyst", "tools"}, Weight: map[string]int{"malware": 60, "clean": -20}}}})
	n := func(x int) *int { return &x }
	good := schemas.SignalRequest{AgentID: "analyst", Source: "edr", Event: "malware", Reason: "found", Actor: "a"}
	for name, c := range map[string]struct {
		change func(*schemas.SignalRequest)
		points int
		code   int
	}{
		"as declared":          {func(*schemas.SignalRequest) {}, 60, 0},
		"less":                 {func(r *schemas.SignalRequest) { r.Points = n(20) }, 20, 0},
		"taken back":           {func(r *schemas.SignalRequest) { r.Points = n(0) }, 0, 0},
		"for it":               {func(r *schemas.SignalRequest) { r.Event = "clean" }, -20, 0},
		"beyond its weight":    {func(r *schemas.SignalRequest) { r.Points = n(61) }, 0, schemas.CodeForbidden},
		"the other way":        {func(r *schemas.SignalRequest) { r.Points = n(-1) }, 0, schemas.CodeForbidden},
		"good beyond":          {func(r *schemas.SignalRequest) { r.Event, r.Points = "clean", n(-21) }, 0, schemas.CodeForbidden},
		"an unknown source":    {func(r *schemas.SignalRequest) { r.Source = "av" }, 0, schemas.CodeNotFound},
		"a foreign agent":      {func(r *schemas.SignalRequest) { r.AgentID = "writer" }, 0, schemas.CodeForbidden},
		"a service":            {func(r *schemas.SignalRequest) { r.AgentID = "tools" }, 0, schemas.CodeNotFound},
		"nobody":               {func(r *schemas.SignalRequest) { r.AgentID = "ghost" }, 0, schemas.CodeNotFound},
		"an undeclared event":  {func(r *schemas.SignalRequest) { r.Event = "rumour" }, 0, schemas.CodeForbidden},
		"without a reason":     {func(r *schemas.SignalRequest) { r.Reason = "" }, 0, schemas.CodeMalformed},
		"a reason with a line": {func(r *schemas.SignalRequest) { r.Reason = "a\nb" }, 0, schemas.CodeMalformed},
		"a book":               {func(r *schemas.SignalRequest) { r.Reason = strings.Repeat("x", maxSignalReason+1) }, 0, schemas.CodeMalformed},
		"by nobody":            {func(r *schemas.SignalRequest) { r.Actor = "" }, 0, schemas.CodeMalformed},
	} {
		req := good
		c.change(&req)
		st, err := decideSignal(s, req)
		var r *schemas.Refusal
		switch {
		case c.code == 0 && (err != nil || st.Points != c.points):
			t.Errorf("%s: %+v, %v", name, st, err)
		case c.code != 0 && (!errors.As(err, &r) || r.Code != c.code):
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
}
