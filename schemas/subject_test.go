package schemas

import (
	"errors"
	"strings"
	"testing"
)

const request = "00112233445566778899aabbccddeeff"

func TestSubjectsOfAgentsAreParsed(t *testing.T) {
	for subject, want := range map[string]Out{
		"writ.out.a.op-1.call.pandas":           {Agent: "a", Operation: "op-1", Action: Action{"call", "pandas"}},
		"writ.out.a.op.read.data.sales_q1_2026": {Agent: "a", Operation: "op", Action: Action{"read", "data.sales_q1_2026"}},
		"writ.out.a.op.write.x":                 {Agent: "a", Operation: "op", Action: Action{"write", "x"}},
		"writ.out.a.op.send.b":                  {Agent: "a", Operation: "op", Action: Action{"send", "b"}},
		"writ.out.a.op.ask.b":                   {Agent: "a", Operation: "op", Action: Action{"ask", "b"}},
		"writ.out.a.op.memory.get.k.1":          {Agent: "a", Operation: "op", Action: Action{"memory", "get.k.1"}},
		"writ.out.a.op.memory.list":             {Agent: "a", Operation: "op", Action: Action{"memory", "list"}},
		"writ.out.a._r." + request + "-7":       {Agent: "a", Kind: OutResponse, Request: request, Seq: 7},
		"writ.out.a.token.issue":                {Agent: "a", Kind: OutToken, Token: "issue"},
		"writ.out.a.token.refresh":              {Agent: "a", Kind: OutToken, Token: "refresh"},
		"writ.out.a.token.release":              {Agent: "a", Kind: OutToken, Token: "release"},
		"writ.out.writ.out.call.x":              {Agent: "writ", Operation: "out", Action: Action{"call", "x"}},
		"writ.out.a~b2.op.call.x":               {Agent: "a", Incarnation: "b2", Operation: "op", Action: Action{"call", "x"}},
		"writ.out.a~b2._r." + request + "-7":    {Agent: "a", Incarnation: "b2", Kind: OutResponse, Request: request, Seq: 7},
		"writ.out.a~b2.token.issue":             {Agent: "a", Incarnation: "b2", Kind: OutToken, Token: "issue"},
	} {
		if got, err := ParseOut(subject); err != nil || got != want {
			t.Errorf("%s: %+v, %v", subject, got, err)
		}
	}
}

func TestSubjectsThatMeanAnythingElseAreRefused(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, rest := range []string{
		"", ".", "a", "a.", "a.op", "a.op.", "a.op.call", "a.op.call.", "a..call.x", ".op.call.x", "a.op..x", "a.op.call..x", "a.op.call.x.", "a.op.read.x..y", "a.op.read..",
		"*.op.call.x", "a.*.call.x", "a.op.*.x", "a.op.call.*", "a.>", "a.op.>", "a.op.call.>", "a.op.read.x.>", "a.op.read.*.x", "a.op.read.x*", "a.op.read.>x",
		"A.op.call.x", "a.Op.call.x", "a.op.CALL.x", "a.op.call.X", "a.op.read.data.Sales",
		"a b.op.call.x", "a.op.call.x ", " a.op.call.x", "a.op.call. x", "a.op.call.x\n", "a.op.call.x\r\nNats-Rollup: all", "a.op.call.x\t", "a.op.call.x\x00", "a.op.call.x\x7f",
		"а.op.call.x", "a.op.call.ⅹ", "a.op.call.x\u200d", "a.op.read.ſ", "a.op.call.\xff", "a.op.ｃall.x",
		"_a.op.call.x", "-a.op.call.x", "a._op.call.x", "a.op.call._x", "a.op.read.x._y", "a.op.call.-x",
		"token.op.call.x", "a.op.call.token", "a.op.read.token", "a.op.read.x.token",
		"a.op.call.x.y", "a.op.send.b.c", "a.op.ask.b.c", "a.op.exec.x", "a.op.read-x.y",
		"a.op.memory.get", "a.op.memory.get.", "a.op.memory.put", "a.op.memory.list.x", "a.op.memory.purge.x", "a.op.memory.get.x..y", "a.op.memory.get.*",
		"a.token", "a.token.", "a.token.issue.x", "a.token.Issue", "a.token.steal", "a.token.*",
		"a._r", "a._r.", "a._r.x", "a._r." + request, "a._r." + request + "-", "a._r." + request + "-0", "a._r." + request + "-07", "a._r." + request + "-+7",
		"a._r." + request + "-7.x", "a._r." + request + "-18446744073709551616", "a._r." + strings.ToUpper(request) + "-7", "a._r.*", "a._R." + request + "-7",
		long + ".op.call.x", "a." + long + ".call.x", "a.op.call." + long, "a.op.read." + strings.Repeat("a.", 100) + "a",
	} {
		if got, err := ParseOut("writ.out." + rest); !errors.Is(err, ErrName) {
			t.Errorf("%q: %+v, %v", rest, got, err)
		}
	}
	for _, subject := range []string{"", "writ", "writ.out", "out.op.call.x", "writ.in.a.op.call.x", "WRIT.out.a.op.call.x", "writ.out", "xwrit.out.a.op.call.x",
		"writ.out.a~.op.call.x", "writ.out.~b.op.call.x", "writ.out.a~b~c.op.call.x", "writ.out.a~token.op.call.x", "writ.out.a~B.op.call.x", "writ.out.a.op~b.call.x"} {
		if got, err := ParseOut(subject); !errors.Is(err, ErrName) {
			t.Errorf("%q: %+v, %v", subject, got, err)
		}
	}
}

