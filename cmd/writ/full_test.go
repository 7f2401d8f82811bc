package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// full is a disk on which nothing more has room once n bytes were written.
type full struct{ n int }

var errFull = errors.New("no space left on device")

func (f *full) Write(b []byte) (int, error) {
	if len(b) > f.n {
		return 0, errFull
	}
	f.n -= len(b)
	return len(b), nil
}

// A backup of the log, or a secret that is shown once, must not be lost on a full
// disk by a command that says that all went well.
func TestAResultThatCantBeWrittenIsAnError(t *testing.T) {
	l := &living{T: t, ctx: t.Context()}
	l.start(filepath.Join(t.TempDir(), "data"))
	l.writ(nil, "pause", "victim", "--reason", "so that there is something to show")
	for _, args := range [][]string{
		{"log"}, {"log", "--follow"}, {"log", "--format", "cef"}, {"log", "--format", "ocsf", "--follow"},
		{"status"}, {"doctor"}, {"version"}, {"keys", "list"}, {"replay"},
		{"ledger", "head"}, {"ledger", "prove", "1"}, {"ledger", "verify"}, {"policy", "schema"},
		{"resume", "victim", "--reason", "seen"}, {"lockdown", "--reason", "drill"}, {"lockdown", "--lift", "--reason", "drill"},
		{"webhook", "add", "pager", "--url", "http://127.0.0.1:9/", "--event", "held"}, {"webhook", "rotate", "pager"},
		{"enroll", "victim", "--join", "1h"},
	} {
		for _, format := range []string{"", "--json"} {
			if format != "" && (len(args) > 2 && args[1] == "--format" || args[0] == "webhook") {
				continue // they exclude one another; the webhook is there by then
			}
			given := append(append([]string{}, args...), "--data", l.data)
			if format != "" {
				given = append(given, format)
			}
			var errs bytes.Buffer
			code := run(given, strings.NewReader(""), &full{5}, &errs)
			if code != exitFailed || strings.Count(errs.String(), "the result could not be written: "+errFull.Error()) != 1 || !strings.Contains(errs.String(), "next: ") {
				t.Errorf("writ %v: exit %d, %q", given, code, errs.String())
			}
		}
	}
}
