package schemas

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestStrictJSONHasOneReading(t *testing.T) {
	type inner struct {
		X int `json:"x"`
	}
	type embedded struct {
		Limit int    `json:"limit"`
		Name  string `json:"name"`
	}
	type sample struct {
		embedded
		Name  string           `json:"name"`
		Sub   *inner           `json:"sub,omitempty"`
		List  []inner          `json:"list"`
		Map   map[string]inner `json:"map"`
		Raw   json.RawMessage  `json:"raw"`
		Any   any              `json:"any"`
		At    time.Time        `json:"at"`
		Bytes []byte           `json:"bytes"`
		Plain bool
		Gone  int `json:"-"`
	}
	good := `{"name":"a","limit":3,"sub":{"x":1},"list":[{"x":2},{"x":3}],"map":{"K":{"x":4}},"raw":{"Z":1},"any":{"Y":[{}]},"at":"2026-03-01T12:00:00Z","bytes":"AA==","Plain":true}`
	var s sample
	if err := Unmarshal([]byte(good), &s); err != nil || s.Limit != 3 || s.Name != "a" || s.List[1].X != 3 {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, text := range map[string]string{
		"unknown":                         `{"surprise":1}`,
		"unknown in a struct":             `{"sub":{"y":1}}`,
		"unknown in a list":               `{"list":[{"x":1},{"y":1}]}`,
		"unknown in a map":                `{"map":{"k":{"y":1}}}`,
		"twice":                           `{"name":"a","name":"b"}`,
		"twice, escaped":                  `{"name":"a","n\u0061me":"b"}`,
		"twice in a struct":               `{"sub":{"x":1,"x":2}}`,
		"twice in a map":                  `{"map":{"k":{},"k":{}}}`,
		"twice in raw JSON":               `{"raw":{"a":1,"a":2}}`,
		"twice deep in any":               `{"any":[{"a":{"b":1,"b":2}}]}`,
		"upper case":                      `{"NAME":"a"}`,
		"both cases":                      `{"name":"a","Name":"b"}`,
		"folded by Unicode, long s":       `{"ſub":{"x":1}}`,
		"folded by Unicode, in embedded":  `{"lımit":1}`,
		"lower case of an untagged field": `{"plain":true}`,
		"field that is no key":            `{"Gone":1}`,
		"behind the end":                  `{} {}`,
		"bracket behind the end":          `{}]`,
		"no UTF-8":                        "{\"name\":\"\xff\"}",
		"open":                            `{"name":"a"`,
		"nothing":                         ``,
		"text for a number":               `{"limit":"3"}`,
		"deep":                            `{"any":` + strings.Repeat("[", 80) + strings.Repeat("]", 80) + `}`,
		"a megabyte of brackets":          strings.Repeat("[", 1<<20),
		"a megabyte of objects":           strings.Repeat(`{"any":`, 1<<17),
	} {
		var s sample
		if err := Unmarshal([]byte(text), &s); !errors.Is(err, ErrJSON) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// What the strict reader takes, the standard one understands in the same way,
// and writing it down changes nothing.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(Marshal(Grant{JTI: "j", Scope: []string{"read:a"}})))
	f.Add([]byte(`{"jti":null,"scope":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var g, std, again Grant
		if Unmarshal(data, &g) != nil {
			return
		}
		if err := json.Unmarshal(data, &std); err != nil || !reflect.DeepEqual(g, std) {
			t.Fatalf("%+v, %+v, %v", g, std, err)
		}
		out, err := json.Marshal(g)
		if err != nil {
			return // a year beyond 9999 can be read, not written
		}
		if err := Unmarshal(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}

func TestRefusalsAreUnderstoodByStockClients(t *testing.T) {
	r := Refuse(CodeHeld, "held\r\nNats-Rollup: %s", "all")
	r.Seq = 7
	if r.Text != "held  Nats-Rollup: all" || r.Error() != "423 held  Nats-Rollup: all" {
		t.Errorf("%q", r.Text)
	}
	want := Header{"Nats-Service-Error-Code": {"423"}, "Nats-Service-Error": {r.Text}, "Writ-Seq": {"7"}}
	if !reflect.DeepEqual(r.Header(), want) {
		t.Errorf("%v", r.Header())
	}
	if string(r.Body()) != `{"error":{"code":423,"err_code":20423,"description":"held  Nats-Rollup: all"}}` {
		t.Errorf("%s", r.Body())
	}
}

// Somebody writes JSON that the quick reader might take for our own. Whatever
// becomes of a text that we wrote, both readers say the same of it; and the quick
// one passes over types that carry JSON of others.
func TestTheQuickReaderIsAsStrict(t *testing.T) {
	whole := Marshal(Grant{JTI: "j", Agent: "a", Operation: "op", Scope: []string{"read:a", "call:b"}, ForbiddenTools: []string{"<c>"}, NotBefore: time.Unix(1e9, 0).UTC(),
		Expires: time.Unix(1e9+300, 0).UTC(), MaxTokens: 7, Task: "ünd so weiter\u2028", Act: []string{"b"}})
	var g Grant
	if !verbatim(whole, &g) || g.Task != "ünd so weiter\u2028" {
		t.Fatalf("what our encoder wrote was not read at once: %+v", g)
	}
	same := func(text []byte) {
		t.Helper()
		var quick, strict Grant
		qerr, serr := Unmarshal(text, &quick), strictly(text, &strict)
		if (qerr == nil) != (serr == nil) || serr == nil && !reflect.DeepEqual(quick, strict) {
			t.Errorf("%s:\n%v %+v\n%v %+v", text, qerr, quick, serr, strict)
		}
	}
	pieces := []string{`"jti":"k",`, `"JTI":"k",`, `"surprise":1,`, ` `, `,`, `{}`, "\xff", `\u006a`, `null`, `"`, `0`, "\u017f"}
	for at := range len(whole) + 1 {
		for _, p := range pieces {
			same([]byte(string(whole[:at]) + p + string(whole[at:])))
		}
		if at < len(whole) {
			same(append(append([]byte{}, whole[:at]...), whole[at+1:]...))
		}
	}
	type raw struct {
		Raw json.RawMessage `json:"raw"`
	}
	type any_ struct {
		Any any `json:"any"`
	}
	type deep struct {
		Deep *deep `json:"deep"`
	}
	for _, c := range []struct {
		text string
		v    any
	}{{`{"raw":{"a":1,"a":2}}`, &raw{}}, {`{"any":{"a":1}}`, &any_{}}, {`{"deep":null}`, &deep{}}, {string(whole), &Grant{JTI: "before"}}} {
		if verbatim([]byte(c.text), c.v) {
			t.Errorf("%T was read without the strict reader", c.v)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	data := Marshal(Grant{JTI: "j", Agent: "a", Operation: "op", Scope: []string{"ask:b", "call:echo", "send:b"}, ForbiddenTools: []string{"bash"}, NotBefore: time.Unix(1e9, 0).UTC(),
		Expires: time.Unix(1e9+300, 0).UTC(), Task: "measure", Token: strings.Repeat("t", 1200)})
	for _, how := range []struct {
		name string
		read func([]byte, any) error
	}{{"own", Unmarshal}, {"strict", strictly}} {
		b.Run(how.name, func(b *testing.B) {
			for b.Loop() {
				var g Grant
				if err := how.read(data, &g); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
