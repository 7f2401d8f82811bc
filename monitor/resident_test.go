package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// busy is a log of several agents with many jobs each, in which most runs are
// harmless, tasks resemble one another, and some agents are gone for long.
func busy(t *testing.T, seed uint64, runs int) []*schemas.Event {
	p, rng := newPlane(t), rand.New(rand.NewPCG(seed, 1))
	topics := []string{"weekly report", "invoice of the month", "notes on owls", "travel to Lisbon", "report on owls", "salaries"}
	for i := range runs {
		agent := fmt.Sprintf("agent-%d", min(rng.IntN(9), rng.IntN(9)))
		job := rng.IntN(14)
		p.now = p.now.Add(3600e9)
		o := p.issue(agent, fmt.Sprintf("job-%d", job), fmt.Sprintf("Mail the %s to team%d@acme.example", topics[job%len(topics)], job))
		o.do("call:search", `{"q":"figures"}`)
		if job%3 == 0 {
			o.do("call:note", fmt.Sprintf(`{"file":"/notes/%d.md"}`, i%5))
		}
		o.do("call:mail", fmt.Sprintf(`{"to":"team%d@acme.example","subject":"no. %d"}`, job, i))
		switch rng.IntN(12) {
		case 0:
			randomAction(rng, o, i)
		case 1:
			hijack(o)
		case 2:
			p.violate(agent, "writ.in.boss.x")
		case 3:
			answer := &schemas.Event{Kind: schemas.ResponseAccepted, Agent: fmt.Sprintf("agent-%d", rng.IntN(9)), To: agent, Operation: o.name,
				Action: schemas.Action{Verb: schemas.VerbAsk, Resource: "x"}, Time: p.now, Data: []byte(`{"file":"/tmp/answer.md"}`)}
			v := p.m.Assess(answer)
			answer.Verdict, answer.Risk = schemas.Marshal(v), v.Risk
			p.put(answer)
		case 4:
			if i > runs/2 {
				p.event(schemas.AgentRemoved, agent, nil)
			}
		}
		if o.held != 0 && rng.IntN(2) == 0 {
			p.put(&schemas.Event{Kind: schemas.ReviewApproved, Agent: agent, Ref: o.held, Time: p.now})
		}
		if o.cause%2 == 1 {
			p.vouch(agent, o.cause)
		}
		o.end()
		if p.lock[agent] != "" {
			p.resume(agent)
		}
	}
	return p.log
}

// tight is a model with next to nothing in memory.
func tight(t *testing.T, agents, jobs int) *Model {
	m := New(Options{Folder: t.TempDir()})
	m.resident, m.jobs = agents, jobs
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Who fills memory with agents and jobs of his own must not change what is known
// of others: a model that holds one agent, and one job of it, gives each verdict
// and each snapshot to the bit as one that holds all.
func TestWhatIsPutAsideChangesNoByte(t *testing.T) {
	for seed := range uint64(3) {
		log := busy(t, seed, 260)
		all, few, fetched, away := New(Options{}), tight(t, 1+int(seed), 1+int(seed)), 0, 0
		rng := rand.New(rand.NewPCG(seed, 2))
		for i, e := range log {
			if len(e.Verdict) > 0 {
				if v := schemas.Marshal(few.Assess(e)); !bytes.Equal(v, e.Verdict) {
					t.Fatalf("seed %d, event %d:\n%s\n%s", seed, e.Seq, v, e.Verdict)
				}
			}
			if _, aside := few.aside[e.Agent]; aside && few.agents[e.Agent] == nil {
				fetched++
			}
			if err := errors.Join(all.Apply(e), few.Apply(e)); err != nil {
				t.Fatal(err)
			}
			if i%97 != 0 && i != len(log)-1 {
				continue
			}
			for _, a := range few.agents {
				for _, x := range a.baseline.templates {
					if x.tallies == nil {
						away++
					}
				}
			}
			b := few.Snapshot()
			if !bytes.Equal(b, all.Snapshot()) {
				t.Fatalf("seed %d: after event %d they stand elsewhere", seed, e.Seq)
			}
			if i != len(log)-1 && rng.IntN(2) == 0 { // a restart
				o := Options{Folder: t.TempDir()}
				again, err := ReadSnapshot(o, bytes.NewReader(b), int64(len(b)))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = again.Close() })
				again.resident, again.jobs = few.resident, few.jobs
				few = again
			}
		}
		if len(few.agents) > few.resident+1 || len(few.aside) < 4 || fetched < 50 {
			t.Errorf("%d agents in memory, %d aside, %d were fetched: nothing was tried", len(few.agents), len(few.aside), fetched)
		}
		if away == 0 {
			t.Error("no job was ever aside: nothing was tried")
		}
	}
}

