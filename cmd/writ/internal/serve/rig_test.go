package serve

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

const fleet = `trust_domain: apart.example
agents:
  - id: sender
    rate: {per_second: 10000, burst: 10000}
    ceiling: {scope: [send:receiver, "memory:get", "memory:put"], tools: [echo], ttl: 1h}
  - id: receiver
    rate: {per_second: 10000, burst: 10000}
    ceiling: {scope: [send:sender], ttl: 1h}
operators:
  - {id: amy, role: operator}
services:
  - id: echo
    serves: [call:echo]
    tools: {echo: {class: read, description: "gives back what it gets"}}
`

// within bounds whatever is waited for, bound all that happens on a rig.
const (
	within = 30 * time.Second
	bound  = 2 * time.Minute
)

// A process is one that was started, and what it says.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // it ended
	log  string        // path of what it says on stderr
	said *output       // on stdout
}

// A rig is a NATS server, and the control plane around it in processes of
// their own.
type rig struct {
	*testing.T
	ctx  context.Context
	dir  string
	url  string
	pool *x509.CertPool
	http *http.Client // nil: one without TLS

	patience time.Duration // for whatever is waited for

	services map[string]*process
}

// path is that of a file in the rig's folder.
func (r *rig) path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

// machine is the folder of one service: what it would have on a machine of
// its own.
func (r *rig) machine(service string) string { return r.path("machines", service) }

func newRig(t *testing.T, fleet string, bound time.Duration) *rig {
	t.Helper()
	r := initRig(t, fleet, bound)
	r.startServer()
	r.writ("provision", "--server", r.url)
	r.distribute()
	return r
}

// initRig is a rig with its keys, and nothing running. Nothing on it takes
// longer than the bound.
func initRig(t *testing.T, fleet string, bound time.Duration) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	t.Cleanup(cancel)
	r := &rig{T: t, ctx: ctx, dir: t.TempDir(), services: map[string]*process{}, patience: max(within, bound/20)}
	r.build("writ", "github.com/writ-sh/writ/cmd/writ")
	r.build("nats-server", "github.com/nats-io/nats-server/v2")
	r.write(fleet, "fleet.yaml")
	r.writ("init", "--trust-domain", "apart.example")
	return r
}

func (r *rig) build(name, pkg string) {
	r.Helper()
	if out, err := exec.CommandContext(r.ctx, "go", "build", "-o", r.path(name), pkg).CombinedOutput(); err != nil {
		r.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

func (r *rig) write(content string, elem ...string) {
	r.Helper()
	path := r.path(elem...)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) read(elem ...string) string {
	r.Helper()
	b, err := os.ReadFile(r.path(elem...))
	if err != nil {
		r.Fatal(err)
	}
	return string(b)
}

// command is the program as an operator's machine runs it.
func (r *rig) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.ctx, r.path(name), args...)
	cmd.Env = append(os.Environ(), "WRIT_HOME="+r.path("home"), "SSL_CERT_FILE="+r.path("etc", "tls", "server.crt"))
	return cmd
}

