package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A keyring says which key signs which checkpoint, by size. Each key but the
// last named its successor in a handover record; the checkpoint that ends with
// it bears both signatures. It never changes: a handover makes another.
type keyring struct {
	former  []formerKey
	current note.Verifier // the successor of the last
}

// A formerKey signed checkpoints of at most so many records.
type formerKey struct {
	note.Verifier
	until     uint64
	successor string // as its handover names it
}

// readKeyring reads the handovers that stand in the database. Each is held
// against its record, so that the keys are those which the records name, and
// the last of them must be the one that the owner knows: of the rest nothing is
// believed before the records are under its signature. pinned is that key, or
// the one before it, where a handover is half done.
func readKeyring(r pebble.Reader, pinned note.Verifier) (*keyring, error) {
	c, err := openCursor(r, keyHandover)
	if err != nil {
		return nil, err
	}
	defer c.close()
	leaves, err := openCursor(r, keyLeaves)
	if err != nil {
		return nil, err
	}
	defer leaves.close()
	k, last := &keyring{current: pinned}, ""
	for ok := c.it.First(); ok; ok = c.it.Next() {
		row, err := c.it.ValueAndErr()
		if err != nil {
			return nil, fmt.Errorf("read the handovers: %w", err)
		}
		size, ok := parseNumberKey(keyHandover, c.it.Key())
		said, err := openHandoverRow(leaves, size, row)
		if !ok || err != nil {
			return nil, tampered(0, "the handover of the first %d records: %v", size, err)
		}
		if last != "" && said.Former != last {
			return nil, tampered(0, "the handover of the first %d records is not by the key that the one before it names", size)
		}
		v, err := note.NewVerifier(said.Former)
		if err != nil {
			return nil, tampered(0, "the handover of the first %d records: %v", size, err)
		}
		k.former, last = append(k.former, formerKey{v, size, said.Successor}), said.Successor
	}
	if err := c.it.Error(); err != nil || last == "" {
		return k, err
	}
	v, err := note.NewVerifier(last)
	if err != nil {
		return nil, tampered(0, "the last handover: %v", err)
	}
	switch at := &k.former[len(k.former)-1]; {
	case same(v, pinned):
	case same(at, pinned): // half done: the files name the former key still
		at.Verifier, k.current = pinned, v
	default:
		return nil, fmt.Errorf("the ledger was handed over to the key %s, and the one given is %s+%08x: restore keys/ledger.note and keys/ledger.pub from after the rotation", last, pinned.Name(), pinned.KeyHash())
	}
	return k, nil
}

func same(a, b note.Verifier) bool { return a.Name() == b.Name() && a.KeyHash() == b.KeyHash() }

// of are the keys that sign a checkpoint of so many records.
func (k *keyring) of(size uint64) []note.Verifier {
	for i, f := range k.former {
		if size > f.until {
			continue
		}
		if size < f.until {
			return []note.Verifier{f.Verifier}
		}
		if i+1 < len(k.former) {
			return []note.Verifier{f.Verifier, k.former[i+1].Verifier}
		}
		return []note.Verifier{f.Verifier, k.current}
	}
	return []note.Verifier{k.current}
}

func (k *keyring) all() []note.Verifier {
	out := []note.Verifier{k.current}
	for _, f := range k.former {
		out = append(out, f.Verifier)
	}
	return out
}

// open opens a checkpoint that the key of its size has signed, and passes over
// further signatures. Errors match proof.ErrProof.
func (k *keyring) open(msg []byte) (c proof.Checkpoint, err error) {
	for _, v := range k.all() {
		if c, err = proof.OpenCheckpoint(msg, v); err == nil {
			break
		}
	}
	if err != nil {
		return c, err
	}
	for _, v := range k.of(c.Size) {
		if _, err := proof.OpenCheckpoint(msg, v); err != nil {
			return c, fmt.Errorf("%w: it is of %d records, and another key signs those", err, c.Size)
		}
	}
	return c, nil
}

