package issuer

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/dpop"
	"github.com/writ-sh/writ/schemas/capability/httpcap"
)

// openAPI describes what Handler serves.
//
//go:embed openapi.json
var openAPI []byte

const (
	httpAtOnce = 64 // requests that are carried out; more are told to come again
	httpOfOne  = 8  // requests of one principal in progress, from its proof to the answer
	httpWithin = 30 * time.Second
)

// Handler is the issuer's face over HTTP, for agents that are not on NATS: the
// same requests, carried out by the same code, as out.token.issue, refresh and
// release; and for named operators: those of their commands that decide held
// actions and lock agents. It serves once Run says that it is ready. origins are
// the addresses under which clients know it.
//
// Who asks is shown by the credential that writ enroll wrote, with a
// DPoP proof (RFC 9449) of its very NKey: the user JWT names the key, the key
// signs the proof. There is no secret to share, and a credential that was
// copied from the wire or a log is worth nothing. Proofs carry the issuer's
// nonce: one that was made ahead, or for the process before, is not taken.
//
// Where TLS is on, an agent shows its certificate besides, in the handshake of
// the connection itself, as it does over NATS: what stands between must pass TLS
// through. Operators need none.
func (i *Issuer) Handler(origins []string) (http.Handler, error) {
	proofs, err := dpop.NewChecker(dpop.Options{Origins: origins, Nonce: true, Now: i.Now})
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	h := &face{i: i, proofs: proofs, open: map[string]int{}}
	mux := http.NewServeMux()
	agents := make(chan struct{}, httpAtOnce)
	for path, what := range map[string]string{"/v1/tokens": "issue", "/v1/tokens/refresh": "refresh", "/v1/tokens/revoke": "revoke"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			h.serve(w, r, route{method: http.MethodPost, slots: agents, who: i.identityOf, limits: i.limits, over: tooMany, do: func(ctx context.Context, who accounts.Identity, data []byte) (any, error) {
				asks := asker{agent: who.ID, name: who.ID, certificate: shownOver(r), incarnation: who.Incarnation}
				if what == "revoke" {
					return i.giveUp(ctx, asks, data)
				}
				return i.tokenFor(ctx, asks, what, data)
			}})
		})
	}
	h.commands(mux)
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		problem(w, schemas.Refuse(schemas.CodeNotFound, "there is no %.80s; see /openapi.json", r.URL.Path))
	})
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		document(w, "application/json", openAPI)
	})
	mux.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		document(w, "application/jwk-set+json", i.JWKS())
	})
	return mux, nil
}

func document(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "max-age=300")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the client went away
}

// A face is the state of one Handler.
type face struct {
	i      *Issuer
	proofs *dpop.Checker

	mu   sync.Mutex     // guards the field below
	open map[string]int // requests in progress, by principal
}

// enter takes a principal's place for a request; false where it has none left.
func (h *face) enter(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[id] >= httpOfOne {
		return false
	}
	h.open[id]++
	return true
}

func (h *face) leave(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[id]--; h.open[id] == 0 {
		delete(h.open, id)
	}
}

// A route is who may ask under a path, how often, and what is done.
type route struct {
	method string
	slots  chan struct{} // agents' and operators' are apart: no flood of the ones delays the others
	who    func(r *http.Request, token string) (accounts.Identity, error)
	limits *limiters
	over   func() *schemas.Refusal
	do     func(ctx context.Context, who accounts.Identity, data []byte) (any, error)
}

