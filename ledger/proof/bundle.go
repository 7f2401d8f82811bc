package proof

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/writ-sh/writ/schemas"
)

// BundleFormat names the form of a bundle. Another form gets another name.
const BundleFormat = "writ-evidence-bundle/v1"

// Bounds of a bundle. Reading one takes a few times its size in memory.
const (
	MaxBundle        = 128 << 20 // bytes
	MaxBundleRecords = 100_000

	maxPath       = 64 * len(Hash{}) // no tree has more levels
	maxCheckpoint = 64 << 10         // bytes, with witnesses' cosignatures
)

// A Bundle is one file of evidence. It is CBOR (RFC 8949) in the deterministic
// encoding of its section 4.2.1: maps with the text keys below, and nothing
// else is accepted, so that a bundle has one form, to the byte.
type Bundle struct {
	Format     string         `cbor:"format"`
	Key        string         `cbor:"key"`        // note verifier key; says nothing by itself, see Policy
	Checkpoint string         `cbor:"checkpoint"` // C2SP tlog-checkpoint, signed
	Contents   []Place        `cbor:"contents"`   // which records there are, ascending
	Records    []BundleRecord `cbor:"records"`    // those records, in that order
	// Handovers lead from a former key of the log to Key, oldest first.
	Handovers []HandoverProof `cbor:"handovers,omitempty"`
}

// A Place says where a record stands: in the ledger, and in the log.
type Place struct {
	_     struct{} `cbor:",toarray"`
	Index uint64
	Seq   uint64
}

// A BundleRecord is a record with what opens and proves it. Of an erased
// agent's, salt, headers and payload are missing.
type BundleRecord struct {
	Leaf    []byte `cbor:"leaf"`              // 180 bytes
	Path    []byte `cbor:"path"`              // RFC 6962 audit path, 32 bytes each
	Salt    []byte `cbor:"salt,omitempty"`    // 32 bytes
	Headers []byte `cbor:"headers,omitempty"` // as AppendHeaders wrote them
	Payload []byte `cbor:"payload,omitempty"`
}

// ErrBundle is matched where a file is no bundle, whole and in the one form.
var ErrBundle = errors.New("not an evidence bundle")

var (
	bundleWrite = must(bundleEncoding().EncMode())
	bundleRead  = must(cbor.DecOptions{
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, DupMapKey: cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   5, MaxArrayElements: MaxBundleRecords, MaxMapPairs: 16,
	}.DecMode())
)

// bundleEncoding is the deterministic one, in which what is empty has one form
// too: null would be a second.
func bundleEncoding() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.TagsMd, o.NilContainers = cbor.TagsForbidden, cbor.NilContainerAsEmpty
	return o
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options above are constant
	}
	return v
}

// NewBundle makes a bundle of records in ascending order.
func NewBundle(key, checkpoint string, records []schemas.Shown) *Bundle {
	b := &Bundle{Format: BundleFormat, Key: key, Checkpoint: checkpoint,
		Contents: make([]Place, len(records)), Records: make([]BundleRecord, len(records))}
	for i, r := range records {
		b.Contents[i] = Place{Index: r.Index, Seq: r.Seq}
		b.Records[i] = bundleRecord(r)
	}
	return b
}

func bundleRecord(r schemas.Shown) BundleRecord {
	return BundleRecord{Leaf: r.Leaf, Path: r.Path, Salt: r.Salt, Headers: r.Headers, Payload: r.Payload}
}

// Marshal gives the file. Errors are: more than the bounds allow.
func (b *Bundle) Marshal() ([]byte, error) {
	if len(b.Records) > MaxBundleRecords {
		return nil, fmt.Errorf("a bundle of %d records: %d are the most", len(b.Records), MaxBundleRecords)
	}
	data, err := bundleWrite.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode the bundle: %w", err)
	}
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("a bundle of %d bytes: %d are the most", len(data), MaxBundle)
	}
	return data, nil
}

// OpenBundle reads a bundle and checks its form alone: nothing in it is to be
// believed before Verify has passed. Errors match ErrBundle.
func OpenBundle(data []byte) (*Bundle, error) {
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("%w: %d bytes, and %d are the most", ErrBundle, len(data), MaxBundle)
	}
	b := new(Bundle)
	if err := bundleRead.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("%w: it is cut short, or damaged: %w", ErrBundle, err)
	}
	if b.Format != BundleFormat {
		return nil, fmt.Errorf("%w: its form is %.40q, and this program reads %q", ErrBundle, b.Format, BundleFormat)
	}
	// What could be written in two ways could be changed without being seen.
	again, err := bundleWrite.Marshal(b)
	if err != nil || !bytes.Equal(again, data) {
		return nil, fmt.Errorf("%w: it is not in the one form that bundles have", ErrBundle)
	}
	if len(b.Checkpoint) > maxCheckpoint {
		return nil, fmt.Errorf("%w: a checkpoint of %d bytes", ErrBundle, len(b.Checkpoint))
	}
	if n := len(b.Handovers); n > MaxHandovers {
		return nil, fmt.Errorf("%w: %d handovers, and %d are the most", ErrBundle, n, MaxHandovers)
	}
	for i := range b.Handovers {
		h := &b.Handovers[i]
		if len(h.Checkpoint) > maxCheckpoint {
			return nil, fmt.Errorf("%w: a checkpoint of %d bytes", ErrBundle, len(h.Checkpoint))
		}
		if err := errors.Join(checkPath(h.Record.Path), checkPath(h.Growth)); err != nil {
			return nil, err
		}
	}
	for i := range b.Records {
		if err := checkPath(b.Records[i].Path); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func checkPath(path []byte) error {
	if n := len(path); n > maxPath || n%len(Hash{}) != 0 {
		return fmt.Errorf("%w: a path of %d bytes", ErrBundle, n)
	}
	return nil
}
