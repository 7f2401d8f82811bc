package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

type ledgerWitnessCmd struct {
	Listen  string   `placeholder:"HOST:PORT" default:"127.0.0.1:7423" help:"Where checkpoints are added (HTTP); port 0 picks one; loopback, unless with a certificate (default: ${default})."`
	Name    string   `placeholder:"NAME" help:"Name of the witness's key, made at the first start: a host name, best."`
	LogKey  []string `name:"log-key" placeholder:"FILE|VKEY" required:"" help:"Public key of a ledger to watch, keys/ledger.pub or its text; may be given several times, also for the keys of one ledger."`
	TLSCert string   `name:"tls-cert" type:"path" placeholder:"FILE" and:"tls" help:"Certificate, PEM."`
	TLSKey  string   `name:"tls-key" type:"path" placeholder:"FILE" and:"tls" help:"Its key, PEM."`
}

const adviceLogKey = "give the file keys/ledger.pub of a control plane's data folder, or what stands in it, with --log-key"

// witnessDir is the folder of a witness in a data folder.
const witnessDir = "witness"

func (c *ledgerWitnessCmd) Run(ctx context.Context, app *App) error {
	if app.Server != "" {
		return misuse("leave --server and --as out", "a witness stands apart from every control plane")
	}
	if c.TLSCert == "" {
		if err := plane.CheckAddress(c.Listen, false); err != nil {
			return misuse("give --listen an address like 127.0.0.1:7423, or --tls-cert and --tls-key", "--listen: %w", err)
		}
	}
	logs, err := c.logs()
	if err != nil {
		return err
	}
	w, err := witness.Open(witness.Options{Dir: filepath.Join(app.Data, witnessDir), Name: c.Name, Logs: logs,
		Logger: slog.New(slog.NewTextHandler(app.stderr, nil))})
	if err != nil {
		return advise(err, "--data names the witness's folder, --name its key at the first start")
	}
	return errors.Join(c.serve(ctx, app, w, logs), w.Close())
}

// logs reads the keys, each from a file or as it is.
func (c *ledgerWitnessCmd) logs() (logs []note.Verifier, err error) {
	for _, k := range c.LogKey {
		text := k
		if b, err := readBounded(k, 4<<10); err == nil {
			text = strings.TrimSpace(string(b))
		} else if !strings.Contains(k, "+") {
			return nil, advise(fmt.Errorf("read a ledger's public key: %w", err), adviceLogKey)
		}
		v, err := note.NewVerifier(text)
		if err != nil {
			return nil, advise(fmt.Errorf("%.100q is no public key of a ledger: %w", k, err), adviceLogKey)
		}
		logs = append(logs, v)
	}
	return logs, nil
}

func (c *ledgerWitnessCmd) serve(ctx context.Context, app *App, w *witness.Witness, logs []note.Verifier) error {
	secure := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return advise(fmt.Errorf("the certificate: %w", err), "give --tls-cert and --tls-key a certificate and its key, as PEM files")
		}
		secure.Certificates = []tls.Certificate{pair}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return advise(fmt.Errorf("listen: %w", err), "give another address with --listen")
	}
	s := &http.Server{Handler: w, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10, TLSConfig: secure}
	ended := make(chan error, 1)
	scheme := "http"
	if c.TLSCert != "" {
		scheme = "https"
		go func() { ended <- s.ServeTLS(l, "", "") }()
	} else {
		go func() { ended <- s.Serve(l) }()
	}
	if err := app.witnessing(w, scheme+"://"+l.Addr().String(), logs); err != nil {
		return errors.Join(err, s.Close())
	}
	select {
	case err := <-ended:
		return advise(fmt.Errorf("the witness failed: %w", err), "start it again: it remembers all that it cosigned")
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	return s.Shutdown(stop)
}

type witnessDoc struct {
	Name string   `json:"name"`
	Key  string   `json:"key"` // as a policy names it
	URL  string   `json:"url"`
	Logs []string `json:"logs"`
	PID  int      `json:"pid"`
}

