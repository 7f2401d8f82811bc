package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/httpcap"
)

// Where TLS is on, credentials of an agent count together with the agent's own
// certificate, over NATS and over HTTP alike.

// Why a certificate does not go with credentials. The texts are the reasons that
// are told over HTTP.
var (
	errNoCertificate  = errors.New("no certificate was shown")
	errNobodys        = errors.New("certificate of no agent")
	errAnothers       = errors.New("certificate of another agent")
	errFormer         = errors.New("certificate from before the enrolment")
	errNotThisOne     = errors.New("bound to another certificate")
	certificateFaults = [...]error{errNoCertificate, errNobodys, errAnothers, errFormer, errNotThisOne}
)

// holds says whether credentials and a certificate, with the chain that was
// shown for it, leaf first, are one agent's, and let in now. That the keys of
// both are in the hand of who shows them is for the transport to prove.
func (i *Issuer) holds(asked accounts.Asked, chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return fmt.Errorf("%s: %w", asked.Agent, errNoCertificate)
	}
	agent, err := i.CA.Agent(chain, now)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: %w", asked.Agent, errNobodys, err)
	case agent != asked.Agent:
		return fmt.Errorf("%s: %w: it is that of %s", asked.Agent, errAnothers, agent)
	case !i.CA.Issued(chain[0]).After(i.certifiesSince(agent)):
		return fmt.Errorf("%s: %w: enrol it with a new one", agent, errFormer)
	case asked.Certificate != "" && ca.Fingerprint(chain[0].Raw) != asked.Certificate:
		return fmt.Errorf("%s: its capability is %w of it", agent, errNotThisOne)
	}
	if err := asked.Stands(i.pushes.now(agent)); err != nil {
		return fmt.Errorf("%w: %w", capability.ErrRevoked, err)
	}
	return nil
}

// certifiesSince is the second up to which an agent's certificates don't count,
// as its credentials don't: somebody may hold those that it had before it was
// killed, or removed. Of an agent that is here for the first time all count.
func (i *Issuer) certifiesSince(agent string) time.Time {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.since[agent].Truncate(time.Second)
}

// chainOf is the chain of certificates that TLS verified for this very
// connection. What a header says of one is somebody's word.
func chainOf(r *http.Request) []*x509.Certificate {
	if r.TLS == nil || !r.TLS.HandshakeComplete || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0]
}

// shownOver is the fingerprint of a connection's certificate, "" where none was
// shown that TLS itself verified.
func shownOver(r *http.Request) string {
	if chain := chainOf(r); len(chain) > 0 {
		return ca.Fingerprint(chain[0].Raw)
	}
	return ""
}

// boundIdentityOf is identityOf where TLS is on: a user JWT that the server
// would ask about, and the certificate of the connection that it came over.
func (i *Issuer) boundIdentityOf(token string, chain []*x509.Certificate) (accounts.Identity, error) {
	asked, err := i.maker.AskIdentity(token, i.Now())
	who, err := i.inForce(accounts.Identity{ID: asked.Agent, PublicKey: asked.PublicKey, Incarnation: asked.Incarnation, Issued: asked.Issued, Expires: asked.Expires}, err, schemas.KindAgent)
	if err != nil {
		return who, err
	}
	return who, i.holds(asked, chain, i.Now())
}

// reasonOf is httpcap's, and for a certificate what is wrong with it.
func reasonOf(err error) string {
	for _, fault := range certificateFaults {
		if errors.Is(err, fault) {
			return fault.Error()
		}
	}
	return httpcap.Reason(err)
}
