package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

const domain = "acme.example"

var issued = time.Unix(1_790_000_000, 0)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

// fixed verifies under one key set.
type fixed struct{ *capability.Verifier }

func (f fixed) Verify(_ context.Context, token string, want capability.Expect) (*capability.Claims, error) {
	return f.Verifier.Verify(token, want)
}

func tokenOf(t *testing.T, signer ed25519.PrivateKey, audience string) string {
	t.Helper()
	s, err := capability.NewSigner(domain, signer)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Sign(capability.FromGrant(schemas.Grant{JTI: "j", Agent: "analyst-7", Operation: "report", NotBefore: issued, Expires: issued.Add(time.Minute),
		TraceID: strings.Repeat("a", 32), PublicKey: "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", IssuedBy: "test"}, domain, audience, issued))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Somebody who got into DELIVER, or a control plane that mixes things up: what
// does not agree with its capability reaches no handler.
func TestADeliveryThatDoesNotAgreeIsShownToNobody(t *testing.T) {
	set, err := capability.MarshalJWKS(key(1).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	v, err := capability.NewVerifier(domain, set)
	if err != nil {
		t.Fatal(err)
	}
	now := issued.Add(time.Second)
	op := &Operation{ctx: t.Context(), o: Options{Keys: fixed{v}, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}}
	good := nats.Header{schemas.HeaderFrom: {"analyst-7"}, schemas.HeaderOperation: {"report"}, schemas.HeaderSeq: {"7"}, schemas.HeaderToken: {tokenOf(t, key(1), "")}}
	for _, c := range []struct {
		name         string
		header, with string
		after        time.Duration
		want         error // nil: any error
		ok           bool
	}{
		{name: "as it should be", ok: true},
		{name: "kept for an hour, and older than its capability", after: time.Hour, ok: true},
		{name: "from before its capability", after: -10 * time.Minute, want: capability.ErrNotYetValid},
		{name: "from another agent", header: schemas.HeaderFrom, with: "writer-2"},
		{name: "from a look-alike", header: schemas.HeaderFrom, with: "аnalyst-7"},
		{name: "of another operation", header: schemas.HeaderOperation, with: "payroll"},
		{name: "without a token", header: schemas.HeaderToken, with: "", want: capability.ErrMalformed},
		{name: "signed by a forger", header: schemas.HeaderToken, with: tokenOf(t, key(2), ""), want: capability.ErrUnknownKey},
		{name: "for a service", header: schemas.HeaderToken, with: tokenOf(t, key(1), "warehouse"), want: capability.ErrAudience},
		{name: "without a sequence", header: schemas.HeaderSeq, with: "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now = issued.Add(time.Second + c.after)
			m := nats.NewMsg("in.send.analyst-7")
			for k, v := range good {
				m.Header[k] = v
			}
			if c.header != "" {
				m.Header[c.header] = []string{c.with}
			}
			d, err := op.verified(m)
			if (err == nil) != c.ok || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v", err)
			}
			if c.ok && (d.From != "analyst-7" || d.Operation != "report" || d.Seq != 7 || d.Claims.JTI != "j") {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	for _, c := range []struct {
		code, seq string
		want      *schemas.Refusal
	}{
		{"", "", nil},
		{"403", "", &schemas.Refusal{Code: 403, Text: "no"}},
		{"423", "17", &schemas.Refusal{Code: 423, Text: "no", Seq: 17}},
		{"what?", "", &schemas.Refusal{Code: 503, Text: "no"}},
	} {
		m := nats.NewMsg("x")
		if c.code != "" {
			m.Header.Set(schemas.HeaderErrorCode, c.code)
			m.Header.Set(schemas.HeaderError, "no")
		}
		if c.seq != "" {
			m.Header.Set(schemas.HeaderSeq, c.seq)
		}
		err := refusalOf(m)
		var r *schemas.Refusal
		if errors.As(err, &r) != (c.want != nil) || r != nil && *r != *c.want {
			t.Errorf("%q: %v", c.code, err)
		}
	}
	m := nats.NewMsg("x")
	m.Header.Set(schemas.HeaderErrorCode, strconv.Itoa(423))
	m.Header.Set(schemas.HeaderSeq, "-1")
	var r *schemas.Refusal
	if err := refusalOf(m); err == nil || errors.As(err, &r) {
		t.Errorf("a sequence that is none: %v", err)
	}
}

func TestWithoutKeysNothingIsOpened(t *testing.T) {
	if _, err := Connect(t.Context(), Options{}); err == nil {
		t.Error("connected")
	}
	if _, err := Open(t.Context(), Options{}, schemas.IssueReply{}); err == nil {
		t.Error("opened")
	}
	if _, err := Open(t.Context(), Options{Keys: fixed{}}, schemas.IssueReply{Creds: "none"}); err == nil {
		t.Error("opened without credentials")
	}
}
