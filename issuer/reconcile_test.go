package issuer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/schemas"
)

// A scene is release's fold and the issuer's over one log, of a family of
// agents of which each but the first derives from an earlier one. What release
// wants logged comes back later, behind whatever came meanwhile.
type scene struct {
	t       *testing.T
	r       *rand.Rand
	core    *release.Core
	state   *schemas.State
	tracks  *tracks
	seq     uint64
	now     time.Time
	parents []int // by agent; -1 for the first
	log     []*schemas.Event
	waiting []emitted
	given   map[uint64][]uint64 // when each action was delivered: behind which event
	cut     uint64              // the event that ended the victim; 0 before
	receipt *track
}

type emitted struct {
	event *schemas.Event
	mark  uint64
}

func newScene(t *testing.T, r *rand.Rand) *scene {
	s := &scene{t: t, r: r, core: release.NewCore(), state: schemas.NewState(), tracks: newTracks(), now: noon, given: map[uint64][]uint64{}}
	declare := func(p schemas.Principal) {
		s.put(&schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)})
	}
	declare(schemas.Principal{ID: "shop", Kind: schemas.KindService, Serves: []string{"call:buy"}})
	declare(schemas.Principal{ID: "llm", Kind: schemas.KindService, Serves: []string{"call:ask"}, Meter: schemas.MeterTokens, Reserve: 5})
	for i := range 2 + r.IntN(8) {
		declare(schemas.Principal{ID: member(i), Kind: schemas.KindAgent})
		from := -1
		for i > 0 && r.IntN(5) > 0 {
			if from = r.IntN(i); s.depth(from) < schemas.MaxDepth {
				break
			}
			from = -1
		}
		s.parents = append(s.parents, from)
		s.grant(i, "")
	}
	return s
}

func member(i int) string { return fmt.Sprintf("m%d", i) }

func (s *scene) depth(i int) int {
	if s.parents[i] < 0 {
		return 0
	}
	return 1 + s.depth(s.parents[i])
}

// under says whether i is the victim or derives from it.
func (s *scene) under(i, victim int) bool {
	return i == victim || s.parents[i] >= 0 && s.under(s.parents[i], victim)
}

func (s *scene) jti(i int) string {
	if g := s.state.GrantOf(member(i), "op"); g != nil {
		return g.JTI
	}
	return ""
}

func (s *scene) grant(i int, refreshes string) {
	g := schemas.Grant{JTI: fmt.Sprintf("j%d-%d", i, s.seq), Agent: member(i), Operation: "op", Scope: []string{"call:buy", "call:ask", "send:m0", "send:m1"},
		NotBefore: noon, Expires: noon.Add(time.Hour), MaxTokens: 1000 >> s.depth(i), TraceID: traceA, Refreshes: refreshes}
	if from := s.parents[i]; from >= 0 {
		g.ParentAgent, g.ParentOperation, g.Parent = member(from), "op", s.jti(from)
		for ; from >= 0; from = s.parents[from] {
			g.Act = append(g.Act, member(from))
		}
	}
	e := issuedEvent(g)
	s.put(&e)
}

// put logs an event, folds it on both sides, and keeps what release wants.
func (s *scene) put(e *schemas.Event) {
	s.seq++
	s.now = s.now.Add(10 * time.Millisecond)
	e.Seq, e.Time = s.seq, s.now
	s.log = append(s.log, e)
	effects, err := s.core.Step(e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.take(effects)
	lock := func() schemas.Lock {
		if a := s.state.Agents[e.Agent]; a != nil {
			return a.Lock
		}
		return ""
	}
	before, ends := lock(), endingBy(s.state, e)
	if e.Kind != schemas.MessageAccepted && e.Kind != schemas.ResponseAccepted { // which the issuer does not read
		if err := s.state.Apply(e); err != nil {
			s.t.Fatal(err)
		}
	}
	s.tracks.fold(e, before != "" && lock() != before, ends)
}

func (s *scene) take(effects []release.Effect) {
	for _, f := range effects {
		switch f := f.(type) {
		case release.Emit:
			s.waiting = append(s.waiting, emitted{event: f.Event})
		case release.Deliver:
			s.given[f.Event.Seq] = append(s.given[f.Event.Seq], s.seq)
		}
	}
	s.waiting = append(s.waiting, emitted{mark: s.seq})
}

// back logs the next of what release wants logged.
func (s *scene) back() {
	next := s.waiting[0]
	s.waiting = s.waiting[1:]
	if next.event != nil {
		s.put(next.event)
	} else if s.cut != 0 && next.mark >= s.cut {
		s.seq++
		mark := &schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: next.mark, Seq: s.seq, Time: s.now}
		s.log = append(s.log, mark)
		if _, err := s.core.Step(mark); err != nil {
			s.t.Fatal(err)
		}
		s.tracks.fold(mark, false, nil)
	}
}

