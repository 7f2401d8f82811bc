package adversary

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// loose is a user who may publish whatever the account lets out: the server's
// templates are gone, and what is left is what intake refuses.
func (r *rig) loose() *nats.Conn {
	r.t.Helper()
	nc := r.client(r.widened("mallory"))
	// The widened account may be overtaken by the issuer's own: what is
	// tested is that it is there.
	must(r.t, nc.Flush())
	return nc
}

// Bad input behind the server's own checks, each with its documented code, and
// the same connection still works.
func TestBadInputGetsTheDocumentedError(t *testing.T) {
	r, alice, creds := stage(t)
	honest := r.client(creds)
	nc := r.loose()
	long := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		msg  nats.Msg
		code int
	}{
		"no verb":                       {nats.Msg{Subject: "out.op"}, 400},
		"no resource":                   {nats.Msg{Subject: "out.op.call"}, 400},
		"an unknown verb":               {nats.Msg{Subject: "out.op.exec.echo"}, 400},
		"upper case in the verb":        {nats.Msg{Subject: "out.op.CALL.echo"}, 400},
		"upper case in the tool":        {nats.Msg{Subject: "out.op.call.Echo"}, 400},
		"upper case in the operation":   {nats.Msg{Subject: "out.OP.call.echo"}, 400},
		"a tool with a dot":             {nats.Msg{Subject: "out.op.call.echo.x"}, 400},
		"a look-alike letter":           {nats.Msg{Subject: "out.op.call.ecｈo"}, 400},
		"a leading underscore":          {nats.Msg{Subject: "out.op.call._echo"}, 400},
		"a reserved word":               {nats.Msg{Subject: "out.op.call.token"}, 400},
		"a tool that is too long":       {nats.Msg{Subject: "out.op.call." + long}, 400},
		"a resource that is too long":   {nats.Msg{Subject: "out.op.read." + strings.Repeat("aaaa.", 45) + "a"}, 400},
		"memory without a key":          {nats.Msg{Subject: "out.op.memory.get"}, 400},
		"memory with a strange verb":    {nats.Msg{Subject: "out.op.memory.purge.x"}, 400},
		"a subject of a thousand parts": {nats.Msg{Subject: "out.op.call" + strings.Repeat(".a", 1000)}, 400},
		"an operation that is not":      {nats.Msg{Subject: "out.nothing.call.echo"}, 401},
		"another agent's operation":     {nats.Msg{Subject: "out.hers.call.echo"}, 401},
		"a tool that was not granted":   {nats.Msg{Subject: "out.op.call.http"}, 403},
		"a tool that is forbidden":      {nats.Msg{Subject: "out.op.call.bash"}, 403},
		"a broader resource":            {nats.Msg{Subject: "out.op.read.data"}, 403},
		"a narrower resource":           {nats.Msg{Subject: "out.op.read.data.q1.secret"}, 403},
		"memory that was not granted":   {nats.Msg{Subject: "out.op.memory.delete.x"}, 403},
		"a recipient that is not":       {nats.Msg{Subject: "out.op.send.nobody"}, 403},
		"over one mebibyte":             {nats.Msg{Subject: "out.op.call.echo", Data: make([]byte, 1<<20+1)}, 413},
		"an answer to nothing":          {nats.Msg{Subject: "out._r.x"}, 400},
		"a header twice":                {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-TTL": {"1", "2"}}}, 400},
		"a header twice, in two cases":  {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-TTL": {"1"}, "nats-ttl": {"2"}}}, 400},
		"a deadline that is no number":  {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-TTL": {"soon"}}}, 400},
		"a deadline in the past":        {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-TTL": {"-5s"}}}, 400},
		"a deadline beyond the longest": {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-TTL": {"1000h"}}}, 400},
		"an expiry beyond the longest":  {nats.Msg{Subject: "out.op.send.alice", Header: nats.Header{"Nats-TTL": {"10000h"}}}, 400},
		"a trace that is none":          {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"traceparent": {"00-0-0-0"}}}, 400},
		"a long message id":             {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-Msg-Id": {strings.Repeat("x", 300)}}}, 400},
		"bad UTF-8 in a header":         {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"content-type": {"a\xff\xfe"}}}, 400},
		"a tab in a header":             {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"content-type": {"a\tb"}}}, 400},
		"the marks of a stream":         {nats.Msg{Subject: "out.op.call.echo", Header: nats.Header{"Nats-Stream": {"EVENTS"}}}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.msg
			answer, refusal := ask(t, nc, &m)
			if refusal == nil || refusal.Code != c.code || refusal.Text == "" {
				t.Fatalf("got %q, %v; want %d", answer.Data, refusal, c.code)
			}
			if !strings.Contains(string(answer.Data), fmt.Sprintf(`"code":%d`, c.code)) {
				t.Errorf("the body %q is not what a JetStream client reads", answer.Data)
			}
		})
	}
	works(t, honest, "out.op.call.echo")
	works(t, alice, "out.op.call.echo")
	r.sound()
}