func (t *terminal) witnessing(w *witness.Witness, url string, logs []note.Verifier) error {
	doc := witnessDoc{Name: w.Name(), Key: w.Key(), URL: url, Logs: []string{}, PID: os.Getpid()}
	for _, v := range logs {
		if !slices.Contains(doc.Logs, v.Name()) {
			doc.Logs = append(doc.Logs, v.Name())
		}
	}
	if t.json {
		return t.emit(doc)
	}
	t.facts([2]string{"witness", doc.Name}, [2]string{"at", doc.URL}, [2]string{"watches", plain(strings.Join(doc.Logs, ", "))})
	t.note("The line for a policy: witness NAME %s %s", doc.Key, doc.URL)
	return nil
}

// published says how far the witnesses have come.
func (t *terminal) published(p *schemas.Published) {
	if p == nil {
		return
	}
	fact := strconv.FormatUint(p.Size, 10) + " records, cosigned as the policy asks"
	if p.UnmetFor > 0 {
		fact += fmt.Sprintf("; newer ones have waited for %.0f s", p.UnmetFor)
	}
	t.facts([2]string{"published", fact})
	for _, w := range p.Witnesses {
		if w.Refused {
			t.say("%s: witness %s: %s", t.paint(red, "ALARM"), plain(w.Name), plain(w.Error))
		} else if w.Error != "" {
			t.note("Witness %s does not cosign: %s", plain(w.Name), plain(w.Error))
		}
	}
}

type tilesDoc struct {
	Dir        string `json:"dir"`
	Files      int    `json:"files"`
	Size       uint64 `json:"size"`
	Root       string `json:"root"`
	Checkpoint string `json:"checkpoint"`
}

// tiles writes the whole tree.
func (c *ledgerExportCmd) tiles(ctx context.Context, app *App) error {
	if c.Agent != "" || c.Trace != "" || c.From != 0 || c.To != 0 {
		return misuse("leave --agent, --trace, --from and --to out", "tiles are of the whole tree")
	}
	key, err := app.ledgerKey(c.Key)
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return advise(fmt.Errorf("the ledger's public key: %w", err), adviceKey)
	}
	get, end, err := app.tileSource(ctx)
	if err != nil {
		return err
	}
	var first []byte // the checkpoint that the tiles are of
	cp, files, err := ledger.WriteTiles(ctx, func(path string) ([]byte, error) {
		b, err := get(path)
		if path == ledger.TilesCheckpoint {
			first = b
		}
		return b, err
	}, v, c.Tiles)
	if err := errors.Join(err, end()); err != nil {
		return advise(err, "name an empty folder with --tiles; "+adviceVerify)
	}
	if app.JSON {
		return app.emit(tilesDoc{Dir: c.Tiles, Files: files, Size: cp.Size, Root: proofHex(cp.Root), Checkpoint: string(first)})
	}
	app.say("%d records, as %d files of tiles, are in %s.", cp.Size, files, plain(c.Tiles))
	return nil
}

func proofHex(h proof.Hash) string { return fmt.Sprintf("%x", h[:]) }

// tileSource finds the ledger's tiles: over HTTP where it runs, else on disk.
func (a *App) tileSource(ctx context.Context) (ledger.Tiles, func() error, error) {
	if a.Server != "" {
		return nil, nil, misuse("run it where the data folder is, or fetch "+plane.TilesPath+"/ from the control plane's HTTP address", "tiles don't travel over NATS")
	}
	r, err := a.onDisk()
	if err != nil {
		return nil, nil, err
	}
	if r != nil {
		return r.Tile, r.Close, nil
	}
	at, err := running(a.Data)
	if err != nil {
		return nil, nil, err
	}
	get := func(path string) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.HTTP+plane.TilesPath+"/"+path, nil)
		if err != nil {
			return nil, err
		}
		rep, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(rep.Body, 1<<20))
		if err := errors.Join(err, rep.Body.Close()); err != nil {
			return nil, err
		}
		if rep.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the control plane answers %s", rep.Status)
		}
		return b, nil
	}
	return get, func() error { return nil }, nil
}
