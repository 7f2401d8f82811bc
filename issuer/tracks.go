package issuer

import (
	"slices"

	"github.com/writ-sh/writ/schemas"
)

// tracks follow what became of locks and revocations: what ended with them,
// what was cancelled, and when release had worked through the log up to each.
// They are a fold; the issuer's mutex guards them.
type tracks struct {
	newest   map[string]*track   // the newest lock, by agent
	revoking map[string][]*track // revocations that somebody waits for, by jti
	pending  []*track            // release has not been through yet
}

// A track is one lock's or one revocation's.
type track struct {
	agent     string // whose lock it is; "" for a revocation
	seq       uint64
	ended     map[schemas.OperationRef]bool
	revoked   []string // capabilities that ended, the revoked one first
	cancelled []uint64 // sequences of the actions, in the order of their cancellation
	done      chan struct{}
}

func newTracks() *tracks {
	return &tracks{newest: map[string]*track{}, revoking: map[string][]*track{}}
}

func newTrack(agent string) *track {
	return &track{agent: agent, ended: map[schemas.OperationRef]bool{}, done: make(chan struct{})}
}

// An ending is what an event that cuts off will end, by the state before it.
type ending []*schemas.Live

// endingBy lists the capabilities that count and that an event ends: of a
// revocation those that derive from the one, of a suspension or kill those that
// derive from the agent. Only such an event costs a look at all.
func endingBy(s *schemas.State, e *schemas.Event) ending {
	var derives func(*schemas.Live) bool
	switch {
	case e.Kind == schemas.TokenRevoked:
		a := s.Agents[e.Agent]
		if a == nil || a.ByJTI(e.JTI) == nil {
			return nil
		}
		root := a.ByJTI(e.JTI)
		derives = func(g *schemas.Live) bool { return g.DerivesFrom(root) }
	case e.Kind == schemas.AgentSuspended || e.Kind == schemas.AgentKilled || cutsOff(e.Lock):
		derives = func(g *schemas.Live) bool { return g.DerivesFromAgent(e.Agent) }
	default:
		return nil
	}
	var out ending
	for _, a := range s.Agents {
		for _, g := range a.Grants {
			if derives(g) && g.Over(e.Time) == "" {
				out = append(out, g)
			}
		}
	}
	slices.SortFunc(out, func(a, b *schemas.Live) int { // parents come before their children
		if len(a.Act) != len(b.Act) {
			return len(a.Act) - len(b.Act)
		}
		return int(a.Seq) - int(b.Seq)
	})
	return out
}

// fold takes one event; locked says that it changed its agent's lock, or began
// or ended a lockdown of the fleet, ends what it ended.
func (t *tracks) fold(e *schemas.Event, locked bool, ends ending) {
	var begun []*track
	if locked {
		n := newTrack(e.Agent)
		t.newest[e.Agent] = n
		begun = append(begun, n)
	}
	if e.Kind == schemas.TokenRevoked {
		begun = append(begun, t.revoking[e.JTI]...)
		delete(t.revoking, e.JTI)
	}
	for _, n := range begun {
		n.seq = e.Seq
		for _, g := range ends {
			n.revoked = append(n.revoked, g.JTI)
			n.ended[schemas.OperationRef{AgentID: g.Agent, OperationID: g.Operation}] = true
		}
		t.pending = append(t.pending, n)
	}
	switch e.Kind {
	case schemas.MessageCancelled:
		for _, p := range t.pending {
			if p.agent == schemas.Fleet || p.agent != "" && (p.agent == e.Agent || p.agent == e.To) || p.ended[schemas.OperationRef{AgentID: e.Agent, OperationID: e.Operation}] {
				p.cancelled = append(p.cancelled, e.Ref)
			}
		}
	case schemas.ReleaseMark:
		left := t.pending[:0]
		for _, p := range t.pending {
			if p.seq > e.Ref {
				left = append(left, p)
				continue
			}
			close(p.done)
		}
		clear(t.pending[len(left):])
		t.pending = left
	case schemas.AgentRemoved:
		delete(t.newest, e.Agent)
	}
}
