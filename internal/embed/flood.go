package embed

import (
	"context"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// The server reads all that is sent before anybody can shed it, at the expense
// of everybody else, so that against a flood only the end of its connections
// helps. What an account sends within FloodWindow is told of from these bounds
// on: FloodBytes is more than the longest messages make at the rate that an
// agent has by default, and FloodMessages a hundred times that rate.
const (
	FloodWindow   = 500 * time.Millisecond
	FloodBytes    = 128 << 20
	FloodMessages = 10_000
)

// watchFloods tells of accounts that send so much, once in each window in which
// they do, until the context ends.
func (s *Server) watchFloods(ctx context.Context) {
	tick := time.NewTicker(FloodWindow)
	defer tick.Stop()
	type sent struct{ bytes, messages int64 }
	before := map[string]sent{}
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
		now := make(map[string]sent, len(stats.Accounts))
		for _, a := range stats.Accounts {
			was, is := before[a.Account], sent{a.Received.Bytes, a.Received.Msgs}
			now[a.Account] = is
			if n := is.bytes - was.bytes; n >= FloodBytes {
				s.viol.hand(Violation{Account: a.Account, What: schemas.FloodOfBytes, Count: int(n >> 20)})
			} else if n := is.messages - was.messages; n >= FloodMessages {
				s.viol.hand(Violation{Account: a.Account, What: schemas.FloodOfMessages, Count: int(n)})
			}
		}
		before = now
	}
}
