package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// handedOver is a closed ledger that was handed over behind 10 events.
func handedOver(t *testing.T, fs vfs.FS) (w *owner, size uint64) {
	w = &owner{t: t, signs: keyNumber(t, 0)}
	l := mustOpen(t, w.options(fs))
	entries := benchEntries(20)
	mustFeed(t, l, &recorder{}, entries[:10]...)
	size = w.mustHandOver(l, 1)
	mustFeed(t, l, &recorder{}, entries[10:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return w, size
}

// withoutSuccessor takes the newest key's signature off a checkpoint.
func withoutSuccessor(t *testing.T, msg []byte, s note.Signer) []byte {
	t.Helper()
	c, err := note.Open(msg, note.VerifierList(verifierOf(t, keyNumber(t, 0).Key)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := note.Sign(&note.Note{Text: c.Text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func verifierOf(t testing.TB, key string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A thief has the former key, and the right to write into database and anchor.
func TestAThiefOfTheFormerKeyCantWriteThePastAnew(t *testing.T) {
	old := keyNumber(t, 0)
	rows := func(t *testing.T, fs vfs.FS, change func(db *pebble.DB)) {
		t.Helper()
		db, err := pebble.Open("data/ledger", pebbleOptions(fs, newGuard(testOptions(t, fs).Logger)))
		if err != nil {
			t.Fatal(err)
		}
		change(db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(t *testing.T, o Options) {
		t.Helper()
		if rep := verify(t, o); rep.OK {
			t.Errorf("it verifies: %+v", rep)
		}
		if l, err := Open(o); err == nil {
			t.Error("it opens")
			_ = l.Close()
		}
	}
	t.Run("a past of his own that ends with the handover", func(t *testing.T) {
		fs := newMem(t)
		w, _ := handedOver(t, fs)
		// He needs no more than the former key, and the successor's public one.
		forged := newMem(t)
		thief := &owner{t: t, signs: old}
		l := mustOpen(t, thief.options(forged))
		mustFeed(t, l, &recorder{}, benchEntries(7)...)
		size := thief.mustHandOver(l, 1)
		msg := withoutSuccessor(t, l.current.Load().note, old.Signer)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		rows(t, forged, func(db *pebble.DB) {
			if err := db.Set(numberKey(keyCheckpoint, size), msg, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		})
		if err := writeFile(forged, "data/anchor/head", msg); err != nil {
			t.Fatal(err)
		}
		refused(t, w.options(forged))
	})
	t.Run("the same, with the true signature over another tree", func(t *testing.T) {
		fs := newMem(t)
		w, _ := handedOver(t, fs)
		head, err := readFile(fs, "data/anchor/head")
		if err != nil {
			t.Fatal(err)
		}
		forged := newMem(t)
		thief := &owner{t: t, signs: old}
		l := mustOpen(t, thief.options(forged))
		mustFeed(t, l, &recorder{}, benchEntries(7)...)
		thief.mustHandOver(l, 1)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(forged, "data/anchor/head", head); err != nil {
			t.Fatal(err)
		}
		if rep := verify(t, w.options(forged)); rep.OK {
			t.Errorf("it verifies: %+v", rep)
		}
	})
	t.Run("he goes on with the log", func(t *testing.T) {
		fs := newMem(t)
		w, _ := handedOver(t, fs)
		var msg []byte
		rows(t, fs, func(db *pebble.DB) {
			h, _, err := readHead(db)
			if err != nil {
				t.Fatal(err)
			}
			if msg, err = (proof.Checkpoint{Origin: "acme.example", Size: h.size, Root: h.frontier.root(h.size)}).Sign(old.Signer); err != nil {
				t.Fatal(err)
			}
			if err := db.Set(numberKey(keyCheckpoint, h.size), msg, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		})
		refused(t, w.options(fs))
		if err := writeFile(fs, "data/anchor/head", msg); err != nil {
			t.Fatal(err)
		}
		refused(t, w.options(fs))
	})
	t.Run("the handover's row is gone", func(t *testing.T) {
		fs := newMem(t)
		w, size := handedOver(t, fs)
		rows(t, fs, func(db *pebble.DB) {
			if err := db.Delete(numberKey(keyHandover, size), pebble.Sync); err != nil {
				t.Fatal(err)
			}
		})
		if rep := verify(t, w.options(fs)); rep.OK {
			t.Errorf("it verifies: %+v", rep)
		}
	})
	t.Run("the row names another key", func(t *testing.T) {
		fs := newMem(t)
		w, size := handedOver(t, fs)
		rows(t, fs, func(db *pebble.DB) {
			row, err := get(db, numberKey(keyHandover, size))
			if err != nil {
				t.Fatal(err)
			}
			row = bytes.Replace(row, []byte(old.Key), []byte(keyNumber(t, 5).Key), 1)
			if err := db.Set(numberKey(keyHandover, size), row, pebble.Sync); err != nil {
				t.Fatal(err)
			}
		})
		refused(t, w.options(fs))
	})
	t.Run("the files name the former key again", func(t *testing.T) {
		fs := newMem(t)
		handedOver(t, fs)
		refused(t, (&owner{t: t, signs: old}).options(fs))
		if _, err := Open((&owner{t: t, signs: keyNumber(t, 6)}).options(fs)); err == nil || !strings.Contains(err.Error(), "from after the rotation") {
			t.Errorf("a key that is none of the ledger's: %v", err)
		}
	})
}

// A ledger that says in a record that another key signs, and goes on with the
// same, does not verify.
func TestARecordOfAHandoverThatNobodyFollowsIsFound(t *testing.T) {
	w := &owner{t: t, signs: keyNumber(t, 0)}
	fs := newMem(t)
	l := mustOpen(t, w.options(fs))
	entries := benchEntries(20)
	mustFeed(t, l, &recorder{}, entries[:10]...)
	u, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	l.wmu.Lock()
	err = l.appendOwn(proof.Record{Kind: proof.KindHandover, StreamSeq: 10, Agent: u.pseudo, Time: 1}, u, proof.HandoverSubject,
		schemas.Marshal(Handover{Former: w.signs.Key, Successor: keyNumber(t, 1).Key, Reason: "r", Actor: "a"}))
	l.wmu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, &recorder{}, entries[10:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, w.options(fs)); rep.OK || rep.FirstBadSeq != 10 {
		t.Errorf("%+v", rep)
	}
}

// The thief of the former key makes bundles. Who knows of the rotation refuses
// what goes on behind it, and any handover but the ledger's own.
func TestAThiefOfTheFormerKeyMakesNoEvidence(t *testing.T) {
	fs := newMem(t)
	w, size := handedOver(t, fs)
	old, current := keyNumber(t, 0), w.signs
	knows := policyOf(t, "log "+current.Key, fmt.Sprintf("log %s until %d", old.Key, size))
	pinned := policyOf(t, "log "+current.Key)

	thief := &owner{t: t, signs: old}
	l := mustOpen(t, thief.options(newMem(t)))
	mustFeed(t, l, &recorder{}, benchEntries(40)...)
	if _, err := l.sign(); err != nil {
		t.Fatal(err)
	}
	longer := bundled(t, l.Show, old.Key)
	thief.mustHandOver(l, 3)
	mustFeed(t, l, &recorder{}, benchEntries(50)[40:]...)
	handed := bundled(t, l.Show, keyNumber(t, 3).Key)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"he goes on": longer, "he hands over to himself": handed} {
		for who, p := range map[string]*proof.Policy{"who knows of the rotation": knows, "who pinned the new key": pinned} {
			if _, err := judge(t, data, p); !errors.Is(err, proof.ErrUntrusted) {
				t.Errorf("%s, %s: %v", name, who, err)
			}
		}
		// Who was not told can't know: the threat model says so.
		if _, err := judge(t, data, policyOf(t, "log "+old.Key)); err != nil {
			t.Errorf("%s, who was not told of the rotation: %v", name, err)
		}
	}
}

// Nothing in a bundle's handovers can be changed, left out, or put in from
// elsewhere.
func TestHandoversInABundleCantBeChanged(t *testing.T) {
	w := &owner{t: t, signs: keyNumber(t, 0)}
	l := mustOpen(t, w.options(newMem(t)))
	defer l.Close()
	entries := benchEntries(12)
	for i := range byte(3) {
		mustFeed(t, l, &recorder{}, entries[i*3:i*3+3]...)
		w.mustHandOver(l, i+1)
	}
	mustFeed(t, l, &recorder{}, entries[9:]...)
	p := policyOf(t, "log "+keyNumber(t, 0).Key)
	made := func() *proof.Bundle {
		t.Helper()
		b, err := Collect(t.Context(), l.Show, w.signs.Key, schemas.ShowRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := made().Verify(p); err != nil {
		t.Fatal(err)
	}
	thief := keyNumber(t, 9)
	changes := map[string]func(b *proof.Bundle){
		"none":                 func(b *proof.Bundle) { b.Handovers = nil },
		"without the first":    func(b *proof.Bundle) { b.Handovers = b.Handovers[1:] },
		"without the second":   func(b *proof.Bundle) { b.Handovers = append(b.Handovers[:1:1], b.Handovers[2]) },
		"without the last":     func(b *proof.Bundle) { b.Handovers = b.Handovers[:2] },
		"in another order":     func(b *proof.Bundle) { b.Handovers[0], b.Handovers[1] = b.Handovers[1], b.Handovers[0] },
		"one twice":            func(b *proof.Bundle) { b.Handovers = append(b.Handovers, b.Handovers[2]) },
		"another growth":       func(b *proof.Bundle) { b.Handovers[0].Growth = b.Handovers[1].Growth },
		"no growth":            func(b *proof.Bundle) { b.Handovers[2].Growth = nil },
		"another checkpoint":   func(b *proof.Bundle) { b.Handovers[0].Checkpoint = b.Handovers[1].Checkpoint },
		"the bundle's":         func(b *proof.Bundle) { b.Handovers[2].Checkpoint = b.Checkpoint },
		"another record":       func(b *proof.Bundle) { b.Handovers[0].Record = b.Handovers[1].Record },
		"a record of an event": func(b *proof.Bundle) { b.Handovers[0].Record = b.Records[0] },
		"another successor": func(b *proof.Bundle) {
			b.Handovers[2].Record.Payload = bytes.Replace(b.Handovers[2].Record.Payload, []byte(w.signs.Key), []byte(thief.Key), 1)
			b.Key = thief.Key
		},
		"the key alone": func(b *proof.Bundle) { b.Key = thief.Key },
	}
	for name, change := range changes {
		b := made()
		change(b)
		if _, err := b.Verify(p); !errors.Is(err, proof.ErrHandover) && !errors.Is(err, proof.ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Somebody without any key puts a signature of his own on a checkpoint.
	b := made()
	n, err := note.Open([]byte(b.Checkpoint), note.VerifierList(verifierOf(t, w.signs.Key)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(n, thief.Signer)
	if err != nil {
		t.Fatal(err)
	}
	b.Checkpoint, b.Key, b.Handovers = string(signed), thief.Key, nil
	if _, err := b.Verify(p); !errors.Is(err, proof.ErrUntrusted) {
		t.Errorf("a further signature on a checkpoint: %v", err)
	}
	data, err := made().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	// Each byte of the handovers counts.
	at, end := bytes.Index(data, []byte("handovers")), bytes.LastIndex(data, []byte("checkpoint"))
	if at < 0 || end < at+2000 {
		t.Fatal(at, len(data))
	}
	for i := at; i < end; i += 7 {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		if _, err := judge(t, bad, p); err == nil {
			t.Errorf("byte %d of the handovers is changed, and the bundle verifies", i-at)
		}
	}
}

func TestAPolicyOfRetiredKeysIsReadStrictly(t *testing.T) {
	key := keyNumber(t, 0).Key
	for _, bad := range []string{"log " + key + " until", "log " + key + " until 0", "log " + key + " until x", "log " + key + " until -1",
		"log " + key + " before 3", "log " + key + " until 3 4", "log " + key + "\nlog " + key + " until 3", "log " + key + " until 4\nlog " + key + " until 3"} {
		if _, err := proof.ParsePolicy([]byte(bad)); !errors.Is(err, proof.ErrPolicy) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Somebody has the whole log, as anybody may (tiles, bundles), and keys of their
// own. They go on with it behind a true handover: the record in which it ends
// names their key, and is signed by another of theirs; or the true keys have
// signed, but more than the handover says.
func TestHandoversAreSplicedByNobody(t *testing.T) {
	w := &owner{t: t, signs: keyNumber(t, 0)}
	l := mustOpen(t, w.options(newMem(t)))
	defer l.Close()
	entries := benchEntries(12)
	mustFeed(t, l, &recorder{}, entries[:4]...)
	first := w.mustHandOver(l, 1)
	stranger, thief := keyNumber(t, 8), keyNumber(t, 9)
	u, err := l.subjects.need(schemas.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	l.wmu.Lock()
	second := l.chain.size + 1
	err = l.appendOwn(proof.Record{Kind: proof.KindHandover, StreamSeq: 4, Agent: u.pseudo, Time: 1}, u, proof.HandoverSubject,
		schemas.Marshal(Handover{Former: stranger.Key, Successor: thief.Key, Reason: "r", Actor: "a"}))
	l.wmu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	mustFeed(t, l, &recorder{}, entries[4:]...)
	if _, err := l.sign(); err != nil {
		t.Fatal(err)
	}
	tip := l.current.Load().Checkpoint
	// at is a handover whose checkpoint has so many records, signed as said.
	at := func(index, size uint64, by ...note.Signer) proof.HandoverProof {
		t.Helper()
		tree, err := loadTree(l.db, size)
		if err != nil {
			t.Fatal(err)
		}
		c := proof.Checkpoint{Origin: "acme.example", Size: size, Root: tree.root()}
		msg, err := c.Sign(by...)
		if err != nil {
			t.Fatal(err)
		}
		sc, err := openScanner(l.db, l.subjects)
		if err != nil {
			t.Fatal(err)
		}
		defer sc.close()
		b, err := l.handoverRecord(sc, index)
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.ParseRecord(b.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := l.proven(&r, c)
		if err != nil {
			t.Fatal(err)
		}
		b.Path = shown.Path
		h := proof.HandoverProof{Checkpoint: string(msg), Record: *b}
		growth, err := l.growth(size, tip)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range growth {
			h.Growth = append(h.Growth, g[:]...)
		}
		return h
	}
	made := func() *proof.Bundle {
		t.Helper()
		b, err := Collect(t.Context(), l.Show, w.signs.Key, schemas.ShowRequest{})
		if err != nil || len(b.Handovers) != 1 {
			t.Fatal(len(b.Handovers), err)
		}
		return b
	}
	p := policyOf(t, "log "+keyNumber(t, 0).Key)
	if _, err := made().Verify(p); err != nil {
		t.Fatal(err)
	}
	// The same by hand, to know that what follows is refused for its own reason.
	b := made()
	b.Handovers[0] = at(first-1, first, keyNumber(t, 0).Signer, keyNumber(t, 1).Signer)
	if _, err := b.Verify(p); err != nil {
		t.Fatal(err)
	}
	b = made()
	b.Handovers[0] = at(first-1, first+2, keyNumber(t, 0).Signer, keyNumber(t, 1).Signer)
	if _, err := b.Verify(p); !errors.Is(err, proof.ErrHandover) {
		t.Errorf("a checkpoint that goes on behind the handover: %v", err)
	}
	b = made()
	b.Handovers[0] = at(first-1, first, keyNumber(t, 0).Signer)
	if _, err := b.Verify(p); !errors.Is(err, proof.ErrHandover) {
		t.Errorf("signed by the former key alone: %v", err)
	}
	b = made()
	b.Handovers[0] = at(first-1, first, keyNumber(t, 1).Signer)
	if _, err := b.Verify(p); !errors.Is(err, proof.ErrHandover) {
		t.Errorf("signed by the successor alone: %v", err)
	}
	// By a stranger, behind the true one.
	b = made()
	forged := at(second-1, second, stranger.Signer, thief.Signer)
	between, err := l.growth(first, proof.Checkpoint{Origin: "acme.example", Size: second, Root: rootOf(t, l, second)})
	if err != nil {
		t.Fatal(err)
	}
	b.Handovers[0].Growth = nil
	for _, g := range between {
		b.Handovers[0].Growth = append(b.Handovers[0].Growth, g[:]...)
	}
	msg, err := tip.Sign(thief.Signer)
	if err != nil {
		t.Fatal(err)
	}
	b.Handovers, b.Key, b.Checkpoint = append(b.Handovers, forged), thief.Key, string(msg)
	if _, err := b.Verify(p); !errors.Is(err, proof.ErrHandover) {
		t.Errorf("a stranger's handover behind the true one: %v", err)
	}
	if _, err := b.Verify(policyOf(t, "log "+stranger.Key)); !errors.Is(err, proof.ErrHandover) {
		t.Errorf("the same, under the stranger's own key: %v", err)
	}
}

func rootOf(t testing.TB, l *Ledger, size uint64) proof.Hash {
	t.Helper()
	tree, err := loadTree(l.db, size)
	if err != nil {
		t.Fatal(err)
	}
	return tree.root()
}
