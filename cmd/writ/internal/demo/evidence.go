package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/cmd/writ/internal/replay"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/monitor"
	"github.com/writ-sh/writ/schemas"
)

// evidence reads back what happened, and shows that nobody can change it
// unseen.
func (s *story) evidence(ctx context.Context) error {
	s.Narrator.Chapter("The record")
	s.step(ctx, "trace", "the whole request is one tree: capability, data, tools, writer-2, what was held and what was cancelled", s.trace)
	s.step(ctx, "replay", "recomputed from the log, every verdict is the same to the byte, and so is every decision, end and lock", s.replay)
	s.step(ctx, "ledger", "every record verifies: chain, tree, signatures", func(ctx context.Context) (finding, error) {
		var err error
		if s.end, err = bus.Call[schemas.VerifyReply](ctx, s.operator, schemas.CtlVerify, nil); err != nil {
			return finding{}, err
		}
		return verified(s.end), nil
	})
	p, err := bus.Call[schemas.Proof](ctx, s.operator, schemas.CtlProve, schemas.ProveRequest{Seq: s.draftSeq})
	if err != nil {
		return err
	}
	leaf, err := base64.StdEncoding.DecodeString(p.Leaf)
	if err != nil {
		return err
	}
	evidence, err := s.handOver(ctx)
	if err != nil {
		return err
	}
	s.Narrator.Say("The control plane stops. Its ledger, the anchor and the public key are copied.")
	if err := s.stop(); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "copy")
	o, err := s.copyLedger(dir)
	if err != nil {
		return err
	}
	s.step(ctx, "copy", "the copy verifies offline with the public key alone", func(ctx context.Context) (finding, error) {
		rep, err := ledger.VerifyLeaves(ctx, o, nil)
		if err != nil {
			return finding{}, err
		}
		f := verified(rep)
		f.ok = f.ok && rep.Records >= s.end.Records
		return f, nil
	})
	s.step(ctx, "bundle", "one file proves the request offline, by the public key alone: the draft, what was held, what was cancelled", func(context.Context) (finding, error) {
		return s.proven(evidence)
	})
	within := ctx // of a whole run: longer than one step may take
	s.step(ctx, "bundle changed", "with any byte of that file changed, it is refused", func(ctx context.Context) (finding, error) {
		if s.EveryByte {
			ctx = within
		}
		return s.flipped(ctx, evidence)
	})
	var hit *damage
	s.step(ctx, "tampering", "one byte of the draft's record is changed in the copy; verification names the block of records that it is in", func(ctx context.Context) (f finding, err error) {
		hit, f, err = s.tamper(ctx, o, leaf)
		return f, err
	})
	if hit == nil {
		return errBroken
	}
	s.step(ctx, "covered up", fmt.Sprintf("with the database's own checksum put right, verification names event %d, the draft", s.draftSeq), func(ctx context.Context) (finding, error) {
		return s.coverUp(ctx, o, hit)
	})
	return nil
}

func verified(rep schemas.VerifyReply) finding {
	if !rep.OK {
		return found(false, "event %d: %s", rep.FirstBadSeq, rep.Error)
	}
	return found(rep.Records > 0, "%d records, root %.16s…, %.0f records a second", rep.Records, rep.Root, rep.RecordsPerSec)
}

// trace shows the quarter's request.
func (s *story) trace(ctx context.Context) (finding, error) {
	events, err := s.events(ctx, schemas.ReadRequest{From: s.grant.Seq, Trace: s.grant.TraceID})
	if err != nil {
		return finding{}, err
	}
	s.Narrator.Trace(s.grant.TraceID, events)
	kinds := map[schemas.Kind]int{}
	var who []string
	for _, e := range events {
		kinds[e.Kind]++
		if !slices.Contains(who, e.Agent) {
			who = append(who, e.Agent)
		}
	}
	slices.Sort(who)
	ok := slices.Contains(who, analyst) && slices.Contains(who, writer) && slices.Contains(who, "warehouse")
	for _, k := range []schemas.Kind{schemas.TokenIssued, schemas.MessageAccepted, schemas.ResponseAccepted, schemas.MessageHeld, schemas.ReviewDenied, schemas.MessageCancelled} {
		ok = ok && kinds[k] > 0
	}
	return found(ok, "%d events of %s: %d accepted, %d answers, %d held, %d denied, %d cancelled", len(events), strings.Join(who, ", "),
		kinds[schemas.MessageAccepted], kinds[schemas.ResponseAccepted], kinds[schemas.MessageHeld], kinds[schemas.MessageDenied], kinds[schemas.MessageCancelled]), nil
}

// copyLedger copies what an auditor gets, and no secret.
func (s *story) copyLedger(dir string) (o ledger.Options, err error) {
	for _, part := range []string{"ledger", "anchor"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(s.data, part))); err != nil {
			return o, fmt.Errorf("copy the ledger: %w", err)
		}
	}
	text, err := os.ReadFile(filepath.Join(s.data, keys.Dir, "ledger.pub"))
	if err != nil {
		return o, fmt.Errorf("copy the ledger: %w", err)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(text)))
	if err != nil {
		return o, fmt.Errorf("copy the ledger: %w", err)
	}
	return ledger.Options{Dir: filepath.Join(dir, "ledger"), AnchorDir: filepath.Join(dir, "anchor"), Verifier: v}, nil
}

