// Package capability is the capability token: who may do what, in which
// operation, until when, and with which key in hand.
//
// # The token
//
// A JSON Web Token (RFC 7519) in JWS compact form, signed with EdDSA over
// Ed25519 (RFC 8037). Its header is exactly
//
//	{"alg":"EdDSA","kid":"<RFC 7638 thumbprint>","typ":"writ-capability+jwt"}
//
// and its claims are those of [Claims]. The keys are published as a JWK Set
// (RFC 7517), and anybody who has it can verify offline; nobody but the holder
// of the private key, the issuer, can make a token.
//
// # What verification guarantees
//
// There is one encoding of each token: padding, white space, stray bits behind
// the last one, unknown or repeated header parameters and claims, and keys that
// differ from ours in case or by Unicode folding are refused. A key is found by
// the kid among the verifier's own; parameters that would bring one along (jwk,
// jku, x5c, x5u) are refused like every other that is not named above, and so
// is every algorithm but EdDSA. Scopes are exact: nothing in a token is ever a
// pattern, and an explicit denial beats every grant.
//
// Verification reads no clock and keeps no state. It can't see a revocation, a
// lock or a spent budget by itself: the caller states them in [Expect].
// Possession is proven by the transport (a NATS connection signs the server's
// nonce with the NKey); the caller says which key was shown.
package capability

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of a token.
const (
	MaxToken     = 16 << 10 // bytes in compact form
	MaxTaskText  = 4096     // bytes of the task's text; of longer ones the digest alone travels
	MaxTTL       = 86400    // seconds from nbf to exp
	MaxText      = 255      // bytes of an audience, a jti, a name
	MaxActors    = 16       // hops of a delegation that a token may name
	MaxMaxTokens = 1 << 53  // language-model tokens: what every JSON reader holds exactly
)

// Claims are what a token says. Times are seconds since 1970 (NumericDate,
// whole).
type Claims struct {
	Issuer      string `json:"iss"`          // spiffe://<trust-domain>/issuer
	Subject     string `json:"sub"`          // spiffe://<trust-domain>/agent/<agent_id>
	AgentID     string `json:"agent_id"`     //
	Audience    string `json:"aud"`          // the trust domain, or the service that it was issued for
	IssuedAt    int64  `json:"iat"`          //
	NotBefore   int64  `json:"nbf"`          //
	Expires     int64  `json:"exp"`          // no longer valid at this very second
	JTI         string `json:"jti"`          // unique for ever
	OperationID string `json:"operation_id"` //
	// Scope is space-delimited (RFC 8693, section 4.2); each is an exact
	// verb:resource.
	Scope          string   `json:"scope,omitempty"`
	Tools          []string `json:"tools,omitempty"` // each grants call:<tool>
	ForbiddenTools []string `json:"forbidden_tools,omitempty"`
	MaxTokens      int64    `json:"max_tokens,omitempty"` // language-model tokens; 0: no metered service
	Task           *Task    `json:"task,omitempty"`       // what the user asked
	Job            string   `json:"job,omitempty"`        // what recurs
	Txn            string   `json:"txn"`                  // trace id, 32 hex digits (RFC 8417, section 2.2)
	Confirmation   Confirm  `json:"cnf"`                  // RFC 7800
	Actor          *Actor   `json:"act,omitempty"`        // RFC 8693, section 4.1: who acts, outermost newest
	Parent         string   `json:"parent,omitempty"`     // jti of the capability that this one was derived from
	IssuedBy       string   `json:"issued_by"`            // the orchestrator or operator that asked
}

// A Task is what the user asked. Digest is the SHA-256 of the whole text, hex;
// Text is left out where it is longer than MaxTaskText.
type Task struct {
	Digest string `json:"digest"`
	Text   string `json:"text,omitempty"`
}

// Confirm names the keys whose possession must be proven; the NKey always is
// one of them.
type Confirm struct {
	NKey string `json:"nkey"`               // public user NKey
	X5T  string `json:"x5t#S256,omitempty"` // certificate, RFC 8705, section 3.1
	JKT  string `json:"jkt,omitempty"`      // DPoP key, RFC 9449, section 6.1
}

// An Actor is one hop of a delegation.
type Actor struct {
	Subject string `json:"sub"`
	Actor   *Actor `json:"act,omitempty"`
}

