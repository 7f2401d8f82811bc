package proof

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/schemas"
)

func testKeys(t testing.TB) (note.Signer, note.Verifier) {
	t.Helper()
	s, v, err := Keys("acme.example", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

var goldenRecord = Record{
	Kind: KindEvent, Index: 0x0102030405060708, StreamID: 0x1112131415161718, StreamSeq: 0x2122232425262728,
	Time: 1_700_000_000_123_456_789, Agent: [16]byte{0x31, 0x32}, Trace: [16]byte{0x41, 0x42},
	PayloadLen: 256, HeadersLen: 900, PayloadCommit: Hash{0x51}, HeadersCommit: Hash{0x61}, Prev: Hash{0x71},
}

// The bytes of a record may never change: every signature ever made is over
// them.
const goldenHex = "57524954" + "0001" + "0001" + "00000000" +
	"0102030405060708" + "1112131415161718" + "2122232425262728" + "17979cfe3d85cd15" +
	"31320000000000000000000000000000" + "41420000000000000000000000000000" +
	"00000100" + "00000384" +
	"5100000000000000000000000000000000000000000000000000000000000000" +
	"6100000000000000000000000000000000000000000000000000000000000000" +
	"7100000000000000000000000000000000000000000000000000000000000000"

func TestRecordBytesAreThoseOfVersion1(t *testing.T) {
	b := goldenRecord.Append(nil)
	if len(b) != RecordSize || hex.EncodeToString(b) != goldenHex {
		t.Fatalf("record encodes as %x", b)
	}
	r, err := ParseRecord(b)
	if err != nil || r != goldenRecord {
		t.Fatalf("%+v, %v", r, err)
	}
	if LeafHash(b) != tlog.RecordHash(b) {
		t.Error("the leaf hash is not that of RFC 6962")
	}
}

func TestCommitmentsAndHeadersAreThoseOfVersion1(t *testing.T) {
	h, err := AppendHeaders(nil, "ev.a.b", schemas.Header{"Writ-To": {"x"}, "ce-id": {"1"}, "Nats-Stream": {"EVENTS"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "00000006" + hex.EncodeToString([]byte("ev.a.b")) + "00000007" + hex.EncodeToString([]byte("Writ-To")) + "00000001" + "78" +
		"00000005" + hex.EncodeToString([]byte("ce-id")) + "00000001" + "31"
	if hex.EncodeToString(h) != want {
		t.Errorf("headers encode as %x", h)
	}
	subject, back, err := ParseHeaders(h)
	if err != nil || subject != "ev.a.b" || len(back) != 2 || back["ce-id"][0] != "1" {
		t.Errorf("%q, %v, %v", subject, back, err)
	}
	for want, got := range map[string]Hash{ // computed by another program
		"431cd6fd289898ae38fa1529c24aaf911225583655874f23af774e689d6d525d": CommitPayload(Salt{1}, []byte("payload")),
		"be73149424166fac4dca0591d6b436bd49dd0201dda479f91efbe671ceca0e14": CommitHeaders(Salt{1}, []byte("headers")),
	} {
		if hex.EncodeToString(got[:]) != want {
			t.Errorf("commitment is %x, was %s", got[:], want)
		}
	}
	if id := StreamID("CONTROL", "EVENTS", 42); id == StreamID("CONTROLE", "VENTS", 42) || id == StreamID("CONTROL", "EVENTS", 43) {
		t.Error("two streams have one id")
	}
}

func TestEveryBitOfARecordCounts(t *testing.T) {
	golden := goldenRecord.Append(nil)
	for i := range len(golden) * 8 {
		b := bytes.Clone(golden)
		b[i/8] ^= 1 << (i % 8)
		r, err := ParseRecord(b)
		if err == nil && (r == goldenRecord || !bytes.Equal(r.Append(nil), b)) {
			t.Fatalf("bit %d is read over", i)
		}
	}
	if _, err := ParseRecord(golden[:179]); !errors.Is(err, ErrRecord) {
		t.Error("a short record was read")
	}
}

func TestACheckpointIsBelievedFromItsKeyAlone(t *testing.T) {
	s, v := testKeys(t)
	c := Checkpoint{Origin: "acme.example", Size: 7, Root: Hash{1}}
	msg, err := c.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenCheckpoint(msg, v); err != nil || got != c {
		t.Fatalf("%+v, %v", got, err)
	}
	_, other, err := Keys("acme.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCheckpoint(msg, other); !errors.Is(err, ErrProof) {
		t.Errorf("another key: %v", err)
	}
	for i := range msg {
		b := bytes.Clone(msg)
		b[i] ^= 1
		if got, err := OpenCheckpoint(b, v); err == nil && got != c {
			t.Errorf("byte %d changed: %+v", i, got)
		}
	}
	for _, text := range []string{
		"other.example\n7\n" + strings.Repeat("A", 43) + "=\n", // another log's, under our key
		"acme.example\n07\n" + strings.Repeat("A", 43) + "=\n",
		"acme.example\n7\n" + strings.Repeat("A", 42) + "B=\n", // bits behind the end
		"acme.example\n7\n" + strings.Repeat("A", 43) + "=\nextension\n",
		"acme.example\n-1\n" + strings.Repeat("A", 43) + "=\n",
		"acme.example\n7\n",
	} {
		msg, err := note.Sign(&note.Note{Text: text}, s)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := OpenCheckpoint(msg, v); !errors.Is(err, ErrProof) {
			t.Errorf("%q was read as %+v", text, c)
		}
	}
	if _, err := (Checkpoint{Origin: "other.example"}).Sign(s); err == nil {
		t.Error("a key signed for another log")
	}
}

// chain makes n linked records.
func chain(n int) (leaves [][]byte, hashes []Hash) {
	var prev Hash
	for i := range n {
		r := Record{Kind: KindEvent, Index: uint64(i), StreamSeq: uint64(i + 1), Prev: prev}
		leaf := r.Append(nil)
		prev = LeafHash(leaf)
		leaves, hashes = append(leaves, leaf), append(hashes, prev)
	}
	return leaves, hashes
}

// store is a tree as package tlog stores one: the producer of the proofs.
func store(t testing.TB, leaves [][]byte) tlog.HashReader {
	t.Helper()
	var stored []tlog.Hash
	r := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = stored[n]
		}
		return out, nil
	})
	for i, leaf := range leaves {
		h, err := tlog.StoredHashes(int64(i), leaf, r)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, h...)
	}
	return r
}

func TestProofsOfOneLibraryHoldInTheOther(t *testing.T) {
	s, v := testKeys(t)
	leaves, _ := chain(70)
	r := store(t, leaves)
	var older []Checkpoint
	for size := int64(1); size <= 70; size++ {
		root, err := tlog.TreeHash(size, r)
		if err != nil {
			t.Fatal(err)
		}
		c := Checkpoint{Origin: "acme.example", Size: uint64(size), Root: root}
		msg, err := c.Sign(s)
		if err != nil {
			t.Fatal(err)
		}
		for i := range size {
			path, err := tlog.ProveRecord(size, i, r)
			if err != nil {
				t.Fatal(err)
			}
			p := schemas.Proof{Seq: uint64(i + 1), Index: uint64(i), Leaf: base64.StdEncoding.EncodeToString(leaves[i]),
				Hashes: MarshalPath(path), Checkpoint: string(msg)}
			if _, _, err := CheckInclusion(p, v); err != nil {
				t.Fatal(err)
			}
			p.Leaf = base64.StdEncoding.EncodeToString(leaves[(i+1)%70])
			if _, _, err := CheckInclusion(p, v); !errors.Is(err, ErrProof) {
				t.Fatalf("record %d stands for %d: %v", i+1, i, err)
			}
		}
		for _, old := range older {
			path, err := tlog.ProveTree(size, int64(old.Size), r)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckConsistency(old, c, path); err != nil {
				t.Fatal(err)
			}
			forked := old
			forked.Root[5] ^= 1
			if err := CheckConsistency(forked, c, path); !errors.Is(err, ErrProof) {
				t.Fatalf("a fork at %d: %v", old.Size, err)
			}
		}
		older = append(older, c)
	}
}

func TestAChainWithAnythingWrongIsRefused(t *testing.T) {
	leaves, hashes := chain(9)
	last, err := CheckChain(Hash{}, leaves)
	if err != nil || last != hashes[8] {
		t.Fatal(last, err)
	}
	if _, err := CheckChain(hashes[3], leaves[4:]); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string][][]byte{
		"deleted": append(append([][]byte{}, leaves[:3]...), leaves[4:]...),
		"swapped": {leaves[1], leaves[0]},
		"doubled": {leaves[0], leaves[0]},
		"short":   {leaves[0][:100]},
	} {
		if _, err := CheckChain(Hash{}, bad); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := CheckChain(Hash{1}, leaves); !errors.Is(err, ErrProof) {
		t.Error("a chain that follows something else was believed")
	}
}

func TestContentIsCheckedAgainstTheCommitments(t *testing.T) {
	salt := Salt{9}
	r := Record{HeadersLen: 2, PayloadLen: 3, HeadersCommit: CommitHeaders(salt, []byte("hh")), PayloadCommit: CommitPayload(salt, []byte("ppp"))}
	if err := r.CheckContent(salt, []byte("hh"), []byte("ppp")); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct {
		salt             Salt
		headers, payload string
	}{{Salt{8}, "hh", "ppp"}, {salt, "hx", "ppp"}, {salt, "hh", "ppx"}, {salt, "hhp", "pp"}} {
		if err := r.CheckContent(bad.salt, []byte(bad.headers), []byte(bad.payload)); !errors.Is(err, ErrRecord) {
			t.Errorf("%v was believed", bad)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(goldenRecord.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err == nil && !bytes.Equal(r.Append(nil), b) {
			t.Errorf("%x is read, and written as %x", b, r.Append(nil))
		}
	})
}

func FuzzParseHeaders(f *testing.F) {
	b, err := AppendHeaders(nil, "ev.a.b", schemas.Header{"a": {"1"}, "b": {""}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		subject, h, err := ParseHeaders(b)
		if err != nil {
			return
		}
		back, err := AppendHeaders(nil, subject, h)
		if err != nil || !bytes.Equal(back, b) {
			t.Errorf("%x is read, and written as %x (%v)", b, back, err)
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	s, v := testKeys(f)
	msg, err := Checkpoint{Origin: "acme.example", Size: 7}.Sign(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := OpenCheckpoint(b, v)
		if err == nil && (c.Size != 7 || c.Origin != "acme.example") {
			t.Errorf("%q was believed as %+v", b, c)
		}
		c, err = parseCheckpoint(string(b))
		if err == nil && c.text() != string(b) {
			t.Errorf("%q is read, and written as %q", b, c.text())
		}
	})
}

func FuzzCheckInclusion(f *testing.F) {
	s, v := testKeys(f)
	leaves, hashes := chain(2)
	root, err := tlog.TreeHash(2, store(f, leaves))
	if err != nil {
		f.Fatal(err)
	}
	msg, err := Checkpoint{Origin: "acme.example", Size: 2, Root: root}.Sign(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(1), uint64(0), base64.StdEncoding.EncodeToString(leaves[0]), MarshalPath(hashes[1:])[0])
	f.Fuzz(func(t *testing.T, seq, index uint64, leaf, path string) {
		r, _, err := CheckInclusion(schemas.Proof{Seq: seq, Index: index, Leaf: leaf, Hashes: []string{path}, Checkpoint: string(msg)}, v)
		if err != nil {
			return
		}
		if b := r.Append(nil); index > 1 || !bytes.Equal(b, leaves[index]) {
			t.Errorf("%x was proved to be record %d", b, index)
		}
	})
}
