package proof

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/schemas"
)

// A log makes a small ledger in memory: the records of events, and of the
// ledger's own.
type log struct {
	t       testing.TB
	records []schemas.Shown
	hashes  memory
	last    Hash
	seq     uint64
}

type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = m[n]
	}
	return out, nil
}

func (l *log) add(r Record, subject string, h schemas.Header, body []byte) {
	l.t.Helper()
	headers, err := AppendHeaders(nil, subject, h)
	if err != nil {
		l.t.Fatal(err)
	}
	r.Index, r.StreamID, r.Prev = uint64(len(l.records)), 7, l.last
	salt := Salt{byte(r.Index), 1}
	r.HeadersLen, r.PayloadLen = uint32(len(headers)), uint32(len(body))
	r.HeadersCommit, r.PayloadCommit = CommitHeaders(salt, headers), CommitPayload(salt, body)
	leaf := r.Append(nil)
	stored, err := tlog.StoredHashes(int64(r.Index), leaf, l.hashes)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hashes, l.last = append(l.hashes, stored...), LeafHash(leaf)
	l.records = append(l.records, schemas.Shown{Index: r.Index, Seq: r.StreamSeq, Leaf: leaf, Salt: salt[:], Headers: headers, Payload: body})
}

func (l *log) event(e schemas.Event) uint64 {
	l.t.Helper()
	l.seq++
	e.ID, e.Source, e.Time = fmt.Sprintf("%032x", l.seq), "intake/1", time.Unix(1_700_000_000, int64(l.seq)).UTC()
	if e.Data != nil {
		e.Digest = schemas.Sum(e.Data)
	}
	subject, h, body, err := e.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	r := Record{Kind: KindEvent, StreamSeq: l.seq, Time: e.Time.UnixNano(), Agent: pseudonym(e.Agent)}
	if e.Trace.ID != "" {
		if _, err := hex.Decode(r.Trace[:], []byte(e.Trace.ID)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.add(r, subject, h, body)
	return l.seq
}

func pseudonym(agent string) (p [16]byte) {
	copy(p[:], agent)
	return p
}

var trace1 = schemas.Trace{ID: strings.Repeat("a", 32), Span: strings.Repeat("b", 16)}

func (l *log) ask(agent, request string) uint64 {
	return l.event(schemas.Event{Kind: schemas.MessageAccepted, Agent: agent, Trace: trace1, Operation: "q1",
		Action: schemas.Action{Verb: schemas.VerbRead, Resource: "data.sales"}, To: "warehouse", JTI: strings.Repeat("1", 32),
		Request: strings.Repeat(request, 32), Expires: time.Unix(1_700_000_100, 0).UTC(), Data: []byte("all of it, " + request)})
}

func (l *log) answer(from, request string, ref uint64) uint64 {
	return l.event(schemas.Event{Kind: schemas.ResponseAccepted, Agent: from, Trace: trace1, Operation: "q1",
		Action: schemas.Action{Verb: schemas.VerbRead, Resource: "data.sales"}, To: "analyst", Request: strings.Repeat(request, 32),
		Ref: ref, Final: true, Data: []byte("42")})
}

func (l *log) kill(agent string) uint64 {
	return l.event(schemas.Event{Kind: schemas.AgentKilled, Agent: agent, Reason: "stolen"})
}

// bundle proves the records at the given places, all where there are none.
func (l *log) bundle(s note.Signer, places ...int) *Bundle {
	l.t.Helper()
	n := int64(len(l.records))
	root, err := tlog.TreeHash(n, l.hashes)
	if err != nil {
		l.t.Fatal(err)
	}
	msg, err := Checkpoint{Origin: s.Name(), Size: uint64(n), Root: root}.Sign(s)
	if err != nil {
		l.t.Fatal(err)
	}
	if places == nil {
		for i := range l.records {
			places = append(places, i)
		}
	}
	var shown []schemas.Shown
	for _, i := range places {
		path, err := tlog.ProveRecord(n, int64(i), l.hashes)
		if err != nil {
			l.t.Fatal(err)
		}
		r := l.records[i]
		for _, h := range path {
			r.Path = append(r.Path, h[:]...)
		}
		shown = append(shown, r)
	}
	return NewBundle(testKey(l.t, s), string(msg), shown)
}

// testKey is the text of a signer's public key.
func testKey(t testing.TB, s note.Signer) string {
	t.Helper()
	for _, seed := range []byte{0, 1} {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
		text, err := note.NewEd25519VerifierKey(s.Name(), key.Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		if v, err := note.NewVerifier(text); err == nil && v.KeyHash() == s.KeyHash() {
			return text
		}
	}
	t.Fatal("an unknown key")
	return ""
}

func testLog(t testing.TB) (*log, note.Signer, *Policy) {
	t.Helper()
	s, _ := testKeys(t)
	p, err := TrustKey(testKey(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return &log{t: t}, s, p
}

// smallLog is a request and its answer, a kill, and what came too late.
func smallLog(t testing.TB) (*log, note.Signer, *Policy) {
	l, s, p := testLog(t)
	l.answer("warehouse", "1", l.ask("analyst", "1"))
	l.kill("analyst")
	late := l.ask("analyst", "2")
	l.event(schemas.Event{Kind: schemas.MessageCancelled, Agent: "analyst", Trace: trace1, Ref: late, Code: 410, Reason: "killed"})
	return l, s, p
}

func marshal(t testing.TB, b *Bundle) []byte {
	t.Helper()
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustVerifyBundle(t testing.TB, data []byte, p *Policy) *Evidence {
	t.Helper()
	b, err := OpenBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := b.Verify(p)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestABundleProvesWhatItHolds(t *testing.T) {
	l, s, p := smallLog(t)
	ev := mustVerifyBundle(t, marshal(t, l.bundle(s)), p)
	if !ev.Complete || ev.First != 1 || ev.Last != 5 || len(ev.Entries) != 5 || ev.Checkpoint.Size != 5 {
		t.Fatalf("%+v", ev)
	}
	if e := ev.Entries[0]; e.Answered != 2 || string(e.Event.Data) != "all of it, 1" || e.Event.Seq != 1 {
		t.Errorf("the request: %+v", e)
	}
	if e := ev.Entries[3]; e.Answered != 0 {
		t.Errorf("what came too late was answered: %+v", e)
	}
	if ev := mustVerifyBundle(t, marshal(t, l.bundle(s, 0, 2, 4)), p); ev.Complete || len(ev.Entries) != 3 {
		t.Errorf("a selection: %+v", ev)
	}
}

// Every byte of a bundle, flipped in several ways: what is still accepted
// proves exactly what it proved before. The form being one, nothing is.
func TestNoByteOfABundleCanBeChanged(t *testing.T) {
	l, s, p := smallLog(t)
	data := marshal(t, l.bundle(s))
	mustVerifyBundle(t, data, p)
	accepted := 0
	for i := range data {
		for _, mask := range []byte{1 << (i % 8), 0xff, 0x20} {
			data[i] ^= mask
			if b, err := OpenBundle(data); err == nil {
				if _, err := b.Verify(p); err == nil {
					accepted++
					t.Errorf("byte %d of %d, flipped by %#x, is read over", i, len(data), mask)
				}
			}
			data[i] ^= mask
		}
	}
	mustVerifyBundle(t, data, p)
	t.Logf("%d bytes, %d changed bundles, %d accepted", len(data), 3*len(data), accepted)
}

// What is empty has one form as well: with one record, the path is.
func TestNullIsNoSecondFormOfWhatIsEmpty(t *testing.T) {
	l, s, p := testLog(t)
	l.ask("analyst", "1")
	data := marshal(t, l.bundle(s))
	mustVerifyBundle(t, data, p)
	null := bytes.Replace(data, []byte("dpath\x40"), []byte("dpath\xf6"), 1)
	if bytes.Equal(null, data) {
		t.Fatal("the path is not where it was")
	}
	if _, err := OpenBundle(null); !errors.Is(err, ErrBundle) {
		t.Errorf("%v", err)
	}
}

func TestABundleCutAnywhereIsRefused(t *testing.T) {
	l, s, p := smallLog(t)
	data := marshal(t, l.bundle(s))
	mustVerifyBundle(t, data, p)
	for n := range data {
		if _, err := OpenBundle(data[:n]); !errors.Is(err, ErrBundle) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := OpenBundle(append(data, 0)); !errors.Is(err, ErrBundle) {
		t.Errorf("with a byte more: %v", err)
	}
}

// A forgery is a bundle that was changed, and what it has to be refused for.
type forgery struct {
	bundle *Bundle
	reason error
	seq    uint64
}

func forgeries(t *testing.T) map[string]forgery {
	l, s, _ := smallLog(t)
	other, _, err := Keys("acme.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	another, _, _ := testLog(t)
	for range 5 {
		another.ask("analyst", "3")
	}
	out := map[string]forgery{}
	for name, c := range map[string]struct {
		change func(b *Bundle)
		reason error
		seq    uint64
	}{
		"wrong key":                {func(b *Bundle) { *b = *l.bundle(other) }, ErrUntrusted, 1},
		"wrong key, named as ours": {func(b *Bundle) { key := b.Key; *b = *l.bundle(other); b.Key = key }, ErrBadCheckpoint, 1},
		"other checkpoint":         {func(b *Bundle) { b.Checkpoint = another.bundle(s).Checkpoint }, ErrNotIncluded, 1},
		"no checkpoint":            {func(b *Bundle) { b.Checkpoint = "" }, ErrBadCheckpoint, 1},
		"a leaf emptied":           {func(b *Bundle) { b.Records[2].Leaf = nil }, ErrMissingLeaf, 3},
		"a record taken out":       {func(b *Bundle) { b.Records = slices.Delete(b.Records, 2, 3) }, ErrMissingLeaf, 3},
		"the last record cut off":  {func(b *Bundle) { b.Records = b.Records[:4] }, ErrMissingLeaf, 5},
		"leaves exchanged":         {func(b *Bundle) { b.Records[1].Leaf, b.Records[3].Leaf = b.Records[3].Leaf, b.Records[1].Leaf }, ErrOrder, 2},
		"records exchanged":        {func(b *Bundle) { b.Records[1], b.Records[3] = b.Records[3], b.Records[1] }, ErrOrder, 2},
		"all exchanged": {func(b *Bundle) {
			b.Records[1], b.Records[3] = b.Records[3], b.Records[1]
			b.Contents[1], b.Contents[3] = b.Contents[3], b.Contents[1]
		}, ErrOrder, 3},
		"a record twice":        {func(b *Bundle) { b.Records = append(b.Records, b.Records[4]) }, ErrOrder, 5},
		"a leaf cut":            {func(b *Bundle) { b.Records[2].Leaf = b.Records[2].Leaf[:179] }, ErrBadLeaf, 3},
		"a leaf changed":        {func(b *Bundle) { b.Records[2].Leaf[50] ^= 1 }, ErrNotIncluded, 3},
		"a path changed":        {func(b *Bundle) { b.Records[2].Path[0] ^= 1 }, ErrNotIncluded, 3},
		"a path cut":            {func(b *Bundle) { b.Records[2].Path = b.Records[2].Path[32:] }, ErrNotIncluded, 3},
		"a salt altered":        {func(b *Bundle) { b.Records[3].Salt[0] ^= 1 }, ErrContent, 4},
		"a salt cut":            {func(b *Bundle) { b.Records[3].Salt = b.Records[3].Salt[:31] }, ErrContent, 4},
		"a payload altered":     {func(b *Bundle) { b.Records[3].Payload[0] ^= 1 }, ErrContent, 4},
		"a payload longer":      {func(b *Bundle) { b.Records[3].Payload = append(b.Records[3].Payload, 0) }, ErrContent, 4},
		"headers altered":       {func(b *Bundle) { b.Records[3].Headers[9] ^= 1 }, ErrContent, 4},
		"content left out":      {func(b *Bundle) { r := &b.Records[3]; r.Salt, r.Headers, r.Payload = nil, nil, nil }, ErrWithheld, 4},
		"content of another":    {func(b *Bundle) { a, c := &b.Records[0], &b.Records[3]; c.Salt, c.Payload = a.Salt, a.Payload }, ErrContent, 4},
		"another origin's name": {func(b *Bundle) { b.Key = strings.Replace(b.Key, "acme", "evil", 1) }, ErrUntrusted, 1},
	} {
		b, err := OpenBundle(marshal(t, l.bundle(s)))
		if err != nil {
			t.Fatal(err)
		}
		c.change(b)
		out[name] = forgery{b, c.reason, c.seq}
	}
	return out
}

func TestEachForgeryOfABundleIsRefusedForItsOwnReason(t *testing.T) {
	_, _, p := smallLog(t)
	for name, c := range forgeries(t) {
		// As a file, so that what is judged is what somebody can send.
		b, err := OpenBundle(marshal(t, c.bundle))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, err = b.Verify(p)
		var found *BundleError
		if !errors.As(err, &found) || !errors.Is(err, ErrProof) || found.Reason != c.reason || found.Seq != c.seq {
			t.Errorf("%s: %v; want sequence %d: %v", name, err, c.seq, c.reason)
		}
	}
}

// A chain that its tree contradicts: signed by the ledger's own key.
func TestARecordThatDoesNotFollowIsRefused(t *testing.T) {
	l, s, p := testLog(t)
	l.ask("analyst", "1")
	l.last = Hash{1}
	l.ask("analyst", "2")
	b := l.bundle(s)
	if _, err := b.Verify(p); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "sequence 2") {
		t.Errorf("%v", err)
	}
}

func TestErasedRecordsAreProvenOnlyWithTheirRedaction(t *testing.T) {
	l, s, p := testLog(t)
	l.ask("analyst", "1")
	l.ask("scribe", "2")
	l.add(Record{Kind: KindRedaction, StreamSeq: l.seq, Agent: pseudonym("analyst")}, RedactionSubject, nil,
		schemas.Marshal(Redaction{Authority: "data protection officer", Reason: "request 17"}))
	l.ask("scribe", "3")
	erase := func(b *Bundle, i int) *Bundle {
		b.Records[i].Salt, b.Records[i].Headers, b.Records[i].Payload = nil, nil, nil
		return b
	}
	ev := mustVerifyBundle(t, marshal(t, erase(l.bundle(s), 0)), p)
	e := ev.Entries[0]
	if ev.Redacted != 1 || e.Event != nil || e.Redacted == nil || e.Redacted.Authority != "data protection officer" || !ev.Complete {
		t.Errorf("%+v", ev)
	}
	if ev := mustVerifyBundle(t, marshal(t, erase(l.bundle(s, 0, 2), 0)), p); !ev.Complete || ev.Last != 1 || ev.Entries[1].Redaction == nil {
		t.Errorf("with a redaction from elsewhere: %+v", ev)
	}
	for name, b := range map[string]*Bundle{"without redaction": erase(l.bundle(s, 0, 1), 0), "of somebody else": erase(l.bundle(s), 1)} {
		if _, err := b.Verify(p); !errors.Is(err, ErrWithheld) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := erase(l.bundle(s), 2).Verify(p); !errors.Is(err, ErrContent) {
		t.Errorf("a redaction without content: %v", err)
	}
}

func TestWhatABundleSpansIsWhatIsProven(t *testing.T) {
	l, s, p := testLog(t)
	redact := func(agent string) {
		l.add(Record{Kind: KindRedaction, StreamSeq: l.seq, Agent: pseudonym(agent)}, RedactionSubject, nil, schemas.Marshal(Redaction{Authority: "a", Reason: "b"}))
	}
	l.ask("analyst", "1") // 0
	l.ask("analyst", "2") // 1
	redact("x")           // 2, behind sequence 2
	l.ask("analyst", "3") // 3
	l.ask("analyst", "4") // 4
	redact("y")           // 5, behind sequence 4
	redact("z")           // 6
	for _, c := range []struct {
		places      []int
		first, last uint64
		complete    bool
	}{
		{[]int{0, 1, 2, 3, 4, 5, 6}, 1, 4, true},
		{[]int{0, 1, 5, 6}, 1, 2, true}, // those at the end stand apart
		{[]int{0, 1, 2, 6}, 1, 2, true}, // the first of them does not
		{[]int{0, 2}, 1, 1, true},
		{[]int{0, 2, 3}, 1, 3, false}, // a record is missing in the middle
		{[]int{0, 3}, 1, 3, false},
		{[]int{4}, 4, 4, true},
		{[]int{2, 5}, 2, 4, false}, // redactions alone say nothing of what is between
	} {
		ev := mustVerifyBundle(t, marshal(t, l.bundle(s, c.places...)), p)
		if ev.First != c.first || ev.Last != c.last || ev.Complete != c.complete {
			t.Errorf("%v: %d to %d, complete %v", c.places, ev.First, ev.Last, ev.Complete)
		}
	}
	empty := l.bundle(s)
	empty.Contents, empty.Records = nil, nil
	if _, err := empty.Verify(p); !errors.Is(err, ErrMissingLeaf) {
		t.Errorf("a bundle of nothing: %v", err)
	}
}

func TestWhatWasReleasedBehindAKillIsFound(t *testing.T) {
	l, s, p := smallLog(t)
	l.answer("warehouse", "2", 4)
	b := l.bundle(s)
	var found *BundleError
	if _, err := b.Verify(p); !errors.As(err, &found) || found.Reason != ErrAfterKill || found.Seq != 6 {
		t.Errorf("an answer to what a killed agent sent: %v", err)
	}

	l, s, p = smallLog(t)
	l.answer("scribe", "2", 4)    // not the recipient: logged, and given to nobody
	l.answer("warehouse", "9", 4) // does not know the request
	if ev := mustVerifyBundle(t, marshal(t, l.bundle(s)), p); ev.Entries[3].Answered != 0 {
		t.Errorf("%+v", ev.Entries[3])
	}

	l, s, p = smallLog(t)
	l.event(schemas.Event{Kind: schemas.AgentEnrolled, Agent: "analyst", Ref: 3})
	l.answer("warehouse", "4", l.ask("analyst", "4"))
	if ev := mustVerifyBundle(t, marshal(t, l.bundle(s)), p); ev.Entries[6].Answered != 8 {
		t.Errorf("enrolled anew: %+v", ev.Entries[6])
	}
	// Without the enrolment in hand, the bundle can't tell, and does not claim to.
	if ev := mustVerifyBundle(t, marshal(t, l.bundle(s, 2, 6, 7)), p); ev.Complete {
		t.Errorf("%+v", ev)
	}
}

func TestADeliveryWithoutAnEarlierRecordIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		make func(l *log)
		seq  uint64
	}{
		"answers itself":             {func(l *log) { l.answer("warehouse", "1", 1) }, 1},
		"answers what comes later":   {func(l *log) { l.answer("warehouse", "1", 2); l.ask("analyst", "1") }, 1},
		"answers what is no message": {func(l *log) { l.answer("warehouse", "1", l.kill("analyst")) }, 2},
	} {
		l, s, p := testLog(t)
		c.make(l)
		var found *BundleError
		if _, err := l.bundle(s).Verify(p); !errors.As(err, &found) || found.Reason != ErrDelivery || found.Seq != c.seq {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A ledger that commits to what is no event of its record is refused, though
// all of it is signed.
func TestContentThatIsNoEventOfItsRecordIsRefused(t *testing.T) {
	for name, change := range map[string]func(r *Record, subject *string, h schemas.Header){
		"another time":  func(r *Record, _ *string, _ schemas.Header) { r.Time++ },
		"another trace": func(r *Record, _ *string, _ schemas.Header) { r.Trace[0]++ },
		"no event":      func(_ *Record, subject *string, _ schemas.Header) { *subject = "ev.x" },
		"own kind":      func(r *Record, _ *string, _ schemas.Header) { r.Kind = KindGap },
	} {
		l, s, p := testLog(t)
		e := schemas.Event{Kind: schemas.AgentKilled, Agent: "analyst", Reason: "x", ID: "1", Source: "issuer/1", Time: time.Unix(1, 0).UTC()}
		subject, h, body, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r := Record{Kind: KindEvent, StreamSeq: 1, Time: e.Time.UnixNano()}
		change(&r, &subject, h)
		l.add(r, subject, h, body)
		if _, err := l.bundle(s).Verify(p); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPolicyIsReadStrictly(t *testing.T) {
	s, _ := testKeys(t)
	key := testKey(t, s)
	good := "# ours\nlog " + key + " # since 2026\n\nquorum none\n"
	l, _, _ := smallLog(t)
	p, err := ParsePolicy([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	mustVerifyBundle(t, marshal(t, l.bundle(s)), p)
	for name, text := range map[string]string{
		"empty": "", "no log": "quorum none\n", "a broken key": "log " + key[:len(key)-4] + "\n", "two words more": "log " + key + " a b\n",
		"a witness":   "log " + key + "\nwitness w " + key + "\n",
		"a quorum":    "log " + key + "\nquorum w\n",
		"a group":     "log " + key + "\ngroup g 1 w\n",
		"two quorums": good + "quorum none\n", "unknown": good + "allow all\n",
		"too long": good + strings.Repeat("#", maxPolicy),
	} {
		if _, err := ParsePolicy([]byte(text)); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	s, _ := testKeys(f)
	f.Add([]byte("log " + testKey(f, s) + "\nquorum none\n"))
	f.Add([]byte("witness w x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := ParsePolicy(text); err == nil && (len(p.logs) == 0 || !bytes.Contains(text, []byte("log"))) {
			t.Errorf("%q trusts %v", text, p.logs)
		}
	})
}

// What opens has one form, and whatever verifies is what the ledger signed.
func FuzzOpenBundle(f *testing.F) {
	l, s, p := smallLog(f)
	whole := l.bundle(s)
	truth := map[Hash]BundleRecord{}
	for _, r := range whole.Records {
		truth[LeafHash(r.Leaf)] = r
	}
	f.Add(marshal(f, whole))
	f.Add(marshal(f, l.bundle(s, 1, 3)))
	f.Add(marshal(f, &Bundle{Format: BundleFormat}))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := OpenBundle(data)
		if err != nil {
			return
		}
		if again := marshal(t, b); !bytes.Equal(again, data) {
			t.Fatalf("%x was read as %x", data, again)
		}
		if _, err := b.Verify(p); err != nil {
			return
		}
		for _, r := range b.Records {
			want := truth[LeafHash(r.Leaf)]
			if want.Leaf == nil || !bytes.Equal(r.Salt, want.Salt) || !reflect.DeepEqual(r.Headers, want.Headers) || !bytes.Equal(r.Payload, want.Payload) {
				t.Errorf("%+v was proven", r)
			}
		}
	})
}
