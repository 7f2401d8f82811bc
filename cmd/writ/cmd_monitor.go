package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/monitor/eval"
	"github.com/writ-sh/writ/monitor/traces"
	"github.com/writ-sh/writ/schemas"
)

type monitorCmd struct {
	Eval monitorEvalCmd `cmd:"" help:"Evaluate the monitor on labelled traces."`
	Fit  monitorFitCmd  `cmd:"" help:"Fit the weights of the evidences to labelled traces."`
	Sign monitorSignCmd `cmd:"" help:"Sign weights, so that a monitor may serve with them."`

	Shadow monitorShadowCmd `cmd:"" help:"List where the weights of --shadow would have decided otherwise."`
}

type monitorShadowCmd struct {
	Agent string `placeholder:"ID" help:"Only what this agent did."`
}

func (c *monitorShadowCmd) Run(ctx context.Context, app *App) error {
	if c.Agent != "" {
		if err := schemas.CheckID("agent", c.Agent); err != nil {
			return misuse("writ status lists the agents", "%w", err)
		}
	}
	reply, err := call[schemas.ShadowReply](ctx, app, schemas.CtlShadow, schemas.ShadowRequest{AgentID: c.Agent})
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(reply)
	}
	app.shadow(reply)
	return nil
}

func (t *terminal) shadow(r schemas.ShadowReply) {
	if r.Model == "" {
		t.note("No weights judge beside the monitor's own; writ up --shadow FILE has them do so.")
		return
	}
	lock := func(l schemas.Lock) cell { return text(cmp.Or(string(l), "pass")) }
	var rows [][]cell
	for _, d := range r.Differences {
		rows = append(rows, []cell{text(strconv.FormatUint(d.Seq, 10)), text(t.clock(d.Time)), text(d.AgentID), text(d.Action),
			text(strconv.Itoa(d.Risk)), lock(d.Lock), text(strconv.Itoa(d.ShadowRisk)), lock(d.ShadowLock)})
	}
	if len(rows) > 0 {
		t.table([]string{"event", "time", "agent", "action", "risk", "did", "shadow risk", "would have"}, rows)
	}
	t.note("%s would have decided %d of %d verdicts otherwise since the monitor started.", r.Model, r.Differ, r.Judged)
}

// tracesFlags say which recorded runs are judged, and by what.
type tracesFlags struct {
	Baseline   []string `required:"" type:"path" placeholder:"FILE" help:"Recorded runs whose harmless ones train and calibrate (NDJSON, may be gzipped)."`
	Test       []string `required:"" type:"path" placeholder:"FILE" help:"Recorded runs to judge."`
	Protocol   string   `placeholder:"warm|novel" help:"warm: the baseline leaves out the tested model; novel: the tested task as well."`
	Capability bool     `help:"Tokens list what each task needs, instead of every tool of the suite."`
	Tools      string   `type:"path" placeholder:"FILE" help:"Manifest of tools (default: tools.json beside the first tested file, if there is one)."`
}

// judges checks what the baseline leaves out, where runs are judged by one protocol.
func (c *tracesFlags) judges() error {
	if c.Protocol != eval.Warm && c.Protocol != eval.Novel {
		return misuse("give --protocol warm, or novel: --help says what each leaves out", "--protocol takes warm or novel, not %q", c.Protocol)
	}
	return nil
}

// folded says over how many folds of tasks and of injections weights are fitted.
type folded struct {
	CrossFit int      `placeholder:"K" help:"K folds of the tasks and of the injections, 3 to 5: one fit for each pair, without their runs."`
	FitTo    []string `type:"path" placeholder:"FILE" help:"With --cross-fit: recorded runs to fit to beside the tested ones."`
}

func (f *folded) check() error {
	if f.CrossFit != 0 && (f.CrossFit < 3 || f.CrossFit > 5) {
		return misuse("give --cross-fit 3", "--cross-fit takes 3 to 5 folds, not %d", f.CrossFit)
	}
	if f.CrossFit == 0 && f.FitTo != nil {
		return misuse("give --cross-fit 3 too", "--fit-to goes with --cross-fit")
	}
	return nil
}

