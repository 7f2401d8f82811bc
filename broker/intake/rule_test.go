package intake

import (
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// What pauses an agent is its risk, also where the action by which it got there
// was refused for a reason of its own: whoever reads the status looks into that.
func TestALockByRiskNeverBearsTheReasonOfARefusalAlone(t *testing.T) {
	for _, kind := range []schemas.Kind{schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied, schemas.ResponseAccepted} {
		for decision, want := range map[string]schemas.Lock{schemas.Pause: schemas.Paused, schemas.Suspend: schemas.Suspended} {
			e := &schemas.Event{Kind: kind}
			if kind == schemas.MessageDenied {
				e.Code, e.Reason = schemas.CodeUnauthorized, "the capability is no longer valid (revoked: test)"
			}
			rule(e, &schemas.Ruling{Verdict: []byte("{}"), Decision: decision, Risk: 87}, false)
			reason := map[bool]string{true: "the capability is no longer valid (revoked: test); and at risk 87 the agent is paused"}[kind == schemas.MessageDenied && want == schemas.Paused]
			if e.Lock != want || reason != "" && (e.Reason != reason || e.Code != schemas.CodeUnauthorized) || len(e.Reason) < 7 {
				t.Errorf("%s, %s: lock %q, %d %q", kind, decision, e.Lock, e.Code, e.Reason)
			}
		}
	}
}
