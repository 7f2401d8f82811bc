package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/schemas"
)

// The key of weights signs the monitor's weights and nothing else. The first
// signature makes it: whoever never serves with other weights than those built
// in has none, and so trusts none.
const (
	weightsSecret = "weights.note"
	weightsPublic = "weights.pub"
	weightsNext   = "weights.next.note" // while a rotation is under way
	weightsNexts  = "weights.next.pub"
)

// WeightsSigner opens the key that signs weights, and makes it where there is
// none.
func WeightsSigner(data string) (note.Signer, error) {
	trust, err := Open(data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(data, Dir)
	s, err := openNote(dir, weightsSecret)
	if errors.Is(err, fs.ErrNotExist) {
		return makeWeights(dir, trust, weightsSecret, weightsPublic)
	}
	if err != nil {
		return nil, err
	}
	// What nobody takes is not signed: a rotation was interrupted.
	if v, err := WeightsVerifier(data); err != nil || v.KeyHash() != s.KeyHash() {
		return nil, errors.Join(errors.New("keys/weights.note and keys/weights.pub are not of one pair: if a rotation was interrupted, run writ keys rotate weights again"), err)
	}
	return s, nil
}

// makeWeights makes a key. The public half comes first: a secret without it
// would sign what nobody takes.
func makeWeights(dir string, trust *Trust, secret, public string) (note.Signer, error) {
	skey, vkey, err := note.GenerateKey(rand.Reader, trust.TrustDomain+"/weights")
	if err != nil {
		return nil, fmt.Errorf("make the key of weights: %w", err)
	}
	d := &draft{dir: dir, replace: true}
	d.write(public, []byte(vkey))
	d.write(secret, []byte(skey))
	if d.err != nil {
		return nil, fmt.Errorf("make the key of weights: %w", d.err)
	}
	return openNote(dir, secret)
}

// WeightsVerifier is the key that weights must be signed with.
func WeightsVerifier(data string) (note.Verifier, error) {
	vkey, err := readText(filepath.Join(data, Dir), weightsPublic)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no key of weights in %s; writ monitor sign makes it, and keys/weights.pub is copied to who verifies: %w", data, err)
	}
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, errors.New("keys/weights.pub is damaged; restore it from a backup")
	}
	return v, nil
}

// RotateWeights has another key sign weights, and what the former alone has
// signed serves nobody from then on. Before that, resign is given both, to sign
// with them what shall go on serving: it counts before and after, wherever the
// rotation ends. What was interrupted is done again, with the same key.
func RotateWeights(data, actor, reason string, resign func(both ...note.Signer) error) (r schemas.Rotation, err error) {
	trust, err := Open(data)
	if err != nil {
		return r, err
	}
	dir := filepath.Join(data, Dir)
	former, err := openNote(dir, weightsSecret)
	if errors.Is(err, fs.ErrNotExist) {
		return r, errors.New("there is no key of weights to rotate; writ monitor sign makes it")
	}
	if err != nil {
		return r, err
	}
	next, err := openNote(dir, weightsNext)
	if errors.Is(err, fs.ErrNotExist) {
		if t, err := readTurn(dir, weightsTurn); t != nil || err != nil {
			return r, errors.Join(errors.New("the log does not know of the last rotation yet: start the control plane once before the next"), err)
		}
		next, err = makeWeights(dir, trust, weightsNext, weightsNexts)
	}
	if err != nil {
		return r, err
	}
	if next.KeyHash() == former.KeyHash() { // interrupted at the very end
		t, err := readTurn(dir, weightsTurn)
		if err != nil {
			return r, err
		}
		if t != nil {
			r = t.Rotation
		}
		return r, dropNext(dir)
	}
	if err := resign(former, next); err != nil {
		return r, err
	}
	r = schemas.Rotation{Key: schemas.RotateWeights, KeyID: signerID(next), Replaced: signerID(former)}
	vkey, err := readText(dir, weightsNexts)
	if err != nil {
		return r, err
	}
	skey, err := readSecret(dir, weightsNext)
	if err != nil {
		return r, err
	}
	d := &draft{dir: dir, replace: true}
	d.turn(weightsTurn, Turn{Rotation: r, Actor: actor, Reason: reason})
	d.write(weightsPublic, []byte(vkey))
	d.write(weightsSecret, skey)
	if d.err != nil {
		return r, fmt.Errorf("rotate the key of weights: %w", d.err)
	}
	return r, dropNext(dir)
}

// dropNext removes a successor that is in place.
func dropNext(dir string) error {
	for _, name := range []string{weightsNext, weightsNexts} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(dir)
}

func signerID(s note.Signer) string { return fmt.Sprintf("%s+%08x", s.Name(), s.KeyHash()) }

// weightsKeys lists them.
func weightsKeys(dir string) ([]Key, error) {
	vkey, err := readText(dir, weightsPublic)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, errors.New("keys/weights.pub is damaged; restore it from a backup")
	}
	k := Key{ID: noteID(v), Kind: "weights of the monitor"}
	if exists(dir, weightsSecret) {
		k.Where = weightsSecret
	}
	return []Key{k}, nil
}
