package plane

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

var foldEvents = flag.Int("events", 3000, "events that are folded at a start")

// filled opens a ledger of so many events of requests, answers and marks.
func filled(t *testing.T, data string, n int) (*ledger.Ledger, ledger.Options) {
	t.Helper()
	must(t, keys.Init(data, "fold.example"))
	o, err := LedgerOptions(data)
	must(t, err)
	o.StreamID = 1
	led, err := ledger.Open(o)
	must(t, err)
	t.Cleanup(func() { must(t, led.Close()) })
	extend(t, led, n)
	return led, o
}

type nobody struct{}

func (nobody) Durable([]*schemas.Event) error { return nil }

// extend appends events.
func extend(t *testing.T, led *ledger.Ledger, n int) {
	t.Helper()
	in := make(chan bus.Entry, 1024)
	go func() {
		defer close(in)
		at := time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)
		action := schemas.Action{Verb: schemas.VerbCall, Resource: "echo"}
		first := led.Head().StreamSeq
		for i := range uint64(n) {
			seq := first + i + 1
			tr := schemas.Trace{ID: fmt.Sprintf("%032x", seq/3+1), Span: fmt.Sprintf("%016x", seq)}
			body := fmt.Appendf(nil, "body %d %s", seq, strings.Repeat("x", 240))
			e := &schemas.Event{Kind: schemas.MessageAccepted, Agent: "alice", Operation: "op", Trace: tr, Action: action, To: "echo", JTI: "j",
				Request: fmt.Sprintf("%032x", seq), Reply: "_R_.x", Expires: at.Add(time.Hour), Digest: schemas.Sum(body), Data: body}
			switch {
			case seq <= 2:
				p := schemas.Principal{ID: "alice", Kind: schemas.KindAgent}
				if seq == 2 {
					p = schemas.Principal{ID: "echo", Kind: schemas.KindService, Serves: []string{"call:echo"}}
				}
				e = &schemas.Event{Kind: schemas.AgentDeclared, Agent: p.ID, Data: schemas.Marshal(p)}
			case seq == 3:
				e = &schemas.Event{Kind: schemas.TokenIssued, Agent: "alice", Operation: "op", JTI: "j", Trace: tr, Data: schemas.Marshal(schemas.Grant{
					JTI: "j", Agent: "alice", Operation: "op", Scope: []string{"call:echo"}, NotBefore: at, Expires: at.Add(24 * time.Hour)})}
			case seq%3 == 2:
				e = &schemas.Event{Kind: schemas.ResponseAccepted, Agent: "echo", To: "alice", Operation: "op", Trace: tr, Action: action,
					Request: fmt.Sprintf("%032x", seq-1), Ref: seq - 1, Digest: e.Digest, Final: true, Data: body}
			case seq%3 == 0:
				e = &schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: seq - 1}
			}
			e.ID, e.Source, e.Time = fmt.Sprint(seq), "test/1", at.Add(time.Duration(i)*time.Millisecond)
			subject, h, data, err := e.Encode()
			if err != nil {
				panic(err) // the event above is well-formed
			}
			in <- bus.Entry{Seq: seq, Subject: subject, Header: h, Data: data}
		}
	}()
	must(t, led.Run(context.Background(), in, nobody{}))
}

// A folding starts release over a ledger, without anything to speak to.
type folding struct {
	*Process
	led   *ledger.Ledger
	folds *foldStore
	said  bytes.Buffer
}

func newFolding(t *testing.T, data string, led *ledger.Ledger, o ledger.Options) *folding {
	t.Helper()
	f := &folding{led: led}
	f.Process = newProcess(data, data, slog.New(slog.NewTextHandler(&f.said, nil)))
	var err error
	f.folds, err = newFoldStore(data, o.Secret, o.StreamID)
	must(t, err)
	return f
}

