// Package deploy_test holds what is handed out for running Writ against Writ
// itself: the binary is built by the container file's own command and started
// with the units' own arguments.
package deploy_test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/fleet"
)

const (
	unitFile      = "systemd/writ.service"
	quadletFile   = "container/writ.container"
	containerFile = "container/Containerfile"
	fleetFile     = "single-node/fleet.yaml"
	nodeReadme    = "single-node/README.md"
)

// A unit is a systemd unit: values by "Section.Key". An empty value clears
// those before it.
type unit map[string][]string

func readUnit(t *testing.T, path string) unit {
	t.Helper()
	u, section := unit{}, ""
	for _, line := range lines(t, path) {
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("%s: %q is no directive", path, line)
		}
		u[section+"."+key] = append(u[section+"."+key], value)
	}
	return u
}

// lines are the lines of a file without comments and empty ones.
func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

func (u unit) must(t *testing.T, want map[string]string) {
	t.Helper()
	for key, value := range want {
		if got := strings.Join(u[key], " | "); got != value || u[key] == nil {
			t.Errorf("%s is %q, not %q", key, got, value)
		}
	}
}

func TestTheUnitIsHardened(t *testing.T) {
	readUnit(t, unitFile).must(t, map[string]string{
		"Service.User": "writ", "Service.UMask": "0077",
		"Service.NoNewPrivileges": "yes", "Service.CapabilityBoundingSet": "", "Service.AmbientCapabilities": "",
		"Service.ProtectSystem": "strict", "Service.ProtectHome": "yes", "Service.PrivateTmp": "yes",
		"Service.PrivateDevices": "yes", "Service.PrivateUsers": "yes",
		"Service.StateDirectory": "writ", "Service.StateDirectoryMode": "0700", "Service.LimitCORE": "0",
		"Service.IPAddressDeny": "any", "Service.IPAddressAllow": "localhost",
		"Service.RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
		"Service.RestrictSUIDSGID":        "yes", "Service.RestrictNamespaces": "yes", "Service.RestrictRealtime": "yes",
		"Service.LockPersonality": "yes", "Service.MemoryDenyWriteExecute": "yes",
		"Service.ProtectKernelTunables": "yes", "Service.ProtectKernelModules": "yes", "Service.ProtectKernelLogs": "yes",
		"Service.ProtectControlGroups": "yes", "Service.ProtectClock": "yes", "Service.ProtectHostname": "yes",
		"Service.ProtectProc": "invisible", "Service.ProcSubset": "pid",
		"Service.SystemCallArchitectures": "native",
		"Service.SystemCallFilter":        "@system-service | ~@privileged @resources",
	})
}

