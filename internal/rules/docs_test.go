package rules

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// direct are the modules that go.mod requires for our own sake: those without
// the mark "indirect", and those of its tools.
func direct(goMod string) ([]string, error) {
	f, err := modfile.Parse("go.mod", []byte(goMod), nil)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range f.Require {
		tool := slices.ContainsFunc(f.Tool, func(tl *modfile.Tool) bool { return in(tl.Path, r.Mod.Path) })
		if !r.Indirect || tool {
			out = append(out, r.Mod.Path)
		}
	}
	slices.Sort(out)
	return out, nil
}

var dependencyRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) \\|$")

// documented are the modules that the tables of docs/dependencies.md name.
func documented(text string) (modules []string, unjustified []string) {
	for _, row := range dependencyRow.FindAllStringSubmatch(text, -1) {
		modules = append(modules, row[1])
		if len(strings.Fields(row[2])) == 0 {
			unjustified = append(unjustified, row[1])
		}
	}
	slices.Sort(modules)
	return modules, unjustified
}

func missing(from, in []string) (out []string) {
	for _, s := range from {
		if !slices.Contains(in, s) {
			out = append(out, s)
		}
	}
	return out
}

func TestEveryDirectDependencyIsJustifiedAndNoOther(t *testing.T) {
	required, err := direct(read(t, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	named, unjustified := documented(read(t, "docs/dependencies.md"))
	for _, m := range missing(required, named) {
		t.Errorf("docs/dependencies.md does not say why %s is there", m)
	}
	for _, m := range missing(named, required) {
		t.Errorf("docs/dependencies.md names %s, which go.mod does not require directly; is go mod tidy due?", m)
	}
	for _, m := range unjustified {
		t.Errorf("docs/dependencies.md gives no reason for %s", m)
	}
	if len(slices.Compact(slices.Clone(named))) != len(named) {
		t.Errorf("docs/dependencies.md names a module twice: %q", named)
	}
}

func TestAnUnjustifiedDependencyIsFound(t *testing.T) {
	required, err := direct("module m\ngo 1.26\nrequire (\n\ta.b/c v1.0.0\n\td.e/f v1.0.0 // indirect\n\tg.h/i v1.0.0 // indirect\n)\ntool g.h/i/cmd/x\n")
	if err != nil || !slices.Equal(required, []string{"a.b/c", "g.h/i"}) {
		t.Errorf("required: %q, %v", required, err)
	}
	named, unjustified := documented("| `a.b/c` | it does x |\n| `d.e/f` |  |\n")
	if !slices.Equal(named, []string{"a.b/c", "d.e/f"}) || !slices.Equal(unjustified, []string{"d.e/f"}) {
		t.Errorf("named: %q, unjustified: %q", named, unjustified)
	}
}

// tests are the names of all tests and fuzz targets of the tree.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && testName.MatchString(fn.Name.Name) {
				names[fn.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 50 {
		t.Fatalf("%d tests were found; the rule would hold for nothing", len(names))
	}
	return names
}

var testName = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z0-9]\w*`)

// A defence that names a test is one that somebody attacks. A name that no
// test has would be a claim.
func TestEveryTestThatDocumentsNameExists(t *testing.T) {
	have := tests(t)
	for doc, least := range map[string]int{"docs/threat-model.md": 20, "README.md": 5} {
		named := testName.FindAllString(read(t, doc), -1)
		if len(named) < least {
			t.Fatalf("%s names %d tests", doc, len(named))
		}
		for _, name := range named {
			if !have[name] {
				t.Errorf("%s names %s, and there is no such test", doc, name)
			}
		}
	}
}

var mdLink = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	var documents []string
	for _, pattern := range []string{"*.md", "docs/*.md", "deploy/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, found...)
	}
	if len(documents) < 5 {
		t.Fatalf("found %q", documents)
	}
	for _, path := range documents {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range mdLink.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), link[1])); err != nil {
				t.Errorf("%s leads to %s, which is not there", path, link[1])
			}
		}
	}
}
