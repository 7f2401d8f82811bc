package adversary

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
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
	var attacker, honest sync.WaitGroup
	attacker.Go(func() { attack(stop) })
	var lost atomic.Int64
	const workers = 4
	for n := range workers {
		honest.Go(func() {
			for i := range honestRequests / workers {
				body := fmt.Sprintf("honest %d of %d", i, n)
				began := time.Now()
				m, err := alice.Request("out.op.call.echo", []byte(body), within)
				if err == nil && string(m.Data) != body {
					err = fmt.Errorf("the answer is %v %.100s", m.Header, m.Data)
				}
				if err != nil {
					t.Logf("%s, after %s: %v", body, time.Since(began), err)
					lost.Add(1)
				}
			}
		})
	}
	honest.Wait()
	close(stop)
	attacker.Wait()
	if n := lost.Load(); n > 0 {
		t.Errorf("%d of %d honest requests were lost", n, honestRequests)
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

// A flood fills its own lane and is shed there: no honest request is lost, and
// the log does not grow with it.
func TestFloodOfOneAgentLosesNothingOfOthers(t *testing.T) {
	small := []byte("flood")
	for name, next := range map[string]func(i int) *nats.Msg{
		"calls":               func(int) *nats.Msg { return &nats.Msg{Subject: "out.op.call.echo", Reply: "_INBOX.flood", Data: small} },
		"what is not granted": func(i int) *nats.Msg { return &nats.Msg{Subject: fmt.Sprintf("out.op%d.call.echo", i), Data: small} },
		"what can't be read":  func(int) *nats.Msg { return &nats.Msg{Subject: "out.OP.CALL", Data: small} },
		"asking for tokens": func(int) *nats.Msg {
			return &nats.Msg{Subject: "out.token.issue", Reply: "_INBOX.flood", Data: []byte("{}")}
		},
		"what the server denies": func(i int) *nats.Msg { return &nats.Msg{Subject: fmt.Sprintf("nobody.%d", i), Data: small} },
		"answers to nothing": func(i int) *nats.Msg {
			return &nats.Msg{Subject: fmt.Sprintf("out._r.%032x-%d", i, i%100+1), Data: small}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, alice, creds := storm(t)
			if name == "what is not granted" || name == "what can't be read" {
				creds = r.widened("flooder") // the server would not let it out
			}
			nc := r.client(creds)
			before := len(r.log())
			fired := 0
			beside(t, alice, func(stop <-chan struct{}) { fired = pound(stop, nc, next) })
			logged := 0
			for _, e := range r.log()[before:] {
				if e.Agent == "flooder" {
					logged++
				}
			}
			t.Logf("%d messages, %d of them in the log", fired, logged)
			if fired < 10*honestRequests {
				t.Errorf("%d messages are no flood", fired)
			}
			if logged > fired/2 {
				t.Errorf("%d of %d messages went into the log", logged, fired)
			}
			r.sound()
		})
	}
}

// An agent that has everything delivered to it thirty-two times over and reads
// none of it is cut off by the server; nobody else waits for it.
// One agent sends on all the connections that it may have, as fast as loopback
// takes it. Nothing behind the server can shed that: the
// server itself tells of it, and the agent is suspended. Until then others may
// be refused; from then on they are not.
func TestAFloodOnAllConnectionsIsStopped(t *testing.T) {
	for name, size := range map[string]int{"5 B": 5, "64 KiB": 64 << 10, "1 MiB": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			r, alice, creds := storm(t)
			body := bytes.Repeat([]byte{'x'}, size)
			stop := make(chan struct{})
			var flood sync.WaitGroup
			var fired atomic.Int64
			for range 16 {
				flood.Go(func() {
					for {
						if nc, err := r.dial(creds); err == nil {
							fired.Add(int64(pound(stop, nc, func(int) *nats.Msg { return &nats.Msg{Subject: "out.op.call.echo", Data: body} })))
							nc.Close()
						}
						select {
						case <-stop:
							return
						case <-time.After(10 * time.Millisecond):
						}
					}
				})
			}
			until(t, "the flooder is suspended", func() bool {
				rep := call[schemas.StatusReply](r, schemas.CtlStatus, schemas.StatusRequest{AgentID: "flooder"})
				return rep.Agents[0].State == schemas.Suspended && strings.Contains(rep.Agents[0].Reason, "within half a second")
			})
			// The lock stands in the log before it is carried out, and what
			// the server had read is still to be worked off.
			until(t, "others are heard again", func() bool {
				_, err := alice.Request("out.op.call.echo", []byte("are you there?"), within)
				return err == nil
			})
			// It goes on trying to come back, and harms nobody.
			beside(t, alice, func(done <-chan struct{}) { <-done })
			close(stop)
			flood.Wait()
			t.Logf("%d messages of %s", fired.Load(), name)
			r.sound()
		})
	}
}

func TestNeverReadingSubscriberStallsNobody(t *testing.T) {
	r, alice, creds := storm(t)
	big := []byte(strings.Repeat("x", 64<<10))
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
		pace := time.NewTicker(10 * time.Millisecond) // within its rate: all are answered
		defer pace.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pace.C:
			}
			if nc.PublishRequest("out.op.call.echo", "_INBOX.never.read", big) != nil {
				return
			}
		}
	})
	r.sound()
}
