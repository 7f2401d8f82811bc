package bench

import (
	"testing"

	"github.com/google/pprof/profile"
)

// A share is that of who had it done, not of the library that did it.
func TestASampleIsOfWhoHadItDone(t *testing.T) {
	for want, stack := range map[string][]string{ // the innermost first
		"issuer":      {"crypto/ed25519.Sign", "github.com/writ-sh/writ/issuer.(*Issuer).grant", "github.com/writ-sh/writ/internal/bus.respond"},
		"release":     {"encoding/json.Unmarshal", "github.com/writ-sh/writ/schemas.(*State).Apply", "github.com/writ-sh/writ/broker/release.(*Core).Step", "github.com/writ-sh/writ/ledger.(*Ledger).hand"},
		"monitor":     {"syscall.Syscall", "github.com/nats-io/nats%2ego.(*Conn).publish", "github.com/writ-sh/writ/monitor.(*Service).append"},
		"connections": {"syscall.Syscall", "github.com/nats-io/nats%2ego.(*Conn).flusher"},
		"runtime":     {"runtime.scanobject", "runtime.gcBgMarkWorker"},
	} {
		s := &profile.Sample{}
		for _, f := range stack {
			s.Location = append(s.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: f}}}})
		}
		if got := partOf(s); got != want {
			t.Errorf("%v: %s, want %s", stack, got, want)
		}
	}
}
