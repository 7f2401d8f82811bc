package capability

import (
	"fmt"
	"slices"
	"sync"
)

// A Cache verifies as its Verifier does, and verifies the signature of a token
// that it has seen before no second time. What it remembers is that a token is
// authentic, nothing else: time, audience, revocation, possession and what is
// asked are judged anew each time. It belongs to one Verifier, whose keys never
// change; with other keys begins another cache.
//
// A token is looked up as a whole, by a seeded hash and by comparison: not one
// bit of what was verified can differ. The cache holds up to twice the number
// of tokens that it is made for, and forgets those not used for longest.
//
// It is safe for concurrent use.
type Cache struct {
	v    *Verifier
	size int

	mu         sync.RWMutex // guards the fields below
	young, old map[string]*Claims
}

// DefaultCache is a size for a service with some thousand callers.
const DefaultCache = 4096

// NewCache remembers about size tokens, at least one.
func NewCache(v *Verifier, size int) *Cache {
	return &Cache{v: v, size: max(1, size), young: map[string]*Claims{}}
}

// Verify is [Verifier.Verify]. The claims are the caller's own.
func (c *Cache) Verify(token string, want Expect) (*Claims, error) {
	claims := c.find(token)
	if claims == nil {
		var err error
		if claims, err = c.v.open(token); err != nil {
			return nil, fmt.Errorf("verify capability: %w", err)
		}
	}
	err := c.v.judge(claims, &want)
	if err == nil {
		c.keep(token, claims)
	}
	return claims.clone(), err
}

func (c *Cache) find(token string) *Claims {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if claims := c.young[token]; claims != nil {
		return claims
	}
	return c.old[token]
}

// keep puts a good token among the young ones; when those are too many, they
// become the old ones, and the old ones are forgotten.
func (c *Cache) keep(token string, claims *Claims) {
	c.mu.RLock()
	known := c.young[token] != nil
	c.mu.RUnlock()
	if known {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= c.size {
		c.old, c.young = c.young, make(map[string]*Claims, c.size)
	}
	c.young[token] = claims
}

// clone keeps what a caller does to the claims out of the cache.
func (c *Claims) clone() *Claims {
	out := *c
	out.Tools, out.ForbiddenTools = slices.Clone(c.Tools), slices.Clone(c.ForbiddenTools)
	if c.Task != nil {
		task := *c.Task
		out.Task = &task
	}
	for at := &out.Actor; *at != nil; at = &(*at).Actor {
		hop := **at
		*at = &hop
	}
	return &out
}
