package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// faults are what is wrong with a file, of its form and of its meaning alike:
// who writes it corrects it once.
type faults struct {
	name string
	errs Errors
}

func (f *faults) fail(at pos, format string, args ...any) {
	f.errs = append(f.errs, &Error{Name: f.name, Line: at.line, Column: at.column, Text: fmt.Sprintf(format, args...)})
}

// sorted gives the faults in the order of the file, one for each place: what
// can't be read there comes first, and what is missing for that says nothing
// more.
func (f *faults) sorted() Errors {
	place := func(a, b *Error) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	}
	slices.SortStableFunc(f.errs, place)
	return slices.CompactFunc(f.errs, func(a, b *Error) bool { return place(a, b) == 0 })
}

// decode parses the text and reads the document as far as it can be; nil where
// it is no YAML at all.
func decode(data []byte, found *faults) *document {
	if len(data) > MaxFile {
		found.fail(pos{1, 1}, "the file has %d bytes; at most %d are read", len(data), MaxFile)
		return nil
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(line) { // the parser would put another character in its place
			found.fail(pos{i + 1, 1}, "this line is not UTF-8; save the file in that encoding")
			return nil
		}
	}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey()) // the reader names all of them
	switch {
	case err != nil:
		at, text := pos{1, 1}, err.Error()
		var lib yaml.Error
		if errors.As(err, &lib) {
			text = lib.GetMessage()
			if t := lib.GetToken(); t != nil && t.Position != nil {
				at = pos{t.Position.Line, t.Position.Column}
			}
		}
		found.fail(at, "%s", text)
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		found.fail(pos{1, 1}, "the file is empty; it needs at least trust_domain")
	case len(file.Docs) > 1:
		at := pos{1, 1}
		if body := file.Docs[1].Body; body != nil {
			at = posOf(body)
		}
		found.fail(at, "a second document begins here; put the fleet into one")
	default:
		doc := new(document)
		(&reader{found}).into(file.Docs[0].Body, reflect.ValueOf(doc).Elem())
		return doc
	}
	return nil
}

// A reader fills structs with nodes. The YAML library's own way stops at the
// first fault; this one reads on.
type reader struct{ *faults }

// A scalar reads itself; so does a mapping whose keys are names.
type scalar interface{ read(*reader, ast.Node) }

func (r *reader) into(n ast.Node, v reflect.Value) {
	if p, ok := v.Addr().Interface().(interface{ begin(pos) }); ok {
		p.begin(posOf(n))
	}
	if !r.plain(n) {
		return
	}
	if s, ok := v.Addr().Interface().(scalar); ok {
		s.read(r, n)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		r.into(n, v.Elem())
	case reflect.Slice:
		list, ok := n.(*ast.SequenceNode)
		if !ok {
			r.mismatch(n, "a list; write it with [ and ], or with a - for each entry")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values)))
		for i, entry := range list.Values {
			r.into(entry, v.Index(i))
		}
	case reflect.Struct:
		known := keysOf(v.Type())
		for key, value := range r.entries(n, "a mapping of keys to values") {
			name, _ := key.(*ast.StringNode)
			if name == nil || known[name.Value] == nil {
				r.fail(posOf(key), "unknown field %q; possible here: %s", key.GetToken().Value, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
				continue
			}
			r.into(value, v.FieldByIndex(known[name.Value]))
		}
	}
}

// keysOf are the keys of a mapping that is read into a struct, with the field
// of each.
func keysOf(t reflect.Type) map[string][]int {
	keys := map[string][]int{}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "" {
			keys[key] = t.Field(i).Index
		}
	}
	return keys
}

// entries are those of a mapping, each key once.
func (r *reader) entries(n ast.Node, want string) iter.Seq2[ast.MapKeyNode, ast.Node] {
	return func(yield func(ast.MapKeyNode, ast.Node) bool) {
		m, ok := n.(ast.MapNode)
		if !ok {
			r.mismatch(n, want)
			return
		}
		first := map[string]pos{}
		for i := m.MapRange(); i.Next(); {
			key, at := i.Key(), posOf(i.Key())
			if !r.plain(key) {
				continue
			}
			name := key.GetToken().Value
			if before, ok := first[name]; ok {
				r.fail(at, "mapping key %q already defined at [%d:%d]; keep one of the two", name, before.line, before.column)
				continue
			}
			first[name] = at
			if !yield(key, i.Value()) {
				return
			}
		}
	}
}

// plain refuses what YAML can do and a list of rights must not: to say by
// reference, by tag or by omission.
func (r *reader) plain(n ast.Node) bool {
	switch n.Type() {
	case ast.AnchorType, ast.AliasType, ast.MergeKeyType:
		r.fail(posOf(n), "anchors, aliases and merge keys are not read; write the values out")
	case ast.TagType, ast.DirectiveType:
		r.fail(posOf(n), "tags and directives are not read; remove this one")
	case ast.NullType:
		r.fail(posOf(n), "there is no value here; give one, or remove the key")
	default:
		return true
	}
	return false
}

func (r *reader) mismatch(n ast.Node, want string) {
	got := strings.TrimSpace(n.String())
	if len(got) > 40 {
		got = got[:40] + "…"
	}
	r.fail(posOf(n), "%q is not %s", got, want)
}
