package schemas

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden files that are missing")

// clearers takes each header's field off an event.
var clearers = map[string]func(*Event){
	"content-type":   func(e *Event) { e.ContentType = "" },
	"Writ-Trace":     func(e *Event) { e.Trace = Trace{} },
	"Writ-Operation": func(e *Event) { e.Operation = "" },
	"Writ-Action":    func(e *Event) { e.Action = Action{} },
	"Writ-To":        func(e *Event) { e.To = "" },
	"Writ-Jti":       func(e *Event) { e.JTI = "" },
	"Writ-Request":   func(e *Event) { e.Request = "" },
	"Writ-Reply":     func(e *Event) { e.Reply = "" },
	"Writ-Expires":   func(e *Event) { e.Expires = time.Time{} },
	"Writ-Msg-Id":    func(e *Event) { e.MsgID = "" },
	"Writ-Digest":    func(e *Event) { e.Digest = Digest{} },
	"Writ-Input":     func(e *Event) { e.Input = Digest{} },
	"Writ-Ref":       func(e *Event) { e.Ref = 0 },
	"Writ-Code":      func(e *Event) { e.Code = 0 },
	"Writ-Reason":    func(e *Event) { e.Reason = "" },
	"Writ-Tokens":    func(e *Event) { e.Tokens = 0 },
	"Writ-Latency":   func(e *Event) { e.Latency = 0 },
	"Writ-Lock":      func(e *Event) { e.Lock = "" },
	"Writ-Verdict":   func(e *Event) { e.Verdict, e.Risk = nil, 0 },
	"Writ-Risk":      func(e *Event) { e.Verdict, e.Risk = nil, 0 },
	"Writ-Final":     func(e *Event) { e.Final = false },
	"Writ-Actor":     func(e *Event) { e.Actor = "" },
	"Writ-Empty":     func(e *Event) {},
	"Writ-Reserve":   func(e *Event) { e.Reserve = 0 },
	"Writ-Act":       func(e *Event) { e.Act = nil },
}

// complete is an event with every field set that any kind can carry.
func complete(kind Kind) *Event {
	body := []byte("{\"a\": 1}\n\x00\xff")
	return &Event{
		Kind: kind, Agent: "analyst-7", ID: "intake-1/42", Source: "intake/1",
		Time:        time.Date(2026, 3, 1, 12, 0, 0, 42, time.UTC),
		ContentType: "application/json",
		Trace:       Trace{ID: "0af7651916cd43dd8448eb211c80319c", Span: "b7ad6b7169203331"},
		Operation:   "report-2026-q1", Action: Action{VerbRead, "data.sales_q1_2026"}, To: "warehouse",
		JTI: "j-1", Request: "00112233445566778899aabbccddeeff", Reply: "_R_.abc.def",
		Expires: time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC), MsgID: "order-1",
		Digest: Sum(body), Input: Sum([]byte("question")), Ref: 41, Code: CodeHeld, Reason: "held: é",
		Tokens: 120, Latency: 1500 * time.Microsecond, Lock: Paused,
		Verdict: []byte(`{"risk":72}`), Risk: 72, Final: true, Actor: "alice", Data: body,
	}
}

// largest is the event of a kind with all that the kind admits.
func largest(_ testing.TB, rule HeaderRule) *Event {
	e := complete(rule.Kind)
	for name, clear := range clearers {
		if !slices.Contains(rule.Must, name) && !slices.Contains(rule.May, name) {
			clear(e)
		}
	}
	return e
}

// newest is the largest of a kind with the headers that came after the first
// golden files, which never change; nil for a kind that has none of them.
func newest(t testing.TB, rule HeaderRule) *Event {
	e := largest(t, rule)
	if slices.Contains(rule.May, "Writ-Reserve") {
		e.Reserve = 2000
	}
	if slices.Contains(rule.May, "Writ-Act") {
		e.Act = []string{"planner", "orchestrator"}
	}
	if e.Reserve == 0 && e.Act == nil {
		return nil
	}
	return e
}

