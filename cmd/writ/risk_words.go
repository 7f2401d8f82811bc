package main

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// riskDoc writes empty lists as such.
type riskDoc struct {
	schemas.RiskReply
	Factors []schemas.Factor     `json:"factors"`
	History []schemas.RiskPoint  `json:"history"`
	Causes  []uint64             `json:"causes"`
	Signals []schemas.RiskSaying `json:"signals"`
	Behind  *riskCause           `json:"behind,omitempty"`
}

// riskCause is an event that is no action of the agent, and set its risk.
type riskCause struct {
	Seq    uint64       `json:"seq"`
	Time   time.Time    `json:"time"`
	Kind   schemas.Kind `json:"kind"`
	Reason string       `json:"reason"`
}

// sayings are what the evidences are to somebody who never read how they are made:
// what the agent does that is not as expected.
var sayings = map[string]string{
	"new_tool":  "uses a tool that this job never used",
	"tool":      "uses a tool that is unusual for it",
	"similar":   "uses a tool that jobs like this one rarely use",
	"bigram":    "does things in an unusual order",
	"together":  "combines tools that rarely go together",
	"repeat":    "does the same more often than usual",
	"shape":     "gives a tool other arguments than usual",
	"slot":      "acts on something it read, where that is rare",
	"unknown":   "names something that neither the task nor earlier work knows",
	"tainted":   "acts on something unknown that it read in an answer",
	"recipient": "sends to somebody unknown whom it read of in an answer",
	"unused":    "acts on something that was never acted on before",
	"displaced": "goes to somebody else than the one whom the task names",
	"domain":    "reaches a mail domain or host that it never did",
	"fresh":     "does at once what the last answer said",
	"origin":    "takes a value from where it usually doesn't",
	"intent":    "uses a tool that the task's words don't speak of",
	"outside":   "tries what its capability doesn't grant",
	"rare":      "tries, without a grant, what is rarely tried",
	"beyond":    "tries what neither its capability nor the task speaks of",
	"refusals":  "was refused several times in a row",
	"approved":  "does what a reviewer approved",
	"credit":    "names only what stands in the task",
	"rate":      "acts at another pace than usual",
	"latency":   "waits longer for answers than usual",
	"errors":    "gets more errors than usual",
	"spend":     "uses more tokens than usual",
	"slow":      "has been a little strange for long",
	"signal":    "is spoken of from outside",
}

// worthSaying is how many points an evidence needs to be put in words: below, it
// made little of the risk.
const worthSaying = 65536 / 10

// risk tells what an agent's risk is, since when, and why: what was seen, what
// was expected, and how rare that is.
func (t *terminal) risk(r schemas.RiskReply, cause *riskCause) {
	t.say("%s is at risk %s of 100%s.", r.AgentID, t.paint(riskCell(r.Risk).style, strconv.Itoa(r.Risk)), t.since(r))
	if len(r.History) > 1 {
		values := make([]int, len(r.History))
		for i, p := range r.History {
			values[i] = p.Risk
		}
		t.say("%s  %s to %s", sparkline(values), t.clock(r.History[0].Time), t.clock(r.History[len(r.History)-1].Time))
	}
	t.signals(r.Signals)
	if r.Seq == 0 {
		t.say("It has done nothing yet.")
		return
	}
	set := fmt.Sprintf("event %d", r.Seq)
	if r.Action != "" {
		set = plain(r.Action) + ", " + set
	}
	t.say("Set by %s, %s ago: decision %s.", set, span(t.now().Sub(r.Time).Round(time.Millisecond)), r.Decision)
	if cause != nil {
		t.say("Behind it: event %d, %s: %s.", cause.Seq, cause.Kind, plain(cause.Reason))
	}
	if len(r.Causes) > 0 {
		t.say("It was suspended by event %s, for which nobody has vouched: writ log shows what it was, writ resume %s --vouch SEQ --reason TEXT takes it for harmless.", seqs(r.Causes), r.AgentID)
	}
	if r.NCalibration > 0 {
		t.say("%s of harmless runs go as far; %d runs behind it.", oneIn(r.PPM), r.NCalibration)
	} else {
		t.say("No finished runs to compare with yet.")
	}
	var rows [][]cell
	for _, f := range heaviest(r.Factors) {
		said := sayings[f.ID]
		// A channel beside the score has no points.
		beside := f.ID == "approved" || f.Points == 0 && f.Bits > 0 && r.Risk >= 40 && monitor.Timed(f.ID)
		if f.ID != "base" && f.ID != "signal" && (max(f.Points, -f.Points) >= worthSaying || beside) {
			rows = append(rows, []cell{text(points(f.Points)), text(cmp.Or(said, plain(f.ID))), text(f.Observed), text(f.Expected), text(f.Support)})
		}
	}
	if len(rows) == 0 {
		if len(r.Signals) == 0 {
			t.say("Nothing in it stands out.")
		}
		return
	}
	t.table([]string{"points", "the agent", "seen", "expected", "of runs"}, rows)
	t.say("%s points in all, with what counts little.", points(r.Score))
}

// signals tells what counts of what is said from outside. It stands beside what
// the agent did, and the risk is the higher of the two.
func (t *terminal) signals(all []schemas.RiskSaying) {
	for _, s := range all {
		weight := fmt.Sprintf("weighed %d points then, %d now", s.Points, s.Now)
		if s.Points < 0 {
			weight = fmt.Sprintf("took %d points off what others say then, %d now", -s.Points, s.Now)
		}
		t.say("%s says %s: %s; it %s. Said %s ago, at %s.", plain(s.Source), plain(s.Event), plain(s.Reason), weight,
			span(t.now().Sub(s.Time).Round(time.Millisecond)), t.clock(s.Time))
	}
}

// since says from when on the risk was as serious as it is now: enough to be
// suspended, to be paused, or not to be learned from.
func (t *terminal) since(r schemas.RiskReply) string {
	for _, level := range []int{schemas.DefaultThresholds.Suspend, schemas.DefaultThresholds.Pause, 40} {
		if r.Risk < level {
			continue
		}
		i := len(r.History)
		for i > 0 && r.History[i-1].Risk >= level {
			i--
		}
		if i == len(r.History) {
			return ""
		}
		from := r.History[i].Time
		return fmt.Sprintf(", %d or more since %s (%s)", level, t.clock(from), span(t.now().Sub(from).Round(time.Second)))
	}
	return ""
}

// oneIn writes a share in millionths as people say it.
func oneIn(ppm int64) string {
	switch {
	case ppm >= 500_000:
		return "Most"
	case ppm <= 0:
		return "Fewer than one in a million"
	}
	return "One in " + strconv.FormatInt((1_000_000+ppm/2)/ppm, 10)
}
