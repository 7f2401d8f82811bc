package accounts

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

func maker(t testing.TB) *Maker {
	t.Helper()
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	s, err := keys.OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	return NewMaker(s)
}

func userKey(t testing.TB) string {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// expand does to a template what the server does: every tag of a name, in
// every place.
func expand(subjects []string, tags []string) []string {
	var out []string
	for _, s := range subjects {
		start := strings.Index(s, "{{tag(")
		if start < 0 {
			out = append(out, s)
			continue
		}
		end := strings.Index(s, ")}}")
		name := s[start+len("{{tag(") : end]
		var filled []string
		for _, tag := range tags {
			if v, ok := strings.CutPrefix(tag, name+":"); ok {
				filled = append(filled, s[:start]+v+s[end+len(")}}"):])
			}
		}
		out = append(out, expand(filled, tags)...)
	}
	return out
}

func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(p) == len(s)
}

func permits(p jwt.Permission, subject string) bool {
	m := func(pattern string) bool { return matches(pattern, subject) }
	return slices.ContainsFunc(p.Allow, m) && !slices.ContainsFunc(p.Deny, m)
}

var (
	verbs  = []string{"call", "read", "write", "send", "ask"}
	words  = []string{"a", "b", "data", "data.sales", "data.sales.q1", "pandas", "bash", "x_1", "9"}
	memory = []string{"memory:get", "memory:put", "memory:delete", "memory:list"}
)

func randomGrant(r *rand.Rand, public string) schemas.Grant {
	g := schemas.Grant{JTI: "j", Agent: "alice", Operation: []string{"op", "op2", "call"}[r.IntN(3)], TraceID: strings.Repeat("a", 32), PublicKey: public,
		IssuedBy: "bob", NotBefore: time.Now().Truncate(time.Second), Expires: time.Now().Truncate(time.Second).Add(time.Minute)}
	seen := map[string]bool{}
	for range r.IntN(8) {
		s := verbs[r.IntN(len(verbs))] + ":" + words[r.IntN(len(words))]
		if r.IntN(4) == 0 {
			s = memory[r.IntN(len(memory))]
		}
		if schemas.CheckScope(s) == nil && !seen[s] {
			seen[s] = true
			g.Scope = append(g.Scope, s)
		}
	}
	for range r.IntN(3) {
		if tool := words[r.IntN(len(words))]; schemas.CheckID("tool", tool) == nil && !slices.Contains(g.ForbiddenTools, tool) {
			g.ForbiddenTools = append(g.ForbiddenTools, tool)
		}
	}
	slices.Sort(g.Scope)
	return g
}

// universe is every action over the words.
func universe() []schemas.Action {
	var out []schemas.Action
	for _, w := range words {
		for _, v := range verbs {
			if a, err := schemas.ParseAction(v + ":" + w); err == nil {
				out = append(out, a)
			}
		}
		for _, op := range []string{"get", "put", "delete"} {
			out = append(out, schemas.Action{Verb: "memory", Resource: op + "." + w})
		}
	}
	return append(out, schemas.Action{Verb: "memory", Resource: "list"})
}

