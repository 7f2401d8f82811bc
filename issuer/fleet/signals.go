package fleet

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-sh/writ/internal/secevent"
	"github.com/writ-sh/writ/schemas"
)

// signals checks who outside may speak about agents, and gives them sorted.
func (c *checker) signals(in []signal) []schemas.SignalSource {
	var out []schemas.SignalSource
	ids, issuers := map[string]pos{}, map[string]pos{}
	for _, s := range in {
		at := or(s.ID.at, s.at)
		src := schemas.SignalSource{ID: s.ID.value, Issuer: s.Issuer.value, Audience: s.Audience.value, JWKS: s.JWKS.value, Weight: map[string]int{}}
		src.Agents = c.list("agents", s.Agents, func(t text) {
			if _, ok := c.agents[t.value]; !ok && t.value != schemas.AnyAgent {
				c.fail(t.at, "agents names %q, which is no agent of this file; declare it, or remove it here", t.value)
			}
		})
		for _, w := range s.Weight {
			src.Weight[w.event.value] = int(w.points)
		}
		for name, of := range map[string]struct {
			seen map[string]pos
			t    text
		}{"id": {ids, s.ID}, "issuer": {issuers, s.Issuer}} {
			if first, ok := of.seen[of.t.value]; ok && of.t.set {
				c.fail(of.t.at, "the %s %q is already that of a source of signals in line %d; each has its own", name, of.t.value, first.line)
			}
			of.seen[of.t.value] = of.t.at
		}
		if err := src.Check(); err != nil {
			c.failName(at, err, "correct this source of signals")
		}
		if s.JWKS.set {
			if _, err := secevent.Keys([]byte(s.JWKS.value)); err != nil {
				c.fail(s.JWKS.at, "jwks: %v; give the source's public keys as a JWK Set in JSON, in quotes", err)
			}
		}
		out = append(out, src)
	}
	if len(in) > schemas.MaxSources {
		c.fail(in[schemas.MaxSources].at, "%d sources of signals are declared; %d are possible", len(in), schemas.MaxSources)
	}
	slices.SortFunc(out, func(a, b schemas.SignalSource) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// DiffSignals lists what changes among the sources of signals, sorted by id.
func DiffSignals(current, wanted []schemas.SignalSource) []schemas.Change {
	old, next := map[string]schemas.SignalSource{}, map[string]schemas.SignalSource{}
	for _, s := range current {
		old[s.ID] = s
	}
	for _, s := range wanted {
		next[s.ID] = s
	}
	ids := slices.Collect(maps.Keys(next))
	for id := range old {
		if _, ok := next[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var changes []schemas.Change
	for _, id := range ids {
		a, had := old[id]
		b, has := next[id]
		switch {
		case !had:
			changes = append(changes, schemas.Change{ID: id, Action: Add, Detail: "source of signals"})
		case !has:
			changes = append(changes, schemas.Change{ID: id, Action: Remove, Detail: "source of signals"})
		default:
			if d := difference(signalFacts(a), signalFacts(b)); d != "" {
				changes = append(changes, schemas.Change{ID: id, Action: Modify, Detail: d})
			}
		}
	}
	return changes
}

func signalFacts(s schemas.SignalSource) map[string][]string {
	m := map[string][]string{"agents": slices.Sorted(slices.Values(s.Agents))}
	for key, v := range map[string]string{"issuer": s.Issuer, "audience": s.Audience, "jwks": s.JWKS} {
		if v != "" {
			m[key] = []string{v}
		}
	}
	for event, points := range s.Weight {
		m["weight."+event] = []string{strconv.Itoa(points)}
	}
	return m
}
