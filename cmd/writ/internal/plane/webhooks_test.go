package plane

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/writ-sh/writ/cmd/writ/internal/hooks"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// A kill in a running control plane reaches a receiver, signed, and is counted.
func TestAControlPlaneTellsWebhooks(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data, secret, got := t.TempDir(), hooks.NewSecret(), make(chan string, 1)
	verifier, err := standard.NewWebhook(secret)
	check(err)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		if err != nil {
			t.Errorf("delivery: %v", err)
		}
		got <- string(body)
	}))
	defer receiver.Close()
	fleet := filepath.Join(t.TempDir(), "fleet.yaml")
	check(os.WriteFile(fleet, []byte("trust_domain: acme.example\nagents:\n  - {id: analyst}\n"), 0o600))
	p, err := Start(t.Context(), Options{Data: data, TrustDomain: "acme.example", Fleet: fleet, Actor: "test"})
	check(err)
	defer func() { check(p.Stop(t.Context())) }()
	check(hooks.Write(data, hooks.Hook{ID: "chat", URL: receiver.URL, Events: []string{"killed"}, Secrets: []string{secret}}))
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := hooks.Cursor(data, "chat"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the webhook is not taken up")
		}
	}
	nc, err := p.Operator()
	check(err)
	defer nc.Close()
	receipt, err := bus.Call[schemas.Receipt](t.Context(), nc, schemas.CtlLock, schemas.LockRequest{AgentID: "analyst", Lock: schemas.Killed, Reason: "hijacked", Actor: "amy"})
	check(err)
	select {
	case body := <-got:
		if !strings.Contains(body, `"actor":"root/amy"`) || !strings.Contains(body, `"type":"killed"`) || receipt.Seq == 0 {
			t.Errorf("told %s of %+v", body, receipt)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is delivered")
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		res, err := http.Get(p.HTTP() + "/metrics")
		check(err)
		text, err := io.ReadAll(res.Body)
		check(err)
		check(res.Body.Close())
		if strings.Contains(string(text), `writ_webhook_delivered_total{webhook="chat"} 1`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not counted: %s", text)
		}
	}
}
