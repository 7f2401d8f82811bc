// Package embed runs NATS inside the process: the server with the control
// plane's account rules, its streams, and what the server itself refuses.
//
// Guarantees:
//
//   - One process at a time holds a data folder: a second start is refused and
//     told which process has it.
//   - Only accounts signed by the operator's signing key are admitted, and
//     only users signed by a signing key of theirs. There is no listener for
//     leaf nodes, WebSocket or MQTT, and no monitoring port.
//   - One client's backlog slows nobody else: a client that reads too slowly
//     is cut off (16 MiB, 2 s), and producers are never stalled for it.
//   - The log can neither be deleted from nor purged, by anybody.
//
// The server acknowledges before it syncs; that an event is durable is the
// ledger's to say.
package embed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// Options say how to start.
type Options struct {
	Data       string        // the data folder; its keys/ must exist
	Host       string        // 127.0.0.1 where empty
	Port       int           // 0 picks a free one
	DontListen bool          // in-process connections only, until Listen
	TLS        *tls.Config   // of connections from outside of the process; nil: they are in clear
	Retention  time.Duration // how long the log keeps an event; Retention where 0
	Logger     *slog.Logger  // the server's log; discarded where nil
}

// Bounds of the server, each of which held under attack.
const (
	maxHeader       = schemas.MaxHeader
	maxPending      = 16 << 20         // bytes waiting for one client
	writeDeadline   = 2 * time.Second  // of one write to a client
	maxControlLine  = 8 << 10          // bytes of a protocol line, the connecting JWT included
	resolverSync    = 90 * time.Second // between peers' comparisons of accounts
	authWithin      = 5 * time.Second  // of a connection: handshake, credentials, callout
	readyWithin     = 20 * time.Second
	jetStreamMemory = 64 << 20
)

// Server is a running server. It is a nats.InProcessConnProvider.
type Server struct {
	trust     *keys.Trust
	data      string
	retention time.Duration
	address   string // asked for
	secure    bool   // with TLS
	srv       *server.Server
	lock      *flock.Flock
	viol      *violations
	flood     sync.WaitGroup
	stop      sync.Once
	cancel    context.CancelFunc
}

