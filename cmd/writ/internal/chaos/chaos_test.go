// Package chaos kills a whole control plane at random moments under load and
// holds what clients saw against what the ledger has on disk.
//
// The attacker here is the loss of a process: services, the NATS server and the
// ledger end together, without a word (SIGKILL). What it must not bring about:
// a delivery or an answer of which the ledger, read before anything is started
// again, knows nothing; an acknowledged message that is lost; a record twice.
//
// The short form runs with the other tests; the campaign is
//
//	go test ./cmd/writ/internal/chaos -run TestWriteAhead -kills 200 -timeout 2h
package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

var (
	kills = flag.Int("kills", 4, "how often the control plane is killed")
	seed  = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the moments")
)

const (
	agents  = 4
	echoID  = "echo"
	fleet   = "trust_domain: chaos.example\nagents:\n"
	service = "services:\n  - id: echo\n    serves: [call:echo]\n    tools: {echo: {class: read, description: \"gives back\"}}\n"
)

func agentName(i int) string { return fmt.Sprintf("agent-%d", i%agents) }

// seen is what a client saw of one event: its sequence and the digest of the
// body that came with it.
type seen struct {
	seq    uint64
	digest schemas.Digest
	what   string
}

// A rig is a control plane in a process of its own, and its clients.
type rig struct {
	t      *testing.T
	binary string
	data   string
	listen string
	cmd    *exec.Cmd
	stream uint64

	mu        sync.Mutex
	deliver   []seen            // deliveries and answers, checked after each kill
	acked     map[string]uint64 // message id → acknowledged sequence
	delivered map[uint64]int
}

func TestWriteAhead(t *testing.T) {
	t.Logf("seed %d: repeat with -seed %d", *seed, *seed)
	random := rand.New(rand.NewPCG(*seed, 1))
	r := newRig(t)
	r.start()
	r.stream = r.streamID()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var clients sync.WaitGroup
	r.connect(ctx, &clients)
	for i := range *kills {
		time.Sleep(time.Duration(100+random.IntN(900)) * time.Millisecond)
		r.kill()
		n := r.check()
		t.Logf("kill %d: %d deliveries and answers, all of them on disk", i+1, n)
		r.start()
	}
	cancel()
	clients.Wait()
	r.settle()
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{t: t, binary: filepath.Join(dir, "writ"), data: filepath.Join(dir, "data"),
		acked: map[string]uint64{}, delivered: map[uint64]int{}}
	if out, err := exec.Command("go", "build", "-o", r.binary, "github.com/writ-sh/writ/cmd/writ").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	text := fleet
	for i := range agents {
		next := agentName(i + 1)
		text += fmt.Sprintf("  - id: %s\n    rate: {per_second: 100000, burst: 100000}\n    ceiling:\n      scope: [send:%s]\n      tools: [echo]\n      ttl: 1h\n", agentName(i), next)
	}
	if err := os.WriteFile(filepath.Join(dir, "fleet.yaml"), []byte(text+service), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	r.listen = l
	return r
}

// start starts the control plane and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	log, err := os.OpenFile(r.data+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.cmd = exec.Command(r.binary, "up", "--data", r.data, "--listen", r.listen, "--http", "127.0.0.1:0", "--fleet", filepath.Join(filepath.Dir(r.data), "fleet.yaml"))
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var rt struct {
			PID int `json:"pid"`
		}
		b, err := os.ReadFile(filepath.Join(r.data, "runtime.json"))
		if err == nil && json.Unmarshal(b, &rt) == nil && rt.PID == r.cmd.Process.Pid {
			return
		}
	}
	text, _ := os.ReadFile(r.data + ".log")
	r.t.Fatalf("the control plane did not come up:\n%s", text)
}

func (r *rig) kill() {
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	_ = r.cmd.Wait() // it was killed
}

