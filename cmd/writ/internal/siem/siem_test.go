package siem

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

var update = flag.Bool("update", false, "write the golden files anew")

// samples are events of every kind, with all that a record can hold.
func samples() []*schemas.Event {
	at := time.Date(2026, 3, 2, 9, 0, 0, 123456789, time.UTC)
	digest := schemas.Sum([]byte("body"))
	trace := schemas.Trace{ID: "4bf92f3577b34da6a3ce929d0e0e4736", Span: "0000000000000001"}
	read := schemas.Action{Verb: "read", Resource: "data.sales"}
	verdict := func(risk int, decision string) []byte {
		return schemas.Marshal(schemas.Verdict{Risk: risk, Decision: decision, Model: "m"})
	}
	grant := schemas.Grant{JTI: "j1", Agent: "analyst-7", Operation: "q1", Scope: []string{"call:pandas", "read:data.sales"}, Token: "never to be shown"}
	events := []*schemas.Event{
		{Kind: schemas.PolicyApplied, Agent: schemas.Fleet, Actor: "ada", Reason: "writ apply"},
		{Kind: schemas.AgentDeclared, Agent: "analyst-7", Actor: "ada"},
		{Kind: schemas.AgentEnrolled, Agent: "analyst-7", Actor: "ada"},
		{Kind: schemas.TokenIssued, Agent: "analyst-7", Operation: "q1", JTI: "j1", Actor: "ada", Trace: trace, Data: schemas.Marshal(grant)},
		{Kind: schemas.MessageAccepted, Agent: "analyst-7", Operation: "q1", JTI: "j1", Action: read, To: "warehouse", Trace: trace, Digest: digest, Verdict: verdict(12, "pass"), Risk: 12},
		{Kind: schemas.ResponseAccepted, Agent: "warehouse", Operation: "q1", Action: read, To: "analyst-7", Ref: 5, Trace: trace, Digest: digest, Latency: 3 * time.Millisecond, Tokens: 40, Final: true},
		{Kind: schemas.MessageDenied, Agent: "analyst-7", Operation: "q1", JTI: "j1", Action: schemas.Action{Verb: "call", Resource: "bash"}, Trace: trace, Digest: digest, Code: 403, Reason: "tool bash is forbidden", Verdict: verdict(50, "pass"), Risk: 50},
		{Kind: schemas.MessageHeld, Agent: "analyst-7", Operation: "q1", JTI: "j1", Action: schemas.Action{Verb: "send", Resource: "writer-2"}, To: "writer-2", Trace: trace, Digest: digest, Code: 423, Reason: "risk 80: held for review, and the agent is paused", Verdict: verdict(80, "pause"), Risk: 80, Lock: schemas.Paused},
		{Kind: schemas.MessageHeld, Agent: "analyst-7", Operation: "q1", JTI: "j1", Action: schemas.Action{Verb: "memory", Resource: "put.notes"}, To: "memory", Trace: trace, Digest: digest, Code: 423, Reason: "the agent is paused; a reviewer decides"},
		{Kind: schemas.ReviewRequested, Agent: "analyst-7", Ref: 8},
		{Kind: schemas.ReviewApproved, Agent: "analyst-7", Ref: 8, Actor: "ada", Reason: "known"},
		{Kind: schemas.ReviewDenied, Agent: "analyst-7", Ref: 9, Actor: "ada", Reason: "not known"},
		{Kind: schemas.MessageCancelled, Agent: "analyst-7", Operation: "q1", Action: schemas.Action{Verb: "memory", Resource: "put.notes"}, To: "memory", Trace: trace, Ref: 9, Code: 403, Reason: "a reviewer denied it: not known"},
		{Kind: schemas.MessageExpired, Agent: "analyst-7", Operation: "q1", Action: read, To: "warehouse", Trace: trace, Ref: 5, Code: 504, Reason: "no answer"},
		{Kind: schemas.ResponseHeld, Agent: "writer-2", Operation: "q1", Action: schemas.Action{Verb: "ask", Resource: "writer-2"}, To: "analyst-7", Ref: 5, Trace: trace, Digest: digest},
		{Kind: schemas.ResponseDenied, Agent: "writer-2", Digest: digest, Code: 404, Reason: "it answers nothing"},
		{Kind: schemas.AgentViolation, Agent: "analyst-7", Data: []byte(`{"subject":"writ.in.x","what":"publish","count":1}`)},
		{Kind: schemas.RiskChanged, Agent: "analyst-7", Ref: 17, Verdict: verdict(95, "suspend"), Risk: 95, Lock: schemas.Suspended, Reason: "risk 95"},
		{Kind: schemas.AgentPaused, Agent: "analyst-7", Actor: "ada", Reason: "a look"},
		{Kind: schemas.AgentResumed, Agent: "analyst-7", Actor: "ada", Reason: "fine"},
		{Kind: schemas.AgentSuspended, Agent: "analyst-7", Actor: "ada", Reason: "odd"},
		{Kind: schemas.AgentKilled, Agent: "analyst-7", Actor: "ada", Reason: "hijacked"},
		{Kind: schemas.TokenRevoked, Agent: "analyst-7", JTI: "j1", Reason: "beyond the ceiling"},
		{Kind: schemas.OperationEnded, Agent: "analyst-7", Operation: "q1", JTI: "j1", Reason: "given up", Trace: trace},
		{Kind: schemas.AgentRemoved, Agent: "analyst-7", Actor: "ada"},
		{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: 24},
		{Kind: schemas.ReviewEndorsed, Agent: "analyst-7", Ref: 8, Actor: "ben"},
		{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Actor: "ada", Reason: "fire"},
		{Kind: schemas.PolicyLifted, Agent: schemas.Fleet, Actor: "ada", Reason: "a drill"},
		{Kind: schemas.AgentInvited, Agent: "analyst-7", JTI: "i1", Actor: "ada"},
		{Kind: schemas.AgentCertified, Agent: "analyst-7", Actor: "analyst-7"},
		{Kind: schemas.LedgerAlarm, Agent: schemas.Fleet, Reason: "a witness has seen another history"},
		{Kind: schemas.RiskSignal, Agent: "analyst-7", Actor: "edr", Reason: "malware"},
		{Kind: schemas.PolicyRotated, Agent: schemas.Fleet, Actor: "ada", Reason: "each quarter"},
		{Kind: schemas.AgentWarranted, Agent: "analyst-7", Actor: "ada", Reason: "in case"},
		{Kind: schemas.AgentRenewed, Agent: "analyst-7", Expires: at.Add(24 * time.Hour), Actor: "analyst-7"},
		{Kind: schemas.ReviewVouched, Agent: "analyst-7", Ref: 9, Actor: "ada", Reason: "known", Action: schemas.Action{Verb: "call", Resource: "mail"}, Digest: schemas.Sum([]byte("x"))},
	}
	for i, e := range events {
		e.Seq, e.ID, e.Time = uint64(i+1), fmt.Sprintf("id-%d", i+1), at.Add(time.Duration(i)*time.Second)
	}
	return events
}

