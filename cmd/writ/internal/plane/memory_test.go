package plane

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// startOn starts a control plane on a folder, and an operator of it.
func startOn(t *testing.T, data string) (*Plane, *nats.Conn) {
	t.Helper()
	p, err := Start(t.Context(), Options{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(operator.Close)
	return p, operator
}

func memoryStatus(t *testing.T, operator *nats.Conn) schemas.AgentStatus {
	t.Helper()
	rep, err := bus.Call[schemas.StatusReply](t.Context(), operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: schemas.MemoryID})
	if err != nil || len(rep.Agents) != 1 {
		t.Fatalf("status of memory: %+v, %v", rep, err)
	}
	return rep.Agents[0]
}

// The kill of an operator's is for good: no restart undoes it, also where what
// is killed is a part of the control plane, which enrols that part by itself.
func TestARestartDoesNotBringBackAKilledMemoryService(t *testing.T) {
	data := t.TempDir()
	p, operator := startOn(t, data)
	if s := memoryStatus(t, operator); s.State != schemas.Active || s.Connections != 1 {
		t.Fatalf("at the start: %+v", s)
	}
	if _, err := bus.Call[schemas.Receipt](t.Context(), operator, schemas.CtlLock,
		schemas.LockRequest{AgentID: schemas.MemoryID, Lock: schemas.Killed, Reason: "leak", Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	_, operator = startOn(t, data)
	if s := memoryStatus(t, operator); s.State != schemas.Killed || s.Connections != 0 {
		t.Fatalf("after a restart: %+v", s)
	}

	// Enrolled by an operator, it serves again without a further start.
	e, err := bus.Call[schemas.EnrollReply](t.Context(), operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: schemas.MemoryID, Actor: "test"})
	if err == nil {
		err = keys.WriteSecret(data, memoryCreds, []byte(e.Creds))
	}
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := memoryStatus(t, operator)
		if s.State == schemas.Active && s.Connections == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("enrolled again: %+v", s)
		}
	}
}

// oldMemoryUser is the memory service's user as older versions had it: in
// CONTROL, where JetStream published for it whatever it had stored.
func oldMemoryUser(t *testing.T, data string) (creds []byte) {
	t.Helper()
	dir := filepath.Join(data, keys.Dir)
	trust, err := keys.Open(data)
	must(t, err)
	seed, err := os.ReadFile(filepath.Join(dir, "accounts", keys.CONTROL+".seed"))
	must(t, err)
	signer, err := nkeys.ParseDecoratedNKey(seed)
	must(t, err)
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	c := jwt.NewUserClaims(public)
	c.IssuerAccount = trust.Accounts[keys.CONTROL]
	c.Pub.Allow.Add("$KV.MEMORY.>", "$JS.API.STREAM.INFO.KV_MEMORY", "$JS.API.DIRECT.GET.KV_MEMORY.>")
	c.Sub.Allow.Add("_INBOX_memory.>")
	token, err := c.Encode(signer)
	must(t, err)
	private, err := user.Seed()
	must(t, err)
	creds, err = jwt.FormatUserConfig(token, private)
	must(t, err)
	return creds
}

// bucket makes a bucket as one user and fills it as another.
func bucket(t *testing.T, s *embed.Server, maker, user []byte, fill func(kv jetstream.KeyValue)) {
	t.Helper()
	var js [2]jetstream.JetStream
	for i, c := range []struct {
		role  keys.Role
		creds []byte
	}{{keys.RoleInit, maker}, {keys.RoleMemory, user}} {
		nc, err := bus.Connect(bus.Options{Role: string(c.role), Server: s, Creds: c.creds, Options: []nats.Option{nats.CustomInboxPrefix(inboxOf(t, c.creds))}})
		must(t, err)
		defer nc.Close()
		js[i], err = jetstream.New(nc)
		must(t, err)
	}
	_, err := js[0].CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "MEMORY", History: 5})
	must(t, err)
	kv, err := js[1].KeyValue(t.Context(), "MEMORY")
	must(t, err)
	fill(kv)
}

// inboxOf is where a user may await answers.
func inboxOf(t *testing.T, creds []byte) string {
	t.Helper()
	token, err := jwt.ParseDecoratedJWT(creds)
	must(t, err)
	c, err := jwt.DecodeUserClaims(token)
	must(t, err)
	return strings.TrimSuffix(c.Sub.Allow[0], ".>")
}

// oldBucket fills the bucket in CONTROL where older versions had it.
func oldBucket(t *testing.T, data string, oldCreds []byte, fill func(kv jetstream.KeyValue), beside func(*embed.Server)) {
	t.Helper()
	s, err := embed.Start(embed.Options{Data: data, DontListen: true})
	must(t, err)
	defer s.Stop()
	creds, err := keys.Creds(data, keys.RoleInit)
	must(t, err)
	bucket(t, s, creds, oldCreds, fill)
	beside(s)
}

