package ledger

import (
	"fmt"

	"github.com/writ-sh/writ/ledger/proof"
)

// A Prefix is the beginning of the ledger up to an event: so many records,
// with this root over them.
type Prefix struct {
	Size uint64
	Seq  uint64 // of the last record
	Root proof.Hash
}

// PrefixTo is the beginning up to an event. Errors match ErrNotFound.
func (l *Ledger) PrefixTo(seq uint64) (p Prefix, err error) {
	r, err := l.find(seq)
	if err != nil {
		return p, err
	}
	return l.PrefixOf(r.Index + 1)
}

// PrefixOf is the beginning of so many records. Errors match ErrNotFound where
// the ledger has fewer.
func (l *Ledger) PrefixOf(size uint64) (p Prefix, err error) {
	if has := l.durable.get().size; size == 0 || size > has {
		return p, fmt.Errorf("the first %d records: %w, which has %d", size, ErrNotFound, has)
	}
	c, err := openCursor(l.db, keyLeaves)
	if err != nil {
		return p, err
	}
	defer c.close()
	last, err := c.record(size - 1)
	if err != nil {
		return p, err
	}
	t, err := loadTree(l.db, size)
	if err != nil {
		return p, err
	}
	return Prefix{Size: size, Seq: last.StreamSeq, Root: t.root()}, nil
}