// systemd's own judgement, where systemd is installed. What the unit says
// holds without it: TestTheUnitIsHardened and TestTheUnitStartsAndStops.
func TestSystemdFindsNoFaultInTheUnit(t *testing.T) {
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	program, _, _ := strings.Cut(only(t, readUnit(t, unitFile), "Service.ExecStart"), " ")
	if !filepath.IsAbs(program) || bytes.Count(b, []byte("ExecStart="+program+" ")) != 1 {
		t.Fatalf("ExecStart's program %q is not absolute", program)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	path := filepath.Join(t.TempDir(), "writ.service")
	if err := os.WriteFile(path, bytes.ReplaceAll(b, []byte(program), []byte("/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", path}, {"security", "--offline=yes", "--threshold=15", path}} {
		if out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}

func only(t *testing.T, u unit, key string) string {
	t.Helper()
	if len(u[key]) != 1 {
		t.Fatalf("%s stands %d times", key, len(u[key]))
	}
	return u[key][0]
}

// An instruction is one of a container file.
type instruction struct{ name, rest string }

func readContainerfile(t *testing.T) (stages [][]instruction) {
	t.Helper()
	for _, line := range lines(t, containerFile) {
		name, rest, _ := strings.Cut(line, " ")
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 || strings.HasSuffix(line, `\`) {
			t.Fatalf("%s: %q is not understood", containerFile, line)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, strings.TrimSpace(rest)})
	}
	return stages
}

func TestTheContainerHoldsTheBinaryAloneAndIsNobody(t *testing.T) {
	stages := readContainerfile(t)
	if len(stages) != 2 {
		t.Fatalf("%d stages", len(stages))
	}
	final := stages[1]
	if final[0] != (instruction{"FROM", "scratch"}) {
		t.Errorf("the last stage is from %q", final[0].rest)
	}
	var copied []string
	found := map[string]string{}
	for _, i := range final {
		found[i.name] = i.rest
		switch i.name {
		case "COPY":
			words := strings.Fields(i.rest)
			copied = append(copied, words[len(words)-1])
		case "ADD", "RUN", "SHELL":
			t.Errorf("the last stage has %s", i.name)
		}
	}
	if !slices.Equal(copied, []string{"/writ", "/data"}) {
		t.Errorf("it holds %q", copied)
	}
	if found["USER"] != "65532:65532" || !strings.Contains(found["ENV"], "WRIT_HOME=/data") || found["ENTRYPOINT"] != `["/writ"]` {
		t.Errorf("user %q, environment %q, entry point %q", found["USER"], found["ENV"], found["ENTRYPOINT"])
	}
	readUnit(t, quadletFile).must(t, map[string]string{
		"Container.ReadOnly": "true", "Container.DropCapability": "all", "Container.NoNewPrivileges": "true",
		"Container.User": "65532", "Container.Group": "65532",
		"Container.Volume": "writ-data:/data | /etc/writ/fleet.yaml:/etc/writ/fleet.yaml:ro",
	})
}

// buildCommand is the container file's, with its environment.
func buildCommand(t *testing.T) (env, args []string) {
	t.Helper()
	for _, i := range readContainerfile(t)[0] {
		switch {
		case i.name == "ENV":
			env = append(env, strings.Fields(i.rest)...)
		case i.name == "RUN" && strings.HasPrefix(i.rest, "go build "):
			args = strings.Fields(i.rest)
		}
	}
	if len(args) == 0 || !slices.Contains(env, "CGO_ENABLED=0") {
		t.Fatalf("build command %q, environment %q", args, env)
	}
	return env, args
}

// build runs the container file's build command in this tree.
func build(t *testing.T) (binary string) {
	t.Helper()
	env, args := buildCommand(t)
	binary = filepath.Join(t.TempDir(), "writ")
	at := slices.Index(args, "/out/writ")
	if at < 0 {
		t.Fatalf("%q does not write /out/writ", args)
	}
	args[at] = binary
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return binary
}

// TestWhatIsHandedOutRuns builds the binary once and starts it as the unit, the
// container and the single node's steps do.
func TestWhatIsHandedOutRuns(t *testing.T) {
	binary := build(t)
	t.Run("the binary is static", func(t *testing.T) { isStatic(t, binary) })
	t.Run("the unit starts and stops", func(t *testing.T) {
		words := strings.Fields(only(t, readUnit(t, unitFile), "Service.ExecStart"))
		p := start(t, binary, words[1:], nil)
		p.stop(t)
	})
	t.Run("the container starts and stops", func(t *testing.T) {
		var words, env []string
		for _, i := range readContainerfile(t)[1] {
			switch i.name {
			case "CMD":
				if err := json.Unmarshal([]byte(i.rest), &words); err != nil {
					t.Fatal(err)
				}
			case "ENV":
				env = strings.Fields(i.rest)
			}
		}
		p := start(t, binary, words, env)
		p.stop(t)
	})
	t.Run("the single node's steps", func(t *testing.T) { followReadme(t, binary) })
}

func isStatic(t *testing.T, binary string) {
	if runtime.GOOS != "linux" {
		b, err := os.ReadFile(binary)
		if err != nil || len(b) == 0 {
			t.Fatalf("nothing was built: %v", err)
		}
		return // no ELF file: the container is built on Linux
	}
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it needs a loader: %v", p.Type)
		}
	}
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
		t.Errorf("it needs %q", libs)
	}
}

// A plane is a control plane that was started as a process.
type plane struct {
	binary, data string
	cmd          *exec.Cmd
	stderr       bytes.Buffer
	ended        chan error
}

// here puts paths and ports of this test in the place of an installation's.
func here(t *testing.T, data string, words []string) []string {
	t.Helper()
	fleetPath, err := filepath.Abs(fleetFile)
	if err != nil {
		t.Fatal(err)
	}
	r := strings.NewReplacer("/etc/writ/fleet.yaml", fleetPath, "/var/lib/writ", data, ":4222", ":0", ":7422", ":0", "=/data", "="+data)
	out := make([]string, len(words))
	for n, w := range words {
		out[n] = r.Replace(w)
	}
	return out
}

func start(t *testing.T, binary string, words, env []string) *plane {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	return startOn(t, binary, data, words, env)
}

func startOn(t *testing.T, binary, data string, words, env []string) *plane {
	t.Helper()
	p := &plane{binary: binary, data: data, ended: make(chan error, 1)}
	p.cmd = exec.Command(binary, here(t, data, words)...)
	// A container has no other environment than its own.
	p.cmd.Env = here(t, data, env)
	if env == nil {
		p.cmd.Env = os.Environ()
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // fails where it has ended
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		_, err := os.Stat(filepath.Join(data, "runtime.json"))
		if err == nil {
			return p
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		select {
		case err := <-p.ended:
			t.Fatalf("writ %q ended: %v\n%s", words, err, p.stderr.String())
		case <-ctx.Done():
			t.Fatalf("writ %q was not ready", words)
		case <-poll.C:
		}
	}
}

// stop ends it as systemd does, and as a container's runtime does.
func (p *plane) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-p.ended; err != nil {
		t.Errorf("it ended with %v\n%s", err, p.stderr.String())
	}
	if _, err := os.Stat(filepath.Join(p.data, "runtime.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("runtime.json is still there: %v", err)
	}
}

// followReadme runs every writ command of the single node's README, in order:
// writ init before the start, the rest behind it.
func followReadme(t *testing.T, binary string) {
	data := filepath.Join(t.TempDir(), "data")
	commands := readmeCommands(t)
	if len(commands) < 7 || commands[0][0] != "init" {
		t.Fatalf("the README's commands: %q", commands)
	}
	do := func(words []string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, here(t, data, words)...)
		cmd.Env = append(os.Environ(), "WRIT_HOME="+data)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("writ %q: %v\n%s", words, err, out)
		}
	}
	do(commands[0])
	t.Setenv("WRIT_ROOT_PASSPHRASE", "as it is asked for at the terminal")
	do([]string{"keys", "export-root", "--to", filepath.Join(t.TempDir(), "writ-root.age"), "--remove"})
	p := startOn(t, binary, data, strings.Fields(only(t, readUnit(t, unitFile), "Service.ExecStart"))[1:], nil)
	for _, words := range commands[1:] {
		do(words)
	}
	p.stop(t)
}

// readmeCommands are the arguments of every writ command in its shell blocks.
func readmeCommands(t *testing.T) (commands [][]string) {
	t.Helper()
	b, err := os.ReadFile(nodeReadme)
	if err != nil {
		t.Fatal(err)
	}
	for n, block := range strings.Split(strings.ReplaceAll(string(b), "\\\n", " "), "```") {
		if n%2 == 0 {
			continue
		}
		for line := range strings.Lines(block) {
			words := shellWords(line)
			if at := slices.Index(words, "writ"); at >= 0 && slices.Contains(words[:at], "sudo") {
				// The first writ is the user, the second the program.
				commands = append(commands, words[at+2+slices.Index(words[at+1:], "writ"):])
			}
		}
	}
	return commands
}

// shellWords splits at spaces outside of double quotes.
func shellWords(line string) (words []string) {
	for n, part := range strings.Split(line, `"`) {
		if n%2 == 1 {
			words = append(words, part)
			continue
		}
		words = append(words, strings.Fields(part)...)
	}
	return words
}

func TestTheSampleFleetIsSoundAndInUse(t *testing.T) {
	b, err := os.ReadFile(fleetFile)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Parse(fleetFile, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Principals) != 5 {
		t.Errorf("%d principals", len(f.Principals))
	}
	for _, p := range f.Principals {
		if p.Owner == "" {
			t.Errorf("%s has no owner", p.ID)
		}
	}
	text, err := os.ReadFile(nodeReadme)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "--trust-domain "+f.TrustDomain+"\n") {
		t.Errorf("the README initialises another trust domain than %s", f.TrustDomain)
	}
}
