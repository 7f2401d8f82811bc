package issuer

import (
	"slices"
	"sync"
	"time"
)

// foldWait bounds how long a command waits for its own event.
const foldWait = 5 * time.Second

// gates let one command at a time change a principal. A gate exists while
// somebody is at it.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	sync.Mutex
	users int
}

func newGates() *gates { return &gates{open: map[string]*gate{}} }

// passAll waits for its turn at several principals: in the order of their ids,
// so that no two wait for one another.
func (g *gates) passAll(ids ...string) (leave func()) {
	var leaves []func()
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		leaves = append(leaves, g.pass(id))
	}
	return func() {
		for _, l := range slices.Backward(leaves) {
			l()
		}
	}
}

// pass waits for its turn at a principal and returns what ends it.
func (g *gates) pass(id string) (leave func()) {
	g.mu.Lock()
	at := g.open[id]
	if at == nil {
		at = &gate{}
		g.open[id] = at
	}
	at.users++
	g.mu.Unlock()
	at.Lock()
	return func() {
		at.Unlock()
		g.mu.Lock()
		if at.users--; at.users == 0 {
			delete(g.open, id)
		}
		g.mu.Unlock()
	}
}
