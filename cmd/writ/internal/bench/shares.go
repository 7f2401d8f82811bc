package bench

import (
	"bytes"
	"fmt"
	"runtime/pprof"
	"strings"

	"github.com/google/pprof/profile"
)

// parts are what a control plane in one process spends its time in, by the
// packages that tell them: of a stack, the innermost that is one of these counts.
var parts = []struct{ name, pkg string }{
	{"issuer", "github.com/writ-sh/writ/issuer"},
	{"intake", "github.com/writ-sh/writ/broker/intake."},
	{"release", "github.com/writ-sh/writ/broker/release."},
	{"memory", "github.com/writ-sh/writ/broker/memory."},
	{"monitor", "github.com/writ-sh/writ/monitor"},
	{"ledger", "github.com/writ-sh/writ/ledger"},
	{"ledger", "github.com/cockroachdb/pebble"},
	{"server", "github.com/nats-io/nats-server"},
	{"client", "github.com/writ-sh/writ/cmd/writ/internal/bench."},
	{connections, "github.com/nats-io/nats%2ego"}, // as profiles write it
}

// What is none of those: the services' and the client's goroutines that read
// from and write to the server, and collection of garbage and scheduling.
const (
	connections = "connections"
	others      = "runtime"
)

// shares profiles what do does, and says which part took how much of the
// processor time of this process; they add up to 1.
func shares(do func() error) (map[string]float64, error) {
	var out bytes.Buffer
	if err := pprof.StartCPUProfile(&out); err != nil {
		return nil, fmt.Errorf("bench: profile: %w", err)
	}
	err := do()
	pprof.StopCPUProfile()
	if err != nil {
		return nil, err
	}
	p, err := profile.Parse(&out)
	if err != nil {
		return nil, fmt.Errorf("bench: read the profile: %w", err)
	}
	by, total := map[string]float64{}, 0.0
	for _, s := range p.Sample {
		taken := float64(s.Value[len(s.Value)-1]) // the second of two is the time
		total += taken
		by[partOf(s)] += taken
	}
	for part := range by {
		by[part] /= total
	}
	return by, nil
}

// partOf is the innermost part on a stack. The NATS client works for whoever
// calls it; what it does in goroutines of its own is the connections'.
func partOf(s *profile.Sample) string {
	of := others
	for _, at := range s.Location { // the innermost first
		for _, line := range at.Line {
			if line.Function == nil {
				continue
			}
			for _, part := range parts {
				if !strings.HasPrefix(line.Function.Name, part.pkg) {
					continue
				}
				if part.name != connections {
					return part.name
				}
				of = connections
			}
		}
	}
	return of
}
