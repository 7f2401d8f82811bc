package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/schemas"
)

// Hash is a SHA-256 sum: leaf hash, node hash, root or commitment.
type Hash = tlog.Hash

// RecordSize is the length of an encoded record in bytes. With the leaf prefix
// of RFC 6962 it fills exactly three SHA-256 blocks.
const RecordSize = 180

// Version is the version of the record format.
const Version = 1

const magic = "WRIT"

// A Kind says what a record stands for.
type Kind uint16

const (
	KindEvent     Kind = 1 // one event of the log
	KindGap       Kind = 2 // sequences that the log lost: those behind the previous record's, up to StreamSeq
	KindRedaction Kind = 3 // the key of Agent was destroyed; its earlier records can't be opened
	KindPrune     Kind = 4 // the contents of the oldest records were moved to an archive
	KindHandover  Kind = 5 // checkpoints of more records than up to this one are signed by another key
)

// A Record is one leaf of the ledger. Its encoding is fixed: big-endian, 180
// bytes, every bit of it under the leaf hash.
type Record struct {
	Kind          Kind
	Index         uint64   // position in the ledger, from 0
	StreamID      uint64   // names the stream that it came from, see StreamID
	StreamSeq     uint64   // sequence there; for the ledger's own records that of the last event
	Time          int64    // nanoseconds since 1970, stamped by the event's appender
	Agent         [16]byte // pseudonym of the agent, which hangs on its key
	Trace         [16]byte // W3C trace id, zero where there is none
	PayloadLen    uint32   // bytes
	HeadersLen    uint32   // bytes, in the encoding of AppendHeaders
	PayloadCommit Hash
	HeadersCommit Hash
	Prev          Hash // leaf hash of the record before, zero for the first
}

// ErrRecord is matched by every error about a malformed record.
var ErrRecord = errors.New("invalid ledger record")

// Append appends the record's encoding to b.
func (r *Record) Append(b []byte) []byte {
	be := binary.BigEndian
	b = append(b, magic...)
	b = be.AppendUint16(b, Version)
	b = be.AppendUint16(b, uint16(r.Kind))
	b = be.AppendUint32(b, 0) // flags: none are defined
	b = be.AppendUint64(b, r.Index)
	b = be.AppendUint64(b, r.StreamID)
	b = be.AppendUint64(b, r.StreamSeq)
	b = be.AppendUint64(b, uint64(r.Time))
	b = append(b, r.Agent[:]...)
	b = append(b, r.Trace[:]...)
	b = be.AppendUint32(b, r.PayloadLen)
	b = be.AppendUint32(b, r.HeadersLen)
	b = append(b, r.PayloadCommit[:]...)
	b = append(b, r.HeadersCommit[:]...)
	return append(b, r.Prev[:]...)
}

// ParseRecord decodes a record. Whatever Append would not write is an error.
func ParseRecord(b []byte) (r Record, err error) {
	err = r.Parse(b)
	return r, err
}

// Parse is ParseRecord into a record that is there already. With an error, what
// it holds means nothing.
func (r *Record) Parse(b []byte) error {
	be := binary.BigEndian
	switch {
	case len(b) != RecordSize:
		return fmt.Errorf("%w: %d bytes instead of %d", ErrRecord, len(b), RecordSize)
	case string(b[:4]) != magic:
		return fmt.Errorf("%w: it does not begin with %q", ErrRecord, magic)
	case be.Uint16(b[4:]) != Version:
		return fmt.Errorf("%w: version %d is unknown to this program", ErrRecord, be.Uint16(b[4:]))
	case be.Uint32(b[8:]) != 0:
		return fmt.Errorf("%w: undefined flags %#x", ErrRecord, be.Uint32(b[8:]))
	}
	r.Kind = Kind(be.Uint16(b[6:]))
	if r.Kind < KindEvent || r.Kind > KindHandover {
		return fmt.Errorf("%w: kind %d is unknown", ErrRecord, r.Kind)
	}
	r.Index = be.Uint64(b[12:])
	r.StreamID = be.Uint64(b[20:])
	r.StreamSeq = be.Uint64(b[28:])
	r.Time = int64(be.Uint64(b[36:]))
	r.Agent, r.Trace = [16]byte(b[44:]), [16]byte(b[60:])
	r.PayloadLen = be.Uint32(b[76:])
	r.HeadersLen = be.Uint32(b[80:])
	r.PayloadCommit, r.HeadersCommit, r.Prev = Hash(b[84:]), Hash(b[116:]), Hash(b[148:])
	return nil
}

// LeafHash is the RFC 6962 leaf hash of an encoded record: tlog.RecordHash,
// without its allocations. It is at once the next record's Prev.
func LeafHash(leaf []byte) Hash {
	if len(leaf) != RecordSize {
		return tlog.RecordHash(leaf)
	}
	var b [1 + RecordSize]byte
	copy(b[1:], leaf)
	return sha256.Sum256(b[:])
}

