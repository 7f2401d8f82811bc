package monitor

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A plane stands in for the control plane around a model: it judges each
// action, logs it as intake would, and answers for the services.
type plane struct {
	t    *testing.T
	m    *Model
	now  time.Time
	seq  uint64
	ops  int
	lag  int // events that come between a verdict and its event
	log  []*schemas.Event
	lock map[string]schemas.Lock
}

var tools = map[string]schemas.Tool{
	"search": {Class: "read"}, "fetch": {Class: "read"}, "mail": {Class: "egress"},
	"pay": {Class: "write"}, "shell": {}, "note": {Class: "write"},
}

func newPlane(t *testing.T) *plane {
	p := &plane{t: t, m: New(Options{}), now: time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC), lock: map[string]schemas.Lock{}}
	svc := schemas.Principal{ID: "tools", Kind: schemas.KindService, Tools: tools}
	for _, name := range []string{"search", "fetch", "mail", "pay", "shell", "note"} {
		svc.Serves = append(svc.Serves, "call:"+name)
	}
	p.event(schemas.AgentDeclared, "tools", schemas.Marshal(svc))
	return p
}

// put logs an event.
func (p *plane) put(e *schemas.Event) *schemas.Event {
	p.t.Helper()
	p.seq++
	e.Seq, e.ID = p.seq, fmt.Sprintf("id-%d", p.seq)
	if err := p.m.Apply(e); err != nil {
		p.t.Fatal(err)
	}
	p.log = append(p.log, e)
	return e
}

func (p *plane) event(kind schemas.Kind, agent string, data []byte) *schemas.Event {
	p.t.Helper()
	return p.put(&schemas.Event{Kind: kind, Agent: agent, Time: p.now, Data: data, Reason: "test"})
}

// An op is one operation of an agent.
type op struct {
	p               *plane
	agent, name     string
	held            uint64 // the newest action that was held
	cause           uint64 // the newest that suspended the agent
	highest         int    // action risk
	agentRisk       int
	answerOfService string
}

const defaultTask = "Mail the weekly report to team@acme.example and pay account DE44500105175407324931"

func (p *plane) issue(agent, job, task string) *op {
	p.t.Helper()
	p.ops++
	o := &op{p: p, agent: agent, name: fmt.Sprintf("op-%d", p.ops), answerOfService: `{"text":"ok"}`}
	g := schemas.Grant{JTI: "jti-" + o.name, Agent: agent, Operation: o.name, Job: job, Task: task,
		Scope: []string{"call:search", "call:fetch", "call:mail", "call:pay", "call:note", "memory:put", "memory:get", "ask:helper", "send:helper"}, ForbiddenTools: []string{"shell"}}
	p.put(&schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Time: p.now, Operation: o.name, JTI: g.JTI, Data: schemas.Marshal(g)})
	return o
}

func (o *op) draft(scope, body string) *schemas.Event {
	o.p.t.Helper()
	a, err := schemas.ParseAction(scope)
	if err != nil {
		o.p.t.Fatal(err)
	}
	return &schemas.Event{Kind: schemas.MessageAccepted, Agent: o.agent, Operation: o.name, JTI: "jti-" + o.name,
		To: "tools", Time: o.p.now, Action: a, Data: []byte(body)}
}

// do judges and logs one action a second after the one before, and has it
// answered if it passed.
func (o *op) do(scope, body string) schemas.Verdict {
	o.p.t.Helper()
	return o.log(o.draft(scope, body))
}

func (o *op) log(e *schemas.Event) schemas.Verdict {
	o.p.t.Helper()
	p := o.p
	p.now = p.now.Add(time.Second)
	e.Time = p.now
	v := p.m.Assess(e)
	for range p.lag {
		p.event(schemas.ReleaseMark, schemas.Fleet, nil)
	}
	refused := p.m.consider(e).standing != granted
	e.Verdict, e.Risk, e.Lock = schemas.Marshal(v), v.Risk, lockOf(v.Decision)
	switch {
	case refused:
		e.Kind, e.Code, e.Reason, e.To = schemas.MessageDenied, schemas.CodeForbidden, "not in scope", ""
	case v.Decision == schemas.Suspend:
		e.Kind, e.Code, e.Reason = schemas.MessageDenied, schemas.CodeCancelled, "suspended"
	case v.Decision == schemas.Pause || p.lock[o.agent] == schemas.Paused:
		if e.Ref == 0 {
			e.Kind, e.Code = schemas.MessageHeld, schemas.CodeHeld
		}
	}
	if e.Lock != "" {
		p.lock[o.agent] = e.Lock
	}
	p.put(e)
	if e.Kind == schemas.MessageHeld {
		o.held = e.Seq
	}
	if e.Lock == schemas.Suspended {
		o.cause = e.Seq
	}
	o.highest, o.agentRisk = max(o.highest, v.ActionRisk), v.Risk
	if e.Kind == schemas.MessageAccepted {
		p.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: "tools", To: o.agent, Operation: o.name, Action: e.Action,
			Ref: e.Seq, Time: p.now, Data: []byte(o.answerOfService)})
	}
	return v
}

func (o *op) end() {
	o.p.t.Helper()
	o.p.put(&schemas.Event{Kind: schemas.OperationEnded, Agent: o.agent, Operation: o.name, Time: o.p.now, Reason: "done"})
}

// reviewed makes an agent one that is paused, and never suspended.
func (p *plane) reviewed(agent string) {
	p.t.Helper()
	p.event(schemas.AgentDeclared, agent, schemas.Marshal(schemas.Principal{ID: agent, Kind: schemas.KindAgent,
		Thresholds: &schemas.Thresholds{Pause: 70, Suspend: 101}}))
}

// resume is an operator's, a day later.
func (p *plane) resume(agent string) {
	p.t.Helper()
	p.now = p.now.Add(24 * time.Hour)
	p.event(schemas.AgentResumed, agent, nil)
	delete(p.lock, agent)
}

// vouch is an operator's, for an event.
func (p *plane) vouch(agent string, event uint64) {
	p.t.Helper()
	p.put(&schemas.Event{Kind: schemas.ReviewVouched, Agent: agent, Ref: event, Time: p.now, Actor: "ada", Reason: "known"})
}

// weekly is a harmless run of an agent's job: the same tools and recipients,
// with what changes from week to week.
func (p *plane) weekly(agent string, week int) *op {
	p.t.Helper()
	p.now = p.now.Add(time.Hour)
	o := p.issue(agent, "report", defaultTask)
	o.do("call:search", `{"q":"figures"}`)
	if week%3 == 0 {
		o.do("call:fetch", fmt.Sprintf(`{"file":"/reports/week-%d.csv"}`, week%7))
	}
	o.do("call:mail", fmt.Sprintf(`{"to":"team@acme.example","subject":"Week %d"}`, week))
	if week%4 == 0 {
		o.do("call:note", fmt.Sprintf(`{"file":"/notes/%d.md"}`, week))
	}
	o.do("call:pay", `{"to":"DE44500105175407324931","amount":120}`)
	return o
}

// trained is a plane whose agents have done their jobs for so many weeks.
func trained(t *testing.T, weeks int, agents ...string) *plane {
	t.Helper()
	p := newPlane(t)
	for week := range weeks {
		for _, a := range agents {
			p.weekly(a, week).end()
		}
	}
	return p
}

func factors(v schemas.Verdict) map[string]schemas.Factor {
	m := map[string]schemas.Factor{}
	for _, f := range v.Factors {
		m[f.ID] = f
	}
	return m
}

func show(v schemas.Verdict) string {
	b, _ := json.MarshalIndent(v, "", " ")
	return string(b)
}
