package schemas

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrEvent is matched by every error of the event codec.
var ErrEvent = errors.New("invalid event")

func eventError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrEvent}, args...)...)
}

const (
	typePrefix = "sh.writ."
	emptyBody  = "\x00"
)

// A Header is a NATS header block: case-sensitive keys.
type Header map[string][]string

// fieldNames are the only names that are read and written.
var fieldNames = [...]struct {
	name string
	bit  field
}{
	{"content-type", fContentType}, {"Writ-Trace", fTrace}, {"Writ-Operation", fOperation},
	{"Writ-Action", fAction}, {"Writ-To", fTo}, {"Writ-Jti", fJTI}, {"Writ-Request", fRequest},
	{"Writ-Reply", fReply}, {"Writ-Expires", fExpires}, {"Writ-Msg-Id", fMsgID},
	{"Writ-Digest", fDigest}, {"Writ-Ref", fRef}, {"Writ-Code", fCode}, {"Writ-Reason", fReason},
	{"Writ-Tokens", fTokens}, {"Writ-Lock", fLock}, {"Writ-Verdict", fVerdict},
	{"Writ-Final", fFinal}, {"Writ-Actor", fActor}, {"Writ-Empty", fEmpty},
	{"Writ-Input", fInput}, {"Writ-Latency", fLatency},
	{"Writ-Risk", fRisk}, {"Writ-Reserve", fReserve}, {"Writ-Act", fAct},
}

// envelopeNames are those of CloudEvents, which every event has.
var envelopeNames = [...]string{"ce-specversion", "ce-type", "ce-source", "ce-id", "ce-time"}

// headerNames are all names that an event's headers can have, in byte order.
var headerNames = func() (names [len(fieldNames) + len(envelopeNames)]string) {
	n := copy(names[:], envelopeNames[:])
	for i, f := range fieldNames {
		names[n+i] = f.name
	}
	slices.Sort(names[:])
	return names
}()

// A headerPlace is where a name stands among headerNames, and the field that it
// is of; none where it is of the envelope.
type headerPlace struct {
	bit  field
	rank uint8
}

var placeByName = func() map[string]headerPlace {
	m := make(map[string]headerPlace, len(headerNames))
	for rank, name := range headerNames {
		m[name] = headerPlace{rank: uint8(rank)}
	}
	for _, f := range fieldNames {
		m[f.name] = headerPlace{bit: f.bit, rank: m[f.name].rank}
	}
	return m
}()

var nameByBit = func() (names [32]string) {
	for _, f := range fieldNames {
		names[bits.TrailingZeros32(uint32(f.bit))] = f.name
	}
	return names
}()

func fieldName(bit field) string { return nameByBit[bits.TrailingZeros32(uint32(bit))] }

// Encode gives the event's subject, headers and body on the wire. It fails
// where a field is malformed, missing or foreign to the kind: such an event
// would halt every reader of the log.
func (e *Event) Encode() (subject string, h Header, body []byte, err error) {
	sh, ok := kinds[e.Kind]
	if !ok {
		return "", nil, nil, eventError("kind %q is unknown", clip(string(e.Kind)))
	}
	if e.Agent != Fleet {
		if err := CheckID("agent", e.Agent); err != nil {
			return "", nil, nil, eventError("%w", err)
		}
	}
	w := writer{h: make(Header, 28), values: make([]string, 0, 28)}
	w.put("ce-specversion", "1.0")
	w.put("ce-type", typePrefix+string(e.Kind))
	w.put("ce-source", e.Source)
	w.put("ce-id", e.ID)
	w.put("ce-time", formatTime(e.Time))
	e.writeFields(&w)
	body = e.Data
	if len(body) == 0 {
		w.text(fEmpty, "1")
		body = []byte(emptyBody)
	}
	if w.err != nil {
		return "", nil, nil, w.err
	}
	if y := e.Time.UTC().Year(); y < 1 || y > 9999 {
		return "", nil, nil, eventError("the year %d can't be written", y)
	}
	if err := e.check(sh, w.set); err != nil {
		return "", nil, nil, err
	}
	return EventSubject(e.Agent, e.Kind), w.h, body, nil
}

// A writer collects headers, and holds each against what a reader takes.
type writer struct {
	h      Header
	values []string // backs the one-element lists
	set    field
	read   Event // scratch: what a reader makes of the values
	err    error // the first
}

func (w *writer) put(name, v string) {
	if !headerValue(v) && w.err == nil {
		w.err = eventError("header %s holds a byte that no header may hold, or a space at an end", name)
	}
	w.values = append(w.values, v)
	n := len(w.values)
	w.h[name] = w.values[n-1 : n : n]
}

