package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/writ-sh/writ/cmd/writ/internal/bench"
	"github.com/writ-sh/writ/cmd/writ/internal/demo"
	"github.com/writ-sh/writ/cmd/writ/internal/drive"
	"github.com/writ-sh/writ/cmd/writ/internal/simulate"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/monitor/eval"
	"github.com/writ-sh/writ/schemas"
)

// A section of docs/cli.md is about one command, or about several that stand
// one behind the other and share what follows the last of them.
var (
	headings  = regexp.MustCompile(`(?m)^### writ ([a-z -]+?)(?: \[?([A-Z]+)\]?)?$`)
	codeSpans = regexp.MustCompile("`[^`\n]+`")
	flagNames = regexp.MustCompile(`(^|\s|\b)--([a-z][a-z-]*)`)
)

// inherited are sections whose flags stand in another, in front of which they
// stand.
var inherited = map[string]string{"pause": "kill", "suspend": "kill"}

func documented(t *testing.T) (sections map[string]string, args map[string]string, general string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	found := headings.FindAllStringSubmatchIndex(doc, -1)
	sections, args = map[string]string{}, map[string]string{}
	for i, m := range found {
		end := len(doc)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		name := doc[m[2]:m[3]]
		sections[name] = doc[m[1]:end]
		if m[4] >= 0 {
			args[name] = doc[m[4]:m[5]]
		}
	}
	return sections, args, doc[:strings.Index(doc, "\n## Control plane")]
}

// commands are all that can be run, by path behind "writ".
func commands(t *testing.T) (map[string]*kong.Node, *kong.Kong) {
	t.Helper()
	parser, err := newParser(new(grammar), io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*kong.Node{}
	for _, leaf := range parser.Model.Leaves(true) {
		all[strings.TrimPrefix(path(leaf), "writ ")] = leaf
	}
	return all, parser
}

func path(n *kong.Node) string {
	if n.Parent == nil {
		return n.Name
	}
	return path(n.Parent) + " " + n.Name
}

// flagsIn are the flags that a text names in tables' first columns.
func flagsIn(text string) []string {
	names := map[string]bool{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `-") {
			continue
		}
		column := strings.Split(strings.ReplaceAll(line, `\|`, ""), "|")[1]
		for _, span := range codeSpans.FindAllString(column, -1) {
			for _, m := range flagNames.FindAllStringSubmatch(strings.Trim(span, "`"), -1) {
				names[m[2]] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func flagsOf(n *kong.Node) []string {
	var names []string
	for _, f := range n.Flags {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

func TestEveryCommandAndFlagIsDocumentedAndNoOther(t *testing.T) {
	sections, args, general := documented(t)
	all, parser := commands(t)
	for name := range sections {
		if all[name] == nil {
			t.Errorf("docs/cli.md describes writ %s, which there is not", name)
		}
	}
	if got, want := flagsIn(general), flagsOf(parser.Model.Node); !slices.Equal(got, want) {
		t.Errorf("general flags documented: %v; there are %v", got, want)
	}
	for name, node := range all {
		text, ok := sections[name]
		if !ok {
			t.Errorf("docs/cli.md lacks writ %s", name)
			continue
		}
		if other, ok := inherited[name]; ok {
			text = sections[other]
		}
		if got, want := flagsIn(text), flagsOf(node); !slices.Equal(got, want) {
			t.Errorf("writ %s: flags documented %v; there are %v", name, got, want)
		}
		var positional string
		for _, p := range node.Positional {
			positional = strings.ToUpper(p.Name)
		}
		if args[name] != positional {
			t.Errorf("writ %s: argument documented %q; there is %q", name, args[name], positional)
		}
	}
}

func TestEveryCommandSaysWhatItDoes(t *testing.T) {
	all, _ := commands(t)
	for name, node := range all {
		if node.Help == "" || !strings.HasSuffix(node.Help, ".") {
			t.Errorf("writ %s: help %q is no sentence", name, node.Help)
		}
		for _, f := range node.Flags {
			if f.Help == "" {
				t.Errorf("writ %s --%s has no help", name, f.Name)
			}
		}
		for _, p := range node.Positional {
			if p.Help == "" && name != "completion" { // the library's
				t.Errorf("writ %s %s has no help", name, p.Name)
			}
		}
	}
}

// documents are what commands print with --json. Fields of lists' elements
// stand in the same section.
var documents = map[string][]any{
	"status": {statusDoc{}, schemas.AgentStatus{}, schemas.Health{}}, "kill": {schemas.Receipt{}},
	"review list": {schemas.ReviewsReply{}, schemas.Review{}}, "review deny": {schemas.ReviewReply{}},
	"risk": {schemas.RiskReply{}, schemas.Verdict{}, schemas.Factor{}, schemas.RiskPoint{}},
	"log":  {logLine{}, spansDoc{}}, "trace": {traceDoc{}}, "replay": {replayDoc{}, repeatedDoc{}},
	"simulate":      {simulateDoc{}, simulate.Report{}, simulate.Flip{}},
	"demo":          {demo.Report{}, demo.Step{}},
	"ledger verify": {ledgerVerifyDoc{}, schemas.VerifyReply{}}, "ledger head": {schemas.Head{}},
	"ledger prove": {ledgerProofDoc{}, schemas.Proof{}}, "ledger export": {exportDoc{}}, "ledger verify-bundle": {bundleDoc{}}, "verify": {verification{}}, "doctor": {check{}},
	"apply": {schemas.Change{}}, "drive": {driveDoc{}, drive.Report{}, drive.Attacked{}}, "bench path": {bench.Path{}},
	"bench kill": {bench.Kill{}}, "bench issue": {bench.Issue{}}, "bench ledger": {ledger.BenchResult{}},
	"bench monitor": {monitor.BenchResult{}},
	"monitor fit":   {fitDoc{}}, "monitor shadow": {schemas.ShadowReply{}, schemas.ShadowDifference{}},
	"monitor eval": {eval.Report{}, eval.Figures{}, eval.Rates{}, eval.Blocked{}, eval.Case{}},
}

func TestEveryFieldOfAResultIsDocumented(t *testing.T) {
	sections, _, _ := documented(t)
	for name, docs := range documents {
		for _, doc := range docs {
			typ := reflect.TypeOf(doc)
			for i := range typ.NumField() {
				field, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
				if field != "" && !strings.Contains(sections[name], "`"+field+"`") {
					t.Errorf("docs/cli.md, writ %s: lacks the field %s of %v", name, field, typ)
				}
			}
		}
	}
}