// start folds, and gives what release kept at its end.
func (f *folding) start(t *testing.T) (took time.Duration, err error) {
	t.Helper()
	rel, err := release.New(release.Options{Control: &nats.Conn{}, Logger: f.log, Keep: keeper(f.led, f.folds)})
	must(t, err)
	begin := time.Now()
	if err := f.foldLog(f.led, rel, f.folds); err != nil {
		return 0, err
	}
	took = time.Since(begin)
	_, err = rel.KeepFor()
	return took, err
}

// kept is the fold that is kept, unsealed.
func (f *folding) kept(t *testing.T) (fold []byte, seq uint64) {
	t.Helper()
	fold, seq, err := f.folds.load(f.led)
	must(t, err)
	return fold, seq
}

// TestAStartGoesOnFromTheKeptFold: with -events 150000 -v it shows what a
// start takes with a kept fold and without.
func TestAStartGoesOnFromTheKeptFold(t *testing.T) {
	data := t.TempDir()
	led, o := filled(t, data, *foldEvents)
	f := newFolding(t, data, led, o)
	whole, err := f.start(t)
	must(t, err)
	first, seq := f.kept(t)
	if seq+3 < uint64(*foldEvents) {
		t.Fatalf("kept up to %d of %d", seq, *foldEvents)
	}
	quick, err := f.start(t)
	must(t, err)
	again, _ := f.kept(t)
	if !bytes.Equal(first, again) {
		t.Error("going on from the kept fold comes to another one")
	}
	t.Logf("%d events: folded in %s; from the kept fold in %s", *foldEvents, whole, quick)

	// Behind it, the log goes on; both ways lead to the same.
	extend(t, led, 300)
	_, err = f.start(t)
	must(t, err)
	onward, seq := f.kept(t)
	must(t, os.RemoveAll(f.folds.dir))
	_, err = f.start(t)
	must(t, err)
	anew, _ := f.kept(t)
	if !bytes.Equal(onward, anew) || seq < uint64(*foldEvents) {
		t.Errorf("up to %d: a fold that went on is not the fold from the first event", seq)
	}
	if f.said.Len() > 0 {
		t.Errorf("it complains: %s", f.said.String())
	}
}

// A control plane where nothing was released yet has no fold, and can be backed up,
// and pruned of nothing.
func TestABackupBeforeAnythingWasReleased(t *testing.T) {
	data, dir := t.TempDir(), filepath.Join(t.TempDir(), "backup")
	led, o := filled(t, data, 2)
	f := newFolding(t, data, led, o)
	rel, err := release.New(release.Options{Control: &nats.Conn{}, Logger: f.log, Keep: keeper(led, f.folds)})
	must(t, err)
	must(t, f.foldLog(led, rel, f.folds))
	k := &keeping{p: f.Process, led: led, rel: rel, folds: f.folds}
	rep, err := k.backup(t.Context(), schemas.BackupRequest{Dir: dir})
	must(t, err)
	if free, err := rel.KeepFor(); free != 0 || err != nil {
		t.Errorf("events up to %d are said to be needed no more: %v", free, err)
	}
	copied := o
	copied.Dir, copied.AnchorDir = filepath.Join(dir, "ledger"), filepath.Join(dir, "anchor")
	v, err := ledger.Verify(t.Context(), copied, nil)
	must(t, err)
	if !v.OK || v.Records != rep.Size || rep.StreamSeq != 2 {
		t.Errorf("backed up %+v, and it verifies as %+v", rep, v)
	}
}

