package schemas

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// A command that no role names would be refused to every operator, and nobody
// would know why.
func TestEveryCommandHasARole(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "control.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Ctl") || len(spec.Values) == 0 {
			return true
		}
		subject, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found++
		if !RoleAdmin.May(subject) {
			t.Errorf("%s (%s) has no role", spec.Names[0].Name, subject)
		}
		return true
	})
	if found != len(weakest) {
		t.Errorf("%d commands, %d with a role", found, len(weakest))
	}
	for _, r := range []Role{"", "root", "Admin"} {
		if len(r.Commands()) > 0 {
			t.Errorf("role %q has commands", r)
		}
	}
}
