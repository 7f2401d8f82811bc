package issuer_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// kidOf is the kid in a token's header.
func kidOf(t testing.TB, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	must(t, err)
	var h struct{ Kid string }
	must(t, json.Unmarshal(raw, &h))
	return h.Kid
}

func (p *plane) rotate(compromised bool) schemas.RotateReply {
	p.t.Helper()
	return call[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Compromised: compromised, Reason: "test", Actor: "alice"})
}

// signedBy walks the log and reports tokens that another key signed than the
// one that the newest policy.rotated before them names.
func (p *plane) signedBy(first string) (tokens, rotations int) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	defer cancel()
	f := bus.Follower{Conn: p.role(keys.RoleMonitor), Consumer: "monitor", CaughtUp: func(uint64) { cancel() }}
	_ = f.Run(ctx, func(entry bus.Entry) error {
		e, err := entry.Event()
		if err != nil {
			return err
		}
		switch e.Kind {
		case schemas.PolicyRotated:
			var r schemas.Rotation
			must(p.t, schemas.Unmarshal(e.Data, &r))
			if r.Replaced != first {
				p.t.Errorf("event %d replaces %s, which is not %s", e.Seq, r.Replaced, first)
			}
			first = r.KeyID
			rotations++
		case schemas.TokenIssued:
			var g schemas.Grant
			must(p.t, schemas.Unmarshal(e.Data, &g))
			tokens++
			if kid := kidOf(p.t, g.Token); kid != first {
				p.t.Errorf("event %d: signed by %s, where %s signs", e.Seq, kid, first)
			}
		}
		return nil
	})
	return tokens, rotations
}

// Many callers are issued capabilities without a pause while the key is rotated
// again and again. A verifier that follows the key set by its rules alone
// refuses none, and the log says of each token which key signed it.
func TestNoTokenIsRefusedWhileTheKeyIsRotated(t *testing.T) {
	const callers, rotations = 16, 6
	var agents []schemas.Principal
	for c := range callers { // one is issued one at a time
		agents = append(agents, schemas.Principal{ID: fmt.Sprint("worker-", c), Kind: schemas.KindAgent,
			Ceiling: &schemas.Ceiling{Scope: []string{"read:data.sales"}, TTLSeconds: 7200}})
	}
	p := newPlane(t, embed.Options{})
	call[schemas.ApplyReply](p, schemas.CtlApply, fleetOf(agents...))
	first := kidOf(t, p.issue(reportRequest()).Token)
	v := jwks.New(jwks.Options{TrustDomain: "acme.example", Now: p.clock.now,
		Source: func(context.Context) ([]byte, error) { return p.issuer.JWKS(), nil }})
	verify := func(r schemas.IssueReply) error {
		_, err := v.Verify(t.Context(), r.Token, capability.Expect{Time: r.ExpiresAt.Add(-time.Second), Delivered: true})
		return err
	}
	must(t, verify(p.issue(reportRequest()))) // from here on it knows a set
	var issued, refused atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	for c := range callers {
		g.Go(func() {
			req := schemas.IssueRequest{AgentID: agents[c].ID, OperationID: "work", Scope: []string{"read:data.sales"}, TTLSeconds: 7200, Actor: "alice"}
			for ctx.Err() == nil {
				r, err := bus.Call[schemas.IssueReply](t.Context(), p.operator, schemas.CtlIssue, req)
				if err != nil {
					t.Errorf("not issued: %v", err)
					return
				}
				issued.Add(1)
				if err := verify(r); err != nil {
					refused.Add(1)
					t.Errorf("refused: %v", err)
				}
			}
		})
	}
	for n := range rotations {
		for before := issued.Load(); issued.Load() < before+callers && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		if n > 0 {
			p.clock.advance(keys.RingLead) // as long as an operator has to wait
		}
		p.rotate(false)
	}
	for before := issued.Load(); issued.Load() < before+callers && !t.Failed(); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	g.Wait()
	tokens, turns := p.signedBy(first)
	t.Logf("%d tokens, %d rotations under %d callers: %d refused", issued.Load(), turns, callers, refused.Load())
	if turns != rotations || tokens < int(issued.Load()) {
		t.Errorf("the log has %d rotations and %d tokens", turns, tokens)
	}
}

// What a stolen key signs is worthless once that is said, whether the thief
// took the successor too or waits for a restart.
func TestATokenOfACompromisedKeyNeverVerifiesAgain(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	before := p.issue(reportRequest())
	thief := p.secrets.Capability
	successor := thief.Public(time.Now())[1]
	r := p.rotate(true)
	if !r.Until.IsZero() || !r.Compromised || kidOf(t, p.issue(reportRequest()).Token) != r.KeyID {
		t.Errorf("%+v", r)
	}
	for range 2 {
		v, err := capability.NewVerifier("acme.example", p.issuer.JWKS())
		must(t, err)
		if _, err := v.Open(before.Token); !errors.Is(err, capability.ErrUnknownKey) {
			t.Errorf("the token from before: %v", err)
		}
		next, err := capability.KeyID(successor)
		must(t, err)
		if strings.Contains(string(p.issuer.JWKS()), next) {
			t.Error("the successor that was there is published")
		}
		p.stop()
		p.secrets, err = keys.OpenSecrets(p.data)
		must(t, err)
		p.start()
	}
}

// An operator with less than all rights, or with none, does not rotate; who
// does is in the log, with the reason.
func TestAdminsAloneRotate(t *testing.T) {
	p := withOperators(t)
	bob, amy := p.enroll("operator-1"), p.enroll("admin-1")
	if _, refused := command[schemas.RotateReply](t, amy, schemas.CtlRotate, schemas.RotateRequest{Actor: "x"}); refused == nil || refused.Code != schemas.CodeMalformed {
		t.Errorf("without a reason: %v", refused)
	}
	if mayPublish(t, bob, schemas.CtlRotate) {
		t.Error("an operator may ask for it")
	}
	r, refused := command[schemas.RotateReply](t, amy, schemas.CtlRotate, schemas.RotateRequest{Reason: "quarter", Actor: "x"})
	if refused != nil {
		t.Fatal(refused)
	}
	if e := p.lastEvent("ev._fleet.policy.rotated"); e.Actor != "admin-1" || e.Reason != "quarter" || e.Seq != r.Seq {
		t.Errorf("%+v", e)
	}
	refusal[schemas.RotateReply](p, schemas.CtlRotate, schemas.RotateRequest{Reason: "again", Actor: "alice"}, schemas.CodeConflict)
}

// A crash between the keys and the log leaves no rotation that nobody is told
// of.
func TestARotationThatTheLogMissedIsToldAfterARestart(t *testing.T) {
	p := newPlane(t, embed.Options{})
	p.apply()
	first := kidOf(t, p.issue(reportRequest()).Token)
	p.stop()
	must(t, p.secrets.Capability.Rotate(p.clock.now(), false, "alice", "quarter"))
	kid := p.secrets.Capability.Untold.Rotation.KeyID
	var err error
	p.secrets, err = keys.OpenSecrets(p.data)
	must(t, err)
	p.start()
	for told := false; !told; time.Sleep(10 * time.Millisecond) {
		s, err := keys.OpenSecrets(p.data)
		must(t, err)
		told = s.Capability.Untold == nil
	}
	if e := p.lastEvent("ev._fleet.policy.rotated"); e.Actor != "alice" || e.Reason != "quarter" || !strings.Contains(string(e.Data), kid) || !strings.Contains(string(e.Data), first) {
		t.Errorf("%+v", e)
	}
}
