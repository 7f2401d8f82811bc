package issuer

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
)

// What named operators may do over HTTP is what they may do over NATS, decided
// by the same code from the same state. The path says what a command is about,
// the credential who gives it; a body that says either is refused.

// reviewBody decides a held action; approve must be there, so that nothing is
// decided by leaving it out.
type reviewBody struct {
	Approve *bool  `json:"approve"`
	Reason  string `json:"reason"`
}

// lockBody puts a lock on, or with active takes it off, and then may vouch for
// actions that suspended the agent.
type lockBody struct {
	Lock   schemas.Lock `json:"lock"`
	Vouch  []uint64     `json:"vouch"`
	Reason string       `json:"reason"`
}

// commands serves operators.
func (h *face) commands(mux *http.ServeMux) {
	slots := make(chan struct{}, httpAtOnce)
	for path, c := range map[string]struct {
		method, subject string
		read            func(r *http.Request, data []byte) (any, error)
	}{
		"/v1/reviews":          {http.MethodGet, schemas.CtlReviews, readPage},
		"/v1/reviews/{seq}":    {http.MethodPost, schemas.CtlReview, readReview},
		"/v1/status":           {http.MethodGet, schemas.CtlStatus, readStatus},
		"/v1/agents/{id}/lock": {http.MethodPost, schemas.CtlLock, readLock},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			h.serve(w, r, route{method: c.method, slots: slots, who: h.i.operatorOf, limits: h.i.paces, over: tooManyCommands,
				do: func(ctx context.Context, who accounts.Identity, data []byte) (any, error) {
					req, err := c.read(r, data)
					if err != nil {
						return nil, err
					}
					// Who hangs up has given the command all the same.
					ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpWithin)
					defer cancel()
					return h.i.command(ctx, who.ID, c.subject, schemas.Marshal(req))
				}})
		})
	}
}

func readReview(r *http.Request, data []byte) (any, error) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err != nil || seq == 0 {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%.40q is no sequence; GET /v1/reviews lists what is held", r.PathValue("seq"))
	}
	var body reviewBody
	if err := schemas.Unmarshal(data, &body); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if body.Approve == nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "approve is missing: true lets the action happen, false cancels it")
	}
	return schemas.ReviewRequest{Seq: seq, Approve: *body.Approve, Reason: body.Reason}, nil
}

func readLock(r *http.Request, data []byte) (any, error) {
	var body lockBody
	if err := schemas.Unmarshal(data, &body); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	return schemas.LockRequest{AgentID: r.PathValue("id"), Lock: body.Lock, Vouch: body.Vouch, Reason: body.Reason}, nil
}

func readPage(r *http.Request, _ []byte) (any, error) { return pageOf(r, nil) }

func readStatus(r *http.Request, _ []byte) (any, error) {
	req := schemas.StatusRequest{}
	var err error
	req.PageRequest, err = pageOf(r, &req.AgentID)
	return req, err
}

// pageOf reads the query of a list, as strictly as a body.
func pageOf(r *http.Request, agent *string) (page schemas.PageRequest, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return page, schemas.Refuse(schemas.CodeMalformed, "the query can't be read: %v", err)
	}
	for key, values := range query {
		switch {
		case len(values) != 1:
			return page, schemas.Refuse(schemas.CodeMalformed, "%.40q is in the query %d times", key, len(values))
		case key == "limit":
			if page.Limit, err = strconv.Atoi(values[0]); err != nil || page.Limit < 1 {
				return page, schemas.Refuse(schemas.CodeMalformed, "limit %.40q: 1 to %d are possible", values[0], pageMost)
			}
		case key == "after":
			page.After = values[0]
		case key == "agent_id" && agent != nil:
			*agent = values[0]
		default:
			return page, schemas.Refuse(schemas.CodeMalformed, "%.40q is unknown in the query; see /openapi.json", key)
		}
	}
	return page, nil
}
