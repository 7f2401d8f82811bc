package intake

import (
	"context"
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
		ln := l.next()
		for _, a := range ln.queue {
			got[a.msg.Subject]++
			if a.shed > 0 {
				got["shed"]++
			}
		}
		ln.queue, ln.busy, ln.account.waiting = nil, false, 0
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
	for len(l.ready) > 0 {
		for _, a := range l.next().queue {
			if a.shed > 0 && a.shed != 10 {
				t.Fatalf("%d were counted, want the 9 of before and this one", a.shed)
			}
		}
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
	for range 32 {
		wg.Go(func() {
			l.work(context.Background(), func(_ context.Context, _ *lane, a arrival) {
				agent := schemas.OutAgent(a.msg.Subject)
				n := int(agent[1] - '0')
				if busy[n].Add(1) != 1 {
					t.Error("two messages of one agent are in progress")
				}
				mu.Lock()
				order[agent] = append(order[agent], a.msg.Subject)
				mu.Unlock()
				busy[n].Add(-1)
				if left.Add(-1) == 0 {
					l.close()
				}
			})
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
