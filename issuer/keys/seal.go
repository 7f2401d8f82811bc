package keys

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"filippo.io/age"

	"github.com/writ-sh/writ/schemas"
)

// A sealed folder of keys holds each secret encrypted with age, in the file
// that held it before, and beside them sealFile: the key of the folder,
// encrypted to a passphrase or to an age identity, so that the cost of a
// passphrase is paid once and another can be set without touching a secret.
//
// What is in a sealed file is its name and its content: one that is put in
// another's place does not open. The key of the folder is a secret of 256 bits
// and the only way to make a file that opens, so nothing can be slipped in,
// but for an older version of the same file. A file that is not sealed in a
// folder that is does not count.
const (
	sealFile   = "seal.age"
	ageMark    = "age-encryption.org/v1\n" // how a file of age's begins
	sealedMark = "writ key v1\n"           // how what is in a sealed file begins
)

// keyWork is scrypt's work factor under the key of the folder: the least, for
// nobody guesses 256 random bits. A passphrase has age's own default.
const keyWork = 1

// ErrSealed is matched where a sealed folder can't be opened with what was
// given.
var ErrSealed = errors.New("the keys are sealed")

// ErrDamaged is matched where a file of a sealed folder is not what was sealed
// under its name.
var ErrDamaged = errors.New("it is damaged, or another file was put in its place")

// ErrHalfSealed is matched where sealing or unsealing was interrupted.
var ErrHalfSealed = errors.New("sealing or unsealing the keys was interrupted")

// ErrIsSealed is matched where a folder that is sealed was to be.
var ErrIsSealed = errors.New("the keys are sealed already")

// An Opener is what a folder is sealed to and opened with.
type Opener struct {
	recipient age.Recipient
	identity  age.Identity
}

// String keeps it out of logs.
func (*Opener) String() string { return "a passphrase or an identity" }

// Passphrase is an Opener of a passphrase (scrypt).
func Passphrase(text string) (*Opener, error) { return passphrase(text, 0) }

// passphrase takes a work factor, as a power of 2; age's default where 0.
func passphrase(text string, work int) (*Opener, error) {
	if text == "" {
		return nil, errors.New("the passphrase is empty")
	}
	r, err := age.NewScryptRecipient(text)
	if err != nil {
		return nil, errors.New("the passphrase can't be used") // the cause might quote it
	}
	i, err := age.NewScryptIdentity(text)
	if err != nil {
		return nil, errors.New("the passphrase can't be used")
	}
	if work != 0 {
		r.SetWorkFactor(work)
	}
	return &Opener{r, i}, nil
}

// Identity is an Opener of an identity file, as age-keygen writes it, which
// holds one identity.
func Identity(file []byte) (*Opener, error) {
	all, err := age.ParseIdentities(bytes.NewReader(file))
	if err != nil || len(all) != 1 {
		return nil, errors.New("it is no age identity file with one identity, as age-keygen writes it") // the cause might quote it
	}
	switch i := all[0].(type) {
	case *age.X25519Identity:
		return &Opener{i.Recipient(), i}, nil
	case *age.HybridIdentity:
		return &Opener{i.Recipient(), i}, nil
	}
	return nil, errors.New("the identity is of a kind that can't be used; make one with age-keygen")
}

func encrypt(plain []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func decrypt(sealed []byte, with age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), with)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// A seal is what a folder's secrets are sealed under.
type seal struct {
	Key   string `json:"key"`   // 32 bytes, hex
	State string `json:"state"` // whole, or half in between
	with  *Opener
}

const (
	whole = "sealed"
	half  = "half" // every secret of the folder is sealed, or not
)

func newSeal(state string, with *Opener) *seal {
	b := make([]byte, 32)
	rand.Read(b)
	return &seal{hex.EncodeToString(b), state, with}
}

// String keeps the key out of logs.
func (*seal) String() string { return "the key of a folder of keys" }

// close seals a secret under its name.
func (s *seal) close(name string, content []byte) ([]byte, error) {
	r, err := age.NewScryptRecipient(s.Key)
	if err != nil {
		return nil, errors.New("the key of the folder can't be used")
	}
	r.SetWorkFactor(keyWork)
	return encrypt(append([]byte(sealedMark+filepath.ToSlash(name)+"\n"), content...), r)
}

// open gives what was sealed under a name.
func (s *seal) open(name string, sealed []byte) ([]byte, error) {
	i, err := age.NewScryptIdentity(s.Key)
	if err != nil {
		return nil, errors.New("the key of the folder can't be used")
	}
	i.SetMaxWorkFactor(keyWork)
	plain, err := decrypt(sealed, i)
	if err == nil {
		if content, ours := bytes.CutPrefix(plain, []byte(sealedMark+filepath.ToSlash(name)+"\n")); ours {
			return content, nil
		}
	}
	return nil, fmt.Errorf("keys/%s can't be unsealed: %w; restore it from a backup", filepath.ToSlash(name), ErrDamaged)
}

