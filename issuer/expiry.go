package issuer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// Kinds of what expires, beside the roles of principals' users.
const (
	kindAccount   = "account"    // an agent's account, as the servers have it
	kindSVID      = "svid"       // an agent's certificate
	kindAuthority = "authority"  // the certificate authority
	kindServer    = "server"     // the certificate that the server shows
	kindRole      = "service's"  // a NATS user of a service
	kindOperator  = "operator's" // the operator's and the static accounts' keys
	kindSigning   = "signing"    // what signs capabilities, checkpoints, weights
	kindWarrant   = "warrant"
	kindWebhook   = "webhook"
	kindToken     = "capability"
	kindAnswer    = "answer" // about one connection, or a proof for one request
)

// expiringMost bounds what a status names.
const expiringMost = 1000

// A warning is how a kind of credential that expires is watched.
type warning struct {
	lead  time.Duration // before its end it is warned of
	renew string        // what renews it; %s is whose it is
	own   bool          // it is the control plane's: its health says so, and it is warned of behind its end
	ends  func(i *Issuer, now time.Time) map[string]time.Time
}

// warnings are all kinds that expire and are to be renewed in time.
var warnings = map[string]warning{
	string(keys.IdentityKey): {lead: 4 * time.Hour, renew: "the agent renews it on out.token.refresh; once it has ended: writ enroll %s --out FILE", ends: credentials(schemas.KindAgent)},
	string(keys.ServiceKey):  {lead: 24 * time.Hour, renew: "the service renews it on out.token.refresh; once it has ended: writ enroll %s --out FILE", ends: credentials(schemas.KindService)},
	string(keys.OperatorKey): {lead: 7 * 24 * time.Hour, renew: "writ enroll %s --out FILE", ends: credentials(schemas.KindOperator)},
	string(keys.JoinKey):     {lead: 10 * time.Minute, renew: "writ enroll %s --join 1h", ends: invitations},
	kindSVID:                 {lead: 10 * time.Minute, renew: "the agent renews it: out.token.refresh with csr; or writ enroll %s --svid-dir DIR", ends: certificates},
	kindAccount:              {lead: accounts.TTL / 4, own: true, renew: "the issuer renews it: see its log why it can't reach the servers", ends: pushed},
	kindAuthority:            {lead: 90 * 24 * time.Hour, own: true, renew: "writ keys rotate ca; and once more two days later if it still ends soon", ends: authority},
	kindServer:               {lead: 4 * time.Hour, own: true, renew: "the server replaces it; restart the control plane", ends: serverCertificate},
}

// lasting are the kinds of which nothing is to be renewed, and why.
var lasting = map[string]string{
	string(keys.OperationKey): "signs users that end with their capability",
	kindToken:                 "ends with the work, in minutes; its holder refreshes it, and writ tokens shows it",
	kindRole:                  "has no end; writ keys rotate services replaces it",
	kindOperator:              "has no end",
	kindSigning:               "has no end; what a replaced one signed has, and ends with it",
	kindWarrant:               "has no end; it is void for the next incarnation",
	kindAnswer:                "counts once",
	kindWebhook:               "has no end; writ webhook rotate replaces it",
}

// expiring lists what ends soon, the first first.
func (i *Issuer) expiring(now time.Time) []schemas.Expiry {
	var out []schemas.Expiry
	for kind, w := range warnings {
		for id, end := range w.ends(i, now) {
			if end.Sub(now) >= w.lead || !w.own && !now.Before(end) {
				continue
			}
			renew := w.renew
			if strings.Contains(renew, "%s") {
				renew = fmt.Sprintf(renew, id)
			}
			out = append(out, schemas.Expiry{Kind: kind, ID: id, Expires: end.UTC().Truncate(time.Second), Renew: renew})
		}
	}
	slices.SortFunc(out, func(a, b schemas.Expiry) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// ownExpiring says what of the control plane's own ends soon, "" where nothing
// does.
func ownExpiring(list []schemas.Expiry) string {
	kinds := map[string]int{}
	for _, x := range list {
		if warnings[x.Kind].own {
			kinds[x.Kind]++
		}
	}
	if len(kinds) == 0 {
		return ""
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%s (%d)", kind, kinds[kind]))
	}
	return "these expire soon, and were not renewed in time: " + strings.Join(parts, ", ")
}

// warnExpiring logs what ends soon, each once.
func (i *Issuer) warnExpiring(now time.Time, said map[schemas.Expiry]bool) map[schemas.Expiry]bool {
	still := map[schemas.Expiry]bool{}
	for _, x := range i.expiring(now) {
		if !said[x] {
			i.Logger.Warn("it expires soon", "kind", x.Kind, "id", x.ID, "expires", x.Expires.Format(time.RFC3339), "renew", x.Renew)
		}
		still[x] = true
	}
	return still
}

// credentials are those with which principals of a kind ask, serve or command.
func credentials(kind string) func(*Issuer, time.Time) map[string]time.Time {
	return func(i *Issuer, _ time.Time) map[string]time.Time {
		out := map[string]time.Time{}
		i.mu.RLock()
		defer i.mu.RUnlock()
		for id, a := range i.state.Agents {
			if a.Kind == kind && a.Lock != schemas.Killed && !a.CredentialExpires.IsZero() {
				out[id] = a.CredentialExpires
			}
		}
		return out
	}
}

// invitations are join tokens that nobody has used, the first of each.
func invitations(i *Issuer, now time.Time) map[string]time.Time {
	out := map[string]time.Time{}
	i.mu.RLock()
	defer i.mu.RUnlock()
	for id, a := range i.state.Agents {
		if end := a.InvitedUntil(now); !end.IsZero() {
			out[id] = end
		}
	}
	return out
}

// certificates are agents' newest.
func certificates(i *Issuer, _ time.Time) map[string]time.Time {
	out := map[string]time.Time{}
	i.mu.RLock()
	defer i.mu.RUnlock()
	for id, end := range i.svids {
		if a := i.state.Agents[id]; a != nil && a.Lock != schemas.Killed {
			out[id] = end
		}
	}
	return out
}

// pushed are the accounts as the servers have them.
func pushed(i *Issuer, _ time.Time) map[string]time.Time {
	i.pushes.mu.Lock()
	defer i.pushes.mu.Unlock()
	out := map[string]time.Time{}
	for id, s := range i.pushes.sent {
		if s.taken > 0 && s.account.Lock != schemas.Killed {
			out[id] = time.Unix(s.taken, 0).Add(accounts.TTL)
		}
	}
	return out
}

func authority(i *Issuer, _ time.Time) map[string]time.Time {
	if i.CA == nil {
		return nil
	}
	return map[string]time.Time{i.CA.TrustDomain(): i.CA.Expires()}
}

func serverCertificate(i *Issuer, _ time.Time) map[string]time.Time {
	if i.CA == nil || i.CA.ServerExpires().IsZero() {
		return nil
	}
	return map[string]time.Time{i.CA.TrustDomain(): i.CA.ServerExpires()}
}
