package plane

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// startOn starts a control plane on a folder, and an operator of it.
func startOn(t *testing.T, data string) (*Plane, *nats.Conn) {
	t.Helper()
	p, err := Start(t.Context(), Options{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(operator.Close)
	return p, operator
}

func memoryStatus(t *testing.T, operator *nats.Conn) schemas.AgentStatus {
	t.Helper()
	rep, err := bus.Call[schemas.StatusReply](t.Context(), operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: schemas.MemoryID})
	if err != nil || len(rep.Agents) != 1 {
		t.Fatalf("status of memory: %+v, %v", rep, err)
	}
	return rep.Agents[0]
}

// The kill of an operator's is for good: no restart undoes it, also where what
// is killed is a part of the control plane, which enrols that part by itself.
func TestARestartDoesNotBringBackAKilledMemoryService(t *testing.T) {
	data := t.TempDir()
	p, operator := startOn(t, data)
	if s := memoryStatus(t, operator); s.State != schemas.Active || s.Connections != 1 {
		t.Fatalf("at the start: %+v", s)
	}
	if _, err := bus.Call[schemas.Receipt](t.Context(), operator, schemas.CtlLock,
		schemas.LockRequest{AgentID: schemas.MemoryID, Lock: schemas.Killed, Reason: "leak", Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	_, operator = startOn(t, data)
	if s := memoryStatus(t, operator); s.State != schemas.Killed || s.Connections != 0 {
		t.Fatalf("after a restart: %+v", s)
	}

	// Enrolled by an operator, it serves again without a further start.
	e, err := bus.Call[schemas.EnrollReply](t.Context(), operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: schemas.MemoryID, Actor: "test"})
	if err == nil {
		err = os.WriteFile(memoryCreds(data), []byte(e.Creds), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := memoryStatus(t, operator)
		if s.State == schemas.Active && s.Connections == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("enrolled again: %+v", s)
		}
	}
}