// age makes a data folder what an older version left: the memory service's
// user and bucket in CONTROL, and no account of its own.
func age(t *testing.T, data string, fill func(kv jetstream.KeyValue)) (oldCreds []byte) {
	t.Helper()
	must(t, keys.Init(data, DefaultTrustDomain))
	oldCreds = oldMemoryUser(t, data)
	oldBucket(t, data, oldCreds, fill, func(*embed.Server) {})
	dir := filepath.Join(data, keys.Dir)
	for _, name := range []string{"accounts/MEMORY.jwt", "accounts/MEMORY.seed", "offline/MEMORY.seed", "creds/init-memory.creds"} {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	must(t, os.WriteFile(keys.CredsPath(data, keys.RoleMemory), oldCreds, 0o600))
	var trust keys.Trust
	b, err := os.ReadFile(filepath.Join(dir, "trust.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &trust))
	delete(trust.Accounts, keys.MEMORY)
	trust.Rights = "" // older versions did not say
	b, err = json.Marshal(trust)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "trust.json"), b, 0o600))
	return oldCreds
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A folder of an older version finds its memories, with their history, and
// the user that could reach CONTROL is let in no more.
func TestMemoriesOfAnOlderFolderMoveIntoTheirOwnAccount(t *testing.T) {
	data := t.TempDir()
	ctx := t.Context()
	oldCreds := age(t, data, func(kv jetstream.KeyValue) {
		for _, value := range []string{"monday", "tuesday", "wednesday"} {
			_, err := kv.PutString(ctx, "alice.diary", value)
			must(t, err)
		}
		_, err := kv.PutString(ctx, "alice.secret", "shredded")
		must(t, err)
		must(t, kv.Delete(ctx, "alice.secret"))
		_, err = kv.PutString(ctx, "bob.note", "")
		must(t, err)
	})
	p, operator := startOn(t, data)
	creds, err := keys.Creds(data, keys.RoleMemory)
	must(t, err)
	look := func(p *Plane) {
		t.Helper()
		nc, err := p.dial(string(keys.RoleMemory), creds)
		must(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		must(t, err)
		kv, err := js.KeyValue(ctx, "MEMORY")
		must(t, err)
		history, err := kv.History(ctx, "alice.diary")
		must(t, err)
		if len(history) != 3 || string(history[0].Value()) != "monday" || string(history[2].Value()) != "wednesday" {
			t.Errorf("the diary's history: %v", history)
		}
		if e, err := kv.Get(ctx, "alice.secret"); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("what was deleted: %v, %v", e, err)
		}
		if e, err := kv.Get(ctx, "bob.note"); err != nil || len(e.Value()) != 0 {
			t.Errorf("an empty value: %v, %v", e, err)
		}
	}
	look(p)
	if nc, err := nats.Connect(p.URL(), nats.UserCredentialBytes(oldCreds)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the old user in CONTROL: %v", err)
		if err == nil {
			nc.Close()
		}
	}

	// The governed service serves what was moved.
	_, err = bus.Call[schemas.ApplyReply](ctx, operator, schemas.CtlApply, schemas.ApplyRequest{Add: true, Actor: "test", Principals: []schemas.Principal{{
		ID: "alice", Kind: schemas.KindAgent, Ceiling: &schemas.Ceiling{Scope: []string{"memory:get", "memory:put"}, TTLSeconds: 300}}}})
	must(t, err)
	g, err := bus.Call[schemas.IssueReply](ctx, operator, schemas.CtlIssue, schemas.IssueRequest{AgentID: "alice", OperationID: "op", Scope: []string{"memory:get", "memory:put"}, Actor: "test"})
	must(t, err)
	alice, err := nats.Connect(p.URL(), nats.UserCredentialBytes([]byte(g.Creds)))
	must(t, err)
	defer alice.Close()
	if m, err := alice.RequestWithContext(ctx, "out.op.memory.get.diary", nil); err != nil || string(m.Data) != "wednesday" {
		t.Errorf("alice reads %+v, %v", m, err)
	}

	// A second start moves nothing, and loses nothing.
	if m, err := alice.RequestWithContext(ctx, "out.op.memory.put.new", []byte("thursday")); err != nil || bus.ReadRefusal(m) != nil {
		t.Fatalf("alice writes: %+v, %v", m, err)
	}
	must(t, p.Stop(ctx))
	p, _ = startOn(t, data)
	look(p)
	nc, err := p.dial(string(keys.RoleMemory), creds)
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	kv, err := js.KeyValue(ctx, "MEMORY")
	must(t, err)
	if e, err := kv.Get(ctx, "alice.new"); err != nil || string(e.Value()) != "thursday" {
		t.Errorf("what was written after the move: %v, %v", e, err)
	}
}

// A move that was interrupted left a part of the memories in the new account,
// and all of them in the old one.
func TestAMoveOfMemoriesThatWasInterruptedIsDoneAgain(t *testing.T) {
	data := t.TempDir()
	ctx := t.Context()
	must(t, keys.Init(data, DefaultTrustDomain))
	maker, err := keys.Creds(data, keys.RoleInitMemory)
	must(t, err)
	creds, err := keys.Creds(data, keys.RoleMemory)
	must(t, err)
	oldBucket(t, data, oldMemoryUser(t, data), func(kv jetstream.KeyValue) {
		for _, value := range []string{"monday", "tuesday"} {
			_, err := kv.PutString(ctx, "alice.diary", value)
			must(t, err)
		}
	}, func(s *embed.Server) {
		bucket(t, s, maker, creds, func(kv jetstream.KeyValue) {
			_, err := kv.PutString(ctx, "alice.diary", "monday")
			must(t, err)
		})
	})
	p, _ := startOn(t, data)
	nc, err := p.dial(string(keys.RoleMemory), creds)
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	kv, err := js.KeyValue(ctx, "MEMORY")
	must(t, err)
	history, err := kv.History(ctx, "alice.diary")
	must(t, err)
	if len(history) != 2 || string(history[0].Value()) != "monday" || string(history[1].Value()) != "tuesday" {
		t.Errorf("the diary's history: %v", history)
	}
}
