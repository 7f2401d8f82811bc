package secevent

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const ours = "https://writ.acme.example"

// A transmitter is a source with its key.
type transmitter struct {
	t   *testing.T
	key crypto.Signer
	alg jose.SignatureAlgorithm
	src schemas.SignalSource
}

func newTransmitter(t *testing.T, id string, key crypto.Signer, alg jose.SignatureAlgorithm) *transmitter {
	t.Helper()
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id + "-1", Algorithm: string(alg), Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	src := schemas.SignalSource{ID: id, Issuer: "https://" + id + ".example", Audience: ours, JWKS: string(set), Agents: []string{"analyst-7"},
		Weight: map[string]int{"session-revoked": 90, "credential-change": -10, "risk-level-change": 60, "device-compliance-change": 50, "assurance-level-change": -20}}
	if err := src.Check(); err != nil {
		t.Fatal(err)
	}
	return &transmitter{t, key, alg, src}
}

func ed(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// claims are those of a good token.
func (x *transmitter) claims(event string, body map[string]any) map[string]any {
	return map[string]any{"iss": x.src.Issuer, "aud": []string{"https://other.example", ours}, "jti": "t-1", "iat": now.Unix(),
		"sub_id": map[string]any{"format": "opaque", "id": "analyst-7"}, "events": map[string]any{caep + event: body}, "txn": "8"}
}

func (x *transmitter) sign(c any, header map[jose.HeaderKey]any) string {
	x.t.Helper()
	payload, ok := c.([]byte)
	if !ok {
		var err error
		if payload, err = json.Marshal(c); err != nil {
			x.t.Fatal(err)
		}
	}
	o := (&jose.SignerOptions{}).WithType(Type)
	for k, v := range header {
		o = o.WithHeader(k, v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: x.alg, Key: jose.JSONWebKey{Key: x.key, KeyID: x.src.ID + "-1"}}, o)
	if err != nil {
		x.t.Fatal(err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		x.t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		x.t.Fatal(err)
	}
	return token
}

func TestEventsWeighWhatTheirSourceIsDeclaredWith(t *testing.T) {
	x := newTransmitter(t, "idp", ed(t), jose.EdDSA)
	for name, c := range map[string]struct {
		event string
		body  map[string]any
		want  int
	}{
		"revoked":             {"session-revoked", map[string]any{"reason_admin": map[string]string{"de": "weg", "en": "stolen"}}, 90},
		"a good without more": {"credential-change", map[string]any{"change_type": "update"}, -10},
		"high":                {"risk-level-change", map[string]any{"current_level": "HIGH", "risk_reason": "stolen"}, 60},
		"medium":              {"risk-level-change", map[string]any{"current_level": "MEDIUM"}, 30},
		"low":                 {"risk-level-change", map[string]any{"current_level": "LOW"}, 0},
		"not compliant":       {"device-compliance-change", map[string]any{"current_status": "not-compliant"}, 50},
		"compliant":           {"device-compliance-change", map[string]any{"current_status": "compliant"}, 0},
		"better assured":      {"assurance-level-change", map[string]any{"change_direction": "increase"}, -20},
		"worse assured":       {"assurance-level-change", map[string]any{"change_direction": "decrease"}, 0},
		"nobody knows":        {"assurance-level-change", map[string]any{"current_level": "nist-aal1"}, 0},
	} {
		s, err := Verify(x.sign(x.claims(c.event, c.body), nil), []schemas.SignalSource{x.src}, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Agent != "analyst-7" || s.Source != "idp" || s.Event != c.event || s.Points != c.want || s.Token != "t-1" || s.Issued != now.Unix() {
			t.Errorf("%s: %+v", name, s)
		}
		if (name == "revoked" || name == "high") && s.Reason != "stolen" {
			t.Errorf("%s: reason %q", name, s.Reason)
		}
	}
}

func TestPublicKeyAlgorithmsAreTaken(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key crypto.Signer
		alg jose.SignatureAlgorithm
	}{{ed(t), jose.EdDSA}, {p, jose.ES256}, {r, jose.RS256}, {r, jose.PS256}} {
		x := newTransmitter(t, "idp", c.key, c.alg)
		if _, err := Verify(x.sign(x.claims("session-revoked", nil), nil), []schemas.SignalSource{x.src}, now); err != nil {
			t.Errorf("%s: %v", c.alg, err)
		}
	}
}

// Whoever reaches the port can push anything; a source that was taken over can
// sign anything, and must stay within its declaration.
func TestATokenThatDoesNotCountIsRefusedByItsCode(t *testing.T) {
	x, other := newTransmitter(t, "idp", ed(t), jose.EdDSA), newTransmitter(t, "edr", ed(t), jose.EdDSA)
	other.src.Agents = []string{"writer-2"}
	stranger := newTransmitter(t, "stranger", ed(t), jose.EdDSA)
	sources := []schemas.SignalSource{x.src, other.src, {ID: "tokenless", Agents: []string{schemas.AnyAgent}, Weight: map[string]int{"session-revoked": 100}}}
	with := func(by *transmitter, change map[string]any) string {
		c := by.claims("session-revoked", map[string]any{})
		maps.Copy(c, change)
		for k, v := range c {
			if v == nil {
				delete(c, k)
			}
		}
		return by.sign(c, nil)
	}
	good := with(x, nil)
	if _, err := Verify(good, sources, now); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	forged := *x
	forged.key = stranger.key
	symmetric, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: []byte(x.src.JWKS)[:32], KeyID: "idp-1"}}, (&jose.SignerOptions{}).WithType(Type))
	if err != nil {
		t.Fatal(err)
	}
	hs, err := symmetric.Sign([]byte(`{"iss":"https://idp.example"}`))
	if err != nil {
		t.Fatal(err)
	}
	hmac, err := hs.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ token, code string }{
		"nothing":                 {"", InvalidRequest},
		"too large":               {good + strings.Repeat("A", MaxToken), InvalidRequest},
		"alg none":                {"eyJhbGciOiJub25lIiwidHlwIjoic2VjZXZlbnQrand0In0." + parts[1] + ".", InvalidRequest},
		"a secret in common":      {hmac, InvalidRequest},
		"signature of another":    {parts[0] + "." + parts[1] + "." + strings.Split(with(other, nil), ".")[2], InvalidKey},
		"claims of another token": {parts[0] + "." + strings.Split(with(x, map[string]any{"jti": "t-2"}), ".")[1] + "." + parts[2], InvalidKey},
		"key of nobody":           {forged.sign(x.claims("session-revoked", nil), nil), InvalidKey},
		"a key that it brings":    {forged.sign(x.claims("session-revoked", nil), map[jose.HeaderKey]any{"jku": "https://evil.example"}), InvalidKey},
		"issuer of nobody":        {with(stranger, nil), InvalidIssuer},
		"in another's name":       {with(other, map[string]any{"iss": x.src.Issuer}), InvalidKey},
		"issuer empty":            {with(x, map[string]any{"iss": ""}), InvalidRequest},
		"for somebody else":       {with(x, map[string]any{"aud": "https://other.example"}), InvalidAudience},
		"for nobody":              {with(x, map[string]any{"aud": nil}), InvalidAudience},
		"of another kind":         {x.sign(x.claims("session-revoked", nil), map[jose.HeaderKey]any{jose.HeaderType: "JWT"}), InvalidRequest},
		"with an expiry":          {with(x, map[string]any{"exp": now.Add(time.Hour).Unix()}), InvalidRequest},
		"with a sub":              {with(x, map[string]any{"sub": "analyst-7"}), InvalidRequest},
		"old":                     {with(x, map[string]any{"iat": now.Add(-MaxAge - time.Second).Unix()}), InvalidRequest},
		"of tomorrow":             {with(x, map[string]any{"iat": now.Add(MaxAhead + time.Second).Unix()}), InvalidRequest},
		"without a time":          {with(x, map[string]any{"iat": nil}), InvalidRequest},
		"without jti":             {with(x, map[string]any{"jti": nil}), InvalidRequest},
		"long jti":                {with(x, map[string]any{"jti": strings.Repeat("x", maxJTI+1)}), InvalidRequest},
		"about nobody":            {with(x, map[string]any{"sub_id": nil}), InvalidRequest},
		"about a foreign agent":   {with(x, map[string]any{"sub_id": map[string]any{"format": "opaque", "id": "writer-2"}}), AccessDenied},
		"about another's subject": {with(x, map[string]any{"sub_id": map[string]any{"format": "iss_sub", "iss": other.src.Issuer, "sub": "analyst-7"}}), InvalidRequest},
		"an event undeclared":     {x.sign(x.claims("token-claims-change", nil), nil), AccessDenied},
		"an event of others":      {with(x, map[string]any{"events": map[string]any{"https://evil.example/session-revoked": map[string]any{}}}), AccessDenied},
		"no event":                {with(x, map[string]any{"events": map[string]any{}}), InvalidRequest},
		"two events":              {with(x, map[string]any{"events": map[string]any{caep + "session-revoked": map[string]any{}, caep + "risk-level-change": map[string]any{}}}), InvalidRequest},
		"a level unknown":         {x.sign(x.claims("risk-level-change", map[string]any{"current_level": "low"}), nil), InvalidRequest},
		"a claim twice":           {x.sign([]byte(`{"iss":"https://idp.example","iss":"https://edr.example"}`), nil), InvalidRequest},
	} {
		s, err := Verify(c.token, sources, now)
		if err == nil || Code(err) != c.code {
			t.Errorf("%s: %+v, %v (%s, want %s)", name, s, err, Code(err), c.code)
		}
	}
}

