package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// Who sends while the issuer is down must learn that the operation has ended,
// and not be left to try for ever: the last refresh failed as a message may.
func TestWhatHasEndedIsNotTriedAgain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nats.ErrNoResponders, true},
		{context.DeadlineExceeded, true},
		{schemas.Refuse(schemas.CodeUnavailable, "down"), true},
		{schemas.Refuse(schemas.CodeForbidden, "no"), false},
		{fmt.Errorf("%w: its capability was not renewed: %w", ErrEnded, context.DeadlineExceeded), false},
		{fmt.Errorf("%w: its capability was not renewed: %w", ErrEnded, nats.ErrNoResponders), false},
		{fmt.Errorf("%w: its capability was not renewed: %w", ErrEnded, schemas.Refuse(schemas.CodeUnavailable, "down")), false},
	} {
		if passes(c.err) != c.want {
			t.Errorf("%v: tried again %v", c.err, !c.want)
		}
	}
}

// An issuer is lost with a request in hand. Whatever is left of the capability's
// life, a second try has a part of it; and no try outlasts that life.
func TestATryToRefreshLeavesTimeForTheNext(t *testing.T) {
	for left := time.Second; left < 24*time.Hour; left *= 2 {
		if p := patience(left); p > left/2 || p <= 0 {
			t.Errorf("with %s left one try takes %s", left, p)
		}
	}
	if p := patience(100 * time.Millisecond); p != 100*time.Millisecond {
		t.Errorf("a try outlasts the capability: %s", p)
	}
}