func TestGoldenRecords(t *testing.T) {
	kinds := map[schemas.Kind]bool{}
	var ocsf, cef bytes.Buffer
	for _, e := range samples() {
		kinds[e.Kind] = true
		if !Exported(e) {
			continue
		}
		line, err := OCSF(e, "what it is about", "v0.1.0")
		if err != nil {
			t.Fatal(err)
		}
		ocsf.Write(append(line, '\n'))
		cef.Write(append(CEF(e, "what it is about", "v0.1.0"), '\n'))
	}
	for _, k := range schemas.Kinds() {
		if !kinds[k] {
			t.Errorf("there is no sample of %s", k)
		}
	}
	for name, got := range map[string][]byte{"events.ocsf": ocsf.Bytes(), "events.cef": cef.Bytes()} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is no longer what it was:\n%s", name, got)
		}
		if bytes.Contains(got, []byte("never to be shown")) {
			t.Errorf("%s holds a token", name)
		}
	}
}

// required are the attributes that OCSF 1.3.0 demands of each class, beyond
// those of every event, with those of the objects in them. A | means that one of
// them is enough.
var required = map[int][]string{
	0: {"activity_id", "category_uid", "class_uid", "severity_id", "time", "type_uid", "metadata.version", "metadata.product.vendor_name",
		"metadata.product.name|metadata.product.uid"},
	3001: {"user.name|user.uid"},
	3003: {"user.name|user.uid", "privileges|group"},
	3004: {"entity.name|entity.uid"},
	2004: {"finding_info.title", "finding_info.uid"},
	6003: {"actor.user|actor.session|actor.process", "api.operation", "src_endpoint.name|src_endpoint.ip|src_endpoint.uid"},
}

