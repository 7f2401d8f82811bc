package issuer_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A document is openapi.json. Schemas of OpenAPI 3.1 are JSON Schema 2020-12:
// a library judges them.
type document struct {
	t        *testing.T
	compiler *jsonschema.Compiler
	api      struct {
		OpenAPI    string                          `json:"openapi"`
		Paths      map[string]map[string]operation `json:"paths"`
		Components struct {
			Responses map[string]response `json:"responses"`
			Headers   map[string]header   `json:"headers"`
		} `json:"components"`
	}
}

type operation struct {
	RequestBody struct {
		Content map[string]media `json:"content"`
	} `json:"requestBody"`
	Responses map[string]response `json:"responses"`
}

type response struct {
	Ref     string            `json:"$ref"`
	Headers map[string]header `json:"headers"`
	Content map[string]media  `json:"content"`
}

type header struct {
	Ref      string `json:"$ref"`
	Required bool   `json:"required"`
}

type media struct {
	Schema struct {
		Ref string `json:"$ref"`
	} `json:"schema"`
}

func readDocument(t *testing.T) *document {
	t.Helper()
	raw, err := os.ReadFile("openapi.json")
	must(t, err)
	d := &document{t: t, compiler: jsonschema.NewCompiler()}
	must(t, json.Unmarshal(raw, &d.api))
	if d.api.OpenAPI != "3.1.0" || len(d.api.Paths) != 9 {
		t.Fatalf("OpenAPI %q with %d paths", d.api.OpenAPI, len(d.api.Paths))
	}
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	must(t, err)
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	d.compiler.AssertFormat()
	must(t, d.compiler.AddResource("openapi.json", whole))
	return d
}

func (d *document) operation(r *http.Request) (operation, error) {
	at := strings.Split(r.URL.Path, "/")
	for path, methods := range d.api.Paths {
		fits := slices.EqualFunc(strings.Split(path, "/"), at, func(want, got string) bool {
			return want == got || strings.HasPrefix(want, "{") && got != ""
		})
		if o, ok := methods[strings.ToLower(r.Method)]; ok && fits {
			return o, nil
		}
	}
	return operation{}, fmt.Errorf("there is no %s %s", r.Method, r.URL.Path)
}

// request judges the body of a request.
func (d *document) request(r *http.Request, body []byte) error {
	o, err := d.operation(r)
	if err != nil {
		return err
	}
	return d.judge(o.RequestBody.Content, r.Header.Get("Content-Type"), body)
}

// answer judges status, headers and body of an answer.
func (d *document) answer(r *http.Request, res *http.Response, body []byte) error {
	o, err := d.operation(r)
	if err != nil {
		return err
	}
	said, ok := o.Responses[strconv.Itoa(res.StatusCode)]
	if !ok {
		return fmt.Errorf("there is no answer %d", res.StatusCode)
	}
	if said.Ref != "" {
		if said, ok = d.api.Components.Responses[strings.TrimPrefix(said.Ref, "#/components/responses/")]; !ok {
			return fmt.Errorf("answer %d refers to nothing", res.StatusCode)
		}
	}
	for name, h := range said.Headers {
		if h.Ref != "" {
			if h, ok = d.api.Components.Headers[strings.TrimPrefix(h.Ref, "#/components/headers/")]; !ok {
				return fmt.Errorf("header %s refers to nothing", name)
			}
		}
		if h.Required && res.Header.Get(name) == "" {
			return fmt.Errorf("header %s is missing", name)
		}
	}
	return d.judge(said.Content, res.Header.Get("Content-Type"), body)
}

func (d *document) judge(content map[string]media, contentType string, body []byte) error {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return err
	}
	m, ok := content[kind]
	if !ok {
		return fmt.Errorf("content %s is not described", kind)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil || m.Schema.Ref == "" {
		return err
	}
	schema, err := d.compiler.Compile("openapi.json" + m.Schema.Ref)
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// The judge itself must be able to say no.
func TestTheDocumentRefusesWhatItDoesNotDescribe(t *testing.T) {
	d := readDocument(t)
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://h/v1/tokens", nil)
	must(t, err)
	r.Header.Set("Content-Type", "application/json")
	must(t, d.request(r, []byte(`{"operation_id":"x"}`)))
	for _, bad := range []string{`{}`, `{"operation_id":"X"}`, `{"operation_id":"x","actor":"root"}`, `{"operation_id":"x","scope":"read:a"}`, `[`} {
		if d.request(r, []byte(bad)) == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	good := &http.Response{StatusCode: 401, Header: http.Header{"Content-Type": {"application/problem+json"}, "Www-Authenticate": {"DPoP x"}, "Dpop-Nonce": {"n"}}}
	body := []byte(`{"title":"Unauthorized","status":401,"code":401}`)
	must(t, d.answer(r, good, body))
	if d.answer(r, &http.Response{StatusCode: 401, Header: http.Header{"Content-Type": {"application/problem+json"}}}, body) == nil {
		t.Error("an answer without its headers is taken")
	}
	if d.answer(r, &http.Response{StatusCode: 418, Header: good.Header}, body) == nil || d.answer(r, good, []byte(`{"status":401}`)) == nil {
		t.Error("an answer that is not described is taken")
	}
}
