package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
)

// A wire is what the issuer can do to the servers themselves, through the
// system account: give them account JWTs, see who is connected, cut off.
// Every method waits for all servers that are known. It is safe for concurrent
// use.
type wire struct {
	nc *nats.Conn

	mu    sync.Mutex // guards nodes
	nodes int        // servers, as they told last
}

const (
	gatherTimeout = 2 * time.Second
	connzLimit    = 1024
)

// A serverReply is the envelope of every answer of a server.
type serverReply struct {
	Server *struct {
		Name string `json:"name"`
		ID   string `json:"id"`
	} `json:"server"`
	Data  json.RawMessage `json:"data"`
	Error *struct {
		Code        int    `json:"code"`
		Description string `json:"description"`
	} `json:"error"`
	Stats struct {
		ActiveServers int `json:"active_servers"`
	} `json:"statsz"`
}

// A question is one that was put to the servers and whose answers are awaited.
type question struct {
	subject string
	sub     *nats.Subscription
	iat     int64 // of an account JWT that was pushed
}

// ask puts a question. Questions reach the servers in the order in which they
// were put.
func (w *wire) ask(subject string, data []byte) (*question, error) {
	inbox := w.nc.NewInbox()
	sub, err := w.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("ask the servers on %s: %w", subject, err)
	}
	if err := w.nc.PublishRequest(subject, inbox, data); err != nil {
		return nil, errors.Join(fmt.Errorf("ask the servers on %s: %w", subject, err), sub.Unsubscribe())
	}
	return &question{subject: subject, sub: sub}, nil
}

// answers returns when want servers have answered, or the time is over: then
// with what came, and an error.
func (q *question) answers(ctx context.Context, want int) ([]serverReply, error) {
	var replies []serverReply
	err := q.each(ctx, want, func(m *nats.Msg) error {
		var r serverReply
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Server == nil {
			return fmt.Errorf("ask the servers on %s: an answer can't be read: %.80q", q.subject, m.Data)
		}
		replies = append(replies, r)
		return nil
	})
	return replies, err
}

// each hands on what want servers answer.
func (q *question) each(ctx context.Context, want int, take func(*nats.Msg) error) error {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	defer func() { _ = q.sub.Unsubscribe() }() // fails with the connection, which ends it too
	for n := range want {
		m, err := q.sub.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("ask the servers on %s: %d of %d answered: %w", q.subject, n, want, err)
		}
		if err := take(m); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) gather(ctx context.Context, subject string, data []byte, want int) ([]serverReply, error) {
	q, err := w.ask(subject, data)
	if err != nil {
		return nil, err
	}
	return q.answers(ctx, want)
}

// count learns how many servers there are.
func (w *wire) count(ctx context.Context) error {
	replies, err := w.gather(ctx, "$SYS.REQ.SERVER.PING", nil, 1)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.nodes = max(1, replies[0].Stats.ActiveServers)
	w.mu.Unlock()
	return nil
}

func (w *wire) want() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(1, w.nodes)
}

// lookup gets the JWTs that the servers have of an account: of each that has
// one. answered is how many servers spoke, also where not all did.
func (w *wire) lookup(ctx context.Context, account string) (tokens []string, answered int, err error) {
	q, err := w.askClaims(account)
	if err != nil {
		return nil, 0, err
	}
	return w.heardClaims(ctx, q)
}

// askClaims and heardClaims are lookup in two: what is asked before a push is
// answered as of before it.
func (w *wire) askClaims(account string) (*question, error) {
	return w.ask("$SYS.REQ.ACCOUNT."+account+".CLAIMS.LOOKUP", nil)
}

func (w *wire) heardClaims(ctx context.Context, q *question) (tokens []string, answered int, err error) {
	err = q.each(ctx, w.want(), func(m *nats.Msg) error {
		answered++
		if len(m.Data) > 0 { // else it has none
			tokens = append(tokens, string(m.Data))
		}
		return nil
	})
	return tokens, answered, err
}

// push gives all servers an account JWT; pushed awaits what they say.
func (w *wire) push(token string) (*question, error) {
	return w.ask("$SYS.REQ.CLAIMS.UPDATE", []byte(token))
}

