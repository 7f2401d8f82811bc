package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-sh/writ/schemas"
)

// A serving is one server's certificate, and whose it believes.
type serving struct {
	a     *Authority
	hosts []string
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex // guards the fields below
	cert    *tls.Certificate
	by      string // the authority that signed it
	renewAt time.Time
}

// ServerTLS is the TLS configuration of a server that is reached under hosts
// (those of the configuration, and loopback's, are added). It asks clients for
// a certificate: one that is shown must be an agent's of this trust domain, or
// the handshake fails; who must show one is for the service to say.
func (a *Authority) ServerTLS(log *slog.Logger, now func() time.Time, hosts ...string) (*tls.Config, error) {
	s := &serving{a: a, hosts: names(append(hosts, a.config.Hosts...)...), log: log, now: now}
	if _, err := s.certificate(nil); err != nil { // now, rather than at the first handshake
		return nil, err
	}
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         s.certificate,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              s.pool(),
		SessionTicketsDisabled: true, // each connection shows its certificate anew
		Time:                   now,
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.GetConfigForClient = nil
		c.ClientCAs = s.pool()
		return c, nil
	}
	return base, nil
}

// certificate is the server's, replaced at two thirds of its life, and where
// another authority signs.
func (s *serving) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, by := s.now(), s.a.signing()
	if s.cert != nil && now.Before(s.renewAt) && s.by == by.id() {
		return s.cert, nil
	}
	der, key, err := by.server(s.hosts, now)
	if err != nil {
		if s.cert != nil {
			s.log.Error("the server's certificate was not replaced; trying again", "error", err)
			return s.cert, nil
		}
		return nil, err
	}
	s.a.served(der)
	s.by = by.id()
	s.cert, s.renewAt = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, now.Add(ServerTTL*2/3)
	return s.cert, nil
}

// pool is of the authorities that count now.
func (s *serving) pool() *x509.CertPool {
	b, err := s.a.authorities(s.now())
	if err != nil {
		s.log.Error("authorities were not read again; those that were known still count", "error", err)
	}
	pool := x509.NewCertPool()
	for _, c := range b.X509Authorities() {
		pool.AddCert(c)
	}
	return pool
}

// ErrNobody is matched where a certificate is no agent's.
var ErrNobody = errors.New("no agent's certificate")

// Agent reads whose certificate a chain shows, leaf first. The chain must lead
// to an authority that counts, and be valid now, for a client.
func (a *Authority) Agent(chain []*x509.Certificate, now time.Time) (string, error) {
	if len(chain) == 0 {
		return "", fmt.Errorf("%w: none was shown", ErrNobody)
	}
	bundle, _ := a.authorities(now) // an error is the server's to log
	leaf := chain[0]
	// The library looks at the chain, not at what the certificate is for.
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return "", fmt.Errorf("%w: it is not for clients", ErrNobody)
	}
	id, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNobody, err)
	}
	agent, ok := strings.CutPrefix(id.Path(), "/agent/")
	if !ok || id.TrustDomain() != a.domain || schemas.CheckID("agent", agent) != nil {
		return "", fmt.Errorf("%w: it names %s", ErrNobody, id)
	}
	return agent, nil
}
