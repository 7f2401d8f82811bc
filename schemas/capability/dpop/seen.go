package dpop

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// How many proofs are remembered, in all and of one holder: whoever floods shuts
// itself out, and nobody else.
const (
	maxSeen       = 1 << 17
	maxSeenHolder = 1 << 13
)

// seenFor is how long a proof is remembered: as long as it could be accepted.
const seenFor = MaxAge + MaxSkew + time.Second

// seen remembers proofs. Full, it refuses: a proof that can't be remembered
// could be replayed.
type seen struct {
	mu    sync.Mutex
	ids   map[id]bool
	of    map[string]int // by holder
	queue []entry        // by time
}

// An id is the digest of a key's thumbprint and a jti.
type id [sha256.Size]byte

type entry struct {
	id     id
	holder string
	till   time.Time
}

func (s *seen) add(holder, thumbprint, jti string, now time.Time) error {
	one := id(sha256.Sum256([]byte(thumbprint + "." + jti)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(now)
	switch {
	case s.ids[one]:
		return fmt.Errorf("%w: make a new one for each request", ErrReplay)
	case s.of[holder] >= maxSeenHolder:
		return fmt.Errorf("%w: %d of this holder within %s; slow down", ErrFull, maxSeenHolder, seenFor)
	case len(s.queue) >= maxSeen:
		return fmt.Errorf("%w: this service can remember no more for now; try again", ErrFull)
	}
	if s.ids == nil {
		s.ids, s.of = map[id]bool{}, map[string]int{}
	}
	s.ids[one] = true
	s.of[holder]++
	s.queue = append(s.queue, entry{one, holder, now.Add(seenFor)})
	return nil
}

// forget drops what could be accepted no more. A clock that was set back drops
// nothing.
func (s *seen) forget(now time.Time) {
	n := 0
	for n < len(s.queue) && now.After(s.queue[n].till) {
		e := s.queue[n]
		delete(s.ids, e.id)
		if s.of[e.holder]--; s.of[e.holder] == 0 {
			delete(s.of, e.holder)
		}
		n++
	}
	s.queue = s.queue[n:]
}