func TestScopesAreExact(t *testing.T) {
	for _, s := range []string{"call:pandas", "read:data.sales_q1_2026", "write:a", "send:b-2", "ask:b", "memory:get", "memory:put", "memory:delete", "memory:list"} {
		if err := CheckScope(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", ":", "read", "read:", ":data", "read:*", "read:>", "*:*", "*", ">", "read:data.*", "read:data.>", "read:data*", "READ:data", "read:Data",
		"read: data", "read:data ", " read:data", "read::data", "read:a:b", "read.data", "memory:", "memory:*", "memory:get.k", "memory:LIST", "call:a.b", "send:a.b",
		"send:_fleet", "call:token", "read:data\x00", "read:dаta", "read:data.", "read:.data", "read:a..b"} {
		if err := CheckScope(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestTrustDomains(t *testing.T) {
	for s, ok := range map[string]bool{"acme.example": true, "a": true, "a-b_c.9": true, strings.Repeat("a", 255): true,
		"": false, "Acme": false, "a/b": false, "a b": false, "spiffe://a": false, "а": false, "*": false, "a\x00": false, strings.Repeat("a", 256): false} {
		if err := CheckTrustDomain(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestMemoryScopesCoverAllKeysOfOneOperation(t *testing.T) {
	for action, scope := range map[string]string{"memory:get.a.b": "memory:get", "memory:put.a": "memory:put", "memory:delete.a": "memory:delete", "memory:list": "memory:list",
		"read:a.b": "read:a.b", "call:x": "call:x"} {
		a, err := ParseAction(action)
		if err != nil || a.Scope() != scope {
			t.Errorf("%s: %s, %v", action, a.Scope(), err)
		}
	}
}

// A subject that is taken has one meaning, and no token of it could match more
// than itself.
func FuzzParseOut(f *testing.F) {
	for _, s := range []string{"writ.out.a.op.call.x", "writ.out.a.op.read.x.y", "writ.out.a.op.memory.get.k", "writ.out.a._r." + request + "-7", "writ.out.a.token.issue", "writ.out.a~b2.op.call.x", "writ.out.a~.op.call.x", "writ.out.a.>", "writ.out.*.op.call.x", "writ.out.A.op.call.ſ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		o, err := ParseOut(subject)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatal(err)
			}
			return
		}
		for _, c := range []byte(subject) {
			if !idByte(c) && c != '.' && c != bornAs[0] {
				t.Fatalf("%q holds %q", subject, c)
			}
		}
		var back string
		switch o.Kind {
		case OutAction:
			back = o.Operation + "." + o.Action.Verb + "." + o.Action.Resource
			if again, err := ParseAction(o.Action.String()); err != nil || again != o.Action {
				t.Fatalf("%+v: %+v, %v", o, again, err)
			}
			if err := CheckScope(o.Action.Scope()); err != nil {
				t.Fatal(err)
			}
		case OutResponse:
			back = "_r." + ResponseToken(o.Request, o.Seq)
		case OutToken:
			back = "token." + o.Token
		}
		if strings.TrimSuffix(OutSubject(o.Agent, o.Incarnation), ">")+back != subject || OutAgent(subject) != o.Agent {
			t.Fatalf("%q is read as %+v", subject, o)
		}
	})
}

func FuzzScope(f *testing.F) {
	f.Add("read:data.x")
	f.Add("memory:get")
	f.Add("*:>")
	f.Fuzz(func(t *testing.T, s string) {
		if CheckScope(s) != nil {
			return
		}
		if strings.ContainsAny(s, "*> \t\r\n\x00") || strings.ToLower(s) != s || strings.Count(s, ":") != 1 {
			t.Fatalf("%q", s)
		}
	})
}

func FuzzEventSubject(f *testing.F) {
	f.Add("ev.a.message.accepted")
	f.Add("ev._fleet.policy.applied")
	f.Fuzz(func(t *testing.T, subject string) {
		agent, kind, err := ParseEventSubject(subject)
		if err == nil && EventSubject(agent, kind) != subject {
			t.Fatalf("%q is read as %s, %s", subject, agent, kind)
		}
	})
}
