package main

import (
	"crypto/sha256"
	"encoding/base64"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

const hostile = `</td></table><script>alert(1)</script><img src=x onerror=alert(2)>" style="x` + "\u202e\x1b[31m"

func hostileEvidence() *proof.Evidence {
	e := &schemas.Event{Kind: schemas.MessageAccepted, Agent: hostile, Operation: hostile, Reason: hostile, Actor: hostile, To: hostile,
		Action: schemas.Action{Verb: schemas.VerbRead, Resource: hostile}, Data: []byte(hostile), Verdict: []byte(`{"decision":"<b>pass"}`), Seq: 1}
	return &proof.Evidence{Entries: []proof.Entry{
		{Event: e, Answered: 9, Record: proof.Record{Time: time.Unix(1, 0).UnixNano()}},
		{Redacted: &proof.Redaction{Authority: hostile, Reason: hostile}},
		{Redaction: &proof.Redaction{Authority: hostile, Reason: hostile}},
		{Gap: &proof.Gap{First: 2, Last: 3, Actor: hostile, Reason: hostile}},
	}}
}

func TestThePageOfABundleRunsNothingAndEscapesAll(t *testing.T) {
	raw, err := bundlePage(bundleDoc{OK: true, Size: 4, Records: 4, Origin: hostile, Checkpoint: hostile, Error: hostile}, hostileEvidence())
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, tag := range []string{"<script", "<img", "<b>", "</td></table>", "\u202e", "\x1b"} {
		if strings.Contains(page, tag) {
			t.Errorf("the page holds %q", tag)
		}
	}
	if n := strings.Count(page, "&lt;script&gt;alert(1)"); n < 8 {
		t.Errorf("the agent's text stands on the page %d times", n)
	}
	for _, want := range []string{"redacted, authorised", "the log lost 2 to 3", "answered by event 9", "&lt;b&gt;pass, risk 0 of 100"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	_, style, _ := strings.Cut(page, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	csp := "default-src 'none'; style-src 'sha256-" + strings.ReplaceAll(base64.StdEncoding.EncodeToString(sum[:]), "+", "&#43;") + "'; base-uri 'none'; form-action 'none'"
	if !strings.Contains(page, csp) {
		t.Errorf("the page's policy does not allow its own style alone; want %s", csp)
	}
	if strings.Contains(page, "style=\"") || strings.Contains(page, "http:") || strings.Contains(page, "https:") || strings.Contains(page, "src=x>") {
		t.Error("the page loads something, or bears attributes from outside")
	}
}

func TestThePageOfARefusedBundleSaysWhyAndNothingElse(t *testing.T) {
	raw, err := bundlePage(bundleDoc{Error: "sequence 7: " + hostile, FirstBadSeq: 7}, hostileEvidence())
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	if !strings.Contains(page, "Refused") || !strings.Contains(page, "First bad event: 7") || strings.Contains(page, "<table") || strings.Contains(page, "<script") {
		t.Errorf("%s", page)
	}
}

func TestAPageIsBounded(t *testing.T) {
	ev := &proof.Evidence{Entries: make([]proof.Entry, pageRows+3)}
	for i := range ev.Entries {
		ev.Entries[i].Event = &schemas.Event{Kind: schemas.AgentKilled, Agent: "a", Data: []byte(strings.Repeat("ä", pageBytes))}
	}
	rows, left := bundleRows(ev.Entries)
	if len(rows) != pageRows || left != 3 {
		t.Errorf("%d rows, %d left", len(rows), left)
	}
	for body, want := range map[string]string{"": "", "short": "short", "\xff\xfe": "2 bytes, no text",
		strings.Repeat("ä", 200): strings.Repeat("ä", 150) + "… (400 bytes)", "x" + strings.Repeat("ä", 200): "x" + strings.Repeat("ä", 149) + "… (401 bytes)"} {
		if got := excerpt([]byte(body)); got != want {
			t.Errorf("%.20q: %q", body, got)
		}
	}
}

func TestThePageSumsUpWhoDidWhat(t *testing.T) {
	ev := func(agent string, k schemas.Kind, risk int) proof.Entry {
		return proof.Entry{Event: &schemas.Event{Kind: k, Agent: agent, Risk: risk}}
	}
	grant := ev("ann", schemas.TokenIssued, 0)
	grant.Event.Data = schemas.Marshal(schemas.Grant{JTI: "j", IssuedBy: "ada", Task: "sum the sales"})
	sums := bundleSums([]proof.Entry{grant, ev("ann", schemas.MessageAccepted, 12), ev("lab", schemas.ResponseAccepted, 0), ev("ann", schemas.MessageHeld, 80),
		ev("ann", schemas.MessageCancelled, 0), ev("ann", schemas.MessageDenied, 95), ev(schemas.Fleet, schemas.ReleaseMark, 0), grant, {}})
	want := bundleSum{Who: "ann", Behalf: []string{"issued by ada: sum the sales"}, Accepted: 1, Held: 1, Denied: 1, Cancelled: 1, Others: 2, Risk: 95}
	if len(sums) != 2 || !reflect.DeepEqual(*sums[0], want) || sums[1].Who != "lab" || sums[1].Answers != 1 {
		t.Errorf("%+v", sums[0])
	}
}
