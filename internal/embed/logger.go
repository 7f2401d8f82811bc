package embed

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// A Violation is what the server refused a client by its permissions.
type Violation struct {
	Account string // public key
	Subject string
	What    string // publish, subscribe or one of schemas.Flood…
	Count   int    // how many, since the last one that was handed out
}

// logger hands the server's log on, and picks violations out of it: the
// server tells them nowhere else.
type logger struct {
	log       *slog.Logger
	violation func(cid uint64, what, subject string)
}

func (l *logger) Noticef(format string, v ...any) { l.log.Info("nats", "text", text(format, v)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn("nats", "text", text(format, v)) }
func (l *logger) Fatalf(format string, v ...any)  { l.log.Error("nats", "text", text(format, v)) }
func (l *logger) Debugf(string, ...any)           {}
func (l *logger) Tracef(string, ...any)           {}

func (l *logger) Errorf(format string, v ...any) {
	line := text(format, v)
	if cid, what, subject, ok := parseViolation(line); ok {
		l.violation(cid, what, subject)
		return
	}
	l.log.Error("nats", "text", line)
}

func text(format string, v []any) string { return fmt.Sprintf(format, v...) }

// The connection's number comes first, and what was refused last: the client
// names itself in between, and can't pass a forged line off as the server's.
var violationLine = regexp.MustCompile(`^\S* - cid:(\d+) - (?:.* - )?(Publish|Subscription) Violation - (?:Subject|Reply) ("(?:[^"\\]|\\.)*")(?:, .*)?$`)

// parseViolation reads a line such as
//
//	127.0.0.1:40124 - cid:7 - "v1.55.0:go" - Publish Violation - Subject "out.x"
func parseViolation(line string) (cid uint64, what, subject string, ok bool) {
	m := violationLine.FindStringSubmatch(line)
	if m == nil {
		return 0, "", "", false
	}
	cid, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		return 0, "", "", false
	}
	if subject, err = strconv.Unquote(m[3]); err != nil {
		subject = m[3]
	}
	what = "publish"
	if m[2] == "Subscription" {
		what = "subscribe"
	}
	return cid, what, subject, true
}

const (
	window        = time.Second
	pendingMax    = 1024 // violations not yet attributed
	outMax        = 1024
	perWindow     = 64   // violations handed out in one window
	subjectsClip  = 300  // bytes of a subject that are kept
	accountsBound = 4096 // accounts counted in one window
)

// violations attributes what was refused to accounts, and bounds the rate: of
// each account and kind, the first in a window is handed out at once and the
// rest as one at the window's end.
type violations struct {
	in      chan refused
	out     chan Violation
	account func(cid uint64) string
	done    sync.WaitGroup
}

type refused struct {
	cid           uint64
	what, subject string
}

type source struct{ account, what string }

func newViolations(account func(uint64) string) *violations {
	return &violations{in: make(chan refused, pendingMax), out: make(chan Violation, outMax), account: account}
}

// saw takes what the log said. It is called with the server's locks held:
// it neither blocks nor asks the server anything.
func (v *violations) saw(cid uint64, what, subject string) {
	if len(subject) > subjectsClip {
		subject = subject[:subjectsClip]
	}
	select {
	case v.in <- refused{cid, what, subject}:
	default: // a flood; what counts is that there is one
	}
}

func (v *violations) start(ctx context.Context) { v.done.Go(func() { v.run(ctx) }) }

func (v *violations) wait() { v.done.Wait() }

func (v *violations) run(ctx context.Context) {
	tick := time.NewTicker(window)
	defer tick.Stop()
	seen := map[source]*Violation{}
	accounts := map[uint64]string{}
	sent := 0
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-v.in:
			account, ok := accounts[r.cid]
			if !ok && len(accounts) < accountsBound {
				account = v.account(r.cid)
				accounts[r.cid] = account
			}
			if account == "" {
				continue
			}
			key := source{account, r.what}
			if rest := seen[key]; rest != nil {
				rest.Count++
				rest.Subject = r.subject
				continue
			}
			seen[key] = &Violation{Account: account, What: r.what}
			if sent++; sent <= perWindow {
				v.hand(Violation{Account: account, Subject: r.subject, What: r.what, Count: 1})
			}
		case <-tick.C:
			for _, rest := range seen {
				if rest.Count > 0 {
					v.hand(*rest)
				}
			}
			clear(seen)
			clear(accounts)
			sent = 0
		}
	}
}

func (v *violations) hand(x Violation) {
	select {
	case v.out <- x:
	default:
	}
}
