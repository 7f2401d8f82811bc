package intake

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

func testLanes() *lanes {
	return newLanes(func(agent string) limits {
		return limits{Rate: schemas.Rate{PerSecond: 10, Burst: 20}, service: agent == "shop"}
	})
}

func from(agent, rest string) *nats.Msg {
	return &nats.Msg{Subject: "writ.out." + agent + "." + rest}
}

// drain handles all that waits and counts it by subject.
func drain(l *lanes) map[string]int {
	got := map[string]int{}
	for len(l.ready) > 0 {
		for _, t := range l.take(100, 1<<20) {
			got[t.msg.Subject]++
			if t.shed > 0 {
				got["shed"]++
			}
			l.done(&t)
		}
	}
	return got
}

func TestAFloodIsShedAndHarmsNobodyElse(t *testing.T) {
	l := testLanes()
	now := time.Unix(1000, 0)
	for range 10_000 {
		l.put(from("flood", "op.call.x"), now)
	}
	l.put(from("calm", "op.call.x"), now)
	got := drain(l)
	if n := got["writ.out.flood.op.call.x"]; n != 21 || got["shed"] != 1 {
		t.Fatalf("%d of the flood went on, %d of them to be logged as shed; want the burst of 20, and one", n, got["shed"])
	}
	if got["writ.out.calm.op.call.x"] != 1 {
		t.Fatal("another agent's message was shed")
	}
}

func TestTheFirstShedMessageOfEachSecondCountsTheOthers(t *testing.T) {
	l := testLanes()
	for i := range 30 {
		l.put(from("flood", "op.call.x"), time.Unix(1000, int64(i)))
	}
	drain(l)
	// 11 s on the bucket is full again: 20 pass, the 21st is told of.
	for range 21 {
		l.put(from("flood", "op.call.x"), time.Unix(1011, 0))
	}
	told := 0
	for len(l.ready) > 0 {
		for _, task := range l.take(100, 1<<20) {
			if task.shed > 0 {
				told++
				if task.shed != 10 {
					t.Fatalf("%d were counted, want the 9 of before and this one", task.shed)
				}
			}
			l.done(&task)
		}
	}
	if told != 1 {
		t.Fatalf("%d messages tell of what was shed, want one", told)
	}
}

func TestTheEndOfAFloodIsToldToo(t *testing.T) {
	l := testLanes()
	for i := range 30 {
		l.put(from("flood", "op.call.x"), time.Unix(1000, int64(i)))
	}
	drain(l)
	l.tell(time.Unix(1000, 999)) // the second is not over
	if len(l.ready) != 0 {
		t.Fatal("told within the second in which one was told already")
	}
	l.tell(time.Unix(1001, 0))
	tasks := l.take(10, 1<<20)
	if len(tasks) != 1 || tasks[0].shed != 9 || tasks[0].msg.Reply != "" || len(tasks[0].msg.Data) != 0 {
		t.Fatalf("%+v; want one that tells of 9", tasks)
	}
	l.done(&tasks[0])
	if l.tell(time.Unix(1002, 0)); len(l.ready) != 0 {
		t.Fatal("told twice")
	}
}

func TestAClockSetBackGivesNoTokens(t *testing.T) {
	l := testLanes()
	for range 20 {
		l.put(from("a", "op.call.x"), time.Unix(1000, 0))
	}
	l.put(from("a", "op.call.x"), time.Unix(500, 0))
	if got := drain(l); got["shed"] != 1 {
		t.Fatalf("%v", got)
	}
}

func TestAnswersOfAServiceAreNotRated(t *testing.T) {
	l := testLanes()
	for i := range 1000 {
		l.put(from("shop", fmt.Sprintf("_r.%032x-1", i)), time.Unix(1000, 0))
	}
	total := 0
	for _, n := range drain(l) {
		total += n
	}
	if total != 1000 {
		t.Fatalf("%d of 1000 answers went on", total)
	}
}

