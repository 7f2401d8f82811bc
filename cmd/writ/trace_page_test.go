package main

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// An agent that has its text shown to an investigator: in names, reasons,
// evidence, and in the trace's own id, should a log ever hold such a one.
func TestThePageOfATraceRunsNothingAndEscapesAll(t *testing.T) {
	verdict := schemas.Marshal(schemas.Verdict{Decision: hostile, Factors: []schemas.Factor{{ID: hostile, Observed: hostile, Points: 1 << 16}}})
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	root := &schemas.Event{Seq: 1, Kind: schemas.Kind(hostile), Agent: hostile, Operation: hostile, Reason: hostile, Actor: hostile, Time: at, Trace: schemas.Trace{ID: hostile}}
	act := &schemas.Event{Seq: 2, Ref: 1, Kind: schemas.MessageHeld, Agent: hostile, To: hostile, Operation: hostile, Reason: hostile, Lock: schemas.Lock(hostile),
		Action: schemas.Action{Verb: hostile, Resource: hostile}, Verdict: verdict, Risk: 80, Time: at.Add(time.Second), Code: 423, Tokens: 5}
	raw, err := tracePage(treeOf(hostile, []*schemas.Event{root, act}))
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, tag := range []string{"<script", "<img", "<b>pass", "</td></table>", "\u202e", "\x1b", `style="`} {
		if strings.Contains(page, tag) {
			t.Errorf("the page holds %q", tag)
		}
	}
	if n := strings.Count(page, "&lt;script&gt;alert(1)"); n < 12 {
		t.Errorf("the agent's text stands on the page %d times", n)
	}
	css := page[strings.Index(page, "<style>")+len("<style>") : strings.Index(page, "</style>")]
	sum := sha256.Sum256([]byte(css))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'"
	meta := regexp.MustCompile(`http-equiv="Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(page)
	if meta == nil || strings.NewReplacer("&#39;", "'", "&#43;", "+").Replace(meta[1]) != policy {
		t.Errorf("policy %v, want %s", meta, policy)
	}
	for _, tag := range regexp.MustCompile(`<[^>]*>`).FindAllString(page[strings.Index(page, "</style>"):], -1) {
		if regexp.MustCompile(`(?i)\s(src|href|srcset|action|style|on[a-z]+)\s*=`).MatchString(tag) {
			t.Errorf("%s refers to something, or has a handler", tag)
		}
	}
}

func TestBarsLastAsLongAsWhatTheyCaused(t *testing.T) {
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	ev := func(seq, ref uint64, k schemas.Kind, ms int) *schemas.Event {
		return &schemas.Event{Seq: seq, Ref: ref, Kind: k, Agent: "ann", Time: at.Add(time.Duration(ms) * time.Millisecond), Tokens: int64(ms)}
	}
	doc := treeOf("t", []*schemas.Event{ev(1, 0, schemas.TokenIssued, 0), ev(2, 1, schemas.MessageAccepted, 100), ev(3, 2, schemas.ResponseAccepted, 300), ev(4, 1, schemas.MessageDenied, 400)})
	if doc.TookUS != 400_000 || doc.Tree[0].TookUS != 400_000 || doc.Tree[0].Children[0].TookUS != 200_000 || doc.Tokens != 800 {
		t.Errorf("%+v", doc)
	}
	raw, err := tracePage(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`x="25.000%" width="50.000%"`, `class="bad"`, `class="good"`, "200.0 ms", "800 tokens"} {
		if !strings.Contains(string(raw), part) {
			t.Errorf("the page lacks %s", part)
		}
	}
}