// Start starts the server of a data folder and returns when it takes
// connections. Provision makes the streams.
func Start(o Options) (*Server, error) {
	if _, err := keys.Open(o.Data); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	lock, err := hold(o.Data)
	if err != nil {
		return nil, err
	}
	trust, err := upgraded(o)
	if err != nil {
		release(lock)
		return nil, err
	}
	s := &Server{trust: trust, data: o.Data, retention: o.Retention, lock: lock, secure: o.TLS != nil}
	if err := s.start(o); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// upgraded brings the keys up to date, now that nobody else has the folder.
func upgraded(o Options) (*keys.Trust, error) {
	changed, err := keys.Upgrade(o.Data)
	if err != nil {
		return nil, err
	}
	if changed {
		o.Logger.Info("the keys were brought up to date: the services' users were made anew, and the old ones revoked")
	}
	return keys.Open(o.Data)
}

// RenewServices makes the services' users anew and revokes the old ones, where
// nobody else has the folder.
func RenewServices(data string) error {
	return Alone(data, func() error { return keys.Renew(data) })
}

// Alone does something with a data folder's keys while nobody else has the
// folder.
func Alone(data string, do func() error) error {
	if _, err := keys.Open(data); err != nil {
		return err
	}
	lock, err := hold(data)
	if err != nil {
		return err
	}
	defer release(lock)
	return do()
}

func (s *Server) start(o Options) error {
	opts, err := serverOptions(o, s.trust)
	if err != nil {
		return err
	}
	s.address = net.JoinHostPort(opts.Host, strconv.Itoa(o.Port))
	if s.srv, err = server.NewServer(opts); err != nil {
		return fmt.Errorf("start the NATS server: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.viol = newViolations(s.accountOf)
	s.viol.start(ctx)
	s.flood.Go(func() { s.watchFloods(ctx) })
	s.srv.SetLoggerV2(&logger{log: o.Logger, violation: s.viol.saw}, false, false, false)
	s.srv.Start()
	if !s.srv.ReadyForConnections(readyWithin) {
		return errors.New("start the NATS server: it was not ready in time; its log says why")
	}
	if o.DontListen {
		return nil
	}
	return s.Listen()
}

// Listen opens the server to clients outside of the process. Whoever starts
// without listening can let the issuer push all locks first: a server that
// comes back knows only those that it was told.
func (s *Server) Listen() error {
	if s.srv.Addr() != nil {
		return nil
	}
	s.srv.AcceptLoop(make(chan struct{}))
	if s.srv.Addr() == nil {
		return fmt.Errorf("start the NATS server: %w on %s; is the port taken?", ErrListen, s.address)
	}
	return nil
}

func serverOptions(o Options, trust *keys.Trust) (*server.Options, error) {
	operator, err := jwt.DecodeOperatorClaims(trust.Operator)
	if err != nil {
		return nil, fmt.Errorf("keys/operator.jwt is damaged: %w", err)
	}
	store := filepath.Join(o.Data, "nats")
	resolver, err := server.NewDirAccResolver(filepath.Join(store, "accounts"), 0, resolverSync, server.HardDelete)
	if err != nil {
		return nil, fmt.Errorf("open the folder of accounts: %w", err)
	}
	for public, token := range trust.JWTs {
		// The folder of keys has the last word; Store would keep what was
		// signed within the same second.
		if err := resolver.SaveAcc(public, token); err != nil {
			return nil, fmt.Errorf("store a static account: %w", err)
		}
	}
	opts := &server.Options{
		ServerName:             "writ-" + trust.TrustDomain,
		Host:                   o.Host,
		Port:                   o.Port,
		DontListen:             true, // Listen does it
		NoSigs:                 true,
		TrustedOperators:       []*jwt.OperatorClaims{operator},
		SystemAccount:          trust.Accounts[keys.SYS],
		AccountResolver:        resolver,
		MaxPayload:             schemas.MaxPayload + maxHeader,
		MaxPending:             maxPending,
		MaxControlLine:         maxControlLine,
		WriteDeadline:          writeDeadline,
		NoFastProducerStall:    true,
		JetStream:              true,
		StoreDir:               store,
		JetStreamMaxMemory:     jetStreamMemory,
		JetStreamMaxStore:      1 << 40,
		DisableJetStreamBanner: true,
	}
	if opts.Host == "" {
		opts.Host = "127.0.0.1"
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if o.TLS != nil {
		opts.TLSConfig, opts.TLSTimeout, opts.AuthTimeout = o.TLS, authWithin.Seconds(), authWithin.Seconds()
	}
	return opts, nil
}

// InProcessConn connects without a socket.
func (s *Server) InProcessConn() (net.Conn, error) { return s.srv.InProcessConn() }

// URL is where clients connect, "" with DontListen.
func (s *Server) URL() string {
	if s.srv.Addr() == nil {
		return ""
	}
	scheme := "nats://"
	if s.secure {
		scheme = "tls://"
	}
	return scheme + Reachable(s.srv.Addr())
}

// Reachable is where somebody on this machine connects to a listener: one on
// all addresses is on loopback, too.
func Reachable(listener net.Addr) string {
	if a, ok := listener.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port))
	}
	return listener.String()
}

// Trust is the public part of the data folder's keys.
func (s *Server) Trust() *keys.Trust { return s.trust }

// Violations hands out what the server refused its clients. It is never
// closed, and drops what nobody takes.
func (s *Server) Violations() <-chan Violation { return s.viol.out }

// Stop ends the server, waits until it has, and lets the folder go. It may be
// called more than once.
func (s *Server) Stop() {
	s.stop.Do(func() {
		if s.srv != nil {
			s.srv.Shutdown()
			s.srv.WaitForShutdown()
		}
		if s.cancel != nil {
			s.cancel()
			s.viol.wait()
			s.flood.Wait()
		}
		release(s.lock)
	})
}

// accountOf names the account of a connection, open or just closed.
func (s *Server) accountOf(cid uint64) string {
	for _, state := range []server.ConnState{server.ConnOpen, server.ConnClosed} {
		c, err := s.srv.Connz(&server.ConnzOptions{CID: cid, Username: true, State: state, Limit: 1})
		if err == nil && len(c.Conns) == 1 {
			return c.Conns[0].Account
		}
	}
	return ""
}

// ErrListen is matched where nobody can listen at the address.
var ErrListen = errors.New("it can't listen")

// ErrHeld is matched where another process has the data folder.
var ErrHeld = errors.New("the data folder is in use")

const lockName = "lock"

// hold locks the folder for this process. The lock ends with the process,
// however that ends; the file then names a process that is gone, which nobody
// reads unless the lock is taken.
func hold(data string) (*flock.Flock, error) {
	path := filepath.Join(data, lockName)
	lock := flock.New(path, flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	if !ok {
		pid, err := os.ReadFile(path)
		if err != nil || len(pid) == 0 {
			pid = []byte("unknown")
		}
		return nil, fmt.Errorf("%w: %s is held by process %s; stop it, or choose another folder with --data", ErrHeld, data, pid)
	}
	if err := os.WriteFile(path, fmt.Append(nil, os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data folder: %w", err), lock.Unlock())
	}
	return lock, nil
}

// release lets the folder go. The file stays: removing it would let two
// processes lock two files of the same name.
func release(lock *flock.Flock) {
	if lock != nil {
		_ = lock.Unlock() // the kernel unlocks with the process in any case
	}
}
