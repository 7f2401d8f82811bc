package eval

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/monitor/traces"
	"github.com/writ-sh/writ/schemas"
)

// toolService stands for the service behind every recorded tool.
const toolService = "tools"

// classes of the manifest in the fleet file's words.
var classes = map[string]string{"R": "read", "W": "write", "X": "egress"}

// A plane is a log in memory, and the model that folds it.
type plane struct {
	model   *monitor.Model
	suspend int // see Options
	now     time.Time
	bodies  map[*traces.Run]bodies
}

// bodies are what the events of a run carry: made once, for most runs are folded
// into many baselines.
type bodies struct {
	grant            []byte
	payload, answers [][]byte // of each call
}

// bodiesOf makes those of all runs of the baseline, and of the tested ones.
func bodiesOf(o Options) map[*traces.Run]bodies {
	tools := toolsOf(o.Baseline, o.Test)
	all := make(map[*traces.Run]bodies, len(o.Baseline)+len(o.Test))
	for _, runs := range [][]*traces.Run{o.Baseline, o.Test} {
		for _, r := range runs {
			if _, made := all[r]; made {
				continue
			}
			b := bodies{grant: schemas.Marshal(grantOf(r, o.Capability, tools[r.Suite]))}
			for i := range r.Calls {
				b.payload, b.answers = append(b.payload, r.Calls[i].Payload()), append(b.answers, r.Output(i))
			}
			all[r] = b
		}
	}
	return all
}

// grantOf is a run's capability: every tool of the suite, or what an ideal token
// lists.
func grantOf(run *traces.Run, capability bool, suite []string) schemas.Grant {
	g := schemas.Grant{JTI: run.ID, Agent: run.Suite, Operation: run.ID, Job: run.UserTask, Task: run.Task()}
	tools := run.GTTools
	if !capability || len(tools) == 0 { // an empty list says that nobody wrote one
		tools = suite
	}
	for _, t := range tools {
		g.Scope = append(g.Scope, schemas.VerbCall+":"+t)
	}
	return g
}

// Times are made up, for the recordings have none: five seconds from call to
// call, and a day from run to run, so that no run bears on the next one's risk.
const (
	betweenCalls = 5 * time.Second
	betweenRuns  = 24 * time.Hour
)

// newPlane declares the tools; what the manifest does not name is a sink.
func newPlane(o Options) (*plane, error) {
	p := &plane{model: monitor.New(monitor.Options{Weights: o.Weights, Explain: o.Explain}), suspend: o.Suspend,
		now: time.Unix(1_700_000_000, 0).UTC(), bodies: o.bodies}
	svc := schemas.Principal{ID: toolService, Kind: schemas.KindService, Tools: map[string]schemas.Tool{}}
	for name, t := range o.Manifest {
		svc.Serves = append(svc.Serves, schemas.VerbCall+":"+name)
		svc.Tools[name] = schemas.Tool{Class: classes[t.Class], Description: t.Description}
	}
	return p, p.apply(&schemas.Event{Kind: schemas.AgentDeclared, Agent: toolService, Data: schemas.Marshal(svc)})
}

func (p *plane) apply(e *schemas.Event) error {
	e.Seq, e.Time = p.model.Seq()+1, p.now
	return p.model.Apply(e)
}

// A role is what a run is to the model.
type role uint8

const (
	tested  role = iota // nothing of it stays
	vouched             // harmless, and learned from: what stands out is approved
	live                // ended as any, with nobody who looks: the model's own gates decide
)

// run judges a run and gives the verdicts.
func (p *plane) run(r *traces.Run, as role, verdicts *[]schemas.Verdict) error {
	err := p.begin(r)
	for i := 0; err == nil && i < len(r.Calls); i++ {
		var v schemas.Verdict
		if v, err = p.call(r, i, as == vouched); errors.Is(err, errSuspended) {
			i, err = -1, p.begin(r)
			continue
		}
		if verdicts != nil {
			*verdicts = append(*verdicts, v)
		}
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", r.ID, err)
	}
	switch as {
	case tested:
		err = p.forget(r)
	case vouched:
		err = p.end(r)
	case live:
		if err = p.end(r); err == nil {
			err = p.apply(&schemas.Event{Kind: schemas.AgentResumed, Agent: r.Suite})
		}
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", r.ID, err)
	}
	return nil
}

// begin issues the run's capability.
func (p *plane) begin(run *traces.Run) error {
	p.now = p.now.Add(betweenRuns)
	return p.apply(&schemas.Event{Kind: schemas.TokenIssued, Agent: run.Suite, Operation: run.ID, JTI: run.ID, Data: p.bodies[run].grant})
}

// VouchFrom is the risk from which a harmless run of the baseline is held and
// approved, as its label says.
const VouchFrom = 40

// errSuspended says that a run was cut off, and vouched for.
var errSuspended = errors.New("suspended")

// vouch has a harmless run suspended for a call and the agent let go on, as an
// operator does who knows the run's label.
func (p *plane) vouch(call *schemas.Event) error {
	e := *call
	e.Kind, e.Lock = schemas.MessageDenied, schemas.Suspended
	if err := p.apply(&e); err != nil {
		return err
	}
	if err := p.apply(&schemas.Event{Kind: schemas.ReviewVouched, Agent: e.Agent, Ref: e.Seq}); err != nil {
		return err
	}
	return cmp.Or(p.apply(&schemas.Event{Kind: schemas.AgentResumed, Agent: e.Agent}), errSuspended)
}

// call judges one call, and logs it as accepted whatever the verdict, with the
// answer of its tool: the recorded agent went on.
func (p *plane) call(run *traces.Run, i int, vouch bool) (schemas.Verdict, error) {
	p.now = p.now.Add(betweenCalls)
	e := &schemas.Event{Kind: schemas.MessageAccepted, Agent: run.Suite, Operation: run.ID, JTI: run.ID, To: toolService, Time: p.now,
		Action: schemas.Action{Verb: schemas.VerbCall, Resource: run.Calls[i].Tool}, Data: p.bodies[run].payload[i]}
	v := p.model.Assess(e)
	v.Factors = slices.Clone(v.Factors) // they hold until the next
	e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
	if vouch && p.suspend > 0 && v.ActionRisk >= p.suspend {
		return v, p.vouch(e)
	}
	if vouch && v.ActionRisk >= VouchFrom {
		held := *e
		held.Kind = schemas.MessageHeld
		if err := p.apply(&held); err != nil {
			return v, err
		}
		if err := p.apply(&schemas.Event{Kind: schemas.ReviewApproved, Agent: run.Suite, Ref: held.Seq}); err != nil {
			return v, err
		}
		e.Ref = held.Seq
		again := p.model.Assess(e)
		e.Verdict, e.Risk = schemas.Marshal(again), again.Risk
	}
	if err := p.apply(e); err != nil {
		return v, err
	}
	return v, p.apply(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: toolService, To: run.Suite, Operation: run.ID,
		Action: e.Action, Data: p.bodies[run].answers[i]})
}

// end lets the model learn from a run; forget ends it as an operator would who
// cuts the agent off and lets it go on: nothing of it stays.
func (p *plane) end(run *traces.Run) error {
	return p.apply(&schemas.Event{Kind: schemas.OperationEnded, Agent: run.Suite, Operation: run.ID, Reason: "done"})
}

func (p *plane) forget(run *traces.Run) error {
	if err := p.apply(&schemas.Event{Kind: schemas.AgentSuspended, Agent: run.Suite}); err != nil {
		return err
	}
	return p.apply(&schemas.Event{Kind: schemas.AgentResumed, Agent: run.Suite})
}
