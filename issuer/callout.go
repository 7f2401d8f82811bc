package issuer

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

const (
	calloutWorkers = 16
	calloutQueue   = 1024 // who waits longer is refused by the server, in time
	xkeyHeader     = "Nats-Server-Xkey"
)

// serveCallout says who may connect, where TLS is on: certificate, key and
// agent must be one, and the agent must be let in now. Whoever shows a user of
// AUTH is asked about; nobody has another kind.
func (i *Issuer) serveCallout(ctx context.Context, g *errgroup.Group) error {
	if i.CA == nil {
		return nil
	}
	queue := make(chan *nats.Msg, calloutQueue)
	for range calloutWorkers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case m := <-queue:
					i.answerCallout(m)
				}
			}
		})
	}
	_, err := i.Callout.QueueSubscribe(keys.CalloutSubject, "callout", func(m *nats.Msg) {
		select {
		case queue <- m:
		default: // the server refuses whom nobody speaks for
		}
	})
	if err == nil {
		err = i.Callout.Flush()
	}
	if err != nil {
		return fmt.Errorf("issuer: callout: %w", err)
	}
	return nil
}

// answerCallout answers one question of a server. One that is not sealed and
// signed by a server gets no answer, which is a refusal too.
func (i *Issuer) answerCallout(m *nats.Msg) {
	auth, now := i.Secrets.Auth, i.Now()
	xkey := m.Header.Get(xkeyHeader)
	r, err := openCallout(auth.XKey, xkey, m.Data)
	if err != nil {
		i.Logger.Error("a question about a connection is no server's", "error", err)
		return
	}
	answer := jwt.NewAuthorizationResponseClaims(r.UserNkey)
	answer.Audience, answer.IssuerAccount = r.Server.ID, auth.Account
	if answer.Jwt, err = i.admit(r, now); err != nil {
		// Who is not let in learns nothing; who runs the servers does.
		i.Logger.Warn("connection refused", "client", r.ConnectOptions.Name, "host", r.ClientInformation.Host, "error", err)
		answer.Jwt, answer.Error = "", "not admitted"
	}
	token, err := answer.Encode(auth.Signer)
	if err == nil {
		var sealed []byte
		if sealed, err = auth.XKey.Seal([]byte(token), xkey); err == nil {
			err = m.Respond(sealed)
		}
	}
	if err != nil {
		i.Logger.Error("a question about a connection was not answered", "error", err)
	}
}

// openCallout opens a question: sealed for us, by the server that signed it.
func openCallout(ours nkeys.KeyPair, xkey string, sealed []byte) (*jwt.AuthorizationRequestClaims, error) {
	token, err := ours.Open(sealed, xkey)
	if err != nil {
		return nil, errors.New("it is not sealed for this issuer")
	}
	r, err := jwt.DecodeAuthorizationRequestClaims(string(token)) // with its signature
	if err != nil {
		return nil, errors.New("it can't be read")
	}
	if !nkeys.IsValidPublicServerKey(r.Issuer) || r.Issuer != r.Server.ID || r.Server.XKey != xkey || r.Audience != "nats-authorization-request" {
		return nil, errors.New("it is not signed by the server that it names")
	}
	return r, nil
}

// admit decides on one connection, and signs the user that it gets.
func (i *Issuer) admit(r *jwt.AuthorizationRequestClaims, now time.Time) (string, error) {
	if c := r.ClientInformation; c.Kind != "Client" || c.Type != "nats" {
		return "", fmt.Errorf("%s connections of type %q are not let in", c.Kind, c.Type)
	}
	asked, err := i.maker.Ask(r.ConnectOptions.JWT, now)
	if err != nil {
		return "", err
	}
	if err := proven(asked.PublicKey, r.ClientInformation.Nonce, r.ConnectOptions.SignedNonce); err != nil {
		return "", fmt.Errorf("%s: %w", asked.Agent, err)
	}
	chain, err := shown(r.TLS)
	if err != nil {
		return "", fmt.Errorf("%s: %w", asked.Agent, err)
	}
	if err := i.holds(asked, chain, now); err != nil {
		return "", err
	}
	expires := asked.Expires
	if end := i.CA.Ends(chain[0]); end.Before(expires) {
		expires = end // nobody stays beyond its certificate, or who signed that
	}
	return i.maker.Admit(asked, r.UserNkey, i.standing(asked.Agent).iat, expires)
}

// proven checks that the server's nonce was signed with a user's key. The
// server checks it as well, and asks in any case.
func proven(public, nonce, signature string) error {
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		sig, err = base64.StdEncoding.DecodeString(signature) // some clients write it so
	}
	key, kerr := nkeys.FromPublicKey(public)
	if err != nil || kerr != nil || nonce == "" || key.Verify([]byte(nonce), sig) != nil {
		return errors.New("the server's nonce is not signed with its key")
	}
	return nil
}

// maxChain bounds the certificates that are read of a chain.
const maxChain = 8

// shown is the chain of certificates that the server verified, leaf first.
func shown(t *jwt.ClientTLS) ([]*x509.Certificate, error) {
	if t == nil || len(t.VerifiedChains) == 0 || len(t.VerifiedChains[0]) == 0 {
		return nil, errNoCertificate
	}
	chain := t.VerifiedChains[0]
	if len(chain) > maxChain {
		return nil, errors.New("the chain of certificates is too long")
	}
	var out []*x509.Certificate
	for _, text := range chain {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("a certificate can't be read")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a certificate can't be read")
		}
		out = append(out, c)
	}
	return out, nil
}

// certificate signs an agent's certificate for the key of its request, issued at
// a time; nil where it asks for none. It is handed out by certified alone.
func (i *Issuer) certificate(agent string, who asker, req schemas.CertificateRequest, issued time.Time) (*ca.SVID, error) {
	if req.CSR == "" {
		if req.CertificateBound && who.certificate == "" {
			return nil, schemas.Refuse(schemas.CodeMalformed, "certificate_bound: send csr with it, the request for the certificate to bind to; or ask for yourself, over HTTPS with the certificate")
		}
		return nil, nil
	}
	if i.CA == nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "certificates are not issued here: TLS is off; turn it on with writ up --tls")
	}
	if view(i, func(s *schemas.State) bool { a := s.Agents[agent]; return a != nil && a.Kind == schemas.KindOperator }) {
		return nil, schemas.Refuse(schemas.CodeConflict, "%s is an operator; certificates are for agents and services", agent)
	}
	c, err := i.CA.Issue(agent, []byte(req.CSR), time.Duration(req.SVIDTTLSeconds)*time.Second, issued)
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// certified logs a certificate, and hands it out.
func (i *Issuer) certified(ctx context.Context, agent, by string, c *ca.SVID) (schemas.CertificateReply, error) {
	if c == nil {
		return schemas.CertificateReply{}, nil
	}
	_, err := i.append(ctx, &schemas.Event{Kind: schemas.AgentCertified, Agent: agent, Actor: by, ContentType: jsonType,
		Data: schemas.Marshal(schemas.Certificate{URI: c.URI, Serial: c.Serial, Fingerprint: c.Fingerprint, NotBefore: c.NotBefore, Expires: c.Expires})})
	if err != nil {
		return schemas.CertificateReply{}, err
	}
	return schemas.CertificateReply{SVID: string(c.PEM), Bundle: string(i.CA.Bundle())}, nil
}
