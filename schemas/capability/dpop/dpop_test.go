package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	origin = "https://api.example"
	token  = "the-token"
)

var now = time.Unix(1_790_000_000, 0)

func checker(t testing.TB, change ...func(*Options)) *Checker {
	t.Helper()
	o := Options{Origins: []string{origin}, Now: func() time.Time { return now }}
	for _, c := range change {
		c(&o)
	}
	c, err := NewChecker(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func anybody(p Proof) (string, error) { return p.Thumbprint, nil }

func prover(t testing.TB) *Prover {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProver(private)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func proof(t testing.TB, p *Prover, change ...func(*claims)) string {
	t.Helper()
	c := claims{ID: rand.Text(), Method: "POST", URL: origin + "/v1/x", Issued: now.Unix(), Token: hash(token)}
	for _, f := range change {
		f(&c)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, p.signer, string(b))
}

func signed(t testing.TB, s jose.Signer, payload string) string {
	t.Helper()
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func request(proofs ...string) *http.Request {
	r := httptest.NewRequest("POST", "http://attacker-chosen.example/v1/x?q=1", nil)
	for _, p := range proofs {
		r.Header.Add(Header, p)
	}
	return r
}

// only demands that an error matches one reason and no other.
func only(t *testing.T, err, want error) {
	t.Helper()
	for _, r := range reasons {
		if errors.Is(err, r) != (r == want) {
			t.Errorf("%v: matches %q: %v", err, r, errors.Is(err, r))
		}
	}
	if want == nil && err != nil {
		t.Error(err)
	}
}

func TestBothAlgorithmsProvePossession(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []crypto.Signer{ed, ec} {
		p, err := NewProver(private)
		if err != nil {
			t.Fatal(err)
		}
		made, err := p.Prove("POST", origin+"/v1/x", token, "", now)
		if err != nil {
			t.Fatal(err)
		}
		got, err := checker(t).Check(request(made), token, anybody)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Thumbprint(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		if got.Thumbprint != want || p.Thumbprint() != want {
			t.Errorf("thumbprint %s, want %s", got.Thumbprint, want)
		}
		if _, isEd := private.(ed25519.PrivateKey); isEd != (got.Ed25519 != nil) {
			t.Errorf("%T: Ed25519 is %v", private, got.Ed25519)
		}
	}
}

// Who listens on the way, or in a log, has the proof of one request: for
// another method, URL, token, or time it is worth nothing.
func TestAProofIsForOneRequest(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*claims)
		want   error
	}{
		"another method":             {func(c *claims) { c.Method = "GET" }, ErrMethod},
		"method in lower case":       {func(c *claims) { c.Method = "post" }, ErrMethod},
		"another path":               {func(c *claims) { c.URL = origin + "/v1/y" }, ErrURL},
		"path below":                 {func(c *claims) { c.URL = origin + "/v1/x/" }, ErrURL},
		"another host":               {func(c *claims) { c.URL = "https://api.example.evil/v1/x" }, ErrURL},
		"the Host that was sent":     {func(c *claims) { c.URL = "http://attacker-chosen.example/v1/x" }, ErrURL},
		"another port":               {func(c *claims) { c.URL = "https://api.example:8443/v1/x" }, ErrURL},
		"without TLS":                {func(c *claims) { c.URL = "http://api.example/v1/x" }, ErrURL},
		"user in the URL":            {func(c *claims) { c.URL = "https://api.example@evil.example/v1/x" }, ErrURL},
		"look-alike host":            {func(c *claims) { c.URL = "https://аpi.example/v1/x" }, ErrURL},
		"look-alike path":            {func(c *claims) { c.URL = origin + "/v1/х" }, ErrURL},
		"encoded slash":              {func(c *claims) { c.URL = origin + "/v1%2Fx" }, ErrURL},
		"another token":              {func(c *claims) { c.Token = hash("another") }, ErrToken},
		"no token":                   {func(c *claims) { c.Token = "" }, ErrToken},
		"a second too old":           {func(c *claims) { c.Issued = now.Add(-MaxAge - time.Second).Unix() }, ErrTime},
		"a second too far ahead":     {func(c *claims) { c.Issued = now.Add(MaxSkew + time.Second).Unix() }, ErrTime},
		"no time":                    {func(c *claims) { c.Issued = 0 }, ErrTime},
		"no id":                      {func(c *claims) { c.ID = "" }, ErrMalformed},
		"an endless id":              {func(c *claims) { c.ID = strings.Repeat("x", MaxID+1) }, ErrMalformed},
		"a nonce that nobody wanted": {func(c *claims) { c.Nonce = "x" }, nil},
		"as old as possible":         {func(c *claims) { c.Issued = now.Add(-MaxAge).Unix() }, nil},
		"as far ahead as possible":   {func(c *claims) { c.Issued = now.Add(MaxSkew).Unix() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := checker(t).Check(request(proof(t, prover(t), c.change)), token, anybody)
			only(t, err, c.want)
		})
	}
}

func TestURLsAreComparedNormalised(t *testing.T) {
	for _, same := range []string{
		"HTTPS://API.example/v1/x", "https://api.example:443/v1/x", origin + "/v1/x?another=query#fragment",
		origin + "/v1/./x", origin + "/v1/y/../x", origin + "/v1/%78", origin + "/%76%31/x", origin + "/v1/%2e/x",
	} {
		_, err := checker(t).Check(request(proof(t, prover(t), func(c *claims) { c.URL = same })), token, anybody)
		if err != nil {
			t.Errorf("%s: %v", same, err)
		}
	}
	for a, b := range map[string]string{"https://h": "https://h/", "http://H:80/a%2fb": "http://h/a%2Fb", "http://[::1]:80/": "http://[::1]/"} {
		ao, ap, err := split(a)
		if err != nil {
			t.Fatal(err)
		}
		bo, bp, err := split(b)
		if err != nil {
			t.Fatal(err)
		}
		if ao != bo || ap != bp {
			t.Errorf("%s is %s%s, %s is %s%s", a, ao, ap, b, bo, bp)
		}
	}
}

func TestAProofIsSpentOnce(t *testing.T) {
	c, p := checker(t), prover(t)
	one := proof(t, p)
	if _, err := c.Check(request(one), token, anybody); err != nil {
		t.Fatal(err)
	}
	_, err := c.Check(request(one), token, anybody)
	only(t, err, ErrReplay)
	// The same jti in a new proof of the same key is the same proof; of another
	// key it is another's.
	again := func(cl *claims) { cl.ID = "chosen" }
	_, err = c.Check(request(proof(t, p, again)), token, anybody)
	only(t, err, nil)
	_, err = c.Check(request(proof(t, p, again, func(cl *claims) { cl.Issued-- })), token, anybody)
	only(t, err, ErrReplay)
	_, err = c.Check(request(proof(t, prover(t), again)), token, anybody)
	only(t, err, nil)
}

// Replays that race for the moment before the first is noted.
func TestOfManyReplaysAtOnceOneIsTaken(t *testing.T) {
	c, one := checker(t), proof(t, prover(t))
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := c.Check(request(one), token, anybody); err == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("%d of 32 were taken", n)
	}
}

// A proof is remembered for as long as its time admits it, at every moment.
func TestAProofIsRememberedAsLongAsItCouldBeTaken(t *testing.T) {
	clock := now
	c := checker(t, func(o *Options) { o.Now = func() time.Time { return clock } })
	one := proof(t, prover(t), func(cl *claims) { cl.Issued = now.Add(MaxSkew).Unix() })
	if _, err := c.Check(request(one), token, anybody); err != nil {
		t.Fatal(err)
	}
	for after := time.Duration(0); after <= MaxAge+2*MaxSkew; after += 500 * time.Millisecond {
		clock = now.Add(after)
		if _, err := c.Check(request(one), token, anybody); !errors.Is(err, ErrReplay) && !errors.Is(err, ErrTime) {
			t.Fatalf("after %s: %v", after, err)
		}
	}
	if len(c.seen.ids) != 1 {
		t.Fatalf("%d are remembered", len(c.seen.ids))
	}
	if _, err := c.Check(request(proof(t, prover(t), func(cl *claims) { cl.Issued = clock.Unix() })), token, anybody); err != nil {
		t.Fatal(err)
	}
	if len(c.seen.ids) != 1 || len(c.seen.of) != 1 {
		t.Errorf("%d proofs of %d keys are remembered, of which one could be taken", len(c.seen.ids), len(c.seen.of))
	}
}

// A flood of proofs fills the memory: then everything new is refused, and
// nothing that was seen is forgotten. One holder alone can't fill it, with however
// many keys.
func TestAFullMemoryRefuses(t *testing.T) {
	var s seen
	for n := range maxSeenHolder {
		if err := s.add("flooder", fmt.Sprint("key ", n%100), fmt.Sprint(n), now); err != nil {
			t.Fatal(err)
		}
	}
	only(t, s.add("flooder", "new key", "one more", now), ErrFull)
	if err := s.add("another", "k", "first", now); err != nil {
		t.Fatal(err)
	}
	for k := 0; len(s.queue) < maxSeen; k++ {
		if err := s.add(fmt.Sprint("holder ", k%1000), "k", fmt.Sprint(k), now); err != nil {
			t.Fatal(err)
		}
	}
	only(t, s.add("newcomer", "k", "x", now), ErrFull)
	only(t, s.add("another", "k", "first", now), ErrReplay)
	only(t, s.add("newcomer", "k", "x", now.Add(seenFor+time.Second)), nil)
}

// Who stole a token makes proofs with keys of its own: they are refused, and take
// no room.
func TestAThiefsProofsAreNotRemembered(t *testing.T) {
	c, own := checker(t), prover(t)
	whose := func(p Proof) (string, error) {
		if p.Thumbprint != own.Thumbprint() {
			return "", errors.New("another's key")
		}
		return "alice", nil
	}
	for range 10 {
		if _, err := c.Check(request(proof(t, prover(t))), token, whose); err == nil || err.Error() != "another's key" {
			t.Fatal(err)
		}
	}
	if len(c.seen.ids) != 0 {
		t.Errorf("%d proofs of a thief are remembered", len(c.seen.ids))
	}
	if _, err := c.Check(request(proof(t, own)), token, whose); err != nil || c.seen.of["alice"] != 1 {
		t.Errorf("%v, %v", err, c.seen.of)
	}
}

func TestANonceTiesAProofToOneChecker(t *testing.T) {
	clock := now
	demanding := func(o *Options) { o.Nonce, o.Now = true, func() time.Time { return clock } }
	c, p := checker(t, demanding), prover(t)
	with := func(nonce string) string {
		return proof(t, p, func(cl *claims) { cl.Nonce, cl.Issued = nonce, clock.Unix() })
	}
	_, err := c.Check(request(with("")), token, anybody)
	only(t, err, ErrNonce)
	nonce := c.NonceFor()
	_, err = c.Check(request(with(nonce)), token, anybody)
	only(t, err, nil)
	// Whoever restarts the service, to have a proof taken twice.
	_, err = checker(t, demanding).Check(request(with(nonce)), token, anybody)
	only(t, err, ErrNonce)
	clock = clock.Add(nonceTurn)
	if c.NonceFor() == nonce {
		t.Error("the nonce did not turn")
	}
	_, err = c.Check(request(with(nonce)), token, anybody)
	only(t, err, nil)
	clock = clock.Add(nonceTurn)
	_, err = c.Check(request(with(nonce)), token, anybody)
	only(t, err, ErrNonce)
	if got := checker(t).NonceFor(); got != "" {
		t.Errorf("nonce %q, where none is demanded", got)
	}
}

func TestOneProofAndOneToken(t *testing.T) {
	p := prover(t)
	_, err := checker(t).Check(request(), token, anybody)
	only(t, err, ErrMissing)
	_, err = checker(t).Check(request(proof(t, p), proof(t, p)), token, anybody)
	only(t, err, ErrMalformed)
	_, err = checker(t).Check(request(proof(t, p)), "", anybody)
	only(t, err, ErrToken)
}

// Forgers choose header and key themselves.
func TestForgedProofsAreRefused(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	x := base64.RawURLEncoding.EncodeToString(public)
	ours := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": x}
	private256 := maps.Clone(ours)
	private256["d"] = base64.RawURLEncoding.EncodeToString(private.Seed())
	payload := fmt.Sprintf(`{"jti":"a","htm":"POST","htu":"%s/v1/x","iat":%d,"ath":"%s"}`, origin, now.Unix(), hash(token))
	head := func(change map[string]any) string {
		h := map[string]any{"typ": Type, "alg": "EdDSA", "jwk": ours}
		maps.Copy(h, change)
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	eddsa := func(head, payload string) string {
		input := b64(head) + "." + b64(payload)
		return input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input)))
	}
	mac := func(head, payload string, secret []byte) string {
		input := b64(head) + "." + b64(payload)
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	embedded := func(alg jose.SignatureAlgorithm, k any) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k}, (&jose.SignerOptions{EmbedJWK: true}).WithType(Type))
		if err != nil {
			t.Fatal(err)
		}
		return signed(t, s, payload)
	}
	good := eddsa(head(nil), payload)
	if _, err := checker(t).Check(request(good), token, anybody); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	for name, c := range map[string]struct {
		proof string
		want  error
	}{
		"alg none":                    {b64(head(map[string]any{"alg": "none"})) + "." + parts[1] + ".", ErrMalformed},
		"alg none, signed":            {eddsa(head(map[string]any{"alg": "none"}), payload), ErrMalformed},
		"HS256 with the public key":   {mac(head(map[string]any{"alg": "HS256"}), payload, public), ErrMalformed},
		"HS256 with a secret of ours": {mac(head(map[string]any{"alg": "HS256", "jwk": map[string]any{"kty": "oct", "k": "AAAA"}}), payload, []byte{0, 0, 0}), ErrMalformed},
		"RS256":                       {embedded(jose.RS256, rs), ErrMalformed},
		"ES384":                       {embedded(jose.ES384, ec), ErrMalformed},
		"ES256 over an Ed25519 key":   {eddsa(head(map[string]any{"alg": "ES256"}), payload), ErrMalformed},
		"typ of a capability":         {eddsa(head(map[string]any{"typ": "writ-capability+jwt"}), payload), ErrMalformed},
		"typ JWT":                     {eddsa(head(map[string]any{"typ": "JWT"}), payload), ErrMalformed},
		"typ in capitals":             {eddsa(head(map[string]any{"typ": "DPOP+JWT"}), payload), ErrMalformed},
		"no key":                      {eddsa(`{"typ":"dpop+jwt","alg":"EdDSA"}`, payload), ErrMalformed},
		"kid in place of a key":       {eddsa(`{"typ":"dpop+jwt","alg":"EdDSA","kid":"x"}`, payload), ErrMalformed},
		"private key":                 {eddsa(head(map[string]any{"jwk": private256}), payload), ErrMalformed},
		"key from elsewhere":          {eddsa(head(map[string]any{"jku": "https://evil.example"}), payload), ErrMalformed},
		"critical extension":          {eddsa(head(map[string]any{"crit": []string{"b64"}, "b64": false}), payload), ErrMalformed},
		"two keys":                    {eddsa(`{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"`+x+`"},"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+x+`"}}`, payload), ErrMalformed},
		"two values in the key":       {eddsa(`{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA","x":"`+x+`"}}`, payload), ErrMalformed},
		"another's key":               {eddsa(head(map[string]any{"jwk": map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(strings.Repeat("k", 32))}}), payload), ErrSignature},
		"changed claims":              {parts[0] + "." + b64(strings.Replace(payload, "POST", "GET", 1)) + "." + parts[2], ErrSignature},
		"duplicate claims":            {eddsa(head(nil), strings.Replace(payload, `"htm":"POST"`, `"htm":"GET","htm":"POST"`, 1)), ErrMalformed},
		"look-alike claims":           {eddsa(head(nil), strings.Replace(payload, `"ath"`, `"ＡTH":"","ath"`, 1)), ErrMalformed},
		"claims in capitals":          {eddsa(head(nil), strings.Replace(payload, `"htm"`, `"HTM"`, 1)), ErrMalformed},
		"unknown claim":               {eddsa(head(nil), strings.Replace(payload, `"jti"`, `"sub":"x","jti"`, 1)), ErrMalformed},
		"padded":                      {good + "=", ErrMalformed},
		"white space":                 {" " + good, ErrMalformed},
		"stray bits":                  {good[:len(good)-1] + string(good[len(good)-1]+1), ErrMalformed},
		"two parts":                   {parts[0] + "." + parts[1], ErrMalformed},
		"JSON serialisation":          {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, ErrMalformed},
		"over-long":                   {strings.Repeat("a", MaxProof) + good, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := checker(t).Check(request(c.proof), token, anybody)
			only(t, err, c.want)
		})
	}
}

func TestACheckerNamesItsService(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"api.example"}, {"ftp://api.example"}, {"https://api.example/path"}, {"https://user@api.example"}} {
		if _, err := NewChecker(Options{Origins: bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := NewProver(&rsa.PrivateKey{}); err == nil {
		t.Error("a prover took an RSA key")
	}
}

func TestEveryReasonHasItsWord(t *testing.T) {
	words := map[string]bool{}
	for _, r := range reasons {
		word := Reason(fmt.Errorf("x: %w", r))
		if word == "" || words[word] {
			t.Errorf("reason %q", word)
		}
		words[word] = true
	}
	if Reason(errors.New("x")) != "" || Reason(nil) != "" {
		t.Error("a reason for nothing")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(proof(f, prover(f)))
	f.Add("e30.e30.e30")
	f.Fuzz(func(t *testing.T, s string) {
		p, _, err := open(s)
		if err == nil && p.Thumbprint == "" {
			t.Error("a proof without a key")
		}
		if err != nil && Reason(err) == "" {
			t.Errorf("no reason: %v", err)
		}
	})
}
