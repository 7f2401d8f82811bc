package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

func TestAgentsTextCantSteerTheTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 漢":             "plain é 漢",
		"\x1b[2Jgone":           `\u001b[2Jgone`,
		"a\rb\nc\td":            `a\u000db\u000ac\u0009d`,
		"csi \u009b31m":         `csi \u009b31m`,
		"right\u202eleft":       `right\u202eleft`,
		"zero\u200bwidth":       `zero\u200bwidth`,
		"bad \xff utf-8":        "bad \ufffd utf-8",
		"del \x7f":              `del \u007f`,
		"tag \U000e0041 hidden": `tag \ue0041 hidden`,
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
}

func screen() (*terminal, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	t := newTerminal(&out, &err)
	t.now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local) }
	return t, &out, &err
}

func TestTablesAreAlignedOnATerminalAndTabbedElsewhere(t *testing.T) {
	rows := [][]cell{{text("a"), text("1")}, {text("größer"), text("22")}}
	term, out, _ := screen()
	term.table([]string{"id", "n"}, rows)
	if got, want := out.String(), "ID\tN\na\t1\ngrößer\t22\n"; got != want {
		t.Errorf("tabbed: %q, want %q", got, want)
	}
	term, out, _ = screen()
	term.aligned = true
	term.table([]string{"id", "n"}, rows)
	if got, want := out.String(), "ID      N\na       1\ngrößer  22\n"; got != want {
		t.Errorf("aligned: %q, want %q", got, want)
	}
	term, out, _ = screen()
	term.aligned, term.colour = true, true
	term.row([]int{6, 0}, []cell{styled(red, "bad"), text("x")})
	if got, want := out.String(), "\x1b[31mbad\x1b[0m     x\n"; got != want {
		t.Errorf("coloured: %q, want %q", got, want)
	}
}

func TestErrorsSayWhatToDoNextAndNeverExitZero(t *testing.T) {
	cases := []struct {
		err  error
		code int
		text string
	}{
		{errors.New("boom"), exitFailed, "writ: boom\n  next: writ doctor looks for the cause\n"},
		{advise(errors.New("boom"), "duck"), exitFailed, "writ: boom\n  next: duck\n"},
		{fmt.Errorf("try: %w", advise(errors.New("boom"), "duck")), exitFailed, "writ: try: boom\n  next: duck\n"},
		{advise(advise(errors.New("boom"), "duck"), "run"), exitFailed, "writ: boom\n  next: duck\n"},
		{misuse("see help", "bad flag"), exitUsage, "writ: bad flag\n  next: see help\n"},
		{schemas.Refuse(schemas.CodeNotFound, "no such agent"), exitFailed, "writ: 404 no such agent\n  next: writ status lists what there is\n"},
		{schemas.Refuse(schemas.CodeForbidden, "beyond the ceiling"), exitFailed, "writ: 403 beyond the ceiling\n  next: leave it to somebody who may, or have an admin change what is allowed in the fleet file (writ apply)\n"},
		{schemas.Refuse(schemas.CodeConflict, "TLS is off"), exitFailed, "writ: 409 TLS is off\n  next: change what the message names, and run the command again\n"},
		{schemas.Refuse(schemas.CodeTooLarge, "the task is too long"), exitFailed, "writ: 413 the task is too long\n  next: change what the message names, and run the command again\n"},
		{schemas.Refuse(schemas.CodeCancelled, "locked down"), exitFailed, "writ: 410 locked down\n  next: writ status shows who is locked, and whether the fleet is locked down\n"},
		{errors.New("two\nlines\x1b"), exitFailed, "writ: two\n      lines\\u001b\n  next: writ doctor looks for the cause\n"},
		{errShown, exitFailed, ""},
	}
	for _, c := range cases {
		term, out, stderr := screen()
		if code := term.fail(c.err); code != c.code || stderr.String() != c.text || out.Len() > 0 {
			t.Errorf("%v: exit %d, stderr %q, stdout %q", c.err, code, stderr, out)
		}
	}
}

func TestAFailureIsOneJSONDocumentUnlessAResultWasPrinted(t *testing.T) {
	term, out, stderr := screen()
	term.json = true
	term.fail(schemas.Refuse(schemas.CodeForbidden, "not <yours>"))
	if got, want := out.String(), `{"error":"not <yours>","code":403,"next":"leave it to somebody who may, or have an admin change what is allowed in the fleet file (writ apply)"}`+"\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr %q", stderr)
	}
	term, out, stderr = screen()
	term.json = true
	if err := term.emit(1); err != nil {
		t.Fatal(err)
	}
	term.fail(errors.New("late"))
	if out.String() != "1\n" || !strings.Contains(stderr.String(), "late") {
		t.Errorf("stdout %q, stderr %q", out, stderr)
	}
}

func TestTimesAreShortOnATerminal(t *testing.T) {
	term, _, _ := screen()
	at := time.Date(2026, 3, 1, 11, 59, 1, 5e6, time.Local)
	if got, want := term.clock(at), at.UTC().Format(time.RFC3339Nano); got != want {
		t.Errorf("clock = %q, want %q", got, want)
	}
	term.aligned = true
	if got := term.clock(at); got != "11:59:01.005" {
		t.Errorf("today: %q", got)
	}
	if got := term.clock(at.AddDate(0, 0, -2)); got != "Feb 27 11:59:01" {
		t.Errorf("another day: %q", got)
	}
	for d, want := range map[time.Duration]string{
		900 * time.Nanosecond: "0 µs", 1500 * time.Microsecond: "1.5 ms", 90 * time.Second: "1 min 30 s",
		2500 * time.Millisecond: "2.5 s", 25*time.Hour + 30*time.Second: "25 h 0 min", -time.Second: "-1.0 s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestSparklineSpansTheScale(t *testing.T) {
	if got := sparkline([]int{-5, 0, 50, 100, 500}); got != "▁▁▄██" {
		t.Errorf("%s", got)
	}
}
