package accounts

import (
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sort"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/writ-sh/writ/issuer/keys"
)

// claimsVersion is the form of NATS JWTs that servers since 2.2 read.
const claimsVersion = 2

var jwtHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`))

// encode signs NATS claims with an issuing time of our own. The library's
// encoder takes the clock's, to the second, and two pushes of one account
// within a second would be the same age to a server that compares them.
func encode(claims jwt.Claims, iat time.Time, signer *keys.Pair) (string, error) {
	switch c := claims.(type) {
	case *jwt.AccountClaims:
		sort.Sort(c.Exports)
		sort.Sort(c.Imports)
		c.Type, c.Version = jwt.AccountClaim, claimsVersion
	case *jwt.UserClaims:
		c.Type, c.Version = jwt.UserClaim, claimsVersion
	default:
		return "", fmt.Errorf("sign for NATS: %T is neither an account nor a user", claims)
	}
	var vr jwt.ValidationResults
	claims.Validate(&vr)
	for _, err := range vr.Errors() {
		return "", fmt.Errorf("sign for NATS: %w", err)
	}
	data := claims.Claims()
	data.Issuer, data.IssuedAt, data.ID = signer.Public(), iat.Unix(), ""
	unnamed, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign for NATS: %w", err)
	}
	sum := sha512.Sum512_256(unnamed)
	data.ID = base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign for NATS: %w", err)
	}
	input := jwtHeader + "." + base64.RawURLEncoding.EncodeToString(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(signer.Sign([]byte(input))), nil
}