// isPublic reports whether a file of the folder is no secret. What is not known
// to be public is sealed.
func isPublic(name string) bool {
	switch name = filepath.ToSlash(name); name {
	case "trust.json", sealFile, LedgerPolicy, "offline/README", TLSDir + "/tls.json", TLSDir + "/ca.pem":
		return true
	}
	return path.Ext(name) == ".jwt" || path.Ext(name) == ".pub"
}

// opened is what this process has opened, by the content of sealFile: so that
// a passphrase is asked for once, and a copy of a folder is opened with it.
var opened struct {
	mu    sync.Mutex
	ask   func(folder string) (*Opener, error)
	seals map[string]*seal
	fails map[string]error
}

// OpenWith says how this process opens sealed folders. It is asked for each
// folder once, when its first secret is read.
func OpenWith(ask func(folder string) (*Opener, error)) {
	opened.mu.Lock()
	defer opened.mu.Unlock()
	opened.ask, opened.fails = ask, nil
}

// sealOf opens the seal of a folder of keys; nil where it is not sealed.
func sealOf(dir string) (*seal, error) {
	file, err := os.ReadFile(filepath.Join(dir, sealFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	opened.mu.Lock()
	defer opened.mu.Unlock()
	if s := opened.seals[string(file)]; s != nil {
		return s, nil
	}
	if err := opened.fails[string(file)]; err != nil {
		return nil, err
	}
	s, err := unsealed(dir, file, opened.ask)
	if err != nil {
		if opened.fails == nil {
			opened.fails = map[string]error{}
		}
		opened.fails[string(file)] = err
		return nil, err
	}
	know(file, s)
	return s, nil
}

// know keeps an opened seal; opened.mu is held.
func know(file []byte, s *seal) {
	if opened.seals == nil {
		opened.seals = map[string]*seal{}
	}
	opened.seals[string(file)] = s
}

func unsealed(dir string, file []byte, ask func(string) (*Opener, error)) (*seal, error) {
	if ask == nil {
		return nil, fmt.Errorf("%w: nothing is known that opens %s", ErrSealed, dir)
	}
	o, err := ask(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	plain, err := decrypt(file, o.identity)
	if none := new(age.NoIdentityMatchError); errors.As(err, &none) {
		return nil, fmt.Errorf("%w: this is not the passphrase, or the identity, that %s was sealed with", ErrSealed, dir)
	}
	s := new(seal)
	if err != nil || schemas.Unmarshal(plain, s) != nil || len(s.Key) != 64 || s.State != whole && s.State != half {
		return nil, fmt.Errorf("keys/%s: %w; restore it from a backup of this folder", sealFile, ErrDamaged)
	}
	s.with = o
	return s, nil
}

// put writes sealFile.
func (s *seal) put(d *draft) error {
	file, err := encrypt(schemas.Marshal(s), s.with.recipient)
	if err != nil {
		return fmt.Errorf("seal the keys: %w", err)
	}
	if d.put(sealFile, file); d.err != nil {
		return fmt.Errorf("seal the keys: %w", d.err)
	}
	opened.mu.Lock()
	defer opened.mu.Unlock()
	know(file, s)
	return nil
}

// ready is nil where secrets may be read and written under a seal, or under
// none.
func (s *seal) ready() error {
	if s != nil && s.State != whole {
		return fmt.Errorf("%w, and nothing is lost; run writ keys seal, or writ keys unseal, which goes on", ErrHalfSealed)
	}
	return nil
}

// unwrapped gives a secret as it lies in its file, unsealed where the folder is
// sealed.
func unwrapped(dir, name string, file []byte) ([]byte, error) {
	s, err := sealOf(dir)
	if err != nil {
		return nil, err
	}
	if err := s.ready(); err != nil {
		return nil, err
	}
	switch sealed := isSealed(file); {
	case s != nil && sealed:
		return s.open(name, file)
	case s != nil:
		return nil, fmt.Errorf("keys/%s is not sealed, and the folder is: somebody put it there; restore it from a backup", filepath.ToSlash(name))
	case sealed:
		return nil, fmt.Errorf("keys/%s is sealed, and keys/%s, which opens it, is missing; restore that from a backup", filepath.ToSlash(name), sealFile)
	}
	return file, nil
}

// wrapped gives a file for a secret: sealed, where the folder is.
func wrapped(dir, name string, content []byte) ([]byte, error) {
	s, err := sealOf(dir)
	if err != nil || s == nil || isPublic(name) {
		return content, err
	}
	if err := s.ready(); err != nil {
		return nil, err
	}
	return s.close(name, content)
}

func isSealed(file []byte) bool { return strings.HasPrefix(string(file), ageMark) }

// IsSealed reports whether a data folder's keys are sealed, or half so.
func IsSealed(data string) bool {
	_, err := os.Lstat(filepath.Join(data, Dir, sealFile))
	return err == nil
}