// live lets something happen: an action, held or let through, an answer, a
// refresh, time, or an event that release wanted.
func (s *scene) live() {
	i := s.r.IntN(len(s.parents))
	switch s.r.IntN(10) {
	case 0, 1, 2, 3:
		s.act(i, schemas.MessageAccepted)
	case 4:
		s.act(i, schemas.MessageHeld)
	case 5, 6:
		s.answer()
	case 7:
		if g := s.state.GrantOf(member(i), "op"); g != nil && g.Over(s.now) == "" {
			s.grant(i, g.JTI)
		}
	default:
		if len(s.waiting) > 0 {
			s.back()
		}
		s.now = s.now.Add(time.Duration(s.r.IntN(2000)) * time.Millisecond)
		s.take(s.core.Due(s.now))
	}
}

// act is an action as intake appends it, which may not yet know what has ended.
func (s *scene) act(i int, kind schemas.Kind) {
	action := [][2]string{{"call:buy", "shop"}, {"call:ask", "llm"}, {"send:m0", "m0"}, {"send:m1", "m1"}}[s.r.IntN(4)]
	a, err := schemas.ParseAction(action[0])
	if err != nil {
		s.t.Fatal(err)
	}
	body := fmt.Appendf(nil, "%d", s.seq)
	e := &schemas.Event{Kind: kind, Agent: member(i), Operation: "op", Action: a, To: action[1], JTI: s.jti(i), Request: fmt.Sprintf("%032x", s.seq+1),
		Reply: "_R_.x", Expires: s.now.Add(time.Duration(1+s.r.IntN(60)) * time.Second), Digest: schemas.Sum(body), Data: body,
		Trace: schemas.Trace{ID: traceA, Span: fmt.Sprintf("%016x", 1)}}
	if kind == schemas.MessageHeld {
		e.Code, e.Reason = schemas.CodeHeld, "a reviewer decides"
	}
	s.put(e)
}

// answer answers an action that was delivered, perhaps once more.
func (s *scene) answer() {
	for _, e := range s.log[s.r.IntN(len(s.log)):] {
		if len(s.given[e.Seq]) > 0 {
			s.put(&schemas.Event{Kind: schemas.ResponseAccepted, Agent: e.To, To: e.Agent, Operation: e.Operation, Action: e.Action, Ref: e.Seq, Request: e.Request, Final: true})
			return
		}
	}
}

// end cuts the victim off, in one of the ways that there are.
func (s *scene) end(victim int) (byLock bool) {
	e := &schemas.Event{Agent: member(victim), Reason: "why"}
	switch s.r.IntN(4) {
	case 0:
		e.Kind = schemas.AgentKilled
	case 1:
		e.Kind = schemas.AgentSuspended
	case 2:
		e.Kind, e.Lock = schemas.MessageDenied, schemas.Suspended
	default:
		e.Kind, e.JTI, e.Operation = schemas.TokenRevoked, s.jti(victim), "op"
		s.receipt = newTrack("")
		s.tracks.revoking[e.JTI] = []*track{s.receipt}
	}
	s.cut = s.seq + 1
	s.put(e)
	if e.Kind != schemas.TokenRevoked {
		s.receipt = s.tracks.newest[member(victim)]
	}
	return e.Kind != schemas.TokenRevoked
}

