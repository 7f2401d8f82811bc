package guard

import (
	"fmt"
	"strings"
	"testing"
)

const rails = `
@id("no-bash")
forbid (principal, action == Action::"call", resource == Tool::"bash");

@id("pay-is-for-payroll")
forbid (principal, action in [Action::"read", Action::"write"], resource in Data::"data.hr.pay")
unless { context.job == "payroll" };

@id("outsiders-write-to-nobody")
forbid (principal, action in [Action::"send", Action::"ask"], resource)
when { principal.owner like "*@partner.example" };

@id("no-long-writes") @mode("shadow")
forbid (principal, action == Action::"write", resource)
when { context.ttl_seconds > 300 };

@id("budget")
forbid (principal, action, resource)
when { context.max_tokens * 1000000000 > 4000000000000000000 };

@id("forgetful") @mode("enforce")
forbid (principal, action == Action::"memory", resource == Memory::"put")
when { context.delegated };

@id("near")
forbid (principal, action == Action::"write", resource)
when { context.depth > 2 };

@id("not-through-contractors")
forbid (principal, action == Action::"call", resource)
when { context.chain.contains("contractor") };
`

func parse(t *testing.T, text string) *Rails {
	t.Helper()
	r, err := Parse("guard.cedar", text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func texts(f []Finding) string {
	out := make([]string, len(f))
	for i, one := range f {
		out[i] = one.Policy + " " + one.Scope
	}
	return strings.Join(out, ", ")
}

func TestPoliciesForbidWhatTheySay(t *testing.T) {
	r := parse(t, rails)
	for _, c := range []struct {
		name              string
		q                 Question
		forbidden, shadow string
	}{
		{"nothing is forbidden", Question{Scope: []string{"call:pandas", "read:data.sales", "send:writer", "memory:put"}}, "", ""},
		{"a tool", Question{Scope: []string{"call:bash", "call:pandas"}}, "no-bash call:bash", ""},
		{"a tool that only looks like it", Question{Scope: []string{"call:bash2", "read:bash", "send:bash"}}, "", ""},
		{"data, at any depth", Question{Scope: []string{"read:data.hr.pay", "read:data.hr.pay.x.y", "write:data.hr.pay.z"}},
			"pay-is-for-payroll read:data.hr.pay, pay-is-for-payroll read:data.hr.pay.x.y, pay-is-for-payroll write:data.hr.pay.z", ""},
		{"data beside it", Question{Scope: []string{"read:data.hr", "read:data.hr.payroll", "read:hr.pay", "read:data.hr.pay2"}}, "", ""},
		{"the exception", Question{Job: "payroll", Scope: []string{"read:data.hr.pay.x"}}, "", ""},
		{"an attribute", Question{Owner: "x@partner.example", Scope: []string{"send:writer", "ask:writer", "read:data.sales"}},
			"outsiders-write-to-nobody ask:writer, outsiders-write-to-nobody send:writer", ""},
		{"shadow", Question{TTLSeconds: 301, Scope: []string{"write:report"}}, "", "no-long-writes write:report"},
		{"delegated", Question{Chain: []string{"boss"}, Scope: []string{"memory:get", "memory:put"}}, "forgetful memory:put", ""},
		{"not too deep", Question{Chain: []string{"b", "a"}, Scope: []string{"write:report"}}, "", ""},
		{"too deep", Question{Chain: []string{"c", "b", "a"}, Scope: []string{"write:report", "read:report"}}, "near write:report", ""},
		{"through a contractor, first of all", Question{Chain: []string{"b", "contractor"}, Scope: []string{"call:pandas"}}, "not-through-contractors call:pandas", ""},
		{"through a contractor, last of all", Question{Chain: []string{"contractor", "b"}, Scope: []string{"call:pandas"}}, "not-through-contractors call:pandas", ""},
		{"through one that only looks like it", Question{Chain: []string{"contractor-2", "contractors"}, IssuedBy: "contractor", Scope: []string{"call:pandas"}}, "", ""},
		{"a contractor itself", Question{Agent: "contractor", Scope: []string{"call:pandas"}}, "", ""},
	} {
		forbidden, shadow := r.Decide(c.q)
		if texts(forbidden) != c.forbidden || texts(shadow) != c.shadow {
			t.Errorf("%s: forbidden %q, shadow %q; want %q, %q", c.name, texts(forbidden), texts(shadow), c.forbidden, c.shadow)
		}
	}
}

// Cedar passes a policy over whose evaluation fails. Somebody who can make a
// number overflow would switch the prohibition off.
func TestAPolicyThatCantBeEvaluatedForbids(t *testing.T) {
	r := parse(t, rails)
	forbidden, _ := r.Decide(Question{MaxTokens: 1 << 53, Scope: []string{"call:pandas"}})
	if len(forbidden) != 1 || forbidden[0].Policy != "budget" || forbidden[0].Error == "" || !strings.Contains(forbidden[0].String(), "can't be evaluated") {
		t.Errorf("%+v", forbidden)
	}
	forbidden, _ = Broken(fmt.Errorf("damaged")).Decide(Question{Scope: []string{"call:pandas", "read:x"}})
	if len(forbidden) != 2 || !strings.Contains(forbidden[0].String(), "damaged") {
		t.Errorf("broken rails: %+v", forbidden)
	}
	if forbidden, _ := r.Decide(Question{Scope: []string{"fly:away"}}); len(forbidden) != 1 {
		t.Errorf("an unknown verb: %+v", forbidden)
	}
	var none *Rails
	if f, s := none.Decide(Question{Scope: []string{"call:bash"}}); f != nil || s != nil {
		t.Error("no rails forbid")
	}
	if f, s := parse(t, "").Decide(Question{Scope: []string{"call:bash"}}); f != nil || s != nil {
		t.Error("an empty text forbids")
	}
}

func TestFaultsOfPoliciesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		`forbid (principal, action, resource);`:                                                              "name each policy",
		`@id("Big") forbid (principal, action, resource);`:                                                   "name each policy",
		`@id("a") permit (principal, action, resource);`:                                                     "guard rails forbid",
		`@id("a") @mode("off") forbid (principal, action, resource);`:                                        "enforce and shadow",
		`@id("a") @advice("x") forbid (principal, action, resource);`:                                        "@advice is unknown",
		"@id(\"a\") forbid (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);": "guard.cedar:2: the id \"a\" is used twice",
		`@id("a") forbid (principal, action == Action::"fly", resource);`:                                    "guard.cedar:1",
		`@id("a") forbid (principal, action == Action::"call", resource == Data::"x");`:                      "guard.cedar:1",
		`@id("a") forbid (principal, action, resource) when { context.nothing == 1 };`:                       "guard.cedar:1",
		`@id("a") forbid (principal, action, resource) when { context.ttl_seconds == "1" };`:                 "guard.cedar:1",
		`@id("a") forbid (principal, action, resource) when { context.chain.contains(7) };`:                  "guard.cedar:1",
		`@id("a") forbid (principal, action, resource) when { context.depth == "deep" };`:                    "guard.cedar:1",
		`@id("a") forbid (principal == User::"x", action, resource);`:                                        "guard.cedar:1",
		`@id("a") forbid (principal, action, resource`:                                                       "guard.cedar",
		strings.Repeat("// x\n", MaxText/5+1):                                                                "at most",
	} {
		_, err := Parse("guard.cedar", text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

// FuzzParse holds that no text makes reading or deciding panic, and that what
// was read once is read again.
func FuzzParse(f *testing.F) {
	f.Add(rails, "call:bash")
	f.Add(`@id("a") forbid (principal, action, resource) when { 9223372036854775807 + context.ttl_seconds > 0 };`, "read:a.b.c")
	f.Fuzz(func(t *testing.T, text, scope string) {
		r, err := Parse("guard.cedar", text)
		if err != nil {
			return
		}
		q := Question{Agent: "a", Scope: []string{scope}, TTLSeconds: 300}
		one, two := r.Decide(q)
		again, err := Parse("guard.cedar", text)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := again.Decide(q); texts(a) != texts(one) || texts(b) != texts(two) {
			t.Fatalf("%s / %s and then %s / %s", texts(one), texts(two), texts(a), texts(b))
		}
	})
}

// Policies speak of whom something goes to as well. Who is unknown is let off
// nothing by that.
func TestPoliciesSeeWhomSomethingGoesTo(t *testing.T) {
	r := parse(t, `@id("not-to-outsiders") forbid (principal, action in [Action::"send", Action::"ask"], resource)
when { resource.owner like "*@partner.example" || resource.jobs.contains("publish") };`)
	fleet := map[string]*Agent{"writer": {Owner: "a@acme.example"}, "mole": {Owner: "x@partner.example"}, "printer": {Jobs: []string{"publish"}}}
	q := Question{Agent: "self", Scope: []string{"send:writer", "send:mole", "ask:printer", "ask:nobody", "send:self", "call:mole"},
		Others: func(id string) *Agent { return fleet[id] }}
	forbidden, _ := r.Decide(q)
	if got := texts(forbidden); got != "not-to-outsiders ask:nobody, not-to-outsiders ask:printer, not-to-outsiders send:mole" {
		t.Errorf("forbidden: %s", got)
	}
	fixtures, err := ParseFixtures("f.yaml", []byte(`
- {name: within, scope: "send:x", to_owner: a@acme.example, expect: pass}
- {name: out, scope: "send:x", to_owner: a@partner.example, expect: forbid}
- {name: published, scope: "ask:x", to_jobs: [publish], expect: forbid}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range r.Test(fixtures) {
		if !got.OK {
			t.Errorf("%+v", got)
		}
	}
}

func TestFixturesTellWhatDecided(t *testing.T) {
	fixtures, err := ParseFixtures("f.yaml", []byte(`
- {name: bash, scope: "call:bash", expect: forbid, policy: no-bash}
- {name: wrong policy, scope: "call:bash", expect: forbid, policy: other}
- {name: wrong word, scope: "call:bash", expect: pass}
- {name: shadow, scope: "write:x", ttl_seconds: 600, expect: shadow, policy: no-long-writes}
- {name: default ttl, scope: "write:x", expect: pass}
- {name: deep, scope: "write:x", chain: [c, b, a], expect: forbid, policy: near}
- {name: through whom, scope: "call:x", chain: [b, contractor], expect: forbid, policy: not-through-contractors}
- {name: by whom, scope: "call:x", delegated: true, issued_by: contractor, expect: forbid, policy: not-through-contractors}
- {name: handed on, scope: "memory:put", chain: [a], expect: forbid, policy: forgetful}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"true forbid by no-bash", "false forbid by no-bash", "false forbid by no-bash", "true shadow by no-long-writes", "true pass",
		"true forbid by near", "true forbid by not-through-contractors", "true forbid by not-through-contractors", "true forbid by forgetful"}
	for i, r := range parse(t, rails).Test(fixtures) {
		if got := fmt.Sprint(r.OK, " ", r.Observed); got != want[i] {
			t.Errorf("%s: %s, want %s", r.Name, got, want[i])
		}
	}
	for _, bad := range []string{"", "[]", "- {name: x, scope: 'call:*', expect: pass}", "- {name: x, scope: 'call:a', expect: allow}",
		"- {name: x, scope: 'call:a', chain: [a, b, c, d, e, f], expect: pass}", "- {name: x, scope: 'call:a', chain: [a, b, a], expect: pass}",
		"- {name: x, agent: a, scope: 'call:a', chain: [a], expect: pass}", "- {name: x, scope: 'call:a', chain: ['*'], expect: pass}",
		"- {name: x, scope: 'call:a', expect: pass, unknown: 1}", "- {scope: 'call:a', expect: pass}", "x: 1"} {
		if _, err := ParseFixtures("f.yaml", []byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
