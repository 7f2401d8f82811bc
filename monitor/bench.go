package monitor

import (
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A BenchResult is what one assessment takes on this machine.
type BenchResult struct {
	AssessP50NS   int64 `json:"assess_p50_ns"`
	AssessP99NS   int64 `json:"assess_p99_ns"`
	BytesPerAgent int64 `json:"bytes_per_agent"` // with 8 jobs of 40 runs each
}

// Bench measures n assessments, one by one, over a model of agents that have
// some history. n is at least 1.
func Bench(n int) (BenchResult, error) {
	const agents = 16
	before := heap()
	b := benchLog{model: New(Options{}), time: time.Unix(1_700_000_000, 0).UTC()}
	if err := b.fill(agents); err != nil {
		return BenchResult{}, fmt.Errorf("bench monitor: %w", err)
	}
	bytes := (heap() - before) / agents
	took := make([]int64, max(n, 1))
	for i := range took {
		e := b.action(fmt.Sprintf("agent-%d", i%agents), "live", i)
		start := time.Now()
		b.model.Assess(e)
		took[i] = int64(time.Since(start))
	}
	slices.Sort(took)
	runtime.KeepAlive(b.model)
	return BenchResult{AssessP50NS: took[len(took)/2], AssessP99NS: took[len(took)*99/100], BytesPerAgent: bytes}, nil
}

// heap is what is in use now.
func heap() int64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// benchLog is a log as harmless agents write it.
type benchLog struct {
	model *Model
	time  time.Time
	keep  func(*schemas.Event) // hears of each event; nobody does where nil
}

func (b *benchLog) apply(e *schemas.Event) error {
	e.Seq = b.model.seq + 1
	if b.keep != nil {
		b.keep(e)
	}
	return b.model.Apply(e)
}

// fill gives each agent 8 jobs with 40 runs of 6 actions each.
func (b *benchLog) fill(agents int) error {
	svc := schemas.Principal{ID: "tools", Kind: schemas.KindService, Serves: []string{"call:mail", "call:search"},
		Tools: map[string]schemas.Tool{"search": {Class: "read"}, "mail": {Class: "write"}}}
	if err := b.apply(&schemas.Event{Kind: schemas.AgentDeclared, Agent: svc.ID, Time: b.time, Data: schemas.Marshal(svc)}); err != nil {
		return err
	}
	for a := range agents {
		name := fmt.Sprintf("agent-%d", a)
		for r := range 8 * 40 {
			if err := b.run(name, fmt.Sprintf("op-%d", r), fmt.Sprintf("job-%d", r%8), 6, true); err != nil {
				return err
			}
		}
		if err := b.run(name, "live", "job-1", 5, false); err != nil {
			return err
		}
	}
	return nil
}

// run does so many actions of a run of six, and may end it.
func (b *benchLog) run(agent, op, job string, actions int, end bool) error {
	b.time = b.time.Add(time.Hour)
	g := schemas.Grant{JTI: op, Agent: agent, Operation: op, Job: job, Scope: []string{"call:mail", "call:search"},
		Task: "Find the quarter's figures and mail them to team@acme.example"}
	if err := b.apply(&schemas.Event{Kind: schemas.TokenIssued, Agent: agent, Time: b.time, Operation: op, JTI: op, Data: schemas.Marshal(g)}); err != nil {
		return err
	}
	for i := range actions {
		e := b.action(agent, op, i)
		v := b.model.Assess(e)
		e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
		if err := b.apply(e); err != nil {
			return err
		}
		answer := &schemas.Event{Kind: schemas.ResponseAccepted, Agent: "tools", To: agent, Operation: op, Action: e.Action, Time: b.time,
			Data: []byte(`{"text":"Figures of the quarter: 120, 130 and 140, by region","from":"books@acme.example"}`)}
		if err := b.apply(answer); err != nil {
			return err
		}
	}
	if !end {
		return nil
	}
	return b.apply(&schemas.Event{Kind: schemas.OperationEnded, Agent: agent, Operation: op, Time: b.time, Reason: "done"})
}

func (b *benchLog) action(agent, op string, i int) *schemas.Event {
	tool, body := "search", `{"q":"quarter figures"}`
	if i%2 == 1 {
		tool, body = "mail", `{"to":"team@acme.example","subject":"figures","body":"The quarter went well, the figures are attached.","url":"https://acme.example/q"}`
	}
	return &schemas.Event{Kind: schemas.MessageAccepted, Agent: agent, Operation: op, JTI: op, Time: b.time,
		Action: schemas.Action{Verb: schemas.VerbCall, Resource: tool}, Data: []byte(body)}
}
