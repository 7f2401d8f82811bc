package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/writ-sh/writ/schemas"
)

const (
	operatorFile = "operator-signing.seed"
	operatorNext = "operator-signing.next.seed"
)

// RotateOperator has another key sign accounts, where nobody else uses the
// folder: a server reads whom it trusts at its start alone. It needs the
// operator's root key. What was interrupted is done again from where it was:
// the successor is trusted before anything is signed with it, and the former
// until nothing is that the folder holds.
func RotateOperator(data, actor, reason string) (schemas.Rotation, error) {
	r, err := rotateOperator(data, actor, reason)
	if err != nil {
		return r, fmt.Errorf("rotate the operator's signing key: %w", err)
	}
	return r, nil
}

func rotateOperator(data, actor, reason string) (schemas.Rotation, error) {
	var r schemas.Rotation
	t, err := Open(data)
	if err != nil {
		return r, err
	}
	dir := filepath.Join(data, Dir)
	root, err := readSigner(dir, rootSeed)
	if errors.Is(err, fs.ErrNotExist) {
		return r, ErrNoRoot
	}
	if err != nil {
		return r, err
	}
	claims, err := jwt.DecodeOperatorClaims(t.Operator)
	if err != nil {
		return r, errors.New("keys/operator.jwt is damaged; restore it from a backup")
	}
	if mustPublic(root) != claims.Subject {
		return r, errors.New("the root key in keys/offline is not that of keys/operator.jwt")
	}
	former, err := readSigner(dir, operatorFile)
	if err != nil {
		return r, err
	}
	if began, told := exists(dir, operatorNext), !exists(dir, operatorTurn); !began && !told {
		return r, errors.New("the log does not know of the last rotation yet: start the control plane once before the next")
	}
	d := &draft{dir: dir, replace: true}
	next := d.kept(operatorNext, nkeys.CreateOperator)
	if d.err != nil {
		return r, d.err
	}
	r = schemas.Rotation{Key: schemas.RotateOperator, KeyID: mustPublic(next), Replaced: mustPublic(former)}
	if r.KeyID == r.Replaced { // interrupted at the very end
		r.Replaced = besides(claims, r.KeyID)
	}
	if r.Replaced != "" {
		d.turn(operatorTurn, Turn{Rotation: r, Actor: actor, Reason: reason})
	}
	if r.Replaced != "" && !slices.Contains(t.Formers, r.Replaced) {
		t.Formers = append(t.Formers, r.Replaced)
		d.trust(t)
	}
	d.operator(claims, root, r.KeyID, r.Replaced)
	for _, name := range static {
		d.resign(name, t.JWTs[t.Accounts[name]], next)
	}
	seed, err := next.Seed()
	if err != nil {
		return r, err
	}
	d.write(operatorFile, seed)
	d.operator(claims, root, r.KeyID)
	if d.err != nil {
		return r, d.err
	}
	return r, errors.Join(os.Remove(filepath.Join(dir, operatorNext)), syncDir(dir))
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

// besides is the key beside another one that an operator trusts, if any.
func besides(c *jwt.OperatorClaims, other string) string {
	for _, k := range c.SigningKeys {
		if k != other {
			return k
		}
	}
	return ""
}

// operator writes whose signatures of accounts count.
func (d *draft) operator(c *jwt.OperatorClaims, root nkeys.KeyPair, signing ...string) {
	if d.err != nil {
		return
	}
	c.SigningKeys = nil
	for _, k := range signing {
		if k != "" {
			c.SigningKeys.Add(k)
		}
	}
	token, err := c.Encode(root)
	if err != nil {
		d.err = err
		return
	}
	d.write("operator.jwt", []byte(token))
}

// resign has a static account signed by another key, and changes nothing else.
func (d *draft) resign(name, token string, by nkeys.KeyPair) {
	if d.err != nil || token == "" {
		return // a folder from before it
	}
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		d.err = fmt.Errorf("keys/accounts/%s.jwt is damaged; restore it from a backup", name)
		return
	}
	if token, err = c.Encode(by); err != nil {
		d.err = err
		return
	}
	d.write("accounts/"+name+".jwt", []byte(token))
}
