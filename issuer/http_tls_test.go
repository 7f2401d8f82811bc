package issuer_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
)

// A thief of a .creds file that counts with the agent's certificate alone tries
// the HTTP face, which sees no certificate: there is no way in, neither with
// what was made with TLS nor with what was made before.
func TestOverHTTPNobodyPassesTheCertificateBy(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	enroll := func() []byte {
		return []byte(call[schemas.EnrollReply](p, schemas.CtlEnroll, schemas.EnrollRequest{ID: "analyst-7", Actor: "alice"}).Creds)
	}
	issue := func(creds []byte) int {
		s := httptest.NewUnstartedServer(nil)
		a := &api{plane: p, url: "http://" + s.Listener.Addr().String(), doc: readDocument(t)}
		h, err := p.issuer.Handler([]string{a.url})
		must(t, err)
		s.Config.Handler = h
		s.Start()
		defer s.Close()
		c := a.callerOf(creds)
		var status int
		for range 2 { // the first answer brings the nonce
			req := reportRequest()
			req.Actor = ""
			res, _ := a.do(c.request("/v1/tokens", req))
			c.nonce = res.Header.Get("DPoP-Nonce")
			status = res.StatusCode
		}
		return status
	}
	before := enroll()
	if got := issue(before); got != http.StatusOK {
		t.Fatalf("without TLS: %d", got)
	}
	p.stop()
	p.srv.Stop()
	p.turnOn(ca.Config{})
	p.run(embed.Options{TLS: p.serverTLS()})
	for name, creds := range map[string][]byte{"from before": before, "bound": enroll()} {
		if got := issue(creds); got != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, got)
		}
	}
}
