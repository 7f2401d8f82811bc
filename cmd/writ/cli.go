package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"

	"github.com/writ-sh/writ/issuer/keys"
)

// Exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1 // refused, or failed
	exitUsage  = 2 // the command line itself is wrong
)

// globals are the flags that every command has.
type globals struct {
	JSON   bool   `name:"json" help:"Print one JSON document (one per line where it is a stream)."`
	Data   string `placeholder:"DIR" env:"WRIT_HOME" type:"path" default:"${data}" help:"Data folder of the control plane."`
	Server string `placeholder:"URL" help:"NATS address of a control plane elsewhere."`
	As     string `placeholder:"FILE" type:"path" help:"An operator's credentials for --server."`

	openerFlags `embed:""`
}

// grammar is the command line: one field per command.
type grammar struct {
	globals

	Up   upCmd   `cmd:"" group:"Control plane" help:"Run a whole control plane in this process."`
	Init initCmd `cmd:"" group:"Control plane" help:"Make the keys of a new control plane."`
	// The two below run services, and are no operator's: --server without --as.
	Provision provisionCmd `cmd:"" group:"Control plane" operator:"no" help:"Make the streams on a NATS server elsewhere."`
	Serve     serveCmd     `cmd:"" group:"Control plane" operator:"no" help:"Run one service against a NATS server elsewhere."`

	Keys keysCmd `cmd:"" group:"Control plane" help:"List the keys, replace and seal them."`

	Apply  applyCmd  `cmd:"" group:"Fleet" help:"Declare the fleet, and show what changes."`
	Enroll enrollCmd `cmd:"" group:"Fleet" help:"Make identity credentials for an agent or a service."`
	Join   joinCmd   `cmd:"" group:"Fleet" operator:"no" help:"Make a key here, and register it with a join token."`
	Policy policyCmd `cmd:"" group:"Fleet" help:"Check and test guard rails (Cedar)."`
	Issue  issueCmd  `cmd:"" group:"Fleet" help:"Issue a capability, and the NATS credentials for it."`
	Verify verifyCmd `cmd:"" group:"Fleet" help:"Verify a capability offline."`
	Tokens tokensCmd `cmd:"" group:"Fleet" help:"List the capabilities that count."`
	Revoke revokeCmd `cmd:"" group:"Fleet" help:"End a capability, and all that was derived from it."`

	Status   statusCmd   `cmd:"" group:"Operation" help:"Show the fleet, the ledger and the services."`
	Pause    pauseCmd    `cmd:"" group:"Operation" help:"Hold what an agent does, for review."`
	Resume   resumeCmd   `cmd:"" group:"Operation" help:"Let a paused or suspended agent go on."`
	Suspend  suspendCmd  `cmd:"" group:"Operation" help:"Cut an agent off until it is resumed."`
	Kill     killCmd     `cmd:"" group:"Operation" help:"Cut an agent off for good."`
	Warrant  warrantCmd  `cmd:"" group:"Operation" help:"Death warrants: kill an agent where the issuer is down."`
	Lockdown lockdownCmd `cmd:"" group:"Operation" help:"Break the glass: nobody in the fleet acts until it is lifted."`
	Review   reviewCmd   `cmd:"" group:"Operation" help:"List and decide held actions."`
	Signal   signalCmd   `cmd:"" group:"Operation" help:"Hand on what somebody outside says of an agent's risk."`
	Risk     riskCmd     `cmd:"" group:"Operation" help:"Explain an agent's present risk."`
	Webhook  webhookCmd  `cmd:"" group:"Operation" help:"Tell chat systems what needs a look, signed."`

	Log      logCmd      `cmd:"" group:"Record" help:"Show what happened."`
	Trace    traceCmd    `cmd:"" group:"Record" help:"Show one user request as a tree."`
	Replay   replayCmd   `cmd:"" group:"Record" help:"Recompute every verdict and decision from the log, and compare."`
	Simulate simulateCmd `cmd:"" group:"Record" help:"Ask which decisions another policy would have taken otherwise."`
	Ledger   ledgerCmd   `cmd:"" group:"Record" help:"Verify the ledger, show its end, prove events, export evidence."`

	Demo    demoCmd    `cmd:"" group:"Measure" help:"Play the whole story on a temporary control plane, in about a minute."`
	Drive   driveCmd   `cmd:"" group:"Measure" help:"Run recorded agents through a real control plane."`
	Bench   benchCmd   `cmd:"" group:"Measure" help:"Measure on this machine, beside the raw limit."`
	Monitor monitorCmd `cmd:"" group:"Measure" help:"Evaluate the monitor."`

	Doctor     doctorCmd                 `cmd:"" group:"Help" help:"Check keys, disk, clock and services, and say what to do."`
	Version    versionCmd                `cmd:"" group:"Help" help:"Show the version."`
	Completion kongcompletion.Completion `cmd:"" group:"Help" help:"Show how to switch on completion in your shell."`
}