// activities are those that OCSF names in each class; 0 and 99 are in all.
var activities = map[int]int{3001: 9, 3003: 2, 3004: 4, 2004: 3, 6003: 4}

func has(doc any, path string) bool {
	for _, key := range strings.Split(path, ".") {
		m, ok := doc.(map[string]any)
		if !ok || m[key] == nil || m[key] == "" {
			return false
		}
		doc = m[key]
	}
	return true
}

func TestRecordsHaveWhatTheirClassDemands(t *testing.T) {
	seen := map[int]bool{}
	for _, e := range samples() {
		if !Exported(e) {
			continue
		}
		line, err := OCSF(e, "m", "v0")
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(line, &doc); err != nil {
			t.Fatal(err)
		}
		class, activity := int(doc["class_uid"].(float64)), int(doc["activity_id"].(float64))
		seen[class] = true
		if required[class] == nil {
			t.Fatalf("%s has class %d", e.Kind, class)
		}
		for _, path := range append(required[0], required[class]...) {
			found := false
			for _, one := range strings.Split(path, "|") {
				found = found || has(doc, one)
			}
			if !found {
				t.Errorf("%s, class %d, lacks %s: %s", e.Kind, class, path, line)
			}
		}
		severity := int(doc["severity_id"].(float64))
		if int(doc["type_uid"].(float64)) != class*100+activity || int(doc["category_uid"].(float64)) != class/1000 ||
			activity > activities[class] && activity != other || activity < 1 || severity < 1 || severity > 5 ||
			int64(doc["time"].(float64)) != e.Time.UnixMilli() {
			t.Errorf("%s: %s", e.Kind, line)
		}
	}
	if len(seen) != len(required)-1 {
		t.Errorf("classes %v", seen)
	}
}

