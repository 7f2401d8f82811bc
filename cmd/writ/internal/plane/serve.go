package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
)

// A part is what one process of a control plane apart runs.
type part struct {
	role  keys.Role // whose credentials name the key folder
	start func(*Process, context.Context) error
}

// parts are the processes that a control plane apart consists of. Release
// stands with the ledger, for it may let out only what is on disk; the memory
// service stands with intake, for neither keeps anything itself.
var parts = map[string]part{
	"issuer": {keys.RoleIssuer, func(p *Process, ctx context.Context) error {
		_, err := p.startIssuer(ctx)
		return err
	}},
	"broker": {keys.RoleIntake, func(p *Process, ctx context.Context) error {
		if err := p.startMemory(ctx); err != nil {
			return err
		}
		return p.startIntake(ctx)
	}},
	"ledger":  {keys.RoleLedger, (*Process).startLedger},
	"monitor": {keys.RoleMonitor, (*Process).startMonitor},
}

// ServeOptions say what to serve. All but Logger are needed; Data is the
// ledger's alone.
type ServeOptions struct {
	Service string // issuer, broker, ledger or monitor
	Server  string // address of the NATS server
	Creds   string // DIR/keys/creds/ROLE.creds; what else is needed lies beside it
	Data    string // the ledger's database and anchor
	Logger  *slog.Logger
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
	p := newProcess(folder, o.Data, o.Logger)
	p.url = o.Server
	if err := what.start(p, ctx); err != nil {
		return nil, errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// ErrCreds is matched where a credentials file is not the one that a service
// starts with.
var ErrCreds = errors.New("not this service's credentials")

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

// Provision makes the streams, consumers and buckets on a NATS server
// elsewhere, or brings them up to date, as the init user of a data folder.
func Provision(ctx context.Context, server, data string) error {
	creds, err := keys.Creds(data, keys.RoleInit)
	if err != nil {
		return err
	}
	nc, err := bus.Connect(bus.Options{Role: string(keys.RoleInit), URL: server, Creds: creds})
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	return embed.Provision(ctx, js)
}
