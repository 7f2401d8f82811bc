package fleet

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// keyPaths are all keys that a fleet file can have, as docs/fleet.md writes
// them: [] stands for each entry of a list, * for each name of a mapping.
func keyPaths(t reflect.Type, at string) (paths []string) {
	switch {
	case t == reflect.TypeFor[tools]():
		return keyPaths(t.Elem(), at+".*")
	case t == reflect.TypeFor[weights]():
		return nil
	case t.Kind() == reflect.Pointer:
		return keyPaths(t.Elem(), at)
	case t.Kind() == reflect.Slice:
		return keyPaths(t.Elem(), at+"[]")
	case t.Kind() != reflect.Struct:
		return nil
	}
	for key, index := range keysOf(t) {
		path := strings.TrimPrefix(at+"."+key, ".")
		paths = append(append(paths, path), keyPaths(t.FieldByIndex(index).Type, path)...)
	}
	return paths
}

// written are the keys that a document has, in the same form.
func written(v any, at string, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if strings.HasSuffix(at, ".tools") {
				key = "*"
			}
			path := strings.TrimPrefix(at+"."+key, ".")
			into[path] = true
			written(value, path, into)
		}
	case []any:
		for _, entry := range v {
			written(entry, at+"[]", into)
		}
	}
}

// The reference names every key that there is and no other, and its example,
// which has them all, can be applied as it stands.
func TestTheReferenceOfTheFleetFileIsWhole(t *testing.T) {
	doc := string(read(t, "../../docs/fleet.md"))
	want := keyPaths(reflect.TypeFor[document](), "")
	slices.Sort(want)
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\|").FindAllStringSubmatch(doc, -1) {
		got = append(got, m[1])
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("docs/fleet.md describes\n%s\nthere are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	_, example, _ := strings.Cut(doc, "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	if _, err := Parse("docs/fleet.md", []byte(example)); err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := yaml.Unmarshal([]byte(example), &plain); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	written(plain, "", has)
	for _, path := range want {
		if !has[path] {
			t.Errorf("the example lacks %s", path)
		}
	}
}

// The README's fleet is what people begin with.
func TestTheFleetOfTheREADMECanBeApplied(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(readme), "cat > fleet.yaml <<'EOF'\n")
	example, _, end := strings.Cut(example, "\nEOF\n")
	if !ok || !end {
		t.Fatal("README.md has no fleet file")
	}
	if f, err := Parse("README.md", []byte(example)); err != nil || len(f.Principals) == 0 {
		t.Errorf("%+v, %v", f, err)
	}
}
