package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGoodFileIsReadAndNormalised(t *testing.T) {
	data := read(t, "testdata/fleet.yaml")
	f, err := Parse("fleet.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	want := []schemas.Principal{
		{ID: "analyst-7", Kind: "agent", Owner: "finance@acme.example",
			Ceiling: &schemas.Ceiling{
				Scope: []string{"ask:writer-2", "read:data.sales_q1_2026", "send:writer-2"},
				Tools: []string{"llm", "matplotlib", "pandas"}, ForbiddenTools: []string{"bash", "http"},
				TTLSeconds: 600, MaxTokens: 50000, Jobs: []string{"report"}, Operations: []string{"report-2026-q1"}},
			Rate: &schemas.Rate{PerSecond: 2.5, Burst: 10}},
		{ID: "llm", Kind: "service", Serves: []string{"call:llm"}, Streams: true, Meter: "tokens"},
		{ID: "orchestrator", Kind: "agent", MayIssueFor: []string{"analyst-7", "writer-2"}},
		{ID: "toolbox", Kind: "service", Serves: []string{"call:matplotlib", "call:pandas"},
			Tools: map[string]schemas.Tool{"pandas": {Class: "read", Description: "dataframes"}, "matplotlib": {}}},
		{ID: "warehouse", Kind: "service", Owner: "data@acme.example", Serves: []string{"read:data", "write:report"}},
		{ID: "writer-2", Kind: "agent", Owner: "press@acme.example",
			Ceiling:    &schemas.Ceiling{Scope: []string{"memory:get", "memory:put", "write:report.draft.2026q1"}, TTLSeconds: 300},
			Thresholds: &schemas.Thresholds{Pause: 50, Suspend: 90}, MemoryBytes: 1048576},
	}
	if !reflect.DeepEqual(f.Principals, want) {
		t.Errorf("got  %+v\nwant %+v", f.Principals, want)
	}
	sum := sha256.Sum256(data)
	if f.TrustDomain != "acme.example" || f.Digest != hex.EncodeToString(sum[:]) {
		t.Errorf("domain %q, digest %s", f.TrustDomain, f.Digest)
	}
}

