package adversary

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// An inbox keeps all that ever comes as answers to one request.
func inboxOf(t *testing.T, nc *nats.Conn, name string) *tap {
	t.Helper()
	p := &tap{}
	p.listen(nc, "", name)
	must(t, nc.Flush())
	return p
}

// Answers from all who were not asked, under the true id and under guessed
// ones: none of them arrives.
func TestOnlyWhoWasAskedCanAnswer(t *testing.T) {
	r, alice, mallory := stage(t)
	var reply atomic.Value
	r.serve(r.client(r.enroll("silent")), "in.call.silent", func(m *nats.Msg) { reply.Store(m.Reply) })
	answers := inboxOf(t, alice, "_INBOX.alice.answers")
	must(t, alice.PublishRequest("out.op.call.silent", "_INBOX.alice.answers", []byte("who are you?")))
	until(t, "the service was asked", func() bool { return reply.Load() != nil })
	to := reply.Load().(string)
	id, seq, err := schemas.ParseResponseToken(strings.TrimPrefix(to, "out._r."))
	must(t, err)
	guesses := []string{to, strings.ToUpper(to), to + ".x", "out._r." + id, "out._r." + id + "-0" + fmt.Sprint(seq), "out._r." + id + "-" + fmt.Sprint(seq+1), "out._r." + id + "-" + fmt.Sprint(seq-1),
		"out._r." + strings.Repeat("0", 32) + "-" + fmt.Sprint(seq), "out._r.*", "out._r.>", "out._r." + id[:31] + "?-" + fmt.Sprint(seq), "out._r." + id + "-18446744073709551615"}
	attempts := 0
	for _, nc := range []*nats.Conn{r.client(mallory), r.client(r.enroll("echo")), r.client(r.enroll("twice")), r.client(r.widened("slow")), alice} {
		for _, g := range guesses {
			_ = nc.Publish(g, []byte("forged answer"))
			_ = nc.PublishMsg(&nats.Msg{Subject: g, Header: nats.Header{"Nats-Service-Error-Code": {"410"}, "Nats-Service-Error": {"forged answer"}}})
			attempts += 2
		}
		must(t, nc.Flush())
	}
	works(t, alice, "out.op.call.echo") // behind all that
	must(t, r.client(r.enroll("silent")).Publish(to, []byte("the true answer")))
	until(t, "the true answer came", func() bool { return len(answers.holding("the true answer")) == 1 })
	if got := answers.holding("forged"); len(got) > 0 {
		t.Errorf("after %d attempts: %q", attempts, got)
	}
	r.sound()
}

// The first answer in the log is the answer; what comes twice, late, or behind
// a lock is given to nobody, and the log says so.
func TestTheFirstAnswerIsTheAnswer(t *testing.T) {
	r, alice, _ := stage(t)
	twice := inboxOf(t, alice, "_INBOX.alice.twice")
	must(t, alice.PublishRequest("out.op.call.twice", "_INBOX.alice.twice", []byte("say it twice")))
	until(t, "an answer came", func() bool { return len(twice.holding("first")) == 1 })
	until(t, "the second is in the log", func() bool {
		n := 0
		for _, e := range r.log() {
			if e.Agent == "twice" && string(e.Data) == "second" {
				n++
			}
		}
		return n == 1
	})
	works(t, alice, "out.op.call.echo")
	if got := twice.holding("second"); len(got) > 0 {
		t.Errorf("the second answer came too: %q", got)
	}

	var reply atomic.Value
	silent := r.client(r.enroll("silent"))
	r.serve(silent, "in.call.silent", func(m *nats.Msg) { reply.Store(m.Reply) })
	late := inboxOf(t, alice, "_INBOX.alice.late")
	must(t, alice.PublishMsg(&nats.Msg{Subject: "out.op.call.silent", Reply: "_INBOX.alice.late", Data: []byte("quick!"), Header: nats.Header{schemas.HeaderTTL: {"200ms"}}}))
	until(t, "the deadline passed", func() bool { return len(late.holding("504")) == 1 })
	must(t, silent.Publish(reply.Load().(string), []byte("too late")))
	until(t, "the late answer is in the log", func() bool {
		for _, e := range r.log() {
			if string(e.Data) == "too late" {
				return true
			}
		}
		return false
	})
	works(t, alice, "out.op.call.echo")
	if got := late.holding("too late"); len(got) > 0 {
		t.Errorf("the late answer came: %q", got)
	}

	reply = atomic.Value{}
	cut := inboxOf(t, alice, "_INBOX.alice.cut")
	must(t, alice.PublishRequest("out.op.call.silent", "_INBOX.alice.cut", []byte("before the kill")))
	until(t, "the service was asked", func() bool { return reply.Load() != nil })
	call[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "silent", Lock: schemas.Suspended, Reason: "hijacked", Actor: "rig"})
	until(t, "the caller was told", func() bool { return len(cut.holding("410")) == 1 })
	_ = silent.Publish(reply.Load().(string), []byte("from the suspended"))
	works(t, alice, "out.op.call.echo")
	if got := cut.holding("from the suspended"); len(got) > 0 {
		t.Errorf("a suspended service answers: %q", got)
	}
	r.sound()
}