func (r *rig) dial(role keys.Role) *nats.Conn {
	r.t.Helper()
	creds, err := keys.Creds(r.data, role)
	if err != nil {
		r.t.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(role), URL: "nats://" + r.listen, Creds: creds})
	if err != nil {
		r.t.Fatal(err)
	}
	return nc
}

func (r *rig) streamID() uint64 {
	nc := r.dial(keys.RoleLedger)
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := js.Stream(context.Background(), schemas.Stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return proof.StreamID(keys.CONTROL, schemas.Stream, s.CachedInfo().Created.UnixNano())
}

// connect starts a service and the agents: each sends to the next and calls
// the service, as fast as it is answered, through every restart.
func (r *rig) connect(ctx context.Context, wg *sync.WaitGroup) {
	r.t.Helper()
	op := r.dial(keys.RoleOperator)
	defer op.Close()
	e, err := bus.Call[schemas.EnrollReply](ctx, op, schemas.CtlEnroll, schemas.EnrollRequest{ID: echoID, Actor: "test"})
	if err != nil {
		r.t.Fatal(err)
	}
	nc := r.client(e.Creds)
	r.subscribe(nc, "in.call.echo", func(m *nats.Msg) { _ = m.Respond(m.Data) })
	for i := range agents {
		g, err := bus.Call[schemas.IssueReply](ctx, op, schemas.CtlIssue, schemas.IssueRequest{AgentID: agentName(i),
			OperationID: "op", Scope: []string{"send:" + agentName(i+1)}, Tools: []string{"echo"}, TTLSeconds: 3600, Actor: "test"})
		if err != nil {
			r.t.Fatal(err)
		}
		nc := r.client(g.Creds)
		r.subscribe(nc, "in.send.*", func(m *nats.Msg) { _ = m.Respond(nil) })
		wg.Go(func() { r.send(ctx, nc, i) })
		wg.Go(func() { r.call(ctx, nc, i) })
	}
}

func (r *rig) client(creds string) *nats.Conn {
	r.t.Helper()
	nc, err := nats.Connect("nats://"+r.listen, nats.UserCredentialBytes([]byte(creds)), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0), nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	return nc
}

// subscribe notes every delivery before it is answered.
func (r *rig) subscribe(nc *nats.Conn, subject string, answer func(*nats.Msg)) {
	r.t.Helper()
	_, err := nc.Subscribe(subject, func(m *nats.Msg) {
		seq, _ := strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64)
		r.mu.Lock()
		r.deliver = append(r.deliver, seen{seq, schemas.Sum(m.Data), "delivery of " + m.Subject})
		r.delivered[seq]++
		r.mu.Unlock()
		answer(m)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

// send sends numbered messages, each again under its id until acknowledged.
func (r *rig) send(ctx context.Context, nc *nats.Conn, agent int) {
	for n := 0; ctx.Err() == nil; n++ {
		id := fmt.Sprintf("%d-%d", agent, n)
		m := &nats.Msg{Subject: "out.op.send." + agentName(agent+1), Data: []byte("message " + id), Header: nats.Header{schemas.HeaderMsgID: {id}}}
		for ctx.Err() == nil {
			answer, err := request(ctx, nc, m)
			if err != nil {
				continue
			}
			var a schemas.Ack
			if json.Unmarshal(answer.Data, &a) != nil || a.Seq == 0 {
				continue // refused while a part was down
			}
			r.mu.Lock()
			r.acked[id] = a.Seq
			r.mu.Unlock()
			break
		}
	}
}

func (r *rig) call(ctx context.Context, nc *nats.Conn, agent int) {
	for n := 0; ctx.Err() == nil; n++ {
		body := []byte(fmt.Sprintf("call %d-%d", agent, n))
		m, err := request(ctx, nc, &nats.Msg{Subject: "out.op.call.echo", Data: body})
		if err != nil || m.Header.Get(schemas.HeaderErrorCode) != "" {
			continue
		}
		seq, _ := strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64)
		r.mu.Lock()
		r.deliver = append(r.deliver, seen{seq, schemas.Sum(body), "answer"})
		r.mu.Unlock()
	}
}

func request(ctx context.Context, nc *nats.Conn, m *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond) // not connected
	}
	return answer, err
}

