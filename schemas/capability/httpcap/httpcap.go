// Package httpcap holds capabilities against HTTP requests, for services that
// are not on NATS.
//
//	guard, err := httpcap.New(httpcap.Options{Service: "warehouse", Keys: keys, Origins: []string{"https://warehouse.example"}})
//	mux.Handle("GET /sales", guard.Require(httpcap.Need{Scope: "read:data.sales"}, sales))
//
// A request shows a capability that was issued for this service (writ issue
// --audience), and proves possession of a key that the capability names:
//
//	Authorization: DPoP <capability>      bound by cnf.jkt; proof in DPoP (RFC 9449)
//	Authorization: Bearer <capability>    bound by cnf.x5t#S256; certificate in TLS (RFC 8705);
//	                                      only where Options.Certificates says so
//
// A capability that names both keys needs both; one that names neither is
// refused, so that whoever steals a token has nothing. A Writ-Token that came
// with a delivery is for the whole trust domain, and therefore refused.
//
// Refusals are 401 or 403 with WWW-Authenticate (RFC 6750, RFC 9449) and a body
// of problem details (RFC 9457), whose member reason is the stable word of
// [capability.Reason] or [dpop.Reason]. Where keys or memory are lacking it is
// 503 or 429: no request passes unchecked.
package httpcap

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// Options of a Guard. Service, Keys and Origins are needed.
type Options struct {
	Service      string            // the audience that capabilities must have
	TrustDomain  string            // to refuse it as a service's name
	Keys         *jwks.Keys        //
	Origins      []string          // scheme://host[:port] under which clients know the service
	Nonce        bool              // demand a nonce of proofs; see dpop.Options
	Certificates bool              // take Bearer, for capabilities bound to the client's certificate
	Leeway       time.Duration     // forgiven to clocks; up to capability.MaxLeeway
	Revoked      func(string) bool // by jti; nil where the service can't know
	Spent        func(*http.Request, *capability.Claims) int64
	Now          func() time.Time // the clock; time.Now where nil
}

// A Need is what a request must be granted; the zero Need is any capability
// for this service.
type Need struct {
	Scope   string // verb:resource
	Tool    string
	Metered bool // uses language-model tokens: Options.Spent says how many are used
}

// A Guard checks requests. It is safe for concurrent use.
type Guard struct {
	o      Options
	proofs *dpop.Checker
}

// New makes a guard for one service.
func New(o Options) (*Guard, error) {
	if err := schemas.CheckID("service", o.Service); err != nil {
		return nil, fmt.Errorf("httpcap: %w", err)
	}
	if o.Service == o.TrustDomain {
		return nil, fmt.Errorf("httpcap: service %s has the name of the trust domain: capabilities that were delivered would be taken", o.Service)
	}
	if o.Keys == nil {
		return nil, errors.New("httpcap: no keys are given")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	proofs, err := dpop.NewChecker(dpop.Options{Origins: o.Origins, Nonce: o.Nonce, Now: o.Now})
	if err != nil {
		return nil, fmt.Errorf("httpcap: %w", err)
	}
	return &Guard{o, proofs}, nil
}

type contextKey struct{}

// From gives the capability that Require checked, nil in a handler that is
// behind no guard.
func From(ctx context.Context) *capability.Claims {
	c, _ := ctx.Value(contextKey{}).(*capability.Claims)
	return c
}

// Require lets through what shows a capability for what is needed.
func (g *Guard) Require(need Need, next http.Handler) http.Handler {
	return g.RequireFor(func(*http.Request) Need { return need }, next)
}

// RequireFor is Require with a need that the request decides.
func (g *Guard) RequireFor(need func(*http.Request) Need, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, err := g.Check(r, need(r))
		if nonce := g.proofs.NonceFor(); nonce != "" {
			w.Header().Set(dpop.HeaderNonce, nonce)
		}
		if err != nil {
			g.refuse(w, need(r), err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, claims)))
	})
}

// Why a request is refused before its token is looked at.
var (
	ErrNoToken = errors.New("no token")
	ErrScheme  = errors.New("bearer token not taken")
)

// Check gives the capability of a request. The token is verified before its
// proof is looked at, and the proof's key before it is remembered: what forged and
// stolen tokens bring along takes no room. The proof is spent.
func (g *Guard) Check(r *http.Request, need Need) (*capability.Claims, error) {
	scheme, token, err := Authorization(r)
	if err != nil {
		return nil, err
	}
	if err := g.takes(scheme, r); err != nil {
		return nil, err
	}
	want := capability.Expect{Time: g.o.Now(), Leeway: g.o.Leeway, Audience: g.o.Service, Delivered: true}
	claims, err := g.o.Keys.Verify(r.Context(), token, want)
	if err != nil {
		return nil, err
	}
	want.Delivered, want.CertThumbprint = false, certificate(r)
	if scheme == schemeDPoP {
		proof, err := g.proofs.Check(r, token, func(p dpop.Proof) (string, error) {
			if claims.Confirmation.JKT == "" {
				return "", fmt.Errorf("%w: the capability is bound to no DPoP key", capability.ErrPossession)
			}
			want.DPoPThumbprint = p.Thumbprint
			_, err := g.o.Keys.Verify(r.Context(), token, want)
			return claims.AgentID, err
		})
		if err != nil {
			return nil, err
		}
		want.DPoPThumbprint = proof.Thumbprint
	}
	want.Scope, want.Tool, want.Revoked = need.Scope, need.Tool, g.o.Revoked
	if want.Metered = need.Metered; need.Metered {
		want.Spent = claims.MaxTokens // a service that can't tell lets nothing pass
		if g.o.Spent != nil {
			want.Spent = g.o.Spent(r, claims)
		}
	}
	return g.o.Keys.Verify(r.Context(), token, want)
}

const (
	schemeDPoP   = "dpop"
	schemeBearer = "bearer"
)

func (g *Guard) takes(scheme string, r *http.Request) error {
	switch {
	case scheme == schemeDPoP:
		return nil
	case scheme != schemeBearer:
		return fmt.Errorf("%w: scheme %.20q of Authorization is unknown", ErrNoToken, scheme)
	case !g.o.Certificates:
		return fmt.Errorf("%w: use the scheme DPoP, with a proof", ErrScheme)
	case len(r.Header.Values(dpop.Header)) != 0:
		return fmt.Errorf("%w: with a proof the scheme is DPoP", ErrScheme)
	}
	return nil
}

// Authorization reads the one header that may carry a token; the scheme in
// lower case.
func Authorization(r *http.Request) (scheme, token string, err error) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return "", "", fmt.Errorf("%w: the request has %d headers Authorization, not 1", ErrNoToken, len(headers))
	}
	scheme, token, _ = strings.Cut(headers[0], " ")
	if token == "" || strings.ContainsAny(token, " ,") {
		return "", "", fmt.Errorf("%w: Authorization is not a scheme and a token", ErrNoToken)
	}
	return strings.ToLower(scheme), token, nil
}

// certificate is the thumbprint of the client's certificate, "" without one.
// TLS has proven possession of its key.
func certificate(r *http.Request) string {
	if r.TLS == nil || !r.TLS.HandshakeComplete || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
