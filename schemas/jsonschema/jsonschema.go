// Package jsonschema writes the JSON Schemas (draft 2020-12) of all that Writ's
// services say to one another and to their clients:
//
//	bodies.json      bodies of events, the verdict included
//	event.json       headers of events, one schema for each kind
//	control.json     the operators' interface, and the answers that clients see
//	capability.json  a capability token's header and claims, and the key set
//
// They are derived from the Go types that encode and decode these texts, with
// their comments as descriptions, and checked in; a test fails where one has
// changed without the other. The Go decoders are stricter than a schema can be
// (duplicate keys, digests, order of times) and stay the authority.
package jsonschema

//go:generate go run ./generate

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

const (
	draft = "https://json-schema.org/draft/2020-12/schema"
	base  = "https://writ.sh/schemas/"
)

// object is one JSON object of a schema; encoding/json sorts its keys.
type object = map[string]any

// The types of each document, and for events the kinds that carry them.
var (
	bodies = []reflect.Type{
		reflect.TypeFor[schemas.Principal](), reflect.TypeFor[schemas.Ceiling](), reflect.TypeFor[schemas.Exception](), reflect.TypeFor[schemas.Tool](),
		reflect.TypeFor[schemas.Rate](), reflect.TypeFor[schemas.Thresholds](), reflect.TypeFor[schemas.Policy](),
		reflect.TypeFor[schemas.SignalSource](), reflect.TypeFor[schemas.Signal](),
		reflect.TypeFor[schemas.Grant](), reflect.TypeFor[schemas.Violation](), reflect.TypeFor[schemas.Alarm](), reflect.TypeFor[schemas.Certificate](), reflect.TypeFor[schemas.Enrolment](), reflect.TypeFor[schemas.Warrant](), reflect.TypeFor[schemas.Rotation](), reflect.TypeFor[schemas.Verdict](),
		reflect.TypeFor[schemas.Factor](),
	}
	control = []reflect.Type{
		reflect.TypeFor[schemas.ApplyRequest](), reflect.TypeFor[schemas.Change](), reflect.TypeFor[schemas.ApplyReply](),
		reflect.TypeFor[schemas.EnrollRequest](), reflect.TypeFor[schemas.EnrollReply](),
		reflect.TypeFor[schemas.CertificateRequest](), reflect.TypeFor[schemas.CertificateReply](),
		reflect.TypeFor[schemas.IssueRequest](), reflect.TypeFor[schemas.IssueReply](),
		reflect.TypeFor[schemas.JoinRequest](), reflect.TypeFor[schemas.LockdownRequest](), reflect.TypeFor[schemas.LockdownReply](), reflect.TypeFor[schemas.RotateRequest](), reflect.TypeFor[schemas.RotateReply](), reflect.TypeFor[schemas.WarrantRequest](), reflect.TypeFor[schemas.WarrantReply](),
		reflect.TypeFor[schemas.RefreshRequest](), reflect.TypeFor[schemas.ReleaseRequest](),
		reflect.TypeFor[schemas.LockRequest](), reflect.TypeFor[schemas.Receipt](),
		reflect.TypeFor[schemas.TokensRequest](), reflect.TypeFor[schemas.TokenInfo](), reflect.TypeFor[schemas.TokensReply](),
		reflect.TypeFor[schemas.RevokeRequest](), reflect.TypeFor[schemas.RevokeReply](),
		reflect.TypeFor[schemas.BudgetsRequest](), reflect.TypeFor[schemas.OperationRef](),
		reflect.TypeFor[schemas.BudgetsReply](), reflect.TypeFor[schemas.BudgetInfo](),
		reflect.TypeFor[schemas.LocksRequest](), reflect.TypeFor[schemas.LocksReply](), reflect.TypeFor[schemas.LockInfo](),
		reflect.TypeFor[schemas.ReviewRequest](), reflect.TypeFor[schemas.ReviewReply](),
		reflect.TypeFor[schemas.PageRequest](), reflect.TypeFor[schemas.Review](), reflect.TypeFor[schemas.ReviewsReply](),
		reflect.TypeFor[schemas.StatusRequest](), reflect.TypeFor[schemas.AgentStatus](), reflect.TypeFor[schemas.Expiry](), reflect.TypeFor[schemas.StatusReply](),
		reflect.TypeFor[schemas.Head](), reflect.TypeFor[schemas.Published](), reflect.TypeFor[schemas.WitnessState](), reflect.TypeFor[schemas.HeadRequest](), reflect.TypeFor[schemas.VerifyReply](),
		reflect.TypeFor[schemas.ProveRequest](), reflect.TypeFor[schemas.Proof](),
		reflect.TypeFor[schemas.ShowRequest](), reflect.TypeFor[schemas.Shown](), reflect.TypeFor[schemas.ShowReply](), reflect.TypeFor[schemas.ShownHandover](),
		reflect.TypeFor[schemas.ReadRequest](), reflect.TypeFor[schemas.Record](), reflect.TypeFor[schemas.ReadReply](),
		reflect.TypeFor[schemas.Verified](),
		reflect.TypeFor[schemas.EraseRequest](), reflect.TypeFor[schemas.EraseReply](),
		reflect.TypeFor[schemas.BackupRequest](), reflect.TypeFor[schemas.BackupReply](),
		reflect.TypeFor[schemas.PruneRequest](), reflect.TypeFor[schemas.PruneArchive](), reflect.TypeFor[schemas.PruneReply](),
		reflect.TypeFor[schemas.HandOverRequest](), reflect.TypeFor[schemas.HandOverReply](),
		reflect.TypeFor[schemas.RisksRequest](), reflect.TypeFor[schemas.RisksReply](), reflect.TypeFor[schemas.AgentRisk](),
		reflect.TypeFor[schemas.ShadowRequest](), reflect.TypeFor[schemas.ShadowReply](), reflect.TypeFor[schemas.ShadowDifference](),
		reflect.TypeFor[schemas.RiskRequest](), reflect.TypeFor[schemas.RiskReply](), reflect.TypeFor[schemas.RiskPoint](), reflect.TypeFor[schemas.RiskSaying](),
		reflect.TypeFor[schemas.SignalRequest](), reflect.TypeFor[schemas.SignalReply](), reflect.TypeFor[schemas.TokenRequest](), reflect.TypeFor[schemas.TokenReply](),
		reflect.TypeFor[schemas.Health](), reflect.TypeFor[schemas.Ack](), reflect.TypeFor[schemas.AckError](),
	}
	claims = []reflect.Type{
		reflect.TypeFor[capability.Claims](), reflect.TypeFor[capability.Task](), reflect.TypeFor[capability.Confirm](),
		reflect.TypeFor[capability.Actor](),
	}
)

