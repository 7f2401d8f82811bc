package proof

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/writ-sh/writ/schemas"
)

// Vectors that are there are never changed: -vectors adds those that are not.
var addVectors = flag.Bool("vectors", false, "write the test vectors that are missing")

// A vector is one file of testdata, and what a verifier must make of it.
type vector struct {
	File     string `json:"file"`
	About    string `json:"about"`
	OK       bool   `json:"ok"`
	Reason   string `json:"reason,omitempty"`
	BadSeq   uint64 `json:"first_bad_seq,omitempty"`
	Size     uint64 `json:"size,omitempty"`
	Root     string `json:"root,omitempty"`
	Records  int    `json:"records,omitempty"`
	First    uint64 `json:"first_seq,omitempty"`
	Last     uint64 `json:"last_seq,omitempty"`
	Complete bool   `json:"complete,omitempty"`
	Redacted int    `json:"redacted,omitempty"`
}

// reasons are the words of docs/evidence.md for why a bundle is refused.
var reasons = map[string]error{
	"bundle": ErrBundle, "untrusted": ErrUntrusted, "checkpoint": ErrBadCheckpoint, "order": ErrOrder, "missing": ErrMissingLeaf,
	"leaf": ErrBadLeaf, "inclusion": ErrNotIncluded, "chain": ErrChain, "content": ErrContent, "event": ErrEvent,
	"withheld": ErrWithheld, "delivery": ErrDelivery, "after-kill": ErrAfterKill,
}

// outcome is what this package makes of a file.
func outcome(data []byte, p *Policy) (v vector, err error) {
	b, err := OpenBundle(data)
	var ev *Evidence
	if err == nil {
		ev, err = b.Verify(p)
	}
	var found *BundleError
	if errors.As(err, &found) {
		v.BadSeq = found.Seq
	}
	if err != nil {
		for word, reason := range reasons {
			if errors.Is(err, reason) {
				v.Reason = word
			}
		}
		return v, err
	}
	v.OK, v.Size, v.Root, v.Records = true, ev.Checkpoint.Size, hex.EncodeToString(ev.Checkpoint.Root[:]), len(b.Records)
	v.First, v.Last, v.Complete, v.Redacted = ev.First, ev.Last, ev.Complete, ev.Redacted
	return v, nil
}

// vectorFiles makes all vectors.
func vectorFiles(t *testing.T) map[string][]byte {
	l, s, _ := smallLog(t)
	whole := marshal(t, l.bundle(s))
	files := map[string][]byte{"whole": whole, "selection": marshal(t, l.bundle(s, 0, 2, 4)),
		"cut short": whole[:len(whole)-1], "a byte more": append(bytes.Clone(whole), 0),
		"an integer not in its shortest form": longInteger(t, whole), "empty": {}}
	for name, f := range forgeries(t) {
		files[name] = marshal(t, f.bundle)
	}
	l, s, _ = smallLog(t)
	l.answer("warehouse", "2", 4)
	files["released behind a kill"] = marshal(t, l.bundle(s))
	l, s, _ = smallLog(t)
	l.event(schemas.Event{Kind: schemas.AgentEnrolled, Agent: "analyst", Ref: 3})
	l.answer("warehouse", "4", l.ask("analyst", "4"))
	files["enrolled anew"] = marshal(t, l.bundle(s))
	files["kill and enrolment not in hand"] = marshal(t, l.bundle(s, 2, 6, 7))
	l, s, _ = testLog(t)
	l.ask("analyst", "1")
	one := marshal(t, l.bundle(s))
	files["one record, whose path is empty"] = one
	files["null in the place of an empty path"] = bytes.Replace(one, []byte("dpath\x40"), []byte("dpath\xf6"), 1)
	none := l.bundle(s)
	none.Contents, none.Records = nil, nil
	files["of nothing"] = marshal(t, none)
	l, s, _ = testLog(t)
	l.answer("warehouse", "1", l.kill("analyst"))
	files["answers no message"] = marshal(t, l.bundle(s))
	l, s, _ = testLog(t)
	l.answer("warehouse", "1", 2)
	l.ask("analyst", "1")
	files["answers what comes later"] = marshal(t, l.bundle(s))
	l, s, _ = testLog(t)
	l.ask("analyst", "1")
	l.last = Hash{1}
	l.ask("analyst", "2")
	files["a record that does not follow"] = marshal(t, l.bundle(s))
	l, s, _ = testLog(t)
	l.ask("analyst", "1")
	l.add(Record{Kind: KindRedaction, StreamSeq: 1, Agent: pseudonym("analyst")}, RedactionSubject, nil,
		schemas.Marshal(Redaction{Authority: "data protection officer", Reason: "request 17"}))
	l.add(Record{Kind: KindGap, StreamSeq: 4, Agent: pseudonym(schemas.Fleet)}, GapSubject, nil,
		schemas.Marshal(Gap{First: 2, Last: 4, Reason: "lost with the disk", Actor: "ada"}))
	b := l.bundle(s)
	b.Records[0].Salt, b.Records[0].Headers, b.Records[0].Payload = nil, nil, nil
	files["erased, and a gap"] = marshal(t, b)
	b.Contents, b.Records = b.Contents[:1], b.Records[:1]
	files["erased, without redaction"] = marshal(t, b)
	return files
}

