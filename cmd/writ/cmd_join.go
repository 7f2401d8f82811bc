package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/schemas"
)

// A joinToken is what writ enroll --join prints and writ join takes: where the
// control plane is, and credentials that may do nothing but join, once.
type joinToken struct {
	URL   string `json:"url"`
	ID    string `json:"id"`
	Creds string `json:"creds"`
	// Bundle is by what the control plane is trusted, where TLS is on.
	Bundle string `json:"bundle,omitempty"`
}

// joinPrefix tells a join token from other text.
const joinPrefix = "writ-join-"

func (t joinToken) String() string {
	return joinPrefix + base64.RawURLEncoding.EncodeToString(schemas.Marshal(t))
}

func parseJoinToken(s string) (t joinToken, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), joinPrefix)
	if !ok {
		return t, fmt.Errorf("this is no join token: it does not begin with %s", joinPrefix)
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = schemas.Unmarshal(raw, &t)
	}
	if err != nil {
		return t, errors.New("the join token is cut off or changed")
	}
	return t, nil
}

// invite prints a join token.
func (c *enrollCmd) invite(ctx context.Context, app *App) error {
	ttl := *c.Join
	if ttl < time.Second || ttl > 24*time.Hour || ttl%time.Second != 0 {
		return misuse("give a duration such as 1h", "--join %s is not 1s to 24h in whole seconds", ttl)
	}
	url := app.Server
	if url == "" {
		r, err := running(app.Data)
		if err != nil {
			return err
		}
		url = r.NATS
	}
	reply, err := call[schemas.EnrollReply](ctx, app, schemas.CtlEnroll,
		schemas.EnrollRequest{ID: c.ID, JoinTTLSeconds: int64(ttl / time.Second), Actor: app.actor})
	if err != nil {
		return err
	}
	token := joinToken{url, reply.JoinID, reply.Creds, reply.Bundle}.String()
	if app.JSON {
		return app.emit(struct {
			AgentID   string     `json:"agent_id"`
			JoinToken string     `json:"join_token"`
			ExpiresAt *time.Time `json:"expires_at"`
		}{reply.AgentID, token, reply.ExpiresAt})
	}
	app.say("%s", token)
	app.note("It works once, until %s. On the other machine: writ join --token - --out %s.creds", reply.ExpiresAt.Format(time.RFC3339), reply.AgentID)
	return nil
}

type joinCmd struct {
	Token string `required:"" placeholder:"TOKEN" help:"Join token, or - to read it from standard input, where no list of processes shows it."`
	Out   string `required:"" type:"path" placeholder:"FILE" help:"Where to write the credentials; the key is made here and never leaves this machine."`
	SPIRE bool   `name:"spire" help:"The certificate comes from a SPIRE server that the control plane trusts; with TLS this or --svid-dir is needed."`
	svidFlags
}

// maxJoinToken bounds what is read of a token, in bytes.
const maxJoinToken = 64 << 10

func (c *joinCmd) Run(ctx context.Context, app *App) error {
	text := c.Token
	if text == "-" {
		raw, err := io.ReadAll(io.LimitReader(app.stdin, maxJoinToken))
		if err != nil {
			return advise(fmt.Errorf("read the join token: %w", err), "pipe it in: writ join --token - --out FILE < token")
		}
		text = string(raw)
	}
	token, err := parseJoinToken(text)
	if err != nil {
		return advise(err, "ask an operator for one: writ enroll ID --join 1h")
	}
	if app.Server != "" {
		token.URL = app.Server
	}
	if err := c.bound(token); err != nil {
		return err
	}
	if err := canReplace(c.Out); err != nil {
		return err
	}
	csr, key, err := c.svidFlags.request()
	if err != nil {
		return err
	}
	reply, user, err := token.use(ctx, csr)
	var r *schemas.Refusal
	if errors.As(err, &r) && r.Code == schemas.CodeUnauthorized {
		err = advise(err, "ask an operator for another token: writ enroll "+token.ID+" --join 1h")
	}
	if err != nil {
		return err
	}
	creds, err := accounts.Creds(reply.UserJWT, user)
	if err != nil {
		return err
	}
	if err := writeSecret(c.Out, []byte(creds)); err != nil {
		return err
	}
	if err := c.svidFlags.write(reply.CertificateReply, key); err != nil {
		return err
	}
	public, err := user.PublicKey()
	if err != nil {
		return err
	}
	if app.JSON {
		return app.emit(struct {
			AgentID   string    `json:"agent_id"`
			PublicKey string    `json:"public_key"`
			CredsFile string    `json:"creds_file"`
			SVIDDir   string    `json:"svid_dir,omitempty"`
			ExpiresAt time.Time `json:"expires_at"`
		}{reply.AgentID, public, c.Out, c.SVIDDir, reply.ExpiresAt})
	}
	app.facts(c.svidFlags.fact([2]string{"joined as", reply.AgentID}, [2]string{"key", public}, [2]string{"credentials", c.Out}, [2]string{"expire", reply.ExpiresAt.Format(time.RFC3339)})...)
	return nil
}

// bound sees that there will be a certificate where the credentials are worth
// nothing without one: before the token, which is good once, is used.
func (c *joinCmd) bound(t joinToken) error {
	switch {
	case c.SPIRE && c.SVIDDir != "":
		return misuse("give --svid-dir or --spire", "the certificate comes from the control plane, or from SPIRE")
	case c.SPIRE && t.Bundle == "":
		return misuse("leave --spire out", "TLS is off there: nobody needs a certificate")
	case t.Bundle == "" && c.SVIDDir != "":
		return misuse("leave --svid-dir out", "TLS is off there: no certificates are issued")
	case t.Bundle != "" && c.SVIDDir == "" && !c.SPIRE:
		return misuse("add --svid-dir DIR, or --spire where SPIRE gives it; the token is not used yet",
			"TLS is on there: the credentials are good with a certificate alone")
	}
	return nil
}

// use makes a key and has it registered.
func (t joinToken) use(ctx context.Context, csr schemas.CertificateRequest) (reply schemas.IssueReply, user nkeys.KeyPair, err error) {
	if user, err = nkeys.CreateUser(); err != nil {
		return reply, nil, fmt.Errorf("make a key: %w", err)
	}
	public, err := user.PublicKey()
	if err != nil {
		return reply, nil, fmt.Errorf("make a key: %w", err)
	}
	opts := []nats.Option{nats.Name("writ-join"), nats.UserCredentialBytes([]byte(t.Creds)), nats.NoReconnect()}
	if t.Bundle != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(t.Bundle)) {
			return reply, nil, errors.New("the join token is cut off or changed")
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}))
	}
	nc, err := nats.Connect(t.URL, opts...)
	if err != nil {
		next := "check that the control plane runs and can be reached: " + t.URL
		if errors.Is(err, nats.ErrAuthorization) {
			next = "the join token has expired or was voided by a lock: ask an operator for another"
		}
		return reply, nil, advise(fmt.Errorf("join: %w", err), next)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, "out.token.join", schemas.Marshal(schemas.JoinRequest{ID: t.ID, PublicKey: public, CertificateRequest: csr}))
	if err != nil {
		return reply, nil, advise(fmt.Errorf("join: %w", err), "try again; if it was used up meanwhile, ask an operator for another")
	}
	if r := bus.ReadRefusal(m); r != nil {
		return reply, nil, r
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return reply, nil, fmt.Errorf("join: the answer can't be read: %w", err)
	}
	return reply, user, nil
}
