package issuer

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// A server under the load of a thousand agents answers each time for a few
// accounts in time: the issuer that starts anew must come up, and push none
// twice that stands. One that answers for none must not be waited for without
// end, and who stops it must not wait.
func TestAnIssuerStartsBesideABusyServer(t *testing.T) {
	busy := errors.New("no answer in time")
	var ids []string
	for i := range 40 {
		ids = append(ids, member(i))
	}
	pushed := map[string]int{}
	few := func(_ context.Context, ids []string) ([]string, error) {
		take := min(2, len(ids))
		for _, id := range ids[:take] {
			pushed[id]++
		}
		if left := slices.Clone(ids[take:]); len(left) > 0 {
			return left, busy
		}
		return nil, nil
	}
	if err := persist(t.Context(), ids[:3], ids[3:], few); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if pushed[id] != 1 {
			t.Errorf("%s was pushed %d times", id, pushed[id])
		}
	}
	tries := 0
	none := func(_ context.Context, ids []string) ([]string, error) {
		if len(ids) == 0 {
			return nil, nil
		}
		tries++
		return ids, busy
	}
	if err := persist(t.Context(), nil, ids, none); !errors.Is(err, busy) || tries != startTries {
		t.Errorf("after %d tries: %v", tries, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if tries = 0; persist(ctx, ids, nil, none) == nil || tries != 1 {
		t.Errorf("stopped, and tried %d times", tries)
	}
}
