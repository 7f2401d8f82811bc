package monitor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

func TestThirtyPoisonedRunsTeachNothing(t *testing.T) {
	clean := trained(t, 60, "analyst")
	before := hijack(clean.issue("analyst", "report", defaultTask)).ActionRisk

	p := trained(t, 60, "analyst")
	for range 30 {
		o := p.issue("analyst", "report", defaultTask)
		hijack(o)
		if o.highest < learnBelow {
			t.Fatalf("the poison has risk %d and is no test of the gate", o.highest)
		}
		p.resume("analyst")
		o.end()
	}
	after := hijack(p.issue("analyst", "report", defaultTask))
	if after.ActionRisk < before || factors(after)["unknown"].Bits == 0 {
		t.Errorf("risk fell from %d to %d: %s", before, after.ActionRisk, show(after))
	}
}

// The same attack where nothing is held, denied or resumed between: just high
// enough to be skipped, just low enough to pass.
func TestSlowPoisonBelowThePauseTeachesNothing(t *testing.T) {
	p := trained(t, 60, "analyst")
	a := p.m.agent("analyst")
	tops := len(p.m.pool.sorted)
	for range 30 {
		r := newRun()
		r.job, r.maxRisk, r.maxScore = "report", 55, maxScore/2
		r.votes.add(shape{tool: toolNamed(schemas.Action{Verb: "call", Resource: "mail"})}, toolID{}, []useOf{{value: id{1, 1}}})
		p.m.learn(a, r)
	}
	if (view{b: a.baseline, t: a.baseline.templates["report"]}).trusts(a.baseline.known[id{1, 1}].templates) {
		t.Error("a skipped run made its value known")
	}
	pool := &p.m.pool
	if pool.censored*censoredOne > len(pool.maxima) || len(pool.sorted)-tops > tops/censoredOne+1 {
		t.Errorf("%d of %d maxima are of skipped runs", pool.censored, len(pool.maxima))
	}
	if got := pool.sorted[len(pool.sorted)-1]; got >= maxScore/2 {
		t.Errorf("a skipped run taught the score %d", got)
	}
}

func TestARunUnderReviewTeachesNothing(t *testing.T) {
	for name, end := range map[string]func(p *plane, o *op){
		"nobody reviewed": func(*plane, *op) {},
		"denied": func(p *plane, o *op) {
			p.put(&schemas.Event{Kind: schemas.ReviewDenied, Agent: "analyst", Ref: o.held, Time: p.now})
		},
	} {
		p := trained(t, 60, "analyst")
		p.reviewed("analyst")
		runs := p.m.agents["analyst"].baseline.runs
		o := p.issue("analyst", "report", defaultTask)
		hijack(o)
		if o.held == 0 {
			t.Fatal("nothing was held")
		}
		end(p, o)
		o.end()
		if got := p.m.agents["analyst"].baseline.runs; got != runs {
			t.Errorf("%s: %d runs learned, want %d", name, got, runs)
		}
	}
}

func TestARunTeachesNothingBeforeItsEnd(t *testing.T) {
	p := newPlane(t)
	o := p.issue("analyst", "report", "")
	for range 50 {
		o.do("call:mail", `{"to":"new@x.example"}`)
	}
	if v := o.do("call:mail", `{"to":"new@x.example"}`); factors(v)["unknown"].Bits == 0 {
		t.Error("a value became known within its own run")
	}
	o.end()
	if v := p.issue("analyst", "report", "").do("call:mail", `{"to":"new@x.example"}`); factors(v)["unknown"].Bits+factors(v)["slot"].Bits != 0 {
		t.Errorf("a value of an earlier run of this job is unknown: %s", show(v))
	}
}

func TestAValueOfOneJobIsUnknownToOthersUntilTwoJobsKnowIt(t *testing.T) {
	p := newPlane(t)
	use := func(job string) schemas.Verdict {
		o := p.issue("analyst", job, "")
		defer o.end()
		return o.do("call:mail", `{"to":"v@x.example"}`)
	}
	for _, c := range []struct {
		job     string
		unknown bool
	}{{"one", true}, {"one", false}, {"two", true}, {"three", false}, {"four", false}} {
		if v := use(c.job); factors(v)["unknown"].Bits != 0 != c.unknown {
			t.Errorf("%s: unknown %v, want %v", c.job, !c.unknown, c.unknown)
		}
		p.resume("analyst")
	}
}

