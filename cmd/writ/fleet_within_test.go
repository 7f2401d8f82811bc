package main

import (
	"testing"
	"time"
)

// A fleet of a thousand beside a busy server takes longer than one agent does, and
// nobody waits longer than the issuer itself.
func TestALargeFleetIsWaitedForLonger(t *testing.T) {
	if one, many := applyWithin(1), applyWithin(1000); one < callWithin || many < callWithin+30*time.Second {
		t.Errorf("one agent: %s, a thousand: %s", one, many)
	}
	if got := applyWithin(1_000_000); got > 2*time.Minute {
		t.Errorf("a million: %s", got)
	}
}
