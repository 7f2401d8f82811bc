package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

func TestEveryEvidenceHasWords(t *testing.T) {
	for _, id := range monitor.Evidences() {
		if sayings[id] == "" {
			t.Errorf("no words for %s", id)
		}
	}
}

// An operator who is woken needs what was seen, what was expected, how rare it
// is and since when.
func TestRiskIsToldInWords(t *testing.T) {
	now := time.Now()
	var b bytes.Buffer
	term := newTerminal(&b, &b)
	at := func(ago time.Duration, risk int) schemas.RiskPoint {
		return schemas.RiskPoint{Time: now.Add(-ago), Risk: risk}
	}
	r := schemas.RiskReply{AgentID: "shop", Risk: 85, Seq: 7, Time: now, Action: "call:pay",
		Verdict: schemas.Verdict{PPM: 2500, NCalibration: 90, Score: 3 << 16, Decision: schemas.Pause, Factors: []schemas.Factor{
			{ID: "base", Points: -4 << 16}, {ID: "recipient", Points: 1 << 16, Observed: "to mallory", Expected: "a value from the task", Support: 12},
			{ID: "tool", Points: 10, Observed: "call:pay"}}},
		History: []schemas.RiskPoint{at(time.Hour, 80), at(50*time.Minute, 10), at(3*time.Minute, 72), at(0, 85)}}
	r.Signals = []schemas.RiskSaying{{Source: "edr", Event: "malware", Reason: "dropper found", Points: 95, Now: 85, Time: now.Add(-90 * time.Second)}}
	term.risk(r, &riskCause{6, now, schemas.AgentViolation, "the server refused to let it publish out.x.call.bash"})
	for _, want := range []string{"shop is at risk 85 of 100, 70 or more since ", "One in 400 of harmless runs", "sends to somebody unknown", "to mallory", "a value from the task",
		"edr says malware: dropper found; it weighed 95 points then, 85 now. Said 1 min 30 s ago, at " + term.clock(now.Add(-90*time.Second)),
		"Behind it: event 6, agent.violation: the server refused to let it publish out.x.call.bash."} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "unusual for it") {
		t.Errorf("what counts little is said:\n%s", b.String())
	}
	if got := term.since(r); !strings.Contains(got, term.clock(r.History[2].Time)) {
		t.Errorf("since %q, want the time at which it last passed 70", got)
	}
	for ppm, want := range map[int64]string{0: "Fewer than one in a million", 20_000: "One in 50", 900_000: "Most"} {
		if got := oneIn(ppm); got != want {
			t.Errorf("%d: %q, want %q", ppm, got, want)
		}
	}
}

func TestEmptyListsOfARiskAreWritten(t *testing.T) {
	raw, err := json.Marshal(riskDoc{schemas.RiskReply{AgentID: "a"}, list[schemas.Factor](nil), list[schemas.RiskPoint](nil), list[uint64](nil), list[schemas.RiskSaying](nil), nil})
	if err != nil || !strings.Contains(string(raw), `"factors":[]`) || !strings.Contains(string(raw), `"history":[]`) || !strings.Contains(string(raw), `"causes":[]`) {
		t.Errorf("%s, %v", raw, err)
	}
}
