package adversary

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// A wire is a connection on which the protocol is spoken by hand.
type wire struct {
	t  *testing.T
	c  net.Conn
	rd *bufio.Reader
}

// knock opens a connection and reads the server's greeting.
func (r *rig) knock() (w *wire, nonce string) {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.plane.URL(), "nats://"))
	must(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	w = &wire{r.t, c, bufio.NewReaderSize(c, 1<<16)}
	must(r.t, c.SetDeadline(time.Now().Add(within)))
	line, err := w.rd.ReadString('\n')
	must(r.t, err)
	var info struct {
		Nonce string `json:"nonce"`
	}
	must(r.t, json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info))
	return w, info.Nonce
}

// connect logs in; change may spoil what is said. It gives the server's answer.
func (w *wire) connect(creds, nonce string, change func(map[string]any)) string {
	w.t.Helper()
	token, err := jwt.ParseDecoratedJWT([]byte(creds))
	must(w.t, err)
	user, err := jwt.ParseDecoratedUserNKey([]byte(creds))
	must(w.t, err)
	sig, err := user.Sign([]byte(nonce))
	must(w.t, err)
	hello := map[string]any{"jwt": token, "sig": base64.RawURLEncoding.EncodeToString(sig), "verbose": false,
		"protocol": 1, "headers": true, "no_responders": true, "lang": "hand", "version": "0"}
	if change != nil {
		change(hello)
	}
	text, err := json.Marshal(hello)
	must(w.t, err)
	w.say("CONNECT " + string(text) + "\r\nPING\r\n")
	return w.hear("PONG")
}

// speak is a connection that is logged in.
func (r *rig) speak(creds string) *wire {
	r.t.Helper()
	w, nonce := r.knock()
	if got := w.connect(creds, nonce, nil); got != "PONG" {
		r.t.Fatalf("a plain client gets %q", got)
	}
	return w
}

// say writes; that the server hangs up meanwhile is seen by hear.
func (w *wire) say(text string) { _, _ = io.WriteString(w.c, text) }

// hear reads until a line starts with one of the words, or with -ERR, or the
// server hangs up.
func (w *wire) hear(words ...string) string {
	for {
		line, err := w.rd.ReadString('\n')
		if err != nil {
			return "closed"
		}
		line = strings.TrimSpace(line)
		for _, word := range append(words, "-ERR") {
			if strings.HasPrefix(line, word) {
				return line
			}
		}
	}
}

// request publishes with any header block and reads the answer's, raw.
func (w *wire) request(subject, header, body string) (block, data string) {
	inbox := nats.NewInbox()
	w.say(fmt.Sprintf("SUB %s 9\r\nUNSUB 9 1\r\n", inbox))
	if header == "" {
		w.say(fmt.Sprintf("PUB %s %s %d\r\n%s\r\n", subject, inbox, len(body), body))
	} else {
		w.say(fmt.Sprintf("HPUB %s %s %d %d\r\n%s%s\r\n", subject, inbox, len(header), len(header)+len(body), header, body))
	}
	line := w.hear("HMSG", "MSG")
	f := strings.Fields(line)
	var head, total int
	switch {
	case strings.HasPrefix(line, "HMSG"):
		_, _ = fmt.Sscan(f[len(f)-2], &head)
		_, _ = fmt.Sscan(f[len(f)-1], &total)
	case strings.HasPrefix(line, "MSG"):
		_, _ = fmt.Sscan(f[len(f)-1], &total)
	default:
		return line, ""
	}
	all := make([]byte, total+2)
	if _, err := io.ReadFull(w.rd, all); err != nil {
		return "closed", ""
	}
	return string(all[:head]), string(all[head:total])
}

const inputFleet = `trust_domain: input.example
agents:
  - id: mallory
    thresholds: {pause: 100, suspend: 100}
    rate: {per_second: 100000, burst: 100000}
    ceiling:
      scope: [send:alice, ask:alice, memory:get, memory:put, memory:list, "read:data.q1"]
      tools: [echo, silent, twice]
      forbidden_tools: [bash]
      ttl: 1h
  - id: alice
    rate: {per_second: 100000, burst: 100000}
    ceiling: {scope: [send:alice, memory:get, memory:put], tools: [echo, silent, twice], ttl: 1h}
  - id: slow
    thresholds: {pause: 100, suspend: 100}
    ceiling: {tools: [echo], ttl: 1h}
services:
  - {id: echo, serves: [call:echo], tools: {echo: {class: read, description: "gives back"}}}
  - {id: silent, serves: [call:silent], tools: {silent: {class: read, description: "never answers"}}}
  - {id: twice, serves: [call:twice], tools: {twice: {class: read, description: "answers twice"}}}
  - {id: warehouse, serves: [read:data], tools: {}}
`

// stage is the fleet of inputFleet, served, with honest alice and mallory's
// credentials.
func stage(t *testing.T) (r *rig, alice *nats.Conn, mallory string) {
	r = start(t, inputFleet)
	r.serve(r.client(r.enroll("echo")), "in.call.echo", echo)
	r.serve(r.client(r.enroll("silent")), "in.call.silent", func(*nats.Msg) {})
	r.serve(r.client(r.enroll("twice")), "in.call.twice", func(m *nats.Msg) {
		_ = m.Respond([]byte("first"))
		_ = m.Respond([]byte("second"))
	})
	r.serve(r.client(r.enroll("warehouse")), "in.read.data.>", echo)
	alice = r.client(r.issue(schemas.IssueRequest{AgentID: "alice", OperationID: "op", Tools: []string{"echo", "silent", "twice"},
		Scope: []string{"send:alice", "memory:get", "memory:put"}}).Creds)
	r.serve(alice, "in.>", echo)
	return r, alice, r.issue(malloryRequest()).Creds
}