// A fork that a snapshot is written from sees all as it stood, whatever is fetched,
// put aside and written over meanwhile.
func TestASnapshotOfWhatWasPutAsideIsOfOneMoment(t *testing.T) {
	log := busy(t, 7, 150)
	all, few := New(Options{}), tight(t, 1, 1)
	half := len(log) / 2
	for _, e := range log[:half] {
		if err := errors.Join(all.Apply(e), few.Apply(e)); err != nil {
			t.Fatal(err)
		}
	}
	want, still := all.Snapshot(), few
	few = goOn(still)
	done := make(chan []byte)
	go func() {
		for range 5 {
			if b := still.Snapshot(); !bytes.Equal(b, want) {
				done <- b
				return
			}
		}
		done <- want
	}()
	for _, e := range log[half:] {
		if len(e.Verdict) > 0 {
			few.Assess(e)
		}
		if err := errors.Join(all.Apply(e), few.Apply(e)); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-done; !bytes.Equal(got, want) {
		t.Errorf("while the fork went on, the snapshot became another: %d bytes, %d before", len(got), len(want))
	}
	few.alone()
	if !bytes.Equal(few.Snapshot(), all.Snapshot()) {
		t.Error("the fork stands elsewhere")
	}
}

// Who may look at risks, and no more, asks for those of all agents over and over,
// each of which must be fetched: verdicts are given in between.
func TestVerdictsDoNotWaitForWhoAsksForManyRisks(t *testing.T) {
	m := tight(t, 1, 1)
	for _, e := range busy(t, 1, 60) {
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	s := &Service{ServiceOptions: ServiceOptions{Now: time.Now}, model: m}
	names := m.names()
	last := names[0]
	ask := func(ids ...string) {
		t.Helper()
		r, err := s.risks(t.Context(), schemas.RisksRequest{AgentIDs: ids})
		if err != nil || len(r.Risks) != len(ids) {
			t.Fatalf("%d of %d risks: %v", len(r.Risks), len(ids), err)
		}
	}
	ids := append(slices.Repeat(names[1:], mostRisks/len(names)), last)
	for between, end := false, time.Now().Add(time.Minute); !between; {
		if time.Now().After(end) {
			t.Fatal("a whole question is answered before anything else is")
		}
		ask(last) // it is in memory now, and only away while others are fetched
		began, done, got := make(chan struct{}), make(chan struct{}), make(chan bool)
		go func() {
			close(began)
			seen := false
			for {
				s.mu.Lock()
				seen = seen || m.agents[last] == nil
				s.mu.Unlock()
				select {
				case <-done:
					got <- seen
					return
				default:
				}
			}
		}()
		<-began
		ask(ids...)
		close(done)
		between = <-got
	}
}

// What comes back damaged, or not at all, ends the fold: no verdict rests on it,
// and no snapshot holds it.
func TestADamagedAtticEndsTheFold(t *testing.T) {
	log := busy(t, 11, 120)
	for name, harm := range map[string]func(*os.File, int64) error{
		"a bit turned": func(f *os.File, end int64) error {
			b := make([]byte, end)
			n, err := f.ReadAt(b, 0)
			for at := 5; at < n; at += 256 {
				b[at] ^= 1
			}
			if err == io.EOF { // the last record does not fill its room
				err = nil
			}
			_, wrote := f.WriteAt(b[:n], 0)
			return errors.Join(err, wrote)
		},
		"cut off": func(f *os.File, _ int64) error { return f.Truncate(0) },
		"closed":  func(f *os.File, _ int64) error { return f.Close() },
		"old ones": func(f *os.File, end int64) error {
			_, err := io.Copy(io.NewOffsetWriter(f, 512), io.NewSectionReader(f, 0, end-512))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(Options{Folder: t.TempDir()})
			m.resident, m.jobs = 1, 1
			for _, e := range log[:len(log)/2] {
				if err := m.Apply(e); err != nil {
					t.Fatal(err)
				}
			}
			before := m.Snapshot()
			if before == nil {
				t.Fatal("there was no snapshot even before")
			}
			if err := harm(m.attic.file, m.attic.end); err != nil {
				t.Fatal(err)
			}
			if b := m.Snapshot(); b != nil {
				t.Error("what is damaged was written down")
			}
			var err error
			for _, e := range log[len(log)/2:] {
				if err = m.Apply(e); err != nil {
					break
				}
			}
			if !errors.Is(err, ErrAttic) || !errors.Is(m.Err(), ErrAttic) {
				t.Errorf("it folds on: %v", err)
			}
			again, err := Restore(Options{}, before) // as a restart does
			if err != nil || !bytes.Equal(again.Snapshot(), before) {
				t.Errorf("a restart: %v", err)
			}
		})
	}
}

// An attic that can't be made is told at once, and nothing is left of one that can.
func TestAnAtticHasNoName(t *testing.T) {
	log := busy(t, 3, 60)
	folder := t.TempDir()
	for _, c := range []struct {
		folder string
		err    error
	}{{folder, nil}, {folder + "/a\x00b", ErrAttic}} {
		m := New(Options{Folder: c.folder})
		m.resident, m.jobs = 1, 1
		var err error
		for _, e := range log {
			if err = m.Apply(e); err != nil {
				break
			}
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%q: %v", c.folder, err)
		}
		if c.err == nil && m.attic.end == 0 {
			t.Error("nothing was put aside")
		}
		_ = m.Close()
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Places of records that were taken out are used again, but not under a fork.
func TestTheAtticDoesNotGrowForEver(t *testing.T) {
	a := &attic{folder: t.TempDir()}
	t.Cleanup(func() { _ = a.close() })
	rng := rand.New(rand.NewPCG(1, 1))
	lies := map[int]shelf{}
	what := func(i, n int) []byte { return []byte(strings.Repeat(fmt.Sprint(i%10), n)) }
	size := map[int]int{}
	for i := range 20_000 {
		k := rng.IntN(50)
		a.drop(lies[k])
		size[k] = 300 + rng.IntN(3000)
		lies[k] = a.put(what(k, size[k]))
		if k = i % 50; lies[k] != (shelf{}) && !bytes.Equal(a.get(lies[k], nil), what(k, size[k])) {
			t.Fatal("a record came back as another")
		}
	}
	if a.end > 50*64*1024 || a.failed() != nil {
		t.Errorf("%d bytes for 50 records of 3 kB: %v", a.end, a.failed())
	}
	a.lend(true)
	kept := lies[3]
	a.drop(kept)
	for range 100 {
		a.put(what(4, size[3]))
	}
	if !bytes.Equal(a.get(kept, nil), what(3, size[3])) {
		t.Error("what a fork may read was written over")
	}
	end := a.end
	a.lend(false)
	if a.put(what(4, size[3])); a.end != end {
		t.Error("the place was not used again afterwards")
	}
}

// An agent that does nothing costs a name and a place, however many there are, and
// however much is known of it; one at work costs what it did.
func TestIdleAgentsCostNextToNothing(t *testing.T) {
	b, err := newBenchLog(Options{Folder: t.TempDir()}, 2, 40)
	if err != nil {
		t.Fatal(err)
	}
	b.model.resident = 16
	var at [2]int64
	for i, agents := range []int{500, 2500} {
		if err := b.plant(agents); err != nil {
			t.Fatal(err)
		}
		at[i] = heap()
	}
	if each := (at[1] - at[0]) / 2000; each > 512 {
		t.Errorf("each idle agent takes %d bytes of memory", each)
	}
	if len(b.model.aside) < 2400 || b.model.attic.end/2500 < 1000 {
		t.Errorf("%d agents are put aside, %d bytes each", len(b.model.aside), b.model.attic.end/2500)
	}
	if err := b.model.Close(); err != nil {
		t.Error(err)
	}
}

// Of the agent of which as much is known as can be, each of the eight jobs that are in
// memory takes no more than 64 KiB, and all of it no more than 1.5 MiB.
func TestTheFullestAgentFitsInItsMemory(t *testing.T) {
	m := New(Options{Folder: t.TempDir()})
	before := heap()
	a := m.agent("analyst")
	tool := func(i, n int) toolID {
		return toolNamed(schemas.Action{Verb: "write", Resource: fmt.Sprintf("r%d", i%n)})
	}
	for i := range 32 * maxTemplates {
		a.baseline.settle(m.jobs)
		var v votes
		for k := range 4 {
			n := uint64(4*i + k)
			s := shape{tool(i+k, 300), n}
			v.add(s, tool(i/7+k, 300), []useOf{{place: place{s.tool, fmt.Sprintf("k%d", i%5)}, value: id{n, 2}, domain: id{n, 3}, root: tool(i/3, 300), sink: true}})
			v.times[len(v.times)-1] = maxTimes
		}
		a.baseline.learn(fmt.Sprintf("job-%d", i/32), &v)
	}
	a.baseline.settle(m.jobs)
	b := a.baseline
	if len(b.templates) != maxTemplates || len(b.known) < maxKnown*7/8 || len(b.together) < maxTogether*7/8 || len(b.flows) < maxFlows || len(b.pairs) < maxPairs*7/8 {
		t.Fatalf("%d jobs, %d values, %d together, %d flows, %d pairs: not full", len(b.templates), len(b.known), len(b.together), len(b.flows), len(b.pairs))
	}
	whole := heap()
	b.settle(0)
	jobs := (whole - heap()) / residentJobs
	t.Logf("%d bytes, %d of them for each of %d jobs", whole-before, jobs, residentJobs)
	if jobs > 64<<10 || jobs < 4<<10 {
		t.Errorf("each job takes %d bytes", jobs)
	}
	if most := int64(3 << 19); whole-before > most {
		t.Errorf("the agent takes %d bytes, at most %d", whole-before, most)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
