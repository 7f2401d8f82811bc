package ledger_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

type nobody struct{}

func (nobody) Durable([]*schemas.Event) error { return nil }

// TestOperatorsAreAnsweredFromARealLog runs a ledger over a real stream, under
// the rights that it has there, and asks it what operators ask.
func TestOperatorsAreAnsweredFromARealLog(t *testing.T) {
	data := t.TempDir()
	if err := keys.Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	s, err := embed.Start(embed.Options{Data: data, DontListen: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if err := s.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect := func(role keys.Role) *nats.Conn {
		creds, err := keys.Creds(data, role)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := bus.Connect(bus.Options{Role: string(role), Server: s, Creds: creds})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	signer, verifier, err := proof.Keys("acme.example", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ledger.Options{Dir: "db", AnchorDir: "anchor", FS: vfs.NewMem(), Signer: signer, Verifier: verifier, StreamID: 1})
	if err != nil {
		t.Fatal(err)
	}
	nc := connect(keys.RoleLedger)
	if err := l.Serve(nc); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entries := make(chan ledger.Entry, 1024)
	followed, ran := make(chan error, 1), make(chan error, 1)
	go func() { ran <- l.Run(ctx, entries, nobody{}) }()
	go func() {
		f := bus.Follower{Conn: nc, Consumer: string(keys.RoleLedger), From: l.From()}
		followed <- f.Run(ctx, func(e bus.Entry) error { entries <- e; return nil })
	}()
	log, err := bus.NewAppender(connect(keys.RoleIssuer))
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	for i := range 5 {
		last, err = log.Append(t.Context(), &schemas.Event{Kind: schemas.AgentPaused, Agent: fmt.Sprintf("a%d", i%2), ID: fmt.Sprint(i),
			Source: "test", Time: time.Unix(int64(i+1), 0), Reason: "test", Data: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
	}
	op := connect(keys.RoleOperator)
	head, err := bus.Call[schemas.Head](t.Context(), op, schemas.CtlHead, schemas.HeadRequest{Min: last})
	if err != nil || head.Size < last || head.StreamSeq < last {
		t.Fatalf("head: %+v, %v", head, err)
	}
	p, err := bus.Call[schemas.Proof](t.Context(), op, schemas.CtlProve, schemas.ProveRequest{Seq: last})
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err := proof.CheckInclusion(p, verifier); err != nil || r.StreamSeq != last {
		t.Errorf("proof: %+v, %v", r, err)
	}
	shown, err := bus.Call[schemas.ShowReply](t.Context(), op, schemas.CtlShow, schemas.ShowRequest{From: last})
	if err != nil || len(shown.Records) != 1 || shown.Records[0].Seq != last || shown.More || shown.Size < last {
		t.Errorf("shown: %+v, %v", shown, err)
	}
	page, err := bus.Call[schemas.ReadReply](t.Context(), op, schemas.CtlRead, schemas.ReadRequest{Agent: "a0", Data: true})
	if err != nil || len(page.Records) != 3 || string(page.Records[0].Data) != "{}" {
		t.Errorf("read: %+v, %v", page, err)
	}
	if rep, err := bus.Call[schemas.VerifyReply](t.Context(), op, schemas.CtlVerify, nil); err != nil || !rep.OK || rep.Records < last {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	var refusal *schemas.Refusal
	if _, err := bus.Call[schemas.Proof](t.Context(), op, schemas.CtlProve, schemas.ProveRequest{Seq: 1 << 40}); !errors.As(err, &refusal) || refusal.Code != schemas.CodeNotFound {
		t.Errorf("a proof of nothing: %v", err)
	}
	cancel()
	for _, end := range []chan error{followed, ran} {
		if err := <-end; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
