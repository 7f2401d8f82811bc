package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

const livingFleet = `trust_domain: living.example
agents:
  - id: victim
    ceiling: {scope: ["memory:get", "memory:put", send:worker], tools: [echo], ttl: 1h}
  - id: worker
    rate: {per_second: 10000, burst: 10000}
    ceiling: {scope: ["memory:get", "memory:put"], tools: [echo], ttl: 1h}
services:
  - id: echo
    serves: [call:echo]
    tools: {echo: {class: read, description: "says that it came"}}
`

// A living is a control plane under load, and operators at its command line.
type living struct {
	*testing.T
	data, url string
	ctx       context.Context
}

func (l *living) start(data string) (stop func()) {
	l.Helper()
	fleet := filepath.Join(l.TempDir(), "fleet.yaml")
	if err := os.WriteFile(fleet, []byte(livingFleet), 0o600); err != nil {
		l.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(l.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	p, err := plane.Start(l.ctx, plane.Options{Data: data, Fleet: fleet, Actor: "test", Retention: 5 * time.Second, VerifyShare: 0.05, Logger: log})
	if err != nil {
		l.Fatal(err)
	}
	l.data, l.url = data, p.URL()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			if err := p.Stop(context.WithoutCancel(l.ctx)); err != nil {
				l.Error(err)
			}
		})
	}
	l.Cleanup(stop)
	return stop
}

// writ runs a command, and reads what it prints.
func (l *living) writ(into any, args ...string) {
	l.Helper()
	var out, errs bytes.Buffer
	if code := run(append(args, "--json", "--data", l.data), strings.NewReader(""), &out, &errs); code != exitDone {
		l.Fatalf("writ %v: exit %d\n%s%s", args, code, out.String(), errs.String())
	}
	if into != nil {
		if err := json.Unmarshal(out.Bytes(), into); err != nil {
			l.Fatal(err)
		}
	}
}

// refused runs a command that must fail, and gives what it says.
func (l *living) refused(args ...string) string {
	l.Helper()
	var out, errs bytes.Buffer
	if code := run(append(args, "--json", "--data", l.data), strings.NewReader(""), &out, &errs); code == exitDone {
		l.Fatalf("writ %v is done:\n%s", args, out.String())
	}
	return out.String() + errs.String()
}

func (l *living) connect(args ...string) *nats.Conn {
	l.Helper()
	creds := filepath.Join(l.TempDir(), "a.creds")
	if args[0] == "issue" {
		l.writ(nil, append(args, "--creds", creds)...)
	} else {
		l.writ(nil, append(args, "--out", creds)...)
	}
	nc, err := nats.Connect(l.url, nats.UserCredentials(creds), nats.MaxReconnects(-1))
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(nc.Close)
	return nc
}

// ask sends a request until it is answered well, and gives its sequence.
func (l *living) ask(nc *nats.Conn, subject, body string) uint64 {
	l.Helper()
	var last string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		m, err := nc.Request(subject, []byte(body), 10*time.Second)
		if err != nil {
			last = err.Error()
			continue
		}
		if code := m.Header.Get(schemas.HeaderErrorCode); code != "" {
			last = code + " " + m.Header.Get(schemas.HeaderError)
			continue
		}
		seq, _ := strconv.ParseUint(m.Header.Get(schemas.HeaderSeq), 10, 64)
		return seq
	}
	l.Fatalf("%s is not answered: %s", subject, last)
	return 0
}

// load answers for the service, and lets a worker work until stopped.
func (l *living) load() (stop func() int) {
	echo := l.connect("enroll", "echo")
	if _, err := echo.Subscribe("in.call.echo", func(m *nats.Msg) { _ = m.Respond([]byte("it came")) }); err != nil {
		l.Fatal(err)
	}
	if err := echo.Flush(); err != nil {
		l.Fatal(err)
	}
	worker := l.connect("issue", "--agent", "worker", "--operation", "load", "--tool", "echo", "--ttl", "1h")
	ctx, cancel := context.WithCancel(l.ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				body := fmt.Sprintf("%d %d %s", i, n, strings.Repeat("load ", 6000))
				m, err := worker.RequestWithContext(ctx, "out.load.call.echo", []byte(body))
				if err == nil && m.Header.Get(schemas.HeaderErrorCode) == "" {
					mu.Lock()
					done++
					mu.Unlock()
				}
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return done
	}
}

