package replay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// HeaderReplay marks what is a repetition: it holds the sequence in the log. No
// reader of the log takes an event that bears it.
const HeaderReplay = "Writ-Replay"

// ErrOwn is matched where events would be given back to a control plane.
var ErrOwn = errors.New("this is a control plane's own")

const maxPrefix = 64

// CheckPrefix refuses prefixes under which a control plane or an agent listens,
// and such as are no plain subject.
func CheckPrefix(prefix string) error {
	tokens := strings.Split(prefix, ".")
	if len(prefix) > maxPrefix {
		return fmt.Errorf("the prefix has %d bytes, %d are possible", len(prefix), maxPrefix)
	}
	for _, t := range tokens {
		if err := schemas.CheckID("prefix", t); err != nil {
			return err
		}
	}
	if slices.Contains([]string{"ev", "in", "out", "writ", "ledger"}, tokens[0]) {
		return fmt.Errorf("subjects under %s.: %w", tokens[0], ErrOwn)
	}
	return nil
}

// CheckCreds refuses credentials that a control plane made: of its services, of
// operators, of agents' operations, of any account in trust.
func CheckCreds(creds []byte, trust map[string]string) error {
	token, err := nkeys.ParseDecoratedJWT(creds)
	if err != nil {
		return fmt.Errorf("these are no credentials: %w", err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return fmt.Errorf("these are no credentials: %w", err)
	}
	for name, public := range trust {
		if c.IssuerAccount == public || c.Issuer == public {
			return fmt.Errorf("credentials of the account %s: %w", name, ErrOwn)
		}
	}
	roles := []keys.Role{keys.RoleInit, keys.RoleRepair, keys.RoleIntake, keys.RoleLedger, keys.RoleRelease, keys.RoleDeliver, keys.RoleMonitor,
		keys.RoleIssuer, keys.RoleSystem, keys.RoleMemory, keys.RoleOperator, keys.RoleInitMemory}
	if slices.Contains(roles, keys.Role(c.Name)) {
		return fmt.Errorf("credentials of %s: %w", c.Name, ErrOwn)
	}
	// Of agents and services: scoped users without rights written into them.
	if c.HasEmptyPermissions() {
		return fmt.Errorf("credentials of %q, whose rights are a template's, as agents' are: %w", schemas.HeaderText(c.Name), ErrOwn)
	}
	return nil
}

// Target is where events are repeated.
type Target struct {
	URL    string
	Creds  []byte // none where the server asks for none
	Prefix string
	Speed  float64 // as many times as fast as it happened; 0 for as fast as it goes
}

// Emit publishes events under the prefix, at the subject PREFIX.ev.AGENT.KIND,
// with their headers and bodies, and gives how many. Before the first it looks
// whether the account keeps a control plane's log.
func (t Target) Emit(ctx context.Context, events iter.Seq2[*schemas.Event, error]) (n uint64, err error) {
	if err := CheckPrefix(t.Prefix); err != nil {
		return 0, err
	}
	refused := make(chan error, 1)
	opts := []nats.Option{nats.Name("writ replay"), nats.NoReconnect(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case refused <- err:
		default:
		}
	})}
	if t.Creds != nil {
		opts = append(opts, nats.UserCredentialBytes(t.Creds))
	}
	nc, err := nats.Connect(t.URL, opts...)
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", t.URL, err)
	}
	defer nc.Close()
	if err := foreign(ctx, nc); err != nil {
		return 0, err
	}
	var last time.Time
	for e, err := range events {
		if err != nil {
			return n, err
		}
		if err := t.wait(ctx, last, e.Time); err != nil {
			return n, err
		}
		last = e.Time
		m, err := t.message(e)
		if err != nil {
			return n, err
		}
		if err := nc.PublishMsg(m); err != nil {
			return n, fmt.Errorf("publish event %d: %w", e.Seq, err)
		}
		select {
		case err := <-refused:
			return n, fmt.Errorf("the server refused it: %w", err)
		default:
		}
		n++
	}
	if err := nc.FlushTimeout(flushWithin); err != nil {
		return n, fmt.Errorf("publish: %w", err)
	}
	select {
	case err := <-refused:
		return n, fmt.Errorf("the server refused it: %w", err)
	default:
		return n, nil
	}
}

const (
	probeWithin = 5 * time.Second
	flushWithin = time.Minute
)

// foreign demands that the account keeps no control plane's log. Without
// JetStream, or without the right to ask, there is none that these credentials
// reach.
func foreign(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("look at the account: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	_, err = js.Stream(ctx, schemas.Stream)
	switch {
	case err == nil:
		return fmt.Errorf("an account with a stream %s: %w", schemas.Stream, ErrOwn)
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil
	}
	return fmt.Errorf("it could not be told whether this account is a control plane's; these credentials must be allowed to ask $JS.API.STREAM.INFO.%s: %w", schemas.Stream, err)
}

func (t Target) wait(ctx context.Context, last, now time.Time) error {
	if t.Speed <= 0 || last.IsZero() || !now.After(last) {
		return ctx.Err()
	}
	select {
	case <-time.After(time.Duration(float64(now.Sub(last)) / t.Speed)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// message is the event as it is repeated: nobody awaits an answer to it.
func (t Target) message(e *schemas.Event) (*nats.Msg, error) {
	c := *e
	c.Reply = ""
	subject, header, data, err := c.Encode()
	if err != nil {
		return nil, fmt.Errorf("event %d: %w", e.Seq, err)
	}
	header[HeaderReplay] = []string{strconv.FormatUint(e.Seq, 10)}
	return &nats.Msg{Subject: t.Prefix + "." + subject, Header: nats.Header(header), Data: data}, nil
}