func TestMessagesOfOneAgentAreHandledOneAtATimeAndInOrder(t *testing.T) {
	l := newLanes(func(string) limits { return limits{Rate: schemas.Rate{PerSecond: 1e9, Burst: 1 << 20}} })
	const agents, each = 8, 100
	for i := range each {
		for a := range agents {
			l.put(from(fmt.Sprintf("a%d", a), fmt.Sprintf("op.call.n%d", i)), time.Unix(1000, 0))
		}
	}
	var mu sync.Mutex
	order := map[string][]string{}
	var busy [agents]atomic.Int32
	var left atomic.Int32
	left.Store(agents * each)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for tasks := l.take(5, 1<<20); tasks != nil; tasks = l.take(5, 1<<20) {
				for _, a := range tasks {
					agent := schemas.OutAgent(a.msg.Subject)
					n := int(agent[1] - '0')
					if busy[n].Add(1) != 1 {
						t.Error("two messages of one agent are in progress")
					}
					mu.Lock()
					order[agent] = append(order[agent], a.msg.Subject)
					mu.Unlock()
				}
				for _, a := range tasks {
					busy[schemas.OutAgent(a.msg.Subject)[1]-'0'].Add(-1)
					l.done(&a)
					if left.Add(-1) == 0 {
						l.close()
					}
				}
			}
		})
	}
	wg.Wait()
	for agent, subjects := range order {
		if len(subjects) != each {
			t.Fatalf("%s: %d messages", agent, len(subjects))
		}
		for i, s := range subjects {
			if want := fmt.Sprintf("writ.out.%s.op.call.n%d", agent, i); s != want {
				t.Fatalf("%s: message %d is %s", agent, i, s)
			}
		}
	}
}

