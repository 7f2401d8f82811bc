package embed

import (
	"context"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// An account that sends FloodBytes within FloodWindow floods: at the rate that
// an agent has by default, the longest messages make less. The server reads all
// that is sent before anybody can shed it, at the expense of everybody else, so
// that only the end of the connections helps.
const (
	FloodWindow = 500 * time.Millisecond
	FloodBytes  = 128 << 20
)

// watchFloods tells of accounts that flood, once in each window in which they
// do, until the context ends.
func (s *Server) watchFloods(ctx context.Context) {
	tick := time.NewTicker(FloodWindow)
	defer tick.Stop()
	before := map[string]int64{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		stats, err := s.srv.AccountStatz(nil)
		if err != nil {
			continue // it only ever fails where it is asked for what it does not know
		}
		now := make(map[string]int64, len(stats.Accounts))
		for _, a := range stats.Accounts {
			now[a.Account] = a.Received.Bytes
			if sent := a.Received.Bytes - before[a.Account]; sent >= FloodBytes {
				s.viol.hand(Violation{Account: a.Account, What: schemas.Flooding, Count: int(sent >> 20)})
			}
		}
		before = now
	}
}
