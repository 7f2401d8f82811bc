// Package secevent verifies security event tokens (SET, RFC 8417) of the OpenID
// Shared Signals Framework, and says what a CAEP event in one comes to: which
// source says what about which agent, for how many points of risk.
//
// A token counts if a declared source's issuer made it, a key declared for that
// source signed it with an algorithm of ours, it is meant for us, was made within
// the last minutes, and speaks of an agent that the source may speak about, with
// an event that it is declared with. Whether it was taken before is for who keeps
// the log to say.
//
// Keys are those of the declaration alone: nothing is fetched, and nothing that
// a token says of its own keys (jwk, jku, x5c) counts.
package secevent

import (
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-sh/writ/schemas"
)

// Type is the token's typ (RFC 8417, section 2.3): a token of another kind that
// the same key signs is none.
const Type = "secevent+jwt"

// MediaType is what tokens are pushed as (RFC 8935).
const MediaType = "application/" + Type

// Bounds of a token.
const (
	MaxToken  = 32 << 10         // bytes
	MaxAge    = 10 * time.Minute // since iat: what is older has decayed anyway
	MaxAhead  = time.Minute      // of our clock
	maxJTI    = 200              // bytes
	maxReason = 200              // bytes
	minRSA    = 2048             // bits
	caep      = "https://schemas.openid.net/secevent/caep/event-type/"
)

// algorithms are those that a token may be signed with: public keys alone.
var algorithms = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.ES384, jose.PS256, jose.RS256}

// Error codes of RFC 8935, section 2.4.
const (
	InvalidRequest  = "invalid_request"
	InvalidKey      = "invalid_key"
	InvalidIssuer   = "invalid_issuer"
	InvalidAudience = "invalid_audience"
	AccessDenied    = "access_denied"
)

// An Error says why a token is refused, by its code.
type Error struct{ Code, Text string }

func (e *Error) Error() string { return e.Text }

func refuse(code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// A Statement is what a verified token says.
type Statement struct {
	Agent  string
	Reason string // one line; "" where it gives none
	schemas.Signal
}

// Keys reads a JWK Set of public keys.
func Keys(data []byte) (*jose.JSONWebKeySet, error) {
	var raw map[string]json.RawMessage
	if err := schemas.Unmarshal(data, &raw); err != nil { // no key that stands twice
		return nil, fmt.Errorf("read key set: %w", err)
	}
	set := new(jose.JSONWebKeySet)
	if err := json.Unmarshal(data, set); err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	if len(set.Keys) == 0 || len(set.Keys) > 64 {
		return nil, fmt.Errorf("read key set: it holds %d keys; 1 to 64 are possible", len(set.Keys))
	}
	for i, k := range set.Keys {
		switch {
		case !k.Valid() || !k.IsPublic():
			return nil, fmt.Errorf("read key set: key %d is no public key of a signature", i)
		case k.KeyID == "" || len(set.Key(k.KeyID)) > 1:
			return nil, fmt.Errorf("read key set: key %d has no kid of its own", i)
		case k.Use != "" && k.Use != "sig":
			return nil, fmt.Errorf("read key set: key %d is not for signatures", i)
		case k.Algorithm != "" && !slices.Contains(algorithms, jose.SignatureAlgorithm(k.Algorithm)):
			return nil, fmt.Errorf("read key set: key %d is for %.20q; possible are %v", i, k.Algorithm, algorithms)
		}
		if r, ok := k.Key.(*rsa.PublicKey); ok && r.N.BitLen() < minRSA {
			return nil, fmt.Errorf("read key set: key %d has %d bits; RSA needs %d", i, r.N.BitLen(), minRSA)
		}
	}
	return set, nil
}

// Verify gives what a token says, if it counts at a time. Errors are of type
// Error.
func Verify(token string, sources []schemas.SignalSource, now time.Time) (*Statement, error) {
	if len(token) > MaxToken {
		return nil, refuse(InvalidRequest, "the token has %d bytes; %d are possible", len(token), MaxToken)
	}
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, refuse(InvalidRequest, "it is no signed token in compact form with one of %v: %v", algorithms, err)
	}
	// Who claims to have made it says which keys decide whether that is so.
	claims, err := read(jws.UnsafePayloadWithoutVerification())
	if err != nil {
		return nil, err
	}
	src, err := sourceOf(claims, sources)
	if err != nil {
		return nil, err
	}
	if err := signed(jws, src); err != nil {
		return nil, err
	}
	return state(claims, src, now)
}