func TestKeySetsHoldPublicKeysAlone(t *testing.T) {
	key := ed(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]any{
		"a private key":   []jose.JSONWebKey{{Key: key, KeyID: "a"}},
		"a secret":        []jose.JSONWebKey{{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "a"}},
		"without a name":  []jose.JSONWebKey{{Key: key.Public()}},
		"one name twice":  []jose.JSONWebKey{{Key: key.Public(), KeyID: "a"}, {Key: ed(t).Public(), KeyID: "a"}},
		"to encrypt":      []jose.JSONWebKey{{Key: key.Public(), KeyID: "a", Use: "enc"}},
		"of no algorithm": []jose.JSONWebKey{{Key: key.Public(), KeyID: "a", Algorithm: "none"}},
		"a short RSA key": []jose.JSONWebKey{{Key: weak.Public(), KeyID: "a"}},
		"nothing":         []jose.JSONWebKey{},
		"what is no key":  []string{"x"},
	} {
		data, err := json.Marshal(map[string]any{"keys": set})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Keys(data); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzVerify(f *testing.F) {
	x := newTransmitter(&testing.T{}, "idp", ed(&testing.T{}), jose.EdDSA)
	f.Add(x.sign(x.claims("session-revoked", nil), nil))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if s, err := Verify(token, []schemas.SignalSource{x.src}, now); err == nil && (s.Agent != "analyst-7" || s.Points > 90) {
			t.Fatalf("%+v", s)
		}
	})
}
