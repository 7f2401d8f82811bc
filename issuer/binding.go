package issuer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// A binding says for whom a token is, beside its agent: the service that takes
// it, and the DPoP key that must be shown there. Both are empty for a token for
// the whole trust domain, which no service over HTTP takes. Any other is bound
// to a key, always: stolen, it is worth nothing. Where that is a certificate's
// (RFC 8705), a DPoP key is there if it is asked for.
type binding struct {
	audience string
	key      string // RFC 7638 thumbprint; "" for that of the user NKey
	nkey     bool   // it is that of the user NKey, beside a certificate too
}

// bindingOf reads the binding from a token of our own.
func bindingOf(g schemas.Grant) binding {
	var claims struct {
		Audience string             `json:"aud"`
		Confirm  capability.Confirm `json:"cnf"`
	}
	parts := strings.Split(g.Token, ".")
	if len(parts) != 3 {
		return binding{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return binding{}
	}
	return binding{audience: claims.Audience, key: claims.Confirm.JKT}
}

// renewed is the binding of the token that replaces g's: the audience stays,
// and so does a DPoP key that is not the NKey's, unless another is asked for.
func (b binding) renewed(old schemas.Grant, req schemas.RefreshRequest) binding {
	if own, err := thumbprint(old.PublicKey); err == nil && b.key == own {
		b.key, b.nkey = "", true
	}
	if req.DPoPKey != "" {
		b.key, b.nkey = req.DPoPKey, false
	}
	return b
}

// jkt is what cnf names, for a token with a user NKey; free where the token needs
// no DPoP key.
func (b binding) jkt(free bool, public string) (string, error) {
	if free || b.key != "" {
		return b.key, nil
	}
	return thumbprint(public)
}

// thumbprint is that of a user NKey as a JWK.
func thumbprint(public string) (string, error) {
	raw, err := nkeys.Decode(nkeys.PrefixByteUser, []byte(public))
	if err != nil {
		return "", fmt.Errorf("read a public user NKey: %w", err)
	}
	return capability.KeyID(raw)
}

// checkDPoPKey admits a thumbprint, in a token for one service.
func checkDPoPKey(key string, forService bool) error {
	if key == "" {
		return nil
	}
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(key); err != nil || len(raw) != 32 || len(key) != 43 {
		return schemas.Refuse(schemas.CodeMalformed, "dpop_jkt %s is not a SHA-256 thumbprint in base64url (RFC 7638)", clip(key))
	}
	if !forService {
		return schemas.Refuse(schemas.CodeMalformed, "dpop_jkt goes with an audience: only a service over HTTP takes a DPoP key")
	}
	return nil
}