// text puts a header whose value came from outside, unless it is empty.
func (w *writer) text(bit field, v string) {
	if v == "" {
		return
	}
	w.put(fieldName(bit), v)
	w.set |= bit
	if err := w.read.setField(bit, v); err != nil && w.err == nil {
		w.err = eventError("header %s: %w", fieldName(bit), err)
	}
}

func (e *Event) writeFields(w *writer) {
	w.text(fContentType, e.ContentType)
	if e.Trace != (Trace{}) {
		w.text(fTrace, e.Trace.String())
	}
	w.text(fOperation, e.Operation)
	if e.Action != (Action{}) {
		w.text(fAction, e.Action.String())
	}
	w.text(fTo, e.To)
	w.text(fJTI, e.JTI)
	w.text(fRequest, e.Request)
	w.text(fReply, e.Reply)
	if !e.Expires.IsZero() {
		w.text(fExpires, formatTime(e.Expires))
	}
	w.text(fMsgID, e.MsgID)
	if !e.Digest.IsZero() {
		w.text(fDigest, e.Digest.String())
	}
	if !e.Input.IsZero() {
		w.text(fInput, e.Input.String())
	}
	if e.Ref != 0 {
		w.text(fRef, strconv.FormatUint(e.Ref, 10))
	}
	if e.Code != 0 {
		w.text(fCode, strconv.Itoa(e.Code))
	}
	w.text(fReason, e.Reason)
	if e.Tokens != 0 {
		w.text(fTokens, strconv.FormatInt(e.Tokens, 10))
	}
	if us := e.Latency.Microseconds(); us > 0 { // two machines' clocks can also say less
		w.text(fLatency, strconv.FormatInt(us, 10))
	}
	w.text(fLock, string(e.Lock))
	w.text(fVerdict, string(e.Verdict))
	if e.Risk != 0 || len(e.Verdict) > 0 {
		w.text(fRisk, strconv.Itoa(e.Risk))
	}
	if e.Final {
		w.text(fFinal, "1")
	}
	w.text(fActor, e.Actor)
	if e.Reserve != 0 {
		w.text(fReserve, strconv.FormatInt(e.Reserve, 10))
	}
	w.text(fAct, strings.Join(e.Act, " "))
}

// DecodeAt reads an event that stands in the log under a sequence. Where the
// log's own marks say another, it was read out of the log and stored once more.
func DecodeAt(seq uint64, subject string, h Header, body []byte) (*Event, error) {
	e, _, err := DecodeSorted(seq, subject, h, body, nil)
	return e, err
}

// A HeaderPair is a header with its one value.
type HeaderPair struct{ Name, Value string }

// DecodeSorted is DecodeAt. It appends the event's own headers to pairs as well,
// in byte order of their names and without those of the transport ("Nats-…"):
// who needs them in order is spared a second walk and the sorting.
func DecodeSorted(seq uint64, subject string, h Header, body []byte, pairs []HeaderPair) (*Event, []HeaderPair, error) {
	e, pairs, err := decode(subject, h, body, pairs)
	if err != nil {
		return nil, nil, err
	}
	if v, marked := h[markSequence]; marked && v[0] != strconv.FormatUint(seq, 10) {
		return nil, nil, eventError("it is marked as event %s of the log: a copy", clip(v[0]))
	}
	e.Seq = seq
	return e, pairs, nil
}

// The marks that JetStream puts on what it reads out of a stream, for who asks
// for single messages. What is stored bears none. The server checks no reply
// subject, so that who may read the log can have JetStream store a copy in it.
const (
	markStream   = "Nats-Stream"
	markSubject  = "Nats-Subject"
	markSequence = "Nats-Sequence"
)

// checkMark refuses a copy that was stored: it bears the marks of where it was
// read, beside those of its own where it is read the same way.
func checkMark(subject, name string, values []string) error {
	want := ""
	switch name {
	case markStream:
		want = Stream
	case markSubject:
		want = subject
	case markSequence:
	default:
		return nil
	}
	if len(values) != 1 || want != "" && values[0] != want {
		return eventError("header %s says that it was read out of a stream and stored again", name)
	}
	return nil
}

// Decode reads an event as it stands in the log. Headers that the server adds
// ("Nats-…") are passed over, unless they say that the event is a copy; every
// other header must be one of ours, once, in canonical form, and fit the kind.
func Decode(subject string, h Header, body []byte) (*Event, error) {
	e, _, err := decode(subject, h, body, nil)
	return e, err
}