// longInteger writes the first index, 0, as 0x1800: CBOR that says the same.
func longInteger(t *testing.T, data []byte) []byte {
	t.Helper()
	mark := []byte("hcontents\x85\x82\x00")
	i := bytes.Index(data, mark)
	if i < 0 {
		t.Fatal("the contents are not where they were")
	}
	i += len(mark) - 1
	return slices.Concat(data[:i], []byte{0x18}, data[i:])
}

func TestTheVectorsAreWhatTheyWere(t *testing.T) {
	s, _ := testKeys(t)
	key := testKey(t, s)
	p, err := TrustKey(key)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join("testdata", "vectors.json")
	var vectors []vector
	if raw, err := os.ReadFile(list); err == nil {
		if err := json.Unmarshal(raw, &vectors); err != nil {
			t.Fatal(err)
		}
	} else if !*addVectors {
		t.Fatal(err)
	}
	if *addVectors {
		vectors = writeVectors(t, vectors, key, p)
	}
	if raw, err := os.ReadFile(filepath.Join("testdata", "acme.example.pub")); err != nil || strings.TrimSpace(string(raw)) != key {
		t.Errorf("the key: %q, %v", raw, err)
	}
	made := vectorFiles(t)
	seen := map[string]bool{}
	for _, want := range vectors {
		data, err := os.ReadFile(filepath.Join("testdata", want.File))
		if err != nil {
			t.Fatal(err)
		}
		got, why := outcome(data, p)
		got.File, got.About = want.File, want.About
		if got != want {
			t.Errorf("%s: %+v (%v), want %+v", want.About, got, why, want)
		}
		if again, ok := made[want.About]; ok && !bytes.Equal(again, data) {
			t.Errorf("%s: this program writes other bytes than it did", want.About)
		}
		seen[want.About], seen[want.Reason] = true, true
	}
	for name := range made {
		if !seen[name] {
			t.Errorf("%s: there is no vector; run go test ./ledger/proof -vectors", name)
		}
	}
	for word := range reasons {
		if word != "event" && !seen[word] {
			t.Errorf("no vector is refused for %q", word)
		}
	}
}

// writeVectors adds the vectors that are missing.
func writeVectors(t *testing.T, vectors []vector, key string, p *Policy) []vector {
	t.Helper()
	files := vectorFiles(t)
	var names []string
	for name := range files {
		if !slices.ContainsFunc(vectors, func(v vector) bool { return v.About == name }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	write := func(file string, data []byte) {
		if err := os.WriteFile(filepath.Join("testdata", file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		v, _ := outcome(files[name], p) // the error is the vector's reason
		v.About, v.File = name, fmt.Sprintf("%02d.bundle", len(vectors)+1)
		write(v.File, files[name])
		vectors = append(vectors, v)
	}
	raw, err := json.MarshalIndent(vectors, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	write("vectors.json", append(raw, '\n'))
	write("acme.example.pub", []byte(key+"\n"))
	return vectors
}
