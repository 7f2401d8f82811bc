package embed

import (
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
)

// Raw is a plain NATS server with JetStream and without accounts: what
// measurements of the control plane are held against, and nothing else.
type Raw struct{ srv *server.Server }

// StartRaw starts one on a free loopback port, storing under dir.
func StartRaw(dir string) (*Raw, error) {
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: dir, DisableJetStreamBanner: true, NoFastProducerStall: true,
	})
	if err != nil {
		return nil, fmt.Errorf("start a plain NATS server: %w", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(readyWithin) {
		srv.Shutdown()
		return nil, fmt.Errorf("start a plain NATS server: it does not take connections")
	}
	return &Raw{srv}, nil
}

// URL is where clients connect.
func (r *Raw) URL() string { return "nats://" + r.srv.Addr().String() }

// Stop ends the server and waits until it has.
func (r *Raw) Stop() {
	r.srv.Shutdown()
	r.srv.WaitForShutdown()
}