// IssuerURI and AgentURI are the SPIFFE ids in iss and sub.
func IssuerURI(trustDomain string) string { return "spiffe://" + trustDomain + "/issuer" }

// AgentURI is an agent's SPIFFE id.
func AgentURI(trustDomain, agent string) string { return "spiffe://" + trustDomain + "/agent/" + agent }

// NewTask is the claim for a text; nil for none.
func NewTask(text string) *Task {
	if text == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	t := &Task{Digest: hex.EncodeToString(sum[:]), Text: text}
	if len(text) > MaxTaskText {
		t.Text = ""
	}
	return t
}

// FromGrant gives the claims that say what a grant says, for an audience (the
// trust domain where empty). Grants are in whole seconds: what is finer is cut
// off, the expiry downwards too.
func FromGrant(g schemas.Grant, trustDomain, audience string, issued time.Time) Claims {
	c := Claims{
		Issuer: IssuerURI(trustDomain), Subject: AgentURI(trustDomain, g.Agent), AgentID: g.Agent,
		Audience: audience,
		IssuedAt: issued.Unix(), NotBefore: g.NotBefore.Unix(), Expires: g.Expires.Unix(),
		JTI: g.JTI, OperationID: g.Operation,
		Scope: strings.Join(g.Scope, " "), ForbiddenTools: g.ForbiddenTools,
		MaxTokens: g.MaxTokens, Task: NewTask(g.Task), Job: g.Job, Txn: g.TraceID,
		Confirmation: Confirm{NKey: g.PublicKey}, Parent: g.Parent, IssuedBy: g.IssuedBy,
	}
	if c.Audience == "" {
		c.Audience = trustDomain
	}
	for n := len(g.Act) - 1; n >= 0; n-- { // the oldest is the innermost
		c.Actor = &Actor{Subject: AgentURI(trustDomain, g.Act[n]), Actor: c.Actor}
	}
	if sum, err := hex.DecodeString(g.Certificate); err == nil && len(sum) > 0 {
		c.Confirmation.X5T = base64.RawURLEncoding.EncodeToString(sum)
	}
	for _, s := range g.Scope {
		if tool, ok := strings.CutPrefix(s, schemas.VerbCall+":"); ok {
			c.Tools = append(c.Tools, tool)
		}
	}
	return c
}

