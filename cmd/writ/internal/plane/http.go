package plane

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-sh/writ/cmd/writ/internal/hooks"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/schemas"
)

// CheckAddress reports an address at which no control plane can listen, with
// TLS or without.
func CheckAddress(address string, secure bool) error {
	_, _, err := split(address, secure)
	return err
}

// split reads HOST:PORT; "" is loopback and any free port. Without TLS only
// loopback may be listened on.
func split(address string, secure bool) (host string, port int, err error) {
	if address == "" {
		return "127.0.0.1", 0, nil
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("address %q is not HOST:PORT: %w", address, err)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("address %q: the port is not a number from 0 to 65535", address)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); !secure && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", 0, fmt.Errorf("address %q is not on loopback, and without TLS connections are not encrypted: turn TLS on, or listen on 127.0.0.1", address)
	}
	return host, port, nil
}

// ErrListenHTTP is matched where nobody can listen at the address of the HTTP port.
var ErrListenHTTP = errors.New("listen for HTTP")

// CheckProxy reports what is no address of a proxy: scheme://host[:port].
func CheckProxy(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not http://host or https://host", address)
	}
	return nil
}

// TilesPath is where the ledger's tiles (C2SP tlog-tiles) are served.
const TilesPath = "/log"

// A face says where the issuer's API is served, and webhooks are sent from.
type face struct {
	address string       // HOST:PORT; 127.0.0.1 and a free port where empty
	proxy   string       // scheme://host[:port] of a proxy in front of it
	hosts   []string     // other names and addresses under which clients reach it
	tls     *tls.Config  // nil where TLS is off
	tiles   ledger.Tiles // nil where the ledger is elsewhere
	reader  keys.Role    // as whom webhooks read the log
}

// startHTTP serves the issuer's API, and what needs no credentials: public keys,
// health, metrics; and sends webhooks. It asks the other services as the
// issuer, which is in this process.
func (p *Process) startHTTP(ctx context.Context, i *issuer.Issuer, f face) error {
	host, port, err := split(f.address, f.tls != nil)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrListenHTTP, err)
	}
	p.http = "http://" + embed.Reachable(l.Addr())
	if f.tls != nil {
		p.http = "https://" + embed.Reachable(l.Addr())
		l = tls.NewListener(l, f.tls)
	}
	asker, err := p.connect(keys.RoleIssuer)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	api, err := i.Handler(f.origins(p.http))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	sender, err := p.newWebhooks(cmp.Or(f.proxy, p.http), f.reader)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s := &http.Server{Handler: handler(asker, i, api, f.tiles, sender), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)} // whoever reaches the port can fail a handshake
	err = p.stages.start(ctx, "http", func(ctx context.Context, ready func()) error {
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		ready()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return s.Shutdown(stop)
	})
	if err != nil {
		return err
	}
	return p.stages.start(ctx, "webhooks", sender.Run)
}

// origins are the addresses under which clients know the API: where it listens,
// the same port of every other name, and the proxy's.
func (f face) origins(listening string) []string {
	origins := []string{listening}
	u, err := url.Parse(listening)
	for _, host := range f.hosts {
		if at := u.Scheme + "://" + net.JoinHostPort(host, u.Port()); err == nil && !slices.Contains(origins, at) {
			origins = append(origins, at)
		}
	}
	if f.proxy != "" && !slices.Contains(origins, f.proxy) {
		origins = append(origins, f.proxy)
	}
	return origins
}

// newWebhooks prepares what follows the log for webhooks.
func (p *Process) newWebhooks(base string, reader keys.Role) (*hooks.Sender, error) {
	conn, err := p.connect(reader)
	if err != nil {
		return nil, err
	}
	return hooks.New(hooks.Options{Data: p.data, Conn: conn, Base: base, Logger: p.log,
		End: func(ctx context.Context) (uint64, error) {
			last, _, err := streamSeq(ctx, conn)
			return last, err
		}}), nil
}

// scrapes bounds who reads the metrics at a time: each reads all agents, and
// anybody who reaches the port can ask.
const scrapes = 4

