package main

// The terminal. Rules for every command:
//
//   - stdout is for the result, stderr for all else: logs, progress, errors.
//   - With --json, stdout holds exactly one JSON document, or one per line
//     where the command is a stream; a failure too is one, {"error": …}, unless
//     a result was printed already. Lists are never null.
//   - Colour and aligned columns are for terminals. Elsewhere rows are
//     separated by tabs, times are RFC 3339, and nothing is coloured. NO_COLOR
//     and TERM=dumb are respected.
//   - An error says what happened and why, then what to do next. It is printed
//     once, here, and the exit code is never 0.
//   - A result that can't be written is an error too: all of stdout goes through
//     one writer, whose first error ends the command.
//   - Nothing secret is printed: no seeds, no credentials; they go to files
//     that only the user can read.
//   - Text that an agent had a hand in passes through plain, so that it can't
//     steer the terminal of who reads it.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

type terminal struct {
	stdout  *result
	stderr  io.Writer
	json    bool
	printed bool // a result stands on stdout
	aligned bool // stdout is a terminal
	colour  bool // and takes colour
	live    bool // stderr is a terminal: progress may be drawn
	now     func() time.Time
}

func newTerminal(stdout, stderr io.Writer) *terminal {
	t := &terminal{stdout: &result{w: stdout}, stderr: stderr, now: time.Now}
	t.aligned, t.live = isTerminal(stdout), isTerminal(stderr)
	t.colour = t.aligned && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return t
}

// result is stdout. What follows its first error is not written, so that no
// result has a hole in it.
type result struct {
	w      io.Writer
	err    error  // the first
	failed func() // called at it, where there is one: ends what writes
}

func (r *result) Write(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.w.Write(b)
	if err != nil {
		r.err = fmt.Errorf("the result could not be written: %w", err)
		if r.failed != nil {
			r.failed()
		}
	}
	return n, r.err
}

