package issuer

import "github.com/writ-sh/writ/schemas"

// tracks follow what became of the locks: what was cancelled, and when release
// had worked through the log up to each. They are a fold; the issuer's mutex
// guards them.
type tracks struct {
	newest  map[string]*track // by agent
	pending []*track          // release has not been through yet
}

// A track is one lock's.
type track struct {
	agent     string
	seq       uint64
	cancelled []uint64 // sequences of the actions, in the order of their cancellation
	done      chan struct{}
}

func newTracks() *tracks {
	return &tracks{newest: map[string]*track{}}
}

// fold takes one event; locked says that it changed its agent's lock, or began
// or ended a lockdown of the fleet.
func (t *tracks) fold(e *schemas.Event, locked bool) {
	if locked {
		n := &track{agent: e.Agent, seq: e.Seq, done: make(chan struct{})}
		t.newest[e.Agent] = n
		t.pending = append(t.pending, n)
	}
	switch e.Kind {
	case schemas.MessageCancelled:
		for _, p := range t.pending {
			if p.agent == e.Agent || p.agent == e.To || p.agent == schemas.Fleet {
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