// pushed returns the names of the servers that took an account. The error says
// which did not.
func (w *wire) pushed(ctx context.Context, q *question) ([]string, error) {
	replies, err := q.answers(ctx, w.want())
	var took []string
	for _, r := range replies {
		if r.Error != nil {
			err = errors.Join(err, fmt.Errorf("server %s refused the account: %s", r.Server.Name, r.Error.Description))
			continue
		}
		took = append(took, r.Server.Name)
	}
	slices.Sort(took)
	return took, err
}

// A connection is one client connection of an account.
type connection struct {
	server string // id
	cid    uint64
}

// askConnections asks all servers for an account's client connections;
// heardConnections awaits what they say.
func (w *wire) askConnections(account string) (*question, error) {
	return w.ask("$SYS.REQ.ACCOUNT."+account+".CONNZ", fmt.Appendf(nil, `{"limit":%d}`, connzLimit))
}

func (w *wire) heardConnections(ctx context.Context, q *question) ([]connection, error) {
	replies, err := q.answers(ctx, w.want())
	var out []connection
	for _, r := range replies {
		var page struct {
			Connections []struct {
				CID uint64 `json:"cid"`
			} `json:"connections"`
		}
		if uerr := json.Unmarshal(r.Data, &page); uerr != nil {
			err = errors.Join(err, fmt.Errorf("connections on %s: %w", r.Server.Name, uerr))
		}
		for _, c := range page.Connections {
			out = append(out, connection{r.Server.ID, c.CID})
		}
	}
	return out, err
}

// A watch counts an account's connections that are closed, as the servers tell
// it.
type watch struct {
	sub *nats.Subscription
	mu  sync.Mutex
	got map[connection]bool
}

// watchClosing starts to count. What is pushed afterwards is counted for sure.
func (w *wire) watchClosing(account string) (*watch, error) {
	t := &watch{got: map[connection]bool{}}
	sub, err := w.nc.Subscribe("$SYS.ACCOUNT."+account+".DISCONNECT", func(m *nats.Msg) {
		var e struct {
			Server struct {
				ID string `json:"id"`
			} `json:"server"`
			Client struct {
				ID uint64 `json:"id"`
			} `json:"client"`
		}
		if json.Unmarshal(m.Data, &e) == nil {
			t.add(connection{e.Server.ID, e.Client.ID})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch connections: %w", err)
	}
	t.sub = sub
	return t, nil
}

func (t *watch) add(c connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.got[c] = true
}

// stop ends the watch and gives the count.
func (t *watch) stop() int {
	_ = t.sub.Unsubscribe() // fails with the connection, which ends it too
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.got)
}

// connections lists an account's client connections on all servers.
func (w *wire) connections(ctx context.Context, account string) ([]connection, error) {
	q, err := w.askConnections(account)
	if err != nil {
		return nil, err
	}
	return w.heardConnections(ctx, q)
}

// kick closes connections. It is a request: a server ignores a kick that asks
// for no answer. One that is closed already is no error.
func (w *wire) kick(ctx context.Context, list []connection) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for _, c := range list {
		g.Go(func() error {
			_, err := w.gather(ctx, kickSubject(c), kickBody(c), 1)
			return err
		})
	}
	return g.Wait()
}

// cut closes connections before what is pushed next, and awaits nothing: a server
// with many accounts takes milliseconds over a push that replaces keys. Who comes
// back meanwhile is closed by the push, and what fails here is left to clear.
func (w *wire) cut(list []connection) {
	for _, c := range list {
		_ = w.nc.PublishRequest(kickSubject(c), w.nc.NewInbox(), kickBody(c))
	}
}

func kickSubject(c connection) string { return "$SYS.REQ.SERVER." + c.server + ".KICK" }

func kickBody(c connection) []byte { return fmt.Appendf(nil, `{"cid":%d}`, c.cid) }

// clear closes an account's connections until there are none.
func (w *wire) clear(ctx context.Context, account string) error {
	for range 5 {
		list, err := w.connections(ctx, account)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := w.kick(ctx, list); err != nil {
			return err
		}
	}
	return fmt.Errorf("connections of %s come back", account)
}
