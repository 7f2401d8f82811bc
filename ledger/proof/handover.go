package proof

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-sh/writ/schemas"
)

// A Handover is what a handover record says: the key that signs checkpoints
// names the one that signs behind this record. So nobody but who holds a key
// can name its successor.
type Handover struct {
	Former    string `json:"former"`    // note verifier keys
	Successor string `json:"successor"` //
	Reason    string `json:"reason"`
	Actor     string `json:"actor"`
}

// HandoverSubject is that of handover records.
const HandoverSubject = "ledger.handover"

// MaxHandovers bounds how often a log's key is replaced: every bundle brings
// all of them.
const MaxHandovers = 64

// A HandoverProof leads who knows a key to its successor: the handover's record
// is the last under a checkpoint that both have signed, and the log grew from
// there.
type HandoverProof struct {
	Checkpoint string       `cbor:"checkpoint"`       // signed by both keys
	Record     BundleRecord `cbor:"record"`           // the last of it
	Growth     []byte       `cbor:"growth,omitempty"` // consistency proof to the next handover's checkpoint, or the bundle's; 32 bytes each
}

// OpenHandover reads a handover record and its content. Errors match ErrProof.
func OpenHandover(b *BundleRecord) (Record, Handover, error) {
	e := Entry{}
	var err error
	if e.Record, err = ParseRecord(b.Leaf); err != nil {
		return e.Record, Handover{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if e.Record.Kind != KindHandover {
		return e.Record, Handover{}, fmt.Errorf("%w: record %d hands nothing over", ErrProof, e.Record.Index)
	}
	if err := e.open(b); err != nil {
		return e.Record, Handover{}, err
	}
	return e.Record, *e.Handover, nil
}

// A link is a handover that holds by itself.
type link struct {
	Handover
	at     Checkpoint
	growth []byte
}

// verify holds a handover against its own checkpoint. Whether the former key
// counts is another question.
func (h *HandoverProof) verify() (l link, err error) {
	r, said, err := OpenHandover(&h.Record)
	if err != nil {
		return l, err
	}
	if err := strictSignatures(h.Checkpoint); err != nil {
		return l, err
	}
	l = link{Handover: said, growth: h.Growth}
	for _, key := range []string{said.Former, said.Successor} {
		v, err := note.NewVerifier(key)
		if err != nil {
			return l, fmt.Errorf("%w: it names %.100q, which is no key: %w", ErrProof, key, err)
		}
		if l.at, err = OpenCheckpoint([]byte(h.Checkpoint), v); err != nil {
			return l, err
		}
	}
	leaf := LeafHash(h.Record.Leaf)
	if l.at.Size == 0 || r.Index != l.at.Size-1 {
		return l, fmt.Errorf("%w: record %d is not the last of %d", ErrProof, r.Index, l.at.Size)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, r.Index, l.at.Size, leaf[:], hashes(h.Record.Path), l.at.Root[:]); err != nil {
		return l, fmt.Errorf("%w: %w", ErrProof, err)
	}
	return l, nil
}

// links verifies that a bundle's handovers lead from one to the next, and to
// its key.
func (b *Bundle) links() ([]link, error) {
	out := make([]link, len(b.Handovers))
	for i := range b.Handovers {
		var err error
		if out[i], err = b.Handovers[i].verify(); err != nil {
			return nil, fmt.Errorf("handover %d: %w", i+1, err)
		}
		if i == 0 {
			continue
		}
		if out[i].Former != out[i-1].Successor {
			return nil, fmt.Errorf("handover %d is not by the key that handover %d names", i+1, i)
		}
		if err := out[i-1].grewTo(out[i].at); err != nil {
			return nil, fmt.Errorf("handover %d: %w", i, err)
		}
	}
	if n := len(out); n > 0 && out[n-1].Successor != b.Key {
		return nil, fmt.Errorf("they don't lead to the bundle's key")
	}
	return out, nil
}

func (l *link) grewTo(c Checkpoint) error {
	path := make([]Hash, 0, len(l.growth)/len(Hash{}))
	for _, h := range hashes(l.growth) {
		path = append(path, Hash(h))
	}
	return CheckConsistency(l.at, c, path)
}

// HandoverProofOf is a handover as a bundle has it.
func HandoverProofOf(h schemas.ShownHandover) HandoverProof {
	return HandoverProof{Checkpoint: h.Checkpoint, Growth: h.Growth, Record: bundleRecord(h.Record)}
}

// HandOver adds the handovers of a log, oldest first, and puts the bundle under
// the key that the last of them names. They are verified with the bundle.
func (b *Bundle) HandOver(all []schemas.ShownHandover) error {
	for _, shown := range all {
		h := HandoverProofOf(shown)
		_, said, err := OpenHandover(&h.Record)
		if err != nil {
			return err
		}
		b.Handovers, b.Key = append(b.Handovers, h), said.Successor
	}
	return nil
}
