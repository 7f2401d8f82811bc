package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A forger has the database open, and no key.
type forger struct {
	t  testing.TB
	db *pebble.DB
}

func forge(t testing.TB, o Options, do func(f *forger)) {
	t.Helper()
	db, err := pebble.Open(o.Dir, pebbleOptions(o.FS, newGuard(discard)))
	if err != nil {
		t.Fatal(err)
	}
	do(&forger{t, db})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// blocks gives all rows under a letter, as a flat list of records' parts.
func (f *forger) leaves() [][]byte {
	f.t.Helper()
	h := f.head()
	c, err := openCursor(f.db, keyLeaves)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.close()
	var out [][]byte
	for i := range h.size {
		b, err := c.leaf(i)
		if err != nil {
			f.t.Fatal(err)
		}
		out = append(out, bytes.Clone(b))
	}
	return out
}

func (f *forger) contents() [][]byte {
	f.t.Helper()
	sc, err := openScanner(f.db, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	defer sc.close()
	var out [][]byte
	for i := range f.head().size {
		b, err := sc.sealed(i)
		if err != nil {
			f.t.Fatal(err)
		}
		out = append(out, bytes.Clone(b))
	}
	return out
}

func (f *forger) head() head {
	f.t.Helper()
	h, ok, err := readHead(f.db)
	if err != nil || !ok {
		f.t.Fatal(ok, err)
	}
	return h
}

func (f *forger) clear(letters ...byte) {
	f.t.Helper()
	for _, l := range letters {
		if err := f.db.DeleteRange([]byte{l}, []byte{l + 1}, pebble.Sync); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *forger) set(k, v []byte) {
	f.t.Helper()
	if err := f.db.Set(k, v, pebble.Sync); err != nil {
		f.t.Fatal(err)
	}
}

// putLeaves stores leaves as given, without mending anything else.
func (f *forger) putLeaves(leaves [][]byte) {
	f.t.Helper()
	f.clear(keyLeaves)
	for i := 0; i < len(leaves); i += blockSize {
		f.set(numberKey(keyLeaves, uint64(i)), bytes.Join(leaves[i:min(i+blockSize, len(leaves))], nil))
	}
}

// rebuild stores records as a ledger of their own: chained anew, with tiles,
// indexes and head, all but signatures. It is the best that somebody without
// the signing key can do.
func (f *forger) rebuild(leaves, contents [][]byte) {
	f.t.Helper()
	old := f.head()
	var run []sealedEvent
	for i, leaf := range leaves {
		r, err := proof.ParseRecord(leaf)
		if err != nil {
			f.t.Fatal(err)
		}
		run = append(run, sealedEvent{record: r, sealed: contents[i]})
	}
	f.clear(keyLeaves, keyContents, keyByAgent, keyByTrace, keyTile, keySegment)
	l := &Ledger{db: f.db}
	l.trusted.Store(true)
	l.chain.streamID = old.streamID
	b := f.db.NewBatch()
	if err := l.write(b, run); err != nil {
		f.t.Fatal(err)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		f.t.Fatal(err)
	}
	// Checkpoints that sign more than there is would give it away.
	if err := f.db.DeleteRange(numberKey(keyCheckpoint, uint64(len(leaves))+1), []byte{keyCheckpoint + 1}, pebble.Sync); err != nil {
		f.t.Fatal(err)
	}
}

// tamperOptions are of a ledger of 600 events with checkpoints at 0, 200, 400,
// 600.
func tamperOptions(t testing.TB) (Options, []Entry, *vfs.MemFS) {
	t.Helper()
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(600)
	l := mustOpen(t, o)
	for i := 0; i < 600; i += 200 {
		mustFeed(t, l, &recorder{}, entries[i:i+200]...)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 600)
	return o, entries, fs
}

func editLeaf(leaf []byte, change func(r *proof.Record)) []byte {
	r, err := proof.ParseRecord(leaf)
	if err != nil {
		panic(err)
	}
	change(&r)
	return r.Append(nil)
}

func TestEveryForgeryIsFoundAtItsSequence(t *testing.T) {
	const at = 321 // a sequence in the middle; its index is one less
	forgeries := []struct {
		name string
		seq  uint64
		do   func(f *forger)
	}{
		{"edit a record's time", at, func(f *forger) {
			ls := f.leaves()
			ls[at-1] = editLeaf(ls[at-1], func(r *proof.Record) { r.Time++ })
			f.putLeaves(ls)
		}},
		{"edit a record's trace", at, func(f *forger) {
			ls := f.leaves()
			ls[at-1] = editLeaf(ls[at-1], func(r *proof.Record) { r.Trace[3]++ })
			f.putLeaves(ls)
		}},
		{"edit a record's predecessor", at, func(f *forger) {
			ls := f.leaves()
			ls[at-1] = editLeaf(ls[at-1], func(r *proof.Record) { r.Prev[3]++ })
			f.putLeaves(ls)
		}},
		{"edit a content", at, func(f *forger) {
			cs := f.contents()
			cs[at-1][5] ^= 1
			f.rebuild(f.leaves(), cs)
		}},
		{"delete a record", at, func(f *forger) {
			f.putLeaves(slices.Delete(f.leaves(), at-1, at))
		}},
		{"delete a record and chain anew", at, func(f *forger) {
			f.rebuild(slices.Delete(f.leaves(), at-1, at), slices.Delete(f.contents(), at-1, at))
		}},
		{"swap two records", at, func(f *forger) {
			ls := f.leaves()
			ls[at-1], ls[at+8] = ls[at+8], ls[at-1]
			f.putLeaves(ls)
		}},
		{"swap two records and chain anew", at, func(f *forger) {
			ls, cs := f.leaves(), f.contents()
			ls[at-1], ls[at+8] = ls[at+8], ls[at-1]
			cs[at-1], cs[at+8] = cs[at+8], cs[at-1]
			f.rebuild(ls, cs)
		}},
		{"swap two records, with their sequences", at, func(f *forger) {
			ls, cs := f.leaves(), f.contents()
			for _, p := range [][2]int{{at - 1, at + 8}, {at + 8, at - 1}} {
				ls[p[0]] = editLeaf(f.leaves()[p[1]], func(r *proof.Record) { r.StreamSeq = uint64(p[0] + 1) })
			}
			cs[at-1], cs[at+8] = cs[at+8], cs[at-1]
			f.rebuild(ls, cs)
		}},
		{"insert a record", at, func(f *forger) {
			ls := f.leaves()
			f.putLeaves(slices.Insert(ls, at-1, editLeaf(ls[at-1], func(r *proof.Record) { r.Time++ })))
		}},
		{"insert a record and chain anew", at, func(f *forger) {
			ls, cs := f.leaves(), f.contents()
			ls = slices.Insert(ls, at-1, editLeaf(ls[at-1], func(r *proof.Record) { r.Time++ }))
			for i := at; i < len(ls); i++ {
				ls[i] = editLeaf(ls[i], func(r *proof.Record) { r.StreamSeq++ })
			}
			f.rebuild(ls, slices.Insert(cs, at-1, cs[at-1]))
		}},
		{"duplicate a record", at + 1, func(f *forger) {
			ls := f.leaves()
			f.putLeaves(slices.Insert(ls, at, ls[at-1]))
		}},
		{"another agent's pseudonym", at, func(f *forger) {
			ls := f.leaves()
			ls[at-1] = editLeaf(ls[at-1], func(r *proof.Record) { r.Agent[0]++ })
			f.rebuild(ls, f.contents())
		}},
		{"a tile", 256 + 17, func(f *forger) {
			tile, err := fullTile(f.db, 0, 1)
			if err != nil {
				f.t.Fatal(err)
			}
			tile[16*hashSize] ^= 1
			f.set(tileKey(0, 1), tile)
		}},
		{"an index row less", 17, func(f *forger) {
			leaf, _ := proof.ParseRecord(f.leaves()[16])
			if err := f.db.Delete(postingKey(keyByAgent, leaf.Agent, 16), pebble.Sync); err != nil {
				f.t.Fatal(err)
			}
		}},
		{"an index row that repeats one of another", 81, func(f *forger) {
			leaf, _ := proof.ParseRecord(f.leaves()[80])
			f.set(postingKey(keyByAgent, leaf.Agent, 80), []byte{})
		}},
		{"a block over another", 6, func(f *forger) { f.set(numberKey(keyLeaves, 5), f.leaves()[5]) }},
		{"a block of contents over another", 6, func(f *forger) {
			f.set(numberKey(keyContents, 5), append([]byte{1}, 'x'))
		}},
		{"a row of nobody's", 601, func(f *forger) { f.set([]byte("z"), []byte("hidden")) }},
		{"leaves behind the end", 601, func(f *forger) { f.set(numberKey(keyLeaves, 600), f.leaves()[0]) }},
	}
	for _, forgery := range forgeries {
		t.Run(forgery.name, func(t *testing.T) {
			o, _, _ := tamperOptions(t)
			forge(t, o, forgery.do)
			rep := verify(t, o)
			if rep.OK || rep.FirstBadSeq != forgery.seq || rep.Error == "" {
				t.Errorf("want sequence %d, got %+v", forgery.seq, rep)
			}
		})
	}
}

// changeByte changes one byte of a stored record, and nothing else.
func (f *forger) changeByte(seq uint64, offset int) {
	f.t.Helper()
	c, err := openCursor(f.db, keyLeaves)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.close()
	if _, err := c.leaf(seq - 1); err != nil {
		f.t.Fatal(err)
	}
	block := bytes.Clone(c.value)
	block[int(seq-1-c.first)*proof.RecordSize+offset] ^= 0xff
	f.set(numberKey(keyLeaves, c.first), block)
}

// TestAByteOfARecordIsFoundAtItsSequence: the record behind one that was
// changed, or the head behind the last, still holds the hash of what was
// there. So the record is named exactly, with the secret and without, also
// where a checkpoint, a block, a tile or the ledger ends with it.
func TestAByteOfARecordIsFoundAtItsSequence(t *testing.T) {
	o, _, _ := tamperOptions(t)
	for _, seq := range []uint64{1, 2, 64, 65, 199, 200, 201, 256, 257, 399, 400, 401, 599, 600} {
		for offset := int(seq % 7); offset < proof.RecordSize; offset += 7 {
			forge(t, o, func(f *forger) { f.changeByte(seq, offset) })
			for name, verify := range map[string]func(context.Context, Options, Progress) (schemas.VerifyReply, error){
				"Verify": Verify, "VerifyLeaves": VerifyLeaves,
			} {
				rep, err := verify(t.Context(), o, nil)
				if err != nil {
					t.Fatal(err)
				}
				if rep.OK || rep.FirstBadSeq != seq {
					t.Errorf("byte %d of record %d: %s says %+v", offset, seq, name, rep)
				}
			}
			forge(t, o, func(f *forger) { f.changeByte(seq, offset) })
		}
	}
	mustVerify(t, o, 600)
}

// TestAByteAtTheEdgeOfASegmentIsFoundAtItsSequence: segments are verified side
// by side, and each knows what the one before it ended with.
func TestAByteAtTheEdgeOfASegmentIsFoundAtItsSequence(t *testing.T) {
	o, _ := build(t, newMem(t), segmentSize+3)
	for _, seq := range []uint64{segmentSize - 1, segmentSize, segmentSize + 1, segmentSize + 2, segmentSize + 3} {
		for _, offset := range []int{3, 5, 7, 19, 27, 35, 43, 50, 70, 79, 83, 90, 120, 150} {
			forge(t, o, func(f *forger) { f.changeByte(seq, offset) })
			rep, err := VerifyLeaves(t.Context(), o, nil)
			if err != nil {
				t.Fatal(err)
			}
			if rep.OK || rep.FirstBadSeq != seq {
				t.Errorf("byte %d of record %d: %+v", offset, seq, rep)
			}
			forge(t, o, func(f *forger) { f.changeByte(seq, offset) })
		}
	}
	mustVerify(t, o, segmentSize+3)
}

// TestAForkByAHolderOfTheSecretIsFoundBetweenTwoSignatures: who can seal and
// commit, but not sign, can chain everything anew. What remains is the first
// checkpoint that does not hold.
func TestAForkByAHolderOfTheSecretIsFoundBetweenTwoSignatures(t *testing.T) {
	o, entries, fs := tamperOptions(t)
	s, err := openSubjects(fs, o.AnchorDir, o.Secret, o.Lookup, false)
	if err != nil {
		t.Fatal(err)
	}
	forge(t, o, func(f *forger) {
		ls, cs := f.leaves(), f.contents()
		other := entries[320]
		other.Data = bytes.Repeat([]byte{'x'}, len(other.Data))
		p, err := s.prepare(o.StreamID, other)
		if err != nil {
			t.Fatal(err)
		}
		ls[320], cs[320] = p.record.Append(nil), p.sealed
		f.rebuild(ls, cs)
	})
	rep := verify(t, o)
	if rep.OK || rep.FirstBadSeq != 201 || !strings.Contains(rep.Error, "between sequences 201 and 400") {
		t.Errorf("%+v", rep)
	}
}

func TestATruncatedLedgerIsFoundAtTheFirstMissingSequence(t *testing.T) {
	for _, n := range []int{1, 2, 3, 64, 199, 200, 201, 400, 599, 600} {
		o, _, _ := tamperOptions(t)
		forge(t, o, func(f *forger) {
			keep := 600 - n
			f.rebuild(f.leaves()[:keep], f.contents()[:keep])
		})
		if rep := verify(t, o); rep.OK || rep.FirstBadSeq != uint64(600-n+1) {
			t.Errorf("cut off %d: %+v", n, rep)
		}
	}
}

func TestAnAnchoredCheckpointThatIsMissingInTheDatabaseIsFound(t *testing.T) {
	o, _, _ := tamperOptions(t)
	forge(t, o, func(f *forger) {
		if err := f.db.Delete(numberKey(keyCheckpoint, 600), pebble.Sync); err != nil {
			t.Fatal(err)
		}
	})
	if rep := verify(t, o); rep.OK {
		t.Errorf("%+v", rep)
	}
	// The writer has the anchor, which is signed as well, and goes on.
	l := mustOpen(t, o)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 600)
}

// copyTree copies a folder of a memory file system.
func copyTree(t testing.TB, fs vfs.FS, from, to string) {
	t.Helper()
	if ok, err := vfs.Clone(fs, fs, from, to, vfs.CloneSync); err != nil || !ok {
		t.Fatalf("copy %s: %v, %v", from, ok, err)
	}
}

func TestARolledBackDatabaseIsFoundAndTheAnchorIsWhatFindsIt(t *testing.T) {
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(600)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[:450]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	copyTree(t, fs, "data/ledger", "data/old-ledger")
	copyTree(t, fs, "data/anchor", "data/old-anchor")
	l = mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[450:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rolled := o
	rolled.Dir = "data/old-ledger"
	if rep := verify(t, rolled); rep.OK || rep.FirstBadSeq != 451 {
		t.Errorf("rolled back to 450: %+v", rep)
	}
	// The control: with the anchor rolled back too, nothing is left that
	// could tell. So it is the anchor that does, and it has to be kept apart.
	rolled.AnchorDir = "data/old-anchor"
	if rep := verify(t, rolled); !rep.OK || rep.Records != 450 {
		t.Errorf("an old ledger with its own anchor: %+v", rep)
	}
}

func TestWithoutAnAnchorNothingVerifiesOrOpens(t *testing.T) {
	o, _, fs := tamperOptions(t)
	if err := fs.Remove("data/anchor/head"); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, o); rep.OK {
		t.Error("verified")
	}
	if _, err := Open(o); !errors.Is(err, ErrTampered) {
		t.Errorf("opened: %v", err)
	}
}

func TestALedgerThatLostItsEndTakesItFromEVENTSAgain(t *testing.T) {
	o, entries, _ := tamperOptions(t)
	whole := verify(t, o).Root
	forge(t, o, func(f *forger) { f.rebuild(f.leaves()[:350], f.contents()[:350]) })
	l := mustOpen(t, o)
	if l.From() != 351 {
		t.Fatalf("from %d", l.From())
	}
	sink := &recorder{}
	mustFeed(t, l, sink, entries[350:500]...)
	if len(sink.seqs) != 0 {
		t.Errorf("handed on before the anchor was reached: %v", sink.seqs)
	}
	if _, err := l.Checkpoint(t.Context(), 500); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("signed before the anchor was reached: %v", err)
	}
	mustFeed(t, l, sink, entries[500:]...)
	if len(sink.seqs) != 250 || sink.seqs[0] != 351 || sink.last() != 600 {
		t.Errorf("handed on: %v", sink.seqs)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := mustVerify(t, o, 600); rep.Root != whole {
		t.Errorf("root %s, was %s", rep.Root, whole)
	}
}

func TestEVENTSThatWereChangedDoNotReplaceWhatWasLost(t *testing.T) {
	o, entries, _ := tamperOptions(t)
	forge(t, o, func(f *forger) { f.rebuild(f.leaves()[:350], f.contents()[:350]) })
	l := mustOpen(t, o)
	entries[420].Data = bytes.Repeat([]byte{'x'}, 256)
	sink := &recorder{}
	err := feed(l, sink, entries[350:]...)
	if !errors.Is(err, ErrTampered) || haltSeq(t, err) != 600 {
		t.Errorf("%v", err)
	}
	if len(sink.seqs) != 0 {
		t.Errorf("handed on: %v", sink.seqs)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestALedgerThatLostItsEndAndWasChangedBeforeIsRefused(t *testing.T) {
	o, _, _ := tamperOptions(t)
	forge(t, o, func(f *forger) {
		ls := f.leaves()
		ls[99] = editLeaf(ls[99], func(r *proof.Record) { r.Time++ })
		f.rebuild(ls[:350], f.contents()[:350])
	})
	if _, err := Open(o); !errors.Is(err, ErrTampered) {
		t.Errorf("opened: %v", err)
	}
}

// unsigned makes a ledger of 600 events whose last 100 bear no signature, as
// after a crash.
func unsigned(t testing.TB) (Options, []Entry) {
	t.Helper()
	fs := newMem(t)
	o, entries := testOptions(t, fs), benchEntries(600)
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, entries[:500]...)
	copyTree(t, fs, "data/anchor", "data/kept")
	mustFeed(t, l, &recorder{}, entries[500:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	forge(t, o, func(f *forger) {
		if err := f.db.Delete(numberKey(keyCheckpoint, 600), pebble.Sync); err != nil {
			t.Fatal(err)
		}
	})
	old, err := readFile(fs, "data/kept/head")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(fs, "data/anchor/head", old); err != nil {
		t.Fatal(err)
	}
	return o, entries
}

func TestATailWithoutSignatureIsComparedWithEVENTSBeforeItIsSigned(t *testing.T) {
	o, entries := unsigned(t)
	l := mustOpen(t, o)
	if l.From() != 501 || l.Head().Size != 600 {
		t.Fatalf("from %d, %+v", l.From(), l.Head())
	}
	if _, err := l.Checkpoint(t.Context(), 600); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("signed unseen: %v", err)
	}
	sink := &recorder{}
	mustFeed(t, l, sink, entries[500:560]...)
	mustFeed(t, l, sink, entries[560:]...)
	if len(sink.seqs) != 0 {
		t.Errorf("handed on a second time: %v", sink.seqs)
	}
	if h, err := l.Checkpoint(t.Context(), 600); err != nil || h.Size != 600 {
		t.Errorf("%+v, %v", h, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, o, 600)
}

func TestATailThatIsNotThatOfEVENTSIsNeverSigned(t *testing.T) {
	o, entries := unsigned(t)
	entries[540].Data = bytes.Repeat([]byte{'x'}, 256)
	l := mustOpen(t, o)
	if err := feed(l, &recorder{}, entries[500:]...); !errors.Is(err, ErrTampered) || haltSeq(t, err) != 541 {
		t.Errorf("%v", err)
	}
	if _, err := l.Checkpoint(t.Context(), 600); !errors.Is(err, ErrHalted) {
		t.Errorf("signed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpeningRefusesAChangedTail(t *testing.T) {
	for name, do := range map[string]func(f *forger){
		"leaf": func(f *forger) {
			ls := f.leaves()
			ls[549] = editLeaf(ls[549], func(r *proof.Record) { r.Time++ })
			f.putLeaves(ls)
		},
		"index": func(f *forger) {
			r, _ := proof.ParseRecord(f.leaves()[511])
			if err := f.db.Delete(postingKey(keyByTrace, r.Trace, 508), pebble.Sync); err != nil {
				t.Fatal(err)
			}
		},
		"tile": func(f *forger) { f.set(tileKey(0, 1), make([]byte, tileSize*hashSize)) },
		"head": func(f *forger) {
			h := f.head()
			h.frontier[3][0] ^= 1
			f.set(headKey, h.append(nil))
		},
		"checkpoint": func(f *forger) { f.set(numberKey(keyCheckpoint, 550), []byte("acme.example\n550\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			o, _ := unsigned(t)
			forge(t, o, do)
			if _, err := Open(o); !errors.Is(err, ErrTampered) {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

// files lists what is on disk, but locks.
func files(t testing.TB, fs vfs.FS, dirs ...string) (out []string) {
	t.Helper()
	for _, dir := range dirs {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		for _, n := range names {
			if !strings.EqualFold(n, "lock") {
				out = append(out, path.Join(dir, n))
			}
		}
	}
	return out
}

func flip(t testing.TB, fs vfs.FS, name string, offset int64, bit byte) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAFlippedBitIsFoundOrHarmless flips bits in every file that a clean stop
// leaves, the database's log included. Harmless is only what leaves every
// record readable as it was: the verifier then has read all of them.
func TestAFlippedBitIsFoundOrHarmless(t *testing.T) {
	fs := newMem(t)
	o, _ := build(t, fs, 1000)
	// The second half stays in the database's log: closing flushes it.
	l := mustOpen(t, o)
	mustFeed(t, l, &recorder{}, benchEntries(2000)[1000:]...)
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	root := mustVerify(t, o, 2000).Root
	type place struct {
		file   string
		offset int64
	}
	var places []place
	names := files(t, fs, o.Dir, o.AnchorDir)
	perFile := map[string][]place{}
	for _, name := range names {
		info, err := fs.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range info.Size() {
			perFile[name] = append(perFile[name], place{name, i})
		}
		places = append(places, perFile[name]...)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	if testing.Short() {
		*flips = min(*flips, 27)
	}
	if *flips > 0 {
		// Small files and the large one get the same share, and the end
		// of the log its own: that is where Pebble notices nothing.
		var sample []place
		for _, name := range names {
			all := perFile[name]
			for range min(len(all), *flips/len(names)) {
				sample = append(sample, all[rng.IntN(len(all))])
			}
			for i := range min(len(all), 8) {
				sample = append(sample, all[len(all)-1-i])
			}
		}
		places = sample
	}
	found, harmless := map[string]int{}, map[string]int{}
	for _, p := range places {
		bit := byte(rng.IntN(8))
		flip(t, fs, p.file, p.offset, bit)
		rep := verify(t, o)
		switch {
		case !rep.OK:
			found[p.file]++
		case rep.Records == 2000 && rep.Root == root:
			harmless[p.file]++
		default:
			t.Errorf("%s, byte %d, bit %d: silently %+v", p.file, p.offset, bit, rep)
		}
		flip(t, fs, p.file, p.offset, bit)
	}
	mustVerify(t, o, 2000)
	for _, name := range names {
		t.Logf("%s: %d bytes, %d found, %d harmless", name, len(perFile[name]), found[name], harmless[name])
	}
	if len(found) == 0 {
		t.Error("nothing was found at all")
	}
}

// TestAfterAFlippedBitNothingIsLost opens the damaged ledger for writing, and
// gives it EVENTS: either it refuses, or it ends with every record.
func TestAfterAFlippedBitNothingIsLost(t *testing.T) {
	fs := newMem(t)
	o, entries := build(t, fs, 500)
	root := mustVerify(t, o, 500).Root
	rng := rand.New(rand.NewPCG(3, 4))
	refused, whole := 0, 0
	names := files(t, fs, o.Dir, o.AnchorDir)
	for i := range max(*flips, 100) / 4 {
		name := names[i%len(names)]
		copyFS := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: clonerng(uint64(i))})
		info, err := copyFS.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() == 0 {
			continue
		}
		offset := rng.Int64N(info.Size())
		flip(t, copyFS, name, offset, byte(rng.IntN(8)))
		damaged := o
		damaged.FS = copyFS
		l, err := Open(damaged)
		if err != nil {
			refused++
			continue
		}
		sink := &recorder{}
		if err := feed(l, sink, entries[l.From()-1:]...); err != nil {
			refused++
			_ = l.Close()
			continue
		}
		if err := l.Close(); err != nil {
			refused++
			continue
		}
		rep := verify(t, damaged)
		if rep.OK && (rep.Records != 500 || rep.Root != root) {
			t.Errorf("%s, byte %d: ends as %+v", name, offset, rep)
		}
		whole++
	}
	t.Logf("%d refused, %d went on", refused, whole)
}

func TestVerifyReportsEveryRecordAsProgress(t *testing.T) {
	o, _ := build(t, newMem(t), 5000)
	var last uint64
	rep, err := Verify(t.Context(), o, func(done, total uint64) {
		if done < last || total != 5000 {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || !rep.OK || last != 5000 {
		t.Errorf("%+v, %v, %d", rep, err, last)
	}
}

// errSink is a sink whose use is an error.
type errSink struct{}

func (errSink) Durable(b []*schemas.Event) error { return fmt.Errorf("got %d events", len(b)) }

func TestCorruptionReportedByTheDatabaseHaltsTheLedger(t *testing.T) {
	l := mustOpen(t, testOptions(t, newMem(t)))
	l.guard.listener().DataCorruption(pebble.DataCorruptionInfo{Path: "data/ledger/000007.sst", Details: errors.New("checksum")})
	err := feed(l, errSink{}, benchEntries(10)...)
	if !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), "000007.sst") {
		t.Errorf("run: %v", err)
	}
	if _, err := l.Checkpoint(t.Context(), 0); !errors.Is(err, ErrHalted) {
		t.Errorf("signed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestADatabaseThatGivesUpEndsInAnErrorNotTheProcess(t *testing.T) {
	g := newGuard(discard)
	err := g.run(func() error { g.Fatalf("disk %d is gone", 3); return nil })
	if !errors.Is(err, ErrHalted) || !strings.Contains(err.Error(), "disk 3 is gone") || !g.isFatal() {
		t.Error(err)
	}
	if err := g.run(func() error { panic("index out of range") }); !errors.Is(err, ErrTampered) {
		t.Error(err)
	}
}
