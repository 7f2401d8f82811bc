package plane

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// pushed is what an HTTP push of a token comes to.
func pushed(t *testing.T, p *Plane, kind, token string) (code int, err string) {
	t.Helper()
	r, e := http.Post(p.HTTP()+"/signals", kind, strings.NewReader(token))
	must(t, e)
	defer r.Body.Close()
	body, e := io.ReadAll(r.Body)
	must(t, e)
	var answer struct{ Err, Description string }
	if len(body) > 0 {
		must(t, json.Unmarshal(body, &answer))
	}
	return r.StatusCode, answer.Err
}

// Whoever reaches the port sends tokens without an end, and as many as it likes:
// they keep no source from being heard.
func TestTokensThatAreSentSlowlyDelayNoSource(t *testing.T) {
	p, err := Start(t.Context(), Options{Data: t.TempDir(), Actor: "test"})
	must(t, err)
	defer func() { must(t, p.Stop(t.Context())) }()
	begun := make(chan struct{}, 2*tokensOpen)
	for range cap(begun) {
		body, end := io.Pipe()
		defer end.Close()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.HTTP()+"/signals", body)
		must(t, err)
		r.Header.Set("Content-Type", secevent.MediaType)
		r.Header.Set("Expect", "100-continue")
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { begun <- struct{}{} }}))
		go func() {
			if res, err := http.DefaultClient.Do(r); err == nil { // refused, or cut off
				_ = res.Body.Close()
				begun <- struct{}{}
			}
		}()
	}
	for range cap(begun) {
		<-begun
	}
	if code, e := pushed(t, p, secevent.MediaType, "x.y.z"); code != http.StatusBadRequest {
		t.Errorf("a source is not heard: %d %s", code, e)
	}
}

// An identity provider pushes: what it is declared with counts, once, also over a
// restart; what it is not, or what anybody else pushes, does not.
func TestPushedTokensRaiseRiskOnceAndWithinTheDeclaration(t *testing.T) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k", Algorithm: "EdDSA", Use: "sig"}}})
	must(t, err)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	must(t, os.WriteFile(file, []byte(`trust_domain: acme.example
agents: [{id: alice}, {id: bob}]
signals:
  - id: idp
    issuer: https://idp.example
    audience: https://writ.example
    jwks: '`+string(set)+`'
    agents: [alice]
    weight: {session-revoked: 95, risk-level-change: 40}
`), 0o600))
	o := Options{Data: t.TempDir(), Fleet: file, Actor: "test"}
	token := func(jti, agent, event, body string) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, (&jose.SignerOptions{}).WithType(secevent.Type))
		must(t, err)
		payload, err := json.Marshal(map[string]any{"iss": "https://idp.example", "aud": "https://writ.example", "jti": jti, "iat": time.Now().Unix(),
			"sub_id": map[string]string{"format": "opaque", "id": agent},
			"events": map[string]json.RawMessage{"https://schemas.openid.net/secevent/caep/event-type/" + event: json.RawMessage(body)}})
		must(t, err)
		signed, err := s.Sign(payload)
		must(t, err)
		text, err := signed.CompactSerialize()
		must(t, err)
		return text
	}
	high := token("1", "alice", "risk-level-change", `{"current_level":"HIGH","risk_reason":"odd"}`)
	for range 2 {
		p, err := Start(t.Context(), o)
		must(t, err)
		operator, err := p.Operator()
		must(t, err)
		for range 2 {
			if code, e := pushed(t, p, secevent.MediaType, high); code != http.StatusAccepted {
				t.Errorf("a good token: %d %s", code, e)
			}
		}
		r, err := bus.Call[schemas.RiskReply](t.Context(), operator, schemas.CtlRisk, schemas.RiskRequest{AgentID: "alice"})
		must(t, err)
		if r.Risk < 39 || r.Risk > 40 {
			t.Errorf("alice has risk %d", r.Risk)
		}
		for name, c := range map[string]struct{ kind, token, err string }{
			"another content type":  {"application/json", high, secevent.InvalidRequest},
			"a token changed":       {secevent.MediaType, high[:len(high)-8] + "AAAAAAAA", secevent.InvalidKey},
			"a jti used again":      {secevent.MediaType, token("1", "alice", "session-revoked", `{}`), secevent.InvalidRequest},
			"about a foreign agent": {secevent.MediaType, token("2", "bob", "session-revoked", `{}`), secevent.AccessDenied},
			"an undeclared event":   {secevent.MediaType, token("3", "alice", "credential-change", `{}`), secevent.AccessDenied},
			"too much":              {secevent.MediaType, strings.Repeat("x", secevent.MaxToken+1), secevent.InvalidRequest},
		} {
			if code, e := pushed(t, p, c.kind, c.token); code != http.StatusBadRequest || e != c.err {
				t.Errorf("%s: %d %s", name, code, e)
			}
		}
		operator.Close()
		must(t, p.Stop(t.Context()))
		o.Fleet = "" // declared already; the monitor goes on from its snapshot
	}

	p, err := Start(t.Context(), o)
	must(t, err)
	defer func() { must(t, p.Stop(t.Context())) }()
	operator, err := p.Operator()
	must(t, err)
	defer operator.Close()
	if code, e := pushed(t, p, secevent.MediaType, token("4", "alice", "session-revoked", `{}`)); code != http.StatusAccepted {
		t.Fatalf("a good token: %d %s", code, e)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s, err := bus.Call[schemas.StatusReply](t.Context(), operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: "alice"})
		must(t, err)
		if s.Agents[0].State == schemas.Suspended {
			// The issuer has it from the log, which the ledger follows.
			_, err := bus.Call[schemas.Head](t.Context(), operator, schemas.CtlHead, schemas.HeadRequest{Min: s.Agents[0].LastSeq})
			must(t, err)
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a signal of 95 does not suspend: %+v", s.Agents[0])
		}
	}
	log, err := bus.Call[schemas.ReadReply](t.Context(), operator, schemas.CtlRead, schemas.ReadRequest{Agent: "alice", Limit: 1000})
	must(t, err)
	signals := 0
	for _, r := range log.Records {
		if strings.HasSuffix(r.Subject, ".risk.signal") {
			signals++
		}
	}
	if signals != 2 {
		t.Errorf("%d signals stand in the log", signals)
	}
}
