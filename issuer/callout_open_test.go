package issuer

import (
	"encoding/base64"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Somebody who reached the callout's subject, or one server in another's name.
func TestOnlyAServersSealedQuestionIsOpened(t *testing.T) {
	make := func(pair nkeys.KeyPair, err error) (nkeys.KeyPair, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return pair, public
	}
	ours, oursPublic := make(nkeys.CreateCurveKeys())
	curve, xkey := make(nkeys.CreateCurveKeys())
	server, id := make(nkeys.CreateServer())
	another, _ := make(nkeys.CreateServer())
	account, accountID := make(nkeys.CreateAccount())
	_, user := make(nkeys.CreateUser())
	asis := func(*jwt.AuthorizationRequestClaims) {}
	for name, c := range map[string]struct {
		change func(*jwt.AuthorizationRequestClaims)
		by     nkeys.KeyPair
		xkey   string // that the header names
		to     string // whom it is sealed for
		opens  bool
	}{
		"a server's":              {asis, server, xkey, oursPublic, true},
		"signed by another":       {asis, another, xkey, oursPublic, false},
		"another's sealing key":   {func(c *jwt.AuthorizationRequestClaims) { c.Server.XKey = oursPublic }, server, xkey, oursPublic, false},
		"another key in the head": {asis, server, oursPublic, oursPublic, false},
		"sealed for somebody":     {asis, server, xkey, xkey, false},
		"no question":             {func(c *jwt.AuthorizationRequestClaims) { c.Audience = "x" }, server, xkey, oursPublic, false},
		"an account's":            {func(c *jwt.AuthorizationRequestClaims) { c.Server.ID = accountID }, account, xkey, oursPublic, false},
	} {
		r := jwt.NewAuthorizationRequestClaims(user)
		r.Audience, r.UserNkey, r.Server.ID, r.Server.XKey = "nats-authorization-request", user, id, xkey
		c.change(r)
		token, err := r.Encode(c.by)
		if err != nil {
			if c.opens {
				t.Errorf("%s: %v", name, err)
			}
			continue // the library itself makes no such question
		}
		sealed, err := curve.Seal([]byte(token), c.to)
		if err != nil {
			t.Fatal(err)
		}
		got, err := openCallout(ours, c.xkey, sealed)
		if (err == nil) != c.opens || c.opens && got.UserNkey != user {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := openCallout(ours, xkey, []byte("eyJ")); err == nil {
		t.Error("one in clear is opened")
	}
}

// The server asks whatever it found of the signature itself.
func TestTheNonceIsSignedWithTheUsersOwnKey(t *testing.T) {
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(k nkeys.KeyPair, nonce string, e *base64.Encoding) string {
		sig, err := k.Sign([]byte(nonce))
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeToString(sig)
	}
	raw := base64.RawURLEncoding
	for name, c := range map[string]struct {
		nonce, sig string
		ok         bool
	}{
		"its own":           {"nonce", sign(user, "nonce", raw), true},
		"in plain base64":   {"nonce", sign(user, "nonce", base64.StdEncoding), true},
		"none":              {"nonce", "", false},
		"no base64":         {"nonce", "!!!", false},
		"another key's":     {"nonce", sign(other, "nonce", raw), false},
		"of another nonce":  {"nonce", sign(user, "other", raw), false},
		"of an empty nonce": {"", sign(user, "", raw), false},
	} {
		if err := proven(public, c.nonce, c.sig); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if proven("UNOKEY", "nonce", sign(user, "nonce", raw)) == nil {
		t.Error("a public key that is none")
	}
}