// newParser builds the parser over g.
func newParser(g *grammar, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(g,
		kong.Name("writ"),
		kong.Description("A zero-trust control plane for AI agents: no agent acts without a writ."),
		kong.Vars{"data": defaultData(), "http": defaultHTTP},
		kong.NamedMapper("path", kong.MapperFunc(namedPath)),
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "Control plane", Title: "Control plane"}, {Key: "Fleet", Title: "Fleet"},
			{Key: "Operation", Title: "Operation"}, {Key: "Record", Title: "Record"}, {Key: "Measure", Title: "Measure"}, {Key: "Help", Title: "Help"},
		}),
	)
}

// registry reads what is of the types that kong knows.
var registry = kong.NewRegistry().RegisterDefaults()

// namedPath refuses a path that is empty, where a variable had no value: it
// would be the present folder.
func namedPath(ctx *kong.DecodeContext, target reflect.Value) error {
	if value, ok := ctx.Scan.Peek().Value.(string); ok && value == "" && !ctx.Value.HasDefault {
		return errors.New("the path is empty; write . for the present folder")
	}
	return registry.ForNamedType("path", target.Type()).Decode(ctx, target)
}

// defaultData is the user's data folder (XDG Base Directory Specification, and
// its like on other systems).
func defaultData() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) && runtime.GOOS != "windows" {
		return filepath.Join(dir, "writ")
	}
	if runtime.GOOS == "darwin" || runtime.GOOS == "windows" {
		if dir, err := os.UserConfigDir(); err == nil {
			return filepath.Join(dir, "writ")
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "writ-data"
	}
	return filepath.Join(home, ".local", "share", "writ")
}

// App is what a command gets beside its own flags.
type App struct {
	globals
	*terminal
	stdin io.Reader
	actor string // who does it, as the log will say
}

// run is the whole program. Interrupted once, commands end in order;
// interrupted twice, the process ends at once.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	ctx, end := context.WithCancel(ctx)
	defer end()

	var g grammar
	term := newTerminal(stdout, stderr)
	term.stdout.failed = end
	parser, err := newParser(&g, term.stdout, stderr)
	if err != nil {
		panic(err) // the grammar is part of the program: a test builds it
	}
	parser.Exit = func(code int) { // of --help
		if term.stdout.err != nil {
			code = term.fail(term.stdout.lost())
		}
		os.Exit(code)
	}
	kongcompletion.Register(parser)
	if len(args) == 0 {
		args = []string{"--help"}
		parser.Stdout = stderr
		parser.Exit = func(int) { os.Exit(exitUsage) }
	}
	if i := slices.IndexFunc(args, func(a string) bool { return !utf8.ValidString(a) }); i >= 0 {
		term.json = slices.Contains(args, "--json")
		// The parser would put other characters in their place, unsaid.
		return term.fail(misuse("set the terminal, or what calls writ, to UTF-8", "argument %d is not UTF-8: %q", i+1, args[i]))
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		term.json = slices.Contains(args, "--json")
		return term.fail(usageError(err))
	}
	term.json = g.JSON
	if (g.Server == "") != (g.As == "") && parsed.Selected().Tag.Get("operator") != "no" {
		return term.fail(misuse("give both, or neither", "--server and --as go together"))
	}
	app := &App{globals: g.globals, terminal: term, stdin: stdin, actor: actor()}
	keys.OpenWith(app.opensKeys(ctx))
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(app)
	if lost := term.stdout.err; lost != nil && (err == nil || ctx.Err() != nil || errors.Is(err, lost) || errors.Is(err, errShown)) {
		return term.fail(term.stdout.lost())
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = &advised{errors.New("interrupted before it was done"), "run the command again; writ log shows what was carried out"}
	}
	if err != nil {
		return term.fail(err)
	}
	return exitDone
}

// actor names who gives the command.
func actor() string {
	name := os.Getenv("USER")
	if name == "" || len(name) > 64 || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return "operator"
	}
	return name
}

// errUsage is matched by errors about the command line itself.
var errUsage = errors.New("usage")

type usage struct{ err error }

func (u usage) Error() string        { return u.err.Error() }
func (u usage) Unwrap() error        { return u.err }
func (u usage) Is(target error) bool { return target == errUsage }

// misuse is an error about the command line that the grammar can't express.
func misuse(next, format string, args ...any) error {
	return usage{advise(fmt.Errorf(format, args...), next)}
}

func usageError(err error) error {
	next := "writ --help"
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		if n := parse.Context.Selected(); n != nil {
			next = n.FullPath() + " --help"
		}
	}
	return usage{advise(err, "see "+next)}
}
