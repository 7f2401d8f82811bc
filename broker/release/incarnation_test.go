package release

import (
	"strings"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// killed kills alice, and gives what that brings and the kill's sequence.
func (f *fixture) killed() ([]Effect, uint64) {
	f.t.Helper()
	return f.step(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "hijacked"}), f.seq
}

// reborn enrols alice anew behind a kill, with a capability for the same
// operation: from here on the name is another's.
func (f *fixture) reborn(kill uint64) {
	f.t.Helper()
	f.step(schemas.Event{Kind: schemas.AgentEnrolled, Agent: "alice", Ref: kill, Data: schemas.Marshal(schemas.Enrolment{Incarnation: "second"})})
	f.grant("alice", "j2")
}

// ends expects that nothing is delivered, and that an action is cancelled.
func (f *fixture) ends(effects []Effect, ref uint64, code int) {
	f.t.Helper()
	none[Deliver](f.t, effects)
	e := only[Emit](f.t, effects).Event
	if e.Kind != schemas.MessageCancelled || e.Ref != ref || e.Code != code || strings.Contains(e.Reason, "replaced") != (code == schemas.CodeUnauthorized) {
		f.t.Fatalf("%+v", e)
	}
}

// approvedAnyway lets an operator approve what was held under a sequence, and
// alice, who is another now, do the same.
func (f *fixture) approvedAnyway(seq uint64) {
	f.t.Helper()
	none[Deliver](f.t, f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: seq}))
	again := act("call:buy", "shop")
	again.JTI, again.Ref = "j2", seq
	f.ends(f.step(again), f.seq, schemas.CodeHeld)
}

// What intake decided before a kill can reach the log when the name is enrolled
// anew: an action of the one who was killed, or one of hers that is held. Neither
// is the next one's, also where an operator is quicker to approve it than release
// to cancel it, and also on replay.
func TestWhatWasDecidedBeforeAKillIsNotReleasedForTheNextIncarnation(t *testing.T) {
	f := newFixture(t)
	_, kill := f.killed()
	f.reborn(kill)
	f.ends(f.step(act("send:bob", "bob")), f.seq, schemas.CodeUnauthorized)
	for _, held := range []schemas.Event{pauseWith("send:bob", "bob"), pauseWith("call:buy", "shop")} {
		held.Lock = ""
		f.ends(f.step(held), f.seq, schemas.CodeUnauthorized)
		f.approvedAnyway(f.seq)
	}
	f.again()
	if owed := f.core.Unfinished(); len(owed) != 5 {
		t.Fatalf("on replay %d of 5 are cancelled", len(owed))
	}
	own := act("call:buy", "shop")
	own.JTI = "j2"
	if d := only[Deliver](t, f.step(own)); d.Token != "token-j2" {
		t.Fatalf("what she does herself: %+v", d)
	}
}

// What was held of the one who was killed is cancelled, and that takes a moment,
// or as long as release is down. An operator who approves it meanwhile has not
// approved the same of the next.
func TestAnApprovalOfWhatWasHeldBeforeAKillIsNoneForTheNextIncarnation(t *testing.T) {
	f := newFixture(t)
	f.step(pauseWith("call:buy", "shop"))
	before := f.seq
	effects, kill := f.killed()
	f.ends(effects, before, schemas.CodeCancelled)
	f.ends(f.step(pauseWith("call:buy", "shop")), f.seq, schemas.CodeCancelled)
	behind := f.seq
	f.reborn(kill)
	f.approvedAnyway(before)
	f.approvedAnyway(behind)
}
