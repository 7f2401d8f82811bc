package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

//go:embed trace.html.tmpl
var traceHTML string

//go:embed trace.css
var traceCSS string

var traceTemplate = template.Must(template.New("trace").Parse(traceHTML))

// A traceRow is one event as the page draws it.
type traceRow struct {
	Seq     uint64
	Depth   int // of the indent, 0 to maxIndent
	Who     string
	What    string
	Kind    string
	Class   string // of the bar: what became of it
	Start   string // of the bar, in per cent
	Width   string
	Offset  string
	Took    string
	Tokens  int64
	Facts   [][2]string
	Factors []string
}

type tracePageData struct {
	Trace     string
	Events    int
	Tokens    int64
	Agents    string
	Began     string
	Took      string
	Ticks     []traceTick
	CSS       template.CSS
	StyleHash string // of the style, for the page's Content-Security-Policy
	Rows      []traceRow
	Left      int
}

type traceTick struct{ At, Label string }

const (
	maxIndent = 12
	ticks     = 5
)

// tracePage is a trace as one file: a bar for each event, as long as what it
// caused took, coloured by what became of it. It loads nothing and runs nothing;
// rows open by themselves, and all text in it is text.
func tracePage(doc traceDoc) ([]byte, error) {
	sum := sha256.Sum256([]byte(traceCSS))
	agents := make([]string, len(doc.Agents))
	for i, a := range doc.Agents {
		agents[i] = plain(a)
	}
	data := tracePageData{Trace: plain(doc.Trace), Events: doc.Events, Tokens: doc.Tokens, Agents: strings.Join(agents, ", "),
		Took: micros(doc.TookUS), CSS: template.CSS(traceCSS), StyleHash: base64.StdEncoding.EncodeToString(sum[:])}
	if len(doc.Tree) > 0 {
		data.Began = doc.Tree[0].Time.UTC().Format(time.RFC3339Nano)
	}
	for i := range ticks {
		data.Ticks = append(data.Ticks, traceTick{At: perCent(int64(i), ticks-1), Label: micros(doc.TookUS * int64(i) / (ticks - 1))})
	}
	for _, n := range doc.Tree {
		data.rows(n, 0, max(doc.TookUS, 1))
	}
	var b bytes.Buffer
	if err := traceTemplate.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("make the page: %w", err)
	}
	return b.Bytes(), nil
}

func micros(us int64) string { return span(time.Duration(us) * time.Microsecond) }

func perCent(part, whole int64) string {
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 3, 64) + "%"
}

func (d *tracePageData) rows(n *node, depth int, whole int64) {
	if len(d.Rows) == pageRows {
		d.Left++
	} else {
		d.Rows = append(d.Rows, rowOfNode(n, depth, whole))
	}
	for _, child := range n.Children {
		d.rows(child, depth+1, whole)
	}
}

func rowOfNode(n *node, depth int, whole int64) traceRow {
	row := traceRow{Seq: n.Seq, Depth: min(depth, maxIndent), Who: plain(n.Agent), What: plain(n.Action), Kind: plain(string(n.Kind)),
		Class: kindClass(n.Kind), Start: perCent(n.OffsetUS, whole), Width: perCent(n.TookUS, whole),
		Offset: micros(n.OffsetUS), Took: micros(n.TookUS), Tokens: n.Tokens}
	if row.What == "" {
		row.What = plain(n.Operation)
	}
	fact := func(name, value string) {
		if value != "" {
			row.Facts = append(row.Facts, [2]string{name, plain(value)})
		}
	}
	fact("time", n.Time.UTC().Format(time.RFC3339Nano))
	fact("subject", n.Subject)
	fact("operation", n.Operation)
	fact("to", n.To)
	if n.Ref != 0 {
		fact("about", seqText(n.Ref))
	}
	if n.Risk != nil {
		fact("risk", fmt.Sprintf("%d of 100", *n.Risk))
	}
	fact("lock", string(n.Lock))
	if n.Code != 0 {
		fact("code", strconv.Itoa(n.Code))
	}
	fact("reason", n.Reason)
	fact("by", n.Actor)
	if n.LatencyUS > 0 {
		fact("answered after", micros(n.LatencyUS))
	}
	if n.Tokens > 0 {
		fact("tokens", strconv.FormatInt(n.Tokens, 10))
	}
	fact("body, SHA-256", n.Digest)
	row.Factors = evidence(n.Verdict)
	return row
}

// kindClass is what became of an action, for its colour on a page.
func kindClass(k schemas.Kind) string {
	switch kindStyle(k) {
	case red:
		return "bad"
	case yellow:
		return "held"
	case green:
		return "good"
	}
	return "other"
}

// evidence lists what a verdict rests on, the heaviest first.
func evidence(raw []byte) []string {
	var v schemas.Verdict
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	var out []string
	for _, f := range heaviest(v.Factors) {
		out = append(out, plain(strings.TrimSpace(points(f.Points)+" "+f.ID+" "+f.Observed)))
	}
	return out
}