func malloryRequest() schemas.IssueRequest {
	return schemas.IssueRequest{AgentID: "mallory", OperationID: "op", Tools: []string{"echo", "silent", "twice"}, ForbiddenTools: []string{"bash"},
		Scope: []string{"send:alice", "ask:alice", "memory:get", "memory:put", "memory:list", "read:data.q1"}}
}

// The protocol abused by hand: each is answered with an error or hung up on,
// the server stays, and an honest agent's requests are answered all the while.
func TestProtocolAbuseHarmsNobodyElse(t *testing.T) {
	r, alice, mallory := stage(t)
	const big = 1 << 20
	for name, text := range map[string]string{
		"a control line without end":          "PUB " + strings.Repeat("a", 64<<10),
		"a control line over the limit":       "PUB out.op." + strings.Repeat("a.", 6<<10) + "b 1\r\nx\r\n",
		"a subject of many tokens":            "SUB " + strings.Repeat("a.", 3000) + "b 1\r\n",
		"a publish of a negative size":        "PUB out.op.call.echo -1\r\n\r\n",
		"a publish of no size":                "PUB out.op.call.echo\r\n\r\n",
		"a publish of a huge size":            "PUB out.op.call.echo 99999999999999999999\r\n",
		"a publish over the limit":            fmt.Sprintf("PUB out.op.call.echo %d\r\n", 16*big),
		"a body longer than it says":          "PUB out.op.call.echo 2\r\nlonger than it says\r\n",
		"a header longer than the message":    "HPUB out.op.call.echo 99 12\r\nNATS/1.0\r\n\r\n\r\n",
		"a header of negative size":           "HPUB out.op.call.echo -5 12\r\nNATS/1.0\r\n\r\n\r\n",
		"a route's message":                   "RMSG $G out.op.call.echo 1\r\nx\r\n",
		"a route's subscription":              "RS+ " + r.account("alice") + " in.>\r\n",
		"a leaf node's message":               "LMSG in.call.echo 1\r\nx\r\n",
		"a leaf node's subscription":          "LS+ in.>\r\n",
		"an account's interest":               "A+ " + r.account("alice") + "\r\n",
		"an answer from the server":           "MSG in.call.echo 1 1\r\nx\r\n",
		"greetings from a server":             "INFO {\"server_id\":\"x\",\"connect_urls\":[\"10.0.0.1:4222\"]}\r\n",
		"no protocol at all":                  "\x00\x01\x02\xff\xfe\r\n\r\n",
		"a web request":                       "GET /subsz HTTP/1.1\r\nHost: x\r\n\r\n",
		"a subject with control bytes":        "PUB out.op.call.\x00echo 1\r\nx\r\n",
		"a wildcard where none can stand":     "PUB out.op.call.* 1\r\nx\r\n",
		"an empty token":                      "PUB out..call.echo 1\r\nx\r\n",
		"a subscription without id":           "SUB in.>\r\n",
		"an unsubscription of another's id":   "UNSUB 1 0\r\nUNSUB 4611686018427387904\r\n",
		"subscriptions over the limit":        floodOfSubs(500),
		"pings without end":                   strings.Repeat("PING\r\n", 2000),
		"a second login as somebody else":     "CONNECT {\"user\":\"alice\",\"pass\":\"x\"}\r\n",
		"a second login without any name":     "CONNECT {}\r\n",
		"a second login, malformed":           "CONNECT {{{{\r\n",
		"a queue name with a wildcard":        "SUB in.> *.> 1\r\n",
		"a body that is cut off in the midst": "PUB out.op.call.echo 100\r\nhalf",
	} {
		t.Run(name, func(t *testing.T) {
			w := r.speak(mallory)
			w.t = t
			w.say(text)
			must(t, w.c.SetReadDeadline(time.Now().Add(time.Second)))
			got := w.hear() // an error, the end, or nothing
			_ = w.c.Close()
			works(t, alice, "out.op.call.echo")
			t.Logf("%.80s", got)
		})
	}
	for name, text := range map[string]string{
		"login without anything":        "CONNECT {}\r\nPING\r\n",
		"login that is no JSON":         "CONNECT nonsense\r\nPING\r\n",
		"login of deep JSON":            "CONNECT " + strings.Repeat("[", 4000) + "\r\nPING\r\n",
		"login over the limit":          "CONNECT {\"jwt\":\"" + strings.Repeat("A", 64<<10) + "\"}\r\nPING\r\n",
		"login with a password":         "CONNECT {\"user\":\"alice\",\"pass\":\"alice\",\"account\":\"" + r.account("alice") + "\"}\r\nPING\r\n",
		"login with a bare key":         "CONNECT {\"nkey\":\"" + r.account("alice") + "\",\"sig\":\"AAAA\"}\r\nPING\r\n",
		"publishing before login":       "PUB out.op.call.echo 1\r\nx\r\nPING\r\n",
		"a leaf node's login":           "CONNECT {\"leaf\":true,\"remote_account\":\"x\",\"name\":\"leaf\"}\r\nPING\r\n",
		"an upgrade to WebSocket":       "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"a login to MQTT":               "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
		"encryption that is not spoken": "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := r.knock()
			w.say(text)
			must(t, w.c.SetReadDeadline(time.Now().Add(within)))
			if got := w.hear("PONG", "HTTP/1.1 101", "\x20\x02"); got != "closed" && !strings.HasPrefix(got, "-ERR") {
				t.Errorf("it gets %q", got)
			}
			works(t, alice, "out.op.call.echo")
		})
	}
	r.sound()
}

func floodOfSubs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "SUB in.flood.%d %d\r\n", i, i)
	}
	return b.String()
}
