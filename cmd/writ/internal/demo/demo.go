// Package demo plays Writ's story on a control plane of its own: an agent does
// a job as it has done it hundreds of times, is hijacked by text in a tool's
// output, and is stopped.
//
// Nothing in it is staged but the agents' scripts. The control plane is the
// whole one, in a temporary folder; agents and services are stock NATS clients
// with credentials that the issuer gave; the warehouse is an embedded database.
// Each step says what is expected beforehand, and then what was observed: read
// from answers, from the ledger or from the services, never assumed.
package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// A Step is one claim of the story, and what came of it.
type Step struct {
	Name     string `json:"name"`
	Expected string `json:"expected"`
	Observed string `json:"observed"`
	OK       bool   `json:"ok"`
}

// A Report is the whole story. OK says that it was told to its end and that
// every step came out as expected.
type Report struct {
	Steps []Step `json:"steps"`
	OK    bool   `json:"ok"`
}

// A Narrator is told what happens, while it happens, by one goroutine. Texts
// may hold what an agent wrote.
type Narrator interface {
	Chapter(title string)
	Say(text string)
	Progress(what string, done, of int) // done == of: it is over
	Step(number int, s Step)
	Risk(agent string, values []int) // 0 to 100, oldest first
	Trace(id string, events []*schemas.Event)
}

// Options of Run.
type Options struct {
	Narrator Narrator     // nobody is told where nil
	Actor    string       // the human in the story; "operator" where empty
	Logger   *slog.Logger // of the control plane; silent where nil
	// EveryByte changes each byte of the evidence, instead of a sample.
	EveryByte bool
}

// Run plays the story. An error means that it could not be played at all; what
// went otherwise than expected stands in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	periods := history()
	text, err := fleetFile(periods)
	if err != nil {
		return nil, err
	}
	return play(ctx, o, text, periods)
}

// play is Run with a fleet file and a past of the caller's.
func play(ctx context.Context, o Options, fleet []byte, periods []period) (_ *Report, err error) {
	if o.Narrator == nil {
		o.Narrator = silent{}
	}
	if o.Actor == "" {
		o.Actor = "operator"
	}
	dir, err := os.MkdirTemp("", "writ-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &story{Options: o, dir: dir, data: filepath.Join(dir, "data"), periods: periods, report: &Report{Steps: []Step{}}, cancel: cancel}
	defer func() { err = errors.Join(err, s.clean()) }()
	if err := os.WriteFile(filepath.Join(dir, "fleet.yaml"), fleet, 0o600); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	whole := true
	for _, chapter := range []func(context.Context) error{s.opening, s.habits, s.work, s.hijack, s.aftermath, s.evidence} {
		if err := chapter(ctx); errors.Is(err, errBroken) {
			whole = false
			break
		} else if err != nil {
			return s.report, fmt.Errorf("demo: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return s.report, fmt.Errorf("demo: interrupted: %w", err)
		}
	}
	s.report.OK = whole
	for _, step := range s.report.Steps {
		s.report.OK = s.report.OK && step.OK
	}
	return s.report, nil
}

// errBroken ends a story that can't go on: the report says at which step.
var errBroken = errors.New("the story can't go on")

// Names in the story; the fleet file declares them.
const (
	orchestrator = "orchestrator"
	analyst      = "analyst-7"
	writer       = "writer-2"
	operation    = "report-2026-q1"
	writing      = "writing-desk" // writer-2's own operation
)

// A story is what one telling knows.
type story struct {
	Options
	dir     string   // temporary; holds all that the story makes
	data    string   // the control plane's folder within it
	periods []period // that the analyst reported on before
	report  *Report
	cancel  context.CancelFunc
	open    sync.WaitGroup // questions that await an answer

	plane    *plane.Plane
	operator *nats.Conn
	verifier *capability.Verifier
	tools    *toolbox
	chief    *client // the orchestrator
	scribe   *scribe // writer-2

	grant    schemas.IssueReply // the analyst's for the quarter
	agent    *client            // the analyst, with the credentials of that grant
	quarter  sales              // what it read
	draft    schemas.Digest     // of what it wrote
	draftSeq uint64
	forged   []byte // credentials made with the account's stolen signing key
	passed   bool   // they were good once
	pending  chan pending
	askSeq   uint64 // of the question that writer-2 leaves open
	sendSeq  uint64 // of the send that is held
	heldSeq  uint64 // of the write that is held
	mark     uint64 // the last event before the hijack
	refusals int    // the risk that refusals alone make
	end      schemas.VerifyReply
}

// clean stops what runs and removes the folder.
func (s *story) clean() error {
	s.cancel()
	s.open.Wait()
	errs := []error{s.stop()}
	if err := os.RemoveAll(s.dir); err != nil {
		errs = append(errs, fmt.Errorf("demo: %w", err))
	}
	return errors.Join(errs...)
}

// stop ends agents, services and control plane. It may be called twice.
func (s *story) stop() error {
	for _, c := range []*client{s.agent, s.chief} {
		if c != nil {
			c.nc.Close()
		}
	}
	if s.scribe != nil {
		s.scribe.nc.Close()
	}
	var errs []error
	if s.tools != nil {
		errs = append(errs, s.tools.close())
	}
	if s.operator != nil {
		s.operator.Close()
	}
	if s.plane != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		errs = append(errs, s.plane.Stop(ctx))
	}
	s.agent, s.chief, s.scribe, s.tools, s.operator, s.plane = nil, nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

const (
	stepWithin = 30 * time.Second
	stopWithin = 30 * time.Second
)

// A finding is what a step observed, and whether that is what it expected.
type finding struct {
	observed string
	ok       bool
}

func found(ok bool, format string, args ...any) finding {
	return finding{fmt.Sprintf(format, args...), ok}
}

// step carries out one claim and tells of it. An error is an observation, too:
// not the expected one.
func (s *story) step(ctx context.Context, name, expected string, run func(context.Context) (finding, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	f, err := run(ctx)
	if err != nil {
		f = found(false, "%v", err)
	}
	step := Step{Name: name, Expected: expected, Observed: schemas.HeaderText(f.observed), OK: f.ok}
	s.report.Steps = append(s.report.Steps, step)
	s.Narrator.Step(len(s.report.Steps), step)
	return f.ok
}

// silent is the narrator of those who only want the report.
type silent struct{}

func (silent) Chapter(string)                 {}
func (silent) Say(string)                     {}
func (silent) Progress(string, int, int)      {}
func (silent) Step(int, Step)                 {}
func (silent) Risk(string, []int)             {}
func (silent) Trace(string, []*schemas.Event) {}