func decode(subject string, h Header, body []byte, pairs []HeaderPair) (*Event, []HeaderPair, error) {
	agent, kind, err := ParseEventSubject(subject)
	if err != nil {
		return nil, nil, eventError("%w", err)
	}
	e := &Event{Kind: kind, Agent: agent, Data: body}
	found, err := e.readHeaders(subject, h)
	if err != nil {
		return nil, nil, err
	}
	if found.set&fEmpty != 0 {
		if string(body) != emptyBody {
			return nil, nil, eventError("the body is flagged empty, and is not")
		}
		e.Data = nil
	} else if len(body) == 0 {
		return nil, nil, eventError("the body is empty, and not flagged so")
	}
	if err := e.check(kinds[kind], found.set); err != nil {
		return nil, nil, err
	}
	return e, found.appendTo(pairs), nil
}

// headersRead are an event's own headers as they were found.
type headersRead struct {
	set    field
	ranks  uint64 // bit by bit, those of headerNames that are there
	values [len(headerNames)]string
}

var _ [64 - len(headerNames)]struct{} // no rank may fall off the end

func (f *headersRead) appendTo(pairs []HeaderPair) []HeaderPair {
	for left := f.ranks; left != 0; left &= left - 1 {
		rank := bits.TrailingZeros64(left)
		pairs = append(pairs, HeaderPair{headerNames[rank], f.values[rank]})
	}
	return pairs
}

// readHeaders sets what the headers say.
func (e *Event) readHeaders(subject string, h Header) (found headersRead, err error) {
	envelope := 0
	for name, values := range h {
		place, ours := placeByName[name]
		if !ours && strings.HasPrefix(name, "Nats-") {
			if err := checkMark(subject, name, values); err != nil {
				return found, err
			}
			continue
		}
		if len(values) != 1 {
			return found, eventError("header %s stands %d times", clip(name), len(values))
		}
		v := values[0]
		switch {
		case v == "" || !headerValue(v):
			return found, eventError("header %s is empty or holds a byte that no header may hold", clip(name))
		case !ours:
			return found, eventError("header %q is none of ours", clip(name))
		case place.bit == 0:
			envelope++
			err = e.setEnvelope(name, v)
		default:
			if err = e.setField(place.bit, v); err != nil {
				err = eventError("header %s: %w", name, err)
			}
		}
		if err != nil {
			return found, err
		}
		found.set |= place.bit
		found.ranks |= 1 << place.rank
		found.values[place.rank] = v
	}
	if envelope != len(envelopeNames) {
		return found, eventError("%d of the %d CloudEvents headers are there", envelope, len(envelopeNames))
	}
	return found, nil
}

func (e *Event) setEnvelope(name, v string) error {
	switch name {
	case "ce-specversion":
		if v != "1.0" {
			return eventError("ce-specversion %q is not 1.0", clip(v))
		}
	case "ce-type":
		if v != typePrefix+string(e.Kind) {
			return eventError("ce-type %q does not fit the subject", clip(v))
		}
	case "ce-source":
		e.Source = v
	case "ce-id":
		e.ID = v
	case "ce-time":
		t, err := parseTime(v)
		if err != nil {
			return eventError("ce-time: %w", err)
		}
		e.Time = t
	}
	return nil
}

func (e *Event) setField(bit field, v string) (err error) {
	switch bit {
	case fContentType:
		e.ContentType = v
	case fTrace:
		id, span, _ := strings.Cut(v, "-")
		e.Trace = Trace{ID: id, Span: span}
		return e.Trace.check()
	case fOperation:
		e.Operation = v
		return CheckID("operation", v)
	case fAction:
		e.Action, err = ParseAction(v)
	case fTo:
		e.To = v
		return CheckID("recipient", v)
	case fJTI:
		e.JTI = v
	case fRequest:
		e.Request = v
		if !lowerHex(v, 32) {
			return nameError("request id", v, "is not 32 lower-case hex digits")
		}
	case fReply:
		e.Reply = v
	case fExpires:
		e.Expires, err = parseTime(v)
	case fMsgID:
		e.MsgID = v
	case fDigest:
		e.Digest, err = parseDigest(v)
	case fInput:
		e.Input, err = parseDigest(v)
	case fRef:
		e.Ref, err = parseUint(v)
	case fCode:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n < 100 || n > 999) {
			return nameError("code", v, "is not of three digits")
		}
		e.Code = int(n)
	case fReason:
		e.Reason = v
	case fTokens:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n == 0 || n > 1<<53) {
			return nameError("token count", v, "is out of bounds")
		}
		e.Tokens = int64(n)
	case fLatency:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n == 0 || n > 1<<53) {
			return nameError("latency", v, "is out of bounds")
		}
		e.Latency = time.Duration(n) * time.Microsecond
	case fLock:
		e.Lock = Lock(v)
		return e.Lock.check()
	case fVerdict:
		e.Verdict = []byte(v)
	case fRisk:
		var n uint64
		n, err = parseUint(v)
		if err == nil && n > 100 {
			return nameError("risk", v, "is over 100")
		}
		e.Risk = int(n)
	case fFinal:
		e.Final = true
		return isOne(v)
	case fActor:
		e.Actor = v
	case fReserve:
		var n uint64
		n, err = parseUint(v)
		if err == nil && (n == 0 || n > 1<<53) {
			return nameError("token count", v, "is out of bounds")
		}
		e.Reserve = int64(n)
	case fAct:
		e.Act = strings.Split(v, " ")
		if len(e.Act) > MaxDepth {
			return nameError("actor chain", v, "is longer than a delegation can be")
		}
		for _, id := range e.Act {
			if err := CheckID("actor", id); err != nil {
				return err
			}
		}
	case fEmpty:
		return isOne(v)
	}
	return err
}

