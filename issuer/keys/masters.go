package keys

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
)

const mastersFile = "master.secret"

// Masters are the secrets from which every key of every agent's account is
// derived: one that names accounts, and one that signs, which can be rotated.
// The first is never replaced, and need not be: an account's own key signs
// nothing, and no server would take what it signed.
//
// A rotation goes through three states, each of which is one file: with a
// successor that is trusted and does not sign yet, with a former one that is
// still trusted and signs no more, and with neither. Masters are safe for
// concurrent use.
type Masters struct {
	dir string

	mu    sync.RWMutex // guards the fields below
	m     masters
	epoch int64 // rises with each change
}

// masters are the file, once anything was rotated; before, it is one secret in
// hex.
type masters struct {
	Names   string    `json:"names"`
	Current string    `json:"current"`
	Other   string    `json:"other,omitempty"` // successor or former
	Until   time.Time `json:"until,omitzero"`  // last moment in which the former counts; zero: it is the successor
	Turn    *Turn     `json:"turn,omitempty"`  // of which the log may not know yet
	// Whether the key that signs users in AUTH is derived too. Beside the first
	// secret it lies in a file of its own.
	Asks      bool `json:"asks,omitempty"`
	OtherAsks bool `json:"other_asks,omitempty"`
}

// String keeps them out of logs.
func (m *Masters) String() string { return "secrets of agents' accounts" }

var errMasters = errors.New("keys/" + mastersFile + " is damaged; restore it from a backup")

func openMasters(dir string) (*Masters, error) {
	b, err := readSecret(dir, mastersFile)
	if err != nil {
		return nil, err
	}
	out := &Masters{dir: dir}
	if !strings.HasPrefix(string(b), "{") {
		out.m = masters{Names: string(b), Current: string(b)}
	} else if err := schemas.Unmarshal(b, &out.m); err != nil {
		return nil, errMasters // the cause might quote a secret
	}
	all := []string{out.m.Names, out.m.Current}
	if out.m.Other != "" {
		all = append(all, out.m.Other)
	}
	for _, s := range all {
		if raw, err := hex.DecodeString(s); err != nil || len(raw) != 32 {
			return nil, errMasters
		}
	}
	return out, nil
}

// trusted are the secrets whose keys count: the one that signs first.
func (m *Masters) trusted() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.m.Other == "" {
		return []string{m.m.Current}
	}
	return []string{m.m.Current, m.m.Other}
}

// An asker is where a key is from that signs users in AUTH.
type asker struct {
	master string // "" where it lies in a file
	until  time.Time
	next   bool
}

// askers are those that count: the one that signs first.
func (m *Masters) askers() []asker {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var first, second asker
	if m.m.Asks {
		first.master = m.m.Current
	}
	if m.m.OtherAsks {
		second.master = m.m.Other
	}
	if m.m.Other == "" || first.master == second.master {
		return []asker{first}
	}
	second.until, second.next = m.m.Until, m.m.Until.IsZero()
	return []asker{first, second}
}

// fileAsks reports whether the key in the file still counts.
func (m *Masters) fileAsks() bool {
	return slices.ContainsFunc(m.askers(), func(a asker) bool { return a.master == "" })
}

func (m *Masters) names() string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.m.Names
}

// Epoch says whether an account was made from the secrets that are trusted now.
func (m *Masters) Epoch() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.epoch
}

// A MastersState is how far a rotation is.
type MastersState struct {
	Successor bool      // there is one, which is to be trusted everywhere before it signs
	Until     time.Time // when the former ends; zero where there is none
	Untold    *Turn     // of which the log may not know yet
}

// State says how far a rotation is.
func (m *Masters) State() MastersState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := MastersState{Successor: m.m.Other != "" && m.m.Until.IsZero(), Until: m.m.Until}
	if !s.Successor {
		s.Untold = m.m.Turn
	}
	return s
}