// lost is the error of a command whose result was not written.
func (r *result) lost() error {
	return advise(r.err, "what was asked for may be done all the same: writ log shows it; write the result where there is room, and a secret that was lost make anew")
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// advised is an error with what to do next.
type advised struct {
	err  error
	next string
}

func (a *advised) Error() string { return a.err.Error() }
func (a *advised) Unwrap() error { return a.err }

// advise adds what to do next. Advice that is there already stays.
func advise(err error, next string) error {
	var a *advised
	if err == nil || errors.As(err, &a) {
		return err
	}
	switch {
	case errors.Is(err, keys.ErrSealed): // wherever it was noticed
		next = fmt.Sprintf(adviceOpener, "", "")
	case errors.Is(err, keys.ErrHalfSealed):
		next = "writ keys seal, or writ keys unseal, goes on where it stopped"
	}
	return &advised{err, next}
}

// errShown is an error whose reason stands in the result already: it sets the
// exit code and prints nothing more.
var errShown = errors.New("the result says why")

// nextFor is what to do about errors that came without advice.
func nextFor(err error) string {
	var refusal *schemas.Refusal
	if !errors.As(err, &refusal) {
		return "writ doctor looks for the cause"
	}
	switch refusal.Code {
	case schemas.CodeNotFound:
		return "writ status lists what there is"
	case schemas.CodeUnavailable, schemas.CodeNoAnswer:
		return "writ doctor says which part of the control plane is down"
	case schemas.CodeMalformed:
		return "correct the value and run the command again"
	case schemas.CodeForbidden:
		return "leave it to somebody who may, or have an admin change what is allowed in the fleet file (writ apply)"
	case schemas.CodeUnauthorized:
		return "ask an operator for credentials that count: writ enroll ID"
	case schemas.CodeCancelled, schemas.CodeHeld:
		return "writ status shows who is locked, and whether the fleet is locked down"
	case schemas.CodeRate:
		return "wait, and run the command again"
	}
	return "change what the message names, and run the command again" // a conflict, too much: it says what is in the way
}

// fail prints an error, and gives the exit code.
func (t *terminal) fail(err error) int {
	code := exitFailed
	if errors.Is(err, errUsage) {
		code = exitUsage
	}
	if errors.Is(err, errShown) {
		return code
	}
	next := nextFor(err)
	var a *advised
	if errors.As(err, &a) {
		next = a.next
	}
	if t.json && !t.printed {
		doc := struct {
			Error string `json:"error"`
			Code  int    `json:"code,omitempty"`
			Next  string `json:"next"`
		}{Error: err.Error(), Next: next}
		var refusal *schemas.Refusal
		if errors.As(err, &refusal) {
			doc.Error, doc.Code = refusal.Text, refusal.Code
		}
		if t.emit(doc) == nil {
			return code
		}
	}
	fmt.Fprintf(t.stderr, "writ: %s\n", plainLines(err.Error()))
	fmt.Fprintf(t.stderr, "  next: %s\n", plain(next))
	return code
}

// emit prints one JSON document on a line of its own.
func (t *terminal) emit(v any) error {
	t.printed = true
	enc := json.NewEncoder(t.stdout)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return nil
}

// say prints one line of a result.
func (t *terminal) say(format string, args ...any) {
	t.printed = true
	fmt.Fprintf(t.stdout, format+"\n", args...)
}

// note tells something on stderr that is not the result.
func (t *terminal) note(format string, args ...any) {
	fmt.Fprintf(t.stderr, format+"\n", args...)
}

// style is a colour or weight, as the parameter of an SGR sequence (ECMA-48).
type style string

const (
	unstyled style = ""
	bold     style = "1"
	dim      style = "2"
	red      style = "31"
	green    style = "32"
	yellow   style = "33"
)

func (t *terminal) paint(s style, text string) string {
	if !t.colour || s == unstyled || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// A cell is the text of a column in a row, and how it looks.
type cell struct {
	text  string
	style style
}

func text(v any) cell              { return cell{text: plain(fmt.Sprint(v))} }
func styled(s style, v any) cell   { c := text(v); c.style = s; return c }
func lockCell(l schemas.Lock) cell { return styled(lockStyle(l), l) }

func lockStyle(l schemas.Lock) style {
	switch l {
	case schemas.Active:
		return green
	case schemas.Paused:
		return yellow
	}
	return red
}

func riskCell(risk int) cell {
	switch {
	case risk >= schemas.DefaultThresholds.Suspend:
		return styled(red, risk)
	case risk >= schemas.DefaultThresholds.Pause:
		return styled(yellow, risk)
	}
	return text(risk)
}

// table prints rows under a header.
func (t *terminal) table(header []string, rows [][]cell) {
	widths := make([]int, len(header))
	head := make([]cell, len(header))
	for i, h := range header {
		head[i] = cell{strings.ToUpper(h), dim}
		widths[i] = len(h)
	}
	for _, r := range rows {
		for i, c := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	t.row(widths, head)
	for _, r := range rows {
		t.row(widths, r)
	}
}

// row prints one row; the last column is not padded.
func (t *terminal) row(widths []int, cells []cell) {
	var b strings.Builder
	for i, c := range cells {
		b.WriteString(t.paint(c.style, c.text))
		switch {
		case i == len(cells)-1:
		case t.aligned:
			b.WriteString(strings.Repeat(" ", max(widths[i]-utf8.RuneCountInString(c.text), 0)+2))
		default:
			b.WriteByte('\t')
		}
	}
	t.say("%s", strings.TrimRight(b.String(), " "))
}

// facts prints names and values, one a line.
func (t *terminal) facts(pairs ...[2]string) {
	width := 0
	for _, p := range pairs {
		width = max(width, utf8.RuneCountInString(p[0]))
	}
	for _, p := range pairs {
		t.row([]int{width}, []cell{{p[0], dim}, {plain(p[1]), unstyled}})
	}
}

// plain makes text harmless: what isn't printable is spelled out, control and
// direction characters among it.
func plain(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		if hidden(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func hidden(r rune) bool { return !unicode.IsPrint(r) }

// plainLines is plain for text of several lines.
func plainLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = plain(l)
	}
	return strings.Join(lines, "\n      ")
}

// clock writes a time: short for people, RFC 3339 for programs.
func (t *terminal) clock(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	if !t.aligned {
		return at.UTC().Format(time.RFC3339Nano)
	}
	at, now := at.Local(), t.now()
	if y, d := at.Year(), at.YearDay(); y == now.Year() && d == now.YearDay() {
		return at.Format("15:04:05.000")
	}
	return at.Format("Jan 02 15:04:05")
}

// span writes a duration with two or three figures.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// sparkline draws values from 0 to 100.
func sparkline(values []int) string {
	const bars = "▁▂▃▄▅▆▇█"
	levels := []rune(bars)
	var b strings.Builder
	for _, v := range values {
		b.WriteRune(levels[min(max(v, 0), 100)*(len(levels)-1)/100])
	}
	return b.String()
}

// progress draws on stderr how far long work has come; nothing where stderr is
// no terminal. done wipes it.
func (t *terminal) progress(what string) (step func(n, of uint64), done func()) {
	if !t.live {
		return func(uint64, uint64) {}, func() {}
	}
	var last time.Time
	step = func(n, of uint64) {
		if now := t.now(); now.Sub(last) > 100*time.Millisecond {
			last = now
			fmt.Fprintf(t.stderr, "\r\x1b[K%s %d of %d", what, n, of)
		}
	}
	return step, func() { fmt.Fprint(t.stderr, "\r\x1b[K") }
}

// list makes an absent list an empty one, which JSON shows as [].
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