// What only the protocol by hand can say in a header block. None of it may
// pass for something else, or be lost in silence where it was meant to count.
func TestForgedHeaderBlocksMeanNothing(t *testing.T) {
	r, alice, mallory := stage(t)
	w := r.speak(mallory)
	for name, c := range map[string]struct {
		header string
		code   string // "" where the request is answered as if without
	}{
		"a consumer's end":              {"NATS/1.0 409 Consumer Deleted\r\n\r\n", ""},
		"an idle heartbeat":             {"NATS/1.0 100 Idle Heartbeat\r\n\r\n", ""},
		"a missing message":             {"NATS/1.0 404 No Messages\r\n\r\n", ""},
		"no responders":                 {"NATS/1.0 503\r\n\r\n", ""},
		"a status in a header":          {"NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n", ""},
		"a bare line feed":              {"NATS/1.0\r\nX: 1\nNats-Request-Info: {\"acc\":\"alice\"}\r\n\r\n", "any"},
		"a bare line feed in a value":   {"NATS/1.0\r\nX: 1\nwrit-from: alice\r\n\r\n", "any"},
		"an empty name":                 {"NATS/1.0\r\n: x\r\n\r\n", "any"},
		"a name with a leading space":   {"NATS/1.0\r\n Writ-From: alice\r\n\r\n", "any"},
		"a name with a trailing space":  {"NATS/1.0\r\nWrit-From : alice\r\n\r\n", "any"},
		"a carriage return in a name":   {"NATS/1.0\r\nWrit-\rFrom: alice\r\n\r\n", "any"},
		"no colon":                      {"NATS/1.0\r\nnonsense\r\n\r\n", "400"},
		"another protocol":              {"HTTP/1.1 200 OK\r\n\r\n", "400"},
		"no end":                        {"NATS/1.0\r\nA: b", "any"},
		"a sender in lower case":        {"NATS/1.0\r\nwrit-from: alice\r\n\r\n", ""},
		"an expected sequence":          {"NATS/1.0\r\nNats-Expected-Last-Sequence: 1\r\nNats-Expected-Stream: X\r\nNats-Rollup: all\r\n\r\n", ""},
		"an event's own headers":        {"NATS/1.0\r\nce-type: sh.writ.agent.killed\r\nWrit-Lock: killed\r\nWrit-Empty: 1\r\nWrit-Reply: _R_.x\r\n\r\n", ""},
		"a message id of another event": {"NATS/1.0\r\nNats-Msg-Id: release-release.mark-1\r\n\r\n", ""},
		"thousands of names":            {"NATS/1.0\r\n" + strings.Repeat("X-%: y\r\n", 4000) + "\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			must(t, w.c.SetDeadline(time.Now().Add(within)))
			body := "said with " + name
			block, data := w.request("out.op.call.echo", c.header, body)
			refused := strings.Contains(block, "Nats-Service-Error-Code")
			switch {
			case strings.HasPrefix(block, "-ERR"), block == "closed":
				t.Fatalf("the server itself answers %q", block)
			case strings.Contains(block, "Writ-From: alice"):
				t.Fatalf("it passes for another's: %q", block)
			case c.code == "" && (refused || data != body):
				t.Errorf("got %q, %q", block, data)
			case c.code == "400" && !strings.Contains(block, "Nats-Service-Error-Code: 400"):
				t.Errorf("got %q, %q; want 400", block, data)
			}
			works(t, alice, "out.op.call.echo")
		})
	}
	// None of it stands in an event: each decodes, and names mallory alone.
	for _, e := range r.log() {
		if strings.HasPrefix(string(e.Data), "said with ") && e.Agent != "mallory" && e.Agent != "echo" {
			t.Errorf("%d: %s of %s", e.Seq, e.Kind, e.Agent)
		}
	}
	r.sound()
}

