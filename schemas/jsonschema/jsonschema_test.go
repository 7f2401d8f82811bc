package jsonschema

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	validator "github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/writ-sh/writ/schemas"
)

func TestCheckedInSchemasAreThoseOfTheGoTypes(t *testing.T) {
	docs, err := Documents("..")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range docs {
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the types say; run go generate ./schemas/jsonschema", name)
		}
	}
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) != len(docs) {
		t.Errorf("files %v, documents %v", files, slices.Sorted(maps.Keys(docs)))
	}
}

func TestNoTypeThatCrossesAWireIsLeftOut(t *testing.T) {
	src, err := readSources("..", "../capability")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, typ := range slices.Concat(bodies, control, claims) {
		listed[typ.Name()] = true
	}
	for name := range src.types {
		if !listed[name] {
			t.Errorf("%s has JSON tags and stands in no document", name)
		}
	}
	used := map[string]bool{}
	for _, rule := range schemas.HeaderRules() {
		for _, name := range slices.Concat(rule.Must, rule.May) {
			used[name] = true
			if headerValues[name] == nil {
				t.Errorf("header %s has no form", name)
			}
		}
	}
	for name := range headerValues {
		if !used[name] && !strings.HasPrefix(name, "ce-") {
			t.Errorf("no kind carries header %s", name)
		}
	}
	for key := range refinements {
		owner, field, _ := strings.Cut(key, ".")
		found := false
		for _, typ := range slices.Concat(bodies, control, claims) {
			f, ok := fieldsOf(typ)[field]
			found = found || ok && (owner == "*" || owner == f.owner.Name())
		}
		if !found {
			t.Errorf("refinement %s is of no field", key)
		}
	}
}

// compiler reads the checked-in files; what they refer to must be among them.
func compiler(t *testing.T) *validator.Compiler {
	t.Helper()
	c := validator.NewCompiler()
	c.DefaultDraft(validator.Draft2020)
	c.AssertFormat()
	files, err := filepath.Glob("*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := validator.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AddResource(base+file, doc); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func compile(t *testing.T, c *validator.Compiler, ref string) *validator.Schema {
	t.Helper()
	s, err := c.Compile(base + ref)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func valid(t *testing.T, s *validator.Schema, text []byte) error {
	t.Helper()
	v, err := validator.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s.Validate(v)
}

// examples are strings that fit a pattern.
var examples = map[string]string{
	whole(idPattern): "analyst-7", whole(hex32): strings.Repeat("ab", 16), whole(hex64): strings.Repeat("ab", 32),
	whole(nkeyPattern): "U" + strings.Repeat("A", 55), whole(scopePattern): "read:data.x",
	whole(`(call|read|write):` + resourcePattern):     "read:data",
	whole(scopePattern + `( ` + scopePattern + `)*`):  "memory:get read:data.x",
	whole(`spiffe://[a-z0-9._-]+/issuer`):             "spiffe://acme.example/issuer",
	whole(`spiffe://[a-z0-9._-]+/agent/` + idPattern): "spiffe://acme.example/agent/analyst-7",
	whole(`[!-~]{1,255}`):                             "x", whole(`[A-Za-z0-9_-]{43}`): strings.Repeat("a", 43),
}

// fill sets everything in a value, so that every key is written.
func fill(t *testing.T, v reflect.Value, r object, depth int) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 3, 1, 12, 0, 0, 42, time.UTC)))
	case v.Type() == reflect.TypeFor[schemas.Lock]():
		v.SetString(string(schemas.Paused))
	case v.Kind() == reflect.Pointer:
		if depth < 4 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem(), nil, depth+1)
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		items, _ := r["items"].(object)
		fill(t, v.Index(0), items, depth+1)
	case v.Kind() == reflect.Map:
		elem := reflect.New(v.Type().Elem()).Elem()
		fill(t, elem, nil, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), elem)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			fill(t, v.Field(i), refinement(v.Type().Name(), name, f.Type), depth+1)
		}
	case v.Kind() == reflect.String:
		switch pattern, _ := r["pattern"].(string); {
		case r["enum"] != nil:
			v.SetString(r["enum"].([]string)[0])
		case pattern == "":
			v.SetString("text")
		case examples[pattern] == "":
			t.Fatalf("no example of %s", pattern)
		default:
			v.SetString(examples[pattern])
		}
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(1)
	case v.CanUint():
		v.SetUint(1)
	case v.CanFloat():
		v.SetFloat(1.5)
	default:
		t.Fatalf("no example of %s", v.Type())
	}
}