// Documents gives every schema by file name. dir is the folder of package
// schemas: its sources give the descriptions and the operations.
func Documents(dir string) (map[string][]byte, error) {
	src, err := readSources(dir, dir+"/capability")
	if err != nil {
		return nil, fmt.Errorf("derive JSON schemas: %w", err)
	}
	g := &generator{src: src, home: map[reflect.Type]string{}}
	for file, types := range map[string][]reflect.Type{"bodies.json": bodies, "control.json": control, "capability.json": claims} {
		for _, t := range types {
			g.home[t] = file
		}
	}
	docs := map[string]object{
		"bodies.json":     g.document("bodies.json", "Bodies of events", bodies),
		"control.json":    g.document("control.json", "The operators' interface", control),
		"capability.json": g.document("capability.json", "The capability token", claims),
		"event.json":      eventDocument(),
	}
	docs["control.json"]["x-operations"] = g.operations()
	defs := docs["capability.json"]["$defs"].(object)
	defs["Header"], defs["KeySet"] = tokenHeader(), keySet()
	out := make(map[string][]byte, len(docs))
	for name, doc := range docs {
		b, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("derive %s: %w", name, err)
		}
		out[name] = append(b, '\n')
	}
	if len(g.errs) > 0 {
		return nil, fmt.Errorf("derive JSON schemas: %s", strings.Join(g.errs, "; "))
	}
	return out, nil
}

// A generator derives schemas; home says in which document a type is defined.
type generator struct {
	src  *sources
	home map[reflect.Type]string
	errs []string
}

