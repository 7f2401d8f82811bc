package witness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
)

// A history is a log's tree, whose leaves are numbers and a text.
type history struct {
	t      testing.TB
	signer note.Signer
	hashes []tlog.Hash
	size   int64
}

func (h *history) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = h.hashes[n]
	}
	return out, nil
}

func (h *history) grow(n int, text string) *history {
	h.t.Helper()
	for range n {
		stored, err := tlog.StoredHashes(h.size, fmt.Appendf(nil, "%d %s", h.size, text), h)
		if err != nil {
			h.t.Fatal(err)
		}
		h.hashes, h.size = append(h.hashes, stored...), h.size+1
	}
	return h
}

// checkpoint signs the tree of the first size leaves.
func (h *history) checkpoint(size int64) []byte {
	h.t.Helper()
	root, err := tlog.TreeHash(size, h)
	if err != nil {
		h.t.Fatal(err)
	}
	msg, err := proof.Checkpoint{Origin: h.signer.Name(), Size: uint64(size), Root: root}.Sign(h.signer)
	if err != nil {
		h.t.Fatal(err)
	}
	return msg
}

// request asks for size, proven from old on.
func (h *history) request(old, size int64) Request {
	h.t.Helper()
	r := Request{Old: uint64(old), Checkpoint: h.checkpoint(size)}
	if old > 0 && old < size {
		path, err := tlog.ProveTree(size, old, h)
		if err != nil {
			h.t.Fatal(err)
		}
		r.Proof = path
	}
	return r
}

func keyOf(t testing.TB, origin string, seed byte) (note.Signer, note.Verifier) {
	t.Helper()
	s, v, err := proof.Keys(origin, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func mustOpen(t testing.TB, o Options) *Witness {
	t.Helper()
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// setup is a witness of one log, and that log.
func setup(t testing.TB) (*Witness, *history, Options) {
	t.Helper()
	s, v := keyOf(t, "acme.example", 1)
	o := Options{Dir: t.TempDir(), Name: "witness.example", Logs: []note.Verifier{v}}
	return mustOpen(t, o), &history{t: t, signer: s}, o
}

// post sends a body, as a log would.
func post(h http.Handler, body []byte) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(body)))
	return rec
}