func (h *face) serve(w http.ResponseWriter, r *http.Request, to route) {
	if r.Method != to.method {
		w.Header().Set("Allow", to.method)
		httpcap.Problem{Status: http.StatusMethodNotAllowed, Code: http.StatusMethodNotAllowed, Detail: "only " + to.method + " is possible here"}.Write(w)
		return
	}
	w.Header().Set(dpop.HeaderNonce, h.proofs.NonceFor())
	who, token, err := h.authenticate(r, to.who)
	if err != nil {
		challenge(w, err)
		return
	}
	if !to.limits.of(who.ID).AllowN(h.i.Now(), 1) {
		w.Header().Set("Retry-After", "1")
		problem(w, to.over())
		return
	}
	if !h.enter(who.ID) {
		w.Header().Set("Retry-After", "1")
		problem(w, schemas.Refuse(schemas.CodeRate, "%d requests of %s are in progress; wait for an answer", httpOfOne, who.ID))
		return
	}
	defer h.leave(who.ID)
	data, err := read(w, r, to)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	// Who sends the body takes as long as it likes: what counted before may be
	// locked, or somebody else's who bears the name now.
	if who, err = to.who(r, token); err != nil {
		challenge(w, fmt.Errorf("identity: %w", err))
		return
	}
	answer, err := to.carryOut(r.Context(), who, data)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("Cache-Control", "no-store") // RFC 6749, section 5.1
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(schemas.Marshal(answer)) // the client went away
}

// carryOut does what was asked, if not too much is done already. Nobody holds one
// of these places by sending, or reading, slowly.
func (to route) carryOut(ctx context.Context, who accounts.Identity, data []byte) (any, error) {
	select {
	case to.slots <- struct{}{}:
		defer func() { <-to.slots }()
	default:
		return nil, busy
	}
	ctx, cancel := context.WithTimeout(ctx, httpWithin)
	defer cancel()
	return to.do(ctx, who, data)
}

var busy = schemas.Refuse(schemas.CodeUnavailable, "the issuer has too much to do; ask again")

func challenge(w http.ResponseWriter, err error) {
	status := httpcap.Challenge(w, "", false, err)
	httpcap.Problem{Status: status, Code: status, Reason: reasonOf(err), Detail: err.Error()}.Write(w)
}

// authenticate says who asks, with what credential. What is wrong is told in the
// words of capability and dpop.
func (h *face) authenticate(r *http.Request, whose func(r *http.Request, token string) (accounts.Identity, error)) (who accounts.Identity, token string, err error) {
	scheme, token, err := httpcap.Authorization(r)
	if err != nil {
		return who, "", err
	}
	if scheme != "dpop" {
		return who, "", fmt.Errorf("%w: use the scheme DPoP, with the credential's user JWT and a proof of its NKey", httpcap.ErrScheme)
	}
	if who, err = whose(r, token); err != nil {
		return who, "", fmt.Errorf("identity: %w", err)
	}
	_, err = h.proofs.Check(r, token, func(p dpop.Proof) (string, error) { return who.ID, signedBy(p, who) })
	return who, token, err
}

// signedBy refuses a proof of another key than that of the credential.
func signedBy(p dpop.Proof, who accounts.Identity) error {
	shown := ""
	if p.Ed25519 != nil {
		key, err := nkeys.Encode(nkeys.PrefixByteUser, p.Ed25519)
		if err != nil {
			return fmt.Errorf("encode a key: %w", err)
		}
		shown = string(key)
	}
	if shown != who.PublicKey {
		return fmt.Errorf("identity: %w: the proof is signed with another key than %s", capability.ErrPossession, who.PublicKey)
	}
	return nil
}

// identityOf holds a user JWT against what the server itself holds it against at
// a connection: signed with the identity key of an account of the fleet, in
// force, and not from before a kill. A killed agent connects no more. Where TLS
// is on, the certificate of this connection must be the agent's.
func (i *Issuer) identityOf(r *http.Request, token string) (accounts.Identity, error) {
	if i.CA != nil {
		return i.boundIdentityOf(token, chainOf(r))
	}
	who, err := i.maker.ReadIdentity(token, func(account string) (string, string) {
		i.mu.RLock()
		defer i.mu.RUnlock()
		b := i.byKey[account]
		return b.id, b.incarnation
	})
	return i.inForce(who, err, schemas.KindAgent)
}

// operatorOf is the same for the credential of a named operator: what was signed
// before a lock, or for another role, counts no more.
func (i *Issuer) operatorOf(_ *http.Request, token string) (accounts.Identity, error) {
	who, err := i.maker.ReadOperator(token, func(account string) (string, accounts.Keys) {
		i.mu.RLock()
		defer i.mu.RUnlock()
		b := i.byKey[account]
		if a := i.state.Agents[b.id]; a != nil {
			return b.id, accounts.Keys{Incarnation: b.incarnation, Generation: a.Generation}
		}
		return "", accounts.Keys{}
	})
	return i.inForce(who, err, schemas.KindOperator)
}

