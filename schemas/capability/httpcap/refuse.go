package httpcap

import (
	"errors"
	"net/http"
	"strings"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// A Problem is the body of every refusal (RFC 9457); its type is always
// about:blank. Code is that of [schemas.Refusal]; Seq the event, if there is
// one.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   int    `json:"code"`
	Reason string `json:"reason,omitempty"`
	Seq    uint64 `json:"seq,omitempty"`
}

// Write answers with the problem, and with nothing that a cache may keep.
func (p Problem) Write(w http.ResponseWriter) {
	p.Title = http.StatusText(p.Status)
	if p.Title == "" {
		p.Title = "Refused"
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(schemas.Marshal(p)) // the client went away
}

// Reason is the stable word for why a request was refused, "" for no error.
func Reason(err error) string {
	switch {
	case errors.Is(err, ErrNoToken):
		return ErrNoToken.Error()
	case errors.Is(err, ErrScheme):
		return ErrScheme.Error()
	case errors.Is(err, jwks.ErrUnavailable):
		return jwks.ErrUnavailable.Error()
	}
	if word := dpop.Reason(err); word != "" {
		return word
	}
	return capability.Reason(err)
}

func (g *Guard) refuse(w http.ResponseWriter, need Need, err error) {
	scope := need.Scope
	if scope == "" && need.Tool != "" {
		scope = schemas.VerbCall + ":" + need.Tool
	}
	status := Challenge(w, scope, g.o.Certificates, err)
	detail := err.Error()
	if status == http.StatusServiceUnavailable { // where the keys lie is the service's own business
		detail = "the service can't verify capabilities now; try again"
	}
	Problem{Status: status, Code: status, Reason: Reason(err), Detail: detail}.Write(w)
}

// DPoPChallenge is the challenge that says no more than what is taken.
const DPoPChallenge = `DPoP algs="EdDSA ES256"`

// Challenge sets WWW-Authenticate as RFC 6750 and RFC 9449 say, and gives the
// status that goes with it. scope is what the request needed.
func Challenge(w http.ResponseWriter, scope string, bearer bool, err error) (status int) {
	status, code := http.StatusUnauthorized, "invalid_token"
	switch {
	case errors.Is(err, jwks.ErrUnavailable):
		return http.StatusServiceUnavailable
	case errors.Is(err, dpop.ErrFull):
		w.Header().Set("Retry-After", "60")
		return http.StatusTooManyRequests
	case errors.Is(err, ErrNoToken):
		code = "" // RFC 6750, section 3.1
	case errors.Is(err, dpop.ErrNonce):
		code = "use_dpop_nonce"
	case dpop.Reason(err) != "":
		code = "invalid_dpop_proof"
	case errors.Is(err, capability.ErrScope), errors.Is(err, capability.ErrForbidden), errors.Is(err, capability.ErrToolUnlisted):
		status, code = http.StatusForbidden, "insufficient_scope"
	case errors.Is(err, capability.ErrBudget):
		return http.StatusPaymentRequired
	}
	schemes := []string{DPoPChallenge}
	if bearer {
		schemes = append(schemes, "Bearer")
	}
	for _, scheme := range schemes {
		var params []string
		if code != "" {
			params = append(params, `error="`+code+`"`, `error_description="`+quotable(err.Error())+`"`)
		}
		if code == "insufficient_scope" && scope != "" {
			params = append(params, `scope="`+quotable(scope)+`"`)
		}
		w.Header().Add("WWW-Authenticate", join(scheme, params))
	}
	return status
}

func join(scheme string, params []string) string {
	list := strings.Join(params, ", ")
	switch {
	case list == "":
		return scheme
	case strings.Contains(scheme, "="):
		return scheme + ", " + list
	}
	return scheme + " " + list
}

// quotable leaves what may stand in error_description.
func quotable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, s)
}