// stored opens a checkpoint that this ledger wrote: byte for byte what its
// signers give, with their signatures alone.
func (k *keyring) stored(msg []byte) (proof.Checkpoint, error) {
	c, err := k.open(msg)
	if err != nil {
		return c, err
	}
	n, err := note.Open(msg, note.VerifierList(k.of(c.Size)...))
	if err != nil || len(n.Sigs) != len(k.of(c.Size)) || len(n.UnverifiedSigs) != 0 {
		return c, fmt.Errorf("%w: checkpoint: signatures that the ledger did not write", proof.ErrProof)
	}
	return c, nil
}

// isHandover reports whether a handover ends with a record.
func (k *keyring) isHandover(index uint64) bool {
	return slices.ContainsFunc(k.former, func(f formerKey) bool { return f.until == index+1 })
}

// The row of a handover has what opens and shows its record, for ever: record,
// salt, headers and payload, each behind its length in 4 bytes. It is pruned
// with no content.
func handoverRow(b *proof.BundleRecord) []byte {
	var out []byte
	for _, part := range [][]byte{b.Leaf, b.Salt, b.Headers, b.Payload} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

func parseHandoverRow(row []byte) (*proof.BundleRecord, error) {
	b := new(proof.BundleRecord)
	for _, part := range []*[]byte{&b.Leaf, &b.Salt, &b.Headers, &b.Payload} {
		if len(row) < 4 || uint64(len(row)-4) < uint64(binary.BigEndian.Uint32(row)) {
			return nil, errors.New("its row is cut short")
		}
		n := binary.BigEndian.Uint32(row)
		*part, row = bytes.Clone(row[4:4+n]), row[4+n:]
	}
	if len(row) != 0 {
		return nil, errors.New("its row is too long")
	}
	return b, nil
}

// openHandoverRow holds a row against the record that it is of.
func openHandoverRow(leaves *cursor, size uint64, row []byte) (said proof.Handover, err error) {
	b, err := parseHandoverRow(row)
	if err != nil {
		return said, err
	}
	r, said, err := proof.OpenHandover(b)
	if err != nil {
		return said, err
	}
	if size == 0 || r.Index != size-1 {
		return said, fmt.Errorf("its row is of record %d", r.Index)
	}
	leaf, err := leaves.leaf(r.Index)
	if err == nil && !bytes.Equal(leaf, b.Leaf) {
		err = errors.New("its row is not of the record that stands there")
	}
	return said, err
}

// shownHandovers are the handovers up to a checkpoint, as a bundle brings them.
func (l *Ledger) shownHandovers(c proof.Checkpoint) ([]schemas.ShownHandover, error) {
	var out []schemas.ShownHandover
	var at []proof.Checkpoint
	for _, f := range l.keys().former {
		if f.until > c.Size {
			break
		}
		row, err := get(l.db, numberKey(keyHandover, f.until))
		if err != nil {
			return nil, err
		}
		b, err := parseHandoverRow(row)
		if err != nil {
			return nil, tampered(0, "the handover of the first %d records: %v", f.until, err)
		}
		signed, err := l.checkpointOf(f.until)
		if err != nil {
			return nil, err
		}
		r, err := proof.ParseRecord(b.Leaf)
		if err != nil {
			return nil, tampered(0, "the handover of the first %d records: %v", f.until, err)
		}
		shown, err := l.proven(&r, signed.Checkpoint)
		if err != nil {
			return nil, err
		}
		shown.Salt, shown.Headers, shown.Payload = b.Salt, b.Headers, b.Payload
		out, at = append(out, schemas.ShownHandover{Checkpoint: string(signed.note), Record: shown}), append(at, signed.Checkpoint)
	}
	for i := range out {
		next := c
		if i+1 < len(at) {
			next = at[i+1]
		}
		growth, err := l.growth(at[i].Size, next)
		if err != nil {
			return nil, err
		}
		for _, h := range growth {
			out[i].Growth = append(out[i].Growth, h[:]...)
		}
	}
	return out, nil
}
