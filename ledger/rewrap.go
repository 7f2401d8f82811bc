package ledger

import (
	"bytes"
	"crypto/rand"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const subjectsTemp = subjectsFile + ".new"

// Rewrap wraps the agents' keys under another secret, in one step. Nobody may
// have the ledger open. What hangs on them, salts, seals and pseudonyms, stays,
// and so does all that was recorded; erased keys stay erased. What is under the
// other secret already is left so, so that it can be done again. The file system
// is the machine's where nil. Errors are: a row that opens under neither, with
// nothing changed.
func Rewrap(fs vfs.FS, folder string, from, to [32]byte) (keys int, err error) {
	if fs == nil {
		fs = vfs.Default
	}
	path := fs.PathJoin(folder, subjectsFile)
	table, err := readFile(fs, path)
	if err != nil || table == nil {
		return 0, err
	}
	old, kek := wrapping(from), wrapping(to)
	out := make([]byte, 0, len(table))
	for i := 0; i < len(table); i += rowSize {
		row := table[i:min(i+rowSize, len(table))]
		if bytes.Equal(row, make([]byte, rowSize)) {
			out = append(out, row...)
			continue
		}
		if _, err := openRow(row, kek, to[:]); err == nil {
			out, keys = append(out, row...), keys+1
			continue
		}
		k, err := openRow(row, old, from[:])
		if err != nil {
			return 0, fmt.Errorf("agents' keys: row %d opens under neither secret, and nothing was changed: restore the file subjects from a backup: %w", i/rowSize, err)
		}
		fresh := append(make([]byte, 0, rowSize), rewrapMagic...)
		fresh = append(fresh, row[4:20]...)
		fresh = fresh[:rowSealed]
		rand.Read(fresh[20:]) // never fails (crypto/rand)
		out, keys = append(out, kek.Seal(fresh, fresh[20:rowSealed], k, fresh[:20])...), keys+1
	}
	temp := fs.PathJoin(folder, subjectsTemp)
	if err := writeFile(fs, temp, out); err != nil {
		return 0, fmt.Errorf("agents' keys: %w", err)
	}
	if err := fs.Rename(temp, path); err != nil {
		return 0, fmt.Errorf("agents' keys: %w", err)
	}
	return keys, syncDir(fs, folder)
}