func handler(asker *nats.Conn, i *issuer.Issuer, api http.Handler, tiles ledger.Tiles, hooks prometheus.Collector) http.Handler {
	mux := http.NewServeMux()
	if tiles != nil {
		mux.Handle("GET "+TilesPath+"/", http.StripPrefix(TilesPath, ledger.TileHandler(tiles)))
	}
	for _, path := range []string{"/v1/", "/openapi.json", "/.well-known/jwks.json"} {
		mux.Handle(path, api)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		health := Health(r.Context(), asker)
		if len(health) < len(Services) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(schemas.Marshal(health))
	})
	mux.HandleFunc("POST /signals", takeTokens(asker))
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &metrics{asker, i}, hooks)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: scrapes}))
	return mux
}

// Services are those that must answer for the control plane to be ready.
var Services = []string{"intake", "issuer", "ledger", "monitor", "release"}

// Health asks every service; those that are down are missing.
func Health(ctx context.Context, nc *nats.Conn) []schemas.Health {
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(schemas.CtlHealth, inbox, nil); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var all []schemas.Health
	for len(all) < len(Services) {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			break
		}
		var h schemas.Health
		if json.Unmarshal(m.Data, &h) == nil && h.OK {
			all = append(all, h)
		}
	}
	return all
}

// metrics reads the services when it is asked.
type metrics struct {
	asker  *nats.Conn
	issuer *issuer.Issuer
}

var (
	serviceUp             = prometheus.NewDesc("writ_service_up", "1 where the service answers.", []string{"service"}, nil)
	serviceSeq            = prometheus.NewDesc("writ_service_sequence", "Last sequence of the log that the service has folded.", []string{"service"}, nil)
	serviceWarns          = prometheus.NewDesc("writ_service_warning", "1 where the service works and asks to be looked after; writ status says why.", []string{"service"}, nil)
	ledgerSize            = prometheus.NewDesc("writ_ledger_records", "Durable records of the ledger.", nil, nil)
	ledgerVerified        = prometheus.NewDesc("writ_ledger_verified", "1 where the last pass of the continuous verification found the ledger whole, 0 where it did not.", nil, nil)
	ledgerVerifiedTime    = prometheus.NewDesc("writ_ledger_verified_timestamp_seconds", "When the last pass of the continuous verification ended.", nil, nil)
	ledgerVerifiedRecords = prometheus.NewDesc("writ_ledger_verified_records", "Records that the last pass of the continuous verification read.", nil, nil)
	ledgerBadSeq          = prometheus.NewDesc("writ_ledger_first_bad_sequence", "First sequence that the continuous verification found wrong; 0 where it found none.", nil, nil)
	published             = prometheus.NewDesc("writ_ledger_published_records", "Records of the newest checkpoint that enough witnesses have cosigned; missing where no policy is set.", nil, nil)
	unmet                 = prometheus.NewDesc("writ_ledger_unpublished_seconds", "For how long a signed checkpoint has waited for its witnesses.", nil, nil)
	refused               = prometheus.NewDesc("writ_ledger_witness_refused", "1 where the witness has seen another history.", []string{"witness"}, nil)
	agentState            = prometheus.NewDesc("writ_agents", "Agents by state.", []string{"state"}, nil)
	credentialEnds        = prometheus.NewDesc("writ_credential_expires_timestamp_seconds", "When a credential or key ends that ends soon; writ status says what renews it.", []string{"kind", "id"}, nil)
	lockedDown            = prometheus.NewDesc("writ_lockdown", "1 while the fleet is locked down.", nil, nil)
	agentRisk             = prometheus.NewDesc("writ_agent_risk_max", "Highest risk of any agent, 0 to 100.", nil, nil)
)

func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{serviceUp, serviceSeq, serviceWarns, ledgerSize, ledgerVerified, ledgerVerifiedTime, ledgerVerifiedRecords, ledgerBadSeq, published, unmet, refused, agentState, agentRisk, lockedDown, credentialEnds} {
		ch <- d
	}
}

