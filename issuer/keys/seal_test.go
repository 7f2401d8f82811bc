package keys

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
)

const testPhrase = "six words that nobody ever guesses"

// opener is one of a passphrase that costs nothing.
func opener(t *testing.T, text string) *Opener {
	t.Helper()
	o, err := passphrase(text, 2)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// another is as if another process came, which opens folders with o.
func another(t *testing.T, o *Opener) {
	t.Helper()
	opened.mu.Lock()
	opened.seals = nil
	opened.mu.Unlock()
	if o == nil {
		OpenWith(nil)
		return
	}
	OpenWith(func(string) (*Opener, error) { return o, nil })
	t.Cleanup(func() { OpenWith(nil) })
}

// contents are the secrets of a folder in clear, by name.
func contents(t *testing.T, data string) map[string]string {
	t.Helper()
	out := few(t, data)
	if len(out) < 20 {
		t.Fatalf("only %d secrets: %v", len(out), slices.Collect(maps.Keys(out)))
	}
	return out
}

func few(t *testing.T, data string) map[string]string {
	t.Helper()
	names, err := secrets(filepath.Join(data, Dir))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range names {
		b, err := ReadSecret(data, name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// filled is a folder with every secret that there can be.
func filled(t *testing.T) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	if err := Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	fill := []error{
		WriteSecret(data, "webhooks/chat.json", []byte(`{"secrets":["whsec_`+strings.Repeat("Zq", 20)+`"]}`)),
		WriteTLS(data, map[string][]byte{"tls.json": []byte("{}"), "ca.pem": []byte("public"),
			"ca_key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes.Repeat([]byte{7, 9, 13}, 20)})}),
	}
	_, err := WeightsSigner(data)
	if err := errors.Join(append(fill, err)...); err != nil {
		t.Fatal(err)
	}
	return data
}

var seedText = regexp.MustCompile(`[0-9a-f]{64}|S[A-Z2-7]{57}|whsec_\S{20,40}`)

// patterns are the bytes by which a thief would know a secret.
func patterns(t *testing.T, secrets map[string]string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	add := func(what string, b []byte) {
		if len(b) >= 16 {
			out[what], out[what+", hex"], out[what+", base64"] = b, []byte(hex.EncodeToString(b)), []byte(base64.RawStdEncoding.EncodeToString(b))
		}
	}
	for name, content := range secrets {
		for i, line := range strings.Split(content, "\n") {
			if !strings.HasPrefix(line, "-") && !strings.HasPrefix(line, "*") && !strings.HasPrefix(line, "NKEY") && !strings.HasPrefix(line, "IMPORTANT") {
				add(name+" line "+string(rune('0'+i)), []byte(line))
			}
		}
		for _, seed := range seedText.FindAllString(content, -1) {
			add(name+" "+seed[:2], []byte(seed))
			if raw, err := hex.DecodeString(seed); err == nil {
				add(name+" raw", raw)
			}
			if _, raw, err := nkeys.DecodeSeed([]byte(seed)); err == nil {
				add(name+" seed raw", raw)
			}
		}
		if block, _ := pem.Decode([]byte(content)); block != nil {
			add(name+" key", block.Bytes)
		}
	}
	if len(out) < 60 {
		t.Fatalf("only %d patterns", len(out))
	}
	return out
}

// search looks for the patterns in every file under a folder.
func search(t *testing.T, dir string, patterns map[string][]byte) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for what, p := range patterns {
			if bytes.Contains(b, p) {
				found = append(found, path+" holds "+what)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestASealedFolderServesAsBefore(t *testing.T) {
	data := filled(t)
	before := contents(t, data)
	another(t, opener(t, testPhrase))
	if err := Seal(data, opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	another(t, opener(t, testPhrase))
	if after := contents(t, data); !maps.Equal(before, after) {
		t.Error("the secrets are others than before")
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	// What is written from here on is sealed too.
	if err := errors.Join(s.Capability.Rotate(time.Now(), true, "ada", "stolen"), Renew(data), WriteSecret(data, "webhooks/b.json", []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(data); err != nil {
		t.Error(err)
	}
	if _, err := List(data, time.Now()); err != nil {
		t.Error(err)
	}
	for _, path := range files(t, data) {
		name, err := filepath.Rel(filepath.Join(data, Dir), path)
		b, rerr := os.ReadFile(path)
		if err := errors.Join(err, rerr); err != nil || isSealed(b) == isPublic(name) && name != sealFile {
			t.Errorf("%s: sealed %v, public %v, %v", name, isSealed(b), isPublic(name), err)
		}
	}
	if contents(t, data)[ringFile] == before[ringFile] {
		t.Error("the rotation changed nothing")
	}
	if err := Unseal(data); err != nil {
		t.Fatal(err)
	}
	another(t, nil)
	if contents(t, data)["master.secret"] != before["master.secret"] {
		t.Error("what was unsealed is not what was sealed")
	}
}

// The thief has the disk, or a backup of it, with all that a killed process
// left there.
func TestAThiefOfASealedFolderFindsNoKey(t *testing.T) {
	data := filled(t)
	all := patterns(t, contents(t, data))
	if found := search(t, data, all); len(found) < 20 {
		t.Fatalf("the search itself finds only %d in the folder in clear", len(found))
	}
	for _, left := range []string{Dir + "/master.secret.tmp", Dir + "/webhooks/.new-123", draftPrefix + "1/master.secret", tlsDraft + "1/ca_key.pem"} {
		path := filepath.Join(data, left)
		b, err := os.ReadFile(filepath.Join(data, Dir, "master.secret"))
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	another(t, opener(t, testPhrase))
	if err := Seal(data, opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	all["the passphrase"] = []byte(testPhrase)
	s, err := sealOf(filepath.Join(data, Dir))
	if err != nil {
		t.Fatal(err)
	}
	all["the key of the folder"] = []byte(s.Key)
	for _, f := range search(t, data, all) {
		t.Error(f)
	}
	another(t, nil)
	if _, err := OpenSecrets(data); !errors.Is(err, ErrSealed) {
		t.Errorf("without a passphrase: %v", err)
	}
}

// A folder that is sealed from the beginning was never in clear on the disk,
// not even while it was made.
func TestWhatIsMadeSealedWasNeverInClear(t *testing.T) {
	another(t, opener(t, testPhrase))
	data := t.TempDir()
	draft := filepath.Join(data, Dir)
	if err := os.Mkdir(draft, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := fill(draft, "acme.example", opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	for _, f := range search(t, data, patterns(t, contents(t, data))) {
		t.Error(f)
	}
	whole := filepath.Join(t.TempDir(), "data")
	if err := InitSealed(whole, "acme.example", opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	another(t, opener(t, testPhrase))
	if _, err := OpenSecrets(whole); err != nil {
		t.Error(err)
	}
	for _, f := range search(t, whole, patterns(t, contents(t, whole))) {
		t.Error(f)
	}
}

// Who may write to the disk, or changes a backup, puts one file in another's
// place, or one of another control plane's.
func TestASealedFileCountsUnderItsNameAlone(t *testing.T) {
	data, foreign := filled(t), filled(t)
	clear := contents(t, data)
	another(t, opener(t, testPhrase))
	if err := errors.Join(Seal(data, opener(t, testPhrase)), Seal(foreign, opener(t, testPhrase))); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(data, Dir)
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const name = "master.secret"
	sound := read(dir, name)
	changed := bytes.Clone(sound)
	changed[len(changed)-20] ^= 1
	for what, file := range map[string][]byte{
		"another secret's":    read(dir, "ledger.secret"),
		"another folder's":    read(filepath.Join(foreign, Dir), name),
		"one with a bit less": sound[:len(sound)-1],
		"one bit another":     changed,
		"nothing":             {},
		"only its beginning":  []byte(ageMark),
		"one in clear":        []byte(clear[name] + "\n"),
		"one to the passphrase itself": func() []byte {
			b, err := encrypt([]byte(sealedMark+name+"\n"+clear[name]), opener(t, testPhrase).recipient)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenSecrets(data)
		if err == nil || !strings.Contains(err.Error(), "keys/"+name) || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("%s: %v", what, err)
		}
		if err := Unseal(data); err == nil {
			t.Errorf("%s: it was unsealed", what)
		}
		if !bytes.Equal(read(dir, name), file) || isSealed(read(dir, "ledger.note")) == false {
			t.Errorf("%s: the attempt changed the folder", what)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), sound, 0o600); err != nil {
		t.Fatal(err)
	}
	seal := read(dir, sealFile)
	for what, file := range map[string][]byte{"another folder's": read(filepath.Join(foreign, Dir), sealFile), "damaged": seal[:len(seal)-3]} {
		if err := os.WriteFile(filepath.Join(dir, sealFile), file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenSecrets(data); !errors.Is(err, ErrDamaged) {
			t.Errorf("the seal is %s: %v", what, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, sealFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSecrets(data); err == nil || !strings.Contains(err.Error(), sealFile) {
		t.Errorf("without a seal: %v", err)
	}
	// What is not defended: an older version of the same file.
	if err := os.WriteFile(filepath.Join(dir, sealFile), seal, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	older := read(dir, ringFile)
	if err := errors.Join(s.Capability.Rotate(time.Now(), true, "ada", "stolen"), os.WriteFile(filepath.Join(dir, ringFile), older, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, data)[ringFile]; got != clear[ringFile] {
		t.Error("an older ring is refused: say so in the documentation")
	}
}

// The machine dies between any two steps, or within one, when a temporary file
// is half written. Whoever goes on afterwards, in the same direction or back,
// has every secret.
func TestSealingAndUnsealingSurviveACrashAtEveryStep(t *testing.T) {
	begun := filled(t)
	all := patterns(t, contents(t, begun))
	for _, most := range []string{"offline", "creds", "accounts/CONTROL.seed", "accounts/SYS.seed", "accounts/AUTH.seed", "accounts/MEMORY.seed", "ledger.note"} {
		if err := os.RemoveAll(filepath.Join(begun, Dir, most)); err != nil {
			t.Fatal(err)
		}
	}
	clear := few(t, begun)
	o := opener(t, testPhrase)
	seal := func(data string) error { return Seal(data, o) }
	for what, c := range map[string]struct {
		sealed bool // to begin with
		next   []func(string) error
	}{
		"sealing, and on":     {false, []func(string) error{seal, Unseal}},
		"sealing, and back":   {false, []func(string) error{Unseal, seal}},
		"unsealing, and on":   {true, []func(string) error{Unseal, seal}},
		"unsealing, and back": {true, []func(string) error{seal, Unseal}},
	} {
		for k, n := 1, 2; k < n; k++ {
			data := filepath.Join(t.TempDir(), "data")
			if err := errors.Join(os.CopyFS(data, os.DirFS(begun)), closeAll(data)); err != nil {
				t.Fatal(err)
			}
			another(t, o)
			steps, err := sealing(data, o)
			if c.sealed {
				if err := seal(data); err != nil {
					t.Fatal(err)
				}
				steps, err = unsealing(data)
			}
			if err != nil {
				t.Fatal(err)
			}
			n = len(steps)
			if err := walk(steps[:k]); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(data, Dir, "master.secret.tmp"), []byte(ageMark+"-> scr"), 0o600); err != nil {
				t.Fatal(err)
			}
			another(t, o)
			if _, err := ReadSecret(data, "master.secret"); k > 1 && !errors.Is(err, ErrHalfSealed) {
				t.Errorf("%s, step %d of %d: %v", what, k, n, err)
			}
			if err := WriteSecret(data, "webhooks/new.json", []byte("{}")); k > 1 && !errors.Is(err, ErrHalfSealed) {
				t.Errorf("%s, step %d of %d: written: %v", what, k, n, err)
			} else if err == nil {
				if err := os.Remove(filepath.Join(data, Dir, "webhooks/new.json")); err != nil {
					t.Fatal(err)
				}
			}
			for i, next := range c.next {
				// Before the first step that changes something, one way is there already.
				if err := next(data); err != nil && (k > 1 || i > 0) {
					t.Fatalf("%s, step %d of %d, %d: %v", what, k, n, i, err)
				}
				if !maps.Equal(few(t, data), clear) {
					t.Fatalf("%s, step %d of %d, %d: the secrets are others", what, k, n, i)
				}
				if found := search(t, data, all); IsSealed(data) && len(found) > 0 {
					t.Errorf("%s, step %d of %d, %d: %v", what, k, n, i, found)
				}
			}
		}
	}
}

func closeAll(data string) error {
	return filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return errors.Join(err, os.Chmod(path, 0o600))
	})
}

// Who guesses learns nothing but that it is wrong, whatever was guessed, and no
// message repeats a guess: it may be a typing error of the right one.
func TestAWrongPassphraseSaysThatAndNoMore(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	if err := InitSealed(data, "acme.example", opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	before := files(t, data)
	said := map[string]bool{}
	for _, guess := range []string{testPhrase + " ", strings.ToUpper(testPhrase), testPhrase[1:], "x", strings.Repeat("guess ", 200), "%s%d\x00\n"} {
		another(t, opener(t, guess))
		for range 2 {
			_, err := OpenSecrets(data)
			if !errors.Is(err, ErrSealed) || strings.Contains(err.Error(), strings.TrimSpace(guess)) && len(guess) > 1 {
				t.Fatalf("a wrong passphrase: %v", err)
			}
			said[err.Error()] = true
		}
		if err := errors.Join(Unseal(data), Reseal(data, opener(t, "another"))); !errors.Is(err, ErrSealed) {
			t.Errorf("a wrong passphrase: %v", err)
		}
	}
	if len(said) != 1 {
		t.Errorf("%d messages tell guesses apart: %v", len(said), said)
	}
	if !slices.Equal(files(t, data), before) {
		t.Error("guessing changed the folder")
	}
	another(t, opener(t, testPhrase))
	if _, err := OpenSecrets(data); err != nil {
		t.Error(err)
	}
}

func TestAnIdentityOpensAsAPassphraseDoes(t *testing.T) {
	file := []byte("# created: 2026-01-01T00:00:00Z\n# public key: age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj\nAGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n")
	id, err := Identity(file)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	if err := InitSealed(data, "acme.example", id); err != nil {
		t.Fatal(err)
	}
	another(t, id)
	if _, err := OpenSecrets(data); err != nil {
		t.Error(err)
	}
	if err := Reseal(data, opener(t, testPhrase)); err != nil {
		t.Fatal(err)
	}
	another(t, id)
	if _, err := OpenSecrets(data); !errors.Is(err, ErrSealed) {
		t.Errorf("the old identity: %v", err)
	}
	another(t, opener(t, testPhrase))
	if _, err := OpenSecrets(data); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "AGE-SECRET-KEY-1", "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj", string(file) + string(file)} {
		if _, err := Identity([]byte(bad)); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if _, err := Passphrase(""); err == nil {
		t.Error("an empty passphrase is taken")
	}
}

// A passphrase costs as much to try as age says; what tests use is no way out
// of that for anybody else.
func TestAPassphraseIsDear(t *testing.T) {
	o, err := Passphrase(testPhrase)
	if err != nil {
		t.Fatal(err)
	}
	file, err := encrypt([]byte("x"), o.recipient)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := bytes.Cut(file, []byte("\n--- "))
	if !regexp.MustCompile(`\n-> scrypt \S+ 18\n`).Match(head) {
		t.Errorf("%s", head)
	}
}

// What others than the owner may read or write is refused before any of it is
// used.
func TestADataFolderOpenToOthersIsRefused(t *testing.T) {
	data := initialised(t)
	for _, mode := range []fs.FileMode{0o755, 0o750, 0o701, 0o722, 0o777} {
		if err := os.Chmod(data, mode); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"open":    func() error { _, err := Open(data); return err }(),
			"secrets": func() error { _, err := OpenSecrets(data); return err }(),
			"ledger":  func() error { _, err := OpenLedger(data); return err }(),
		} {
			if !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "chmod 700 "+data) {
				t.Errorf("%s, mode %o: %v", what, mode, err)
			}
		}
	}
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSecrets(data); err != nil {
		t.Error(err)
	}
	// A new one that is not empty may be open on purpose, and stays as it is.
	full := t.TempDir()
	if err := errors.Join(os.Chmod(full, 0o755), os.WriteFile(filepath.Join(full, "fleet.yaml"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := Init(full, "acme.example"); !errors.Is(err, ErrPermissions) {
		t.Errorf("a folder with something in it: %v", err)
	}
	if info, err := os.Stat(full); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its mode: %v, %v", info.Mode(), err)
	}
}

// A webhook is added while the keys are being sealed. Its secret would lie in
// clear in a folder that counts as sealed, for whoever gets the disk.
func TestWhatIsWrittenWhileTheKeysAreSealedIsSealed(t *testing.T) {
	data := t.TempDir()
	if err := Init(data, "acme.example"); err != nil {
		t.Fatal(err)
	}
	with := opener(t, testPhrase)
	another(t, with)
	wrote := make(chan error, 1)
	err := exclusively(data, func() error {
		steps, err := sealing(data, with)
		if err != nil {
			return err
		}
		go func() { wrote <- WriteSecret(data, "webhooks/chat.json", []byte("whsec_x")) }()
		select { // who does not wait has written it by now, or will see the seal
		case err := <-wrote:
			wrote <- err
		case <-time.After(200 * time.Millisecond):
		}
		return walk(steps)
	})
	if err := errors.Join(err, <-wrote); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(data, Dir, "webhooks", "chat.json"))
	if err != nil || !isSealed(file) {
		t.Errorf("it lies there in clear: %q, %v", file, err)
	}
	if got, err := ReadSecret(data, "webhooks/chat.json"); err != nil || string(got) != "whsec_x" {
		t.Errorf("%q, %v", got, err)
	}
}
