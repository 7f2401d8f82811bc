package adversary

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

const honestRequests = 100

// beside runs an attack for as long as an honest agent's hundred requests take,
// and demands that every one of them is answered.
func beside(t *testing.T, alice *nats.Conn, attack func(stop <-chan struct{})) {
	t.Helper()
	stop := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() { attack(stop) })
	lost := 0
	took := make([]time.Duration, 0, honestRequests)
	for i := range honestRequests {
		if lost > 5 {
			break // enough to know
		}
		body := fmt.Sprintf("honest %d", i)
		began := time.Now()
		m, err := alice.Request("out.op.call.echo", []byte(body), 5*time.Second)
		took = append(took, time.Since(began))
		if err != nil || string(m.Data) != body {
			lost++
			t.Log(i, err, m)
		}
	}
	close(stop)
	g.Wait()
	slices.Sort(took)
	t.Logf("honest requests: p50 %s, p99 %s", took[len(took)/2].Round(time.Microsecond), took[len(took)*99/100].Round(time.Microsecond))
	if lost > 0 {
		t.Errorf("%d of %d honest requests were lost", lost, honestRequests)
	}
}

// pound publishes as fast as the connection takes it, until told to stop or
// cut off.
func pound(stop <-chan struct{}, nc *nats.Conn, next func(i int) *nats.Msg) (n int) {
	for {
		select {
		case <-stop:
			return n
		default:
		}
		if nc.PublishMsg(next(n)) != nil {
			return n
		}
		n++
	}
}

// stormy is a fleet in which the flooder has an ordinary rate, and is not
// locked for its noise: what protects the others must not be the lock.
const stormy = `trust_domain: storm.example
agents:
  - id: flooder
    thresholds: {pause: 100, suspend: 100}
    ceiling: {scope: [send:alice, memory:put], tools: [echo], ttl: 1h}
  - id: alice
    rate: {per_second: 100000, burst: 100000}
    ceiling: {scope: [send:flooder], tools: [echo], ttl: 1h}
services:
  - {id: echo, serves: [call:echo], tools: {echo: {class: read, description: "gives back"}}}
  - {id: noisy, serves: [call:noisy], tools: {noisy: {class: read, description: "answers anything"}}}
`

func storm(t *testing.T) (r *rig, alice *nats.Conn, creds string) {
	r = start(t, stormy)
	r.serve(r.client(r.enroll("echo")), "in.call.echo", echo)
	alice = r.client(r.issue(schemas.IssueRequest{AgentID: "alice", OperationID: "op", Tools: []string{"echo"}, Scope: []string{"send:flooder"}}).Creds)
	creds = r.issue(schemas.IssueRequest{AgentID: "flooder", OperationID: "op", Tools: []string{"echo"}, Scope: []string{"send:alice", "memory:put"}}).Creds
	return r, alice, creds
}

func TestFloodOfOneAgentLosesNothingOfOthers(t *testing.T) {
	big := []byte(strings.Repeat("x", 64<<10))
	for name, next := range map[string]func(i int) *nats.Msg{
		"calls": func(i int) *nats.Msg { return &nats.Msg{Subject: "out.op.call.echo", Data: []byte("flood")} },
		"calls with answers": func(i int) *nats.Msg {
			return &nats.Msg{Subject: "out.op.call.echo", Reply: "_INBOX.flood", Data: []byte("flood")}
		},
		"large calls": func(i int) *nats.Msg { return &nats.Msg{Subject: "out.op.call.echo", Data: big} },
		"what is not granted": func(i int) *nats.Msg {
			return &nats.Msg{Subject: fmt.Sprintf("out.op%d.call.echo", i), Data: []byte("flood")}
		},
		"what can't be read": func(i int) *nats.Msg { return &nats.Msg{Subject: "out.OP.CALL", Data: []byte("flood")} },
		"asking for tokens": func(i int) *nats.Msg {
			return &nats.Msg{Subject: "out.token.issue", Reply: "_INBOX.flood", Data: []byte("{}")}
		},
		"what the server denies": func(i int) *nats.Msg { return &nats.Msg{Subject: fmt.Sprintf("nobody.%d", i), Data: []byte("flood")} },
		"answers to nothing": func(i int) *nats.Msg {
			return &nats.Msg{Subject: fmt.Sprintf("out._r.%032x-%d", i, i%100+1), Data: []byte("flood")}
		},
		"large answers to nothing": func(i int) *nats.Msg {
			return &nats.Msg{Subject: fmt.Sprintf("out._r.%032x-%d", i, i%100+1), Data: big}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, alice, creds := storm(t)
			var nc *nats.Conn
			if strings.Contains(name, "granted") || strings.Contains(name, "read") {
				nc = r.client(r.widened("flooder"))
			} else {
				nc = r.client(creds)
			}
			before := len(r.log())
			n := 0
			began := time.Now()
			beside(t, alice, func(stop <-chan struct{}) { n = pound(stop, nc, next) })
			took := time.Since(began)
			logged := 0
			for _, e := range r.log()[before:] {
				if e.Agent == "flooder" {
					logged++
				}
			}
			t.Logf("%d messages in %s; %d of them in the log", n, took.Round(time.Millisecond), logged)
			r.sound()
		})
	}
}

// An agent that has everything delivered to it thirty-two times over and reads
// none of it is cut off by the server; nobody else waits for it.
func TestNeverReadingSubscriberStallsNobody(t *testing.T) {
	r, alice, creds := storm(t)
	big := []byte(strings.Repeat("x", 512<<10))
	w := r.speak(creds)
	for i := range 32 {
		w.say(fmt.Sprintf("SUB _INBOX.> %d\r\n", i))
	}
	w.say("PING\r\n")
	if got := w.hear("PONG"); got != "PONG" {
		t.Fatalf("it gets %q", got)
	}
	nc := r.client(creds)
	beside(t, alice, func(stop <-chan struct{}) {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if nc.PublishRequest("out.op.call.echo", "_INBOX.never.read", big) != nil {
				return
			}
			time.Sleep(5 * time.Millisecond) // within its rate: all are answered
		}
	})
	r.sound()
}
