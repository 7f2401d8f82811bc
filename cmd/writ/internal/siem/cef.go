package siem

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/writ-sh/writ/schemas"
)

// CEF writes an event as one line of ArcSight's Common Event Format, version 0,
// without a newline and without a syslog header, which whoever sends it puts in
// front.
func CEF(e *schemas.Event, message, version string) []byte {
	c := classOf(e)
	var b strings.Builder
	b.WriteString("CEF:0")
	for _, field := range []string{"Writ", "Writ", version, string(e.Kind), c.name + ": " + c.activityName, strconv.Itoa(cefSeverity(severityOf(e)))} {
		b.WriteByte('|')
		header(&b, field)
	}
	b.WriteByte('|')
	x := extension{b: &b}
	x.put("rt", strconv.FormatInt(e.Time.UnixMilli(), 10))
	x.put("externalId", strconv.FormatUint(e.Seq, 10))
	x.put("cat", c.name)
	_, status := outcome(e)
	x.put("outcome", status)
	x.put("suser", e.Agent)
	x.put("duser", e.To)
	x.put("spriv", e.Actor)
	if e.Action != (schemas.Action{}) {
		x.put("act", e.Action.String())
	}
	x.put("reason", e.Reason)
	x.label("cs1", "operation", e.Operation)
	x.label("cs2", "trace", e.Trace.ID)
	x.label("cs3", "lock", string(e.Lock))
	x.label("cs4", "verdict", decisionOf(e))
	if !e.Digest.IsZero() {
		x.label("cs5", "payloadSha256", e.Digest.String())
	}
	if len(e.Verdict) > 0 {
		x.label("cn1", "risk", strconv.Itoa(e.Risk))
	}
	if e.Ref != 0 {
		x.label("cn2", "about", strconv.FormatUint(e.Ref, 10))
	}
	if e.Code != 0 {
		x.label("cn3", "code", strconv.Itoa(e.Code))
	}
	x.put("msg", message)
	return []byte(b.String())
}

// cefSeverity is 0 to 10.
func cefSeverity(s int) int {
	return [...]int{informational: 1, low: 3, medium: 5, high: 8, critical: 10}[s]
}

type extension struct {
	b    *strings.Builder
	some bool
}

func (x *extension) put(key, value string) {
	if value == "" {
		return
	}
	if x.some {
		x.b.WriteByte(' ')
	}
	x.some = true
	x.b.WriteString(key + "=")
	escape(x.b, value, '=')
}

func (x *extension) label(key, name, value string) {
	if value != "" {
		x.put(key+"Label", name)
		x.put(key, value)
	}
}

func header(b *strings.Builder, value string) { escape(b, value, '|') }

// escape writes a value: a backslash before backslashes and before the
// character that would end it, \n and \r for line ends in the extension. Whatever
// else is not printable, other line and paragraph ends among it, is spelled out.
func escape(b *strings.Builder, value string, ends rune) {
	for i, r := range value {
		switch {
		case r == '\\' || r == ends:
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n' && ends == '=':
			b.WriteString(`\n`)
		case r == '\r' && ends == '=':
			b.WriteString(`\r`)
		case r == utf8.RuneError && !strings.HasPrefix(value[i:], "\ufffd"), !unicode.IsPrint(r):
			fmt.Fprintf(b, `\\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
}
