package monitor

import (
	"fmt"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// paced does one run of so many searches, so far apart, each answered so.
func (p *plane) paced(calls int, apart time.Duration, latency time.Duration, tokens int64, code int) (last schemas.Verdict) {
	p.t.Helper()
	p.now = p.now.Add(24 * time.Hour)
	o := p.issue("analyst", "report", defaultTask)
	for range calls {
		p.now = p.now.Add(apart - time.Second)
		e := o.draft("call:search", `{"q":"figures"}`)
		p.now = p.now.Add(time.Second)
		e.Time = p.now
		last = p.m.Assess(e)
		e.Verdict, e.Risk = schemas.Marshal(last), last.Risk
		p.put(e)
		p.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: "tools", To: "analyst", Operation: o.name, Action: e.Action, Ref: e.Seq,
			Time: p.now, Data: []byte(`{}`), Latency: latency, Tokens: tokens, Code: code})
	}
	o.end()
	return last
}

// An agent that was taken over and uses nothing but its usual tools, to read as
// much as it can, shows in its pace, its errors or its spending alone.
func TestEachChannelShowsWhatNoScoreDoes(t *testing.T) {
	for name, c := range map[string]struct {
		calls   int
		apart   time.Duration
		latency time.Duration
		tokens  int64
		code    int
		most    int // what it comes to at most: what a service does to an agent pauses nobody
	}{
		"rate":    {4000, time.Millisecond, 20 * time.Millisecond, 100, 0, 100},
		"latency": {3, 20 * time.Second, 10 * time.Hour, 100, 0, 39},
		"errors":  {400, 20 * time.Second, 20 * time.Millisecond, 0, schemas.CodeNotFound, 69},
		"spend":   {3, 20 * time.Second, 20 * time.Millisecond, 1 << 28, 0, 100},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			for i := range 400 {
				if v := p.paced(3+i%4, 20*time.Second, time.Duration(10+i%30)*time.Millisecond, int64(50+i%90), 0); v.ActionRisk != 0 {
					t.Fatalf("harmless run %d: %s", i, show(v))
				}
			}
			v := p.paced(c.calls, c.apart, c.latency, c.tokens, c.code)
			f, ok := factors(v)[name]
			if !ok || v.ActionRisk < min(40, c.most) || v.ActionRisk > c.most || f.Points != 0 || f.Support < 400 || v.ActionRisk >= 40 && (f.Observed == "" || f.Expected == "") {
				t.Errorf("%s", show(v))
			}
			if v.Score != 0 {
				t.Errorf("a channel entered the score: %s", show(v))
			}
		})
	}
}

// Below minOwn runs nobody knows what is usual.
func TestChannelsAreSilentAtFirst(t *testing.T) {
	p := newPlane(t)
	for range minOwn - 1 {
		p.paced(2, time.Minute, time.Millisecond, 10, 0)
	}
	if v := p.paced(500, 10*time.Millisecond, time.Hour, 1<<30, 0); v.ActionRisk != 0 {
		t.Errorf("%s", show(v))
	}
}

// One run in five hundred at most reaches 70 by all channels together: held
// against as many runs as they were learned from, none of the learned does so
// unless there are as many.
func TestChannelsRarelyAccuseTheHarmless(t *testing.T) {
	var h histogram
	for i := range 400 {
		h.learn(uint64(i * i))
	}
	for i := range 400 {
		if r := riskOf(max(h.bits(uint64(i*i))-channelBits, 0)); r >= 70 {
			t.Errorf("value %d of those learned: risk %d", i*i, r)
		}
	}
	if r := riskOf(max(h.bits(1<<38)-channelBits, 0)); r < 70 {
		t.Errorf("a million times what was ever seen: risk %d", r)
	}
}

// An attacker who does more each run moves what is usual by an octave a run at
// most, and what is kept does not grow.
func TestAHistogramIsBoundedAndMovesSlowly(t *testing.T) {
	var h histogram
	for range 100 {
		h.learn(100)
	}
	top := len(h.bins)
	h.learn(1 << 39)
	if len(h.bins) > top+2 {
		t.Errorf("one run moved the end from %d to %d half octaves", top, len(h.bins))
	}
	for i := range 3 * channelRuns {
		h.learn(1 << (i % 64))
	}
	if len(h.bins) > channelBins || h.n > channelRuns {
		t.Errorf("%d bins of %d runs", len(h.bins), h.n)
	}
	n := uint32(0)
	for _, k := range h.bins {
		n += uint32(k)
	}
	if n != h.n {
		t.Errorf("%d runs in the bins, %d counted", n, h.n)
	}
}

// Low and slow: each run does one thing that is unusual, and not enough for a
// pause. The sum over the runs is.
func TestLowAndSlowSumsUp(t *testing.T) {
	p := trained(t, 60, "analyst")
	paused := 0
	for i := range 30 {
		o := p.weekly("analyst", 100+i)
		v := o.do("write:report.draft", fmt.Sprintf(`{"file":"/notes/other-%d.md"}`, i))
		if v.ActionRisk >= 70 {
			if _, ok := factors(v)["slow"]; !ok {
				t.Fatalf("run %d stood out by itself: %s", i, show(v))
			}
			paused = i
			break
		}
		o.end()
		p.now = p.now.Add(24 * time.Hour)
	}
	if paused == 0 {
		t.Fatalf("thirty runs in a row passed: the sum is %d of %d", p.m.agents["analyst"].slow, slowLimit)
	}
	p.resume("analyst") // an operator has looked
	if p.m.agents["analyst"].slow != 0 {
		t.Error("it is still held against the agent after an operator looked")
	}
}

func TestHarmlessRunsDoNotSumUp(t *testing.T) {
	p := newPlane(t)
	for week := range 300 {
		p.weekly("analyst", week).end()
		if s := p.m.agents["analyst"].slow; s >= slowLimit {
			t.Fatalf("after %d harmless runs the sum is %d", week, s)
		}
	}
}

func TestAGaugeFades(t *testing.T) {
	var g gauge
	at := time.Unix(1_700_000_000, 0)
	for range 10 {
		g.up(at, rateHalf)
	}
	if n := g.now(at, rateHalf); n != 160 {
		t.Errorf("ten at once: %d sixteenths", n)
	}
	if n := g.now(at.Add(rateHalf), rateHalf); n < 79 || n > 80 {
		t.Errorf("a half-life later: %d", n)
	}
	if g.now(at.Add(-time.Hour), rateHalf) != 160 || g.now(at.Add(24*time.Hour), rateHalf) != 0 {
		t.Error("time that runs backwards, or very long")
	}
}