// Scopes lists all that the token grants, sorted, tools as call:<tool>, less
// what is forbidden: the set that the agent's NATS permissions must equal.
func (c *Claims) Scopes() []string {
	all := strings.Fields(c.Scope)
	for _, tool := range c.Tools {
		all = append(all, schemas.VerbCall+":"+tool)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.DeleteFunc(all, func(s string) bool {
		tool, call := strings.CutPrefix(s, schemas.VerbCall+":")
		return call && slices.Contains(c.ForbiddenTools, tool)
	})
}

// check holds the claims against the grammar, for Sign and Verify alike: what
// can't be signed is not accepted either.
func (c *Claims) check(trustDomain string) error {
	if c.Issuer != IssuerURI(trustDomain) {
		return fmt.Errorf("iss %q is not %s", clip(c.Issuer), IssuerURI(trustDomain))
	}
	if err := schemas.CheckID("agent_id", c.AgentID); err != nil {
		return err
	}
	if c.Subject != AgentURI(trustDomain, c.AgentID) {
		return fmt.Errorf("sub %q is not %s", clip(c.Subject), AgentURI(trustDomain, c.AgentID))
	}
	if err := schemas.CheckID("operation_id", c.OperationID); err != nil {
		return err
	}
	if c.Job != "" {
		if err := schemas.CheckID("job", c.Job); err != nil {
			return err
		}
	}
	for _, f := range [...]struct{ name, value string }{{"aud", c.Audience}, {"jti", c.JTI}, {"issued_by", c.IssuedBy}} {
		if err := checkText(f.name, f.value); err != nil {
			return err
		}
	}
	if c.Parent != "" {
		if err := checkText("parent", c.Parent); err != nil {
			return err
		}
	}
	if err := schemas.CheckTrace(c.Txn); err != nil {
		return fmt.Errorf("txn: %w", err)
	}
	if c.MaxTokens < 0 || c.MaxTokens > MaxMaxTokens {
		return fmt.Errorf("max_tokens %d is out of bounds", c.MaxTokens)
	}
	for _, part := range [...]func() error{c.checkTimes, c.checkScopes, c.checkTask, c.Confirmation.check, c.checkActors} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// lastSecond is the end of the year 9999, the last that RFC 3339 can write.
const lastSecond = 253402300799

func (c *Claims) checkTimes() error {
	for _, f := range [...]struct {
		name  string
		value int64
	}{{"iat", c.IssuedAt}, {"nbf", c.NotBefore}, {"exp", c.Expires}} {
		if f.value <= 0 || f.value > lastSecond {
			return fmt.Errorf("%s %d is missing or out of bounds", f.name, f.value)
		}
	}
	if ttl := c.Expires - c.NotBefore; ttl < 1 || ttl > MaxTTL {
		return fmt.Errorf("exp is %d s behind nbf; 1 to %d are possible", ttl, MaxTTL)
	}
	return nil
}

func (c *Claims) checkScopes() error {
	var scopes []string
	if c.Scope != "" {
		scopes = strings.Split(c.Scope, " ")
	}
	for i, s := range scopes {
		if err := schemas.CheckScope(s); err != nil {
			return err
		}
		if slices.Contains(scopes[:i], s) {
			return fmt.Errorf("scope names %s twice", s)
		}
	}
	for _, list := range [...]struct {
		claim string
		tools []string
	}{{"tools", c.Tools}, {"forbidden_tools", c.ForbiddenTools}} {
		for i, tool := range list.tools {
			if err := schemas.CheckID(list.claim, tool); err != nil {
				return err
			}
			if slices.Contains(list.tools[:i], tool) {
				return fmt.Errorf("%s names %s twice", list.claim, tool)
			}
		}
	}
	return nil
}

func (c *Claims) checkTask() error {
	if c.Task == nil {
		return nil
	}
	if raw, err := hex.DecodeString(c.Task.Digest); err != nil || len(raw) != sha256.Size || strings.ToLower(c.Task.Digest) != c.Task.Digest {
		return fmt.Errorf("task digest %q is not 64 lower-case hex digits", clip(c.Task.Digest))
	}
	if len(c.Task.Text) > MaxTaskText {
		return fmt.Errorf("the task's text is longer than %d bytes", MaxTaskText)
	}
	if c.Task.Text != "" && NewTask(c.Task.Text).Digest != c.Task.Digest {
		return fmt.Errorf("the task's digest is not that of its text")
	}
	return nil
}

func (f Confirm) check() error {
	if err := checkNKey(f.NKey); err != nil {
		return err
	}
	for _, t := range [...]struct{ name, value string }{{"x5t#S256", f.X5T}, {"jkt", f.JKT}} {
		if t.value == "" {
			continue
		}
		if raw, err := base64.RawURLEncoding.Strict().DecodeString(t.value); err != nil || len(raw) != sha256.Size || len(t.value) != 43 {
			return fmt.Errorf("cnf %s %q is not a SHA-256 thumbprint in base64url", t.name, clip(t.value))
		}
	}
	return nil
}

// checkNKey holds a public user NKey against its form. The checksum is left to
// the transport, which has the key prove itself.
func checkNKey(s string) error {
	bad := len(s) != 56 || s[0] != 'U'
	for i := 0; i < len(s) && !bad; i++ {
		bad = (s[i] < 'A' || s[i] > 'Z') && (s[i] < '2' || s[i] > '7')
	}
	if bad {
		return fmt.Errorf("cnf nkey %q is not a public user NKey", clip(s))
	}
	return nil
}

func (c *Claims) checkActors() error {
	hops := 0
	for a := c.Actor; a != nil; a = a.Actor {
		if hops++; hops > MaxActors {
			return fmt.Errorf("act names more than %d actors", MaxActors)
		}
		if err := checkText("act sub", a.Subject); err != nil {
			return err
		}
	}
	return nil
}

// checkText admits printable ASCII without spaces: what a person reads in a log
// can't be taken for something else.
func checkText(name, s string) error {
	if s == "" || len(s) > MaxText {
		return fmt.Errorf("%s is missing or longer than %d bytes", name, MaxText)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return fmt.Errorf("%s %q holds a space or a byte that is not printable ASCII", name, clip(s))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