// smallest is the event of a kind with no more than the kind needs.
func smallest(rule HeaderRule) *Event {
	e := complete(rule.Kind)
	e.Data = nil
	for name, clear := range clearers {
		if !slices.Contains(rule.Must, name) {
			clear(e)
		}
	}
	return e
}

// wire writes an event as bytes for the golden files.
func wire(subject string, h Header, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", subject)
	for _, name := range slices.Sorted(maps.Keys(h)) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(h[name], "\n"+name+": "))
	}
	fmt.Fprintf(&b, "\n%s", body)
	return b.Bytes()
}

func unwire(t testing.TB, raw []byte) (subject string, h Header, body []byte) {
	head, body, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		t.Fatal("no empty line behind the headers")
	}
	lines := strings.Split(string(head), "\n")
	h = Header{}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		h[name] = append(h[name], value)
	}
	return lines[0], h, body
}

func TestEventsOfEveryKindHaveGoldenBytes(t *testing.T) {
	for _, rule := range HeaderRules() {
		for size, e := range map[string]*Event{"large": largest(t, rule), "small": smallest(rule), "newer": newest(t, rule)} {
			if e == nil {
				continue
			}
			t.Run(string(rule.Kind)+"/"+size, func(t *testing.T) {
				subject, h, body, err := e.Encode()
				if err != nil {
					t.Fatal(err)
				}
				got := wire(subject, h, body)
				file := filepath.Join("testdata", "events", string(rule.Kind)+"."+size)
				want, err := os.ReadFile(file)
				if errors.Is(err, os.ErrNotExist) && *update {
					want, err = got, os.WriteFile(file, got, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				back, err := Decode(unwire(t, want))
				if err != nil {
					t.Fatalf("an event of old is no longer read: %v", err)
				}
				if !reflect.DeepEqual(back, e) {
					t.Errorf("read as %+v\nwas %+v", back, e)
				}
			})
		}
	}
}

// The ledger commits to headers as DecodeSorted gives them. Whoever could have one
// left out there, or put out of order, would change it unseen.
func TestDecodeSortedGivesEveryHeaderOnceInOrder(t *testing.T) {
	files, err := filepath.Glob("testdata/events/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		subject, h, body := unwire(t, raw)
		h["Nats-Expected-Stream"] = []string{"EVENTS"}
		e, pairs, err := DecodeSorted(7, subject, h, body, nil)
		if err != nil || e.Seq != 7 {
			t.Fatal(file, e, err)
		}
		delete(h, "Nats-Expected-Stream")
		var want []HeaderPair
		for _, name := range slices.Sorted(maps.Keys(h)) {
			want = append(want, HeaderPair{name, h[name][0]})
		}
		if !slices.Equal(pairs, want) {
			t.Errorf("%s: got %v, want %v", file, pairs, want)
		}
	}
}

// Eight bytes are looked at as one: each byte must be told at each place, beside
// neighbours that differ from what is refused by one bit.
func TestHeaderValuesAreToldByteByByte(t *testing.T) {
	for _, filler := range []string{"a", " ", "~", "!", "\u0080", "é"} {
		for length := 1; length <= 20; length++ {
			for place := range length {
				for c := range 256 {
					s := "x" + strings.Repeat(filler, place) + string([]byte{byte(c)}) + strings.Repeat(filler, length-place-1) + "x"
					want := c >= 0x20 && c < 0x7f
					if got := headerValue(s); got != want {
						t.Fatalf("%q: %v", s, got)
					}
				}
			}
		}
	}
	for s, want := range map[string]bool{"": true, " a": false, "a ": false, "a": true, "12345678é": true, "éééééééé": true, "1234567\xc3": false} {
		if headerValue(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestEncodeRefusesWhatAKindLacksOrMayNotCarry(t *testing.T) {
	for _, rule := range HeaderRules() {
		for _, name := range rule.Must {
			e := smallest(rule)
			clearers[name](e)
			if _, _, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
				t.Errorf("%s without %s: %v", rule.Kind, name, err)
			}
		}
		for name := range clearers {
			if slices.Contains(rule.Must, name) || slices.Contains(rule.May, name) {
				continue
			}
			e := complete(rule.Kind)
			e.Reserve, e.Act = 2000, []string{"orchestrator"}
			for other, clear := range clearers {
				verdict := name == "Writ-Verdict" || name == "Writ-Risk"
				if other == name || verdict && (other == "Writ-Verdict" || other == "Writ-Risk") || slices.Contains(rule.Must, other) {
					continue
				}
				clear(e)
			}
			if _, _, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
				t.Errorf("%s with %s: %v", rule.Kind, name, err)
			}
		}
	}
}

// Whatever Encode lets through stands in the log for ever, and what Decode then
// refuses halts every reader.
func TestEncodeRefusesFieldsThatNoReaderWouldTake(t *testing.T) {
	cases := map[string]func(*Event){
		"unknown kind":             func(e *Event) { e.Kind = "message.forged" },
		"kind with a wildcard":     func(e *Event) { e.Kind = "message.*" },
		"agent in capitals":        func(e *Event) { e.Agent = "Analyst" },
		"agent with a dot":         func(e *Event) { e.Agent = "a.b" },
		"agent that takes a kind":  func(e *Event) { e.Agent, e.Kind = "a.message", "accepted" },
		"no agent":                 func(e *Event) { e.Agent = "" },
		"no id":                    func(e *Event) { e.ID = "" },
		"no source":                func(e *Event) { e.Source = "" },
		"no time":                  func(e *Event) { e.Time = time.Time{} },
		"year 10000":               func(e *Event) { e.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"trace in capitals":        func(e *Event) { e.Trace.ID = strings.ToUpper(e.Trace.ID) },
		"trace of zeroes":          func(e *Event) { e.Trace.ID = strings.Repeat("0", 32) },
		"span missing":             func(e *Event) { e.Trace.Span = "" },
		"operation a wildcard":     func(e *Event) { e.Operation = "*" },
		"unknown verb":             func(e *Event) { e.Action.Verb = "exec" },
		"action without verb":      func(e *Event) { e.Action.Verb = "" },
		"verb that holds a colon":  func(e *Event) { e.Action = Action{"read:x", "y"} },
		"resource with a wildcard": func(e *Event) { e.Action.Resource = "data.*" },
		"recipient in capitals":    func(e *Event) { e.To = "Warehouse" },
		"request id short":         func(e *Event) { e.Request = "00" },
		"code of two digits":       func(e *Event) { e.Code = 42 },
		"code negative":            func(e *Event) { e.Code = -400 },
		"unknown lock":             func(e *Event) { e.Lock = "frozen" },
		"risk over 100":            func(e *Event) { e.Risk = 101 },
		"risk negative":            func(e *Event) { e.Risk = -1 },
		"risk without verdict":     func(e *Event) { e.Verdict = nil },
		"reason that is not UTF-8": func(e *Event) { e.Reason = "\xff" },
	}
	for name, change := range cases {
		e := largest(t, ruleOf(MessageAccepted))
		change(e)
		if _, _, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Event){
		"tokens negative":  func(e *Event) { e.Tokens = -1 },
		"tokens over 2^53": func(e *Event) { e.Tokens = 1<<53 + 1 },
	} {
		e := largest(t, ruleOf(ResponseAccepted))
		change(e)
		if _, _, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ruleOf(kind Kind) HeaderRule {
	rules := HeaderRules()
	return rules[slices.IndexFunc(rules, func(r HeaderRule) bool { return r.Kind == kind })]
}

func TestLatencyBelowAMicrosecondIsLeftOut(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, -1, 1, 999} {
		e := largest(t, ruleOf(ResponseAccepted))
		e.Latency = d
		_, h, _, err := e.Encode()
		if err != nil || h["Writ-Latency"] != nil {
			t.Errorf("%d ns: %v, %v", d, h["Writ-Latency"], err)
		}
	}
}

func TestHeaderInjectionIsRefusedByEncode(t *testing.T) {
	fields := map[string]func(*Event, string){
		"id":           func(e *Event, v string) { e.ID = v },
		"source":       func(e *Event, v string) { e.Source = v },
		"content type": func(e *Event, v string) { e.ContentType = v },
		"jti":          func(e *Event, v string) { e.JTI = v },
		"reply":        func(e *Event, v string) { e.Reply = v },
		"message id":   func(e *Event, v string) { e.MsgID = v },
		"reason":       func(e *Event, v string) { e.Reason = v },
		"verdict":      func(e *Event, v string) { e.Verdict = []byte(v) },
		"operation":    func(e *Event, v string) { e.Operation = v },
		"recipient":    func(e *Event, v string) { e.To = v },
		"request":      func(e *Event, v string) { e.Request = v },
		"resource":     func(e *Event, v string) { e.Action.Resource = v },
		"trace":        func(e *Event, v string) { e.Trace.ID = v },
	}
	values := map[string]string{
		"CR": "a\rb", "LF": "a\nNats-Rollup: all", "CRLF": "a\r\nWrit-Lock: active", "end of block": "a\r\n\r\nbody",
		"leading space": " a", "trailing space": "a ", "NUL": "a\x00b", "tab": "\ta", "delete": "a\x7f", "escape": "a\x1b[2J", "space alone": " ",
	}
	for field, set := range fields {
		for what, v := range values {
			e := largest(t, ruleOf(MessageAccepted))
			set(e, v)
			if _, h, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
				t.Errorf("%s in %s: %v, %v", what, field, err, h)
			}
		}
	}
	e := largest(t, ruleOf(AgentKilled))
	e.Actor = "eve\r\nWrit-Actor: alice"
	if _, _, _, err := e.Encode(); !errors.Is(err, ErrEvent) {
		t.Errorf("actor: %v", err)
	}
}

func TestDecodeRefusesForeignHeaders(t *testing.T) {
	base := func() (string, Header, []byte) {
		subject, h, body, err := largest(t, ruleOf(MessageAccepted)).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return subject, h, body
	}
	subject, h, body := base()
	h["Nats-Sequence"], h["Nats-Expected-Last-Sequence"] = []string{"7"}, []string{"6"}
	if _, err := Decode(subject, h, body); err != nil {
		t.Errorf("headers that the server adds: %v", err)
	}
	cases := map[string]func(Header){
		"lower case":               func(h Header) { h["writ-lock"] = []string{"killed"} },
		"upper case":               func(h Header) { h["WRIT-LOCK"] = []string{"killed"} },
		"folded key":               func(h Header) { h["Writ-Loc\u212a"] = []string{"killed"} },
		"leading space in the key": func(h Header) { h[" Writ-Lock"] = []string{"killed"} },
		"status":                   func(h Header) { h["Status"] = []string{"409"} },
		"description":              func(h Header) { h["Description"] = []string{"Consumer Deleted"} },
		"lower-case nats":          func(h Header) { h["nats-rollup"] = []string{"all"} },
		"unknown of ours":          func(h Header) { h["Writ-Admin"] = []string{"1"} },
		"unknown of CloudEvents":   func(h Header) { h["ce-subject"] = []string{"x"} },
		"twice":                    func(h Header) { h["Writ-To"] = []string{"warehouse", "eve"} },
		"no value":                 func(h Header) { h["Writ-To"] = nil },
		"empty value":              func(h Header) { h["Writ-To"] = []string{""} },
		"other type":               func(h Header) { h["ce-type"] = []string{"sh.writ.message.held"} },
		"other version":            func(h Header) { h["ce-specversion"] = []string{"0.3"} },
		"no version":               func(h Header) { delete(h, "ce-specversion") },
		"LF in the id":             func(h Header) { h["ce-id"] = []string{"a\nb"} },
		"time with an offset":      func(h Header) { h["ce-time"] = []string{"2026-03-01T12:00:00.000000042+00:00"} },
		"time without nanoseconds": func(h Header) { h["ce-time"] = []string{"2026-03-01T12:00:00Z"} },
		"reference with a zero":    func(h Header) { h["Writ-Ref"] = []string{"041"} },
		"reference signed":         func(h Header) { h["Writ-Ref"] = []string{"+41"} },
		"reference over 64 bits":   func(h Header) { h["Writ-Ref"] = []string{"18446744073709551616"} },
		"digest in capitals":       func(h Header) { h["Writ-Digest"] = []string{strings.ToUpper(h["Writ-Digest"][0])} },
		"verdict without risk":     func(h Header) { delete(h, "Writ-Risk") },
		"risk without verdict":     func(h Header) { delete(h, "Writ-Verdict") },
		"flag of zero":             func(h Header) { h["Writ-Empty"] = []string{"0"} },
		"empty flag with a body":   func(h Header) { h["Writ-Empty"] = []string{"1"} },
	}
	for name, change := range cases {
		subject, h, body := base()
		change(h)
		if e, err := Decode(subject, h, body); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	subject, h, _ = base()
	if _, err := Decode(subject, h, nil); !errors.Is(err, ErrEvent) {
		t.Errorf("an empty body without flag: %v", err)
	}
	_, h, body = base()
	for _, subject := range []string{"", "ev", "ev.analyst-7", "ev.*.message.accepted", "ev.analyst-7.message.>", "ev.Analyst-7.message.accepted",
		"ev._x.message.accepted", "writ.out.analyst-7.message.accepted", "ev.analyst-7.message.held", "ev.analyst-7.message.accepted.x"} {
		if e, err := Decode(subject, h, body); !errors.Is(err, ErrEvent) {
			t.Errorf("subject %q: %+v, %v", subject, e, err)
		}
	}
}

// Who may read the log could have it stored once more, in another's name or at
// another time. Read one by one, a message bears the marks of its place once;
// a copy bears those of its original.
func TestACopyOutOfTheLogIsNoEvent(t *testing.T) {
	e := largest(t, ruleOf(AgentKilled))
	subject, h, body, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const seq = 41
	marked := func(of string, sequences ...string) Header {
		m := maps.Clone(h)
		m["Nats-Msg-Id"] = []string{e.ID}
		m["Nats-Stream"] = slices.Repeat([]string{Stream}, len(sequences))
		m["Nats-Sequence"] = sequences
		m["Nats-Subject"] = slices.Repeat([]string{of}, len(sequences))
		return m
	}
	for _, good := range []Header{h, marked(subject, "41")} {
		if got, err := DecodeAt(seq, subject, good, body); err != nil || got.Seq != seq {
			t.Errorf("%v: %+v, %v", good, got, err)
		}
	}
	foreign := marked(subject, "41")
	foreign["Nats-Stream"] = []string{"KV_MEMORY"}
	for name, copied := range map[string]Header{
		"of another's event":         marked(EventSubject("other", AgentKilled), "41"),
		"of an earlier event":        marked(subject, "40"),
		"of itself, read one by one": marked(subject, "40", "41"),
		"the other way round":        marked(subject, "41", "40"),
		"out of another stream":      foreign,
		"with an empty list":         marked(subject),
	} {
		if got, err := DecodeAt(seq, subject, copied, body); !errors.Is(err, ErrEvent) {
			t.Errorf("a copy %s: %+v, %v", name, got, err)
		}
	}
}

func TestAnEmptyBodyStandsAsOneFlaggedByte(t *testing.T) {
	e := largest(t, ruleOf(MessageAccepted))
	e.Data = nil
	subject, h, body, err := e.Encode()
	if err != nil || string(body) != "\x00" || !slices.Equal(h["Writ-Empty"], []string{"1"}) {
		t.Fatalf("%q %v %v", body, h, err)
	}
	if back, err := Decode(subject, h, body); err != nil || len(back.Data) != 0 {
		t.Errorf("%+v, %v", back, err)
	}
	e.Data = []byte{0} // and one true zero byte stays one
	subject, h, body, err = e.Encode()
	if err != nil || h["Writ-Empty"] != nil {
		t.Fatalf("%v %v", h, err)
	}
	if back, err := Decode(subject, h, body); err != nil || len(back.Data) != 1 {
		t.Errorf("%+v, %v", back, err)
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/events/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden events", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !bytes.Contains(raw, []byte("\n\n")) {
			return
		}
		subject, h, body := unwire(t, raw)
		e, err := Decode(subject, h, body)
		if err != nil {
			if !errors.Is(err, ErrEvent) {
				t.Fatalf("%v", err)
			}
			return
		}
		subject2, h2, body2, err := e.Encode()
		if err != nil {
			t.Fatalf("read, and can't be written: %v\n%q", err, raw)
		}
		maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
		if subject2 != subject || !reflect.DeepEqual(h2, h) || !bytes.Equal(body2, body) {
			t.Fatalf("no fixpoint:\n%q\n%q", wire(subject, h, body), wire(subject2, h2, body2))
		}
	})
}

// What Encode lets through, Decode takes, and understands as it was meant.
func FuzzEncode(f *testing.F) {
	e := complete(MessageAccepted)
	f.Add(uint8(0), e.Agent, e.ID, e.Operation, "read", "data.x", e.To, e.Request, e.Reason, e.MsgID, string(e.Verdict), "paused", e.Trace.ID, e.Trace.Span, 423, int64(1500), int64(120), 72, e.Time.UnixNano(), []byte("x"))
	f.Fuzz(func(t *testing.T, kind uint8, agent, id, operation, verb, resource, to, request, reason, msgID, verdict, lock, trace, span string,
		code int, latency, tokens int64, risk int, nano int64, body []byte) {
		rules := HeaderRules()
		e := largest(t, rules[int(kind)%len(rules)])
		keep := *e
		e.Agent, e.ID, e.Data, e.Time = agent, id, body, time.Unix(nano, nano).UTC()
		if keep.Operation != "" {
			e.Operation = operation
		}
		if keep.Action != (Action{}) {
			e.Action = Action{verb, resource}
		}
		if keep.To != "" {
			e.To = to
		}
		if keep.Request != "" {
			e.Request = request
		}
		if keep.Trace != (Trace{}) {
			e.Trace = Trace{trace, span}
		}
		if keep.Latency != 0 {
			e.Latency = time.Duration(latency).Truncate(time.Microsecond)
		}
		if keep.Tokens != 0 {
			e.Tokens = tokens
		}
		if keep.Verdict != nil {
			e.Verdict, e.Risk = []byte(verdict), risk
		}
		if keep.MsgID != "" {
			e.MsgID = msgID
		}
		if keep.Reason != "" {
			e.Reason = reason
		}
		if keep.Code != 0 {
			e.Code = code
		}
		if keep.Lock != "" {
			e.Lock = Lock(lock)
		}
		subject, h, body, err := e.Encode()
		if err != nil {
			if !errors.Is(err, ErrEvent) {
				t.Fatal(err)
			}
			return
		}
		back, err := Decode(subject, h, body)
		if err != nil {
			t.Fatalf("written, and can't be read: %v\n%q", err, wire(subject, h, body))
		}
		if len(e.Data) == 0 {
			e.Data = nil
		}
		if len(e.Verdict) == 0 {
			e.Verdict = nil
		}
		e.Latency = max(e.Latency, 0)
		if !reflect.DeepEqual(back, e) {
			t.Fatalf("read as %+v\nwas %+v", back, e)
		}
	})
}

func FuzzHeaderText(f *testing.F) {
	f.Add(" a\r\nb\x00 ")
	f.Add(strings.Repeat("é", 600) + "\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := HeaderText(s)
		if !headerValue(got) {
			t.Fatalf("%q is made %q", s, got)
		}
		if HeaderText(got) != got && len(got) <= 1000 {
			t.Fatalf("no fixpoint: %q, %q", got, HeaderText(got))
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	e := largest(b, ruleOf(MessageAccepted))
	subject, h, body, err := e.Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, _, err := e.Encode(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(subject, h, body); err != nil {
				b.Fatal(err)
			}
		}
	})
}
