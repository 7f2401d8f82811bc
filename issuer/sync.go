package issuer

import (
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
