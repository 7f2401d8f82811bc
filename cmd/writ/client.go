package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/synadia-io/orbit.go/natsext"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A runtimeFile says where the control plane of a data folder listens. It
// stands there while one runs.
type runtimeFile struct {
	NATS string `json:"nats_url"`
	HTTP string `json:"http_url"`
	PID  int    `json:"pid"`
}

// errNotRunning is matched where no control plane runs on the data folder.
var errNotRunning = errors.New("no control plane runs here")

// running reads where the control plane of a folder listens. A file that a
// crash left behind, or that was copied along with the folder, doesn't count:
// a copy must never be mistaken for the plane it was copied from.
func running(data string) (*runtimeFile, error) {
	none := advise(fmt.Errorf("%w: %s", errNotRunning, data),
		"start one with writ up --data "+data+", or name another with --data, or with --server and --as")
	raw, err := os.ReadFile(filepath.Join(data, "runtime.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none
	}
	if err != nil {
		return nil, advise(fmt.Errorf("find the control plane: %w", err), "run the command as the user who runs the control plane")
	}
	r := new(runtimeFile)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, advise(fmt.Errorf("runtime.json in %s is damaged: %w", data, err), "restart the control plane, which writes it anew")
	}
	if !alive(r.PID) || !held(data) {
		return nil, none
	}
	return r, nil
}

// alive reports whether a process exists, whoever owns it.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil || pid <= 0 {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// held reports whether a process holds the folder: it locks DIR/lock for as
// long as it lives. Nothing is made where there is no such file.
func held(data string) bool {
	lock := flock.New(filepath.Join(data, "lock"), flock.SetFlag(os.O_RDONLY))
	free, err := lock.TryRLock()
	if free {
		_ = lock.Unlock() // closing it does the same
	}
	return err == nil && !free
}

// A client talks to a control plane as an operator.
type client struct {
	nc     *nats.Conn
	barred context.Context // ends when the server says that the credentials are no operator's
}

const (
	callWithin   = time.Minute            // for an answer to an operator
	healthStall  = 300 * time.Millisecond // between two services' answers
	healthWithin = 2 * time.Second        // for all of them
)

// checkOperator refuses what says of itself that it is not an operator's, and
// says whether it is one's with a name. The
// server would refuse its commands, and that counts against an agent.
func checkOperator(creds []byte) (named bool, err error) {
	token, err := nkeys.ParseDecoratedJWT(creds)
	if err != nil {
		return false, fmt.Errorf("these are no credentials: %w", err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return false, fmt.Errorf("these are no credentials: %w", err)
	}
	if !isNamed(c) && (c.Name != string(keys.RoleOperator) || len(c.Pub.Allow) == 0) {
		return false, fmt.Errorf("these are the credentials of %s, not an operator's", clipName(c.Name))
	}
	return isNamed(c), nil
}

// isNamed reports whether credentials are those of an operator with a name and
// an account of its own.
func isNamed(c *jwt.UserClaims) bool { return c.Tags.Contains(accounts.OperatorTag) }

// clipName makes a name from a file fit for a line of a terminal.
func clipName(name string) string { return strconv.Quote(schemas.HeaderText(name)) }

// dial connects to the control plane that the flags name.
func (a *App) dial(more ...nats.Option) (*client, error) {
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	barred, bar := context.WithCancelCause(context.Background())
	o := bus.Options{Role: string(keys.RoleOperator), URL: a.Server, Logger: log,
		// A refused publish is told apart from the request, which would wait.
		Options: []nats.Option{nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				bar(advise(schemas.Refuse(schemas.CodeForbidden, "these credentials may not give this command: %v", err), "the operator's role admits others only: an admin can change it in the fleet file; or give another operator's credentials with --as"))
				return
			}
			log.Error("nats", "error", err)
		})}}
	o.Options = append(o.Options, more...)
	var err error
	if a.Server != "" {
		if o.Creds, err = bus.ReadCreds(a.As); err != nil {
			return nil, advise(err, "give an operator's .creds file with --as")
		}
		named, err := checkOperator(o.Creds)
		if err != nil {
			return nil, advise(fmt.Errorf("%s: %w", a.As, err), "give an operator's .creds file with --as")
		}
		if named { // alone in an account of its own
			o.Options = append(o.Options, nats.CustomInboxPrefix("_INBOX"))
		}
	} else {
		r, err := running(a.Data)
		if err != nil {
			return nil, err
		}
		o.URL = r.NATS
		if strings.HasPrefix(r.NATS, "tls://") {
			o.Options = append(o.Options, nats.RootCAs(ca.BundlePath(a.Data)))
		}
		if o.Creds, err = keys.Creds(a.Data, keys.RoleOperator); err != nil {
			return nil, advise(err, "run the command as the user who runs the control plane, or use --server and --as")
		}
	}
	nc, err := bus.Connect(o)
	if err != nil {
		next := "check that the control plane runs and that the address is right: " + o.URL
		if errors.Is(err, nats.ErrAuthorization) {
			next = "these credentials are not this control plane's: give an operator's with --as"
		}
		return nil, advise(err, next)
	}
	return &client{nc, barred}, nil
}

func (c *client) close() { c.nc.Close() }

// ask puts one question to the control plane.
func ask[Rep any](ctx context.Context, c *client, subject string, req any) (Rep, error) {
	return askWithin[Rep](ctx, c, callWithin, subject, req)
}

// askWithin is ask for questions that take their time.
func askWithin[Rep any](ctx context.Context, c *client, within time.Duration, subject string, req any) (Rep, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	defer context.AfterFunc(c.barred, cancel)()
	rep, err := bus.Call[Rep](ctx, c.nc, subject, req)
	if why := context.Cause(c.barred); why != nil {
		return rep, why
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = advise(fmt.Errorf("no answer within %s: %w", within, err), "writ doctor says which part of the control plane is down")
	}
	return rep, err
}

// call is dial and ask in one, for commands with one question.
func call[Rep any](ctx context.Context, a *App, subject string, req any) (rep Rep, err error) {
	c, err := a.dial()
	if err != nil {
		return rep, err
	}
	defer c.close()
	return ask[Rep](ctx, c, subject, req)
}

// health asks all services at once; who is silent is not in the list.
func (c *client) health(ctx context.Context) ([]schemas.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, healthWithin)
	defer cancel()
	answers, err := natsext.RequestMany(ctx, c.nc, schemas.CtlHealth, nil, natsext.RequestManyStall(healthStall))
	if err != nil {
		return nil, fmt.Errorf("ask the services how they are: %w", err)
	}
	found := []schemas.Health{}
	for m, err := range answers {
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			return found, nil
		case err != nil:
			return nil, fmt.Errorf("ask the services how they are: %w", err)
		}
		if len(m.Data) == 0 {
			return found, nil // the end, where the issuer asked for us
		}
		var h schemas.Health
		if err := json.Unmarshal(m.Data, &h); err != nil {
			return nil, fmt.Errorf("a service's answer: %w", err)
		}
		found = append(found, h)
		if len(found) == len(plane.Services) {
			return found, nil
		}
	}
	return found, nil
}