// Nobody is harmed by a request that expects no answer and gets one: it used to
// halt the ledger.
func TestRequestWithoutAReplyHaltsNothing(t *testing.T) {
	r, alice, mallory := stage(t)
	nc := r.client(mallory)
	for _, subject := range []string{"out.op.call.echo", "out.op.call.twice", "out.op.ask.alice", "out.op.send.alice", "out.op.memory.get.x", "out.op.memory.list", "out.nothing.call.echo", "out.token.issue", "out._r.x"} {
		must(t, nc.Publish(subject, []byte("no reply wanted")))
		works(t, nc, "out.op.call.echo")
	}
	must(t, nc.PublishMsg(&nats.Msg{Subject: "out.op.call.silent", Data: []byte("no reply wanted"), Header: nats.Header{schemas.HeaderTTL: {"100ms"}}}))
	until(t, "its deadline passed", func() bool {
		for _, e := range r.log() {
			if e.Kind == schemas.MessageExpired {
				return true
			}
		}
		return false
	})
	works(t, alice, "out.op.call.echo")
	r.sound()
}

// A queue group that names itself like a service's takes nothing from it, for
// groups live in accounts.
func TestQueueGroupsStealNothing(t *testing.T) {
	r, alice, mallory := stage(t)
	thief := &tap{}
	for _, nc := range []*nats.Conn{r.client(mallory), r.client(r.widened("slow")), r.client(r.enroll("twice"))} {
		for _, queue := range []string{"echo", "memory", "intake", "", ">"} {
			thief.listen(nc, queue, "in.>", "in.call.echo", "in.call.*", "in.memory.>", "writ.out.>", "out.>")
		}
		must(t, nc.Flush())
	}
	for i := range 50 {
		body := fmt.Sprintf("secret %d", i)
		answer, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.call.echo", Data: []byte(body)})
		if refusal != nil || string(answer.Data) != body {
			t.Fatalf("%q, %v", answer.Data, refusal)
		}
	}
	if got := thief.holding("secret"); len(got) > 0 {
		t.Errorf("stolen: %q", got)
	}
	r.sound()
}

// An idempotency key is its agent's own.
func TestMessageIDsOfOthersCollideWithNothing(t *testing.T) {
	r, alice, mallory := stage(t)
	nc := r.client(mallory)
	send := func(nc *nats.Conn, body string) (string, *schemas.Refusal) {
		m, refusal := ask(t, nc, &nats.Msg{Subject: "out.op.send.alice", Data: []byte(body), Header: nats.Header{schemas.HeaderMsgID: {"order-1"}}})
		return string(m.Data), refusal
	}
	if ack, refusal := send(nc, "mallory was first"); refusal != nil {
		t.Fatalf("%s, %v", ack, refusal)
	}
	ack, refusal := send(alice, "alice's order")
	if refusal != nil || strings.Contains(ack, "duplicate") {
		t.Errorf("alice's own id was taken from her: %s, %v", ack, refusal)
	}
	if ack, refusal := send(alice, "alice's order"); refusal != nil || !strings.Contains(ack, `"duplicate":true`) {
		t.Errorf("her repetition: %s, %v", ack, refusal)
	}
	if ack, refusal := send(alice, "another order"); refusal == nil || refusal.Code != schemas.CodeConflict {
		t.Errorf("her key with another body: %s, %v", ack, refusal)
	}
	r.sound()
}
