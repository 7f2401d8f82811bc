package capability

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

// Why a token is refused. Each error of Verify matches exactly one; the text is
// the reason that users see.
var (
	ErrMalformed    = errors.New("malformed")
	ErrUnknownKey   = errors.New("unknown key")
	ErrSignature    = errors.New("bad signature")
	ErrNotYetValid  = errors.New("not yet valid")
	ErrExpired      = errors.New("expired")
	ErrAudience     = errors.New("wrong audience")
	ErrRevoked      = errors.New("revoked")
	ErrPossession   = errors.New("possession not proven")
	ErrForbidden    = errors.New("forbidden tool")
	ErrToolUnlisted = errors.New("tool not listed")
	ErrScope        = errors.New("out of scope")
	ErrBudget       = errors.New("budget spent")
)

var reasons = [...]error{ErrMalformed, ErrUnknownKey, ErrSignature, ErrNotYetValid, ErrExpired, ErrAudience,
	ErrRevoked, ErrPossession, ErrForbidden, ErrToolUnlisted, ErrScope, ErrBudget}

// Reason is the stable word for why Verify refused, "" for no error.
func Reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r) {
			return r.Error()
		}
	}
	if err != nil {
		return "error"
	}
	return ""
}

// MaxLeeway bounds what a verifier may forgive clocks.
const MaxLeeway = time.Minute

// Expect is what the caller knows and demands of a token.
type Expect struct {
	Time     time.Time     // now; the zero time refuses every token
	Leeway   time.Duration // forgiven to clocks, both ways; 0 to MaxLeeway
	Audience string        // the trust domain where empty

	// PublicKey is the NKey that whoever shows the token has proven to hold.
	// Where there is no NATS connection, a certificate or DPoP key that the
	// token is bound to stands for it. Else, and where the token was not
	// delivered, possession isn't proven.
	PublicKey string
	// Delivered says that the token came with a delivery (Writ-Token): the
	// control plane has checked possession at the sender's connection. Such a
	// token shows what the sender may do; it gives no rights to who sees it.
	Delivered bool
	// CertThumbprint and DPoPThumbprint are those of the certificate and the
	// DPoP key that were shown; a token bound to one is refused without it,
	// save where it was delivered.
	CertThumbprint, DPoPThumbprint string

	Scope   string            // verb:resource that must be granted; "" demands none
	Tool    string            // tool that must be granted; "" demands none
	Revoked func(string) bool // by jti; nil where the caller can't know
	Metered bool              // the action uses language-model tokens
	Spent   int64             // used by the operation so far
}

// A Verifier verifies tokens of one trust domain. It is safe for concurrent use.
type Verifier struct {
	trustDomain string
	keys        map[string]ed25519.PublicKey
	heads       map[string]ed25519.PublicKey // by a token's first part, as Sign writes it
}

// NewVerifier makes a verifier from a JWK Set.
func NewVerifier(trustDomain string, jwks []byte) (*Verifier, error) {
	if err := schemas.CheckTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("capability verifier: %w", err)
	}
	keys, err := ParseJWKS(jwks)
	if err != nil {
		return nil, fmt.Errorf("capability verifier: %w", err)
	}
	v := &Verifier{trustDomain: trustDomain, keys: keys, heads: make(map[string]ed25519.PublicKey, len(keys))}
	for kid, key := range keys {
		v.heads[base64.RawURLEncoding.EncodeToString(schemas.Marshal(header{string(jose.EdDSA), kid, Type}))] = key
	}
	return v, nil
}

// Verify gives the claims of a token that is authentic, in force, and grants
// what is expected. The checks run in the order of the errors above, so that a
// forged token never learns more than that it is forged. Where the signature
// is good and a later check refuses, the claims are returned with the error.
func (v *Verifier) Verify(token string, want Expect) (*Claims, error) {
	c, err := v.open(token)
	if err != nil {
		return nil, fmt.Errorf("verify capability: %w", err)
	}
	return c, v.judge(c, &want)
}

// judge holds an authentic token's claims against what is expected, now.
func (v *Verifier) judge(c *Claims, want *Expect) error {
	err := v.audience(c, want)
	for _, check := range [...]func(*Claims, *Expect) error{(*Claims).inForce, (*Claims).notRevoked, (*Claims).possessed, (*Claims).grants, (*Claims).affords} {
		if err != nil {
			break
		}
		err = check(c, want)
	}
	if err != nil {
		return fmt.Errorf("verify capability %s of %s: %w", c.JTI, c.AgentID, err)
	}
	return nil
}

// Open gives the claims of an authentic token, whether or not it is in force:
// for display and for logs, never for a decision.
func (v *Verifier) Open(token string) (*Claims, error) {
	c, err := v.open(token)
	if err != nil {
		return nil, fmt.Errorf("open capability: %w", err)
	}
	return c, nil
}

type header struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ"`
}