func isOne(v string) error {
	if v != "1" {
		return nameError("flag", v, "is not 1")
	}
	return nil
}

func (e *Event) check(sh shape, set field) error {
	if e.ID == "" || e.Source == "" || e.Time.IsZero() {
		return eventError("%s has no id, source or time", e.Kind)
	}
	if missing := sh.must &^ set; missing != 0 {
		return eventError("%s lacks %s", e.Kind, fieldName(missing&-missing))
	}
	if set&fVerdict != 0 != (set&fRisk != 0) {
		return eventError("%s carries a verdict without a risk, or a risk without a verdict", e.Kind)
	}
	if foreign := set &^ (sh.must | sh.may | fEmpty); foreign != 0 {
		return eventError("%s may not carry %s", e.Kind, fieldName(foreign&-foreign))
	}
	return nil
}

// headerValue reports whether a value survives a NATS header block, and the
// JSON of those who read the log, unchanged.
func headerValue(s string) bool {
	if s == "" {
		return true
	}
	// Eight bytes at a time: this is read of every header of every event.
	// Of such a word, the top bit of a byte is set in control where it may
	// hold a byte below 0x20 or 0x7f, exactly so in the lowest one that does.
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i, beyond := 0, uint64(0)
	for ; i+8 <= len(s); i += 8 {
		w := word(s[i : i+8])
		del := w ^ 0x7f*ones
		if ((w-0x20*ones)&^w|(del-ones)&^del)&tops != 0 {
			return false
		}
		beyond |= w & tops
	}
	for ; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
		beyond |= uint64(s[i]) & utf8.RuneSelf
	}
	if beyond != 0 && !utf8.ValidString(s) {
		return false
	}
	return s[0] != ' ' && s[len(s)-1] != ' '
}

// word is one load of eight bytes, as the compiler puts it.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// HeaderText makes any text fit for a header: control bytes become spaces, the
// ends are trimmed, and it is cut at 1,000 bytes.
func HeaderText(s string) string {
	if len(s) > 1000 {
		s = strings.ToValidUTF8(s[:1000], "")
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s))
}

// formatTime is RFC 3339 in UTC with nine digits always: of fixed length, and
// text order is time order. Its parts are those that package time is fast at.
func formatTime(t time.Time) string {
	t = t.UTC()
	b := make([]byte, 0, timeLength)
	b = t.AppendFormat(b, time.RFC3339)
	b[len(b)-1] = '.' // was Z
	nanos := strconv.AppendInt(b[len(b):], int64(t.Nanosecond())+1e9, 10)
	b = append(b, nanos[1:]...)
	return string(append(b, 'Z'))
}

// timeLength is that of every year from 0 to 9999.
const timeLength = len("2006-01-02T15:04:05.000000000Z")

// parseTime takes what formatTime writes and nothing else: package time reads
// RFC 3339 strictly, and the length, the point and the Z leave one form.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || len(s) != timeLength || s[19] != '.' || s[timeLength-1] != 'Z' {
		return time.Time{}, nameError("time", s, "is not RFC 3339 in UTC with nine digits")
	}
	return t, nil
}

func parseDigest(s string) (d Digest, err error) {
	if !lowerHex(s, 2*len(d)) {
		return d, nameError("digest", s, "is not 64 lower-case hex digits")
	}
	_, err = hex.Decode(d[:], []byte(s))
	return d, err
}