func TestWritingAFileDifferentlyChangesNothing(t *testing.T) {
	a, err := Parse("a", []byte("trust_domain: d\nagents:\n- id: b\n  ceiling: {tools: [y, x], ttl: 300s}\n- id: a\n"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse("b", []byte("agents: [{id: a}, {id: \"b\", ceiling: {ttl: 5m, tools: ['x', y]}}] # same\ntrust_domain: d\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a.Principals, b.Principals) || len(Diff(a.Principals, b.Principals)) != 0 {
		t.Errorf("%+v\n%+v", a.Principals, b.Principals)
	}
}

const dom = "trust_domain: acme.example\n"

func TestEveryFaultIsNamedWithItsPlace(t *testing.T) {
	one := func(more string) string { return dom + "agents:\n  - id: a\n" + more }
	ceil := func(more string) string { return one("    ceiling:\n      " + more + "\n") }
	svc := func(more string) string { return dom + "services:\n  - id: s\n    " + more + "\n" }
	cases := []struct{ name, yaml, want string }{
		{"empty file", "", "f:1:1: the file is empty; it needs at least trust_domain"},
		{"no trust domain", "agents: [{id: a}]\n", "f:1:1: trust_domain is missing; name your domain, like acme.example"},
		{"trust domain in capitals", "trust_domain: Acme\n", `f:1:15: trust domain "Acme" may hold only a-z, 0-9, ., - and _; write it like acme.example`},
		{"unknown key", one("    admin: true\n"), `f:4:5: unknown field "admin"; possible here: ceiling, delegated_only, id, may_issue_for, memory_bytes, mode, owner, rate, thresholds, two_person`},
		{"unknown key at the top", dom + "colour: x\n", `f:2:1: unknown field "colour"; possible here: agents, guardrails, mode, operators, services, signals, trust_domain`},
		{"unknown key in a ceiling", ceil("scopes: [read:x]"), `f:5:7: unknown field "scopes"; possible here: exceptions, forbidden_tools, jobs, max_tokens, max_tokens_per_day, operations, scope, tools, ttl`},
		{"unknown key of a tool", svc("tools: {x: {clas: read}}"), `f:4:17: unknown field "clas"; possible here: class, description`},
		{"key in capitals", one("    Owner: x\n"), `f:4:5: unknown field "Owner"; possible here: ceiling, delegated_only, id, may_issue_for, memory_bytes, mode, owner, rate, thresholds, two_person`},
		{"key twice", one("    owner: x\n    owner: y\n"), `f:5:5: mapping key "owner" already defined at [4:5]; keep one of the two`},
		{"key twice in flow style", svc("tools: {x: {}, x: {}}"), `f:4:20: mapping key "x" already defined at [4:13]; keep one of the two`},
		{"second document", dom + "---\nagents: []\n", "f:3:1: a second document begins here; put the fleet into one"},
		{"anchor", "trust_domain: &d acme.example\n", "f:1:15: anchors, aliases and merge keys are not read; write the values out"},
		{"merge key", dom + "agents:\n  - <<: {id: a}\n", "f:3:5: anchors, aliases and merge keys are not read; write the values out"},
		{"tag", "trust_domain: !!str acme.example\n", "f:1:15: tags and directives are not read; remove this one"},
		{"empty value", dom + "agents:\n  - id:\n", "f:3:9: there is no value here; give one, or remove the key"},
		{"null", dom + "agents: null\n", "f:2:9: there is no value here; give one, or remove the key"},
		{"open bracket", dom + "agents: [\n", "f:2:9: sequence end token ']' not found"},
		{"tab", dom + "agents:\n\t- id: a\n", `f:3:1: found character '	' that cannot start any token`},
		{"id a number", dom + "agents: [{id: 7}]\n", `f:2:15: "7" is not a text; put it in quotes`},
		{"owner a boolean", one("    owner: true\n"), `f:4:12: "true" is not a text; put it in quotes`},
		{"agents no list", dom + "agents: 3\n", `f:2:9: "3" is not a list; write it with [ and ], or with a - for each entry`},
		{"no id", dom + "agents:\n  - owner: x\n", "f:3:5: the agent has no id; give it one"},
		{"service without id", dom + "services:\n  - serves: [call:x]\n", "f:3:5: the service has no id; give it one"},
		{"id in capitals", dom + "agents: [{id: Root}]\n", `f:2:15: agent "Root" may hold only a-z, 0-9, _ and -; choose another id`},
		{"id a look-alike", dom + "agents: [{id: аnalyst}]\n", `f:2:15: agent "аnalyst" may hold only a-z, 0-9, _ and -; choose another id`},
		{"id with dots", dom + "agents: [{id: a.b}]\n", `f:2:15: agent "a.b" may hold only a-z, 0-9, _ and -; choose another id`},
		{"id a wildcard", dom + "agents: [{id: \"*\"}]\n", `f:2:15: agent "*" may hold only a-z, 0-9, _ and -; choose another id`},
		{"id with underscore", dom + "agents: [{id: _r}]\n", `f:2:15: agent "_r" must start with a letter or a digit; choose another id`},
		{"reserved word", dom + "agents: [{id: token}]\n", `f:2:15: agent "token" is reserved; choose another id`},
		{"built-in memory as agent", dom + "agents: [{id: memory}]\n", `f:2:15: the id "memory" belongs to the built-in memory service; choose another id`},
		{"built-in memory as service", dom + "services: [{id: memory}]\n", `f:2:17: the id "memory" belongs to the built-in memory service; choose another id`},
		{"agent twice", dom + "agents:\n  - id: a\n  - id: a\n", `f:4:9: the id "a" is already declared in line 3; agents, services and operators share one set of ids`},
		{"agent and service of one id", dom + "agents: [{id: a}]\nservices: [{id: a}]\n", `f:3:17: the id "a" is already declared in line 2; agents, services and operators share one set of ids`},
		{"issues for a stranger", one("    may_issue_for: [b]\n"), `f:4:21: may_issue_for names "b", which is no agent of this file; declare it, or remove it here`},
		{"scope a wildcard", ceil("scope: [read:data.*]"), `f:5:15: scope "read:data.*" holds a wildcard; scopes are exact: list each resource`},
		{"scope a rest wildcard", ceil("scope: [\"read:>\"]"), `f:5:15: scope "read:>" holds a wildcard; scopes are exact: list each resource`},
		{"scope without resource", ceil("scope: [read]"), `f:5:15: scope "read": scope "read" is not of the form verb:resource; write verb:resource, like read:data.sales`},
		{"scope of an unknown verb", ceil("scope: [exec:sh]"), `f:5:15: scope "exec:sh": verb "exec" is none of call, read, write, send, ask, memory; write verb:resource, like read:data.sales`},
		{"scope with path dots", ceil("scope: [read:a..b]"), `f:5:15: scope "read:a..b": resource token "" is empty; write verb:resource, like read:data.sales`},
		{"memory scope with a key", ceil("scope: [memory:get.x]"), `f:5:15: scope "memory:get.x" is none of memory:get, memory:put, memory:delete, memory:list; write verb:resource, like read:data.sales`},
		{"scope twice", ceil("scope: [read:a, read:a]"), `f:5:23: scope names "read:a" twice; remove one`},
		{"sends to nobody", ceil("scope: [send:b]"), `f:5:15: scope "send:b" addresses "b", which is no agent of this file; declare it, or remove the scope`},
		{"asks nobody", ceil("scope: [ask:b]"), `f:5:15: scope "ask:b" addresses "b", which is no agent of this file; declare it, or remove the scope`},
		{"sends to a service", ceil("scope: [send:s]") + "services: [{id: s}]\n", `f:5:15: scope "send:s" addresses "s", which is a service; messages go to agents, services are reached by call, read and write`},
		{"tool a wildcard", ceil("tools: [\"*\"]"), `f:5:15: tool "*" may hold only a-z, 0-9, _ and -; correct the name`},
		{"tool granted and forbidden", ceil("tools: [bash]\n      forbidden_tools: [bash]"), `f:5:15: tool "bash" is granted here and stands in forbidden_tools too; keep one of the two`},
		{"tool granted by scope and forbidden", ceil("scope: [call:bash]\n      forbidden_tools: [bash]"), `f:5:15: tool "bash" is granted here and stands in forbidden_tools too; keep one of the two`},
		{"tool granted twice over", ceil("scope: [call:x]\n      tools: [x]"), `f:5:15: scope "call:x" says the same as "x" in tools; keep one of the two`},
		{"ttl without unit", ceil("ttl: 300"), `f:5:12: "300" is not a duration with its unit, like 5m or 300s`},
		{"ttl in fractions", ceil("ttl: 1500ms"), `f:5:12: "1500ms" is not a duration in whole seconds with its unit, like 5m or 300s`},
		{"ttl zero", ceil("ttl: 0s"), `f:5:12: ttl is 0 s; 1s to 24h are possible`},
		{"ttl negative", ceil("ttl: -5m"), `f:5:12: ttl is -300 s; 1s to 24h are possible`},
		{"ttl over a day", ceil("ttl: 25h"), `f:5:12: ttl is 90000 s; 1s to 24h are possible`},
		{"budget negative", ceil("max_tokens: -1"), `f:5:19: "-1" is not a whole number of 0 or more`},
		{"budget a fraction", ceil("max_tokens: 1.5"), `f:5:19: "1.5" is not a whole number of 0 or more`},
		{"budget over 2^53", ceil("max_tokens: 9007199254740993"), `f:5:19: max_tokens 9007199254740993 is more than 9007199254740992; lower it`},
		{"budget over 64 bits", ceil("max_tokens: 18446744073709551616"), `f:5:19: "18446744073709551616" is not a whole number of 0 or more`},
		{"thresholds reversed", one("    thresholds: {pause: 90, suspend: 70}\n"), `f:4:18: pause (90) is above suspend (70), so that no agent would ever be paused; swap them, or state both`},
		{"pause above the default", one("    thresholds: {pause: 95}\n"), `f:4:18: pause (95) is above suspend (90), so that no agent would ever be paused; swap them, or state both`},
		{"threshold over 100", one("    thresholds: {pause: 50, suspend: 101}\n"), `f:4:38: threshold suspend is 101; 1 to 100 are possible`},
		{"threshold zero", one("    thresholds: {pause: 0}\n"), `f:4:25: threshold pause is 0; 1 to 100 are possible`},
		{"rate zero", one("    rate: {per_second: 0, burst: 1}\n"), `f:4:24: rate needs per_second above 0 and up to 1000000; it is 0`},
		{"rate without burst", one("    rate: {per_second: 1}\n"), `f:4:12: rate needs a burst of 1 to 1000000; it is 0`},
		{"rate infinite", one("    rate: {per_second: .inf, burst: 1}\n"), `f:4:24: ".inf" is not a number above 0`},
		{"memory too large", one("    memory_bytes: 2000000000000\n"), `f:4:19: memory_bytes 2000000000000 is more than 1099511627776; lower it`},
		{"escape sequence in the owner", one("    owner: \"a\\x1b[2J\"\n"), `f:4:12: owner must be one line of 1 to 1000 printable bytes; shorten or clean it`},
		{"unknown meter", svc("meter: euros"), `f:4:12: meter "euros" is unknown; write tokens, or remove it`},
		{"streams no boolean", svc("streams: maybe"), `f:4:14: "maybe" is not true or false`},
		{"unknown class", svc("tools: {x: {class: harmless}}"), `f:4:24: class "harmless" is none of read, write, egress; what is not classed counts as egress`},
		{"tools a list", svc("tools: [x]"), `f:4:12: "[x]" is not a mapping of tool names to {class, description}`},
		{"tool name in capitals", svc("tools: {X: {}}"), `f:4:13: tool "X" may hold only a-z, 0-9, _ and -; correct the name`},
		{"serves a wildcard", svc("serves: [\"read:*\"]"), `f:4:14: "read:*" holds a wildcard; a prefix serves all that lies under it without one`},
		{"serves a verb alone", svc("serves: [read]"), `f:4:14: scope "read" is not of the form verb:resource; write verb:prefix, like read:data`},
		{"serves messages", svc("serves: [send:a]"), `f:4:14: "send:a" can't be served: services take call, read and write`},
		{"serves memory", svc("serves: [memory:list]"), `f:4:14: "memory:list" can't be served: services take call, read and write`},
		{"one prefix, two services", dom + "services:\n  - {id: s, serves: [read:data]}\n  - {id: t, serves: [read:data]}\n", `f:4:22: "read:data" is served already, as line 3 says; give one service a longer prefix, or run instances under one id`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse("f", []byte(c.yaml))
			if f != nil {
				t.Fatalf("read as %+v", f)
			}
			if err.Error() != c.want {
				t.Errorf("\ngot  %s\nwant %s\n%s", err, c.want, c.yaml)
			}
			var place *Error
			if !errors.As(err, &place) {
				t.Error("the error has no place")
			}
		})
	}
}

func TestAllFaultsOfMeaningAreReportedAtOnce(t *testing.T) {
	_, err := Parse("f", []byte(dom+"services: [{id: S}]\nagents: [{id: A}, {id: B, ceiling: {scope: [\"read:*\"]}}]\n"))
	var all Errors
	if !errors.As(err, &all) || len(all) != 4 {
		t.Fatalf("%v", err)
	}
	for i := 1; i < len(all); i++ {
		if all[i].Line < all[i-1].Line {
			t.Errorf("out of order: %v", err)
		}
	}
}

// A fault of form hides none of those behind it, nor those of meaning: who
// writes the file corrects it once.
func TestAFaultOfFormHidesNoOther(t *testing.T) {
	_, err := Parse("f", []byte(`trust_domain: acme.example
colour: red
agents:
  - id: 7
    admin: true
    ceiling:
      scope: [read:x, "read:*", 5]
      ttl: soon
      ttl: 5m
      jobs: x
  - owner:
    rate: &fast {per_second: no}
  - id: b
    may_issue_for: [c]
services:
  - id: s
    tools: {x: {clas: read}, y: {class: harmless}, x: {}}
signals:
  - id: edr
    weight: {session-revoked: much}
`))
	var all Errors
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	for _, want := range []string{
		`f:2:1: unknown field "colour"; `,
		`f:4:9: "7" is not a text; `,
		`f:5:5: unknown field "admin"; `,
		`f:7:23: scope "read:*" holds a wildcard; `,
		`f:7:33: "5" is not a text; `,
		`f:8:12: "soon" is not a duration in whole seconds `,
		`f:9:7: mapping key "ttl" already defined at [8:7]; `,
		`f:10:13: "x" is not a list; `,
		`f:11:5: the agent has no id; `,
		`f:11:11: there is no value here; `,
		`f:12:11: anchors, aliases and merge keys are not read; `,
		`f:14:21: may_issue_for names "c", which is no agent `,
		`f:17:17: unknown field "clas"; `,
		`f:17:41: class "harmless" is none of read, write, egress; `,
		`f:17:52: mapping key "x" already defined at [17:13]; `,
		`f:19:9: `,
		`f:20:31: "much" is not a whole number of points`,
	} {
		if len(all) == 0 || !strings.HasPrefix(all[0].Error(), want) {
			t.Fatalf("want %s…, got %v", want, all)
		}
		all = all[1:]
	}
	if len(all) > 0 {
		t.Errorf("more: %v", all)
	}
}

func TestAFileOfFaultsIsNoFloodOfText(t *testing.T) {
	_, err := Parse("f", []byte(dom+"agents:\n"+strings.Repeat("  - {}\n", 1000)))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 101 || lines[100] != "and 900 more" {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
}

func TestLongerPrefixesOfDifferentServicesLiveTogether(t *testing.T) {
	if _, err := Parse("f", []byte(dom+"services: [{id: s, serves: [read:data]}, {id: t, serves: [read:data.hr]}]\n")); err != nil {
		t.Error(err)
	}
}

func TestScopesMayStandInFlowMappings(t *testing.T) {
	f, err := Parse("f", []byte(dom+`agents: [{id: a, ceiling: {scope: [read:data.x, read:2026, "write:y", memory:get, read:a-b]}}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"memory:get", "read:2026", "read:a-b", "read:data.x", "write:y"}
	if got := f.Principals[0].Ceiling.Scope; !reflect.DeepEqual(got, want) {
		t.Errorf("scope %q", got)
	}
	for _, bad := range []string{`read: x`, `read:"x"`, `read:x:y`, `{read:x}`, `"read":x`, `read:x.*`} {
		if f, err := Parse("f", []byte(dom+`agents: [{id: a, ceiling: {scope: [`+bad+`]}}]`)); err == nil {
			t.Errorf("%s is read as %q", bad, f.Principals[0].Ceiling.Scope)
		}
	}
}

func TestOversizedFileIsNotParsed(t *testing.T) {
	_, err := Parse("f", []byte(strings.Repeat("#", MaxFile+1)))
	if err == nil || err.Error() != "f:1:1: the file has 16777217 bytes; at most 16777216 are read" {
		t.Error(err)
	}
}

func TestDiffNamesWhatChanges(t *testing.T) {
	base := func() []schemas.Principal {
		f, err := Parse("f", read(t, "testdata/fleet.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return f.Principals
	}
	find := func(list []schemas.Principal, id string) *schemas.Principal {
		for i := range list {
			if list[i].ID == id {
				return &list[i]
			}
		}
		t.Fatalf("no %s", id)
		return nil
	}
	cases := []struct {
		name   string
		change func([]schemas.Principal) []schemas.Principal
		want   []schemas.Change
	}{
		{"nothing", func(p []schemas.Principal) []schemas.Principal { return p }, []schemas.Change{}},
		{"locks and generations are no declarations", func(p []schemas.Principal) []schemas.Principal {
			p[0].Lock, p[0].Generation = schemas.Killed, 3
			return p
		}, []schemas.Change{}},
		{"all removed", func([]schemas.Principal) []schemas.Principal { return nil }, []schemas.Change{
			{ID: "analyst-7", Action: Remove, Detail: "agent"}, {ID: "llm", Action: Remove, Detail: "service"},
			{ID: "orchestrator", Action: Remove, Detail: "agent"}, {ID: "toolbox", Action: Remove, Detail: "service"},
			{ID: "warehouse", Action: Remove, Detail: "service"}, {ID: "writer-2", Action: Remove, Detail: "agent"}}},
		{"one added", func(p []schemas.Principal) []schemas.Principal {
			return append(p, schemas.Principal{ID: "0", Kind: "agent"})
		}, []schemas.Change{{ID: "0", Action: Add, Detail: "agent"}}},
		{"the built-in memory service stands in no file", func(p []schemas.Principal) []schemas.Principal {
			return append(p, schemas.Principal{ID: "memory", Kind: "service"})
		}, []schemas.Change{}},
		{"ceiling", func(p []schemas.Principal) []schemas.Principal {
			c := find(p, "analyst-7").Ceiling
			c.Tools, c.Scope = []string{"0", "llm", "pandas"}, c.Scope[1:]
			c.MaxTokens, c.TTLSeconds = 0, 60
			return p
		}, []schemas.Change{{ID: "analyst-7", Action: Modify, Detail: "ceiling.max_tokens 50000 → none, ceiling.scope -ask:writer-2, ceiling.tools +0, ceiling.tools -matplotlib, ceiling.ttl_seconds 600 → 60"}}},
		{"ceiling removed", func(p []schemas.Principal) []schemas.Principal {
			find(p, "writer-2").Ceiling = nil
			return p
		}, []schemas.Change{{ID: "writer-2", Action: Modify, Detail: "ceiling set → none, ceiling.scope -memory:get, ceiling.scope -memory:put, ceiling.scope -write:report.draft.2026q1, ceiling.ttl_seconds 300 → none"}}},
		{"an agent made a service", func(p []schemas.Principal) []schemas.Principal {
			q := find(p, "orchestrator")
			q.Kind, q.MayIssueFor = "service", nil
			return p
		}, []schemas.Change{{ID: "orchestrator", Action: Modify, Detail: "kind agent → service, may_issue_for -analyst-7, may_issue_for -writer-2"}}},
		{"tools of a service", func(p []schemas.Principal) []schemas.Principal {
			q := find(p, "toolbox")
			q.Tools = map[string]schemas.Tool{"pandas": {Class: "egress", Description: "dataframes"}}
			return p
		}, []schemas.Change{{ID: "toolbox", Action: Modify, Detail: "tools.matplotlib declared → none, tools.pandas.class read → egress"}}},
		{"rate and thresholds", func(p []schemas.Principal) []schemas.Principal {
			find(p, "analyst-7").Rate = nil
			find(p, "writer-2").Thresholds.Suspend = 80
			return p
		}, []schemas.Change{
			{ID: "analyst-7", Action: Modify, Detail: "rate.burst 10 → none, rate.per_second 2.5 → none"},
			{ID: "writer-2", Action: Modify, Detail: "thresholds.suspend 90 → 80"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := Diff(base(), c.change(base())); !reflect.DeepEqual(got, c.want) {
				t.Errorf("\ngot  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// What any bytes may do is be refused with a place; what is read can be granted.
func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("testdata/fleet.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("trust_domain: d\nagents: [{id: a, ceiling: {scope: [memory:get]}}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		if err != nil {
			var place *Error
			if !errors.As(err, &place) || place.Line < 1 || place.Column < 1 {
				t.Fatalf("no place: %v", err)
			}
			return
		}
		for _, p := range file.Principals {
			if err := schemas.CheckID("id", p.ID); err != nil {
				t.Fatal(err)
			}
			if p.Ceiling == nil {
				continue
			}
			for _, s := range p.Ceiling.Scope {
				if err := schemas.CheckScope(s); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