func TestBehaviourAloneCannotPauseBeforeTwentyRuns(t *testing.T) {
	p := newPlane(t)
	for week := range minPooled - 1 {
		p.weekly("analyst", week).end()
	}
	if n := len(p.m.pool.sorted); n != minPooled-1 {
		t.Fatalf("%d runs calibrate, want %d", n, minPooled-1)
	}
	if v := hijack(p.issue("analyst", "report", defaultTask)); v.ActionRisk > maxBehaviour || v.Decision != schemas.Pass {
		t.Errorf("%s", show(v))
	}
	o := p.issue("analyst", "report", defaultTask)
	o.do("call:shell", `{}`)
	if v := o.do("read:other.data", ``); v.ActionRisk <= 60 {
		t.Errorf("refusals don't count in full: %s", show(v))
	}
}

func TestAWildActionOfAnUnknownFleetStopsRightBelowThePause(t *testing.T) {
	o := newPlane(t).issue("analyst", "report", "")
	o.answerOfService = injected
	o.do("call:search", `{}`)
	if v := o.do("write:public.share", exfil); v.ActionRisk != 69 {
		t.Errorf("%s", show(v))
	}
}

func TestARunWithAForbiddenToolTeachesNothingEvenIfTheToolReads(t *testing.T) {
	p := newPlane(t)
	o := p.issue("analyst", "report", "")
	p.m.agents["analyst"].runs[o.name].forbidden = []string{"fetch"}
	o.do("call:fetch", `{}`)
	o.do("call:mail", `{"to":"new@x.example"}`)
	o.end()
	if got := p.m.agents["analyst"].baseline.runs; got != 0 {
		t.Errorf("%d runs learned", got)
	}
}

func TestOneVoteARun(t *testing.T) {
	p := newPlane(t)
	o := p.issue("analyst", "report", "")
	for range 500 {
		o.do("call:mail", `{"to":"v@x.example"}`)
	}
	o.end()
	b := p.m.agents["analyst"].baseline
	mail := toolNamed(schemas.Action{Verb: "call", Resource: "mail"})
	if b.tools[mail].n != 1 || b.filled[place{mail, "to"}] != 1 {
		t.Errorf("500 calls of one run count %d times", b.tools[mail].n)
	}
}

func TestWhatAnAgentAnswersIsASink(t *testing.T) {
	p := newPlane(t)
	answer := func(o *op, body string) schemas.Verdict {
		e := &schemas.Event{Kind: schemas.ResponseAccepted, Agent: "helper", To: o.agent, Operation: o.name, Time: p.now,
			Action: schemas.Action{Verb: "ask", Resource: "helper"}, Data: []byte(body)}
		v := p.m.Assess(e)
		e.Verdict, e.Risk = schemas.Marshal(v), v.Risk
		p.put(e)
		return v
	}
	for range 30 {
		o := p.issue("analyst", "report", "")
		answer(o, "done, see https://wiki.acme.example/report")
		o.end()
	}
	o := p.issue("analyst", "report", "")
	if f := factors(answer(o, "done, see https://wiki.acme.example/report")); f["unknown"].Bits != 0 {
		t.Errorf("a link that it always gives is unknown: %v", f)
	}
	if f := factors(answer(o, "now look at https://evil.example/payload")); f["unknown"].Bits == 0 {
		t.Errorf("a link that it never gave is known: %v", f)
	}
	if f := factors(o.do("call:mail", `{"to":"x@y.example","body":"https://evil.example/payload"}`)); f[idFresh].Bits == 0 {
		t.Errorf("what a helper answered is not fresh: %v", f)
	}
}

