package monitor

import (
	"slices"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

// Units that a refusal weighs. They add up, fade with HalfLife, and make risk
// 100·(1 − 2^(−units/3)): one forbidden tool is risk 50, two are 75.
const (
	unitsForbidden = 3 * one   // a tool that the capability forbids by name; a foreign namespace
	unitsSink      = 2 * one   // a sink or data that the capability does not grant; an operation never granted
	unitsTool      = 1 * one   // a tool that writes, executes or sends and is not granted: agents try what they think of
	unitsAimed     = 1 * one   // more, if it goes to a stranger or does what an answer just said
	unitsRead      = one / 2   // a reading tool that the capability does not grant
	unitsExpired   = one / 4   // an operation whose capability has ended: mostly a late refresh
	maxRefused     = 100 * one // units kept
	repetition     = 4         // the same action again weighs a fourth: a client that retries
	maxRefusals    = 8         // refused actions remembered to tell repetitions
)

// standing is how an action stands to the agent's capability.
type standing uint8

const (
	granted standing = iota
	outOfScope
	forbidden
	ungranted // the operation was never granted, or too long ago to be remembered
	expired
)

// standingOf repeats the capability check of intake by this fold. Whether
// there was a live capability is told by the event itself, which then names
// it: the fold may be a little behind.
func standingOf(e *schemas.Event, r *run) standing {
	switch {
	case isAnswer(e.Kind):
		return granted
	case e.JTI == "" && r == nil:
		return ungranted
	case e.JTI == "" || r != nil && r.ended:
		return expired
	case r == nil:
		return granted // followed no longer; release holds it against the capability
	case e.Action.Verb == schemas.VerbCall && slices.Contains(r.forbidden, e.Action.Resource):
		return forbidden
	case !inScope(r.scope, e.Action):
		return outOfScope
	}
	return granted
}

// inScope compares without building the scope's text.
func inScope(scopes []string, a schemas.Action) bool {
	resource := a.Resource
	if a.Verb == schemas.VerbMemory {
		resource, _, _ = strings.Cut(resource, ".")
	}
	for _, s := range scopes {
		if len(s) == len(a.Verb)+1+len(resource) && s[:len(a.Verb)] == a.Verb && s[len(a.Verb)] == ':' && s[len(a.Verb)+1:] == resource {
			return true
		}
	}
	return false
}

// units is what an action weighs that stands so to its capability.
func (c considered) units(e *schemas.Event, aimed bool) (units fixed) {
	switch c.standing {
	case granted:
		return 0
	case expired:
		return unitsExpired
	case forbidden:
		units = unitsForbidden
	case ungranted:
		units = unitsSink
	case outOfScope:
		switch {
		case c.sink && e.Action.Verb == schemas.VerbCall:
			units = unitsTool
		case c.sink || e.Action.Verb == schemas.VerbRead:
			units = unitsSink
		default:
			units = unitsRead
		}
	}
	if aimed {
		units += unitsAimed
	}
	if slices.Contains(c.agent.refusals, e.Action) && c.agent.refusedNow(e.Time) > 0 {
		units /= repetition
	}
	return units
}

func (s standing) String() string {
	return [...]string{"granted", "not in the capability's scope", "forbidden by the capability",
		"no capability for this operation", "the capability has ended"}[s]
}

// violationUnits is what a violation weighs, which the server itself refused: a
// tool that one of the agent's capabilities forbids by name as much as where
// intake refuses it, and so the namespace of another agent or of the control
// plane. Repetitions within the second weigh one unit more, together.
func (a *agent) violationUnits(v schemas.Violation) fixed {
	units := unitsSink
	if a.forbids(v.Subject) {
		units = unitsForbidden
	}
	for _, prefix := range []string{schemas.OutPrefix + ".", schemas.InPrefix + ".", schemas.EventPrefix + ".", "writ.", "_INBOX_", "_R_.", "$"} {
		if strings.HasPrefix(v.Subject, prefix) {
			units = unitsForbidden
		}
	}
	if v.Count > 1 {
		units += unitsAimed
	}
	return units
}

// forbids says whether a subject out.<operation>.call.<tool> names a tool that a
// capability of the agent forbids, for whatever operation.
func (a *agent) forbids(subject string) bool {
	parts := strings.Split(subject, ".")
	if len(parts) != 4 || parts[0] != "out" || parts[2] != schemas.VerbCall {
		return false
	}
	for _, r := range a.runs { // any of them: the order makes no difference
		if slices.Contains(r.forbidden, parts[3]) {
			return true
		}
	}
	return false
}

// refusalRisk is 100·(1 − 2^(−units/3)), rounded down.
func refusalRisk(units fixed) int {
	return 100 - int((100*exp2neg(units/3)+1<<32-1)>>32)
}
