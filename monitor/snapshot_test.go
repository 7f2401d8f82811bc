package monitor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/writ-sh/writ/schemas"
)

// caches are the fields that follow from others: they are not written down, and
// restored as nothing.
var caches = map[string]bool{"live.alike": true, "live.alikeAt": true, "live.rarity": true,
	"agent.used": true, "baseline.looks": true, "baseline.attic": true, "template.used": true, "template.lies": true, "template.packed": true}

// outside are the parts of a Model that are no state: options, and room to work.
var outside = map[string]bool{"weights": true, "explainFrom": true, "version": true, "extract": true, "factors": true,
	"scratch": true, "traits": true, "uses": true, "stems": true, "mine": true, "nobody": true, "fleet": true, "attic": true, "aside": true, "queue": true, "packing": true, "resident": true, "jobs": true}

// fill sets everything that can be reached to something of its own.
func fill(t *testing.T, v reflect.Value, n *uint64) {
	t.Helper()
	*n++
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(int64(*n), int64(*n)).UTC()))
		return
	}
	if v.Type() == reflect.TypeFor[toolID]() {
		v.Set(reflect.ValueOf(toolNamed(schemas.Action{Verb: fmt.Sprintf("verb-%d", *n), Resource: "resource"})))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(*n%200 + 1)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(*n)
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", *n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), n)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, key, n)
			fill(t, value, n)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if caches[v.Type().Name()+"."+v.Type().Field(i).Name] || v.Type() == reflect.TypeFor[Model]() && outside[v.Type().Field(i).Name] {
				continue
			}
			fill(t, reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem(), n)
		}
	default:
		t.Fatalf("state of kind %s: the test does not know it", v.Kind())
	}
}

// A field that somebody adds and forgets in the codec would be lost by a
// restart, and verdicts would come out otherwise.
func TestASnapshotLeavesNoFieldOut(t *testing.T) {
	m, n := New(Options{}), uint64(100)
	fill(t, reflect.ValueOf(m).Elem(), &n)
	for _, a := range m.agents { // two of one run that is followed, two of one that is not
		for _, r := range a.runs {
			a.held[1], a.held[2] = &heldAction{run: r, score: 3}, &heldAction{run: r, score: 4}
		}
		lone := newRun()
		lone.jti, lone.task, lone.seen = "lone", []byte("task"), map[uint64]sighting{}
		a.held[3], a.held[4] = &heldAction{run: lone, score: 5}, &heldAction{run: lone, score: 6}
	}
	got, err := Restore(Options{}, m.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[Model]().NumField() {
		name := reflect.TypeFor[Model]().Field(i).Name
		at := func(m *Model) any {
			f := reflect.ValueOf(m).Elem().Field(i)
			return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Interface()
		}
		if !outside[name] && !reflect.DeepEqual(at(m), at(got)) {
			t.Errorf("%s did not survive:\n%+v\n%+v", name, at(m), at(got))
		}
	}
	for name, a := range m.agents {
		x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(got.agents[name]).Elem()
		for i := range x.NumField() {
			at := func(v reflect.Value) any {
				return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem().Interface()
			}
			if !reflect.DeepEqual(at(x.Field(i)), at(y.Field(i))) {
				t.Errorf("%s of an agent did not survive:\n%+v\n%+v", x.Type().Field(i).Name, x.Field(i), y.Field(i))
			}
		}
	}
	for _, a := range got.agents {
		if a.held[1].run != a.held[2].run || a.held[3].run != a.held[4].run || a.held[1].run == a.held[3].run {
			t.Error("held actions of one run came back with runs of their own")
		}
	}
}

// A monitor that is restarted after every single event gives each verdict as
// the one that never was, and stands where that one stands.
func TestARestartAtAnyEventChangesNoByte(t *testing.T) {
	log := recordedRuns(t, 24)
	straight, broken := New(Options{}), New(Options{})
	rng := rand.New(rand.NewPCG(7, 8))
	for i, e := range log {
		if err := errors.Join(straight.Apply(e), broken.Apply(e)); err != nil {
			t.Fatal(err)
		}
		if i%16 != 0 && len(e.Verdict) == 0 && rng.IntN(4) != 0 {
			continue
		}
		b := broken.Snapshot()
		if !bytes.Equal(b, straight.Snapshot()) {
			t.Fatalf("after event %d the restarted one stands elsewhere", e.Seq)
		}
		var err error
		if broken, err = Restore(Options{}, b); err != nil {
			t.Fatal(err)
		}
		next := *log[min(i+1, len(log)-1)]
		if next.Action != (schemas.Action{}) {
			if v, w := schemas.Marshal(straight.Assess(&next)), schemas.Marshal(broken.Assess(&next)); !bytes.Equal(v, w) {
				t.Fatalf("after event %d:\n%s\n%s", e.Seq, v, w)
			}
		}
	}
	if len(straight.agents["analyst"].history) == 0 {
		t.Error("the log tried nothing")
	}
}

// What an operation's renewed capability says of the task counts at once, also
// where the old task's words had been compared with other jobs.
func TestARenewedTaskIsComparedAnew(t *testing.T) {
	p := trained(t, 25, "analyst")
	o := p.issue("analyst", "essay", "write an essay about owls")
	asked := o.draft("call:mail", `{"to":"x@y.example"}`)
	p.m.Assess(asked) // keeps how alike the jobs are
	g := schemas.Grant{JTI: "jti-" + o.name, Agent: "analyst", Operation: o.name, Job: "essay", Task: defaultTask, Scope: []string{"call:mail"}}
	p.put(&schemas.Event{Kind: schemas.TokenIssued, Agent: "analyst", Time: p.now, Operation: o.name, JTI: g.JTI, Data: schemas.Marshal(g)})
	again, err := Restore(Options{}, p.m.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	if v, w := show(p.m.Assess(asked)), show(again.Assess(asked)); v != w {
		t.Errorf("what was asked before shows in the verdict:\n%s\n%s", v, w)
	}
}

func TestASnapshotThatIsDamagedOrForeignIsRefused(t *testing.T) {
	p := trained(t, 3, "analyst")
	b := p.m.Snapshot()
	other := Reference
	other.Base++
	if _, err := Restore(Options{Weights: &other}, b); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), "wrote it") {
		t.Errorf("a snapshot of another model: %v", err)
	}
	for i := 0; i < len(b); i += 97 {
		changed := bytes.Clone(b)
		changed[i] ^= 4
		if _, err := Restore(Options{}, changed); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("byte %d of %d was changed: %v", i, len(b), err)
		}
	}
	for _, short := range [][]byte{nil, b[:10], b[:len(snapshotMagic)+3], b[:len(b)-1], b[:len(b)/2]} {
		if _, err := Restore(Options{}, short); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%d bytes: %v", len(short), err)
		}
	}
	// Right sums over wrong contents: the reader itself must refuse.
	body := b[:len(b)-sha256.Size]
	for n := len(snapshotMagic); n < len(body); n += 41 {
		sum := sha256.Sum256(body[:n])
		if _, err := Restore(Options{}, append(bytes.Clone(body[:n]), sum[:]...)); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func FuzzRestore(f *testing.F) {
	m := New(Options{})
	b := m.Snapshot()
	f.Add(b[len(snapshotMagic) : len(b)-sha256.Size])
	f.Fuzz(func(t *testing.T, body []byte) {
		body = append([]byte(snapshotMagic), body...)
		sum := sha256.Sum256(body)
		whole := append(body, sum[:]...)
		m, err := Restore(Options{}, whole)
		if err != nil {
			if !errors.Is(err, ErrSnapshot) {
				t.Fatal(err)
			}
			return
		}
		again, err := Restore(Options{}, m.Snapshot())
		if err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) {
			t.Fatalf("what was read is not what is written: %v", err)
		}
	})
}

