package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A BenchResult is what the monitor takes on this machine. Where it says so, the
// agents are many, of which the 16 that acted last are asked about in turn, or the jobs
// have ten times as long a history.
type BenchResult struct {
	AssessP50NS     int64 `json:"assess_p50_ns"` // one agent
	AssessP99NS     int64 `json:"assess_p99_ns"`
	BytesPerAgent   int64 `json:"bytes_per_agent"` // at work, with 8 jobs of 40 runs each
	Agents          int   `json:"agents"`
	ManyP50NS       int64 `json:"many_assess_p50_ns"`
	ManyP99NS       int64 `json:"many_assess_p99_ns"`
	LongP50NS       int64 `json:"long_assess_p50_ns"` // one agent whose jobs have 400 runs each
	LongP99NS       int64 `json:"long_assess_p99_ns"`
	FetchP50NS      int64 `json:"fetch_p50_ns"` // the first assessment of an agent that was put aside
	FetchP99NS      int64 `json:"fetch_p99_ns"`
	HeapPerAgent    int64 `json:"heap_per_agent"` // all memory over all agents
	DiskPerAgent    int64 `json:"disk_per_agent"`
	FoldCPUNS       int64 `json:"fold_event_cpu_ns"`     // an event, folded again behind a snapshot: processor time
	FoldNS          int64 `json:"fold_event_ns"`         // by the clock
	RestoreAgentNS  int64 `json:"restore_agent_cpu_ns"`  // read back from a snapshot
	SnapshotAgentNS int64 `json:"snapshot_agent_cpu_ns"` // written to one
}

// How many of the agents are filled one by one; the others begin with what one of
// these has, and then do a run of their own.
const benchAgents = 16

// Bench measures n assessments, one by one, for each of its figures. Many agents are
// put aside in the folder. n and agents are at least 1; processor is the time that
// this process has had so far.
func Bench(n, agents int, folder string, processor func() time.Duration) (BenchResult, error) {
	r := BenchResult{Agents: agents}
	if err := r.bench(n, agents, folder, processor); err != nil {
		return r, fmt.Errorf("bench monitor: %w", err)
	}
	return r, nil
}

func (r *BenchResult) bench(n, agents int, folder string, processor func() time.Duration) error {
	before := heap()
	few, err := newBenchLog(Options{}, benchAgents, 40)
	if err != nil {
		return err
	}
	r.BytesPerAgent = (heap() - before) / benchAgents
	r.AssessP50NS, r.AssessP99NS = few.assessments(n, func(int) string { return "agent-0" })
	runtime.KeepAlive(few)

	long, err := newBenchLog(Options{}, 1, 400)
	if err != nil {
		return err
	}
	r.LongP50NS, r.LongP99NS = long.assessments(n, func(int) string { return "agent-0" })
	return r.many(n, agents, folder, processor)
}

// many measures a fleet of which most do nothing just now.
func (r *BenchResult) many(n, agents int, folder string, processor func() time.Duration) error {
	before := heap()
	b, err := newBenchLog(Options{Folder: folder}, min(benchAgents, agents), 40)
	if err != nil {
		return err
	}
	m := b.model
	defer m.Close()
	if err := b.plant(agents); err != nil {
		return err
	}
	r.HeapPerAgent, r.DiskPerAgent = (heap()-before)/int64(agents), m.attic.end/int64(agents)
	last := func(i int) string { return fmt.Sprintf("agent-%d", agents-1-i%min(agents, benchAgents)) }
	r.ManyP50NS, r.ManyP99NS = b.assessments(n, last)
	r.FetchP50NS, r.FetchP99NS = b.assessments(min(n, agents), func(i int) string { return fmt.Sprintf("agent-%d", i) })
	if err := r.restart(m, folder, agents, processor); err != nil {
		return err
	}
	return m.Err()
}

// restart writes a snapshot, reads it, and folds more events behind it.
func (r *BenchResult) restart(m *Model, folder string, agents int, processor func() time.Duration) error {
	path := filepath.Join(folder, "snapshot")
	used := processor()
	if err := writeSnapshot(path, m); err != nil {
		return err
	}
	r.SnapshotAgentNS = int64(processor()-used) / int64(agents)
	used = processor()
	again, err := readSnapshot(path, Options{Folder: folder})
	if err != nil {
		return err
	}
	defer again.Close()
	r.RestoreAgentNS = int64(processor()-used) / int64(agents)
	var log []*schemas.Event
	b := benchLog{model: m, time: time.Unix(1_900_000_000, 0).UTC(), keep: func(e *schemas.Event) { log = append(log, e) }}
	for i := range 500 {
		if err := b.run(fmt.Sprintf("agent-%d", i*7%agents), fmt.Sprintf("more-%d", i), "job-2", 6, true); err != nil {
			return err
		}
	}
	used = processor()
	start := time.Now()
	for _, e := range log {
		if err := again.Apply(e); err != nil {
			return err
		}
	}
	r.FoldNS, r.FoldCPUNS = int64(time.Since(start))/int64(len(log)), int64(processor()-used)/int64(len(log))
	return os.Remove(path)
}

// assessments are n of them, each of another agent's next action.
func (b *benchLog) assessments(n int, of func(int) string) (p50, p99 int64) {
	took := make([]int64, n)
	for i := range took {
		e := b.action(of(i), "live", 1) // a sink
		start := time.Now()
		b.model.Assess(e)
		took[i] = int64(time.Since(start))
	}
	slices.Sort(took)
	return took[n/2], took[n*99/100]
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

	filled, agents int // of them, one by one; in all
}

func (b *benchLog) apply(e *schemas.Event) error {
	e.Seq = b.model.seq + 1
	if b.keep != nil {
		b.keep(e)
	}
	return b.model.Apply(e)
}

func newBenchLog(o Options, agents, runs int) (*benchLog, error) {
	b := &benchLog{model: New(o), time: time.Unix(1_700_000_000, 0).UTC()}
	b.filled, b.agents = agents, agents
	return b, b.fill(agents, runs)
}

// fill gives each agent 8 jobs with so many runs of 6 actions each.
func (b *benchLog) fill(agents, runs int) error {
	svc := schemas.Principal{ID: "tools", Kind: schemas.KindService, Serves: []string{"call:mail", "call:search"},
		Tools: map[string]schemas.Tool{"search": {Class: "read"}, "mail": {Class: "write"}}}
	if err := b.apply(&schemas.Event{Kind: schemas.AgentDeclared, Agent: svc.ID, Time: b.time, Data: schemas.Marshal(svc)}); err != nil {
		return err
	}
	for a := range agents {
		name := fmt.Sprintf("agent-%d", a)
		for r := range 8 * runs {
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

// plant has so many agents in all. The new ones begin with what one of the others
// has, as it is put aside, and then do a run of their own.
func (b *benchLog) plant(agents int) error {
	for ; b.agents < agents; b.agents++ {
		seed := codec{attic: b.model.attic}
		seed.agent(b.model.at(fmt.Sprintf("agent-%d", b.agents%b.filled)))
		name := fmt.Sprintf("agent-%d", b.agents)
		b.model.aside[name] = b.model.attic.put(seed.buf)
		if err := b.run(name, "own", "job-3", 6, true); err != nil {
			return err
		}
	}
	return b.model.Err()
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