// inForce judges what was read of a credential.
func (i *Issuer) inForce(who accounts.Identity, err error, kind string) (accounts.Identity, error) {
	switch {
	case errors.Is(err, accounts.ErrNotSigned):
		return who, fmt.Errorf("%w: %w", capability.ErrSignature, err)
	case errors.Is(err, accounts.ErrOver):
		return who, fmt.Errorf("%w: %w; enrol anew", capability.ErrExpired, err)
	case err != nil:
		return who, fmt.Errorf("%w: %w", capability.ErrMalformed, err)
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	a, now := i.state.Agents[who.ID], i.Now()
	switch {
	case a == nil || a.Kind != kind:
		return who, fmt.Errorf("%w: %s is no %s of this fleet any more", capability.ErrRevoked, who.ID, kind)
	case a.Lock == schemas.Killed:
		return who, fmt.Errorf("%w: %s was killed", capability.ErrRevoked, who.ID)
	case who.Incarnation != a.Incarnation || !who.Issued.After(i.born[who.ID].Truncate(time.Second)):
		return who, fmt.Errorf("%w: %s was enrolled anew; use the newer credential", capability.ErrRevoked, who.ID)
	case !now.Before(who.Expires):
		return who, fmt.Errorf("%w: at %s; enrol anew", capability.ErrExpired, who.Expires.UTC().Format(time.RFC3339))
	}
	return who, nil
}

// read reads the body of a request that has one.
func read(w http.ResponseWriter, r *http.Request, to route) ([]byte, error) {
	if to.method != http.MethodPost {
		return nil, nil
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != jsonType {
		return nil, schemas.Refuse(schemas.CodeMalformed, "Content-Type is not %s", jsonType)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTokenRequest))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return nil, schemas.Refuse(schemas.CodeTooLarge, "the request has more than %d bytes", long.Limit)
	case err != nil:
		return nil, schemas.Refuse(schemas.CodeMalformed, "the request ends early")
	}
	return data, nil
}

// A revokeRequest is as in RFC 7009, in JSON.
type revokeRequest struct {
	Token string `json:"token"`
}

// giveUp ends the operation of a token of the agent's own. One that is no live
// token of its own is no error (RFC 7009, section 2.2): there is nothing to
// end.
func (i *Issuer) giveUp(ctx context.Context, who asker, body []byte) (any, error) {
	var req revokeRequest
	if err := schemas.Unmarshal(body, &req); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	operation := view(i, func(s *schemas.State) string {
		if a := s.Agents[who.agent]; a != nil {
			for operation, live := range a.Grants {
				if live.Token == req.Token && req.Token != "" && live.Ended == "" {
					return operation
				}
			}
		}
		return ""
	})
	if operation == "" {
		return schemas.Ack{}, nil
	}
	return i.tokenFor(ctx, who, "release", schemas.Marshal(schemas.ReleaseRequest{OperationID: operation}))
}

func (h *face) fail(w http.ResponseWriter, r *http.Request, err error) {
	refusal := bus.AsRefusal(err)
	if refusal == busy {
		w.Header().Set("Retry-After", "1")
	} else if refusal.Code == schemas.CodeUnavailable {
		h.i.Logger.Error("request over HTTP failed", "path", r.URL.Path, "error", err)
		refusal = schemas.Refuse(schemas.CodeUnavailable, "the issuer could not do it now; ask again")
	}
	if refusal.Code == schemas.CodeUnauthorized { // RFC 9110, section 15.5.2
		w.Header().Set("WWW-Authenticate", httpcap.DPoPChallenge)
	}
	problem(w, refusal)
}

// problem answers with a refusal. Its code is HTTP's where HTTP has one, and
// all are.
func problem(w http.ResponseWriter, r *schemas.Refusal) {
	httpcap.Problem{Status: r.Code, Code: r.Code, Detail: r.Text, Seq: r.Seq}.Write(w)
}