// TestTheDigestOfALog says in one number what a log comes to: every verdict, and
// the model that stands at the end. The test below has it run by other builds.
func TestTheDigestOfALog(t *testing.T) {
	t.Logf("digest %s", digestOfALog(t))
}

func digestOfALog(t *testing.T) string {
	h, m := sha256.New(), New(Options{})
	for i, e := range recordedRuns(t, 40) {
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
		h.Write(e.Verdict)
		if i%100 == 99 {
			b := m.Snapshot()
			h.Write(b)
			var err error
			if m, err = Restore(Options{}, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.Write(m.Snapshot())
	return hex.EncodeToString(h.Sum(nil))
}

// Another instruction set (with fused multiply-add, where there is one), one
// processor or two: the same bytes.
func TestEveryBuildGivesTheSameBytes(t *testing.T) {
	want, levels := digestOfALog(t), []string{""}
	if runtime.GOARCH == "amd64" {
		levels = []string{"v1", "v2"}
		if cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasBMI2 {
			levels[1] = "v3"
		}
	}
	for _, level := range levels {
		binary := filepath.Join(t.TempDir(), "monitor"+level)
		build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
		build.Env = append(os.Environ(), "GOAMD64="+level)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build for %q: %v\n%s", level, err, out)
		}
		for _, procs := range []string{"1", "2"} {
			run := exec.CommandContext(t.Context(), binary, "-test.run", "^TestTheDigestOfALog$", "-test.v")
			run.Env = append(os.Environ(), "GOMAXPROCS="+procs)
			out, err := run.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "digest "+want) {
				t.Errorf("GOAMD64=%s GOMAXPROCS=%s: %v\n%swant %s", level, procs, err, out, want)
			}
		}
	}
}

// BenchmarkFold is what a restart folds behind its snapshot, for each event.
func BenchmarkFold(b *testing.B) {
	l := benchLog{model: New(Options{}), time: time.Unix(1_700_000_000, 0).UTC()}
	var log []*schemas.Event
	l.keep = func(e *schemas.Event) { log = append(log, e) }
	if err := l.fill(4, 40); err != nil {
		b.Fatal(err)
	}
	b.Run("event", func(b *testing.B) {
		m, i := New(Options{}), 0
		for b.Loop() {
			if i == len(log) {
				m, i = New(Options{}), 0
			}
			if err := m.Apply(log[i]); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	b.Run("restore", func(b *testing.B) { // of four agents
		snapshot := l.model.Snapshot()
		b.SetBytes(int64(len(snapshot)))
		for b.Loop() {
			if _, err := Restore(Options{}, snapshot); err != nil {
				b.Fatal(err)
			}
		}
	})
}