// check opens the ledger as the kill left it, with nothing else running, and
// looks up all that clients have seen so far.
func (r *rig) check() int {
	r.t.Helper()
	o, err := plane.LedgerOptions(r.data)
	if err != nil {
		r.t.Fatal(err)
	}
	o.StreamID = r.stream
	led, err := ledger.Open(o)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() {
		if err := led.Close(); err != nil {
			r.t.Fatal(err)
		}
	}()
	r.mu.Lock()
	all := r.deliver
	r.deliver = nil
	acked := make(map[string]uint64, len(r.acked))
	for id, seq := range r.acked {
		acked[id] = seq
	}
	r.mu.Unlock()
	for _, s := range all {
		e, err := led.Event(s.seq)
		if err != nil {
			r.t.Fatalf("%s under %d, of which the ledger on disk knows nothing: %v", s.what, s.seq, err)
		}
		if e.Digest != s.digest || e.Kind != schemas.MessageAccepted {
			r.t.Fatalf("%s under %d is not what the ledger holds there: %s %s", s.what, s.seq, e.Kind, e.Action)
		}
	}
	for id, seq := range acked {
		if e, err := led.Event(seq); err != nil || e.MsgID != id {
			r.t.Fatalf("%s was acknowledged as %d and is not in the ledger: %v", id, seq, err)
		}
	}
	return len(all)
}

// settle checks the whole log at the end.
func (r *rig) settle() {
	r.t.Helper()
	ctx := context.Background()
	op := r.dial(keys.RoleOperator)
	defer op.Close()
	ids, records := map[string]uint64{}, 0
	for from := uint64(1); from != 0; {
		page, err := bus.Call[schemas.ReadReply](ctx, op, schemas.CtlRead, schemas.ReadRequest{From: from, Limit: 1000})
		if err != nil {
			r.t.Fatal(err)
		}
		for _, rec := range page.Records {
			e, err := rec.Event()
			if err != nil {
				r.t.Fatal(err)
			}
			if first, twice := ids[e.ID]; twice {
				r.t.Fatalf("event %s stands twice, as %d and %d", e.ID, first, rec.Seq)
			}
			ids[e.ID] = rec.Seq
			records++
		}
		from = page.Next
	}
	v, err := bus.Call[schemas.VerifyReply](ctx, op, schemas.CtlVerify, nil)
	if err != nil || !v.OK {
		r.t.Fatalf("verify: %+v, %v", v, err)
	}
	// One message of a pair is on its way at a time, and a campaign leaves tens
	// of thousands: as long as they become fewer, none is lost.
	left := r.undelivered()
	for deadline := time.Now().Add(2 * time.Minute); left > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		if now := r.undelivered(); now < left {
			left, deadline = now, time.Now().Add(2*time.Minute)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if left > 0 {
		r.t.Errorf("%d of %d acknowledged messages were not delivered", left, len(r.acked))
	}
	again := 0
	for _, n := range r.delivered {
		again += n - 1
	}
	r.t.Logf("%d records, none twice; %d acknowledged messages; %d deliveries, %d of them repeated", records, len(r.acked), len(r.delivered), again)
	if len(r.acked) == 0 {
		r.t.Error("nothing was sent: this test would pass for nothing")
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			text, _ := os.ReadFile(r.data + ".log")
			r.t.Fatalf("a clean stop ended with %v:\n%s", err, text)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("it does not stop on an interrupt")
	}
}

// undelivered counts the acknowledged messages that no recipient has seen.
func (r *rig) undelivered() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seq := range r.acked {
		if r.delivered[seq] == 0 {
			n++
		}
	}
	return n
}