func (r *rig) writ(args ...string) string {
	r.Helper()
	out, err := r.command("writ", args...).CombinedOutput()
	if err != nil {
		r.Fatalf("writ %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// operate runs a command as an operator elsewhere.
func (r *rig) operate(args ...string) (string, error) {
	out, err := r.command("writ", append(args, "--json", "--server", r.url, "--as", r.path("home", "keys", "operator.creds"))...).CombinedOutput()
	return string(out), err
}

func (r *rig) mustOperate(args ...string) string {
	r.Helper()
	out, err := r.operate(args...)
	if err != nil {
		r.Fatalf("writ %v: %v\n%s", args, err, out)
	}
	return out
}

// startServer starts the nats-server itself, with the configuration that we
// hand out and the trust that writ init wrote.
func (r *rig) startServer() {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		r.Fatal(err)
	}
	if err := os.CopyFS(r.path("lib", "accounts"), os.DirFS(r.path("home", "nats-server", "accounts"))); err != nil {
		r.Fatal(err)
	}
	r.write(r.read("home", "nats-server", "operator.jwt"), "etc", "operator.jwt")
	r.certificate()
	conf, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "deploy", "nats", "nats-server.conf"))
	if err != nil {
		r.Fatal(err)
	}
	r.write(strings.NewReplacer("/etc/nats", r.path("etc"), "/var/lib/nats", r.path("lib"), "0.0.0.0:4222", address).Replace(string(conf)), "etc", "nats-server.conf")
	p := r.start("nats-server", r.command("nats-server", "-c", r.path("etc", "nats-server.conf")))
	r.url = "tls://" + address
	r.await("the NATS server", func() error {
		if p.ended() {
			return fmt.Errorf("it ended")
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func (r *rig) certificate() {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		r.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		r.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	r.write(string(public), "etc", "tls", "server.crt")
	r.write(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), "etc", "tls", "server.key")
	r.pool = x509.NewCertPool()
	r.pool.AppendCertsFromPEM(public)
}

// needs are the files of keys/ that docs/cli.md names for each service.
var needs = map[string][]string{
	"issuer": {"creds/issuer.creds", "creds/system.creds", "operator.creds", "master.secret", "capability.keys",
		"operator-signing.seed", "trust.json", "operator.jwt", "accounts/SYS.jwt", "accounts/CONTROL.jwt", "accounts/DELIVER.jwt", "accounts/MEMORY.jwt", "accounts/AUTH.jwt"},
	"broker": {"creds/intake.creds", "creds/memory.creds"},
	"ledger": {"creds/ledger.creds", "creds/release.creds", "creds/deliver.creds", "creds/repair.creds", "ledger.note", "ledger.pub",
		"ledger.secret", "trust.json", "operator.jwt", "accounts/SYS.jwt", "accounts/CONTROL.jwt", "accounts/DELIVER.jwt", "accounts/MEMORY.jwt", "accounts/AUTH.jwt"},
	"monitor": {"creds/monitor.creds"},
}

// distribute gives each service the keys that it needs, and no other.
func (r *rig) distribute() {
	r.Helper()
	for service, files := range needs {
		for _, f := range files {
			r.write(r.read("home", "keys", f), "machines", service, "keys", f)
		}
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends a process without a word.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func (r *rig) start(name string, cmd *exec.Cmd) *process {
	r.Helper()
	p := &process{cmd: cmd, done: make(chan struct{}), log: r.path(name + ".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is what the tests look at
		_ = log.Close()
	}()
	r.Cleanup(func() {
		p.kill()
		if r.Failed() {
			text, _ := os.ReadFile(p.log)
			r.Logf("%s says:\n%s", name, text)
		}
	})
	return p
}

// serveAll starts all services, as on machines of their own.
func (r *rig) serveAll() {
	r.Helper()
	for _, service := range []string{"issuer", "ledger", "monitor"} {
		r.serve(service)
	}
	r.write(r.read("machines", "issuer", "keys", "creds", "memory-service.creds"), "machines", "broker", "keys", "creds", "memory-service.creds")
	r.serve("broker")
	r.await("a fleet", func() error { // a server that is busy may not answer in time
		out, err := r.operate("apply", "-f", r.path("fleet.yaml"))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// serve starts one service and returns when it says that it works.
func (r *rig) serve(service string, more ...string) {
	r.Helper()
	role := map[string]keys.Role{"issuer": keys.RoleIssuer, "broker": keys.RoleIntake, "ledger": keys.RoleLedger, "monitor": keys.RoleMonitor}[service]
	cmd := r.command("writ", "serve", service, "--json", "--server", r.url, "--creds", keys.CredsPath(r.machine(service), role), "--data", r.machine(service))
	if service == "issuer" {
		cmd.Args = append(cmd.Args, "--http", "127.0.0.1:0")
	}
	cmd.Args = append(cmd.Args, more...)
	said := &output{}
	cmd.Stdout = said
	p := r.start(service, cmd)
	p.said = said
	r.services[service] = p
	r.await(service, func() error {
		if p.ended() {
			return fmt.Errorf("it ended")
		}
		if !strings.Contains(said.String(), `"service":"`+service+`"`) {
			return fmt.Errorf("it is not ready")
		}
		return nil
	})
}

// output takes what a process prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await repeats a condition until it holds.
func (r *rig) await(what string, holds func() error) {
	r.Helper()
	for end := time.Now().Add(r.patience); ; time.Sleep(20 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) || r.ctx.Err() != nil {
			r.Fatalf("%s: not within %s: %v", what, r.patience, err)
		}
	}
}

func (r *rig) secure() nats.Option {
	return nats.Secure(&tls.Config{RootCAs: r.pool, MinVersion: tls.VersionTLS13})
}

// as connects as one of the control plane's roles.
func (r *rig) as(role keys.Role) *nats.Conn {
	r.Helper()
	creds, err := keys.Creds(r.path("home"), role)
	if err != nil {
		r.Fatal(err)
	}
	nc, err := bus.Connect(bus.Options{Role: string(role), URL: r.url, Creds: creds, Options: []nats.Option{r.secure()}})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(nc.Close)
	return nc
}

// client connects with credentials that a command wrote.
func (r *rig) client(creds string, opts ...nats.Option) *nats.Conn {
	r.Helper()
	nc, err := nats.Connect(r.url, append(opts, nats.UserCredentials(creds), r.secure())...)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(nc.Close)
	return nc
}

// refusal is the code of an answer, "" where it is none.
func refusal(m *nats.Msg) string { return m.Header.Get(schemas.HeaderErrorCode) }