// open checks form, key, signature and claims. The form is checked before
// go-jose sees the token, which would pass over white space and stray bits, and
// before anything in it is believed.
func (v *Verifier) open(token string) (*Claims, error) {
	if len(token) > MaxToken {
		return nil, fmt.Errorf("%w: it has %d bytes, %d are possible", ErrMalformed, len(token), MaxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: it has %d dotted parts, not 3", ErrMalformed, len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil || base64.RawURLEncoding.EncodedLen(len(b)) != len(p) || len(b) == 0 {
			return nil, fmt.Errorf("%w: part %d is not base64url in canonical form", ErrMalformed, i+1)
		}
		raw[i] = b
	}
	key, ok := v.heads[parts[0]]
	if !ok {
		var err error
		if key, err = v.keyOf(raw[0]); err != nil {
			return nil, err
		}
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	c := new(Claims)
	if err := decode(payload, c); err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	if err := c.check(v.trustDomain); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return c, nil
}

// keyOf reads a header that is not, to the byte, one of ours.
func (v *Verifier) keyOf(head []byte) (ed25519.PublicKey, error) {
	var h header
	if err := schemas.Unmarshal(head, &h); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if h.Alg != string(jose.EdDSA) || h.Typ != Type {
		return nil, fmt.Errorf("%w: alg %q and typ %q are not %s and %s", ErrMalformed, clip(h.Alg), clip(h.Typ), jose.EdDSA, Type)
	}
	key, ok := v.keys[h.Kid]
	if !ok {
		return nil, fmt.Errorf("%w: kid %q is not in the key set; fetch it anew", ErrUnknownKey, clip(h.Kid))
	}
	return key, nil
}

// decode is schemas.Unmarshal, at a third of its cost for what our own encoder
// wrote: bytes that come out again as they went in hold no key that is unknown,
// stands twice or differs from ours, and nothing that is not UTF-8.
func decode(data []byte, c *Claims) error {
	var plain Claims
	if json.Unmarshal(data, &plain) == nil {
		if again, err := json.Marshal(&plain); err == nil && bytes.Equal(again, data) {
			*c = plain
			return nil
		}
	}
	return schemas.Unmarshal(data, c)
}

func (v *Verifier) audience(c *Claims, want *Expect) error {
	aud := want.Audience
	if aud == "" {
		aud = v.trustDomain
	}
	if c.Audience != aud {
		return fmt.Errorf("%w: it was issued for %s, not for %s", ErrAudience, c.Audience, clip(aud))
	}
	return nil
}

// inForce compares exactly, not in whole seconds: a token is dead at the very
// moment exp.
func (c *Claims) inForce(want *Expect) error {
	leeway := min(max(want.Leeway, 0), MaxLeeway)
	if start := time.Unix(max(c.NotBefore, c.IssuedAt), 0); want.Time.Add(leeway).Before(start) {
		return fmt.Errorf("%w: before %s; check the clock", ErrNotYetValid, start.UTC().Format(time.RFC3339))
	}
	if end := time.Unix(c.Expires, 0); !want.Time.Add(-leeway).Before(end) {
		return fmt.Errorf("%w: at %s; ask for a new one", ErrExpired, end.UTC().Format(time.RFC3339))
	}
	return nil
}

func (c *Claims) notRevoked(want *Expect) error {
	if want.Revoked != nil && want.Revoked(c.JTI) {
		return fmt.Errorf("%w: ask for a new one", ErrRevoked)
	}
	return nil
}

func (c *Claims) possessed(want *Expect) error {
	if want.Delivered && want.PublicKey == "" {
		return nil
	}
	bound := c.Confirmation.X5T != "" || c.Confirmation.JKT != ""
	if want.PublicKey != c.Confirmation.NKey && (want.PublicKey != "" || !bound) {
		return fmt.Errorf("%w: the key that was shown is not %s", ErrPossession, c.Confirmation.NKey)
	}
	if x := c.Confirmation.X5T; x != "" && x != want.CertThumbprint {
		return notShown("certificate", want.CertThumbprint, x)
	}
	if j := c.Confirmation.JKT; j != "" && j != want.DPoPThumbprint {
		return notShown("DPoP key", want.DPoPThumbprint, j)
	}
	return nil
}

// notShown tells a thief with another key from one with none.
func notShown(what, got, bound string) error {
	if got == "" {
		return fmt.Errorf("%w: no %s was shown; it is bound to %s", ErrPossession, what, bound)
	}
	return fmt.Errorf("%w: the %s that was shown is not %s", ErrPossession, what, bound)
}

func (c *Claims) grants(want *Expect) error {
	var tools []string
	if want.Tool != "" {
		tools = append(tools, want.Tool)
	}
	if want.Scope != "" {
		tool, call := strings.CutPrefix(want.Scope, schemas.VerbCall+":")
		if call {
			tools = append(tools, tool)
		} else if !c.lists(want.Scope) {
			return fmt.Errorf("%w: %q is not granted; granted: %s", ErrScope, clip(want.Scope), strings.Join(c.Scopes(), " "))
		}
	}
	for _, tool := range tools {
		if slices.Contains(c.ForbiddenTools, tool) {
			return fmt.Errorf("%w: %s", ErrForbidden, tool)
		}
		if !slices.Contains(c.Tools, tool) && !c.lists(schemas.VerbCall+":"+tool) {
			return fmt.Errorf("%w: %q; granted: %s", ErrToolUnlisted, clip(tool), strings.Join(c.Scopes(), " "))
		}
	}
	return nil
}

// lists reports whether a scope stands in the claim scope.
func (c *Claims) lists(scope string) bool {
	for one := range strings.SplitSeq(c.Scope, " ") {
		if one == scope {
			return true
		}
	}
	return false
}

func (c *Claims) affords(want *Expect) error {
	if want.Metered && want.Spent >= c.MaxTokens {
		return fmt.Errorf("%w: %d of %d tokens are used", ErrBudget, want.Spent, c.MaxTokens)
	}
	return nil
}
