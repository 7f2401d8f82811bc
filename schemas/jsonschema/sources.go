package jsonschema

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// sources is what the Go files say beside the types: comments and constants.
type sources struct {
	types     map[string]string            // of every struct with JSON tags
	fields    map[string]map[string]string // by struct and Go field
	constants []constant
}

type constant struct{ name, value, comment string }

func (s *sources) field(structName, field string) string { return s.fields[structName][field] }

func readSources(dirs ...string) (*sources, error) {
	s := &sources{types: map[string]string{}, fields: map[string]map[string]string{}}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("no Go files in %s (%v)", dir, err)
		}
		slices.Sort(files)
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			for _, d := range file.Decls {
				if g, ok := d.(*ast.GenDecl); ok {
					s.declaration(g)
				}
			}
		}
	}
	return s, nil
}

func (s *sources) declaration(g *ast.GenDecl) {
	for _, spec := range g.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if st, ok := spec.Type.(*ast.StructType); ok && spec.Name.IsExported() && tagged(st) {
				s.types[spec.Name.Name] = flow(g.Doc.Text() + spec.Doc.Text())
				s.structure(spec.Name.Name, st)
			}
		case *ast.ValueSpec:
			if g.Tok != token.CONST || len(spec.Values) != 1 {
				continue
			}
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if value, err := strconv.Unquote(lit.Value); err == nil {
					s.constants = append(s.constants, constant{spec.Names[0].Name, value, flow(spec.Comment.Text())})
				}
			}
		}
	}
}

func (s *sources) structure(name string, st *ast.StructType) {
	s.fields[name] = map[string]string{}
	for _, f := range st.Fields.List {
		text := flow(f.Comment.Text())
		if f.Doc != nil {
			text = flow(f.Doc.Text())
		}
		for _, n := range f.Names {
			s.fields[name][n.Name] = text
		}
	}
}

func tagged(st *ast.StructType) bool {
	return slices.ContainsFunc(st.Fields.List, func(f *ast.Field) bool {
		return f.Tag != nil && strings.Contains(f.Tag.Value, "json:")
	})
}

// flow joins a comment's lines.
func flow(s string) string { return strings.Join(strings.Fields(s), " ") }
