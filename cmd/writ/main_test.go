package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/writ-sh/writ/cmd/writ/internal/replay"
	"github.com/writ-sh/writ/internal/embed"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"writ": main, "mint": mint, "agent": agent, "sandbox": sandbox})
}

// The scripts run the program itself. Three programs stand beside it: mint makes
// capabilities that the issuer never would, agent is a stock NATS client, sandbox
// is a NATS server that is no control plane's.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("WRIT_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("USER", "ada")
			e.Setenv("TESTPID", strconv.Itoa(os.Getpid()))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"get": get, "appear": appear, "mode": mode},
	})
}

// get VAR PATH sets a variable from the JSON on the last stdout. PATH is
// dotted: keys, and positions in lists. Of several documents, the last counts.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get VAR PATH")
	}
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")
	var v any
	dec := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	dec.UseNumber()
	ts.Check(dec.Decode(&v))
	for _, key := range strings.Split(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(at) {
				ts.Fatalf("%s: no element %s of %d", args[1], key, len(at))
			}
			v = at[i]
		default:
			ts.Fatalf("%s: nothing at %s", args[1], key)
		}
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// appear FILE waits until a file is there and not empty.
func appear(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appear FILE")
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(ts.MkAbs(args[0])); err == nil && info.Size() > 0 {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s did not appear", args[0])
		}
	}
}

// mode PERM FILE demands a file's permissions.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode PERM FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, not %s", args[1], got, args[0])
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mint signs a capability with the key of the data folder.
func mint() {
	var (
		from     = flag.Duration("from", 0, "")
		ttl      = flag.Duration("ttl", time.Minute, "")
		audience = flag.String("audience", "", "")
		scope    = flag.String("scope", "read:data.sales", "")
		tool     = flag.String("tool", "pandas", "")
		forbid   = flag.String("forbid", "bash", "")
		jwks     = flag.Bool("jwks", false, "")
	)
	flag.Parse()
	secrets, err := keys.OpenSecrets(os.Getenv("WRIT_HOME"))
	must(err)
	if *jwks {
		set, err := localKeySet(os.Getenv("WRIT_HOME"))
		must(err)
		fmt.Println(string(set))
		return
	}
	signer, err := capability.NewSigner(secrets.Trust.TrustDomain, secrets.Capability.Signer())
	must(err)
	start := time.Now().Add(*from)
	claims := capability.FromGrant(schemas.Grant{JTI: "j1", Agent: "analyst-7", Operation: "report", Scope: []string{*scope, "call:" + *tool},
		ForbiddenTools: []string{*forbid}, NotBefore: start, Expires: start.Add(*ttl),
		TraceID: strings.Repeat("a", 32), PublicKey: "U" + strings.Repeat("A", 55), IssuedBy: "ada"}, secrets.Trust.TrustDomain, *audience, start)
	token, err := signer.Sign(claims)
	must(err)
	fmt.Println(token)
}

// agent is a stock client: agent serve CREDS answers all that it gets with
// what it got; agent ask CREDS SUBJECT BODY prints the answer, or the refusal;
// agent tell CREDS SUBJECT BODY waits for none.
// $SVID is the folder of its certificate.
func agent() {
	where, err := running(os.Getenv("WRIT_HOME"))
	must(err)
	if len(os.Args) < 3 {
		must(fmt.Errorf("usage: agent serve CREDS | agent ask CREDS SUBJECT BODY | agent tell CREDS SUBJECT BODY"))
	}
	opts := []nats.Option{nats.UserCredentials(os.Args[2])}
	if strings.HasPrefix(where.NATS, "tls://") {
		opts = append(opts, nats.RootCAs(filepath.Join(os.Getenv("WRIT_HOME"), "bundle.pem")))
	}
	if svid := os.Getenv("SVID"); svid != "" {
		opts = append(opts, nats.ClientCert(filepath.Join(svid, svidFile), filepath.Join(svid, svidKey)))
	}
	nc, err := nats.Connect(where.NATS, opts...)
	must(err)
	defer nc.Close()
	switch {
	case os.Args[1] == "serve":
		_, err := nc.Subscribe("in.>", func(m *nats.Msg) { _ = m.Respond(m.Data) })
		must(err)
		must(nc.Flush())
		must(os.WriteFile(os.Args[2]+".ready", []byte("ready"), 0o600))
		select {}
	case os.Args[1] == "ask" && len(os.Args) == 5:
		m, err := nc.Request(os.Args[3], []byte(os.Args[4]), 10*time.Second)
		must(err)
		if code := m.Header.Get(schemas.HeaderErrorCode); code != "" {
			fmt.Println(code, m.Header.Get(schemas.HeaderError))
			return
		}
		fmt.Println(string(m.Data))
	case os.Args[1] == "tell" && len(os.Args) == 5:
		must(nc.Publish(os.Args[3], []byte(os.Args[4])))
		must(nc.Flush())
	default:
		must(fmt.Errorf("unknown: %v", os.Args))
	}
}

// sandbox URLFILE runs a server, writes its address, and prints the subject and
// the mark of each event that is repeated there, until it is interrupted.
func sandbox() {
	dir, err := os.MkdirTemp("", "writ-sandbox-")
	must(err)
	defer os.RemoveAll(dir)
	srv, err := embed.StartRaw(dir)
	must(err)
	defer srv.Stop()
	nc, err := nats.Connect(srv.URL())
	must(err)
	defer nc.Close()
	_, err = nc.Subscribe("*.ev.>", func(m *nats.Msg) { fmt.Println(m.Subject, m.Header.Get(replay.HeaderReplay)) })
	must(err)
	must(nc.Flush())
	must(os.WriteFile(os.Args[1], []byte(srv.URL()), 0o600))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	must(nc.Flush()) // what was sent before has arrived
}