// StreamID names a stream by account, name and creation time, so that a
// stream that was deleted and made anew under its old name shows.
func StreamID(account, stream string, createdUnixNano int64) uint64 {
	h := sha256.New()
	fmt.Fprintf(h, "writ/stream/v1\x00%d:%s%d:%s%d", len(account), account, len(stream), stream, createdUnixNano)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

const (
	payloadTag = "writ/payload/v1\x00"
	headersTag = "writ/headers/v1\x00"
)

// A Salt blinds the commitments of one record, so that they say nothing of
// their content to who lacks it. Who is shown the salt can check the content.
type Salt [32]byte

// CommitPayload commits to a body, bytes exactly as received.
func CommitPayload(salt Salt, payload []byte) Hash { return commit(payloadTag, salt, payload) }

// CommitHeaders commits to what AppendHeaders wrote.
func CommitHeaders(salt Salt, headers []byte) Hash { return commit(headersTag, salt, headers) }

func commit(tag string, salt Salt, data []byte) (out Hash) {
	h := sha256.New()
	var head [len(payloadTag) + len(salt)]byte
	copy(head[:], tag)
	copy(head[len(payloadTag):], salt[:])
	h.Write(head[:])
	h.Write(data)
	h.Sum(out[:0])
	return out
}

// CheckContent reports whether headers and payload are what the record
// committed to.
func (r *Record) CheckContent(salt Salt, headers, payload []byte) error {
	switch {
	case uint64(len(headers)) != uint64(r.HeadersLen) || uint64(len(payload)) != uint64(r.PayloadLen):
		return fmt.Errorf("%w: %d bytes of headers and %d of payload, where it committed to %d and %d",
			ErrRecord, len(headers), len(payload), r.HeadersLen, r.PayloadLen)
	case !equal(CommitHeaders(salt, headers), r.HeadersCommit):
		return fmt.Errorf("%w: the headers are not those that it committed to", ErrRecord)
	case !equal(CommitPayload(salt, payload), r.PayloadCommit):
		return fmt.Errorf("%w: the payload is not the one that it committed to", ErrRecord)
	}
	return nil
}

func equal(a, b Hash) bool { return hmac.Equal(a[:], b[:]) }

// AppendHeaders appends the canonical form of an event's subject and headers:
// the subject, then name and value of each header in byte order of the names,
// each behind its length (four bytes). Headers "Nats-…" belong to the
// transport, change when an event is published again, and are left out.
func AppendHeaders(b []byte, subject string, h schemas.Header) ([]byte, error) {
	var room [32]schemas.HeaderPair
	pairs := room[:0]
	for name, values := range h {
		if strings.HasPrefix(name, "Nats-") {
			continue
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("%w: header %q stands %d times", ErrRecord, name, len(values))
		}
		pairs = append(pairs, schemas.HeaderPair{Name: name, Value: values[0]})
	}
	slices.SortFunc(pairs, func(a, b schemas.HeaderPair) int { return strings.Compare(a.Name, b.Name) })
	return AppendSorted(b, subject, pairs), nil
}

// AppendSorted is AppendHeaders of headers that are in byte order of their names
// already, each once and none of the transport's, as schemas.DecodeSorted gives
// them.
func AppendSorted(b []byte, subject string, pairs []schemas.HeaderPair) []byte {
	size := 4 + len(subject)
	for _, p := range pairs {
		size += 8 + len(p.Name) + len(p.Value)
	}
	b = appendText(slices.Grow(b, size), subject)
	for _, p := range pairs {
		b = appendText(appendText(b, p.Name), p.Value)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// ParseHeaders undoes AppendHeaders, and accepts nothing else.
func ParseHeaders(b []byte) (subject string, h schemas.Header, err error) {
	text := string(b) // one allocation for all
	next := func() (s string, ok bool) {
		if len(text) < 4 {
			return "", false
		}
		n := uint64(text[0])<<24 | uint64(text[1])<<16 | uint64(text[2])<<8 | uint64(text[3])
		if uint64(len(text)-4) < n {
			return "", false
		}
		s, text = text[4:4+n], text[4+n:]
		return s, true
	}
	cut := fmt.Errorf("%w: its headers are cut short", ErrRecord)
	subject, ok := next()
	if !ok {
		return "", nil, cut
	}
	h = make(schemas.Header, 16)
	values := make([]string, 0, 24)
	for last := ""; text != ""; {
		name, ok := next()
		if !ok {
			return "", nil, cut
		}
		value, ok := next()
		if !ok {
			return "", nil, cut
		}
		if len(values) > 0 && name <= last || strings.HasPrefix(name, "Nats-") {
			return "", nil, fmt.Errorf("%w: header %q is out of order or not an event's", ErrRecord, name)
		}
		last = name
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	return subject, h, nil
}