type monitorEvalCmd struct {
	tracesFlags
	Weights string `type:"path" placeholder:"FILE" help:"Weights to evaluate, as writ monitor fit writes them (default: those that judge live events)."`
	folded
	Poison int    `placeholder:"N" help:"Before the test, let N hijacked runs of each suite end as if nobody had noticed."`
	Cases  bool   `help:"List the runs that were missed or falsely flagged, with what the verdicts rest on."`
	HTML   string `type:"path" placeholder:"FILE" help:"Write the report as a page too, with curves, histograms and cases."`
}

// Run judges the tested runs with the model that judges live events.
func (c *monitorEvalCmd) Run(ctx context.Context, app *App) error {
	if c.Poison < 0 {
		return misuse("leave it out, or give 1 or more", "--poison %d can't be negative", c.Poison)
	}
	if c.CrossFit != 0 && c.Weights != "" {
		return misuse("give one of them", "--cross-fit fits its own weights, and --weights names others")
	}
	if err := c.folded.check(); err != nil {
		return err
	}
	if err := c.judges(); err != nil {
		return err
	}
	manifest, err := c.manifest(app)
	if err != nil {
		return err
	}
	o := eval.Options{Manifest: manifest, CrossFit: c.CrossFit, Poison: c.Poison, Explain: c.Cases || c.HTML != ""}
	if c.Weights != "" {
		if o.Weights, err = readWeights("--weights", c.Weights); err != nil {
			return err
		}
	}
	judged, err := c.judge(ctx, app, &o, c.FitTo)
	if err != nil {
		return err
	}
	report := eval.Summarise(o, judged, c.Cases || c.HTML != "")
	if report.Positives == 0 || report.Negatives == 0 {
		app.note("%d hijacked and %d harmless runs: a rate of nothing is shown as 0", report.Positives, report.Negatives)
	}
	if err := c.page(app, report); err != nil {
		return err
	}
	if !c.Cases {
		report.Missed, report.False = nil, nil
	}
	if app.JSON {
		return app.emit(report)
	}
	app.evaluated(report)
	return nil
}

// judge reads the recorded runs and judges those to test.
func (c *tracesFlags) judge(ctx context.Context, app *App, o *eval.Options, fitTo []string) ([]eval.Judged, error) {
	o.Protocol, o.Capability = c.Protocol, c.Capability
	err := c.load(app, o)
	if err != nil {
		return nil, err
	}
	var evidence []eval.Judged
	if o.CrossFit > 0 {
		if evidence, err = c.evidence(ctx, app, *o, fitTo); err != nil {
			return nil, err
		}
	}
	step, done := app.progress("judged: run")
	o.Progress = func(n, of int) { step(uint64(n), uint64(of)) }
	var judged []eval.Judged
	if o.CrossFit > 0 {
		judged, err = eval.CrossFit(ctx, *o, evidence)
	} else {
		judged, err = eval.Judge(ctx, *o)
	}
	done()
	return judged, advise(err, "the run that it names can't be read as events; check its lines")
}

func (c *tracesFlags) load(app *App, o *eval.Options) (err error) {
	step, done := app.progress("read: run")
	defer done()
	o.Set, err = eval.Load(c.Baseline, c.Test, func(n int) { step(uint64(n), uint64(n)) })
	return advise(err, "give files of recorded runs: a header for each run, then its calls")
}

// evidence is what weights are fitted to: the tested runs, and others beside.
func (c *tracesFlags) evidence(ctx context.Context, app *App, o eval.Options, fitTo []string) ([]eval.Judged, error) {
	sets := []*eval.Set{o.Set}
	if len(fitTo) > 0 {
		beside, err := eval.Load(fitTo, fitTo, nil)
		if err != nil {
			return nil, advise(err, "give --fit-to files of recorded runs")
		}
		sets = append(sets, beside)
	}
	step, done := app.progress("judged to fit: run")
	defer done()
	o.Progress = func(n, of int) { step(uint64(n), uint64(of)) }
	evidence, err := eval.Evidence(ctx, o, sets...)
	return evidence, advise(err, "the run that it names can't be read as events; check its lines")
}