// TestTokenAndNATSGrantTheSameSet holds both faces of a capability against one
// another, over random grants, with actions that are granted and such as are
// near.
func TestTokenAndNATSGrantTheSameSet(t *testing.T) {
	t.Parallel()
	const cases = 100_000
	m := maker(t)
	signer, err := capability.NewSigner("acme.example", m.secrets.Capability.Signer())
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(20260305)
	r := rand.New(rand.NewPCG(seed, 2))
	public, actions := userKey(t), universe()
	tmpl := template(keys.OperationKey, "")
	granted := 0
	for n := range cases {
		g := randomGrant(r, public)
		claims := capability.FromGrant(g, "acme.example", "", g.NotBefore)
		if n%500 == 0 { // that they are good claims
			if _, err := signer.Sign(claims); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		tags, err := Tags(g)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		pub := jwt.Permission{Allow: expand(tmpl.Pub.Allow, tags), Deny: expand(tmpl.Pub.Deny, tags)}
		scopes := claims.Scopes()
		for range 6 {
			a := actions[r.IntN(len(actions))]
			if len(g.Scope) > 0 && r.IntN(3) == 0 {
				if near, err := schemas.ParseAction(g.Scope[r.IntN(len(g.Scope))]); err == nil {
					a = near
				}
			}
			token := slices.Contains(scopes, a.Scope())
			if token {
				granted++
			}
			for _, op := range []string{"op", "op2", "call"} {
				subject := "out." + op + "." + a.Verb + "." + a.Resource
				if got, want := permits(pub, subject), token && op == g.Operation; got != want {
					t.Fatalf("seed %d: %+v: NATS permits %s: %v, the token: %v", seed, g, subject, got, want)
				}
			}
		}
	}
	t.Logf("seed %d: %d grants, %d of %d actions granted", seed, cases, granted, 6*cases)
	if granted < cases {
		t.Errorf("%d actions were granted: the test shows too little", granted)
	}
}

func TestTagsRefuseWhatIsNoScope(t *testing.T) {
	for _, bad := range []schemas.Grant{
		{Operation: "*", Scope: []string{"call:a"}}, {Operation: "op.x"}, {Operation: "token"}, {Operation: "_r"},
		{Operation: "op", Scope: []string{"call:*"}}, {Operation: "op", Scope: []string{"read:>"}}, {Operation: "op", Scope: []string{"read:a..b"}},
		{Operation: "op", Scope: []string{"call:a.b"}}, {Operation: "op", Scope: []string{"memory:get.x"}},
		{Operation: "op", ForbiddenTools: []string{"*"}}, {Operation: "op", ForbiddenTools: []string{"A"}},
	} {
		if tags, err := Tags(bad); !errors.Is(err, schemas.ErrName) {
			t.Errorf("%+v: %v, %v", bad, tags, err)
		}
	}
}

func TestKilledAccountHasNothing(t *testing.T) {
	m := maker(t)
	now := time.Now()
	token, err := m.Account(Account{ID: "alice", Lock: schemas.Killed, Keys: Keys{Generation: 3}}, now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Imports) != 0 || len(c.SigningKeys) != 0 || c.Limits.Conn != 0 || c.Expires != 0 {
		t.Errorf("killed: %+v", c)
	}
	if !c.Revocations.IsRevoked("U", now.Add(99*365*24*time.Hour)) {
		t.Error("users of the future are not revoked")
	}
}

func TestAccountLivesAnHourAndCarriesItsIssuingTime(t *testing.T) {
	m := maker(t)
	at := time.Unix(time.Now().Unix()+7, 0)
	token, err := m.Account(Account{ID: "alice", Lock: schemas.Active}, at)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeAccountClaims(token) // verifies the signature
	if err != nil {
		t.Fatal(err)
	}
	if c.IssuedAt != at.Unix() || c.Expires != at.Add(TTL).Unix() || c.Version != 2 {
		t.Errorf("iat %d, exp %d", c.IssuedAt, c.Expires)
	}
	if len(c.SigningKeys) != 4 || len(c.Imports) != 2 {
		t.Errorf("account %+v", c)
	}
	for _, i := range c.Imports {
		if i.Share || i.AllowTrace || !strings.Contains(string(i.Subject), ".alice.>") {
			t.Errorf("import %+v", i)
		}
	}
}

// Whatever an agent publishes, the server writes into the subject which of those
// who bore the name it is.
func TestAnAccountSpeaksForOneIncarnationAlone(t *testing.T) {
	m := maker(t)
	for incarnation, want := range map[string]string{"": "writ.out.alice.>", "second": "writ.out.alice~second.>"} {
		token, err := m.Account(Account{ID: "alice", Lock: schemas.Active, Keys: Keys{Incarnation: incarnation}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c, err := jwt.DecodeAccountClaims(token)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range c.Imports {
			if i.Type == jwt.Service {
				out = append(out, string(i.Subject)+" as "+string(i.LocalSubject))
			}
		}
		if !slices.Equal(out, []string{want + " as out.>"}) {
			t.Errorf("%q: %v", incarnation, out)
		}
	}
}

func TestSuspendedAccountKeepsItsIdentityKeyAlone(t *testing.T) {
	m := maker(t)
	token, err := m.Account(Account{ID: "alice", Lock: schemas.Suspended}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := m.secrets.Account("alice", "", 0, keys.IdentityKey)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.SigningKeys) != 1 || !c.SigningKeys.Contains(pair.Public()) {
		t.Errorf("keys %v", c.SigningKeys.Keys())
	}
}

func TestCredentialsThatNoServerWouldReadAreRefused(t *testing.T) {
	m := maker(t)
	g := randomGrant(rand.New(rand.NewPCG(1, 1)), userKey(t))
	g.Scope = nil
	for i := range 200 {
		g.Scope = append(g.Scope, fmt.Sprintf("read:%s.%d", strings.Repeat("x", 50), i))
	}
	_, err := m.Operation(g, Keys{}, time.Now())
	var r *schemas.Refusal
	if !errors.As(err, &r) || r.Code != schemas.CodeTooLarge {
		t.Errorf("got %v", err)
	}
}

func TestForeignKeysAreRefused(t *testing.T) {
	m := maker(t)
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "U", "nonsense", public} {
		if _, err := m.Identity("alice", key, Keys{}, time.Now(), time.Now().Add(time.Hour)); err == nil {
			t.Errorf("%q was signed for", key)
		}
	}
}

func BenchmarkOperationUser(b *testing.B) {
	m := maker(b)
	g := randomGrant(rand.New(rand.NewPCG(1, 2)), userKey(b))
	for b.Loop() {
		if _, err := m.Operation(g, Keys{}, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

// fixed is a maker whose every key is known.
func fixed(t testing.TB) *Maker {
	t.Helper()
	m := maker(t)
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, keys.Dir, "master.secret"), []byte(strings.Repeat("0b", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	seed, err := nkeys.EncodeSeed(nkeys.PrefixByteOperator, bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, keys.Dir, "operator-signing.seed"), seed, 0o600); err != nil {
		t.Fatal(err)
	}
	if m.secrets, err = keys.OpenSecrets(data); err != nil {
		t.Fatal(err)
	}
	m.secrets.Trust.Accounts = map[string]string{keys.CONTROL: "ACONTROL", keys.DELIVER: "ADELIVER"}
	return m
}

var update = flag.Bool("update", false, "write golden files that are missing")

// TestGoldenJWTsNeverChange holds the derivation of keys, the templates and
// the encoding. A changed derivation would be another account for each agent.
func TestGoldenJWTsNeverChange(t *testing.T) {
	m := fixed(t)
	at := time.Date(2096, 3, 1, 12, 0, 0, 0, time.UTC) // the library refuses to write what has expired
	g := schemas.Grant{JTI: "j", Agent: "analyst-7", Operation: "report", Scope: []string{"call:pandas", "memory:get", "memory:list", "read:data.sales"},
		PublicKey: "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", Expires: at.Add(5 * time.Minute)}
	forbidding := g
	forbidding.ForbiddenTools = []string{"bash", "http"}
	for name, make := range map[string]func() (string, error){
		"active": func() (string, error) {
			return m.Account(Account{ID: "analyst-7", Lock: schemas.Active, Keys: Keys{Generation: 3}, RevokeUntil: at}, at)
		},
		"suspended":  func() (string, error) { return m.Account(Account{ID: "analyst-7", Lock: schemas.Suspended}, at) },
		"killed":     func() (string, error) { return m.Account(Account{ID: "analyst-7", Lock: schemas.Killed}, at) },
		"operation":  func() (string, error) { return m.Operation(g, Keys{Generation: 3}, at) },
		"forbidding": func() (string, error) { return m.Operation(forbidding, Keys{Generation: 3}, at) },
		"identity":   func() (string, error) { return m.Identity("analyst-7", g.PublicKey, Keys{}, at, at.Add(time.Hour)) },
		"service": func() (string, error) {
			return m.Service("pandas", g.PublicKey, Keys{Generation: 3}, at, at.Add(time.Hour))
		},
	} {
		got, err := make()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".jwt")
		want, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) && *update {
			want, err = []byte(got), os.WriteFile(file, []byte(got), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		if _, err := jwt.Decode(got); err != nil {
			t.Errorf("%s: the library does not read it: %v", name, err)
		}
	}
}

// FuzzTagsNeverWiden holds that whatever is granted, the server's rights are
// that scope's exact subject, under that operation.
func FuzzTagsNeverWiden(f *testing.F) {
	f.Add("op", "read:data.sales", "bash")
	f.Add("op", "memory:get", "_none")
	f.Add("*", "call:>", "a.b")
	f.Add("op\n", "call:a scope:>", "x deny:y")
	f.Fuzz(func(t *testing.T, operation, scope, deny string) {
		g := schemas.Grant{Operation: operation, Scope: []string{scope}, ForbiddenTools: []string{deny}}
		tags, err := Tags(g)
		if err != nil {
			return
		}
		var list jwt.TagList
		list.Add(tags...)
		if len(list) != 3 || list[0] != "op:"+operation || list[2] != "deny:"+deny {
			t.Fatalf("tags %q", list)
		}
		for _, s := range expand(template(keys.OperationKey, "").Pub.Allow[:1], list) {
			rest, ok := strings.CutPrefix(s, "out."+operation+".")
			if !ok || strings.ContainsAny(operation, ".*> ") {
				t.Fatalf("%q leaves the operation", s)
			}
			if open, ok := strings.CutSuffix(rest, ".>"); ok {
				if !strings.HasPrefix(scope, "memory:") || open != strings.Replace(scope, ":", ".", 1) {
					t.Fatalf("%q is wider than %q", s, scope)
				}
				rest = open
			}
			if strings.ContainsAny(rest, "*> ") || rest != strings.Replace(scope, ":", ".", 1) {
				t.Fatalf("%q is not %q", s, scope)
			}
		}
	})
}