// A body that is no text is a body: it arrives as it was sent, to the byte.
func TestBodiesAreBytesAndNothingElse(t *testing.T) {
	r, alice, _ := stage(t)
	for name, body := range map[string]string{
		"bad UTF-8":               "\xff\xfe\xfd",
		"NULs":                    "\x00\x00",
		"one NUL":                 "\x00",
		"protocol":                "\r\nPUB in.call.echo 1\r\nx\r\n",
		"an acknowledgement":      `{"stream":"EVENTS","seq":1}`,
		"an error":                `{"error":{"code":403}}`,
		"a mebibyte":              strings.Repeat("\x80", 1<<20),
		"a header block":          "NATS/1.0 503\r\n\r\n",
		"deeply nested JSON":      strings.Repeat("[", 100_000),
		"a key twice":             `{"a":1,"a":2}`,
		"numbers out of bounds":   `{"a":1e999999,"b":-0,"c":18446744073709551616}`,
		"a name of a thousand kB": `{"` + strings.Repeat("k", 1_000_000) + `":1}`,
	} {
		answer, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.call.echo", Data: []byte(body)})
		if refusal != nil || string(answer.Data) != body {
			t.Errorf("%s: %d bytes came back of %d, %v", name, len(answer.Data), len(body), refusal)
		}
	}
	answer, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.call.echo"})
	if refusal != nil || len(answer.Data) != 0 {
		t.Errorf("nothing: %q, %v", answer.Data, refusal)
	}
	r.sound()
}

// Memory keys are the sender's own, whatever they look like.
func TestNoKeyLeavesTheOwnMemory(t *testing.T) {
	r, alice, _ := stage(t)
	if _, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.memory.put.diary", Data: []byte("alice's")}); refusal != nil {
		t.Fatal(refusal)
	}
	nc := r.loose()
	attempts := 0
	for _, key := range []string{"alice.diary", "diary", "..alice.diary", ".alice.diary", "alice..diary", "*.diary", "*", ">", "alice.*", "alice.>", "Alice.diary", "ALICE.diary",
		"alice/diary", "../alice/diary", "%61lice.diary", "alice\u2024diary", "mallory.alice.diary", "$KV.MEMORY.alice.diary", "_alice.diary", "alice.diary.", "al\u0131ce.diary"} {
		for _, verb := range []string{"get", "put", "delete", "list"} {
			m := &nats.Msg{Subject: "out.op.memory." + verb + "." + key, Data: []byte("mallory was here")}
			if strings.Contains(key, "..") || strings.HasPrefix(key, ".") || strings.HasSuffix(key, ".") {
				_ = nc.PublishMsg(m) // no server answers on such a subject
				attempts++
				continue
			}
			answer, err := nc.RequestMsg(m, within)
			if err != nil && bus.AsRefusal(err) != nil && !nc.IsConnected() {
				t.Fatalf("%s: %v", m.Subject, err)
			}
			attempts++
			if err == nil && strings.Contains(string(answer.Data), "alice's") {
				t.Errorf("%s reads %q", m.Subject, answer.Data)
			}
		}
	}
	answer, refusal := ask(t, nc, &nats.Msg{Subject: "out.op.memory.list"})
	if refusal != nil || strings.Contains(string(answer.Data), `"diary"`) && !strings.Contains(string(answer.Data), "alice.diary") {
		t.Errorf("the list is %s, %v", answer.Data, refusal)
	}
	answer, refusal = ask(t, alice, &nats.Msg{Subject: "out.op.memory.get.diary"})
	if refusal != nil || string(answer.Data) != "alice's" {
		t.Errorf("alice's diary says %q, %v", answer.Data, refusal)
	}
	if attempts < 80 {
		t.Errorf("only %d attempts", attempts)
	}
	r.sound()
}

