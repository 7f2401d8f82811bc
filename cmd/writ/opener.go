package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/writ-sh/writ/issuer/keys"
)

// openerFlags say what opens what is sealed: a passphrase, or an age identity.
// What they leave open the environment may say.
type openerFlags struct {
	PassphraseFile string `placeholder:"FILE" type:"path" help:"File with the passphrase that opens what is sealed; also in the environment, as WRIT_*PASSPHRASE_FILE."`
	Identity       string `placeholder:"FILE" type:"path" help:"File with an age identity, as age-keygen writes it, instead of a passphrase; also in the environment, as WRIT_*IDENTITY."`
}

// An openerOf tells apart what several things are opened with.
type openerOf struct{ flags, env string } // prefixes

var (
	ofKeys    = openerOf{"", "WRIT_"}
	ofNewKeys = openerOf{"new-", "WRIT_NEW_"}
	ofRoot    = openerOf{"root-", "WRIT_ROOT_"}
)

// passphraseEnv holds a passphrase itself. A file is better: what a process has
// in its environment, those that it starts have too.
func (of openerOf) passphraseEnv() string { return of.env + "PASSPHRASE" }

// or takes what no flag names from the environment. A flag outweighs all of it.
func (f openerFlags) or(of openerOf) (files openerFlags, passphrase string) {
	if f.PassphraseFile != "" || f.Identity != "" {
		return f, ""
	}
	return openerFlags{os.Getenv(of.env + "PASSPHRASE_FILE"), os.Getenv(of.env + "IDENTITY")}, os.Getenv(of.passphraseEnv())
}

// given reports whether anything is named.
func (f openerFlags) given(of openerOf) bool {
	files, passphrase := f.or(of)
	return files != openerFlags{} || passphrase != ""
}

const adviceOpener = "give --%spassphrase-file FILE, or --%sidentity FILE; at a terminal the passphrase is asked for"

// opener reads what the flags name, else the environment, else asks at the
// terminal: twice where something is sealed to it.
func (f openerFlags) opener(ctx context.Context, app *App, of openerOf, what string, twice bool) (*keys.Opener, error) {
	next := fmt.Sprintf(adviceOpener, of.flags, of.flags)
	files, text := f.or(of)
	if files.PassphraseFile != "" && files.Identity != "" || files != (openerFlags{}) && text != "" {
		return nil, misuse("leave all but one out", "a passphrase's file, an identity's and %s are several ways for one thing", of.passphraseEnv())
	}
	switch {
	case files.Identity != "":
		file, err := readClosed(files.Identity)
		if err != nil {
			return nil, err
		}
		o, err := keys.Identity(file)
		return o, advise(wrap(files.Identity, err), next)
	case files.PassphraseFile != "":
		file, err := readClosed(files.PassphraseFile)
		if err != nil {
			return nil, err
		}
		text, what = strings.TrimRight(string(file), "\r\n"), files.PassphraseFile
	case text != "":
		what = of.passphraseEnv()
	default:
		var err error
		if text, err = app.askPassphrase(ctx, what, twice); err != nil {
			return nil, advise(err, next)
		}
	}
	o, err := keys.Passphrase(text)
	return o, advise(wrap(what, err), next)
}

// readClosed reads a small file that nobody else may be able to read.
func readClosed(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, advise(fmt.Errorf("read what opens the keys: %w", err), "name a file that is there")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, advise(fmt.Errorf("others can read %s (mode %o), which opens the keys", path, info.Mode().Perm()), "run chmod 600 "+path)
	}
	b, err := readBounded(path, 64<<10)
	return b, advise(wrap("read what opens the keys", err), "name a passphrase's or an identity's file")
}

// askPassphrase asks at the terminal, without an echo. Interrupted, it leaves
// the terminal as it was and the process at once: nothing has been done.
func (a *App) askPassphrase(ctx context.Context, what string, twice bool) (string, error) {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", fmt.Errorf("the passphrase of %s is not known", what)
	}
	fd := int(f.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("ask for a passphrase: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		_ = term.Restore(fd, state) // the process ends in any case
		os.Exit(exitFailed)
	})()
	ask := func(question string) (string, error) {
		fmt.Fprint(a.stderr, question)
		b, err := term.ReadPassword(fd)
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", fmt.Errorf("ask for a passphrase: %w", err)
		}
		return string(b), nil
	}
	text, err := ask("passphrase of " + plain(what) + ": ")
	if err != nil || !twice {
		return text, err
	}
	again, err := ask("once more: ")
	if err == nil && again != text {
		err = errors.New("the two differ, and nothing was done")
	}
	return text, err
}

// opensKeys is asked where a sealed data folder's first secret is read.
func (a *App) opensKeys(ctx context.Context) func(string) (*keys.Opener, error) {
	return func(dir string) (*keys.Opener, error) {
		return a.opener(ctx, a, ofKeys, dir, false)
	}
}

// demandSealed refuses a folder in clear where something to open it is given: somebody
// unsealed it, or put another in its place.
func (a *App) demandSealed(data string) error {
	if !a.given(ofKeys) || keys.IsSealed(data) {
		return nil
	}
	dir := filepath.Join(data, keys.Dir)
	if _, err := os.Stat(dir); err != nil {
		return advise(fmt.Errorf("there are no keys in %s, and what opens sealed ones is given", data), "make them with writ init --seal")
	}
	return advise(fmt.Errorf("%s is not sealed, and what opens it is given", dir), "writ keys seal seals it; or leave out --passphrase-file, --identity and what the environment says")
}