// Succeed makes a successor, which is to be trusted and signs nothing yet. Of
// compromised secrets nothing stays: the successor signs at once, and alone.
func (m *Masters) Succeed(compromised bool, actor, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m.Other != "" && !compromised {
		if m.m.Until.IsZero() {
			return schemas.Refuse(schemas.CodeConflict, "a rotation is under way already")
		}
		return schemas.Refuse(schemas.CodeConflict, "what the former keys signed counts until %s; rotate again from then on, or say that the keys are compromised", m.m.Until.Format(time.RFC3339))
	}
	raw := make([]byte, 32)
	rand.Read(raw)
	to := masters{Names: m.m.Names, Current: m.m.Current, Other: hex.EncodeToString(raw), Asks: m.m.Asks, OtherAsks: true}
	turn := &Turn{Actor: actor, Reason: reason, Rotation: schemas.Rotation{Key: schemas.RotateAccounts, KeyID: masterID(to.Other), Replaced: masterID(to.Current), Compromised: compromised}}
	if compromised {
		to.Current, to.Other = to.Other, ""
		to.Asks, to.OtherAsks = true, false
	}
	to.Turn = turn
	return m.become(to)
}

// Promote makes the successor sign. What the former signed counts until a time.
func (m *Masters) Promote(until time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m.Other == "" || !m.m.Until.IsZero() {
		return errors.New("no successor of the secret of agents' accounts")
	}
	to := m.m
	to.Current, to.Other, to.Until = m.m.Other, m.m.Current, until.UTC().Truncate(time.Second)
	to.Asks, to.OtherAsks = m.m.OtherAsks, m.m.Asks
	if to.Turn != nil {
		turn := *to.Turn
		turn.Rotation.Until = to.Until
		to.Turn = &turn
	}
	return m.become(to)
}

// Told says that the log has the last rotation.
func (m *Masters) Told() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := m.m
	to.Turn = nil
	return m.become(to)
}

// Drop takes out the former.
func (m *Masters) Drop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := m.m
	if !to.Until.IsZero() {
		to.Other, to.Until, to.OtherAsks = "", time.Time{}, false
	}
	return m.become(to)
}

// Forget removes the key of users in AUTH from its file, where it counts no more.
func (m *Masters) Forget() error {
	if m.fileAsks() {
		return nil
	}
	err := os.Remove(filepath.Join(m.dir, askFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(filepath.Dir(filepath.Join(m.dir, askFile))))
}

// become is called with m.mu held.
func (m *Masters) become(to masters) error {
	b, err := json.Marshal(to)
	if err != nil {
		return fmt.Errorf("write keys/%s: %w", mastersFile, err)
	}
	d := &draft{dir: m.dir, replace: true}
	d.write(mastersFile, b)
	if d.err != nil {
		return fmt.Errorf("write keys/%s: %w", mastersFile, d.err)
	}
	m.m = to
	m.epoch++
	return nil
}

// masterID names a secret to the world, and says nothing about it.
func masterID(master string) string {
	pair, err := derive(master, "writ master id v1")
	if err != nil {
		return ""
	}
	return pair.Public()
}

// derive makes a key of an account from a secret in hex.
func derive(master, info string) (*Pair, error) {
	secret, err := hex.DecodeString(master)
	if err != nil {
		return nil, errMasters
	}
	raw, err := hkdf.Key(sha256.New, secret, nil, info, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return newPair(nkeys.PrefixByteAccount, raw)
}

// mastersKeys lists them.
func mastersKeys(dir string) ([]Key, error) {
	m, err := openMasters(dir)
	if err != nil {
		return nil, err
	}
	out := []Key{{ID: masterID(m.m.Current), Kind: "agents' accounts", Where: mastersFile}}
	switch s := m.State(); {
	case s.Successor:
		out = append(out, Key{ID: masterID(m.m.Other), Kind: "agents' accounts, next", Where: mastersFile})
	case !s.Until.IsZero():
		out = append(out, Key{ID: masterID(m.m.Other), Kind: "agents' accounts, verifies only", Until: s.Until, Where: mastersFile})
	}
	return out, nil
}
