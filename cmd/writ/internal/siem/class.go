// Package siem writes events of the log in the forms that security teams'
// systems take: OCSF, as JSON, and CEF, as a line. One event is one record; the
// mapping is docs/siem.md.
//
// What agents wrote is in these records, and they are lines that a program
// splits again: nothing in a value can end a field or a record. Bodies are never
// in them, only their SHA-256.
package siem

import (
	"encoding/json"

	"github.com/writ-sh/writ/schemas"
)

// A class says what kind of record an event becomes: class and activity of
// OCSF, with their names.
type class struct {
	uid, activity      int
	name, activityName string
}

// The classes of OCSF that events map to.
const (
	accountChange    = 3001
	authorizeSession = 3003
	entityManagement = 3004
	detectionFinding = 2004
	apiActivity      = 6003

	other = 99 // activity that the class has no name for
)

var classNames = map[int]string{
	accountChange: "Account Change", authorizeSession: "Authorize Session", entityManagement: "Entity Management",
	detectionFinding: "Detection Finding", apiActivity: "API Activity",
}

// Exported reports whether an event becomes a record. Release's marks are the
// ledger's own bookkeeping, and do not.
func Exported(e *schemas.Event) bool { return e.Kind != schemas.ReleaseMark }

// classOf maps an event. An action whose verdict puts a lock on is a finding:
// that is what somebody has to look at.
func classOf(e *schemas.Event) class {
	c := class{uid: apiActivity, activity: other, activityName: string(e.Kind)}
	set := func(uid, activity int, name string) class {
		return class{uid: uid, activity: activity, activityName: name, name: classNames[uid]}
	}
	c.name = classNames[apiActivity]
	switch e.Kind {
	case schemas.AgentViolation, schemas.RiskChanged, schemas.RiskSignal, schemas.LedgerAlarm:
		return set(detectionFinding, 1, "Create")
	case schemas.ReviewRequested, schemas.ReviewEndorsed:
		return set(detectionFinding, 2, "Update")
	case schemas.ReviewApproved, schemas.ReviewDenied, schemas.ReviewVouched:
		return set(detectionFinding, 3, "Close")
	case schemas.AgentDeclared:
		return set(accountChange, 1, "Create")
	case schemas.AgentEnrolled, schemas.AgentResumed:
		return set(accountChange, 2, "Enable")
	case schemas.AgentSuspended, schemas.AgentKilled:
		return set(accountChange, 5, "Disable")
	case schemas.AgentRemoved:
		return set(accountChange, 6, "Delete")
	case schemas.AgentPaused:
		return set(accountChange, 9, "Lock")
	case schemas.TokenIssued:
		return set(authorizeSession, 1, "Assign Privileges")
	case schemas.TokenRevoked, schemas.OperationEnded:
		return set(accountChange, 8, "Detach Policy")
	case schemas.AgentInvited, schemas.AgentCertified, schemas.AgentWarranted, schemas.AgentRenewed:
		return set(accountChange, other, string(e.Kind))
	case schemas.PolicyApplied, schemas.PolicyLockdown, schemas.PolicyLifted, schemas.PolicyRotated:
		return set(entityManagement, 3, "Update")
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied:
		if e.Lock != "" {
			return set(detectionFinding, 1, "Create")
		}
		c.activity, c.activityName = activityOf(e.Action)
	case schemas.ResponseHeld, schemas.ResponseDenied:
		if e.Lock != "" {
			return set(detectionFinding, 1, "Create")
		}
	}
	return c
}

// activityOf is what an action does, as far as its verb says.
func activityOf(a schemas.Action) (int, string) {
	memory := ""
	if a.Verb == schemas.VerbMemory {
		memory = memoryVerb(a)
	}
	switch {
	case a.Verb == schemas.VerbRead, memory == "get", memory == "list":
		return 2, "Read"
	case a.Verb == schemas.VerbWrite, memory == "put":
		return 3, "Update"
	case memory == "delete":
		return 4, "Delete"
	case a.Verb == "":
		return other, "unknown"
	}
	return other, a.Verb
}

func memoryVerb(a schemas.Action) string {
	for i := range len(a.Resource) {
		if a.Resource[i] == '.' {
			return a.Resource[:i]
		}
	}
	return a.Resource
}

// Severities of OCSF.
const (
	informational = 1
	low           = 2
	medium        = 3
	high          = 4
	critical      = 5
)

var severityNames = [...]string{informational: "Informational", low: "Low", medium: "Medium", high: "High", critical: "Critical"}

// severityOf is how urgent it is that somebody looks.
func severityOf(e *schemas.Event) int {
	switch e.Kind {
	case schemas.PolicyLockdown:
		return critical
	case schemas.AgentKilled, schemas.AgentSuspended, schemas.PolicyLifted, schemas.PolicyRotated:
		return high
	case schemas.AgentPaused, schemas.AgentViolation, schemas.TokenRevoked, schemas.ReviewDenied:
		return medium
	}
	switch {
	case e.Lock == schemas.Suspended || e.Lock == schemas.Killed:
		return critical
	case e.Lock == schemas.Paused:
		return high
	case len(e.Verdict) > 0 && e.Risk >= 40:
		return medium
	}
	switch e.Kind {
	case schemas.MessageDenied, schemas.MessageHeld, schemas.MessageCancelled, schemas.ResponseDenied, schemas.ResponseHeld, schemas.ReviewRequested:
		return low
	}
	return informational
}

// outcome is what became of it, as OCSF's status has it.
func outcome(e *schemas.Event) (id int, name string) {
	switch e.Kind {
	case schemas.MessageDenied, schemas.ResponseDenied, schemas.MessageCancelled, schemas.MessageExpired:
		return 2, "Failure"
	case schemas.MessageHeld, schemas.ResponseHeld:
		return other, "held for review"
	}
	if e.Kind == schemas.ResponseAccepted && e.Code >= 400 {
		return 2, "Failure"
	}
	return 1, "Success"
}

// decisionOf is what the verdict says is to be done, "" where nothing was
// judged.
func decisionOf(e *schemas.Event) string {
	var v struct {
		Decision string `json:"decision"`
	}
	if len(e.Verdict) == 0 || json.Unmarshal(e.Verdict, &v) != nil {
		return ""
	}
	return v.Decision
}