func memberOf(t testing.TB, w *Witness, url string) Member {
	t.Helper()
	p, err := ParsePolicy([]byte("witness w " + w.Key() + " " + url + "\nquorum w\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p.Members()[0]
}

func TestAWitnessCosignsAHistoryThatGrows(t *testing.T) {
	w, log, _ := setup(t)
	log.grow(300, "true")
	m := memberOf(t, w, "https://witness.example")
	for _, step := range [][2]int64{{0, 1}, {1, 7}, {7, 7}, {7, 256}, {256, 300}} {
		r := log.request(step[0], step[1])
		rec := post(w, r.Marshal())
		if rec.Code != http.StatusOK {
			t.Fatalf("from %d to %d: %d %s", step[0], step[1], rec.Code, rec.Body)
		}
		if line, err := m.verified(r.Checkpoint, rec.Body.Bytes()); err != nil || line != rec.Body.String() {
			t.Errorf("from %d to %d: %q, %v", step[0], step[1], rec.Body, err)
		}
	}
}

// An attacker holds the log's key, and wants two histories cosigned; or none,
// and wants anything cosigned. Each is told why not.
func TestAWitnessRefusesEverythingElse(t *testing.T) {
	w, log, _ := setup(t)
	log.grow(20, "true")
	if rec := post(w, log.request(0, 12).Marshal()); rec.Code != http.StatusOK {
		t.Fatal(rec.Code, rec.Body)
	}
	fork := (&history{t: t, signer: log.signer}).grow(11, "true").grow(9, "false")
	thief, _ := keyOf(t, "acme.example", 9)
	other, _ := keyOf(t, "other.example", 1)
	forged := (&history{t: t, signer: thief}).grow(20, "true")
	unknown := (&history{t: t, signer: other}).grow(20, "true")
	noProof, longer := log.request(12, 20), log.request(12, 20)
	noProof.Proof = nil
	longer.Proof = append(longer.Proof, proof.Hash{})
	swapped := log.request(12, 20)
	swapped.Proof[0], swapped.Proof[1] = swapped.Proof[1], swapped.Proof[0]
	tampered := log.request(12, 20)
	tampered.Checkpoint = bytes.Replace(tampered.Checkpoint, []byte("\n20\n"), []byte("\n21\n"), 1)
	extended := log.request(12, 20)
	extended.Checkpoint = bytes.Replace(extended.Checkpoint, []byte("\n\n"), []byte("\nmore\n\n"), 1)
	for name, c := range map[string]struct {
		body   []byte
		status int
		size   string
	}{
		"a fork, longer, with its own proof":   {fork.request(12, 20).Marshal(), 422, ""},
		"a fork of the same size":              {fork.request(12, 12).Marshal(), 409, ""},
		"a fork, as if nothing were cosigned":  {fork.request(0, 20).Marshal(), 409, "12\n"},
		"a rollback":                           {log.request(5, 9).Marshal(), 409, "12\n"},
		"a rollback, with the right old size":  {Request{Old: 12, Checkpoint: log.checkpoint(9)}.Marshal(), 400, ""},
		"the right history from another place": {log.request(11, 20).Marshal(), 409, "12\n"},
		"no proof":                             {noProof.Marshal(), 422, ""},
		"a proof with a hash more":             {longer.Marshal(), 422, ""},
		"a proof in another order":             {swapped.Marshal(), 422, ""},
		"a log that is not watched":            {unknown.request(0, 20).Marshal(), 404, ""},
		"another key":                          {forged.request(12, 20).Marshal(), 403, ""},
		"a checkpoint changed":                 {tampered.Marshal(), 403, ""},
		"extension lines":                      {extended.Marshal(), 403, ""},
		"nothing":                              {nil, 400, ""},
		"no old size":                          {[]byte("\n\n" + string(log.checkpoint(20))), 400, ""},
		"an old size in two forms":             {[]byte("old 012\n\n" + string(log.checkpoint(20))), 400, ""},
		"too long":                             {bytes.Repeat([]byte("old 12\n"), 10<<10), 400, ""},
		"too many hashes": {[]byte("old 12\n" + strings.Repeat(base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n", 64) + "\n" +
			string(log.checkpoint(20))), 400, ""},
	} {
		rec := post(w, c.body)
		if rec.Code != c.status || strings.Contains(rec.Body.String(), "— ") {
			t.Errorf("%s: %d %q, want %d", name, rec.Code, rec.Body, c.status)
		}
		if told := rec.Header().Get("Content-Type") == "text/x.tlog.size"; told != (c.size != "") || told && rec.Body.String() != c.size {
			t.Errorf("%s: tells the size %q, want %q", name, rec.Body, c.size)
		}
	}
	if rec := post(w, log.request(12, 20).Marshal()); rec.Code != http.StatusOK {
		t.Errorf("after all that: %d %s", rec.Code, rec.Body)
	}
}

// What was cosigned is remembered by whoever opens the folder next, however the
// witness ended: there is no orderly end in this test.
func TestAWitnessForgetsNothingOverACrash(t *testing.T) {
	w, log, o := setup(t)
	log.grow(20, "true")
	if rec := post(w, log.request(0, 12).Marshal()); rec.Code != http.StatusOK {
		t.Fatal(rec.Code, rec.Body)
	}
	copied := t.TempDir() // as the disk was when the answer was given
	if err := os.CopyFS(copied, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(copied, keyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, Options{Dir: copied, Logs: o.Logs})
	if again.Key() != w.Key() {
		t.Errorf("it has another key: %s", again.Key())
	}
	fork := (&history{t: t, signer: log.signer}).grow(20, "false")
	if rec := post(again, fork.request(0, 20).Marshal()); rec.Code != http.StatusConflict || rec.Body.String() != "12\n" {
		t.Errorf("a fork after the crash: %d %s", rec.Code, rec.Body)
	}
	if rec := post(again, log.request(12, 20).Marshal()); rec.Code != http.StatusOK {
		t.Errorf("the true history after the crash: %d %s", rec.Code, rec.Body)
	}
}

// Where the disk takes nothing, nothing is cosigned: an answer that a crash
// could make the witness forget would be worth nothing.
func TestAWitnessCosignsNothingThatItCantKeep(t *testing.T) {
	w, log, o := setup(t)
	log.grow(20, "true")
	if err := os.Rename(o.Dir, o.Dir+".gone"); err != nil {
		t.Fatal(err)
	}
	if rec := post(w, log.request(0, 12).Marshal()); rec.Code != http.StatusInternalServerError || strings.Contains(rec.Body.String(), "— ") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if err := os.Rename(o.Dir+".gone", o.Dir); err != nil {
		t.Fatal(err)
	}
	if rec := post(w, log.request(0, 12).Marshal()); rec.Code != http.StatusOK {
		t.Errorf("once the disk is back: %d %s", rec.Code, rec.Body)
	}
}

func TestAWitnessStartsOnlyWithAllThatItKnew(t *testing.T) {
	w, log, o := setup(t)
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("two of one folder: %v", err)
	}
	log.grow(3, "true")
	if rec := post(w, log.request(0, 3).Marshal()); rec.Code != http.StatusOK {
		t.Fatal(rec.Code, rec.Body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, rotated := keyOf(t, "acme.example", 2)
	if _, err := Open(Options{Dir: o.Dir, Logs: []note.Verifier{rotated}}); !errors.Is(err, proof.ErrProof) {
		t.Errorf("without the key that signed: %v", err)
	}
	mustOpen(t, Options{Dir: o.Dir, Logs: []note.Verifier{rotated, o.Logs[0]}}).Close()
	if _, err := Open(Options{Dir: o.Dir, Logs: o.Logs, Name: "another.example"}); err == nil {
		t.Error("under another name")
	}
	if _, err := Open(Options{Dir: o.Dir}); err == nil {
		t.Error("without a log")
	}
	if _, err := Open(Options{Dir: t.TempDir(), Logs: o.Logs}); err == nil {
		t.Error("a new key without a name")
	}
	files, err := filepath.Glob(filepath.Join(o.Dir, "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	state, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range state {
		bad := bytes.Clone(state)
		bad[i] ^= 1
		if err := os.WriteFile(files[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if w, err := Open(Options{Dir: o.Dir, Logs: o.Logs}); err == nil {
			t.Errorf("byte %d of what it knew is damaged, and it starts", i)
			w.Close()
		}
	}
	if err := os.WriteFile(files[0], state, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(o.Dir, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: o.Dir, Logs: o.Logs}); err == nil || !strings.Contains(err.Error(), "others can read") {
		t.Errorf("a key that others can read: %v", err)
	}
}

// Many ask at once, half of them with a fork: one history is cosigned.
func TestAWitnessCosignsOneHistoryUnderConcurrency(t *testing.T) {
	w, log, _ := setup(t)
	log.grow(40, "true")
	fork := (&history{t: t, signer: log.signer}).grow(40, "false")
	var mu sync.Mutex
	cosigned := map[string]int{}
	var wg sync.WaitGroup
	for i := range 40 {
		h, name := log, "true"
		if i%2 == 1 {
			h, name = fork, "false"
		}
		body := h.request(0, int64(i/2+1)).Marshal()
		wg.Go(func() {
			if post(w, body).Code == http.StatusOK {
				mu.Lock()
				cosigned[name]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(cosigned) != 1 || cosigned["true"]+cosigned["false"] != 1 {
		t.Errorf("from nothing, several were cosigned: %v", cosigned)
	}
}

func TestTheClientTellsWhatAWitnessAnswers(t *testing.T) {
	w, log, _ := setup(t)
	log.grow(20, "true")
	srv := httptest.NewServer(w)
	defer srv.Close()
	m := memberOf(t, w, srv.URL)
	ctx, c := context.Background(), srv.Client()
	line, err := m.Add(ctx, c, log.request(0, 12))
	if err != nil || !strings.HasPrefix(line, "— witness.example ") {
		t.Fatalf("%q, %v", line, err)
	}
	var stale *StaleError
	if _, err := m.Add(ctx, c, log.request(3, 20)); !errors.As(err, &stale) || stale.Size != 12 {
		t.Errorf("from another size: %v", err)
	}
	fork := (&history{t: t, signer: log.signer}).grow(20, "false")
	for _, size := range []int64{12, 20} {
		if _, err := m.Add(ctx, c, fork.request(12, size)); !errors.Is(err, ErrForked) {
			t.Errorf("a fork of size %d: %v", size, err)
		}
	}
	for name, answer := range map[string]string{"nothing": "", "no line": "yes\n", "the log's own": strings.SplitAfter(string(log.checkpoint(12)), "\n\n")[1],
		"another's": line[:len(line)-10] + "AAAAAAAA=\n"} {
		bad := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(answer)) }))
		m := memberOf(t, w, bad.URL)
		if line, err := m.Add(ctx, bad.Client(), log.request(12, 20)); err == nil {
			t.Errorf("%s is taken for a cosignature: %q", name, line)
		}
		bad.Close()
	}
}

func TestAPolicyCountsNoCosignatureTwice(t *testing.T) {
	var keys []string
	for i := range 3 {
		_, v, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{byte(i)}, 64)), "w.example")
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, v)
	}
	a, b := "witness a "+keys[0]+" https://a.example\n", "witness b "+keys[1]+" https://b.example\n"
	for name, text := range map[string]string{
		"two of two":     a + b + "group g 2 a b\nquorum g\n",
		"any, in groups": a + b + "group h all b\ngroup g any a h\nquorum g # ours\n",
		"one":            a + "quorum a\n", "none": a + "quorum none\n",
		"for a verifier": "log " + keys[2] + "\n" + a + "quorum a\n",
	} {
		if _, err := ParsePolicy([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"a member twice":           a + b + "group g 2 a a\nquorum g\n",
		"a member in two groups":   a + b + "group h all a\ngroup i all a\ngroup g 2 h i\nquorum g\n",
		"a key under two names":    a + "witness b " + keys[0] + " https://b.example\ngroup g 2 a b\nquorum g\n",
		"an address twice":         a + "witness b " + keys[1] + " https://a.example\ngroup g 2 a b\nquorum g\n",
		"none need sign":           a + "group g 0 a\nquorum g\n",
		"none need sign, in zeros": a + "group g 00 a\nquorum g\n",
		"no members":               a + "group g all\nquorum g\n",
		"no quorum":                a, "two quorums": a + b + "quorum a\nquorum b\n", "an unknown quorum": a + "quorum z\n",
		"more than there are": a + "group g 2 a\nquorum g\n", "no address": "witness a " + keys[0] + "\nquorum a\n",
		"an address of a file": "witness a " + keys[0] + " file:///etc/passwd\nquorum a\n", "unknown": a + "allow all\nquorum a\n",
		"a broken key": "witness a " + keys[0][:20] + " https://a.example\nquorum a\n",
	} {
		if p, err := ParsePolicy([]byte(text)); !errors.Is(err, proof.ErrPolicy) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// The last character of a key may be the one that separates its parts: two such
// keys are two all the same.
func TestAPolicyTellsKeysApartWhateverTheyEndIn(t *testing.T) {
	var keys []string
	for seed := uint64(0); len(keys) < 2; seed++ {
		_, v, err := note.GenerateKey(bytes.NewReader(bytes.Repeat(binary.BigEndian.AppendUint64(nil, seed), 8)), "w.example")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(v, "+") {
			keys = append(keys, v)
		}
	}
	text := fmt.Sprintf("witness a %s https://a.example\nwitness b %s https://b.example\ngroup g 2 a b\nquorum g\n", keys[0], keys[1])
	if _, err := ParsePolicy([]byte(text)); err != nil {
		t.Error(err)
	}
}

func FuzzParseRequest(f *testing.F) {
	s, _ := keyOf(f, "acme.example", 1)
	log := (&history{t: f, signer: s}).grow(20, "true")
	f.Add(log.request(0, 12).Marshal())
	f.Add(log.request(12, 20).Marshal())
	f.Add([]byte("old 0\n\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := ParseRequest(body)
		if err == nil && !bytes.Equal(r.Marshal(), body) {
			t.Errorf("%q was read as %q", body, r.Marshal())
		}
	})
}

// Whatever is asked, what is cosigned is the true history.
func FuzzWitness(f *testing.F) {
	w, log, _ := setup(f)
	log.grow(20, "true")
	truth := map[string]bool{}
	for size := range int64(20) {
		text, _, _ := bytes.Cut(log.checkpoint(size+1), []byte("\n\n"))
		truth[string(text)] = true
	}
	fork := (&history{t: f, signer: log.signer}).grow(20, "false")
	if rec := post(w, log.request(0, 12).Marshal()); rec.Code != http.StatusOK {
		f.Fatal(rec.Code)
	}
	for _, r := range []Request{log.request(12, 12), fork.request(12, 20), fork.request(12, 12), fork.request(0, 3)} {
		f.Add(r.Marshal())
	}
	// Growth is no seed: whoever asks first decides the rest.
	allowed := []int{http.StatusOK, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity}
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := post(w, body)
		if !slices.Contains(allowed, rec.Code) {
			t.Fatalf("%d for %q", rec.Code, body)
		}
		if rec.Code != http.StatusOK {
			return
		}
		_, checkpoint, _ := bytes.Cut(body, []byte("\n\n"))
		if text, _, _ := bytes.Cut(checkpoint, []byte("\n\n")); !truth[string(text)] {
			t.Errorf("%q was cosigned", body)
		}
	})
}

// A log's key was replaced, and a thief holds the former one. He has the log's
// tree and grows it as he likes. A witness that has cosigned what the successor
// signed takes nothing of his, before and after a restart; the log itself goes on.
func TestAKeyThatWasReplacedHasNothingCosigned(t *testing.T) {
	s, v := keyOf(t, "acme.example", 1)
	next, nextV := keyOf(t, "acme.example", 2)
	o := Options{Dir: t.TempDir(), Name: "witness.example", Logs: []note.Verifier{v, nextV}}
	w := mustOpen(t, o)
	log := (&history{t: t, signer: s}).grow(12, "true")
	if rec := post(w, log.request(0, 5).Marshal()); rec.Code != http.StatusOK {
		t.Fatal(rec.Code, rec.Body)
	}
	// Of the checkpoint that ends with the handover, both are there.
	both := log.request(5, 7)
	root, err := tlog.TreeHash(7, log)
	if err == nil {
		both.Checkpoint, err = proof.Checkpoint{Origin: "acme.example", Size: 7, Root: root}.Sign(s, next)
	}
	if err != nil {
		t.Fatal(err)
	}
	if rec := post(w, both.Marshal()); rec.Code != http.StatusOK {
		t.Fatal(rec.Code, rec.Body)
	}
	thief := &history{t: t, signer: s, hashes: slices.Clone(log.hashes[:tlog.StoredHashIndex(0, 7)]), size: 7}
	thief.grow(5, "forged")
	steal := func(w *Witness, from int64) {
		t.Helper()
		if rec := post(w, thief.request(from, 12).Marshal()); rec.Code != http.StatusForbidden {
			t.Errorf("with the former key: %d %s", rec.Code, rec.Body)
		}
	}
	steal(w, 7)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = mustOpen(t, o)
	steal(w, 7)
	log.signer = next
	if rec := post(w, log.request(7, 12).Marshal()); rec.Code != http.StatusOK {
		t.Errorf("the log itself: %d %s", rec.Code, rec.Body)
	}
	steal(w, 12)
	// A witness that was not told of the successor yet takes what both have
	// signed, and then nothing more: neither the log's, nor the thief's.
	late := mustOpen(t, Options{Dir: t.TempDir(), Name: "late.example", Logs: []note.Verifier{v}})
	first := both
	first.Old, first.Proof = 0, nil
	if rec := post(late, first.Marshal()); rec.Code != http.StatusOK {
		t.Errorf("a late witness, what both have signed: %d %s", rec.Code, rec.Body)
	}
	if rec := post(late, log.request(7, 12).Marshal()); rec.Code != http.StatusForbidden {
		t.Errorf("a late witness, what the successor has signed: %d %s", rec.Code, rec.Body)
	}
}