// parseCEF is a reader as strict as a good one: seven fields at unescaped bars,
// then keys in front of unescaped equals signs.
func parseCEF(t *testing.T, line string) (head []string, ext map[string]string) {
	t.Helper()
	unescape := func(s string) string {
		return strings.NewReplacer(`\\`, `\`, `\|`, `|`, `\=`, `=`, `\n`, "\n", `\r`, "\r").Replace(s)
	}
	unescaped := func(s string, sep byte, from int) int {
		for i := from; i < len(s); i++ {
			if s[i] == '\\' {
				i++
			} else if s[i] == sep {
				return i
			}
		}
		return -1
	}
	rest := line
	for range 7 {
		at := unescaped(rest, '|', 0)
		if at < 0 {
			t.Fatalf("%q has %d fields", line, len(head))
		}
		head = append(head, unescape(rest[:at]))
		rest = rest[at+1:]
	}
	ext = map[string]string{}
	for rest != "" {
		eq := unescaped(rest, '=', 0)
		if eq < 0 {
			t.Fatalf("%q: no key in %q", line, rest)
		}
		key, value := rest[:eq], rest[eq+1:]
		rest = ""
		if next := unescaped(value, '=', 0); next >= 0 {
			cut := strings.LastIndexByte(value[:next], ' ')
			value, rest = value[:cut], value[cut+1:]
		}
		if _, twice := ext[key]; twice {
			t.Fatalf("%q: %s twice", line, key)
		}
		ext[key] = unescape(value)
	}
	return head, ext
}

// An agent that wants to end a field, a record, or to write one of its own:
// with bars, equals signs, backslashes, line ends of every sort, and what looks
// like a record.
func TestNothingInAValueEndsAFieldOrARecord(t *testing.T) {
	for _, attack := range []string{
		`x outcome=Success suser=ceo`, `x\`, `\`, `\\`, `a=b`, `a\=b cs3=killed`, "x\nCEF:0|Writ|Writ|1|agent.resumed|x|1|suser=ceo", "x\r\ny", "\n", "=", "|", `\|`, `\n`,
		"x\u2028CEF:0|", "x\u2029y", "x\u0085y", "x\x00y", "x\x1b[2Jy", "x\u202ey", "\xff\xfe", `","class_uid":1,"x":"`, `</script>`, "x\vy\fz",
	} {
		e := &schemas.Event{Seq: 9, ID: attack, Kind: schemas.MessageHeld, Agent: attack, Actor: attack, To: attack, Operation: attack, Reason: attack, JTI: attack,
			Action: schemas.Action{Verb: attack, Resource: attack}, Trace: schemas.Trace{ID: attack}, Time: time.Unix(1, 0), Lock: schemas.Lock(attack),
			Verdict: schemas.Marshal(schemas.Verdict{Decision: attack})}
		line := string(CEF(e, attack, attack))
		if strings.ContainsAny(line, "\n\r\x00\x1b\u2028\u2029\u0085\u202e\v\f") {
			t.Errorf("%q: the line is more than a line: %q", attack, line)
		}
		head, ext := parseCEF(t, line)
		if head[0] != "CEF:0" || head[1] != "Writ" || head[4] != string(e.Kind) || len(ext) != 20 {
			t.Errorf("%q: %q %d %v", attack, head, len(ext), ext)
		}
		plain := attack != strings.ToValidUTF8(attack, "") || strings.ContainsAny(attack, "\x00\x1b\u2028\u2029\u0085\u202e\v\f")
		if !plain && (ext["suser"] != attack || ext["reason"] != attack || ext["cs3"] != attack || ext["msg"] != attack) {
			t.Errorf("%q: came out as %q", attack, ext)
		}
		if strings.Contains(attack, "outcome=") && ext["outcome"] != "held for review" {
			t.Errorf("%q: outcome %q", attack, ext["outcome"])
		}
		record, err := OCSF(e, attack, attack)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(record, "\n\r\x00\x1b\u2028\u2029") {
			t.Errorf("%q: the record is more than a line: %q", attack, record)
		}
		var doc map[string]any
		if err := json.Unmarshal(record, &doc); err != nil || doc["class_uid"] != float64(2004) {
			t.Errorf("%q: %v %s", attack, err, record)
		}
	}
}

func FuzzCEF(f *testing.F) {
	f.Add("a=b|c\\", "x\ny")
	f.Fuzz(func(t *testing.T, a, b string) {
		e := &schemas.Event{Seq: 1, Kind: schemas.AgentPaused, Agent: "x" + a, Actor: "x" + b, Reason: "x" + a + b, Time: time.Unix(1, 0)}
		line := string(CEF(e, "m"+b, "v"))
		if strings.ContainsAny(line, "\n\r") {
			t.Fatalf("%q", line)
		}
		if _, ext := parseCEF(t, line); len(ext) != 8 {
			t.Fatalf("%q: %v", line, ext)
		}
	})
}