// filesWith lists the files below a folder that hold a text.
func filesWith(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte(text)) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRetentionOfALivingControlPlane: pruning, erasure, backup and restore
// while agents work. Somebody who gets hold of the disk afterwards looks for
// what was erased; an auditor holds proofs from before against what is left.
func TestRetentionOfALivingControlPlane(t *testing.T) {
	const marker = "MARKER-7d1f0c-of-the-victim"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := &living{T: t, ctx: ctx}
	stop := l.start(t.TempDir())
	endLoad := l.load()
	victim := l.connect("issue", "--agent", "victim", "--operation", "op", "--tool", "echo", "--scope", "memory:put", "--scope", "memory:get",
		"--scope", "send:worker", "--task", "task "+marker, "--ttl", "1h")
	seq := l.ask(victim, "out.op.call.echo", marker+" in a call")
	// Another's memories keep the bucket's file in use.
	other := l.connect("issue", "--agent", "worker", "--operation", "mem", "--scope", "memory:put", "--scope", "memory:get", "--ttl", "1h")
	for i := range 12 {
		l.ask(other, fmt.Sprint("out.mem.memory.put.note", i), strings.Repeat("kept ", 100))
	}
	for i := range 3 {
		l.ask(victim, "out.op.memory.put.notes.diary", fmt.Sprint(marker, " in memory ", i))
	}
	l.ask(victim, "out.op.send.worker", marker+" in a message")

	var early schemas.Proof
	l.writ(&early, "ledger", "prove", strconv.FormatUint(seq, 10))
	var before schemas.Head
	l.writ(&before, "ledger", "head")
	if len(filesWith(t, l.data, marker)) == 0 {
		t.Fatal("the marker is nowhere on disk before it is erased: this test would find nothing")
	}

	redact := []string{"ledger", "redact", "--agent", "victim", "--authority", "data protection officer", "--reason", "article 17"}
	if said := l.refused(redact...); !strings.Contains(said, "--confirm") {
		t.Errorf("an erasure without confirmation: %s", said)
	}
	if said := l.refused(append(redact, "--confirm", "victim")...); !strings.Contains(said, "kill") {
		t.Errorf("an erasure of an agent at work: %s", said)
	}
	l.writ(nil, "kill", "victim", "--reason", "it is to be forgotten")
	var erased schemas.EraseReply
	l.writ(&erased, append(redact, "--confirm", "victim")...)
	if !erased.Memory {
		t.Error("the memories were not erased")
	}

	var status statusDoc
	l.writ(&status, "status", "victim")
	if len(status.Agents) != 1 || status.Agents[0].State != schemas.Killed {
		t.Errorf("the victim is dead and erased: %+v", status.Agents)
	}

	// What EVENTS holds is not pruned; then it ages out.
	var none pruneDoc
	l.writ(&none, "ledger", "prune", "--keep", "1h", "--archive", t.TempDir())
	if none.LastSeq != 0 {
		t.Errorf("pruned what is younger than asked for: %+v", none)
	}
	gone := l.agedOut(seq + 1000)
	archive := filepath.Join(t.TempDir(), "archive")
	var pruned pruneDoc
	l.writ(&pruned, "ledger", "prune", "--keep", "1s", "--archive", archive)
	if now := l.agedOut(0); pruned.LastSeq < seq || pruned.LastSeq >= now || len(pruned.Archives) == 0 {
		t.Fatalf("pruned %+v; event %d is old, EVENTS began at %d and begins at %d", pruned, seq, gone, now)
	}
	l.archivesHold(archive, pruned, l.data)
	l.agedOut(pruned.LastSeq + 200)
	l.retains(archive, len(pruned.Archives))

	dir := filepath.Join(t.TempDir(), "backup")
	var backup backupDoc
	l.writ(&backup, "ledger", "backup", dir, "--with-keys")
	if done := endLoad(); done < 10 {
		t.Errorf("under load: %d calls", done)
	}

	l.proven(early, before, seq)
	stop()
	data := l.data
	stop = l.start(data) // rewrites the bucket
	l.proven(early, before, seq)
	l.works()
	stop()
	if len(filesWith(t, filepath.Join(data, "nats"), "kept kept")) == 0 {
		t.Error("the memories of others are gone")
	}
	// The backup is from before that start: its bucket holds what was deleted.
	for _, place := range []string{data, filepath.Join(dir, "ledger"), filepath.Join(dir, "release"), archive} {
		if found := filesWith(t, place, marker); len(found) > 0 {
			t.Errorf("the erased plaintext still stands in %v", found)
		}
	}
	l.rolledBack(data, dir)

	l.data = t.TempDir()
	var restored restoreDoc
	l.writ(&restored, "ledger", "restore", dir)
	if restored.Records < backup.Records || restored.RolledBack != 0 {
		t.Errorf("restored %+v of %+v", restored, backup)
	}
	l.start(l.data)
	l.proven(early, before, seq)
	l.works()
}

