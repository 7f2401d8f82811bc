package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nkeys"
)

const (
	secretPhrase = "six words that nobody ever guesses"
	secretGuess  = "six words that nobody ever guessed"
)

var secretText = regexp.MustCompile(`S[ACNOUX][A-Z2-7]{56}|\b[0-9a-f]{64}\b|PRIVATE\+KEY\+\S+|whsec_\S{40,}`)

// secretRig is a control plane, and all that it and its commands ever said.
type secretRig struct {
	t       *testing.T
	dir     string
	said    bytes.Buffer
	secrets map[string]string // what nobody may say, and what it is
}

func (r *secretRig) data() string { return filepath.Join(r.dir, "data") }

func (r *secretRig) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "writ", args...)
	cmd.Dir, cmd.Env = r.dir, append(os.Environ(), "WRIT_HOME="+r.data(), "USER=ada")
	return cmd
}

// do runs a command, which succeeds or not, as it should.
func (r *secretRig) do(succeeds bool, args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 3*time.Minute) // for one that does not end where it should
	defer cancel()
	out, err := r.command(ctx, args...).CombinedOutput()
	r.said.Write(out)
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) || (err == nil) != succeeds {
		r.t.Fatalf("writ %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// up starts the control plane, and down stops it.
func (r *secretRig) up(args ...string) (down func()) {
	r.t.Helper()
	cmd := r.command(r.t.Context(), append([]string{"up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug"}, args...)...)
	out, err := os.CreateTemp(r.t.TempDir(), "up")
	if err != nil {
		r.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := running(r.data()); err == nil {
			break
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(out.Name())
			r.t.Fatalf("it did not start: %v\n%s", err, text)
		default:
		}
		if time.Now().After(end) {
			r.t.Fatal("it did not start")
		}
	}
	return func() {
		r.t.Helper()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			r.t.Fatal(err)
		}
		if err := <-ended; err != nil {
			r.t.Errorf("it stopped with %v", err)
		}
		text, err := os.ReadFile(out.Name())
		if err := errors.Join(err, out.Close()); err != nil {
			r.t.Fatal(err)
		}
		r.said.Write(text)
	}
}

// fetch keeps what an address of the HTTP port says.
func (r *secretRig) fetch(path string) {
	r.t.Helper()
	where, err := running(r.data())
	if err != nil {
		r.t.Fatal(err)
	}
	pool, err := trusted(r.data())
	if err != nil {
		r.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	rep, err := client.Get(where.HTTP + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer rep.Body.Close()
	body, err := io.ReadAll(rep.Body)
	if err != nil || rep.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s, %v", path, rep.Status, err)
	}
	r.said.Write(body)
}

// learn remembers the secrets of files in clear, in every form in which one
// could be said.
func (r *secretRig) learn(under string) {
	r.t.Helper()
	before := len(r.secrets)
	err := filepath.WalkDir(under, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".pub") || strings.HasSuffix(path, ".jwt") || strings.HasSuffix(path, "trust.json") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range secretText.FindAllString(string(b), -1) {
			r.keep(s, path)
			if raw, err := hex.DecodeString(s); err == nil {
				r.keep(string(raw), path+", raw")
				r.keep(base64.RawURLEncoding.EncodeToString(raw), path+", base64url")
			}
			if _, raw, err := nkeys.DecodeSeed([]byte(s)); err == nil {
				r.keep(string(raw), path+", raw")
				r.keep(hex.EncodeToString(raw), path+", hex")
			}
		}
		if block, _ := pem.Decode(b); block != nil && block.Type == "PRIVATE KEY" {
			r.keep(string(block.Bytes), path)
			r.keep(base64.StdEncoding.EncodeToString(block.Bytes)[:64], path)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if len(r.secrets) == before {
		r.t.Fatalf("no secret was found under %s", under)
	}
}

func (r *secretRig) keep(secret, what string) {
	if len(secret) >= 16 {
		r.secrets[secret] = what
	}
}

// folderKey remembers what the secrets of a sealed folder are sealed under.
func (r *secretRig) folderKey(identity age.Identity) {
	r.t.Helper()
	f, err := os.Open(filepath.Join(r.data(), "keys", "seal.age"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	plain, err := age.Decrypt(f, identity)
	if err != nil {
		r.t.Fatal(err)
	}
	var seal struct{ Key string }
	if err := json.NewDecoder(plain).Decode(&seal); err != nil || len(seal.Key) != 64 {
		r.t.Fatalf("the key of the folder: %d digits, %v", len(seal.Key), err)
	}
	r.keep(seal.Key, "the key of the folder")
}

// A life of a control plane, at the most talkative level: made, up, issuing,
// rotating, sealed, opened wrongly, damaged, unsealed. Nothing that was said, in
// logs, errors, answers, metrics or events, holds a secret.
func TestNoSecretIsSaidAnywhere(t *testing.T) {
	r := &secretRig{t: t, dir: t.TempDir(), secrets: map[string]string{}}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"identity": id.String(), "phrase": secretPhrase, "guess": secretGuess,
		"fleet.yaml": "trust_domain: acme.example\nagents:\n  - id: analyst-7\n    ceiling: {scope: [read:data.sales]}\n"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.keep(id.String(), "the identity")
	r.keep(secretPhrase, "the passphrase")
	r.keep(secretGuess, "a passphrase that was tried")
	work := func(operation string) {
		t.Helper()
		r.do(true, "issue", "--agent", "analyst-7", "--operation", operation, "--scope", "read:data.sales", "--json")
		r.learn(filepath.Join(r.dir, "analyst-7."+operation+".creds"))
		r.do(false, "issue", "--agent", "analyst-7", "--operation", "x", "--scope", "write:data.sales")
		for _, args := range [][]string{{"status"}, {"tokens", "--json"}, {"log", "--json", "--limit", "1000"}, {"doctor", "--json"}, {"keys", "list", "--json"}} {
			r.do(true, args...)
		}
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/.well-known/jwks.json"} {
			r.fetch(path)
		}
	}

	r.do(true, "init", "--tls", "--trust-domain", "acme.example", "--json")
	r.learn(filepath.Join(r.data(), "keys"))
	down := r.up("--fleet", filepath.Join(r.dir, "fleet.yaml"))
	work("q1")
	r.do(true, "keys", "rotate", "capability", "--reason", "each quarter", "--json")
	r.learn(filepath.Join(r.data(), "keys"))
	r.do(true, "keys", "rotate", "capability", "--reason", "stolen", "--compromised")
	r.learn(filepath.Join(r.data(), "keys"))
	work("q2")
	r.do(true, "keys", "export-root", "--to", "root.age", "--root-identity", "identity", "--remove")
	down()
	r.do(true, "keys", "rotate", "services", "--json")
	r.learn(filepath.Join(r.data(), "keys"))

	r.do(true, "keys", "seal", "--identity", "identity")
	r.folderKey(id)
	t.Setenv("WRIT_IDENTITY", filepath.Join(r.dir, "identity"))
	down = r.up()
	work("q3")
	r.do(true, "keys", "import-root", "root.age", "--root-identity", "identity")
	down()
	r.do(true, "keys", "reseal", "--new-passphrase-file", "phrase")
	for _, wrong := range [][]string{{"--passphrase-file", "guess"}, {"--identity", "identity"}, {"--identity", "phrase"}, {"--passphrase-file", "missing"}} {
		r.do(false, append([]string{"keys", "list"}, wrong...)...)
	}
	t.Setenv("WRIT_IDENTITY", "")
	t.Setenv("WRIT_PASSPHRASE", secretGuess)
	r.do(false, "up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug")
	r.do(false, "ledger", "verify")
	t.Setenv("WRIT_PASSPHRASE", "")
	r.do(true, "keys", "unseal", "--passphrase-file", "phrase")
	for _, name := range []string{"master.secret", "capability.keys", "ledger.note", "operator-signing.seed", "operator.creds"} {
		r.damage(name)
	}

	said := r.said.Bytes()
	if len(said) < 20_000 || !bytes.Contains(said, []byte("policy.rotated")) || !bytes.Contains(said, []byte("level=DEBUG")) && !bytes.Contains(said, []byte("level=")) {
		t.Fatalf("%d bytes were said, which is no life of a control plane", len(said))
	}
	if len(r.secrets) < 100 {
		t.Fatalf("only %d secrets are known", len(r.secrets))
	}
	for secret, what := range r.secrets {
		if at := bytes.Index(said, []byte(secret)); at >= 0 {
			t.Errorf("a secret of %s was said: …%s…", what, said[max(0, at-60):at])
		}
	}
	r.nothingBesideKeys()
}

// damage cuts a file of keys in the middle, and asks for what is then said.
func (r *secretRig) damage(name string) {
	r.t.Helper()
	path := filepath.Join(r.data(), "keys", name)
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, wrong := range [][]byte{b[:len(b)*9/10], bytes.Replace(b, b[:1], []byte("!"), 1)} {
		if err := os.WriteFile(path, wrong, 0o600); err != nil {
			r.t.Fatal(err)
		}
		r.do(false, "doctor")
		if name == "master.secret" {
			r.do(false, "up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "debug")
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// nothingBesideKeys looks through log, ledger and all else in the data folder.
func (r *secretRig) nothingBesideKeys() {
	r.t.Helper()
	err := filepath.WalkDir(r.data(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == "keys" {
				return filepath.SkipDir
			}
			return err
		}
		b, err := os.ReadFile(path)
		for secret, what := range r.secrets {
			if bytes.Contains(b, []byte(secret)) {
				r.t.Errorf("%s holds a secret of %s", path, what)
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}
