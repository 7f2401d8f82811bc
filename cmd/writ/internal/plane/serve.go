package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/monitor"
)

// A part is what one process of a control plane apart runs.
type part struct {
	role  keys.Role // whose credentials name the key folder
	start func(*Process, context.Context, ServeOptions) error
}

// parts are the processes that a control plane apart consists of. Release
// stands with the ledger, for it may let out only what is on disk; the memory
// service stands with intake, for neither keeps anything itself.
var parts = map[string]part{
	"issuer": {keys.RoleIssuer, func(p *Process, ctx context.Context, o ServeOptions) error {
		f := face{address: o.HTTP, proxy: o.HTTPURL, reader: keys.RoleIssuer}
		if o.TLS != nil {
			var err error
			if f.tls, f.hosts, err = o.TLS.config(p.log, time.Now); err != nil {
				return err
			}
		}
		i, err := p.startIssuer(ctx)
		if err != nil {
			return err
		}
		return p.startHTTP(ctx, i, f)
	}},
	"broker":  {keys.RoleIntake, func(p *Process, ctx context.Context, _ ServeOptions) error { return p.startBroker(ctx) }},
	"ledger":  {keys.RoleLedger, func(p *Process, ctx context.Context, _ ServeOptions) error { return p.startLedger(ctx) }},
	"monitor": {keys.RoleMonitor, func(p *Process, ctx context.Context, _ ServeOptions) error { return p.startMonitor(ctx) }},
}

// ServeOptions say what to serve. All but Weights, Shadow, HTTP, HTTPURL, TLS and
// Logger are needed; the weights are the monitor's alone, HTTP is the issuer's.
type ServeOptions struct {
	Service     string // issuer, broker, ledger or monitor
	Server      string // address of the NATS server
	Creds       string // DIR/keys/creds/ROLE.creds; what else is needed lies beside it
	Data        string // the ledger's database and anchor, the monitor's snapshot, the issuer's webhooks
	Weights     *monitor.Weights
	Shadow      *monitor.Weights
	HTTP        string    // HOST:PORT, without TLS on loopback; 127.0.0.1 and a free port where empty
	HTTPURL     string    // as in Options
	TLS         *TLSFiles // of HTTP; nil where it is off
	VerifyShare float64   // as in Options
	Logger      *slog.Logger
}

// Serve starts one part against a NATS server elsewhere, and returns when it
// works. The server must have been provisioned.
func Serve(ctx context.Context, o ServeOptions) (_ *Process, err error) {
	what, ok := parts[o.Service]
	if !ok {
		return nil, fmt.Errorf("there is no service %q; there are %s", o.Service, strings.Join(slices.Sorted(maps.Keys(parts)), ", "))
	}
	folder, err := folderOf(o.Creds, what.role)
	if err != nil {
		return nil, err
	}
	if ca.Exists(folder) {
		return nil, fmt.Errorf("%w: %s was made with --tls, and agents' certificates are bound by the server of writ up alone; make keys without it", ErrCreds, folder)
	}
	p := newProcess(folder, o.Data, o.Logger)
	p.url, p.weights, p.shadow, p.verifyShare = o.Server, o.Weights, o.Shadow, o.VerifyShare
	if err := what.start(p, ctx, o); err != nil {
		return nil, errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// ErrCreds is matched where a credentials file is not the one that a service
// starts with.
var ErrCreds = errors.New("not this service's credentials")

// KeysOf is the data folder in whose keys/ the credentials of a service lie.
func KeysOf(service, creds string) (string, error) { return folderOf(creds, parts[service].role) }

// folderOf is the data folder in whose keys/ a role's credentials lie.
func folderOf(creds string, role keys.Role) (string, error) {
	path, err := filepath.Abs(creds)
	if err != nil {
		return "", fmt.Errorf("credentials: %w", err)
	}
	folder := filepath.Dir(filepath.Dir(filepath.Dir(path)))
	if want := keys.CredsPath(folder, role); path != want {
		return "", fmt.Errorf("%w: %s; it needs DIR/%s/creds/%s.creds, with what else writ init wrote for it", ErrCreds, creds, keys.Dir, role)
	}
	return folder, nil
}

// provisionTimeout is for one connection: a server that does not know an account
// asks its peers for two seconds before it says so.
const provisionTimeout = 10 * time.Second

// Provision makes the streams, consumers and buckets on a NATS server
// elsewhere, or brings them up to date, as the users of a data folder that may.
// Where an older version made the folder, its keys are brought up to date
// before, and the server is told.
func Provision(ctx context.Context, server, data string) error {
	connect := func(role keys.Role) (*nats.Conn, error) {
		creds, err := keys.Creds(data, role)
		if err != nil {
			return nil, err
		}
		return bus.Connect(bus.Options{Role: string(role), URL: server, Creds: creds, Options: []nats.Option{nats.Timeout(provisionTimeout)}})
	}
	if _, err := keys.Upgrade(data); err != nil {
		return err
	}
	if err := tellAccounts(ctx, data, connect); err != nil {
		return err
	}
	return embed.Provision(ctx, data, connect)
}

// tellAccounts gives the server the static accounts as the folder has them. It
// passes over what it knows already; what keys.Upgrade changed before, and an
// interruption kept from it, it learns now.
func tellAccounts(ctx context.Context, data string, connect func(keys.Role) (*nats.Conn, error)) error {
	trust, err := keys.Open(data)
	if err != nil {
		return err
	}
	nc, err := connect(keys.RoleSystem)
	if err != nil {
		return err
	}
	defer nc.Close()
	for _, account := range []string{keys.CONTROL, keys.DELIVER, keys.MEMORY, keys.AUTH, keys.SYS} {
		m, err := nc.RequestWithContext(ctx, "$SYS.REQ.CLAIMS.UPDATE", []byte(trust.JWTs[trust.Accounts[account]]))
		if err != nil {
			return fmt.Errorf("give the server the account %s: %w", account, err)
		}
		var reply struct {
			Error *struct {
				Description string `json:"description"`
			} `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			return fmt.Errorf("give the server the account %s: %w", account, err)
		}
		if reply.Error != nil {
			return fmt.Errorf("give the server the account %s: it says %s", account, reply.Error.Description)
		}
	}
	return nil
}