func TestHeadersOfAgentsArePassedOverOrRefused(t *testing.T) {
	for name, h := range map[string]nats.Header{
		"trace destination":         {"Nats-Trace-Dest": {"x"}},
		"trace destination, case":   {"nats-trace-dest": {"x"}},
		"two spellings of one name": {"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},
		"one name twice":            {"content-type": {"a", "b"}},
		"line feed in a value":      {"content-type": {"a\nWrit-From: root"}},
		"leading space in a value":  {"content-type": {" a"}},
		"bad UTF-8":                 {"Nats-Msg-Id": {"a\xff"}},
		"negative lifetime":         {"Nats-TTL": {"-5s"}},
		"malformed trace":           {"traceparent": {"00-xyz"}},
		"forged usage":              {"Writ-Usage-Tokens": {"-1"}},
	} {
		if _, r := readHeaders(h); r == nil || r.Code != schemas.CodeMalformed {
			t.Errorf("%s: %v", name, r)
		}
	}
	h, r := readHeaders(nats.Header{
		"writ-from": {"root"}, "Writ-Seq": {"1"}, "Status": {"409"}, "Description": {"Consumer Deleted"},
		"Nats-Request-Info": {`{"acc":"root"}`}, "Nats-Expected-Stream": {"X"}, "Nats-Rollup": {"all"}, "content-type": {"text/plain"},
	})
	if r != nil || h != (headers{contentType: "text/plain"}) {
		t.Errorf("of forged headers remains %+v, %v", h, r)
	}
}

// An agent may answer what was asked of it, at its rate; made-up answers must
// not cost more than made-up actions.
func TestAFloodOfAnswersIsShedLikeAnyOther(t *testing.T) {
	l := testLanes()
	for i := range 1000 {
		l.put(from("flood", fmt.Sprintf("_r.%032x-1", i)), time.Unix(1000, 0))
	}
	total := 0
	for subject, n := range drain(l) {
		if subject != "shed" {
			total += n
		}
	}
	if total != 21 {
		t.Fatalf("%d answers went on; want the burst of 20, and one to be logged as shed", total)
	}
}

func TestATakeIsBoundedByBytesAndNeverEmpty(t *testing.T) {
	l := testLanes()
	for i := range 4 {
		m := from(fmt.Sprintf("a%d", i), "op.call.x")
		m.Data = make([]byte, 600)
		l.put(m, time.Unix(1000, 0))
	}
	for _, want := range []int{2, 2} {
		tasks := l.take(100, 1200)
		if len(tasks) != want {
			t.Fatalf("%d messages of 600 bytes were taken at 1,200 bytes, want %d", len(tasks), want)
		}
	}
	big := from("a9", "op.call.x")
	big.Data = make([]byte, 5000)
	l.put(big, time.Unix(1000, 0))
	if tasks := l.take(100, 1200); len(tasks) != 1 {
		t.Fatal("a message over the bound is never taken")
	}
}

func TestLanesOfAnswersGoWithTheirRequest(t *testing.T) {
	l := testLanes()
	for i := range 1000 {
		l.put(from("shop", fmt.Sprintf("_r.%032x-1", i)), time.Unix(1000, 0))
		l.put(from("shop", fmt.Sprintf("_r.%032x-1", i)), time.Unix(1000, 0))
	}
	if n := len(l.ready); n != 1000 {
		t.Fatalf("%d requests can be answered at once, want 1,000", n)
	}
	drain(l)
	if n := len(l.lanes); n != 0 {
		t.Fatalf("%d lanes are left", n)
	}
}

func TestWhatWaitsForOneAccountIsBoundedInBytes(t *testing.T) {
	l := testLanes()
	for i := range 1000 {
		m := from("shop", fmt.Sprintf("_r.%032x-1", i))
		m.Data = make([]byte, 1<<20)
		l.put(m, time.Unix(1000, 0))
	}
	if n := len(l.ready); n < 60 || n > 66 {
		t.Fatalf("%d MiB of answers of one service wait; the bound is 64", n)
	}
	drain(l)
	if acc := l.accounts["shop"]; acc.bytes != 0 || acc.waiting != 0 {
		t.Fatalf("with nothing waiting, %d bytes of %d messages are counted", acc.bytes, acc.waiting)
	}
}

// Invented answers, and true ones repeated, cost a service its rate: behind that
// nobody looks them up, and nothing of them fills the log.
func TestAServicesStrayAnswersCostItsRate(t *testing.T) {
	l := testLanes()
	now := time.Unix(1000, 0)
	l.put(from("shop", "_r.1-1"), now)
	ln := l.take(1, 1)[0].lane
	for i := range 20 {
		if l.owing(ln, now) {
			t.Fatalf("cut off after %d of a burst of 20", i)
		}
		l.astray(ln, now)
	}
	if !l.owing(ln, now) {
		t.Fatal("a spent burst costs nothing")
	}
	if l.owing(ln, now.Add(time.Second)) {
		t.Fatal("a second later it still owes")
	}
}

// Nobody's answer disappears because the monitor was away: the refusal must be
// one that the log takes.
func TestWhatTheMonitorDidNotJudgeIsRefusedInTheLog(t *testing.T) {
	action := schemas.Action{Verb: schemas.VerbAsk, Resource: "bob"}
	for _, kind := range []schemas.Kind{schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied, schemas.ResponseAccepted, schemas.ResponseHeld} {
		body := []byte("x")
		e := &schemas.Event{Kind: kind, Agent: "bob", ID: "1", Source: "intake/1", Time: time.Unix(1000, 0), Operation: "op", Action: action, To: "alice",
			Request: fmt.Sprintf("%032x", 7), Digest: schemas.Sum(body), Data: body,
			Trace: schemas.Trace{ID: fmt.Sprintf("%032x", 1), Span: fmt.Sprintf("%016x", 1)}}
		if kind == schemas.ResponseAccepted || kind == schemas.ResponseHeld {
			e.Ref, e.Input, e.Latency, e.Final = 5, schemas.Sum(body), time.Millisecond, true
		} else {
			e.JTI, e.Expires = "jti", time.Unix(2000, 0)
		}
		unjudged(e)
		if e.Code != schemas.CodeUnavailable || e.Kind != schemas.MessageDenied && e.Kind != schemas.ResponseDenied {
			t.Errorf("%s became %s with code %d", kind, e.Kind, e.Code)
		}
		if _, _, _, err := e.Encode(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
