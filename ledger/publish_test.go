package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

// A stand is witnesses at their addresses, and the policy that asks for them.
type stand struct {
	t      testing.TB
	policy *witness.Policy
	keys   *proof.Policy // of who verifies
	down   []atomic.Bool
	client *http.Client
	alarms []schemas.Alarm
}

const ledgerKey = "acme.example"

func ledgerVKey(t testing.TB) string {
	t.Helper()
	key, err := note.NewEd25519VerifierKey(ledgerKey, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// careless cosigns whatever it is shown: a witness that skips the consistency
// check, and that no test of forks may pass with.
func careless(t testing.TB, name string) (http.Handler, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := cosign.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, checkpoint, _ := strings.Cut(string(body), "\n\n")
		text, _, _ := strings.Cut(checkpoint, "\n\n")
		signed, err := note.Sign(&note.Note{Text: text + "\n"}, s)
		if err != nil {
			t.Error(err)
		}
		_, line, _ := strings.Cut(string(signed), "\n\n")
		_, _ = io.WriteString(w, line)
	}), vkey
}

// newStand starts witnesses, of which so many must have cosigned.
func newStand(t testing.TB, quorum, n int, strict bool) *stand {
	t.Helper()
	s := &stand{t: t, down: make([]atomic.Bool, n), client: &http.Client{}}
	text, members := "", ""
	for i := range n {
		name := fmt.Sprintf("w%d", i)
		handler, vkey := careless(t, name)
		if strict {
			_, v, err := proof.Keys(ledgerKey, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
			if err != nil {
				t.Fatal(err)
			}
			w, err := witness.Open(witness.Options{Dir: t.TempDir(), Name: name, Logs: []note.Verifier{v}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Close() })
			handler, vkey = w, w.Key()
		}
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if s.down[i].Load() {
				http.Error(rw, "down", http.StatusServiceUnavailable)
				return
			}
			handler.ServeHTTP(rw, r)
		}))
		t.Cleanup(srv.Close)
		text += fmt.Sprintf("witness %s %s %s\n", name, vkey, srv.URL)
		members += " " + name
	}
	text += fmt.Sprintf("group g %d%s\nquorum g\n", quorum, members)
	var err error
	if s.policy, err = witness.ParsePolicy([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if s.keys, err = witness.ParseKeyPolicy([]byte("log " + ledgerVKey(t) + "\n" + text)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stand) alarm(_ context.Context, a schemas.Alarm) error {
	s.alarms = append(s.alarms, a)
	return nil
}

// round is one round of the publisher, at a time.
func (s *stand) round(l *Ledger, at time.Time) {
	s.t.Helper()
	if err := l.publishRound(context.Background(), at, s.client, s.alarm); err != nil {
		s.t.Fatal(err)
	}
}

// ledger makes one of entries, in a file system of its own: what an attacker
// who holds database, anchor and all keys can make as well.
func (s *stand) ledger(entries []Entry) *Ledger {
	s.t.Helper()
	o := testOptions(s.t, newMem(s.t))
	o.Witnesses = s.policy
	l := mustOpen(s.t, o)
	mustFeed(s.t, l, &recorder{}, entries...)
	return l
}

// evidence is a bundle of all of a ledger, as a file.
func evidence(t testing.TB, l *Ledger) *proof.Bundle {
	t.Helper()
	made, err := Collect(context.Background(), l.Show, ledgerVKey(t), schemas.ShowRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := made.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := proof.OpenBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var start = time.Unix(1_700_000_000, 0)

func TestACheckpointIsPublishedWhenThePolicyIsMet(t *testing.T) {
	s := newStand(t, 2, 3, true)
	entries := benchEntries(30)
	l := s.ledger(entries[:20])
	defer l.Close()
	if p := l.Head().Published; p == nil || p.Size != 0 || p.Checkpoint != "" || len(p.Witnesses) != 3 {
		t.Fatalf("before: %+v", p)
	}
	if _, err := l.Tile(TilesCheckpoint); !errors.Is(err, ErrNotFound) {
		t.Errorf("tiles before anything was cosigned: %v", err)
	}
	s.down[0].Store(true)
	s.down[1].Store(true)
	s.round(l, start)
	if p := l.Head().Published; p.Size != 0 || p.UnmetFor <= 0 || p.Witnesses[0].Error == "" || p.Witnesses[2].Size != 20 {
		t.Fatalf("with one of three: %+v", p)
	}
	s.down[1].Store(false)
	s.round(l, start.Add(backoffFirst))
	p := l.Head().Published
	if p.Size != 20 || p.UnmetFor != 0 || !s.policy.Satisfied([]byte(p.Checkpoint)) || p.Witnesses[0].Error == "" {
		t.Fatalf("with two of three: %+v", p)
	}
	if b, err := l.Tile(TilesCheckpoint); err != nil || string(b) != p.Checkpoint {
		t.Errorf("its tiles' checkpoint: %q, %v", b, err)
	}
	mustFeed(t, l, &recorder{}, entries[20:]...)
	if now := l.Head().Published; now.Size != 20 {
		t.Errorf("published before anybody was asked: %+v", now)
	}
	if _, err := l.Tile("tile/entries/000.p/21"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tile behind what was published: %v", err)
	}
	s.round(l, start.Add(time.Minute))
	if now := l.Head().Published; now.Size != 30 {
		t.Errorf("then: %+v", now)
	}
}

func TestAFailingWitnessDelaysNobodyAndIsToldOf(t *testing.T) {
	s := newStand(t, 1, 2, true)
	entries := benchEntries(40)
	l := s.ledger(entries[:20])
	defer l.Close()
	s.down[0].Store(true)
	s.round(l, start)
	if p := l.Head().Published; p.Size != 20 || p.UnmetFor != 0 || p.Witnesses[0].Error == "" || p.Witnesses[1].Error != "" {
		t.Fatalf("one of two: %+v", p)
	}
	if err := l.published.alarmed(); err != nil || len(s.alarms) != 0 {
		t.Fatalf("the policy is met, and health fails: %v, %+v", err, s.alarms)
	}
	s.down[1].Store(true)
	mustFeed(t, l, &recorder{}, entries[20:]...) // recorded and handed on all the same
	at := start.Add(time.Hour)
	s.round(l, at)
	if p := l.Head().Published; p.Size != 20 || p.UnmetFor <= 0 {
		t.Fatalf("none of two: %+v", p)
	}
	s.round(l, at.Add(patience-time.Second))
	if err := l.published.alarmed(); err != nil || len(s.alarms) != 0 {
		t.Fatalf("too early: %v, %+v", err, s.alarms)
	}
	for i := range 3 {
		s.round(l, at.Add(patience+time.Duration(i)*time.Minute))
	}
	if len(s.alarms) != 1 || s.alarms[0].What != schemas.AlarmUnwitnessed || s.alarms[0].Size != 40 || l.published.alarmed() == nil {
		t.Fatalf("after %v: %+v, health %v", patience, s.alarms, l.published.alarmed())
	}
	s.down[0].Store(false)
	s.round(l, at.Add(time.Hour))
	if p := l.Head().Published; p.Size != 40 || l.published.alarmed() != nil {
		t.Fatalf("once it is back: %+v, health %v", p, l.published.alarmed())
	}
}

func TestAFailedWitnessIsAskedAgainLaterAndLater(t *testing.T) {
	s := newStand(t, 1, 1, true)
	l := s.ledger(benchEntries(5))
	defer l.Close()
	s.down[0].Store(true)
	asked := 0
	for at := start; at.Before(start.Add(5 * time.Minute)); at = at.Add(publishPause) {
		if len(l.published.begin(l.current.Load(), at)) > 0 {
			asked++
			s.round(l, at)
		}
	}
	if asked < 8 || asked > 12 { // 0, 1, 3, 7, 15, 31, 61 s …, and then once a minute
		t.Errorf("asked %d times within five minutes", asked)
	}
}

func TestWhatWasPublishedIsKeptAndStandsInBundles(t *testing.T) {
	s := newStand(t, 2, 2, true)
	o := testOptions(t, newMem(t))
	o.Witnesses = s.policy
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, benchEntries(20)...)
	s.round(l, start)
	ev, err := evidence(t, l).Verify(s.keys)
	if err != nil || len(ev.Cosignatures) != 2 || ev.Cosignatures[0].Witness != "w0" || time.Since(ev.Cosignatures[0].Time) > time.Hour {
		t.Fatalf("%+v, %v", ev, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(o)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := Collect(t.Context(), r.Show, ledgerVKey(t), schemas.ShowRequest{})
	if err != nil {
		t.Fatal(err)
	}
	checkpoint := shown.Checkpoint
	if !s.policy.Satisfied([]byte(checkpoint)) {
		t.Errorf("on disk: %q", checkpoint)
	}
	if b, err := r.Tile(TilesCheckpoint); err != nil || string(b) != checkpoint {
		t.Errorf("its tiles' checkpoint: %q, %v", b, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	if p := l.Head().Published; p.Size != 20 || p.Checkpoint != checkpoint {
		t.Errorf("opened again: %+v", p)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// What is damaged is asked for again: its signatures are all that it has.
	if err := writeFile(o.FS, "data/anchor/"+publishedFile, bytes.Replace([]byte(checkpoint), []byte("\n20\n"), []byte("\n21\n"), 1)); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	if p := l.Head().Published; p.Size != 0 {
		t.Errorf("damaged, and believed: %+v", p)
	}
	s.round(l, start)
	if p := l.Head().Published; p.Size != 20 {
		t.Errorf("asked again: %+v", p)
	}
}

// Each byte of a bundle with cosignatures is flipped. What is still accepted
// says the same, and has no more cosignatures.
func TestNoByteOfACosignedBundleCanBeChanged(t *testing.T) {
	for quorum := 1; quorum <= 2; quorum++ {
		s := newStand(t, quorum, 2, true)
		l := s.ledger(benchEntries(2))
		s.round(l, start)
		data, err := evidence(t, l).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		accepted := 0
		for i := range data {
			for _, mask := range []byte{1 << (i % 8)} {
				data[i] ^= mask
				if b, err := proof.OpenBundle(data); err == nil {
					if ev, err := b.Verify(s.keys); err == nil {
						accepted++
						if quorum == 2 || len(ev.Cosignatures) != 1 || len(ev.Entries) != 2 {
							t.Errorf("%d of 2: byte %d, flipped by %#x: %+v", quorum, i, mask, ev)
						}
					}
				}
				data[i] ^= mask
			}
		}
		t.Logf("%d of 2: %d bytes, %d changed bundles, %d accepted with a cosignature less", quorum, len(data), len(data), accepted)
	}
}

// An attack is what somebody makes who holds the database, the anchor and
// every key of the ledger. To the ledger and to who trusts its key alone, all
// of them are whole.
type attack struct {
	name    string
	entries func(truth []Entry) []Entry
	seq     uint64 // the first that differs
	alarm   string
}

var attacks = []attack{
	{"a fork that goes on", func(e []Entry) []Entry { return append(altered(e[:40], 25), e[40:]...) }, 25, schemas.AlarmForked},
	{"a history written anew, of the same length", func(e []Entry) []Entry { return altered(e[:40], 7) }, 7, schemas.AlarmForked},
	{"the last event written anew", func(e []Entry) []Entry { return altered(e[:40], 40) }, 40, schemas.AlarmForked},
	{"the first event written anew", func(e []Entry) []Entry { return altered(e, 1) }, 1, schemas.AlarmForked},
	{"an older database", func(e []Entry) []Entry { return e[:30] }, 31, schemas.AlarmShortened},
	{"an older database, gone on with otherwise", func(e []Entry) []Entry { return altered(e[:50], 31) }, 31, schemas.AlarmForked},
	{"an end cut off by one", func(e []Entry) []Entry { return e[:39] }, 40, schemas.AlarmShortened},
}

// altered changes one event's content.
func altered(entries []Entry, seq uint64) []Entry {
	out := append([]Entry(nil), entries...)
	e := &out[seq-1]
	ev, err := schemas.DecodeAt(e.Seq, e.Subject, e.Header, e.Data)
	if err != nil {
		panic(err)
	}
	ev.Data = bytes.Repeat([]byte{'x'}, len(ev.Data))
	ev.Digest = schemas.Sum(ev.Data)
	if e.Subject, e.Header, e.Data, err = ev.Encode(); err != nil {
		panic(err)
	}
	return out
}

// carryOut shows witnesses a true history of 40 events and then an attacker's,
// and lists what the attacker gets through with.
func carryOut(t *testing.T, a attack, strict bool) (gotThrough []string) {
	t.Helper()
	s := newStand(t, 2, 2, strict)
	truth := benchEntries(50)
	o := testOptions(t, newMem(t))
	o.Witnesses = s.policy
	honest := mustOpen(t, o)
	mustFeed(t, honest, &recorder{}, truth[:a.seq-1]...)
	if err := honest.Close(); err != nil {
		t.Fatal(err)
	}
	stolen := o // as the attacker copied it: database, anchor and keys
	mem := newMem(t)
	stolen.FS = mem
	if ok, err := vfs.Clone(o.FS, mem, "data", "data"); err != nil || !ok {
		t.Fatal(ok, err)
	}
	honest = mustOpen(t, o)
	defer honest.Close()
	mustFeed(t, honest, &recorder{}, truth[a.seq-1:40]...)
	s.round(honest, start)
	then, err := evidence(t, honest).Verify(s.keys)
	if err != nil {
		t.Fatalf("the true history is not published: %v", err)
	}
	forged := mustOpen(t, stolen)
	defer forged.Close()
	mustFeed(t, forged, &recorder{}, a.entries(truth)[a.seq-1:]...)
	s.round(forged, start)
	through := func(format string, args ...any) { gotThrough = append(gotThrough, fmt.Sprintf(format, args...)) }
	if p := forged.Head().Published; p.Size != 0 {
		through("%d records were published", p.Size)
	}
	if len(s.alarms) != 2 || s.alarms[0].What != a.alarm || s.alarms[0].WitnessSize != 40 {
		through("the alarms are %+v", s.alarms)
	}
	if err := forged.published.alarmed(); !errors.Is(err, witness.ErrForked) {
		through("health does not fail: %v", err)
	}
	b := evidence(t, forged)
	if _, err := b.Verify(s.keys); !errors.Is(err, proof.ErrUnwitnessed) {
		through("the bundle verifies: %v", err)
	}
	// The key alone does not help who verifies; an older bundle does.
	key, err := proof.TrustKey(ledgerVKey(t))
	if err != nil {
		t.Fatal(err)
	}
	ev, err := b.Verify(key)
	if err != nil {
		t.Fatalf("who holds the keys made what its own key refuses: %v", err)
	}
	var found *proof.BundleError
	if err := ev.Against(then); !errors.As(err, &found) || !errors.Is(err, proof.ErrForked) || found.Seq != a.seq {
		t.Errorf("against an older bundle: %v, want sequence %d", err, a.seq)
	}
	return gotThrough
}

func TestWhoHoldsEverythingIsRefusedByTheWitnesses(t *testing.T) {
	for _, a := range attacks {
		for _, how := range carryOut(t, a, true) {
			t.Errorf("%s: %s", a.name, how)
		}
	}
}

// The control: with witnesses that skip the consistency check, each of those
// attacks gets through with everything. Were the tests above blind, this one
// would fail.
func TestWithCarelessWitnessesEveryAttackGetsThrough(t *testing.T) {
	for _, a := range attacks {
		if how := carryOut(t, a, false); len(how) != 4 {
			t.Errorf("%s: careless witnesses let through only %q", a.name, how)
		}
	}
}

// Growth is no fork: what went on truly agrees with every older bundle.
func TestATrueHistoryAgreesWithItsOwnPast(t *testing.T) {
	s := newStand(t, 2, 2, true)
	truth := benchEntries(50)
	l := s.ledger(truth[:40])
	defer l.Close()
	s.round(l, start)
	then, err := evidence(t, l).Verify(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, &recorder{}, truth[40:]...)
	s.round(l, start)
	now, err := evidence(t, l).Verify(s.keys)
	if err != nil || now.Checkpoint.Size != 50 || len(s.alarms) != 0 {
		t.Fatalf("%+v, %v, %+v", now, err, s.alarms)
	}
	if err := now.Against(then); err != nil {
		t.Error(err)
	}
}
