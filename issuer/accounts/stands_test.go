package accounts

import (
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// Who was killed, or removed, and bears its name again is somebody else: what
// was signed for the former one counts no more, whatever its time says.
func TestAUserOfAFormerIncarnationDoesNotStand(t *testing.T) {
	enrolled := time.Unix(1_000, 0)
	now := Account{ID: "analyst-7", Lock: schemas.Active, Keys: Keys{"second", 3}, RevokeUntil: enrolled}
	stands := Asked{Agent: "analyst-7", Role: keys.IdentityKey, Keys: Keys{"second", 3}, Issued: enrolled.Add(time.Second)}
	if err := stands.Stands(now); err != nil {
		t.Errorf("one of now: %v", err)
	}
	for name, change := range map[string]func(*Asked){
		"of a former incarnation":   func(a *Asked) { a.Incarnation = "first" },
		"of none":                   func(a *Asked) { a.Incarnation = "" },
		"of the second that it was": func(a *Asked) { a.Issued = enrolled },
		"of former keys":            func(a *Asked) { a.Role, a.Generation = keys.OperationKey, 2 },
	} {
		a := stands
		change(&a)
		if err := a.Stands(now); err == nil {
			t.Errorf("a user %s stands", name)
		}
	}
}
