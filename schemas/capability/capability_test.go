package capability

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

var update = flag.Bool("update", false, "write golden files that are missing")

const (
	domain = "acme.example"
	nkey   = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
	other  = "UAFOOBARSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF"
)

var (
	issued = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	during = issued.Add(time.Minute)
)

func fixedKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func sample() Claims {
	g := schemas.Grant{
		JTI: "j-1", Agent: "analyst-7", Operation: "report-2026-q1",
		Scope:          []string{"call:matplotlib", "call:pandas", "memory:get", "read:data.sales_q1_2026", "send:writer-2"},
		ForbiddenTools: []string{"bash", "http"},
		NotBefore:      issued, Expires: issued.Add(5 * time.Minute), MaxTokens: 50000,
		Task: "Summarise the sales of Q1.", Job: "report", TraceID: "0af7651916cd43dd8448eb211c80319c",
		PublicKey: nkey, Parent: "j-0", IssuedBy: "orchestrator",
	}
	c := FromGrant(g, domain, "", issued)
	c.Actor = &Actor{Subject: AgentURI(domain, "orchestrator"), Actor: &Actor{Subject: "alice"}}
	return c
}

func signerOf(t testing.TB, key ed25519.PrivateKey) *Signer {
	t.Helper()
	s, err := NewSigner(domain, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verifierOf(t testing.TB, keys ...ed25519.PublicKey) *Verifier {
	t.Helper()
	set, err := MarshalJWKS(keys...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(domain, set)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func shown() Expect { return Expect{Time: during, PublicKey: nkey} }

func sign(t testing.TB, c Claims) string {
	t.Helper()
	token, err := signerOf(t, fixedKey(1)).Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// forge builds a token from raw header and payload and signs it with the true
// key: what remains to refuse it is what stands in it.
func forge(head, payload string) string {
	input := b64(head) + "." + b64(payload)
	return input + "." + b64(string(ed25519.Sign(fixedKey(1), []byte(input))))
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func goodHeader(t testing.TB) string {
	kid, err := KeyID(public(fixedKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	return `{"alg":"EdDSA","kid":"` + kid + `","typ":"` + Type + `"}`
}

func payloadOf(t testing.TB, c Claims) string {
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSignedClaimsComeBackAsTheyWere(t *testing.T) {
	want := sample()
	got, err := verifierOf(t, public(fixedKey(1))).Verify(sign(t, want), shown())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
	scopes := []string{"call:matplotlib", "call:pandas", "memory:get", "read:data.sales_q1_2026", "send:writer-2"}
	if !slices.Equal(got.Scopes(), scopes) {
		t.Errorf("scopes %v", got.Scopes())
	}
}

func TestGoldenTokenNeverChanges(t *testing.T) {
	golden(t, "testdata/token.jwt", []byte(sign(t, sample())))
	set, err := MarshalJWKS(public(fixedKey(1)), public(fixedKey(2)))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/jwks.json", set)
	raw, err := os.ReadFile("testdata/token.jwt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifierOf(t, public(fixedKey(1))).Verify(string(raw), shown()); err != nil {
		t.Errorf("a token of old is no longer accepted: %v", err)
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	want, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && *update {
		want = got
		err = os.WriteFile(file, got, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// The thumbprint of the key in RFC 8037, appendix A.3.
func TestKeyIDIsTheThumbprintOfRFC8037(t *testing.T) {
	raw, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	kid, err := KeyID(raw)
	if err != nil || kid != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("kid %q, %v", kid, err)
	}
}

func TestEachReasonToRefuseIsDistinct(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Expect)
		want   error
	}{
		{"all as expected", func(*Expect) {}, nil},
		{"one nanosecond before exp", func(e *Expect) { e.Time = issued.Add(5*time.Minute - 1) }, nil},
		{"at exp", func(e *Expect) { e.Time = issued.Add(5 * time.Minute) }, ErrExpired},
		{"at exp, within the leeway", func(e *Expect) { e.Time, e.Leeway = issued.Add(5*time.Minute), time.Second }, nil},
		{"an hour on, leeway capped", func(e *Expect) { e.Time, e.Leeway = issued.Add(time.Hour), 24*time.Hour }, ErrExpired},
		{"negative leeway counts as none", func(e *Expect) { e.Time, e.Leeway = issued, -time.Hour }, nil},
		{"before nbf", func(e *Expect) { e.Time = issued.Add(-1) }, ErrNotYetValid},
		{"before nbf, within the leeway", func(e *Expect) { e.Time, e.Leeway = issued.Add(-time.Second), time.Second }, nil},
		{"no time given", func(e *Expect) { e.Time = time.Time{} }, ErrNotYetValid},
		{"for another service", func(e *Expect) { e.Audience = "warehouse" }, ErrAudience},
		{"audience a look-alike", func(e *Expect) { e.Audience = "acmе.example" }, ErrAudience},
		{"revoked", func(e *Expect) { e.Revoked = func(jti string) bool { return jti == "j-1" } }, ErrRevoked},
		{"another one revoked", func(e *Expect) { e.Revoked = func(jti string) bool { return jti == "j-2" } }, nil},
		{"no key shown", func(e *Expect) { e.PublicKey = "" }, ErrPossession},
		{"another key shown", func(e *Expect) { e.PublicKey = other }, ErrPossession},
		{"delivered", func(e *Expect) { e.PublicKey, e.Delivered = "", true }, nil},
		{"delivered, and another key shown", func(e *Expect) { e.PublicKey, e.Delivered = other, true }, ErrPossession},
		{"granted scope", func(e *Expect) { e.Scope = "read:data.sales_q1_2026" }, nil},
		{"memory", func(e *Expect) { e.Scope = "memory:get" }, nil},
		{"prefix of a scope", func(e *Expect) { e.Scope = "read:data" }, ErrScope},
		{"extension of a scope", func(e *Expect) { e.Scope = "read:data.sales_q1_2026.x" }, ErrScope},
		{"two scopes in one", func(e *Expect) { e.Scope = "memory:get read:data.sales_q1_2026" }, ErrScope},
		{"wildcard", func(e *Expect) { e.Scope = "read:data.*" }, ErrScope},
		{"rest wildcard", func(e *Expect) { e.Scope = "read:>" }, ErrScope},
		{"other verb", func(e *Expect) { e.Scope = "write:data.sales_q1_2026" }, ErrScope},
		{"upper case", func(e *Expect) { e.Scope = "READ:data.sales_q1_2026" }, ErrScope},
		{"trailing NUL", func(e *Expect) { e.Scope = "memory:get\x00" }, ErrScope},
		{"look-alike scope", func(e *Expect) { e.Scope = "mеmory:get" }, ErrScope},
		{"tool", func(e *Expect) { e.Tool = "pandas" }, nil},
		{"tool as scope", func(e *Expect) { e.Scope = "call:pandas" }, nil},
		{"tool not listed", func(e *Expect) { e.Tool = "sql" }, ErrToolUnlisted},
		{"tool not listed, as scope", func(e *Expect) { e.Scope = "call:sql" }, ErrToolUnlisted},
		{"look-alike tool", func(e *Expect) { e.Tool = "pandаs" }, ErrToolUnlisted},
		{"any tool", func(e *Expect) { e.Tool = "*" }, ErrToolUnlisted},
		{"forbidden tool", func(e *Expect) { e.Tool = "bash" }, ErrForbidden},
		{"forbidden tool as scope", func(e *Expect) { e.Scope = "call:bash" }, ErrForbidden},
		{"good scope, forbidden tool", func(e *Expect) { e.Scope, e.Tool = "memory:get", "bash" }, ErrForbidden},
		{"one token left", func(e *Expect) { e.Metered, e.Spent = true, 49999 }, nil},
		{"budget spent", func(e *Expect) { e.Metered, e.Spent = true, 50000 }, ErrBudget},
		{"unmetered", func(e *Expect) { e.Spent = 60000 }, nil},
	}
	v, token := verifierOf(t, public(fixedKey(1))), sign(t, sample())
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := shown()
			c.change(&want)
			claims, err := v.Verify(token, want)
			onlyMatches(t, err, c.want)
			if claims == nil {
				t.Error("an authentic token's claims are lost")
			}
		})
	}
}

// onlyMatches checks that an error is of the one reason and of no other.
func onlyMatches(t *testing.T, err, want error) {
	t.Helper()
	if want == nil {
		if err != nil || Reason(err) != "" {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if Reason(err) != want.Error() {
		t.Errorf("%v: reason %q, want %q", err, Reason(err), want)
	}
	for _, r := range reasons {
		if errors.Is(err, r) != (r == want) {
			t.Errorf("%v: matches %q", err, r)
		}
	}
}

func TestDenialBeatsGrant(t *testing.T) {
	c := sample()
	c.ForbiddenTools = append(c.ForbiddenTools, "pandas")
	v := verifierOf(t, public(fixedKey(1)))
	want := shown()
	want.Tool = "pandas"
	got, err := v.Verify(sign(t, c), want)
	onlyMatches(t, err, ErrForbidden)
	if slices.Contains(got.Scopes(), "call:pandas") {
		t.Error("a forbidden tool is listed as granted")
	}
}

func TestNothingAskedNothingGranted(t *testing.T) {
	c := sample()
	c.Scope, c.Tools, c.MaxTokens = "", nil, 0
	v, token := verifierOf(t, public(fixedKey(1))), sign(t, c)
	for _, e := range []struct {
		change func(*Expect)
		want   error
	}{
		{func(e *Expect) { e.Scope = "memory:get" }, ErrScope},
		{func(e *Expect) { e.Tool = "pandas" }, ErrToolUnlisted},
		{func(e *Expect) { e.Metered = true }, ErrBudget},
	} {
		want := shown()
		e.change(&want)
		_, err := v.Verify(token, want)
		onlyMatches(t, err, e.want)
	}
}

func TestCertificateAndDPoPBindings(t *testing.T) {
	c := sample()
	c.Confirmation.X5T, c.Confirmation.JKT = b64(strings.Repeat("x", 32)), b64(strings.Repeat("y", 32))
	v, token := verifierOf(t, public(fixedKey(1))), sign(t, c)
	want := shown()
	_, err := v.Verify(token, want)
	onlyMatches(t, err, ErrPossession)
	want.CertThumbprint = c.Confirmation.X5T
	_, err = v.Verify(token, want)
	onlyMatches(t, err, ErrPossession)
	want.DPoPThumbprint = c.Confirmation.JKT
	_, err = v.Verify(token, want)
	onlyMatches(t, err, nil)
	want.PublicKey = other
	_, err = v.Verify(token, want)
	onlyMatches(t, err, ErrPossession)
}

// Over HTTP nobody shows an NKey: there the keys that the token is bound to
// must be shown, all of them, and one that is bound to none is worth nothing.
func TestWithoutAnNKeyTheBoundKeysMustBeShown(t *testing.T) {
	cert, key := b64(strings.Repeat("x", 32)), b64(strings.Repeat("y", 32))
	v := verifierOf(t, public(fixedKey(1)))
	for _, c := range []struct {
		name      string
		x5t, jkt  string
		cert, key string
		want      error
	}{
		{"bound to neither, nothing shown", "", "", "", "", ErrPossession},
		{"bound to neither, both shown", "", "", cert, key, ErrPossession},
		{"bound to the key, shown", "", key, "", key, nil},
		{"bound to the key, not shown", "", key, "", "", ErrPossession},
		{"bound to the key, another shown", "", key, "", cert, ErrPossession},
		{"bound to the key, certificate shown", "", key, key, "", ErrPossession},
		{"bound to the certificate, shown", cert, "", cert, "", nil},
		{"bound to the certificate, key shown", cert, "", "", cert, ErrPossession},
		{"bound to both, both shown", cert, key, cert, key, nil},
		{"bound to both, key shown", cert, key, "", key, ErrPossession},
		{"bound to both, certificate shown", cert, key, cert, "", ErrPossession},
	} {
		t.Run(c.name, func(t *testing.T) {
			claims := sample()
			claims.Confirmation.X5T, claims.Confirmation.JKT = c.x5t, c.jkt
			_, err := v.Verify(sign(t, claims), Expect{Time: during, CertThumbprint: c.cert, DPoPThumbprint: c.key})
			onlyMatches(t, err, c.want)
		})
	}
}

func TestForgedHeadersAreRefused(t *testing.T) {
	v := verifierOf(t, public(fixedKey(1)))
	kid, payload := signerOf(t, fixedKey(1)).KeyID(), payloadOf(t, sample())
	head := func(alg, more string) string {
		return `{"alg":"` + alg + `","kid":"` + kid + `","typ":"` + Type + `"` + more + `}`
	}
	hs := func(secret []byte) string {
		input := b64(head("HS256", "")) + "." + b64(payload)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + b64(string(mac.Sum(nil)))
	}
	set, err := MarshalJWKS(public(fixedKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := signerOf(t, fixedKey(9)).Sign(sample())
	if err != nil {
		t.Fatal(err)
	}
	good := forge(head("EdDSA", ""), payload)
	onlyMatches(t, func() error { _, err := v.Verify(good, shown()); return err }(), nil)
	parts := strings.Split(good, ".")
	cases := []struct {
		name, token string
		want        error
	}{
		{"alg none, unsigned", b64(head("none", "")) + "." + b64(payload) + ".", ErrMalformed},
		{"alg none, signed", forge(head("none", ""), payload), ErrMalformed},
		{"alg None", forge(head("None", ""), payload), ErrMalformed},
		{"HS256 with the raw public key", hs(public(fixedKey(1))), ErrMalformed},
		{"HS256 with the published set", hs(set), ErrMalformed},
		{"alg eddsa", forge(head("eddsa", ""), payload), ErrMalformed},
		{"alg twice", forge(head("EdDSA", `,"alg":"none"`), payload), ErrMalformed},
		{"ALG beside alg", forge(head("EdDSA", `,"ALG":"none"`), payload), ErrMalformed},
		{"another typ", forge(`{"alg":"EdDSA","kid":"`+kid+`","typ":"JWT"}`, payload), ErrMalformed},
		{"no typ", forge(`{"alg":"EdDSA","kid":"`+kid+`"}`, payload), ErrMalformed},
		{"jku", forge(head("EdDSA", `,"jku":"https://evil.example/jwks"`), payload), ErrMalformed},
		{"jwk", forge(head("EdDSA", `,"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+b64(string(public(fixedKey(9))))+`"}`), payload), ErrMalformed},
		{"x5c", forge(head("EdDSA", `,"x5c":[]`), payload), ErrMalformed},
		{"crit", forge(head("EdDSA", `,"crit":["exp"]`), payload), ErrMalformed},
		{"b64 false", forge(head("EdDSA", `,"b64":false,"crit":["b64"]`), payload), ErrMalformed},
		{"zip", forge(head("EdDSA", `,"zip":"DEF"`), payload), ErrMalformed},
		{"kid unknown", foreign, ErrUnknownKey},
		{"kid missing", forge(`{"alg":"EdDSA","typ":"`+Type+`"}`, payload), ErrUnknownKey},
		{"kid with NUL", forge(`{"alg":"EdDSA","kid":"`+kid+`\u0000","typ":"`+Type+`"}`, payload), ErrUnknownKey},
		{"kid a path", forge(`{"alg":"EdDSA","kid":"../../etc/passwd","typ":"`+Type+`"}`, payload), ErrUnknownKey},
		{"header no object", forge(`["EdDSA"]`, payload), ErrMalformed},
		{"header null", forge(`null`, payload), ErrMalformed},
		{"header deep", forge(strings.Repeat("[", 5000), payload), ErrMalformed},
		{"foreign signature", parts[0] + "." + parts[1] + "." + strings.Split(foreign, ".")[2], ErrSignature},
		{"signature of zeroes", parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\x00", 64)), ErrSignature},
		{"signature short", parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\x01", 63)), ErrSignature},
		{"signature empty", parts[0] + "." + parts[1] + ".", ErrMalformed},
		{"payload swapped", parts[0] + "." + b64(strings.Replace(payload, "analyst-7", "analyst-8", 2)) + "." + parts[2], ErrSignature},
		{"empty", "", ErrMalformed},
		{"two parts", parts[0] + "." + parts[1], ErrMalformed},
		{"four parts", good + "." + parts[2], ErrMalformed},
		{"leading space", " " + good, ErrMalformed},
		{"trailing newline", good + "\n", ErrMalformed},
		{"newline within", parts[0] + "." + parts[1] + ".\n" + parts[2], ErrMalformed},
		{"padding", good + "==", ErrMalformed},
		{"stray bits behind the signature", good[:len(good)-1] + string(nextBase64(good[len(good)-1])), ErrMalformed},
		{"standard alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(good), ErrMalformed},
		{"NUL", good + "\x00", ErrMalformed},
		{"JSON serialisation", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, ErrMalformed},
		{"over-long", good + strings.Repeat("A", MaxToken), ErrMalformed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			claims, err := v.Verify(c.token, shown())
			onlyMatches(t, err, c.want)
			if claims != nil {
				t.Error("claims of a token that is not authentic were given out")
			}
		})
	}
}

// nextBase64 changes a bit that a lenient decoder drops.
func nextBase64(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

func TestForgedClaimsAreRefused(t *testing.T) {
	v, base := verifierOf(t, public(fixedKey(1))), payloadOf(t, sample())
	swap := func(old, new string) string {
		if strings.Count(base, old) != 1 {
			t.Fatalf("%q stands %d times in %s", old, strings.Count(base, old), base)
		}
		return strings.Replace(base, old, new, 1)
	}
	with := func(more string) string { return base[:len(base)-1] + "," + more + "}" }
	scope := func(s string) string { return swap(`"scope":"call:matplotlib `, `"scope":"`+s+` `) }
	cases := []struct{ name, payload string }{
		{"claim twice", with(`"exp":9999999999`)},
		{"claim twice in cnf", swap(`"cnf":{`, `"cnf":{"nkey":"`+other+`",`)},
		{"claim in upper case", with(`"EXP":9999999999`)},
		{"claim by Unicode folding (long s)", with(`"ſub":"spiffe://acme.example/agent/root"`)},
		{"claim by Unicode folding (Kelvin sign)", with("\"tas\u212a\":null")},
		{"claim escaped and twice", with(`"\u0065xp":9999999999`)},
		{"unknown claim", with(`"admin":true`)},
		{"unknown claim in act", swap(`"act":{"sub":"alice"`, `"act":{"aud":"x","sub":"alice"`)},
		{"trailing data", base + base},
		{"not UTF-8", swap("Summarise", "Summ\xffarise")},
		{"array", "[" + base + "]"},
		{"null", "null"},
		{"aud a list", swap(`"aud":"acme.example"`, `"aud":["acme.example","evil"]`)},
		{"exp a text", swap(`"exp":1772366700`, `"exp":"1772366700"`)},
		{"exp a fraction", swap(`"exp":1772366700`, `"exp":1772366700.5`)},
		{"exp missing", swap(`"exp":1772366700,`, ``)},
		{"exp null", swap(`"exp":1772366700`, `"exp":null`)},
		{"exp huge", swap(`"exp":1772366700`, `"exp":9223372036854775807`)},
		{"exp over int64", swap(`"exp":1772366700`, `"exp":92233720368547758070`)},
		{"exp before nbf", swap(`"exp":1772366700`, `"exp":1772366399`)},
		{"over a day", swap(`"exp":1772366700`, `"exp":1772453000`)},
		{"nbf negative", swap(`"nbf":1772366400`, `"nbf":-1`)},
		{"other issuer", swap(`"iss":"spiffe://acme.example/issuer"`, `"iss":"spiffe://evil.example/issuer"`)},
		{"sub of another agent", swap(`"sub":"spiffe://acme.example/agent/analyst-7"`, `"sub":"spiffe://acme.example/agent/writer-2"`)},
		{"agent of another id", swap(`"agent_id":"analyst-7"`, `"agent_id":"analyst-8"`)},
		{"operation a wildcard", swap(`"operation_id":"report-2026-q1"`, `"operation_id":"*"`)},
		{"operation with dots", swap(`"operation_id":"report-2026-q1"`, `"operation_id":"a.b"`)},
		{"operation a reserved word", swap(`"operation_id":"report-2026-q1"`, `"operation_id":"token"`)},
		{"wildcard for all", scope("*")},
		{"wildcard as verb", scope("*:data")},
		{"wildcard as resource", scope("read:*")},
		{"wildcard token", scope("read:data.*.x")},
		{"rest wildcard", scope("read:data.>")},
		{"bare rest wildcard", scope(">")},
		{"path dots", scope("read:data..x")},
		{"leading dot", scope("read:.data")},
		{"trailing dot", scope("read:data.")},
		{"parent directory", scope("read:../data")},
		{"upper case", scope("read:Data")},
		{"look-alike letter", scope("reаd:data")},
		{"full-width letter", scope("read:ｄata")},
		{"zero-width joiner", scope("read:da\u200dta")},
		{"right-to-left override", scope("read:data\u202e")},
		{"embedded NUL", scope(`read:data\u0000`)},
		{"embedded newline", scope(`read:data\n`)},
		{"tab between scopes", scope(`memory:put\tmemory:list`)},
		{"unknown verb", scope("exec:data")},
		{"leading underscore", scope("call:_r")},
		{"two spaces", scope("memory:put ")},
		{"scope twice", scope("memory:get")},
		{"over-long resource", scope("read:" + strings.Repeat("a.", 100) + "a")},
		{"over-long tool", swap(`"tools":["matplotlib"`, `"tools":["`+strings.Repeat("a", 64)+`"`)},
		{"tool a wildcard", swap(`"tools":["matplotlib"`, `"tools":["*"`)},
		{"tool twice", swap(`"tools":["matplotlib"`, `"tools":["pandas"`)},
		{"tool with a dot", swap(`"tools":["matplotlib"`, `"tools":["a.b"`)},
		{"forbidden tool not an id", swap(`"forbidden_tools":["bash"`, `"forbidden_tools":["Bash"`)},
		{"budget negative", swap(`"max_tokens":50000`, `"max_tokens":-1`)},
		{"budget over 2^53", swap(`"max_tokens":50000`, `"max_tokens":9007199254740993`)},
		{"task altered", swap(`Summarise`, `Delete`)},
		{"task digest in upper case", swap(sample().Task.Digest, strings.ToUpper(sample().Task.Digest))},
		{"cnf missing", swap(`"cnf":{"nkey":"`+nkey+`"},`, ``)},
		{"cnf an account's key", swap(`"nkey":"U`, `"nkey":"A`)},
		{"cnf a seed", swap(`"nkey":"U`, `"nkey":"SU`)},
		{"trace missing", swap(`"txn":"0af7651916cd43dd8448eb211c80319c",`, ``)},
		{"jti missing", swap(`"jti":"j-1",`, ``)},
		{"jti with NUL", swap(`"jti":"j-1"`, `"jti":"j\u0000"`)},
		{"jti with a space", swap(`"jti":"j-1"`, `"jti":"j 1"`)},
		{"issued_by with an escape sequence", swap(`"issued_by":"orchestrator"`, `"issued_by":"\u001b[2J"`)},
		{"actors without end", swap(`"act":{"sub":"alice"}`, strings.Repeat(`"act":{"sub":"a",`, 20)+`"act":{"sub":"b"}`+strings.Repeat("}", 20))},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			claims, err := v.Verify(forge(goodHeader(t), c.payload), shown())
			onlyMatches(t, err, ErrMalformed)
			if claims != nil {
				t.Error("claims out of form were given out")
			}
		})
	}
}

func TestSignerRefusesWhatNoVerifierAccepts(t *testing.T) {
	s := signerOf(t, fixedKey(1))
	for name, change := range map[string]func(*Claims){
		"wildcard":      func(c *Claims) { c.Scope = "read:*" },
		"no end":        func(c *Claims) { c.Expires = 0 },
		"other domain":  func(c *Claims) { c.Issuer = IssuerURI("evil.example") },
		"no possession": func(c *Claims) { c.Confirmation.NKey = "" },
		"too long": func(c *Claims) {
			c.Scope = ""
			for i := range 400 {
				c.Tools = append(c.Tools, strings.Repeat("t", 50)+"-"+string(rune('a'+i%26))+string(rune('a'+i/26)))
			}
		},
	} {
		c := sample()
		change(&c)
		if token, err := s.Sign(c); !errors.Is(err, ErrMalformed) || token != "" {
			t.Errorf("%s: signed (%v)", name, err)
		}
	}
	if _, err := NewSigner("Evil Domain", fixedKey(1)); err == nil {
		t.Error("a signer for an impossible trust domain was made")
	}
	if _, err := NewSigner(domain, nil); err == nil {
		t.Error("a signer without key was made")
	}
}

func TestLongTaskTravelsAsDigestAlone(t *testing.T) {
	c := sample()
	c.Task = NewTask(strings.Repeat("x", MaxTaskText+1))
	got, err := verifierOf(t, public(fixedKey(1))).Verify(sign(t, c), shown())
	if err != nil || got.Task.Text != "" || got.Task.Digest != c.Task.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestKeySetsWithAnythingButPublicKeysAreRefused(t *testing.T) {
	good, err := MarshalJWKS(public(fixedKey(1)), public(fixedKey(2)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseJWKS(good)
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	one, err := MarshalJWKS(public(fixedKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	s := string(one)
	key := s[strings.Index(s, "[")+1 : strings.LastIndex(s, "]")]
	x := b64(string(public(fixedKey(1))))
	for name, set := range map[string]string{
		"empty":             `{"keys":[]}`,
		"null":              `null`,
		"private key":       strings.Replace(s, `"kty"`, `"d":"AAAA","kty"`, 1),
		"symmetric key":     `{"keys":[{"kty":"oct","k":"` + x + `"}]}`,
		"other curve":       strings.Replace(s, "Ed25519", "X25519", 1),
		"other algorithm":   strings.Replace(s, "EdDSA", "HS256", 1),
		"for encryption":    strings.Replace(s, `"sig"`, `"enc"`, 1),
		"kid not its own":   strings.Replace(s, `"kid":"`, `"kid":"x`, 1),
		"key twice":         `{"keys":[` + key + `,` + key + `]}`,
		"x too short":       strings.Replace(s, x, x[:len(x)-2], 1),
		"x with padding":    strings.Replace(s, x, x+"=", 1),
		"member twice":      strings.Replace(s, `"kty"`, `"x":"AAAA","kty"`, 1),
		"member in capital": strings.Replace(s, `"kty"`, `"X":"AAAA","kty"`, 1),
		"trailing data":     s + "{}",
	} {
		if _, err := NewVerifier(domain, []byte(set)); err == nil {
			t.Errorf("%s: taken: %s", name, set)
		}
	}
}

// Nothing that the verifier takes may differ from what the signer would write:
// one token, one encoding.
func FuzzVerify(f *testing.F) {
	v, s := verifierOf(f, public(fixedKey(1))), signerOf(f, fixedKey(1))
	f.Add(goodHeader(f), payloadOf(f, sample()))
	f.Add(`{"alg":"none"}`, `{}`)
	f.Add(goodHeader(f), `{"act":{"act":{}}}`)
	f.Fuzz(func(t *testing.T, head, payload string) {
		c, err := v.Verify(forge(head, payload), shown())
		if c == nil {
			if r := Reason(err); r == "error" || r == "" {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		token, err := s.Sign(*c)
		if err != nil {
			t.Fatalf("accepted, and can't be signed: %v", err)
		}
		again, err := v.Open(token)
		if err != nil || !reflect.DeepEqual(normal(*again), normal(*c)) {
			t.Fatalf("no fixpoint: %+v, %+v, %v", again, c, err)
		}
		for _, scope := range c.Scopes() {
			if err := schemas.CheckScope(scope); err != nil {
				t.Fatalf("granted %q: %v", scope, err)
			}
		}
	})
}

// normal makes empty and missing lists the same.
func normal(c Claims) Claims {
	if len(c.Tools) == 0 {
		c.Tools = nil
	}
	if len(c.ForbiddenTools) == 0 {
		c.ForbiddenTools = nil
	}
	return c
}

func FuzzOpenRaw(f *testing.F) {
	v := verifierOf(f, public(fixedKey(1)))
	good := sign(f, sample())
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := v.Open(token); err == nil && token != good {
			t.Fatalf("a token that was never signed: %+v", c)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s, c := signerOf(b, fixedKey(1)), sample()
	b.Run("token", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Sign(c); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ed25519", func(b *testing.B) {
		key, input := fixedKey(1), []byte(payloadOf(b, c))
		for b.Loop() {
			ed25519.Sign(key, input)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	v, token := verifierOf(b, public(fixedKey(1))), sign(b, sample())
	b.Run("token", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(token, shown()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ed25519", func(b *testing.B) {
		key := public(fixedKey(1))
		input := []byte(token[:strings.LastIndexByte(token, '.')])
		sig := ed25519.Sign(fixedKey(1), input)
		for b.Loop() {
			if !ed25519.Verify(key, input, sig) {
				b.Fatal("not verified")
			}
		}
	})
}