func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	up := map[string]float64{}
	for _, h := range Health(ctx, m.asker) {
		up[h.Service] = 1
		ch <- prometheus.MustNewConstMetric(serviceSeq, prometheus.GaugeValue, float64(h.Seq), h.Service)
		warns := 0.0
		if h.Warning != "" {
			warns = 1
		}
		ch <- prometheus.MustNewConstMetric(serviceWarns, prometheus.GaugeValue, warns, h.Service)
	}
	for _, s := range Services {
		ch <- prometheus.MustNewConstMetric(serviceUp, prometheus.GaugeValue, up[s], s)
	}
	if head, err := bus.Call[schemas.Head](ctx, m.asker, schemas.CtlHead, schemas.HeadRequest{}); err == nil {
		ch <- prometheus.MustNewConstMetric(ledgerSize, prometheus.CounterValue, float64(head.Size))
		collectVerified(ch, head.Verified)
		collectPublished(ch, head.Published)
	}
	locked := 0.0
	states, risk, after := map[schemas.Lock]int{schemas.Active: 0, schemas.Paused: 0, schemas.Suspended: 0, schemas.Killed: 0}, 0, ""
	for {
		page, err := m.issuer.Status(ctx, schemas.StatusRequest{PageRequest: schemas.PageRequest{Limit: 1000, After: after}})
		if err != nil {
			return
		}
		if page.Lockdown != "" {
			locked = 1
		}
		for _, x := range page.Expiring {
			ch <- prometheus.MustNewConstMetric(credentialEnds, prometheus.GaugeValue, float64(x.Expires.Unix()), x.Kind, x.ID)
		}
		for _, a := range page.Agents {
			states[a.State]++
			risk = max(risk, a.Risk)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	for s, n := range states {
		ch <- prometheus.MustNewConstMetric(agentState, prometheus.GaugeValue, float64(n), string(s))
	}
	ch <- prometheus.MustNewConstMetric(lockedDown, prometheus.GaugeValue, locked)
	ch <- prometheus.MustNewConstMetric(agentRisk, prometheus.GaugeValue, float64(risk))
}

// collectVerified tells what the continuous verification found, if it has.
func collectVerified(ch chan<- prometheus.Metric, v *schemas.Verified) {
	if v == nil {
		return
	}
	ok := 0.0
	if v.OK {
		ok = 1
	}
	ch <- prometheus.MustNewConstMetric(ledgerVerified, prometheus.GaugeValue, ok)
	ch <- prometheus.MustNewConstMetric(ledgerVerifiedTime, prometheus.GaugeValue, float64(v.Time.Unix()))
	ch <- prometheus.MustNewConstMetric(ledgerVerifiedRecords, prometheus.GaugeValue, float64(v.Records))
	ch <- prometheus.MustNewConstMetric(ledgerBadSeq, prometheus.GaugeValue, float64(v.FirstBadSeq))
}

func collectPublished(ch chan<- prometheus.Metric, p *schemas.Published) {
	if p == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(published, prometheus.GaugeValue, float64(p.Size))
	ch <- prometheus.MustNewConstMetric(unmet, prometheus.GaugeValue, p.UnmetFor)
	for _, w := range p.Witnesses {
		no := 0.0
		if w.Refused {
			no = 1
		}
		ch <- prometheus.MustNewConstMetric(refused, prometheus.GaugeValue, no, w.Name)
	}
}

// announce writes where the control plane is, in one step, when it is ready.
func (p *Plane) announce(context.Context) error {
	data := schemas.Marshal(map[string]any{"nats_url": p.URL(), "http_url": p.http, "pid": os.Getpid()})
	tmp := p.runtimePath() + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if err := os.Rename(tmp, p.runtimePath()); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	p.announced = true
	return nil
}

// streamSeq is the last sequence of the log at the server.
func streamSeq(ctx context.Context, nc *nats.Conn) (last uint64, created time.Time, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, created, fmt.Errorf("the log: %w", err)
	}
	s, err := js.Stream(ctx, schemas.Stream)
	if err != nil {
		return 0, created, fmt.Errorf("the log: %w", err)
	}
	return s.CachedInfo().State.LastSeq, s.CachedInfo().Created, nil
}