func (c *tracesFlags) manifest(app *App) (map[string]traces.Tool, error) {
	path := c.Tools
	if path == "" {
		path = filepath.Join(filepath.Dir(c.Test[0]), "tools.json")
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			app.note("no manifest of tools: every tool counts as one that writes or sends; --tools names one")
			return nil, nil
		}
	}
	m, err := traces.Manifest(path)
	return m, advise(err, "give --tools a JSON object of {tool: {class, description}}")
}

// page writes the HTML report.
func (c *monitorEvalCmd) page(app *App, report *eval.Report) error {
	if c.HTML == "" {
		return nil
	}
	if err := writeWhole(c.HTML, report.WriteHTML); err != nil {
		return advise(fmt.Errorf("write the page: %w", err), "give --html a file in a folder that can be written")
	}
	app.note("page: %s", c.HTML)
	return nil
}

// writeWhole writes a file by rename: never half of one.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".writ-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err = errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readShadow gives nil where no file is named.
func readShadow(path string) (*monitor.Weights, error) {
	if path == "" {
		return nil, nil
	}
	return readWeights("--shadow", path)
}

func readWeights(flag, path string) (*monitor.Weights, error) {
	next := "give " + flag + " a file that writ monitor fit wrote"
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, advise(fmt.Errorf("weights: %w", err), next)
	}
	w := new(monitor.Weights)
	if err := json.Unmarshal(b, w); err != nil {
		return nil, advise(fmt.Errorf("weights %s: %w", path, err), next)
	}
	return w, nil
}

type monitorFitCmd struct {
	tracesFlags
	folded
	Out string `required:"" type:"path" placeholder:"FILE" help:"Where the weights go."`
}

type fitDoc struct {
	Runs    int             `json:"runs"`
	Out     string          `json:"out"`
	Weights monitor.Weights `json:"weights"`
}

// Run judges the tested runs and fits weights to what was found in them.
func (c *monitorFitCmd) Run(ctx context.Context, app *App) error {
	if err := c.folded.check(); err != nil {
		return err
	}
	if c.CrossFit == 0 {
		if err := c.judges(); err != nil {
			return err
		}
	} else if c.Protocol != "" || c.Capability {
		return misuse("leave --protocol and --capability out", "--cross-fit fits to runs as both protocols find them, with capabilities and without")
	}
	manifest, err := c.manifest(app)
	if err != nil {
		return err
	}
	runs, weights, err := c.fit(ctx, app, eval.Options{Manifest: manifest, CrossFit: c.CrossFit})
	if err != nil {
		return err
	}
	doc := fitDoc{runs, c.Out, weights}
	raw, err := json.MarshalIndent(doc.Weights, "", "  ")
	if err == nil {
		err = writeWhole(c.Out, func(w io.Writer) error {
			_, err := w.Write(append(raw, '\n'))
			return err
		})
	}
	if err != nil {
		return advise(fmt.Errorf("write the weights: %w", err), "give --out a file in a folder that can be written")
	}
	if app.JSON {
		return app.emit(doc)
	}
	app.say("weights fitted to %d runs: %s", doc.Runs, doc.Out)
	app.note("next: writ monitor eval --weights %s, on runs that they were not fitted to", doc.Out)
	return nil
}

