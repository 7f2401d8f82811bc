package jsonschema

import (
	"maps"
	"reflect"
	"slices"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// The grammars that strings follow, as regular expressions (ECMA 262).
const (
	idPattern       = `[a-z0-9][a-z0-9_-]{0,62}`
	resourcePattern = idPattern + `(\.` + idPattern + `)*`
	scopePattern    = `((call|send|ask):` + idPattern + `|(read|write):` + resourcePattern + `|memory:(get|put|delete|list))`
	actionPattern   = `((call|send|ask):` + idPattern + `|(read|write):` + resourcePattern + `|memory:(list|(get|put|delete)\.` + resourcePattern + `))`
	hex16, hex32    = `[0-9a-f]{16}`, `[0-9a-f]{32}`
	hex64           = `[0-9a-f]{64}`
	nkeyPattern     = `U[A-Z2-7]{55}`
	numberPattern   = `(0|[1-9][0-9]{0,19})`
	timePattern     = `[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z`
	textPattern     = `[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?`
)

func whole(pattern string) string { return "^" + pattern + "$" }

func matching(pattern string) object { return object{"pattern": whole(pattern)} }

func listOf(pattern string) object {
	return object{"items": object{"type": "string", "pattern": whole(pattern)}, "uniqueItems": true}
}

func bounded(from, to int64) object { return object{"minimum": from, "maximum": to} }

func roles() []string {
	var out []string
	for _, r := range schemas.Roles() {
		out = append(out, string(r))
	}
	return out
}

func oneOf(values ...string) object { return object{"enum": values} }

// refinements say what a Go type alone can't, by struct and key; "*" stands for
// every struct.
var refinements = map[string]object{
	"*.agent_id":                 matching(idPattern),
	"*.operation_id":             matching(idPattern),
	"*.job":                      matching(idPattern),
	"*.trace_id":                 matching(hex32),
	"*.digest":                   matching(hex64),
	"*.payload_sha256":           matching(hex64),
	"*.tools":                    listOf(idPattern),
	"*.forbidden_tools":          listOf(idPattern),
	"*.may_issue_for":            listOf(idPattern),
	"*.jobs":                     listOf(idPattern),
	"*.scope":                    listOf(scopePattern),
	"*.risk":                     bounded(0, 100),
	"*.action_risk":              bounded(0, 100),
	"*.ttl_seconds":              bounded(0, capability.MaxTTL),
	"*.max_tokens":               bounded(0, capability.MaxMaxTokens),
	"*.act":                      listOf(idPattern),
	"*.parent_operation":         matching(idPattern),
	"*.parent_agent":             matching(idPattern),
	"Ceiling.max_tokens_per_day": bounded(0, capability.MaxMaxTokens),
	"Principal.reserve":          bounded(0, capability.MaxMaxTokens),
	"Principal.id":               matching(idPattern),
	"Principal.kind":             oneOf(schemas.KindAgent, schemas.KindService, schemas.KindOperator),
	"Principal.role":             oneOf(roles()...),
	"AgentStatus.kind":           oneOf(schemas.KindAgent, schemas.KindService, schemas.KindOperator),
	"Principal.meter":            oneOf("tokens"),
	"Principal.tools":            {"propertyNames": matching(idPattern)},
	"Principal.serves":           listOf(`(call|read|write):` + resourcePattern),
	"Ceiling.operations":         listOf(idPattern),
	"Tool.class":                 oneOf("read", "write", "egress"),
	"Thresholds.pause":           bounded(0, 100),
	"Thresholds.suspend":         bounded(0, 100),
	"Grant.public_key":           matching(nkeyPattern),
	"Verdict.decision":           oneOf(schemas.Pass, schemas.Pause, schemas.Suspend),
	"Verdict.p_ppm":              bounded(0, 1000000),
	"Alarm.what":                 oneOf(schemas.AlarmForked, schemas.AlarmShortened, schemas.AlarmUnwitnessed),
	"Violation.what":             oneOf("publish", "subscribe"),
	"Change.action":              oneOf("add", "change", "remove"),
	"ReviewReply.state":          oneOf("approved", "denied", "endorsed"),
	"Claims.scope":               matching(scopePattern + `( ` + scopePattern + `)*`),
	"Claims.txn":                 matching(hex32),
	"Claims.iat":                 {"minimum": 1},
	"Claims.nbf":                 {"minimum": 1},
	"Claims.exp":                 {"minimum": 1},
	"Claims.iss":                 matching(`spiffe://[a-z0-9._-]+/issuer`),
	"Claims.sub":                 matching(`spiffe://[a-z0-9._-]+/agent/` + idPattern),
	"Claims.aud":                 matching(`[!-~]{1,255}`),
	"Claims.jti":                 matching(`[!-~]{1,255}`),
	"Claims.issued_by":           matching(`[!-~]{1,255}`),
	"Confirm.nkey":               matching(nkeyPattern),
	"Confirm.x5t#S256":           matching(`[A-Za-z0-9_-]{43}`),
	"Confirm.jkt":                matching(`[A-Za-z0-9_-]{43}`),
	"Claims.parent":              matching(`[!-~]{1,255}`),
	"Actor.sub":                  matching(`[!-~]{1,255}`),
}

// refinement gives what is known of a key beyond its Go type; that of its own
// struct beats the general one, which holds for lists and scalars alone.
func refinement(structName, key string, t reflect.Type) object {
	if r, ok := refinements[structName+"."+key]; ok {
		return r
	}
	r := refinements["*."+key]
	if _, list := r["items"]; list != (t.Kind() == reflect.Slice) {
		return nil
	}
	return r
}

// headerValues are the forms of an event's headers.
var headerValues = map[string]object{
	"ce-id":          matching(textPattern),
	"ce-source":      matching(textPattern),
	"ce-time":        matching(timePattern),
	"content-type":   matching(textPattern),
	"Writ-Trace":     matching(hex32 + `-` + hex16),
	"Writ-Operation": matching(idPattern),
	"Writ-Action":    matching(actionPattern),
	"Writ-To":        matching(idPattern),
	"Writ-Jti":       matching(textPattern),
	"Writ-Request":   matching(hex32),
	"Writ-Reply":     matching(textPattern),
	"Writ-Expires":   matching(timePattern),
	"Writ-Msg-Id":    matching(textPattern),
	"Writ-Digest":    matching(hex64),
	"Writ-Input":     matching(hex64),
	"Writ-Ref":       matching(numberPattern),
	"Writ-Code":      matching(`[1-9][0-9]{2}`),
	"Writ-Reason":    matching(textPattern),
	"Writ-Tokens":    matching(numberPattern),
	"Writ-Latency":   matching(numberPattern),
	"Writ-Lock":      oneOf("active", "paused", "suspended", "killed"),
	"Writ-Verdict":   {"contentMediaType": "application/json", "contentSchema": object{"$ref": "bodies.json#/$defs/Verdict"}},
	"Writ-Risk":      matching(`(100|[1-9]?[0-9])`),
	"Writ-Final":     {"const": "1"},
	"Writ-Actor":     matching(textPattern),
	"Writ-Empty":     {"const": "1"},
	"Writ-Reserve":   matching(numberPattern),
	"Writ-Act":       matching(idPattern + `( ` + idPattern + `){0,4}`),
}

// eventDocument is the table of the event codec.
func eventDocument() object {
	defs, kinds := object{}, []object{}
	for name, form := range headerValues {
		v := object{"type": "string"}
		maps.Copy(v, form)
		defs[name] = v
	}
	for _, rule := range schemas.HeaderRules() {
		properties := object{
			"ce-specversion": object{"const": "1.0"},
			"ce-type":        object{"const": "sh.writ." + string(rule.Kind)},
			"ce-source":      object{"$ref": "#/$defs/ce-source"},
			"ce-id":          object{"$ref": "#/$defs/ce-id"},
			"ce-time":        object{"$ref": "#/$defs/ce-time"},
		}
		required := []string{"ce-id", "ce-source", "ce-specversion", "ce-time", "ce-type"}
		for _, name := range slices.Concat(rule.Must, rule.May) {
			properties[name] = object{"$ref": "#/$defs/" + name}
		}
		s := object{
			"type": "object", "properties": properties, "required": append(required, rule.Must...),
			"patternProperties":    object{"^Nats-": true}, // what the server adds
			"additionalProperties": false,
		}
		if _, ok := properties["Writ-Verdict"]; ok {
			s["dependentRequired"] = object{"Writ-Verdict": []string{"Writ-Risk"}, "Writ-Risk": []string{"Writ-Verdict"}}
		}
		defs[string(rule.Kind)] = s
		kinds = append(kinds, object{"$ref": "#/$defs/" + string(rule.Kind)})
	}
	return object{
		"$schema": draft, "$id": base + "event.json", "title": "Headers of events",
		"description": "Headers of an event in the log (CloudEvents 1.0, binary mode over NATS), by kind. Its subject is ev.<agent>.<kind>; an empty body is flagged Writ-Empty and stands as one zero byte.",
		"$defs":       defs, "oneOf": kinds,
	}
}

// tokenHeader and keySet are what surrounds a capability's claims.
func tokenHeader() object {
	return object{
		"type": "object", "description": "The protected header of a token: exactly these.",
		"properties": object{
			"alg": object{"const": "EdDSA"},
			"kid": object{"type": "string", "pattern": whole(`[A-Za-z0-9_-]{43}`), "description": "RFC 7638 thumbprint of the key."},
			"typ": object{"const": capability.Type},
		},
		"required": []string{"alg", "kid", "typ"}, "additionalProperties": false,
	}
}

func keySet() object {
	key := object{
		"type": "object",
		"properties": object{
			"use": object{"const": "sig"}, "kty": object{"const": "OKP"}, "crv": object{"const": "Ed25519"}, "alg": object{"const": "EdDSA"},
			"kid": object{"type": "string", "pattern": whole(`[A-Za-z0-9_-]{43}`)},
			"x":   object{"type": "string", "pattern": whole(`[A-Za-z0-9_-]{43}`)},
		},
		"required": []string{"use", "kty", "kid", "crv", "alg", "x"}, "additionalProperties": false,
	}
	return object{
		"type": "object", "description": "The JWK Set of the issuer (RFC 7517, RFC 8037).",
		"properties": object{"keys": object{"type": "array", "items": key, "minItems": 1, "maxItems": 64, "uniqueItems": true}},
		"required":   []string{"keys"}, "additionalProperties": false,
	}
}
