package keys

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

const contentsFile = "ledger.secret"

// ErrHalfRotated is matched where the rotation of the ledger's secret was
// interrupted: opened with either secret, the ledger would take what is under
// the other for damaged.
var ErrHalfRotated = errors.New("the rotation of keys/" + contentsFile + " was interrupted; run writ keys rotate contents again, which ends it")

// A secretFile is the file, once the secret was rotated; before, it is one secret
// in hex.
type secretFile struct {
	Secret string `json:"secret"`
	Lookup string `json:"lookup"`           // what the first secret found agents' keys by: it wraps nothing
	Former string `json:"former,omitempty"` // while something may still be under it
}

// String keeps them out of logs.
func (secretFile) String() string { return "secret of the ledger's contents" }

var errContents = errors.New("keys/" + contentsFile + " is damaged; restore it from a backup")

func openContents(dir string) (c secretFile, err error) {
	b, err := readSecret(dir, contentsFile)
	if err != nil {
		return c, err
	}
	if !strings.HasPrefix(string(b), "{") {
		c.Secret = string(b)
	} else if err := schemas.Unmarshal(b, &c); err != nil {
		return secretFile{}, errContents // the cause might quote a secret
	}
	_, _, err = c.decode()
	return c, err
}

func (c secretFile) decode() (secret [32]byte, lookup []byte, err error) {
	for _, text := range []string{c.Secret, c.Lookup, c.Former} {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != 32 && text != "" {
			return secret, nil, errContents
		}
	}
	b, _ := hex.DecodeString(c.Secret) // decoded above
	if len(b) != len(secret) {
		return secret, nil, errContents
	}
	copy(secret[:], b)
	if c.Lookup != "" {
		lookup, _ = hex.DecodeString(c.Lookup)
	}
	return secret, lookup, nil
}

func (d *draft) contents(c secretFile) {
	b, err := json.Marshal(c)
	if err != nil {
		d.err = errors.Join(d.err, err)
	}
	d.write(contentsFile, b)
}

// RotateContents replaces the secret under which the ledger's keys of agents are
// wrapped, where nobody else uses the folder. lookupOf gives what finds those keys
// under the first secret, which stays; rewrap is given the former and the
// new one; both are on disk meanwhile, and nothing else opens the ledger. What
// was interrupted is done again, with the same secret.
func RotateContents(data, actor, reason string, lookupOf func([32]byte) []byte, rewrap func(from, to [32]byte) error) (r schemas.Rotation, err error) {
	if _, err := Open(data); err != nil {
		return r, err
	}
	dir := filepath.Join(data, Dir)
	c, err := openContents(dir)
	if err != nil {
		return r, err
	}
	d := &draft{dir: dir, replace: true}
	if c.Former == "" {
		if t, err := readTurn(dir, contentsTurn); t != nil || err != nil {
			return r, errors.Join(errors.New("the log does not know of the last rotation yet: start the control plane once before the next"), err)
		}
		secret, _, err := c.decode()
		if err != nil {
			return r, err
		}
		if c.Lookup == "" {
			c.Lookup = hex.EncodeToString(lookupOf(secret))
		}
		fresh := make([]byte, 32)
		rand.Read(fresh)
		c.Secret, c.Former = hex.EncodeToString(fresh), c.Secret
		if d.contents(c); d.err != nil {
			return r, d.err
		}
	}
	to, _, err := c.decode()
	if err != nil {
		return r, err
	}
	from, _, err := secretFile{Secret: c.Former}.decode()
	if err != nil {
		return r, err
	}
	if err := rewrap(from, to); err != nil {
		return r, err
	}
	r = schemas.Rotation{Key: schemas.RotateContents, KeyID: masterID(c.Secret), Replaced: masterID(c.Former)}
	d.turn(contentsTurn, Turn{Rotation: r, Actor: actor, Reason: reason})
	c.Former = ""
	d.contents(c)
	return r, d.err
}
