package adversary

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// An approval that was used must neither admit a second action nor stand in the
// way of the next review: the same action, sent again while the agent is paused,
// is held under a sequence of its own, and goes through once it is resumed.
func TestAUsedApprovalStandsInNobodysWay(t *testing.T) {
	r, alice, _ := stage(t)
	same := &nats.Msg{Subject: "out.op.call.echo", Data: []byte("the same words each time")}
	lock := func(l schemas.Lock) {
		call[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "alice", Lock: l, Reason: "test", Actor: "rig"})
	}
	held := func() uint64 {
		t.Helper()
		_, refusal := ask(t, alice, same)
		if refusal == nil || refusal.Code != schemas.CodeHeld || refusal.Seq == 0 {
			t.Fatalf("a paused agent's action: %v", refusal)
		}
		rep := call[schemas.ReviewsReply](r, schemas.CtlReviews, schemas.PageRequest{})
		for _, v := range rep.Reviews {
			if v.Seq == refusal.Seq {
				return v.Seq
			}
		}
		t.Fatalf("%d is held, and in no list of reviews: %+v", refusal.Seq, rep.Reviews)
		return 0
	}
	lock(schemas.Paused)
	first := held()
	call[schemas.ReviewReply](r, schemas.CtlReview, schemas.ReviewRequest{Seq: first, Approve: true, Actor: "rig"})
	until(t, "the approval is known", func() bool {
		m, refusal := ask(t, alice, same)
		return refusal == nil && string(m.Data) == string(same.Data)
	})
	if second := held(); second <= first {
		t.Errorf("held as %d behind %d", second, first)
	}
	lock(schemas.Active)
	works(t, alice, "out.op.call.echo")
	if _, refusal := ask(t, alice, same); refusal != nil {
		t.Errorf("resumed, and refused: %v", refusal)
	}
	r.sound()
}

// A paused agent that goes on sending must neither bury what others await a review
// for, nor fill the memory of whoever keeps what is held.
func TestAPausedAgentFillsNoReview(t *testing.T) {
	r, alice, _ := stage(t)
	call[schemas.Receipt](r, schemas.CtlLock, schemas.LockRequest{AgentID: "alice", Lock: schemas.Paused, Reason: "test", Actor: "rig"})
	codes := map[int]int{}
	sent := 0
	more := func() int {
		t.Helper()
		sent++
		_, refusal := ask(t, alice, &nats.Msg{Subject: "out.op.call.echo", Data: fmt.Append(nil, sent)})
		if refusal == nil {
			t.Fatal("a paused agent is served")
		}
		return refusal.Code
	}
	for range 150 {
		codes[more()]++
	}
	if codes[schemas.CodeHeld] < 100 || codes[schemas.CodeHeld] > 110 || codes[schemas.CodeRate] != 150-codes[schemas.CodeHeld] {
		t.Errorf("answers by code: %v", codes)
	}
	rep := call[schemas.ReviewsReply](r, schemas.CtlReviews, schemas.PageRequest{Limit: 1000})
	if len(rep.Reviews) != codes[schemas.CodeHeld] {
		t.Errorf("%d await a review, %d were held", len(rep.Reviews), codes[schemas.CodeHeld])
	}
	if status := call[schemas.StatusReply](r, schemas.CtlStatus, schemas.StatusRequest{AgentID: "alice"}); status.Agents[0].State != schemas.Paused {
		t.Errorf("what is too much counts against the agent: %+v", status.Agents[0])
	}
	for _, v := range rep.Reviews[:20] {
		call[schemas.ReviewReply](r, schemas.CtlReview, schemas.ReviewRequest{Seq: v.Seq, Approve: false, Reason: "no", Actor: "rig"})
	}
	until(t, "there is room again", func() bool { return more() == schemas.CodeHeld })
	r.sound()
}
