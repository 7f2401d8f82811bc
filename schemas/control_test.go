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
// would know why. Three are meant to be: what they carry is not told to be a
// named operator's, and what they do can't be undone.
func TestEveryCommandHasARole(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "control.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	alone := map[string]bool{CtlErase: true, CtlBackup: true, CtlPrune: true, CtlHandOver: true}
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
		if RoleAdmin.May(subject) == alone[subject] {
			t.Errorf("%s (%s): an admin may: %t", spec.Names[0].Name, subject, alone[subject])
		}
		return true
	})
	if found != len(weakest)+len(alone) {
		t.Errorf("%d commands, %d with a role", found, len(weakest))
	}
	for _, r := range []Role{"", "root", "Admin"} {
		if len(r.Commands()) > 0 {
			t.Errorf("role %q has commands", r)
		}
	}
}