// TestAFoldThatIsNotThisLedgersIsRefused: somebody with the disk and without
// keys wants release to begin with a state in which a kill has not happened.
func TestAFoldThatIsNotThisLedgersIsRefused(t *testing.T) {
	data := t.TempDir()
	led, o := filled(t, data, 300)
	f := newFolding(t, data, led, o)
	_, err := f.start(t)
	must(t, err)
	path := filepath.Join(f.folds.dir, foldFile)
	good, err := os.ReadFile(path)
	must(t, err)
	fold, _ := f.kept(t)

	foreign := func(secret [32]byte, stream uint64, p ledger.Prefix) []byte {
		s, err := newFoldStore(t.TempDir(), secret, stream)
		must(t, err)
		must(t, s.keep(p, fold))
		b, err := os.ReadFile(filepath.Join(s.dir, foldFile))
		must(t, err)
		return b
	}
	prefix, err := led.PrefixTo(300)
	must(t, err)
	another, ahead := prefix, prefix
	another.Root[0] ^= 1
	ahead.Size += 1000
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for name, bad := range map[string][]byte{
		"empty":                    {},
		"another magic":            flip(3),
		"another nonce":            flip(len(foldMagic)),
		"a changed byte":           flip(len(good) / 2),
		"cut":                      good[:len(good)-1],
		"another secret":           foreign([32]byte{1}, o.StreamID, prefix),
		"another stream":           foreign(o.Secret, 2, prefix),
		"another history":          foreign(o.Secret, o.StreamID, another),
		"ahead of the ledger":      foreign(o.Secret, o.StreamID, ahead),
		"of another of its events": foreign(o.Secret, o.StreamID, ledger.Prefix{Size: prefix.Size, Root: prefix.Root, Seq: prefix.Seq - 1}),
	} {
		f.said.Reset()
		must(t, os.RemoveAll(f.folds.dir))
		must(t, os.MkdirAll(f.folds.dir, 0o700))
		must(t, os.WriteFile(path, bad, 0o600))
		if fold, _, refused := f.folds.load(led); fold != nil || refused == nil {
			t.Errorf("%s: it is taken (%v)", name, refused)
		}
		_, err := f.start(t)
		must(t, err)
		if again, _ := f.kept(t); !bytes.Equal(again, fold) || !strings.Contains(f.said.String(), "refused") {
			t.Errorf("%s: folded anew to something else, or in silence: %s", name, f.said.String())
		}
	}
}

// TestARefoldIsTheFoldOfWhatWasPruned, to the byte, and knows nothing of who was
// erased since, although the archives may.
func TestARefoldIsTheFoldOfWhatWasPruned(t *testing.T) {
	data := t.TempDir()
	must(t, keys.Init(data, "fold.example"))
	o, err := LedgerOptions(data)
	must(t, err)
	o.StreamID = 1
	led, err := ledger.Open(o)
	must(t, err)
	extend(t, led, 300)
	var all []*schemas.Event
	must(t, led.Replay(1, func(e *schemas.Event) error {
		all = append(all, e)
		return nil
	}))
	_, err = led.Checkpoint(t.Context(), 300)
	must(t, err)
	_, err = led.Prune(ledger.Prune{LastSeq: 200, Reason: "r", Actor: "a",
		Archives: []proof.Archive{{File: "a.bundle", SHA256: "00", FirstSeq: 1, LastSeq: 200}}}, time.Unix(1, 0))
	must(t, err)
	must(t, led.Close())
	for _, erased := range []bool{false, true} {
		if erased {
			led, err := ledger.Open(o)
			must(t, err)
			must(t, led.Erase("alice", "officer", "article 17", time.Unix(2, 0)))
			must(t, led.Close())
		}
		r, err := ledger.OpenReader(o)
		must(t, err)
		prefix, err := Refold(data, r, func(yield func(*schemas.Event, error) bool) {
			for _, e := range all {
				if !yield(e, nil) {
					return
				}
			}
		})
		must(t, errors.Join(err, r.Close()))
		want := release.NewCore()
		for _, e := range all[:prefix.Seq] {
			if erased && e.Agent == "alice" {
				continue
			}
			_, err := want.Step(e)
			must(t, err)
		}
		led, err := ledger.Open(o)
		must(t, err)
		folds, err := newFoldStore(data, o.Secret, o.StreamID)
		must(t, err)
		kept, seq, err := folds.load(led)
		must(t, errors.Join(err, led.Close()))
		if seq != prefix.Seq || seq == 0 || seq > 200 || !bytes.Equal(kept, want.Marshal()) {
			t.Errorf("erased %t: up to %d of %+v, kept\n%s\nwant\n%s", erased, seq, prefix, kept, want.Marshal())
		}
	}
}
