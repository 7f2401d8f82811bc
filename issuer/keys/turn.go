package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/writ-sh/writ/schemas"
)

// What was rotated by another process than the one that tells the log waits for
// it in a file.
const (
	operatorTurn = "operator-signing.turn"
	ledgerTurn   = "ledger.turn"
	weightsTurn  = "weights.turn"
	contentsTurn = "contents.turn"
)

// readTurn gives nil where the log knows of the last rotation.
func readTurn(dir, name string) (*Turn, error) {
	b, err := readSecret(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t := new(Turn)
	if err := schemas.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("keys/%s is damaged; remove it: %w", name, err)
	}
	return t, nil
}

func (d *draft) turn(name string, t Turn) {
	b, err := json.Marshal(t)
	if err != nil {
		d.err = errors.Join(d.err, err)
	}
	d.write(name, b)
}

func toldTurn(dir, name string) error {
	return errors.Join(os.Remove(filepath.Join(dir, name)), syncDir(dir))
}

// LedgerTurn is a rotation of the ledger's key of which the log may not know
// yet; nil where there is none.
func LedgerTurn(data string) (*Turn, error) { return readTurn(filepath.Join(data, Dir), ledgerTurn) }

// LedgerTold says that the log has it.
func LedgerTold(data string) error { return toldTurn(filepath.Join(data, Dir), ledgerTurn) }

// Untold is a rotation that happened while no issuer ran, of which the log may
// not know yet, and what is to be called when it does; nil where there is none.
func (s *Secrets) Untold() (t *Turn, told func() error, err error) {
	for _, name := range []string{operatorTurn, weightsTurn, contentsTurn} {
		if t, err = readTurn(s.Masters.dir, name); t != nil || err != nil {
			return t, func() error { return toldTurn(s.Masters.dir, name) }, err
		}
	}
	return nil, nil, nil
}
