package issuer_test

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// agedOut waits until EVENTS has forgotten all that it held.
func (p *plane) agedOut() {
	p.t.Helper()
	js, err := jetstream.New(p.role(keys.RoleInit))
	must(p.t, err)
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		s, err := js.Stream(p.t.Context(), schemas.Stream)
		must(p.t, err)
		if state := s.CachedInfo().State; state.Msgs == 0 && state.FirstSeq > 1 {
			return
		}
	}
	p.t.Fatal("EVENTS still holds events")
}

// Who was killed waits until the control plane has stood still for longer than
// EVENTS keeps, and hopes to be declared as if nothing had been. Release, stood
// in for here, folds the whole log: until it has said which locks were on, the
// issuer serves nobody; then they are on.
func TestLocksOutliveTheLog(t *testing.T) {
	p := newPlane(t, embed.Options{Retention: 4 * time.Second})
	p.apply()
	kill := p.lock(schemas.Killed, "writer-2")
	paused := p.lock(schemas.Paused, "analyst-7")
	p.stop()
	p.agedOut()

	release := p.role(keys.RoleRelease)
	var asked atomic.Int32
	must(t, bus.Handle(release, slog.New(slog.DiscardHandler), schemas.CtlLocks, func(ctx context.Context, req schemas.LocksRequest) (schemas.LocksReply, error) {
		if asked.Add(1) == 1 {
			if _, err := bus.Call[schemas.StatusReply](ctx, p.operator, schemas.CtlStatus, schemas.StatusRequest{}); bus.AsRefusal(err).Code != schemas.CodeUnavailable {
				t.Errorf("the issuer serves before it knows the locks: %v", err)
			}
			return schemas.LocksReply{}, schemas.Refuse(schemas.CodeUnavailable, "not yet")
		}
		if req.Through < paused.Seq {
			t.Errorf("asked for the locks up to %d; the log went to %d", req.Through, paused.Seq)
		}
		if req.After == "" {
			return schemas.LocksReply{Lockdown: "fire", More: true, Locks: []schemas.LockInfo{{AgentID: "analyst-7", Lock: schemas.Paused, Seq: paused.Seq, Reason: "test"}}}, nil
		}
		return schemas.LocksReply{Lockdown: "fire", Locks: []schemas.LockInfo{{AgentID: "writer-2", Lock: schemas.Killed, Seq: kill.Seq, Reason: "test"}}}, nil
	}))
	lockdown, enrolled := p.await("ev._fleet.policy.lockdown"), p.await("ev.writer-2.agent.enrolled")
	p.start()
	if e := <-lockdown; e.Reason != "fire" {
		t.Errorf("the lockdown came back as %+v", e)
	}
	p.apply()
	want := map[string]schemas.Lock{"analyst-7": schemas.Paused, "orchestrator": schemas.Active, "writer-2": schemas.Killed}
	for _, a := range call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{}).Agents {
		if lock, ok := want[a.AgentID]; ok && a.State != lock {
			t.Errorf("%s is %s; it was %s", a.AgentID, a.State, lock)
		}
		delete(want, a.AgentID)
	}
	if len(want) > 0 {
		t.Errorf("not in the fleet: %v", want)
	}
	refusal[schemas.Receipt](p, schemas.CtlLock, schemas.LockRequest{AgentID: "writer-2", Lock: schemas.Active, Reason: "test", Actor: "alice"}, schemas.CodeConflict)

	// Only an operator brings it back, and the event says which kill is undone,
	// so that all who know that one follow.
	p.enroll("writer-2")
	if e := <-enrolled; e.Ref != kill.Seq {
		t.Errorf("enrolled anew behind %d; it was killed by %d", e.Ref, kill.Seq)
	}
	// A removal ends it for good: under the same name comes another.
	without := fleetOf()
	without.Principals = slices.DeleteFunc(without.Principals, func(q schemas.Principal) bool { return q.ID == "writer-2" })
	for n := range without.Principals {
		if c := without.Principals[n].Ceiling; c != nil {
			without.Principals[n].Ceiling = &schemas.Ceiling{Tools: c.Tools}
		}
	}
	without.Prune = true
	call[schemas.ApplyReply](p, schemas.CtlApply, without)
	p.apply()
	if got := call[schemas.StatusReply](p, schemas.CtlStatus, schemas.StatusRequest{AgentID: "writer-2"}).Agents; len(got) != 1 || got[0].State != schemas.Active {
		t.Errorf("declared anew after a removal: %+v", got)
	}
}