// rolledBack attacks with a backup: it is put where the anchor knows more.
func (l *living) rolledBack(data, backup string) {
	l.Helper()
	l.data = filepath.Join(l.TempDir(), "data")
	if err := copyTree(filepath.Join(data, "anchor"), filepath.Join(l.data, "anchor")); err != nil {
		l.Fatal(err)
	}
	if said := l.refused("ledger", "restore", backup); !strings.Contains(said, "undo") {
		l.Errorf("a rollback by a backup: %s", said)
	}
	var doc restoreDoc
	l.writ(&doc, "ledger", "restore", backup, "--rollback", "the disk is lost")
	kept, err := filepath.Glob(filepath.Join(l.data, "anchor", "rolled-back-*", "head"))
	if doc.RolledBack == 0 || err != nil || len(kept) != 1 {
		l.Errorf("%+v; the anchor that was left behind: %v, %v", doc, kept, err)
	}
}

// agedOut waits until EVENTS begins behind a sequence.
func (l *living) agedOut(seq uint64) (first uint64) {
	l.Helper()
	creds, err := keys.Creds(l.data, keys.RoleInit)
	if err != nil {
		l.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(keys.RoleInit), URL: l.url, Creds: creds})
	if err != nil {
		l.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		l.Fatal(err)
	}
	for {
		s, err := js.Stream(l.ctx, schemas.Stream)
		if err != nil {
			l.Fatal(err)
		}
		if first = s.CachedInfo().State.FirstSeq; first > seq {
			return first
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// retains demands that the policy of writ up prunes by itself, into the same
// folder, and ends when it is told.
func (l *living) retains(dir string, before int) {
	l.Helper()
	ctx, cancel := context.WithCancel(l.ctx)
	app := &App{globals: globals{Data: l.data}, terminal: newTerminal(io.Discard, io.Discard), actor: "writ"}
	var policy sync.WaitGroup
	policy.Go(func() {
		retaining{Retain: time.Second, Archive: dir}.run(ctx, app, slog.New(slog.DiscardHandler))
	})
	for {
		files, err := os.ReadDir(dir)
		if err != nil {
			l.Fatal(err)
		}
		if len(files) > before {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	policy.Wait()
}

// archivesHold verifies the archives as somebody elsewhere does.
func (l *living) archivesHold(dir string, p pruneDoc, data string) {
	l.Helper()
	next := uint64(1)
	for _, a := range p.Archives {
		var doc bundleDoc
		l.writ(&doc, "ledger", "verify-bundle", filepath.Join(dir, a.File), "--key", filepath.Join(data, keys.Dir, "ledger.pub"))
		if !doc.OK || !doc.Complete || doc.FirstSeq != next || doc.LastSeq != a.LastSeq {
			l.Errorf("archive %+v: %+v", a, doc)
		}
		next = doc.LastSeq + 1
	}
	if next <= p.LastSeq {
		l.Errorf("the archives end before %d, pruned up to %d", next, p.LastSeq)
	}
}

// proven holds what was proven in the beginning against the ledger now.
func (l *living) proven(early schemas.Proof, before schemas.Head, seq uint64) {
	l.Helper()
	key, err := os.ReadFile(filepath.Join(l.data, keys.Dir, "ledger.pub"))
	if err != nil {
		l.Fatal(err)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		l.Fatal(err)
	}
	if _, _, err := proof.CheckInclusion(early, v); err != nil {
		l.Errorf("the early proof: %v", err)
	}
	var late ledgerProofDoc
	l.writ(&late, "ledger", "prove", strconv.FormatUint(seq, 10))
	if !late.Checked || late.Leaf != early.Leaf || late.Index != early.Index {
		l.Errorf("the event of the early proof is another: %+v", late)
	}
	var whole ledgerVerifyDoc
	l.writ(&whole, "ledger", "verify")
	if !whole.OK || whole.Records < before.Size {
		l.Errorf("%+v", whole)
	}
}

// works shows that agents are served.
func (l *living) works() {
	l.Helper()
	endLoad := l.load()
	time.Sleep(200 * time.Millisecond)
	worker := l.connect("issue", "--agent", "worker", "--operation", "again", "--tool", "echo", "--ttl", "1h")
	l.ask(worker, "out.again.call.echo", "is anybody there")
	endLoad()
}