func (g *generator) document(file, title string, types []reflect.Type) object {
	defs := object{}
	for _, t := range types {
		defs[t.Name()] = g.structure(file, t)
	}
	return object{"$schema": draft, "$id": base + file, "title": title, "$defs": defs}
}

// structure is the schema of a struct: closed, with what is never left out
// required.
func (g *generator) structure(file string, t reflect.Type) object {
	properties, required := object{}, []string{}
	for name, f := range fieldsOf(t) {
		s := g.value(file, f.Type)
		if !f.optional && nilable(f.Type) {
			s["type"] = []string{s["type"].(string), "null"}
		}
		maps.Copy(s, refinement(f.owner.Name(), name, f.Type))
		if d := g.src.field(f.owner.Name(), f.Name); d != "" {
			s["description"] = d
		}
		properties[name] = s
		if !f.optional {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	s := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	if d := g.src.types[t.Name()]; d != "" {
		s["description"] = d
	}
	return s
}

// A structField is one key of a struct's JSON form; owner is the struct that
// declares it, which for an embedded one is another.
type structField struct {
	reflect.StructField
	owner    reflect.Type
	optional bool
}

func fieldsOf(t reflect.Type) map[string]structField {
	out := map[string]structField{}
	var embedded []reflect.Type
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			embedded = append(embedded, f.Type)
		case f.IsExported() && name != "-":
			if name == "" {
				name = f.Name
			}
			out[name] = structField{f, t, strings.Contains(options, "omitempty")}
		}
	}
	for _, e := range embedded {
		for name, f := range fieldsOf(e) {
			if _, shadowed := out[name]; !shadowed {
				out[name] = f
			}
		}
	}
	return out
}

// nilable reports whether Go writes null for the type's zero value.
func nilable(t reflect.Type) bool {
	return t.Kind() == reflect.Slice || t.Kind() == reflect.Map
}

var integers = map[reflect.Kind]bool{reflect.Int: true, reflect.Int64: true, reflect.Uint64: true}

func (g *generator) value(file string, t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[schemas.Lock]():
		return object{"type": "string", "enum": []schemas.Lock{schemas.Active, schemas.Paused, schemas.Suspended, schemas.Killed}}
	case t == reflect.TypeFor[[]byte]():
		return object{"type": "string", "contentEncoding": "base64"}
	case t.Kind() == reflect.Pointer:
		return g.value(file, t.Elem())
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "items": g.value(file, t.Elem())}
	case t.Kind() == reflect.Map:
		return object{"type": "object", "additionalProperties": g.value(file, t.Elem())}
	case t.Kind() == reflect.Struct:
		home := g.home[t]
		if home == file {
			home = ""
		} else if home == "" {
			g.errs = append(g.errs, fmt.Sprintf("%s belongs to no document", t))
		}
		return object{"$ref": home + "#/$defs/" + t.Name()}
	case t.Kind() == reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case integers[t.Kind()]:
		return object{"type": "integer"}
	case t.Kind() == reflect.Float64:
		return object{"type": "number"}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	case t.Kind() == reflect.String:
		return object{"type": "string"}
	}
	g.errs = append(g.errs, fmt.Sprintf("%s has no schema", t))
	return object{}
}

var operation = regexp.MustCompile(`^(\w+) → (\w+)`)

// operations lists the subjects of the operators' interface with what is asked
// and answered, as the constants' comments say.
func (g *generator) operations() []object {
	out := []object{}
	known := map[string]string{"KeySet": "capability.json"}
	for t, file := range g.home {
		known[t.Name()] = file
	}
	for _, c := range g.src.constants {
		if !strings.HasPrefix(c.name, "Ctl") {
			continue
		}
		op := object{"subject": c.value, "description": c.comment}
		m := operation.FindStringSubmatch(c.comment)
		if m == nil {
			g.errs = append(g.errs, c.name+"'s comment is not of the form Request → Reply")
			continue
		}
		for i, side := range []string{"request", "reply"} {
			if file, ok := known[m[i+1]]; ok {
				op[side] = object{"$ref": file + "#/$defs/" + m[i+1]}
			} else if m[i+1] != "nothing" {
				g.errs = append(g.errs, fmt.Sprintf("%s names %s, which is in no document", c.name, m[i+1]))
			}
		}
		out = append(out, op)
	}
	return out
}
