package fleet

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// The actions of a change.
const (
	Add    = "add"
	Modify = "change"
	Remove = "remove"
)

// Diff lists what applying wanted would change, sorted by id; nothing where
// both say the same. Locks and key generations are no declarations and don't
// count; the built-in memory service stands in no file and is left out.
func Diff(current, wanted []schemas.Principal) []schemas.Change {
	old, next := byID(current), byID(wanted)
	ids := slices.Collect(maps.Keys(old))
	for id := range next {
		if _, ok := old[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	changes := []schemas.Change{}
	for _, id := range ids {
		a, had := old[id]
		b, has := next[id]
		switch {
		case !had:
			changes = append(changes, schemas.Change{ID: id, Action: Add, Detail: b.Kind})
		case !has:
			changes = append(changes, schemas.Change{ID: id, Action: Remove, Detail: a.Kind})
		default:
			if d := difference(facts(a), facts(b)); d != "" {
				changes = append(changes, schemas.Change{ID: id, Action: Modify, Detail: d})
			}
		}
	}
	return changes
}

func byID(list []schemas.Principal) map[string]schemas.Principal {
	m := make(map[string]schemas.Principal, len(list))
	for _, p := range list {
		if p.ID != schemas.MemoryID {
			m[p.ID] = p
		}
	}
	return m
}

// facts are a declaration as sets of values by key; a key that says nothing is
// left out.
func facts(p schemas.Principal) map[string][]string {
	m := map[string][]string{}
	put := func(key string, values ...string) {
		if len(values) > 0 {
			m[key] = slices.Sorted(slices.Values(values))
		}
	}
	scalar := func(key, value string) {
		if value != "" && value != "0" && value != "false" {
			m[key] = []string{value}
		}
	}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	scalar("kind", p.Kind)
	scalar("owner", p.Owner)
	put("may_issue_for", p.MayIssueFor...)
	put("serves", p.Serves...)
	scalar("streams", strconv.FormatBool(p.Streams))
	scalar("meter", p.Meter)
	scalar("role", string(p.Role))
	scalar("mode", p.Mode)
	scalar("two_person", strconv.FormatBool(p.TwoPerson))
	scalar("reserve", num(p.Reserve))
	scalar("delegated_only", strconv.FormatBool(p.DelegatedOnly))
	scalar("memory_bytes", num(p.MemoryBytes))
	if c := p.Ceiling; c != nil {
		scalar("ceiling", "set")
		put("ceiling.scope", c.Scope...)
		put("ceiling.tools", c.Tools...)
		put("ceiling.forbidden_tools", c.ForbiddenTools...)
		scalar("ceiling.ttl_seconds", num(c.TTLSeconds))
		scalar("ceiling.max_tokens", num(c.MaxTokens))
		scalar("ceiling.max_tokens_per_day", num(c.MaxTokensPerDay))
		put("ceiling.jobs", c.Jobs...)
		for _, x := range c.Exceptions {
			m["ceiling.exceptions"] = append(m["ceiling.exceptions"], x.Scope+" until "+x.Until.Format(time.RFC3339)+" ("+x.Reason+")")
		}
		put("ceiling.operations", c.Operations...)
	}
	if r := p.Rate; r != nil {
		scalar("rate.per_second", strconv.FormatFloat(r.PerSecond, 'g', -1, 64))
		scalar("rate.burst", num(int64(r.Burst)))
	}
	if t := p.Thresholds; t != nil {
		scalar("thresholds.pause", num(int64(t.Pause)))
		scalar("thresholds.suspend", num(int64(t.Suspend)))
	}
	for name, tool := range p.Tools {
		scalar("tools."+name, "declared")
		scalar("tools."+name+".class", tool.Class)
		scalar("tools."+name+".description", tool.Description)
	}
	return m
}

// lists are the keys whose values are shown by what comes and goes.
var lists = []string{"may_issue_for", "serves", "ceiling.scope", "ceiling.tools", "ceiling.forbidden_tools", "ceiling.jobs", "ceiling.operations", "ceiling.exceptions", "agents"}

func difference(a, b map[string][]string) string {
	keys := slices.Collect(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var out []string
	for _, k := range keys {
		if slices.Equal(a[k], b[k]) {
			continue
		}
		if !slices.Contains(lists, k) {
			out = append(out, k+" "+one(a[k])+" → "+one(b[k]))
			continue
		}
		for _, v := range b[k] {
			if !slices.Contains(a[k], v) {
				out = append(out, k+" +"+v)
			}
		}
		for _, v := range a[k] {
			if !slices.Contains(b[k], v) {
				out = append(out, k+" -"+v)
			}
		}
	}
	return strings.Join(out, ", ")
}

func one(values []string) string {
	if len(values) == 0 {
		return "none"
	}
	return strings.Join(values, " ")
}
