// Package rules holds the tests of what the whole tree must keep to.
package rules

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/writ-sh/writ/"

// A pkg is what go list tells of a package of ours.
type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages; the rules would hold for nothing", len(all))
	}
	return all
}

func in(path string, roots ...string) bool {
	for _, r := range roots {
		if r == path || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}

// violations lists the imports that break the architecture.
func violations(all []pkg) []string {
	var bad []string
	for _, p := range all {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if why := forbidden(from, imp); why != "" {
				bad = append(bad, from+" imports "+imp+": "+why)
			}
		}
	}
	return bad
}

var services = []string{"issuer", "broker", "monitor", "ledger"}

func forbidden(from, imp string) string {
	ours := strings.HasPrefix(imp, module)
	to := strings.TrimPrefix(imp, module)
	std := !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".")
	switch {
	case strings.HasPrefix(imp, "github.com/nats-io/nats-server/") && from != "internal/embed":
		return "internal/embed alone runs a server"
	case strings.HasPrefix(imp, "github.com/cockroachdb/pebble/") && from != "ledger":
		return "the ledger alone has a database"
	case from == "schemas" && !std:
		return "schemas needs the standard library alone"
	case in(from, "schemas/capability") && !std && !in(to, "schemas/capability") && to != "schemas" && !strings.HasPrefix(imp, "github.com/go-jose/go-jose/"):
		return "capabilities need go-jose alone"
	case from == "ledger/proof" && (in(imp, "github.com/nats-io") || to == "ledger"):
		return "proofs are verified offline"
	case ours && in(from, "schemas") && !in(to, "schemas"):
		return "schemas is below all else"
	case ours && in(from, "internal/bus") && !in(to, "schemas"):
		return "the bus knows schemas alone"
	case ours && in(to, "cmd") && !in(from, "cmd"):
		return "commands are above all else"
	}
	if !ours {
		return ""
	}
	for _, a := range services {
		for _, b := range services {
			if a != b && in(from, a) && in(to, b) {
				return "services never import one another"
			}
		}
	}
	if in(from, "broker/agent") && !in(to, "schemas") {
		return "agents use it: it stands on schemas and nats.go"
	}
	if in(from, "broker/intake") && in(to, "broker/release") || in(from, "broker/release") && in(to, "broker/intake") {
		return "intake and release meet in the log alone"
	}
	return ""
}

func TestImportsKeepToTheArchitecture(t *testing.T) {
	for _, v := range violations(packages(t)) {
		t.Error(v)
	}
}

// Who verifies evidence has to trust what the verifier is made of.
func TestProofsNeedNeitherDatabaseNorNetwork(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"ledger/proof").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("go list found %d packages; the rule would hold for nothing", len(deps))
	}
	for _, d := range deps {
		if in(d, "github.com/cockroachdb", "github.com/nats-io", "net") || d == module+"ledger" {
			t.Errorf("ledger/proof depends on %s", d)
		}
	}
}

func TestAForbiddenImportIsFound(t *testing.T) {
	for _, p := range []pkg{
		{module + "broker/intake", []string{module + "monitor"}},
		{module + "monitor", []string{module + "ledger/proof"}},
		{module + "schemas", []string{"github.com/nats-io/nats.go"}},
		{module + "issuer", []string{"github.com/cockroachdb/pebble/v2"}},
		{module + "broker/release", []string{"github.com/nats-io/nats-server/v2/server"}},
		{module + "ledger/proof", []string{module + "ledger"}},
		{module + "internal/bus", []string{module + "issuer"}},
		{module + "schemas/capability/httpcap", []string{"github.com/nats-io/nats.go"}},
		{module + "broker/agent", []string{module + "internal/bus"}},
	} {
		if len(violations([]pkg{p})) != 1 {
			t.Errorf("%s may import %s", p.ImportPath, p.Imports[0])
		}
	}
}
