package serve

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/httpcap"
)

// A client speaks to the issuer's API with a credential that a command wrote.
type client struct {
	*rig
	base   string
	jwt    string
	prover *dpop.Prover
	nonce  string
}

func (r *rig) over(base, creds string) *client {
	r.Helper()
	b, err := os.ReadFile(creds)
	r.must(err)
	token, err := jwt.ParseDecoratedJWT(b)
	r.must(err)
	pair, err := jwt.ParseDecoratedNKey(b)
	r.must(err)
	seed, err := pair.Seed()
	r.must(err)
	_, raw, err := nkeys.DecodeSeed(seed)
	r.must(err)
	prover, err := dpop.NewProver(ed25519.NewKeyFromSeed(raw))
	r.must(err)
	return &client{rig: r, base: base, jwt: token, prover: prover}
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// post asks, and once more with the nonce of the first answer.
func (c *client) post(path string, body any) (status int, answer []byte) {
	c.Helper()
	for range 2 {
		req, err := http.NewRequestWithContext(c.ctx, "POST", c.base+path, bytes.NewReader(schemas.Marshal(body)))
		c.must(err)
		proof, err := c.prover.Prove("POST", c.base+path, c.jwt, c.nonce, time.Now())
		c.must(err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "DPoP "+c.jwt)
		req.Header.Set(dpop.Header, proof)
		status, answer, c.nonce = c.do(req)
		if status != http.StatusUnauthorized {
			break
		}
	}
	return status, answer
}

func (r *rig) do(req *http.Request) (status int, answer []byte, nonce string) {
	r.Helper()
	res, err := cmp.Or(r.http, http.DefaultClient).Do(req)
	r.must(err)
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	r.must(err)
	return res.StatusCode, answer, res.Header.Get(dpop.HeaderNonce)
}

func (r *rig) get(address string) (status int, answer []byte) {
	r.Helper()
	req, err := http.NewRequestWithContext(r.ctx, "GET", address, nil)
	r.must(err)
	status, answer, _ = r.do(req)
	return status, answer
}

// An issuer that runs apart is asked over HTTP as the one of writ up is, with its
// own keys alone, and tells webhooks.
func TestAnIssuerApartServesItsAPIAndTellsWebhooks(t *testing.T) {
	r := newRig(t, fleet, bound)
	for _, service := range []string{"issuer", "ledger", "monitor"} {
		r.serve(service)
	}
	var said struct {
		HTTP string `json:"http_url"`
	}
	r.must(json.Unmarshal([]byte(r.services["issuer"].said.String()), &said))
	if !strings.HasPrefix(said.HTTP, "http://127.0.0.1:") {
		t.Fatalf("it says %s", r.services["issuer"].said)
	}
	r.mustOperate("apply", "-f", r.path("fleet.yaml"))
	r.mustOperate("enroll", "sender", "--out", r.path("sender.creds"))
	r.mustOperate("enroll", "amy", "--out", r.path("amy.creds"))

	// Capabilities and keys.
	agent, operator := r.over(said.HTTP, r.path("sender.creds")), r.over(said.HTTP, r.path("amy.creds"))
	status, b := agent.post("/v1/tokens", map[string]any{"operation_id": "op", "scope": []string{"send:receiver"}})
	var grant schemas.IssueReply
	if status != http.StatusOK || schemas.Unmarshal(b, &grant) != nil {
		t.Fatalf("%d %s", status, b)
	}
	status, keys := r.get(said.HTTP + "/.well-known/jwks.json")
	verifier, err := capability.NewVerifier("apart.example", keys)
	if status != http.StatusOK || err != nil {
		t.Fatalf("%d %s %v", status, keys, err)
	}
	if c, err := verifier.Verify(grant.Token, capability.Expect{Time: time.Now(), Scope: "send:receiver", Delivered: true}); err != nil || c.AgentID != "sender" {
		t.Errorf("%+v, %v", c, err)
	}
	if status, b := operator.post("/v1/tokens", map[string]any{"operation_id": "op"}); status != http.StatusUnauthorized || !strings.Contains(string(b), "bad signature") {
		t.Errorf("an operator takes a capability: %d %s", status, b)
	}

	// What it asks other services for, with the rights that it has.
	status, b = r.get(said.HTTP + "/readyz")
	var health []schemas.Health
	r.must(json.Unmarshal(b, &health))
	var names []string
	for _, h := range health {
		names = append(names, h.Service)
	}
	slices.Sort(names)
	if want := []string{"issuer", "ledger", "monitor", "release"}; status != http.StatusServiceUnavailable || !slices.Equal(names, want) {
		t.Errorf("ready without intake: %d %v", status, names)
	}
	_, b = r.get(said.HTTP + "/metrics")
	for _, line := range []string{`writ_service_up{service="monitor"} 1`, `writ_service_up{service="intake"} 0`, `writ_agents{state="active"} 5`, "writ_ledger_records "} {
		if !strings.Contains(string(b), line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	push, err := http.NewRequestWithContext(r.ctx, "POST", said.HTTP+"/signals", strings.NewReader("e30.e30.e30"))
	r.must(err)
	push.Header.Set("Content-Type", secevent.MediaType)
	if status, b, _ := r.do(push); status != http.StatusBadRequest || !strings.Contains(string(b), `"err":`) {
		t.Errorf("the monitor is not asked about a token: %d %s", status, b)
	}
	if status, b := r.get(said.HTTP + "/log/checkpoint"); status != http.StatusNotFound {
		t.Errorf("the tiles of a ledger that is elsewhere: %d %s", status, b)
	}

	// A named operator's kill, and who is told of it.
	told := make(chan string, 1)
	out, err := r.command("writ", "webhook", "add", "chat", "--url", r.receiver(told), "--event", "killed", "--json", "--data", r.machine("issuer")).Output()
	r.must(err)
	var hook struct {
		Secret string `json:"secret"`
	}
	r.must(json.Unmarshal(out, &hook))
	r.await("the webhook to be taken up", func() error {
		_, err := os.Stat(r.path("machines", "issuer", "webhooks", "chat.seq"))
		return err
	})
	if status, b := operator.post("/v1/agents/sender/lock", map[string]any{"lock": "killed", "reason": "hijacked"}); status != http.StatusOK {
		t.Fatalf("kill: %d %s", status, b)
	}
	status, b = agent.post("/v1/tokens", map[string]any{"operation_id": "op"})
	var why httpcap.Problem
	r.must(json.Unmarshal(b, &why))
	if status != http.StatusUnauthorized || why.Reason != "revoked" {
		t.Errorf("killed, it is told %d %+v", status, why)
	}
	verify, err := standard.NewWebhook(hook.Secret)
	r.must(err)
	select {
	case message := <-told:
		head, body, _ := strings.Cut(message, "\n")
		var h http.Header
		r.must(json.Unmarshal([]byte(head), &h))
		if err := verify.Verify([]byte(body), h); err != nil || !strings.Contains(body, `"actor":"amy"`) || !strings.Contains(body, `"type":"killed"`) {
			t.Errorf("told %s: %v", body, err)
		}
	case <-time.After(within):
		t.Error("nobody is told of the kill")
	}
}

// receiver takes webhooks: header and body of the first, a line each.
func (r *rig) receiver(told chan<- string) string {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		select {
		case told <- string(schemas.Marshal(req.Header)) + "\n" + string(body):
		default:
		}
	}))
	r.Cleanup(s.Close)
	return s.URL
}
