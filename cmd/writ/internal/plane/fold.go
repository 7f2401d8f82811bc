package plane

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/writ-sh/writ/broker/release"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A foldStore keeps release's fold in the data folder, so that a start needs
// not fold the ledger from its first event on:
//
//	magic | nonce12 | AES-256-GCM of (size8 | seq8 | root32 | fold)
//
// It is sealed under a key that hangs on the ledger's secret, and names the
// beginning of the ledger that it is the fold of, by size and root. So what
// anybody without keys puts there, or the fold of another ledger or history,
// is refused; an older fold of this ledger is as good, only slower.
type foldStore struct {
	dir  string
	aead cipher.AEAD
}

const (
	foldDir   = "release"
	foldFile  = "fold"
	foldOld   = "fold.old" // the one before, should the newest be ahead of a ledger that lost its end
	foldMagic = "writ/release/fold/v1\n"
	foldHead  = 8 + 8 + len(proof.Hash{})
)

func newFoldStore(data string, secret [32]byte, streamID uint64) (*foldStore, error) {
	key, err := hkdf.Key(sha256.New, secret[:], nil, fmt.Sprintf("%s%016x", foldMagic, streamID), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &foldStore{filepath.Join(data, foldDir), aead}, nil
}

// keep writes the fold of a beginning, durably and in one step.
func (s *foldStore) keep(p ledger.Prefix, fold []byte) error {
	plain := make([]byte, 0, foldHead+len(fold))
	plain = binary.BigEndian.AppendUint64(plain, p.Size)
	plain = binary.BigEndian.AppendUint64(plain, p.Seq)
	plain = append(plain, p.Root[:]...)
	plain = append(plain, fold...)
	out := s.seal(plain)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	path, temp := filepath.Join(s.dir, foldFile), filepath.Join(s.dir, foldFile+".new")
	if err := writeSynced(temp, out); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(s.dir, foldOld)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncFolder(s.dir)
}

func (s *foldStore) seal(plain []byte) []byte {
	out := append(make([]byte, 0, len(foldMagic)+12+len(plain)+s.aead.Overhead()), foldMagic...)
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce) // never fails (crypto/rand)
	return s.aead.Seal(append(out, nonce...), nonce, plain, []byte(foldMagic))
}

func (s *foldStore) unseal(b []byte) ([]byte, error) {
	n := len(foldMagic) + s.aead.NonceSize()
	if len(b) < n || string(b[:len(foldMagic)]) != foldMagic {
		return nil, errors.New("it is no kept fold")
	}
	plain, err := s.aead.Open(nil, b[len(foldMagic):n], b[n:], []byte(foldMagic))
	if err != nil || len(plain) < foldHead {
		return nil, errors.New("it was changed, or was kept by another control plane")
	}
	return plain, nil
}

// load gives the newest fold that is one of this ledger, with its sequence. It
// gives nil where none is kept, and an error beside an older one, or nil, for
// each that was refused.
func (s *foldStore) load(led *ledger.Ledger) (fold []byte, seq uint64, refused error) {
	for _, name := range []string{foldFile, foldOld} {
		path := filepath.Join(s.dir, name)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			fold, seq, err = s.open(led, b)
		}
		if err == nil {
			return fold, seq, refused
		}
		refused = errors.Join(refused, fmt.Errorf("%s: %w", path, err))
	}
	return nil, 0, refused
}

func (s *foldStore) open(led *ledger.Ledger, b []byte) ([]byte, uint64, error) {
	plain, err := s.unseal(b)
	if err != nil {
		return nil, 0, err
	}
	want := ledger.Prefix{Size: binary.BigEndian.Uint64(plain), Seq: binary.BigEndian.Uint64(plain[8:]), Root: proof.Hash(plain[16:foldHead])}
	have, err := led.PrefixOf(want.Size)
	if err != nil {
		return nil, 0, fmt.Errorf("it is the fold of %d records: %w", want.Size, err)
	}
	if have != want {
		return nil, 0, fmt.Errorf("it is the fold of %d records with the root %v, and those of the ledger have %v: it is another history's", want.Size, want.Root, have.Root)
	}
	return plain[foldHead:], want.Seq, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	return errors.Join(werr, f.Sync(), f.Close())
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Refold folds anew what was pruned, from events that its archives hold, and
// keeps that fold for the next start: the way out where none is kept that this
// program can read. No control plane may run on the folder. All that was pruned
// had ended and been carried out, so that the fold may end there.
func Refold(data string, r *ledger.Reader, events iter.Seq2[*schemas.Event, error]) (ledger.Prefix, error) {
	prefix, err := r.Pruned()
	if err != nil {
		return prefix, err
	}
	o, err := LedgerOptions(data)
	if err != nil {
		return prefix, err
	}
	id, err := r.StreamID()
	if err != nil {
		return prefix, err
	}
	folds, err := newFoldStore(data, o.Secret, id)
	if err != nil {
		return prefix, err
	}
	core := release.NewCore()
	for e, err := range events {
		if err != nil {
			return prefix, err
		}
		if e.Seq > prefix.Seq || r.Erased(e.Agent) {
			continue // a fold knows nothing of who was erased
		}
		if _, err := core.Step(e); err != nil {
			return prefix, err
		}
	}
	return prefix, folds.keep(prefix, core.Marshal())
}