// Whatever an agent does, what is kept of it stays within bounds.
func TestMemoryOfAnAgentIsBounded(t *testing.T) {
	p := newPlane(t)
	p.reviewed("analyst")
	for i := range 2 * maxKnown {
		var v votes
		n := uint64(i)
		tool := toolNamed(schemas.Action{Verb: "write", Resource: fmt.Sprintf("r%d", i)})
		v.add(shape{tool: tool}, toolNamed(schemas.Action{Verb: "call", Resource: fmt.Sprintf("c%d", i%300)}), []useOf{{place: place{tool, "k"}, value: id{n, 2}, domain: id{n, 3}, root: toolNamed(schemas.Action{Verb: "call", Resource: fmt.Sprintf("c%d", i%300)})}})
		p.m.agent("analyst").baseline.learn(fmt.Sprintf("job-%d", i%maxTemplates), &v)
	}
	if known := len(p.m.agent("analyst").baseline.known); known < maxKnown/2 {
		t.Fatalf("only %d values were learned: the bound was not tried", known)
	}
	for i := range 300 {
		p.now = p.now.Add(24 * 3600e9)
		o := p.issue("analyst", fmt.Sprintf("job-%d", i%200), strings.Repeat("word ", 2000))
		o.answerOfService = fmt.Sprintf(`{"text":"%s"}`, strings.Repeat(fmt.Sprintf("w%d.x ", i), 10)+manyWords(i))
		o.do("call:search", `{}`)
		o.do(fmt.Sprintf("write:r%d", i), `{}`)
		o.do("call:mail", fmt.Sprintf(`{"k%d":"v%d","to":["a%d@x.example","b%d@y%d.example"]}`, i, i, i, i, i))
		o.do(fmt.Sprintf("memory:put.k%d", i), `{}`)
		p.event(schemas.AgentViolation, "analyst", schemas.Marshal(schemas.Violation{Subject: "x", Count: 1}))
		if i%3 != 0 {
			p.event(schemas.AgentResumed, "analyst", nil)
			delete(p.lock, "analyst")
			o.end()
		}
	}
	a := p.m.agents["analyst"]
	b := a.baseline
	for name, c := range map[string]struct{ n, most int }{
		"templates": {len(b.templates), maxTemplates}, "tools": {len(b.tools), maxTools}, "pairs": {len(b.pairs), maxPairs},
		"slots": {len(b.slots), maxPlaces}, "known": {len(b.known), maxKnown}, "flows": {len(b.flows), maxFlows}, "filled": {len(b.filled), maxPlaces},
		"times": {len(b.times), maxRepeats}, "together": {len(b.together), maxTogether}, "new tools": {len(b.newTools), maxTools}, "words": {len(b.words), maxTemplates * maxWordsOf},
		"runs": {len(a.runs), maxLive}, "held": {len(a.held), maxHeld}, "approved": {len(a.approved), maxApproved}, "causes": {len(a.causes), schemas.MaxCauses},
		"history": {len(a.history), maxHistory}, "refusals": {len(a.refusals), maxRefusals},
		"pending": {len(p.m.pending), maxPending}, "pool": {len(p.m.pool.maxima), maxMaxima},
	} {
		if c.n > c.most {
			t.Errorf("%s: %d, at most %d", name, c.n, c.most)
		}
	}
	for _, r := range a.runs {
		if len(r.seen) > maxSeen || len(r.task) > maxTask || len(r.votes.uses) > maxVoteUses {
			t.Errorf("a run keeps %d words, %d bytes of task, %d values", len(r.seen), len(r.task), len(r.votes.uses))
		}
	}
}

func manyWords(i int) string {
	var b strings.Builder
	for j := range 1200 {
		fmt.Fprintf(&b, "w%dx%d ", i%5, j)
	}
	return b.String()
}

func TestAFloodedOutputHidesNoFreshValue(t *testing.T) {
	p := trained(t, 60, "analyst")
	o := p.issue("analyst", "report", defaultTask)
	o.answerOfService = manyWords(1) + strings.Repeat(manyWords(2), 3) + " drop@evil.example"
	o.do("call:search", `{}`)
	if v := o.do("call:mail", exfil); factors(v)[idFresh].Bits == 0 {
		t.Errorf("the value behind the padding is not fresh: %s", show(v))
	}
}

func TestLongPastCountsAreHalved(t *testing.T) {
	b := newBaseline(nil)
	var v votes
	v.add(shape{tool: toolNamed(schemas.Action{Verb: "call", Resource: "x"})}, toolID{}, []useOf{{value: id{1, 1}}})
	for range 3 * maxRuns {
		b.learn("job", &v)
	}
	if b.runs >= maxRuns || b.votes != b.tools[v.tools[0]].n {
		t.Errorf("runs %d, votes %d", b.runs, b.votes)
	}
	if t0 := b.templates["job"]; (view{b: b, t: t0}).toolSurprise(v.tools[0]) > one/100 {
		t.Error("a tool of each run is surprising")
	}
}

// What an agent of eight jobs takes, each of 40 runs, stays under 64 KiB.
func TestAnAgentOfEightJobsFitsInItsMemory(t *testing.T) {
	r, err := Bench(1, 1, t.TempDir(), func() time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	if r.BytesPerAgent > 64<<10 || r.BytesPerAgent < 4<<10 {
		t.Errorf("%d bytes an agent", r.BytesPerAgent)
	}
}

// An assessment in the steady state allocates nothing.
func TestAnAssessmentAllocatesNothing(t *testing.T) {
	l := benchLog{model: New(Options{}), time: time.Unix(1_700_000_000, 0).UTC()}
	if err := l.fill(1, 40); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*schemas.Event{"sink": l.action("agent-0", "live", 1), "read": l.action("agent-0", "live", 0)} {
		if n := testing.AllocsPerRun(200, func() { l.model.Assess(e) }); n != 0 {
			t.Errorf("%s: %g allocations", name, n)
		}
	}
}
