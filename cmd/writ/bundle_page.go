package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

//go:embed bundle.html.tmpl
var bundleHTML string

//go:embed bundle.css
var bundleCSS string

var bundleTemplate = template.Must(template.New("bundle").Parse(bundleHTML))

const (
	pageRows  = 5000 // events on a page
	pageBytes = 300  // of a body
)

// A bundleRow is one event as the page tells it.
type bundleRow struct {
	Seq     uint64
	Time    string
	Who     string
	Behalf  string
	What    string
	Kind    string
	Verdict string
	Proof   string
	Body    string
	Class   string // what became of it, for its colour
}

// A bundleSum says how much of one agent's doing is in the bundle.
type bundleSum struct {
	Who                        string
	Behalf                     []string // whose requests these were
	Accepted, Held, Denied     int
	Cancelled, Answers, Others int
	Risk                       int // the highest
}

type bundlePageData struct {
	bundleDoc
	CSS       template.CSS
	StyleHash string // of the style, for the page's Content-Security-Policy
	Sums      []*bundleSum
	Rows      []bundleRow
	Left      int // events without a row
}

// bundlePage is a page for people, made from what was verified alone: a bundle
// can't bring one that says something else. It is one file, loads nothing, and
// runs nothing. Nothing of a bundle that was refused stands in it but why.
func bundlePage(doc bundleDoc, ev *proof.Evidence) ([]byte, error) {
	sum := sha256.Sum256([]byte(bundleCSS))
	data := bundlePageData{bundleDoc: doc, CSS: template.CSS(bundleCSS), StyleHash: base64.StdEncoding.EncodeToString(sum[:])}
	data.Error, data.Origin = plain(doc.Error), plain(doc.Origin)
	var note strings.Builder
	for line := range strings.Lines(doc.Checkpoint) {
		note.WriteString(plain(strings.TrimSuffix(line, "\n")) + "\n")
	}
	data.Checkpoint = note.String()
	if ev != nil && doc.Size > 0 {
		data.Sums = bundleSums(ev.Entries)
		data.Rows, data.Left = bundleRows(ev.Entries)
	}
	var b bytes.Buffer
	if err := bundleTemplate.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("make the page: %w", err)
	}
	return b.Bytes(), nil
}

func bundleRows(entries []proof.Entry) (rows []bundleRow, left int) {
	behalf := map[string]string{} // by capability
	for i := range entries {
		e := &entries[i]
		if e.Event != nil && e.Event.Kind == schemas.TokenIssued {
			var g schemas.Grant
			if schemas.Unmarshal(e.Event.Data, &g) == nil {
				behalf[g.JTI] = onBehalf(&g)
			}
		}
		if len(rows) == pageRows {
			left++
			continue
		}
		rows = append(rows, rowOf(e, behalf))
	}
	return rows, left
}

// bundleSums tells what each agent did, in the order of their first events.
func bundleSums(entries []proof.Entry) []*bundleSum {
	var sums []*bundleSum
	byWho := map[string]*bundleSum{}
	for _, entry := range entries {
		e := entry.Event
		if e == nil || e.Agent == schemas.Fleet {
			continue
		}
		s := byWho[e.Agent]
		if s == nil {
			s = &bundleSum{Who: plain(e.Agent)}
			byWho[e.Agent] = s
			sums = append(sums, s)
		}
		s.count(e)
	}
	return sums
}

const mostBehalf = 5 // requests named in a sum

func (s *bundleSum) count(e *schemas.Event) {
	s.Risk = max(s.Risk, e.Risk)
	switch e.Kind {
	case schemas.MessageAccepted:
		s.Accepted++
	case schemas.MessageHeld, schemas.ResponseHeld:
		s.Held++
	case schemas.MessageDenied, schemas.ResponseDenied:
		s.Denied++
	case schemas.MessageCancelled, schemas.MessageExpired:
		s.Cancelled++
	case schemas.ResponseAccepted:
		s.Answers++
	default:
		s.Others++
	}
	var g schemas.Grant
	if e.Kind == schemas.TokenIssued && schemas.Unmarshal(e.Data, &g) == nil {
		if b := onBehalf(&g); len(s.Behalf) < mostBehalf && !slices.Contains(s.Behalf, b) {
			s.Behalf = append(s.Behalf, b)
		}
	}
}

func onBehalf(g *schemas.Grant) string {
	s := "issued by " + plain(g.IssuedBy)
	if g.Task != "" {
		s += ": " + plain(g.Task)
	}
	return s
}

func rowOf(e *proof.Entry, behalf map[string]string) bundleRow {
	row := bundleRow{Seq: e.Record.StreamSeq, Time: time.Unix(0, e.Record.Time).UTC().Format(time.RFC3339Nano), Proof: "in the log"}
	switch {
	case e.Redacted != nil:
		row.Kind, row.Proof = "redacted, authorised", "in the log; content erased"
		row.What = plain(fmt.Sprintf("by %s: %s", e.Redacted.Authority, e.Redacted.Reason))
	case e.Redaction != nil:
		row.Kind, row.What = "redaction", plain(fmt.Sprintf("by %s: %s", e.Redaction.Authority, e.Redaction.Reason))
	case e.Gap != nil:
		row.Kind, row.What = "gap", plain(fmt.Sprintf("the log lost %d to %d, says %s: %s", e.Gap.First, e.Gap.Last, e.Gap.Actor, e.Gap.Reason))
	case e.Event != nil:
		row.of(e.Event, behalf)
		if e.Answered != 0 {
			row.Proof += fmt.Sprintf("; delivered after it was recorded: answered by event %d", e.Answered)
		}
	}
	return row
}

func (row *bundleRow) of(e *schemas.Event, behalf map[string]string) {
	row.Who, row.Kind, row.What = plain(e.Agent), string(e.Kind), plain(story(e))
	row.Class = kindClass(e.Kind)
	row.Behalf = behalf[e.JTI]
	if row.Behalf == "" && e.Actor != "" {
		row.Behalf = plain(e.Actor)
	}
	if row.Behalf == "" && e.Trace.ID != "" {
		row.Behalf = "request " + e.Trace.ID
	}
	var v schemas.Verdict
	if len(e.Verdict) > 0 && json.Unmarshal(e.Verdict, &v) == nil {
		row.Verdict = plain(fmt.Sprintf("%s, risk %d of 100", v.Decision, e.Risk))
	}
	row.Body = excerpt(e.Data)
}

// excerpt is the beginning of a body, where it is text.
func excerpt(body []byte) string {
	cut := body
	if len(cut) > pageBytes {
		cut = cut[:pageBytes]
		for len(cut) > 0 && !utf8.Valid(cut) && len(cut) > pageBytes-utf8.UTFMax {
			cut = cut[:len(cut)-1]
		}
	}
	switch {
	case len(body) == 0:
		return ""
	case !utf8.Valid(cut):
		return fmt.Sprintf("%d bytes, no text", len(body))
	case len(cut) < len(body):
		return plain(string(cut)) + fmt.Sprintf("… (%d bytes)", len(body))
	}
	return plain(string(cut))
}
