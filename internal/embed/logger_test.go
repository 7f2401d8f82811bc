package embed

import (
	"context"
	"fmt"
	"testing"
)

func TestOnlyTheServersOwnLineIsAViolation(t *testing.T) {
	for _, c := range []struct {
		line    string
		cid     uint64
		what    string
		subject string
	}{
		{`127.0.0.1:4 - cid:7 - Publish Violation - Subject "a.b"`, 7, "publish", "a.b"},
		{`127.0.0.1:4 - cid:7 - "v1.55.0:go:me" - Publish Violation - Subject "a.b"`, 7, "publish", "a.b"},
		{`[::1]:4 - cid:7 - Subscription Violation - Subject ">", SID 1`, 7, "subscribe", ">"},
		{`127.0.0.1:4 - cid:7 - Subscription Violation - Subject "x", Queue: "q", SID 1`, 7, "subscribe", "x"},
		{`127.0.0.1:4 - cid:7 - Publish Violation - Reply "a\"b"`, 7, "publish", `a"b`},
		// A client that names itself after another's violation.
		{`127.0.0.1:4 - cid:7 - "x - cid:9 - Publish Violation - Subject \"z\"" - Publish Violation - Subject "a"`, 7, "publish", "a"},
		{`127.0.0.1:4 - cid:7 - "x - cid:9 - Publish Violation - Subject \"z\""`, 0, "", ""},
		{`127.0.0.1:4 - cid:7 - authentication error`, 0, "", ""},
		{`x cid:7 - Publish Violation - Subject "a"`, 0, "", ""},
		{``, 0, "", ""},
	} {
		cid, what, subject, ok := parseViolation(c.line)
		if cid != c.cid || what != c.what || subject != c.subject || ok != (c.cid != 0) {
			t.Errorf("%s: got %d %s %q %v", c.line, cid, what, subject, ok)
		}
	}
}

func FuzzParseViolation(f *testing.F) {
	f.Add(`127.0.0.1:4 - cid:7 - Publish Violation - Subject "a.b"`)
	f.Fuzz(func(t *testing.T, name string) {
		line := fmt.Sprintf("127.0.0.1:4 - cid:7 - %q - Publish Violation - Subject %q", name, "a")
		if cid, what, subject, ok := parseViolation(line); !ok || cid != 7 || what != "publish" || subject != "a" {
			t.Errorf("%s: got %d %s %q %v", line, cid, what, subject, ok)
		}
		parseViolation(name)
	})
}

func TestAFloodOfViolationsIsCountedNotKept(t *testing.T) {
	v := newViolations(func(cid uint64) string { return fmt.Sprint("A", cid) })
	for range 10 * pendingMax {
		v.saw(1, "publish", "x")
	}
	ctx, cancel := context.WithCancel(t.Context())
	v.start(ctx)
	if first := <-v.out; first.Count != 1 || first.Account != "A1" {
		t.Errorf("first %+v", first)
	}
	if rest := <-v.out; rest.Count != pendingMax-1 {
		t.Errorf("rest %+v", rest)
	}
	cancel()
	v.wait()
	if len(v.out) != 0 {
		t.Errorf("%d more", len(v.out))
	}
}