// What Go writes fits the schema, and what the schema refuses about keys, Go
// refuses too.
func TestSchemasAndGoTypesAgreeOnEveryType(t *testing.T) {
	c := compiler(t)
	for file, types := range map[string][]reflect.Type{"bodies.json": bodies, "control.json": control, "capability.json": claims} {
		for _, typ := range types {
			t.Run(typ.Name(), func(t *testing.T) {
				s := compile(t, c, file+"#/$defs/"+typ.Name())
				v := reflect.New(typ)
				fill(t, v.Elem(), nil, 0)
				full := schemas.Marshal(v.Interface())
				if err := valid(t, s, full); err != nil {
					t.Errorf("%s: %v", full, err)
				}
				if err := schemas.Unmarshal(full, reflect.New(typ).Interface()); err != nil {
					t.Error(err)
				}
				keys := map[string]json.RawMessage{}
				if err := json.Unmarshal(full, &keys); err != nil {
					t.Fatal(err)
				}
				fields := fieldsOf(typ)
				if len(keys) != len(fields) {
					t.Errorf("Go writes %v, the schema has %v", slices.Sorted(maps.Keys(keys)), slices.Sorted(maps.Keys(fields)))
				}
				for name, f := range fields {
					without := maps.Clone(keys)
					delete(without, name)
					if err := valid(t, s, schemas.Marshal(without)); (err == nil) != f.optional {
						t.Errorf("without %s: %v", name, err)
					}
				}
				keys["admin"] = json.RawMessage("true")
				more := schemas.Marshal(keys)
				if valid(t, s, more) == nil || schemas.Unmarshal(more, reflect.New(typ).Interface()) == nil {
					t.Error("an unknown key is taken")
				}
			})
		}
	}
}

func TestGoldenEventsFitTheirSchemaAndNoOther(t *testing.T) {
	files, err := filepath.Glob("../testdata/events/*")
	if err != nil || len(files) < 2*len(schemas.Kinds()) {
		t.Fatal(len(files), err)
	}
	c := compiler(t)
	all := compile(t, c, "event.json")
	for _, file := range files {
		kind := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		own := compile(t, c, "event.json#/$defs/"+kind)
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := bytes.Cut(raw, []byte("\n\n"))
		headers := map[string]string{}
		for _, line := range strings.Split(string(head), "\n")[1:] {
			name, value, _ := strings.Cut(line, ": ")
			headers[name] = value
		}
		text := schemas.Marshal(headers)
		if err := valid(t, own, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if err := valid(t, all, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for name, value := range map[string]string{"Status": "409", "writ-lock": "killed", "Writ-Trace": "x", "ce-time": "2026-03-01T12:00:00Z", "ce-id": " a", "ce-source": "a\rb", "Writ-Operation": "*"} {
			changed := maps.Clone(headers)
			changed[name] = value
			if valid(t, own, schemas.Marshal(changed)) == nil {
				t.Errorf("%s: %s %q is taken", file, name, value)
			}
		}
		for name := range headers {
			changed := maps.Clone(headers)
			delete(changed, name)
			if name == "ce-type" && valid(t, all, schemas.Marshal(changed)) == nil {
				t.Errorf("%s without %s is taken", file, name)
			}
		}
	}
}

func TestGoldenTokenFitsItsSchemas(t *testing.T) {
	c := compiler(t)
	raw, err := os.ReadFile("../capability/testdata/token.jwt")
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(raw), ".")[:2] {
		text, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(t, compile(t, c, "capability.json#/$defs/"+[]string{"Header", "Claims"}[i]), text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	set, err := os.ReadFile("../capability/testdata/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	keys := compile(t, c, "capability.json#/$defs/KeySet")
	if err := valid(t, keys, set); err != nil {
		t.Error(err)
	}
	if valid(t, keys, bytes.Replace(set, []byte(`"kty"`), []byte(`"d":"x","kty"`), 1)) == nil {
		t.Error("a private key is taken")
	}
}

func TestScopesWithWildcardsFitNoSchema(t *testing.T) {
	s := compile(t, compiler(t), "bodies.json#/$defs/Ceiling")
	for scope, ok := range map[string]bool{"read:data.x": true, "memory:get": true, "call:pandas": true,
		"read:*": false, "read:>": false, "*:data": false, "read:data.*": false, "read:a..b": false, "READ:a": false, "read:a\n": false, "memory:get.k": false, "exec:a": false} {
		if err := valid(t, s, []byte(fmt.Sprintf(`{"scope":[%q]}`, scope))); (err == nil) != ok {
			t.Errorf("%q: %v", scope, err)
		}
	}
}
