package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.etcd.io/bbolt"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

// A toolbox is the services of the story: each a NATS client of its own, which
// believes no sender before it has verified the capability that came along.
type toolbox struct {
	db       *bbolt.DB
	verifier *capability.Verifier
	clients  []*client

	mu       sync.Mutex
	served   map[string]int // deliveries, by scope
	verified map[string]int // those of them whose capability was good
}

// A handler carries out one delivery.
type handler func(resource string, body []byte) (answer []byte, contentType string, err error)

// serve connects a service and lets it answer.
func (t *toolbox) serve(ctx context.Context, s *story, id, verb string, do handler) error {
	e, err := bus.Call[schemas.EnrollReply](ctx, s.operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: s.Actor})
	if err != nil {
		return fmt.Errorf("enroll %s: %w", id, err)
	}
	c, err := connect(s.plane.URL(), id, "", []byte(e.Creds))
	if err != nil {
		return err
	}
	t.clients = append(t.clients, c)
	_, err = c.nc.QueueSubscribe("in."+verb+".>", id, func(m *nats.Msg) {
		resource := strings.TrimPrefix(m.Subject, "in."+verb+".")
		if err := t.admit(verb+":"+resource, m); err != nil {
			respond(m, nil, "", err)
			return
		}
		body, contentType, err := do(resource, m.Data)
		respond(m, body, contentType, err)
	})
	if err == nil {
		err = c.nc.Flush()
	}
	if err != nil {
		return fmt.Errorf("%s: subscribe: %w", id, err)
	}
	return nil
}

// admit verifies, offline, that the sender may do what was delivered.
func (t *toolbox) admit(scope string, m *nats.Msg) error {
	_, err := t.verifier.Verify(m.Header.Get(schemas.HeaderToken), capability.Expect{Time: time.Now(), Scope: scope, Delivered: true})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.served[scope]++
	if err != nil {
		return schemas.Refuse(schemas.CodeUnauthorized, "%v", err)
	}
	t.verified[scope]++
	return nil
}

// calls is how often a scope was delivered.
func (t *toolbox) calls(scope string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.served[scope]
}

// good is how many of them came with a capability that verified.
func (t *toolbox) good(scope string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.verified[scope]
}

func (t *toolbox) close() error {
	for _, c := range t.clients {
		c.nc.Close()
	}
	return t.db.Close()
}

// respond answers as NATS micro services do. An answer that can't be sent is
// one that the caller will miss.
func respond(m *nats.Msg, body []byte, contentType string, err error) {
	reply := nats.NewMsg(m.Reply)
	reply.Data = body
	if contentType != "" {
		reply.Header.Set(schemas.HeaderType, contentType)
	}
	if err != nil {
		r := bus.AsRefusal(err)
		if errors.Is(err, errNoTable) {
			r = schemas.Refuse(schemas.CodeNotFound, "%v", err)
		}
		reply.Header, reply.Data = nats.Header(r.Header()), r.Body()
	}
	_ = m.RespondMsg(reply)
}

const (
	typeJSON     = "application/json"
	typeSVG      = "image/svg+xml"
	typeMarkdown = "text/markdown"
)

// warehouse reads a table of the database.
func (t *toolbox) warehouse(resource string, _ []byte) ([]byte, string, error) {
	s, err := readTable(t.db, strings.TrimPrefix(resource, "data."))
	if err != nil {
		return nil, "", err
	}
	return schemas.Marshal(s), typeJSON, nil
}

// drafts stores what is written.
func (t *toolbox) drafts(resource string, body []byte) ([]byte, string, error) {
	if err := saveDraft(t.db, resource, body); err != nil {
		return nil, "", err
	}
	return schemas.Marshal(map[string]any{"stored": resource, "bytes": len(body)}), typeJSON, nil
}

// totals is what pandas finds in rows.
type totals struct {
	Revenue  int            `json:"revenue"`
	Units    int            `json:"units"`
	ByRegion map[string]int `json:"by_region"` // revenue
	Best     string         `json:"best"`      // region
}

// remarks is what pandas finds in comments.
type remarks struct {
	Count   int    `json:"count"`
	Longest string `json:"longest"`
}

// pandas computes: {"rows": […]} totals, {"comments_csv_gz": …} remarks.
func (t *toolbox) pandas(_ string, body []byte) ([]byte, string, error) {
	var in sales
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, "", schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if len(in.Comments) == 0 {
		return schemas.Marshal(sum(in.Rows)), typeJSON, nil
	}
	lines, err := unpack(in.Comments)
	if err != nil || len(lines) == 0 || len(lines[0]) != 2 {
		return nil, "", schemas.Refuse(schemas.CodeMalformed, "no CSV file of two columns: %v", err)
	}
	r := remarks{Count: len(lines) - 1}
	for _, l := range lines[1:] {
		if len(l[1]) > len(r.Longest) {
			r.Longest = l[1]
		}
	}
	return schemas.Marshal(r), typeJSON, nil
}

func sum(rows []row) totals {
	t := totals{ByRegion: map[string]int{}}
	for _, r := range rows {
		t.Revenue += r.Revenue
		t.Units += r.Units
		t.ByRegion[r.Region] += r.Revenue
	}
	for _, r := range regions {
		if t.ByRegion[r] > t.ByRegion[t.Best] {
			t.Best = r
		}
	}
	return t
}

// chart is what matplotlib draws.
type chart struct {
	Title  string   `json:"title"`
	Labels []string `json:"labels"`
	Values []int    `json:"values"`
}

// matplotlib draws a bar chart.
func (t *toolbox) matplotlib(_ string, body []byte) ([]byte, string, error) {
	var c chart
	if err := json.Unmarshal(body, &c); err != nil || len(c.Labels) != len(c.Values) || len(c.Values) == 0 {
		return nil, "", schemas.Refuse(schemas.CodeMalformed, "no chart with as many labels as values: %v", err)
	}
	const height, bar = 120, 60
	top := max(slices.Max(c.Values), 1)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d"><title>%s</title>`,
		bar*len(c.Values), height+20, html.EscapeString(c.Title))
	for i, v := range c.Values {
		h := v * height / top
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d"/><text x="%d" y="%d">%s</text>`,
			i*bar, height-h, bar-10, h, i*bar, height+15, html.EscapeString(c.Labels[i]))
	}
	b.WriteString("</svg>")
	return []byte(b.String()), typeSVG, nil
}

// trap is a service that nobody in this story may reach.
func (t *toolbox) trap(string, []byte) ([]byte, string, error) {
	return []byte("done"), "text/plain", nil
}