// Somebody who acts through a family of agents, all at work, is cut off at the
// top. Behind that event nothing of the family is delivered, every action of it
// that was open is cancelled once, nobody else's is, and the receipt says
// exactly what the log says. A thousand families.
func TestAReceiptReconcilesWithTheLogOverAThousandKills(t *testing.T) {
	t.Parallel()
	seed := uint64(20260304)
	r := rand.New(rand.NewPCG(seed, 1))
	cancelled, answered, late := 0, 0, 0
	for kill := range 1000 {
		s := newScene(t, r)
		for range 20 + r.IntN(100) {
			s.live()
		}
		victim := r.IntN(len(s.parents))
		if slices.Contains(s.parents, 0) && r.IntN(2) == 0 {
			victim = 0
		}
		var held []string
		for i := range s.parents {
			if s.under(i, victim) {
				held = append(held, s.jti(i))
			}
		}
		byLock := s.end(victim)
		for range r.IntN(60) {
			s.live()
		}
		for len(s.waiting) > 0 {
			s.back()
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, kill %d of %s at %d (parents %v): %s", seed, kill, member(victim), s.cut, s.parents, fmt.Sprintf(format, args...))
		}
		concerns := func(e *schemas.Event) bool {
			if byLock && e.To == member(victim) && (e.Seq < s.cut || e.Kind == schemas.MessageAccepted) {
				return true // what others hold for it later awaits its review
			}
			for i := range s.parents {
				if e.Agent == member(i) {
					return s.under(i, victim)
				}
			}
			return false
		}
		ends, first := map[uint64][]*schemas.Event{}, map[uint64]uint64{}
		through := uint64(0) // until where the receipt tells
		for _, e := range s.log {
			switch e.Kind {
			case schemas.MessageCancelled, schemas.MessageExpired:
				ends[e.Ref] = append(ends[e.Ref], e)
			case schemas.ResponseAccepted:
				if first[e.Ref] == 0 {
					first[e.Ref] = e.Seq
				}
			case schemas.ReleaseMark:
				if through == 0 && e.Ref >= s.cut {
					through = e.Seq
				}
			}
		}
		var want []uint64
		for _, e := range s.log {
			if e.Kind != schemas.MessageAccepted && e.Kind != schemas.MessageHeld {
				continue
			}
			of := ends[e.Seq]
			if len(of) > 1 {
				fail("%d was ended %d times", e.Seq, len(of))
			}
			if !concerns(e) {
				if len(of) == 1 && of[0].Code == schemas.CodeCancelled {
					fail("%d of %s was cancelled with it: %s", e.Seq, e.Agent, of[0].Reason)
				}
				continue
			}
			for _, at := range s.given[e.Seq] {
				if at >= s.cut {
					fail("%d was delivered behind event %d", e.Seq, at)
				}
			}
			switch {
			case len(of) == 1:
				cancelled++
				if e.Seq > s.cut {
					late++
				}
				if of[0].Kind == schemas.MessageCancelled && of[0].Seq > s.cut && of[0].Seq < through {
					want = append(want, e.Seq)
				}
			case first[e.Seq] == 0 || first[e.Seq] > s.cut:
				fail("%d of %s to %s was neither answered nor ended", e.Seq, e.Agent, e.To)
			default:
				answered++
			}
		}
		got := slices.Clone(s.receipt.cancelled)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			fail("the receipt names %v as cancelled, the log %v", got, want)
		}
		revoked := slices.Clone(s.receipt.revoked)
		slices.Sort(revoked)
		slices.Sort(held)
		if !slices.Equal(revoked, held) {
			fail("the receipt names %v as ended, they held %v", revoked, held)
		}
	}
	t.Logf("seed %d: of the families' actions %d were ended, %d of them behind the kill, and %d answered before", seed, cancelled, late, answered)
	if cancelled < 1000 || answered < 1000 || late < 1000 {
		t.Error("the test shows too little")
	}
}