// claims of a token, by their exact names, none twice.
type claims map[string]json.RawMessage

func read(payload []byte) (claims, error) {
	var c claims
	if err := schemas.Unmarshal(payload, &c); err != nil {
		return nil, refuse(InvalidRequest, "its claims can't be read: %v", err)
	}
	return c, nil
}

func (c claims) text(name string) (string, error) {
	var s string
	if err := json.Unmarshal(c[name], &s); err != nil || s == "" {
		return "", refuse(InvalidRequest, "its claim %s is missing, or no text", name)
	}
	return s, nil
}

func sourceOf(c claims, sources []schemas.SignalSource) (*schemas.SignalSource, error) {
	iss, err := c.text("iss")
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(sources, func(s schemas.SignalSource) bool { return s.Issuer == iss })
	if i < 0 {
		return nil, refuse(InvalidIssuer, "no source of signals is declared for issuer %.100q", iss)
	}
	return &sources[i], nil
}

// signed checks header and signature against the source's own keys.
func signed(jws *jose.JSONWebSignature, src *schemas.SignalSource) error {
	h := jws.Signatures[0].Protected
	typ, _ := h.ExtraHeaders[jose.HeaderType].(string)
	if !strings.EqualFold(strings.TrimPrefix(typ, "application/"), Type) {
		return refuse(InvalidRequest, "its typ is %.40q, not %s", typ, Type)
	}
	set, err := Keys([]byte(src.JWKS))
	if err != nil {
		return refuse(InvalidKey, "the keys declared for %s: %v", src.ID, err)
	}
	keys := set.Key(h.KeyID)
	if h.KeyID == "" || len(keys) != 1 {
		return refuse(InvalidKey, "no key %.60q is declared for %s", h.KeyID, src.ID)
	}
	if a := keys[0].Algorithm; a != "" && a != h.Algorithm {
		return refuse(InvalidKey, "key %.60q is for %s, and the token is signed with %s", h.KeyID, a, h.Algorithm)
	}
	if _, err := jws.Verify(keys[0]); err != nil {
		return refuse(InvalidKey, "its signature is not that of key %.60q", h.KeyID)
	}
	return nil
}

// state reads what a token says, whose signature is good.
func state(c claims, src *schemas.SignalSource, now time.Time) (*Statement, error) {
	if err := audience(c["aud"], src.Audience); err != nil {
		return nil, err
	}
	for _, name := range []string{"exp", "sub"} {
		if _, ok := c[name]; ok {
			return nil, refuse(InvalidRequest, "it has a claim %s, which event tokens must not have: it could be a token of another kind", name)
		}
	}
	out := &Statement{Signal: schemas.Signal{Source: src.ID}}
	var err error
	if out.Token, err = c.text("jti"); err != nil {
		return nil, err
	}
	if len(out.Token) > maxJTI || schemas.HeaderText(out.Token) != out.Token {
		return nil, refuse(InvalidRequest, "its jti is over %d bytes, or holds control bytes", maxJTI)
	}
	if err := json.Unmarshal(c["iat"], &out.Issued); err != nil {
		return nil, refuse(InvalidRequest, "its claim iat is missing, or no whole number of seconds")
	}
	switch at := time.Unix(out.Issued, 0); {
	case at.After(now.Add(MaxAhead)):
		return nil, refuse(InvalidRequest, "it was made at %s, which is in the future; check the clocks", at.UTC().Format(time.RFC3339))
	case at.Before(now.Add(-MaxAge)):
		return nil, refuse(InvalidRequest, "it was made at %s, over %s ago", at.UTC().Format(time.RFC3339), MaxAge)
	}
	if out.Agent, err = subject(c["sub_id"], src); err != nil {
		return nil, err
	}
	if !src.About(out.Agent) {
		return nil, refuse(AccessDenied, "%s may not speak about %.63q", src.ID, out.Agent)
	}
	return out, out.event(c["events"], src)
}

