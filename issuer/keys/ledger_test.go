package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// signsLedger is the public key that signs a folder's ledger: signer and public half
// are of one pair.
func signsLedger(t *testing.T, data string) *Ledger {
	t.Helper()
	l, err := OpenLedger(data)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(l.Verifier)
	if err != nil {
		t.Fatal(err)
	}
	if l.Signer.Name() != v.Name() || l.Signer.KeyHash() != v.KeyHash() {
		t.Fatalf("%s signs, %s verifies", fmt.Sprint(l.Signer.KeyHash()), l.Verifier)
	}
	return l
}

func turnLedger(t *testing.T, data string, size uint64) (former, next string) {
	t.Helper()
	former = signsLedger(t, data).Verifier
	k, err := NextLedger(data)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := NextLedger(data); err != nil || again.Verifier != k.Verifier {
		t.Fatalf("prepared twice: %v, %v", again, err)
	}
	if err := TurnLedger(data, size, "root/ada", "test"); err != nil {
		t.Fatal(err)
	}
	return former, k.Verifier
}

func TestTheLedgersKeyHasASuccessorThatSignsNothingBeforeItsTurn(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed %t", sealed), func(t *testing.T) {
			data := initialised(t)
			if sealed {
				with, err := passphrase("open sesame, please", 4)
				if err != nil {
					t.Fatal(err)
				}
				if err := Seal(data, with); err != nil {
					t.Fatal(err)
				}
			}
			if err := TurnLedger(data, 3, "root/ada", "test"); err == nil {
				t.Error("turned without a successor")
			}
			first := signsLedger(t, data).Verifier
			k, err := NextLedger(data)
			if err != nil {
				t.Fatal(err)
			}
			if l := signsLedger(t, data); l.Verifier != first || l.Next == nil || l.Next.Verifier != k.Verifier {
				t.Errorf("prepared: %s signs", l.Verifier)
			}
			if sealed {
				b, err := os.ReadFile(filepath.Join(data, Dir, ledgerNext))
				if err != nil || !isSealed(b) {
					t.Errorf("the successor's secret lies open in a sealed folder: %v", err)
				}
			}
			a, b := turnLedger(t, data, 10)
			c, d := turnLedger(t, data, 20)
			if a != first || b != k.Verifier || b != c || signsLedger(t, data).Verifier != d {
				t.Errorf("%s, %s, %s, %s", a, b, c, d)
			}
			policy, err := os.ReadFile(filepath.Join(data, Dir, LedgerPolicy))
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("log %s\nlog %s until 20\nlog %s until 10\n", d, c, a); !strings.HasSuffix(string(policy), want) {
				t.Errorf("the policy is\n%s\nand should end with\n%s", policy, want)
			}
			if sealed {
				b, err := os.ReadFile(filepath.Join(data, Dir, ledgerNote))
				if err != nil || !isSealed(b) {
					t.Errorf("the secret lies open in a sealed folder: %v", err)
				}
			}
			turn, err := LedgerTurn(data)
			if err != nil || turn == nil || turn.Rotation.KeyID != d || turn.Rotation.Replaced != c || turn.Actor != "root/ada" {
				t.Errorf("for the log: %+v, %v", turn, err)
			}
			if err := LedgerTold(data); err != nil {
				t.Fatal(err)
			}
			if turn, err := LedgerTurn(data); turn != nil || err != nil {
				t.Errorf("told: %+v, %v", turn, err)
			}
		})
	}
}

// halfway is a folder in which a change got as far as these steps: a file is as it
// is behind the whole of the change, or, with a "-" before its name, gone.
func halfway(t *testing.T, first, whole string, steps []string) string {
	t.Helper()
	part := copied(t, first)
	for _, name := range steps {
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			if err := os.Remove(filepath.Join(part, Dir, gone)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := os.ReadFile(filepath.Join(whole, Dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(part, Dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return part
}

// The machine stops behind any of the files that a rotation of the ledger's key
// writes or removes: what opens is one pair, the former's or the successor's,
// and what is run again ends at the successor.
func TestAnInterruptedRotationOfTheLedgersKeyIsDoneAgain(t *testing.T) {
	first := initialised(t)
	former := signsLedger(t, first).Verifier
	next, err := NextLedger(first)
	if err != nil {
		t.Fatal(err)
	}
	whole := copied(t, first)
	if err := TurnLedger(whole, 7, "root/ada", "test"); err != nil {
		t.Fatal(err)
	}
	steps := []string{ledgerTurn, LedgerPolicy, ledgerPub, ledgerNote, "-" + ledgerNext, "-" + nextPub}
	for n := range len(steps) + 1 {
		part := halfway(t, first, whole, steps[:n])
		want := former
		if n >= 3 {
			want = next.Verifier
		}
		if l := signsLedger(t, part); l.Verifier != want {
			t.Errorf("behind %v: %s, want %s", steps[:n], l.Verifier, want)
		}
		if n < 3 { // as the ledger does, whose handover is pending
			if err := TurnLedger(part, 7, "root/ada", "test"); err != nil {
				t.Fatalf("behind %v: %v", steps[:n], err)
			}
		}
		if err := SettleLedger(part); err != nil {
			t.Fatalf("behind %v: %v", steps[:n], err)
		}
		if l := signsLedger(t, part); l.Verifier != next.Verifier || l.Next != nil {
			t.Errorf("behind %v, once more: %s, next %v", steps[:n], l.Verifier, l.Next)
		}
		if _, err := os.Stat(filepath.Join(part, Dir, ledgerNext)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("behind %v: the successor's file is left: %v", steps[:n], err)
		}
		retired, err := retiredLedger(filepath.Join(part, Dir))
		if err != nil || len(retired) != 1 || retired[0] != (retiredKey{former, 7}) {
			t.Errorf("behind %v: retired %v, %v", steps[:n], retired, err)
		}
		all, err := ledgerKeys(filepath.Join(part, Dir))
		if err != nil || len(all) != 2 || !strings.Contains(all[1].Kind, "up to 7 records, verifies only") {
			t.Errorf("behind %v: %+v, %v", steps[:n], all, err)
		}
		// A successor that is half made is made anew.
		if err := os.WriteFile(filepath.Join(part, Dir, nextPub), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := NextLedger(part); err != nil || k.Verifier == "half" {
			t.Errorf("behind %v: %+v, %v", steps[:n], k, err)
		}
	}
}
