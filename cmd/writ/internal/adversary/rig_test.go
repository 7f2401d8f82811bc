// Package adversary attacks a whole control plane as somebody who has read its
// source: with stock clients, with the protocol spoken by hand, with stolen
// keys and with the credentials of its own services.
//
// An attack counts as successful when its effect is seen, never by the absence
// of an error: a canary at somebody else's connection, a secret at the
// attacker's, or a trace in the log that should not be there. What must go red
// does: TestTheMatrixFindsRightsThatAreTooWide widens the rights and demands
// that the same ways succeed.
package adversary

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// within bounds every wait for something that must happen.
const within = 20 * time.Second

// A rig is a running control plane and what the test knows of it.
type rig struct {
	t       *testing.T
	data    string
	plane   *plane.Plane
	ops     *nats.Conn // an operator
	reader  *nats.Conn // may ask how far EVENTS goes
	secrets *keys.Secrets
}

// start runs a control plane over a fleet file until the test ends.
func start(t *testing.T, fleet string) *rig {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "fleet.yaml")
	must(t, os.WriteFile(file, []byte(fleet), 0o600))
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	r := &rig{t: t, data: filepath.Join(dir, "data")}
	var err error
	r.plane, err = plane.Start(t.Context(), plane.Options{Data: r.data, Fleet: file, Actor: "rig", Logger: log})
	must(t, err)
	t.Cleanup(func() {
		if err := r.plane.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	r.ops, err = r.plane.Operator()
	must(t, err)
	t.Cleanup(r.ops.Close)
	r.reader = r.role(keys.RoleLedger)
	r.secrets, err = keys.OpenSecrets(r.data)
	must(t, err)
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition, which must come true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

func call[Rep any](r *rig, subject string, req any) Rep {
	r.t.Helper()
	rep, err := bus.Call[Rep](r.t.Context(), r.ops, subject, req)
	must(r.t, err)
	return rep
}

func (r *rig) issue(req schemas.IssueRequest) schemas.IssueReply {
	r.t.Helper()
	req.Actor = "rig"
	return call[schemas.IssueReply](r, schemas.CtlIssue, req)
}

func (r *rig) enroll(id string) string {
	r.t.Helper()
	return call[schemas.EnrollReply](r, schemas.CtlEnroll, schemas.EnrollRequest{ID: id, Actor: "rig"}).Creds
}

// dial connects as a stock client.
func (r *rig) dial(creds string, opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(r.plane.URL(), append([]nats.Option{nats.UserCredentialBytes([]byte(creds)), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)...)
	if err == nil {
		r.t.Cleanup(nc.Close)
	}
	return nc, err
}

func (r *rig) client(creds string, opts ...nats.Option) *nats.Conn {
	r.t.Helper()
	nc, err := r.dial(creds, opts...)
	must(r.t, err)
	return nc
}

// role connects with the credentials of one of the control plane's services.
func (r *rig) role(role keys.Role) *nats.Conn {
	r.t.Helper()
	creds, err := keys.Creds(r.data, role)
	must(r.t, err)
	return r.client(string(creds), nats.CustomInboxPrefix(keys.InboxPrefix(role)))
}

// serve answers what a service receives.
func (r *rig) serve(nc *nats.Conn, subject string, answer func(*nats.Msg)) {
	r.t.Helper()
	_, err := nc.Subscribe(subject, answer)
	must(r.t, err)
	must(r.t, nc.Flush())
}

func echo(m *nats.Msg) { _ = m.Respond(m.Data) }

// recorded waits until the ledger has all that stands in EVENTS now. Who
// issued or enrolled has the answer as soon as the event is in EVENTS, and
// reads of the ledger give what is on its disk.
func (r *rig) recorded() {
	r.t.Helper()
	js, err := jetstream.New(r.reader)
	must(r.t, err)
	events, err := js.Stream(r.t.Context(), schemas.Stream)
	must(r.t, err)
	end := events.CachedInfo().State.LastSeq
	until(r.t, fmt.Sprintf("the ledger reached event %d", end), func() bool {
		return call[schemas.Head](r, schemas.CtlHead, schemas.HeadRequest{}).StreamSeq >= end
	})
}

// log reads every event that stands in EVENTS, with bodies.
func (r *rig) log() []*schemas.Event {
	r.t.Helper()
	r.recorded()
	var all []*schemas.Event
	for from := uint64(1); from != 0; {
		page := call[schemas.ReadReply](r, schemas.CtlRead, schemas.ReadRequest{From: from, Limit: 500, Data: true})
		for _, rec := range page.Records {
			e, err := rec.Event()
			must(r.t, err)
			all = append(all, e)
		}
		from = page.Next
	}
	return all
}

// sound checks that the ledger verifies and that no service has failed.
func (r *rig) sound() {
	r.t.Helper()
	if v := call[schemas.VerifyReply](r, schemas.CtlVerify, nil); !v.OK || v.Records == 0 {
		r.t.Errorf("the ledger does not verify: %+v", v)
	}
	stopped, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.plane.Wait(stopped); err != nil {
		r.t.Errorf("a service failed: %v", err)
	}
	if h := plane.Health(r.t.Context(), r.ops); len(h) < len(plane.Services) {
		r.t.Errorf("only these answer: %+v", h)
	}
}

// ask requests and gives the refusal that came, nil where it was an answer.
func ask(t *testing.T, nc *nats.Conn, m *nats.Msg) (*nats.Msg, *schemas.Refusal) {
	t.Helper()
	answer, err := nc.RequestMsg(m, within)
	if err != nil {
		t.Fatalf("%s: %v", m.Subject, err)
	}
	return answer, bus.ReadRefusal(answer)
}

// works demands that a request is answered with its own body.
func works(t *testing.T, nc *nats.Conn, subject string) {
	t.Helper()
	body := "still here " + nats.NewInbox()
	answer, refusal := ask(t, nc, &nats.Msg{Subject: subject, Data: []byte(body)})
	if refusal != nil || string(answer.Data) != body {
		t.Fatalf("%s: %q, %v", subject, answer.Data, refusal)
	}
}

// userOf signs a user of an account with any key and any claims.
func userOf(t *testing.T, account string, signer nkeys.KeyPair, change func(*jwt.UserClaims)) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	must(t, err)
	public, err := user.PublicKey()
	must(t, err)
	c := jwt.NewUserClaims(public)
	c.Name = "forged"
	if by, err := signer.PublicKey(); err == nil && by != account {
		c.IssuerAccount = account
	}
	if change != nil {
		change(c)
	}
	seed, err := user.Seed()
	must(t, err)
	creds, err := jwt.FormatUserConfig(sign(t, c, signer), seed)
	must(t, err)
	return string(creds)
}

// sign encodes claims with whatever issuing time they name, or with one that is
// behind whatever was revoked when the world began. The library's encoder knows
// but the present.
func sign(t *testing.T, claims jwt.Claims, signer nkeys.KeyPair) string {
	t.Helper()
	data := claims.Claims()
	issuer, err := signer.PublicKey()
	must(t, err)
	data.Issuer, data.ID = issuer, nats.NewInbox()
	if data.IssuedAt == 0 {
		data.IssuedAt = time.Now().Add(2 * time.Second).Unix()
	}
	switch c := claims.(type) {
	case *jwt.AccountClaims:
		c.Type, c.Version = jwt.AccountClaim, 2
	case *jwt.UserClaims:
		c.Type, c.Version = jwt.UserClaim, 2
	}
	payload, err := json.Marshal(claims)
	must(t, err)
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sig, err := signer.Sign([]byte(text))
	must(t, err)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// A stolen key signs, and that is all that a thief needs of it.
type stolen struct {
	nkeys.KeyPair
	pair *keys.Pair
}

func (s stolen) PublicKey() (string, error)          { return s.pair.Public(), nil }
func (s stolen) Sign(message []byte) ([]byte, error) { return s.pair.Sign(message), nil }

// key is a key of a principal's account, as somebody who stole it has it.
func (r *rig) key(id string, role keys.KeyRole) nkeys.KeyPair {
	r.t.Helper()
	return r.keyOf(id, r.keys(id), role)
}

func (r *rig) keyOf(id string, k accounts.Keys, role keys.KeyRole) nkeys.KeyPair {
	r.t.Helper()
	pair, err := r.secrets.Account(id, k.Incarnation, k.Generation, role)
	must(r.t, err)
	return stolen{pair: pair}
}

// keys are those of a principal, by the log.
func (r *rig) keys(id string) accounts.Keys {
	r.t.Helper()
	state := schemas.NewState()
	for _, e := range r.log() {
		must(r.t, state.Apply(e))
	}
	a := state.Agents[id]
	if a == nil {
		return accounts.Keys{}
	}
	return accounts.Keys{Incarnation: a.Incarnation, Generation: a.Generation}
}

// out is the subject under which CONTROL sees what a principal publishes.
func (r *rig) out(id, rest string) string {
	r.t.Helper()
	return strings.TrimSuffix(schemas.OutSubject(id, r.keys(id).Incarnation), ">") + rest
}

func (r *rig) account(id string) string {
	r.t.Helper()
	pair, err := r.secrets.Account(id, r.keys(id).Incarnation, 0, keys.AccountKey)
	must(r.t, err)
	return pair.Public()
}

// staticKey is the key that signs the users of CONTROL, DELIVER or SYS.
func (r *rig) staticKey(name string) nkeys.KeyPair {
	r.t.Helper()
	seed, err := os.ReadFile(filepath.Join(r.data, keys.Dir, "accounts", name+".seed"))
	must(r.t, err)
	pair, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	must(r.t, err)
	return pair
}

// push gives the server an account JWT, as the issuer does.
func (r *rig) push(token string) error {
	r.t.Helper()
	m, err := r.role(keys.RoleSystem).Request("$SYS.REQ.CLAIMS.UPDATE", []byte(token), within)
	must(r.t, err)
	if !strings.Contains(string(m.Data), `"code":200`) {
		return fmt.Errorf("the account was not taken: %s", m.Data)
	}
	return nil
}

// widened is a user who may do everything inside a principal's account, and
// through more imports of it: the mistake that an issuer could make.
func (r *rig) widened(id string, more ...*jwt.Import) string {
	r.t.Helper()
	return userOf(r.t, r.account(id), r.widenedKey(id, more...), everything)
}

// widenedKey gives an account a signing key that no template bounds.
func (r *rig) widenedKey(id string, more ...*jwt.Import) nkeys.KeyPair {
	r.t.Helper()
	token, err := accounts.NewMaker(r.secrets).Account(accounts.Account{ID: id, Lock: schemas.Active, Keys: r.keys(id)}, time.Now())
	must(r.t, err)
	c, err := jwt.DecodeAccountClaims(token)
	must(r.t, err)
	loose, err := nkeys.CreateAccount()
	must(r.t, err)
	public, err := loose.PublicKey()
	must(r.t, err)
	c.SigningKeys.Add(public)
	c.Imports = append(c.Imports, more...)
	c.Limits.Imports, c.Limits.Subs = jwt.NoLimit, jwt.NoLimit
	c.IssuedAt = time.Now().Add(5 * time.Second).Unix()
	must(r.t, r.push(sign(r.t, c, stolen{pair: r.secrets.Operator})))
	return loose
}

func everything(c *jwt.UserClaims) {
	c.Pub.Allow.Add(">")
	c.Sub.Allow.Add(">")
}

// A tap keeps what arrives at a connection.
type tap struct {
	mu  sync.Mutex
	got []string
}

// listen subscribes and keeps headers and bodies. That the server refuses the
// subscription is no failure here: what counts is what arrives.
func (p *tap) listen(nc *nats.Conn, queue string, subjects ...string) {
	for _, s := range subjects {
		_, err := nc.QueueSubscribe(s, queue, func(m *nats.Msg) {
			p.mu.Lock()
			p.got = append(p.got, fmt.Sprintf("%s %v %s", m.Subject, m.Header, m.Data))
			p.mu.Unlock()
		})
		if err != nil && !errors.Is(err, nats.ErrBadSubject) {
			continue // a subscription that the client itself won't make
		}
	}
}

// holding lists what was kept that holds a text.
func (p *tap) holding(texts ...string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, g := range p.got {
		for _, text := range texts {
			if strings.Contains(g, text) {
				out = append(out, g)
				break
			}
		}
	}
	return out
}