func audience(raw json.RawMessage, want string) error {
	var all []string
	var one string
	if json.Unmarshal(raw, &one) == nil {
		all = []string{one}
	} else if json.Unmarshal(raw, &all) != nil {
		return refuse(InvalidAudience, "its aud is neither a text nor a list of texts")
	}
	if want == "" || !slices.Contains(all, want) {
		return refuse(InvalidAudience, "its aud does not name %q", want)
	}
	return nil
}

// subject is the agent that a subject identifier (RFC 9493) names: by its id
// alone, or by its id at the token's own issuer.
func subject(raw json.RawMessage, src *schemas.SignalSource) (string, error) {
	var id struct{ Format, ID, Iss, Sub string }
	if err := json.Unmarshal(raw, &id); err != nil {
		return "", refuse(InvalidRequest, "its sub_id is missing, or no subject identifier")
	}
	switch {
	case id.Format == "opaque" && id.ID != "":
		return id.ID, nil
	case id.Format == "iss_sub" && id.Iss == src.Issuer && id.Sub != "":
		return id.Sub, nil
	}
	return "", refuse(InvalidRequest, `its sub_id names no agent; write {"format":"opaque","id":"AGENT"}, or iss_sub with your own iss`)
}

// event reads the one event of a token.
func (s *Statement) event(raw json.RawMessage, src *schemas.SignalSource) error {
	var events map[string]json.RawMessage
	if err := json.Unmarshal(raw, &events); err != nil || len(events) != 1 {
		return refuse(InvalidRequest, "it holds %d events; one is possible", len(events))
	}
	for uri, body := range events {
		name, ok := strings.CutPrefix(uri, caep)
		points, declared := src.Weight[name]
		if !ok || !declared {
			return refuse(AccessDenied, "%s is declared with no weight for the event %.120q", src.ID, uri)
		}
		share, levels, err := bad(name, body)
		if err != nil {
			return err
		}
		if levels && points < 0 { // a declared good: it counts as far as the news is good
			share = whole - share
		}
		s.Event, s.Points, s.Reason = name, points*share/whole, reason(body)
	}
	return nil
}

// whole is the badness of an event that is as bad as it can be.
const whole = 2

// bad says how bad the news of an event is, of those that tell of levels. The
// others weigh what they are declared with, good or bad.
func bad(name string, body json.RawMessage) (share int, levels bool, err error) {
	var e struct {
		Level     string `json:"current_level"`
		Status    string `json:"current_status"`
		Direction string `json:"change_direction"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return 0, false, refuse(InvalidRequest, "its event %s can't be read", name)
	}
	var shares map[string]int
	value, field := "", ""
	switch name {
	case "risk-level-change":
		value, field, shares = e.Level, "current_level", map[string]int{"LOW": 0, "MEDIUM": whole / 2, "HIGH": whole}
	case "device-compliance-change":
		value, field, shares = e.Status, "current_status", map[string]int{"compliant": 0, "not-compliant": whole}
	case "assurance-level-change":
		// The direction may be left out: then it may have gone down.
		value, field, shares = e.Direction, "change_direction", map[string]int{"increase": 0, "decrease": whole, "": whole}
	case "session-revoked", "credential-change":
		return whole, false, nil
	default:
		return 0, false, refuse(InvalidRequest, "the event %.60q is none that is understood here", name)
	}
	share, ok := shares[value]
	if !ok {
		return 0, false, refuse(InvalidRequest, "its event %s has %s %.40q; possible are %s", name, field, value, strings.Join(slices.Sorted(maps.Keys(shares)), " "))
	}
	return share, true, nil
}

// reason is the first of what an event says to administrators.
func reason(body json.RawMessage) string {
	var e struct {
		Reason string            `json:"risk_reason"`
		Admin  map[string]string `json:"reason_admin"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return "" // of another form: it bears on nothing
	}
	for _, language := range slices.Sorted(maps.Keys(e.Admin)) {
		if e.Reason == "" || language == "en" {
			e.Reason = e.Admin[language]
		}
	}
	return schemas.HeaderText(strings.ToValidUTF8(e.Reason[:min(len(e.Reason), maxReason)], ""))
}

// Code is the code of an error of Verify.
func Code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return InvalidRequest
}