// fit gives weights, and to how many judged runs they were fitted.
func (c *monitorFitCmd) fit(ctx context.Context, app *App, o eval.Options) (int, monitor.Weights, error) {
	const next = "give --test files that hold both, and of several tasks and injections with --cross-fit"
	if c.CrossFit > 0 {
		if err := c.load(app, &o); err != nil {
			return 0, monitor.Weights{}, err
		}
		evidence, err := c.evidence(ctx, app, o, c.FitTo)
		if err != nil {
			return 0, monitor.Weights{}, err
		}
		w, err := eval.FitMean(evidence, c.CrossFit)
		return len(evidence), w, advise(err, next)
	}
	judged, err := c.judge(ctx, app, &o, nil)
	if err != nil {
		return 0, monitor.Weights{}, err
	}
	if !slices.ContainsFunc(judged, func(j eval.Judged) bool { return eval.Positive(j.Run) }) ||
		!slices.ContainsFunc(judged, func(j eval.Judged) bool { return eval.Negative(j.Run) }) {
		return 0, monitor.Weights{}, advise(errors.New("weights need hijacked and harmless runs"), next)
	}
	return len(judged), eval.Fit(judged), nil
}

func (t *terminal) evaluated(r *eval.Report) {
	t.facts([2]string{"protocol", r.Protocol + map[bool]string{true: ", with capability"}[r.Capability]}, [2]string{"model", r.Model + map[bool]string{true: fmt.Sprintf(", cross-fitted over %d × %d folds of tasks and injections", r.CrossFit, r.CrossFit)}[r.CrossFit > 0]},
		[2]string{"runs", fmt.Sprintf("%d: %d hijacked, %d harmless", r.Runs, r.Positives, r.Negatives)},
		[2]string{"not judged", fmt.Sprintf("%d hits that no call shows, %d failed attacks and runs without a call", r.Unseen, r.Other)})
	header := []string{"suite", "hijacked", "harmless", "auroc", "", "at 1 %", "", "at 5 %", "", "≥70 found", "", "false", "", "by first", "", "≥90 found", "", "false", ""}
	var rows [][]cell
	for _, s := range r.Curves() {
		i := s.Intervals
		row := []cell{text(s.Name), text(s.Positives), text(s.Negatives), text(fmt.Sprintf("%.3f", s.AUROC)), interval(i.AUROC)}
		for _, x := range []struct {
			rate float64
			in   eval.Interval
		}{{s.TPR01, i.TPR01}, {s.TPR05, i.TPR05}, {s.At70.TPR, i.At70.TPR}, {s.At70.FPR, i.At70.FPR},
			{s.At70.ByFirstSink, i.At70.ByFirstSink}, {s.At90.TPR, i.At90.TPR}, {s.At90.FPR, i.At90.FPR}} {
			row = append(row, text(fmt.Sprintf("%.3f", x.rate)), interval(x.in))
		}
		rows = append(rows, row)
	}
	t.table(header, rows)
	if r.Capability {
		t.say("token and monitor together stop %.3f of hijacked runs; %.3f of harmless ones reach 70, and of %.3f the token alone refuses a call",
			r.Blocked.TPR, r.Blocked.FPR, r.Blocked.Denied)
	}
	t.cases("missed", r.Missed)
	t.cases("falsely flagged", r.False)
}

func interval(i eval.Interval) cell {
	return cell{fmt.Sprintf("%.3f–%.3f", i[0], i[1]), dim}
}

func (t *terminal) cases(what string, cases []eval.Case) {
	for _, c := range cases {
		t.say("%s: run %s, risk %d, %s %s %s, model %s, call %d %s", what, plain(c.Run), c.Risk, plain(c.Suite), plain(c.Task), plain(c.Injection),
			plain(c.Model), c.Call, plain(c.Tool))
		t.reasons(c.Factors)
	}
}

// reasons prints factors, those that say something.
func (t *terminal) reasons(factors []schemas.Factor) {
	var rows [][]cell
	for _, f := range factors {
		if f.Observed != "" {
			rows = append(rows, []cell{text(fmt.Sprintf("%+.2f", float64(f.Points)/65536)), text(f.ID), text(f.Observed), styled(dim, f.Expected)})
		}
	}
	if len(rows) > 0 {
		t.table([]string{"points", "evidence", "observed", "expected"}, rows)
	}
}
