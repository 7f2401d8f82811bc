package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

const (
	ringFile = "capability.keys"
	ringOld  = "capability.seed" // one key, in folders from before rings
)

// RingLead is how long a successor must have been published before it may
// sign: by then every verifier has read a key set that holds it.
const RingLead = jwks.MaxAge

// ringMost bounds the keys that verify and sign no more, so that a key set
// never holds more keys than a verifier reads.
const ringMost = 16

// retiredFor is how long a key verifies behind its last signature: as long as
// any token, and the leeway that a verifier may grant.
const retiredFor = capability.MaxTTL*time.Second + capability.MaxLeeway

// A Ring is the keys of capabilities: the one that signs, its successor, which
// is published already, and those that verify what they signed, of which the
// private half is gone. It lies in one file, so that every change is whole or
// none. It is not safe for concurrent use.
type Ring struct {
	dir string
	ring
}

type ring struct {
	Current ringKey   `json:"current"`
	Next    ringKey   `json:"next"`
	Retired []Retired `json:"retired"`
	Untold  *Turn     `json:"untold,omitempty"` // of which the log may not know yet
}

type ringKey struct {
	Seed  string    `json:"seed"`  // hex
	Since time.Time `json:"since"` // signing, or of the successor: published
}

// Retired is a key that signs no more.
type Retired struct {
	Public []byte    `json:"public"`
	Until  time.Time `json:"until"` // last moment in which anything signed with it counts
}

// A Turn is who replaced a key and why, for the log.
type Turn struct {
	Rotation schemas.Rotation `json:"rotation"`
	Actor    string           `json:"actor"`
	Reason   string           `json:"reason"`
}

// String keeps private keys out of logs.
func (r *Ring) String() string { return "capability keys" }

func newRingKey(since time.Time) ringKey {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	return ringKey{hex.EncodeToString(seed), since.UTC()}
}

func (k ringKey) private() (ed25519.PrivateKey, error) {
	seed, err := hex.DecodeString(k.Seed)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, errRing
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// id is the kid; the key has been checked.
func (k ringKey) id() string { return keyID(public(k)) }

func public(k ringKey) ed25519.PublicKey {
	private, err := k.private()
	if err != nil {
		panic(err) // openRing checked it
	}
	return private.Public().(ed25519.PublicKey)
}

func keyID(key ed25519.PublicKey) string {
	id, err := capability.KeyID(key)
	if err != nil {
		panic(err) // openRing checked its length
	}
	return id
}

var errRing = errors.New("keys/" + ringFile + " is damaged; restore it from a backup")

func openRing(dir string) (*Ring, error) {
	b, err := readSecret(dir, ringFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; an older version made the folder: start once with writ up, or run writ provision, which bring it up to date", err)
	}
	if err != nil {
		return nil, err
	}
	r := &Ring{dir: dir}
	if err := schemas.Unmarshal(b, &r.ring); err != nil {
		return nil, errRing // the cause might quote a seed
	}
	for _, k := range []ringKey{r.Current, r.Next} {
		if _, err := k.private(); err != nil {
			return nil, err
		}
	}
	for _, k := range r.Retired {
		if len(k.Public) != ed25519.PublicKeySize {
			return nil, errRing
		}
	}
	return r, nil
}

// Signer is the key that signs.
func (r *Ring) Signer() ed25519.PrivateKey {
	private, err := r.Current.private()
	if err != nil {
		panic(err) // openRing checked it
	}
	return private
}

// Public are the keys that verify at a moment: the one that signs first.
func (r *Ring) Public(now time.Time) []ed25519.PublicKey {
	out := []ed25519.PublicKey{public(r.Current), public(r.Next)}
	for _, k := range r.Retired {
		if now.Before(k.Until) {
			out = append(out, k.Public)
		}
	}
	return out
}

// Rotate makes the successor sign, and a new one its successor. What the old
// key signed verifies until it expires. Where keys are compromised, nothing
// that was there stays: a thief of the folder has the successor too.
func (r *Ring) Rotate(now time.Time, compromised bool, actor, reason string) error {
	now = now.UTC()
	to := ring{Current: ringKey{r.Next.Seed, now}, Next: newRingKey(now), Retired: []Retired{}}
	turn := Turn{Actor: actor, Reason: reason, Rotation: schemas.Rotation{Replaced: r.Current.id(), Compromised: compromised}}
	if compromised {
		to.Current = newRingKey(now)
	} else {
		if free := r.Next.Since.Add(RingLead); now.Before(free) {
			return schemas.Refuse(schemas.CodeConflict, "verifiers may not know the next key yet; rotate again from %s on, or say that the keys are compromised", free.Format(time.RFC3339))
		}
		to.Retired = slices.Concat(r.kept(now), []Retired{{public(r.Current), now.Add(retiredFor)}})
		if len(to.Retired) > ringMost {
			return schemas.Refuse(schemas.CodeConflict, "%d old keys still verify; rotate again from %s on, or say that the keys are compromised", ringMost, to.Retired[0].Until.Format(time.RFC3339))
		}
		turn.Rotation.Until = now.Add(retiredFor)
	}
	turn.Rotation.KeyID = to.Current.id()
	to.Untold = &turn
	return r.become(to)
}

// Told says that the log has the last rotation.
func (r *Ring) Told() error {
	to := r.ring
	to.Untold = nil
	return r.become(to)
}

// Prune takes out the keys that verify nothing any more, and reports whether
// there were any.
func (r *Ring) Prune(now time.Time) (bool, error) {
	to := r.ring
	to.Retired = r.kept(now)
	if len(to.Retired) == len(r.Retired) {
		return false, nil
	}
	return true, r.become(to)
}

// Due reports whether Told or Prune are to be called.
func (r *Ring) Due(now time.Time) bool {
	return r.Untold != nil || len(r.kept(now)) < len(r.Retired)
}

func (r *Ring) kept(now time.Time) []Retired {
	return slices.DeleteFunc(slices.Clone(r.Retired), func(k Retired) bool { return !now.Before(k.Until) })
}

func (r *Ring) become(to ring) error {
	d := &draft{dir: r.dir, replace: true}
	d.ring(to)
	if d.err != nil {
		return fmt.Errorf("write the capability keys: %w", d.err)
	}
	r.ring = to
	return nil
}

func (d *draft) ring(to ring) {
	b, err := json.Marshal(to)
	if err != nil && d.err == nil {
		d.err = err
	}
	d.write(ringFile, b)
}

// newRing is of a new folder. Nobody has read a key set without the successor,
// so it may sign at any time.
func (d *draft) newRing() {
	d.ring(ring{Current: newRingKey(time.Now()), Next: newRingKey(time.Time{}), Retired: []Retired{}})
}

// ringFrom makes a ring of the one key that an older version had, and removes
// that; it can be interrupted anywhere.
func (d *draft) ringFrom(now time.Time) error {
	old := filepath.Join(d.dir, ringOld)
	if _, err := openRing(d.dir); errors.Is(err, fs.ErrNotExist) {
		seed, err := readHex(d.dir, ringOld)
		if err != nil {
			return err
		}
		d.ring(ring{Current: ringKey{Seed: hex.EncodeToString(seed)}, Next: newRingKey(now), Retired: []Retired{}})
	} else if err != nil {
		return err
	}
	if d.err != nil {
		return d.err
	}
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(d.dir)
}