// What may never be granted: wildcards, other agents' names, more than the
// ceiling, and nothing for others.
func TestNothingBeyondTheCeilingIsIssued(t *testing.T) {
	r, _, creds := stage(t)
	nc := r.client(creds)
	for name, c := range map[string]struct {
		req  schemas.IssueRequest
		code int
	}{
		"every tool":             {schemas.IssueRequest{OperationID: "x", Tools: []string{"*"}}, 400},
		"every resource":         {schemas.IssueRequest{OperationID: "x", Scope: []string{"read:>"}}, 400},
		"a wildcard in between":  {schemas.IssueRequest{OperationID: "x", Scope: []string{"read:*.q1"}}, 400},
		"upper case":             {schemas.IssueRequest{OperationID: "x", Scope: []string{"READ:data.q1"}}, 400},
		"a space":                {schemas.IssueRequest{OperationID: "x", Scope: []string{"read:data.q1 read:data.q2"}}, 400},
		"a dot":                  {schemas.IssueRequest{OperationID: "x", Tools: []string{"echo.x"}}, 400},
		"another's memory":       {schemas.IssueRequest{OperationID: "x", Scope: []string{"memory:get.alice"}}, 400},
		"an operation with dots": {schemas.IssueRequest{OperationID: "op.call", Tools: []string{"echo"}}, 400},
		"an operation >":         {schemas.IssueRequest{OperationID: ">", Tools: []string{"echo"}}, 400},
		"the name token":         {schemas.IssueRequest{OperationID: "token", Tools: []string{"echo"}}, 400},
		"more than the ceiling":  {schemas.IssueRequest{OperationID: "x", Scope: []string{"read:data.q2"}}, 403},
		"a forbidden tool":       {schemas.IssueRequest{OperationID: "x", Tools: []string{"bash"}}, 403},
		"a longer life":          {schemas.IssueRequest{OperationID: "x", Tools: []string{"echo"}, TTLSeconds: 86400}, 403},
		"a negative life":        {schemas.IssueRequest{OperationID: "x", Tools: []string{"echo"}, TTLSeconds: -1}, 403},
		"more tokens":            {schemas.IssueRequest{OperationID: "x", Tools: []string{"echo"}, MaxTokens: 1}, 403},
		"for another":            {schemas.IssueRequest{AgentID: "alice", OperationID: "x", Tools: []string{"echo"}}, 403},
		"for a service":          {schemas.IssueRequest{AgentID: "echo", OperationID: "x"}, 404},
		"for nobody":             {schemas.IssueRequest{AgentID: "nobody", OperationID: "x"}, 404},
		"for an account's key":   {schemas.IssueRequest{OperationID: "x", Tools: []string{"echo"}, PublicKey: r.account("mallory")}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			answer, refusal := ask(t, nc, &nats.Msg{Subject: "out.token.issue", Data: schemas.Marshal(c.req)})
			if refusal == nil || refusal.Code != c.code {
				t.Errorf("got %.100q, %v; want %d", answer.Data, refusal, c.code)
			}
		})
	}
	for _, data := range []string{"", "null", "[]", "{", `{"operation_id":"x","operation_id":"y"}`, `{"operation_id":"x","unknown":1}`, `{"OPERATION_ID":"x"}`, "\xff", strings.Repeat("[", 50_000)} {
		if _, refusal := ask(t, nc, &nats.Msg{Subject: "out.token.issue", Data: []byte(data)}); refusal == nil || refusal.Code != 400 {
			t.Errorf("%.40q: %v", data, refusal)
		}
	}
	works(t, nc, "out.op.call.echo")
	r.sound()
}

// A stolen operation key signs whatever it likes, and gets what was granted.
func TestStolenOperationKeyDoesWhatWasGrantedAndNothingElse(t *testing.T) {
	r, _, _ := stage(t)
	nc := r.client(userOf(t, r.account("mallory"), r.key("mallory", keys.OperationKey), func(c *jwt.UserClaims) {
		c.SetScoped(true)
		c.Tags.Add("op:op", "op:hers", "op:never", "scope:call.echo", "scope:call.bash", "scope:read.data.q1", "scope:read.data.q2", "scope:>", "deny:_none")
	}))
	works(t, nc, "out.op.call.echo")
	for subject, code := range map[string]int{"out.op.call.bash": 403, "out.op.read.data.q2": 403, "out.hers.call.echo": 401, "out.never.call.echo": 401,
		"out.op.exec.all": 400, "out.op.send.nobody": 403} {
		if answer, refusal := ask(t, nc, &nats.Msg{Subject: subject}); refusal == nil || refusal.Code != code {
			t.Errorf("%s: %q, %v; want %d", subject, answer.Data, refusal, code)
		}
	}
	r.sound()
}

// The deadline of a request is kept where nobody answers, and what comes
// behind it is given to nobody.
func TestServiceThatNeverAnswersCostsItsCallerTheDeadline(t *testing.T) {
	r, alice, _ := stage(t)
	answer, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.call.silent", Header: nats.Header{schemas.HeaderTTL: {"300ms"}}})
	if refusal == nil || refusal.Code != schemas.CodeNoAnswer || refusal.Seq == 0 {
		t.Fatalf("got %q, %v; want 504 and the sequence of the request", answer.Data, refusal)
	}
	expired := false
	for _, e := range r.log() {
		expired = expired || e.Kind == schemas.MessageExpired && strconv.FormatUint(e.Ref, 10) == answer.Header.Get(schemas.HeaderSeq)
	}
	if !expired {
		t.Error("the log says nothing of it")
	}
	r.sound()
}