// replay recomputes the verdicts of the whole log.
func (s *story) replay(ctx context.Context) (finding, error) {
	events, err := s.events(ctx, schemas.ReadRequest{Data: true})
	if err != nil {
		return finding{}, err
	}
	check := replay.NewCheck(nil)
	r, err := monitor.Replay(func(yield func(*schemas.Event, error) bool) {
		for _, e := range events {
			err := check.Step(e)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}, nil)
	if err != nil {
		return finding{}, err
	}
	d, err := check.Report()
	if err != nil {
		return finding{}, err
	}
	return found(r.Verdicts > 0 && d.Ends > 0 && r.Mismatches+d.Mismatches == 0, "%d events, %d verdicts, %d decisions, %d ends, %d locks, %d mismatches %s",
		r.Events, r.Verdicts, d.Decisions, d.Ends, d.Locks, r.Mismatches+d.Mismatches, d.Reason), nil
}

// damage is where a record was changed on disk.
type damage struct {
	path   string
	offset int   // of the byte that was changed
	block  block // that the database complained of
}

// A block of a database's table is read, and so is unreadable, as a whole.
type block struct{ offset, length int }

// complaint finds in a database's own words which block they mean.
var complaint = regexp.MustCompile(`block (\d+)/(\d+): crc32c`)

func blockOf(complained string) (b block, ok bool) {
	m := complaint.FindStringSubmatch(complained)
	if m == nil {
		return b, false
	}
	var errs [2]error
	b.offset, errs[0] = strconv.Atoi(m[1])
	b.length, errs[1] = strconv.Atoi(m[2])
	return b, errors.Join(errs[:]...) == nil
}

// tamper changes one byte of a record on disk.
func (s *story) tamper(ctx context.Context, o ledger.Options, leaf []byte) (*damage, finding, error) {
	hit, err := strike(o.Dir, leaf)
	if err != nil {
		return nil, finding{}, err
	}
	rep, err := ledger.VerifyLeaves(ctx, o, nil)
	if err != nil {
		return hit, finding{}, err
	}
	var named bool
	hit.block, named = blockOf(rep.Error)
	// It names the first record that it can't read, and the draft's can stand
	// no farther behind that than the block is long.
	records := uint64(hit.block.length / proof.RecordSize)
	ok := named && hit.offset >= hit.block.offset && hit.offset < hit.block.offset+hit.block.length &&
		rep.FirstBadSeq <= s.draftSeq && s.draftSeq-rep.FirstBadSeq < records
	return hit, found(ok, "byte %d of %s, in the record of event %d: %s", hit.offset, filepath.Base(hit.path), s.draftSeq, verdictOn(rep)), nil
}

// strike finds a record in the tables of a database, and changes its middle
// byte. Log files are passed over: what they held stands in tables once the
// ledger was closed, and what is left of them is read by nobody.
func strike(dir string, record []byte) (hit *damage, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".sst" || hit != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(b, record)
		if at < 0 {
			return nil
		}
		hit = &damage{path: path, offset: at + len(record)/2}
		b[hit.offset] ^= 0xff
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("tamper: %w", err)
	}
	if hit == nil {
		return nil, errors.New("tamper: the record stands in none of the database's tables")
	}
	return hit, nil
}

func verdictOn(rep schemas.VerifyReply) string {
	if rep.OK {
		return "verification passes"
	}
	return fmt.Sprintf("verification names event %d: %s", rep.FirstBadSeq, rep.Error)
}

// coverUp does what a careful forger would: it makes the database believe its
// own file again, so that only the chain of records is left to tell.
func (s *story) coverUp(ctx context.Context, o ledger.Options, hit *damage) (finding, error) {
	if err := putRight(hit); err != nil {
		return finding{}, err
	}
	rep, err := ledger.VerifyLeaves(ctx, o, nil)
	if err != nil {
		return finding{}, err
	}
	return found(!rep.OK && rep.FirstBadSeq == s.draftSeq, "%s", verdictOn(rep)), nil
}

// putRight writes a block's checksum anew: CRC-32C over the block and the byte
// behind it that says how it is compressed, rotated and offset as in LevelDB's
// table format.
func putRight(hit *damage) error {
	b, err := os.ReadFile(hit.path)
	if err != nil {
		return fmt.Errorf("cover up: %w", err)
	}
	from, end := hit.block.offset, hit.block.offset+hit.block.length+1
	if hit.offset < from || hit.offset >= end || end+4 > len(b) {
		return fmt.Errorf("cover up: byte %d is not in the block at %d", hit.offset, from)
	}
	sum := crc32.Checksum(b[from:end], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[end:], (sum>>15|sum<<17)+0xa282ead8)
	if err := os.WriteFile(hit.path, b, 0o600); err != nil {
		return fmt.Errorf("cover up: %w", err)
	}
	return nil
}
