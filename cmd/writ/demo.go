package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/writ-sh/writ/cmd/writ/internal/demo"
	"github.com/writ-sh/writ/schemas"
)

type demoCmd struct {
	EveryByte bool `help:"Change each byte of the evidence in turn, instead of a sample; takes minutes."`
}

// Run plays the story on a control plane of its own, in a temporary folder.
func (c *demoCmd) Run(ctx context.Context, app *App) error {
	if app.Server != "" {
		return misuse("leave --server and --as out", "writ demo runs a control plane of its own")
	}
	o := demo.Options{Actor: app.actor, EveryByte: c.EveryByte}
	if !app.json {
		o.Narrator = &narrator{terminal: app.terminal, ctx: ctx}
	}
	report, err := demo.Run(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return advise(errors.New("interrupted; the control plane was stopped and its folder removed"), "run writ demo again")
		}
		return advise(err, "check that the temporary folder has room and that loopback connections are allowed, and run writ demo again")
	}
	if app.json {
		err = app.emit(report)
	} else {
		app.demonstrated(report)
	}
	if err == nil && !report.OK {
		err = errShown
	}
	return err
}

func (t *terminal) demonstrated(r *demo.Report) {
	ok := 0
	for _, s := range r.Steps {
		if s.OK {
			ok++
		}
	}
	t.say("")
	if r.OK {
		t.say("%s: all %d steps came out as expected.", t.paint(green, "ok"), ok)
		return
	}
	t.say("%s: %d of %d steps came out as expected.", t.paint(red, "NOT OK"), ok, len(r.Steps))
}

// A narrator tells the story on the terminal, at a pace at which people read.
type narrator struct {
	*terminal
	ctx  context.Context // ends the pauses
	step func(n, of uint64)
	done func()
}

const (
	readingPause = 900 * time.Millisecond // behind each step, where people watch
	storyWidth   = 100                    // columns of running text
	sparkWidth   = 60                     // columns of a picture of risks
)

// pause lets people read; programs are not made to wait.
func (n *narrator) pause() {
	if !n.aligned {
		return
	}
	select {
	case <-time.After(readingPause):
	case <-n.ctx.Done():
	}
}

// Chapter begins a part of the story.
func (n *narrator) Chapter(title string) {
	n.say("")
	n.say("%s", n.paint(bold, title))
}

// Say tells what can't be measured.
func (n *narrator) Say(text string) {
	for _, line := range n.wrap(plain(text), storyWidth) {
		n.say("%s", n.paint(dim, line))
	}
}

// Progress draws how far long work has come.
func (n *narrator) Progress(what string, done, of int) {
	if n.step == nil {
		n.step, n.done = n.progress(what)
	}
	n.step(uint64(done), uint64(of))
	if done == of {
		n.done()
		n.step, n.done = nil, nil
	}
}

// Step shows one step.
func (n *narrator) Step(number int, s demo.Step) {
	mark := n.paint(green, "✓")
	if !s.OK {
		mark = n.paint(red, "✗")
	}
	n.say("%s %2d %s", mark, number, n.paint(bold, plain(s.Name)))
	for _, part := range []struct {
		name, text string
		style      style
	}{{"expected", s.Expected, dim}, {"observed", s.Observed, unstyled}} {
		for i, line := range n.wrap(plain(part.text), storyWidth-15) {
			name := part.name
			if i > 0 {
				name = ""
			}
			n.say("     %s  %s", n.paint(dim, fmt.Sprintf("%-8s", name)), n.paint(part.style, line))
		}
	}
	n.pause()
}

// Risk draws an agent's risks, each column the highest of its share.
func (n *narrator) Risk(agent string, values []int) {
	if len(values) == 0 {
		return
	}
	columns := make([]int, min(len(values), sparkWidth))
	for i, v := range values {
		at := i * len(columns) / len(values)
		columns[at] = max(columns[at], v)
	}
	n.say("  %s %s %s %d", n.paint(dim, "risk of"), plain(agent), n.paint(yellow, sparkline(columns)), values[len(values)-1])
}

// Trace shows a request as writ trace does.
func (n *narrator) Trace(id string, events []*schemas.Event) {
	if len(events) > 0 {
		n.tree(treeOf(id, events))
	}
}

// wrap breaks running text into lines, on a terminal.
func (n *narrator) wrap(text string, width int) []string {
	if !n.aligned {
		return []string{text}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
