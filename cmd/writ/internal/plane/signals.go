package plane

import (
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// tokensOpen bounds pushed tokens that are being verified: anybody who reaches
// the port can send some. Nobody holds a place by sending slowly.
const tokensOpen = 16

// takeTokens takes security event tokens as they are pushed (RFC 8935). It
// decides nothing: the monitor verifies them, which knows the declared sources
// and logs what they say.
func takeTokens(asker *nats.Conn) http.HandlerFunc {
	open := make(chan struct{}, tokensOpen)
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != secevent.MediaType {
			refuseToken(w, secevent.InvalidRequest, "push one token with the content type "+secevent.MediaType)
			return
		}
		token, err := io.ReadAll(http.MaxBytesReader(w, r.Body, secevent.MaxToken))
		if err != nil {
			refuseToken(w, secevent.InvalidRequest, "the token can't be read whole, or is too large")
			return
		}
		select {
		case open <- struct{}{}:
			defer func() { <-open }()
		default:
			later(w, http.StatusServiceUnavailable)
			return
		}
		reply, err := bus.Call[schemas.TokenReply](r.Context(), asker, schemas.CtlToken, schemas.TokenRequest{Token: string(token)})
		var refusal *schemas.Refusal
		switch {
		case errors.As(err, &refusal) && refusal.Code == schemas.CodeRate:
			later(w, http.StatusTooManyRequests)
		case err != nil:
			later(w, http.StatusServiceUnavailable)
		case reply.Err != "":
			refuseToken(w, reply.Err, reply.Description)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	}
}

// later asks a transmitter to push again: nothing was taken.
func later(w http.ResponseWriter, code int) {
	w.Header().Set("Retry-After", "5")
	w.WriteHeader(code)
}

func refuseToken(w http.ResponseWriter, code, description string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Language", "en")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(schemas.Marshal(map[string]string{"err": code, "description": description})) // the client went away
}
