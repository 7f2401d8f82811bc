package ledger

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// Progress is told how many records have been verified, of how many. Calls
// come one at a time.
type Progress func(done, total uint64)

// Verify verifies a ledger that nobody has open, best a copy of the data
// folder, and changes nothing in it. It requires an anchor that is signed, a
// database that reaches it, continuity from the first record to the last,
// contents that are what was committed to or whose erasure is recorded, both
// indexes, all tiles, and every checkpoint. What is wrong stands in the reply,
// with the first sequence that is; an error means that it could not be
// verified at all.
func Verify(ctx context.Context, o Options, progress Progress) (schemas.VerifyReply, error) {
	return verifyStored(ctx, o, progress, true, runtime.GOMAXPROCS(0))
}

// VerifyLeaves is Verify without contents: chain, tree, signatures, anchor and
// indexes. It needs no secret.
func VerifyLeaves(ctx context.Context, o Options, progress Progress) (schemas.VerifyReply, error) {
	return verifyStored(ctx, o, progress, false, runtime.GOMAXPROCS(0))
}

func verifyStored(ctx context.Context, o Options, progress Progress, contents bool, workers int) (rep schemas.VerifyReply, err error) {
	if err := o.fill(); err != nil {
		return rep, err
	}
	if _, err := o.FS.Stat(o.Dir); isNotExist(err) {
		return rep, fmt.Errorf("verify: there is no ledger in %s", o.Dir)
	}
	g := newGuard(o.Logger)
	v := &verification{streamID: o.StreamID, contents: contents, workers: workers, guard: g, progress: progress}
	err = g.run(func() error { return v.stored(ctx, &o) })
	return v.reply(err)
}

// stored verifies what is on disk.
func (v *verification) stored(ctx context.Context, o *Options) (err error) {
	if v.subjects, err = openSubjects(o.FS, o.SubjectsDir, o.Secret, o.Lookup, false); err != nil {
		return err
	}
	lock, err := lockToRead(o)
	if err != nil {
		return fmt.Errorf("verify %s: %w", o.Dir, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	po := pebbleOptions(o.FS, v.guard)
	po.ReadOnly, po.Lock = true, lock
	db, err := pebble.Open(o.Dir, po)
	if err != nil {
		return tampered(0, "the database does not open: %v", err)
	}
	v.r = db
	if err = v.anchor(o); err == nil {
		err = v.all(ctx)
	}
	if v.guard.isFatal() {
		return v.guard.err()
	}
	return errors.Join(err, db.Close())
}

// anchor reads the keys and the anchor under them.
func (v *verification) anchor(o *Options) (err error) {
	if v.ring, err = readKeyring(v.r, o.Verifier); err != nil {
		return err
	}
	var found bool
	v.anchored, v.anchorNote, found, err = readAnchor(o.FS, o.AnchorDir, v.ring, o.Verifier)
	if err == nil && !found {
		err = tampered(0, "there is no anchor in %s: without the signed head nobody can tell whether records were cut off", o.AnchorDir)
	}
	return err
}

// A verification is one run of the verifier.
type verification struct {
	r          pebble.Reader
	subjects   *subjects
	ring       *keyring
	streamID   uint64
	contents   bool
	workers    int
	anchored   proof.Checkpoint
	anchorNote []byte
	guard      *guard
	progress   Progress
	start      time.Time

	head        head
	pruned      prunedRow
	checkpoints []proof.Checkpoint // by size
	segments    []*segment
	tree        tree

	mu   sync.Mutex // guards done and calls of progress
	done uint64
}

// errInUse is matched where the ledger can't be verified, because somebody has
// it open.
var errInUse = errors.New("the ledger is in use")

// reply tells findings from failures to verify at all.
func (v *verification) reply(err error) (schemas.VerifyReply, error) {
	rep := schemas.VerifyReply{OK: err == nil, Records: v.head.size}
	if d := time.Since(v.start).Seconds(); v.done > 0 && d > 0 {
		rep.RecordsPerSec = float64(v.done) / d
	}
	var halt *HaltError
	switch {
	case err == nil:
		root := v.tree.root()
		rep.Root = hex.EncodeToString(root[:])
	case errors.Is(err, errInUse) || errors.Is(err, errNoLock) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return rep, err
	case errors.As(err, &halt):
		rep.FirstBadSeq, rep.Error = halt.Seq, halt.Err.Error()
	default:
		rep.Error = err.Error()
	}
	return rep, nil
}

// all verifies everything. Where several things are wrong, that of the lowest
// sequence is reported.
func (v *verification) all(ctx context.Context) error {
	v.start = time.Now()
	var found bool
	var err error
	if v.head, found, err = readHead(v.r); err != nil {
		return err
	}
	if !found {
		return v.shorter(tampered(1, "the database has no head"))
	}
	if v.streamID != 0 && v.head.streamID != v.streamID {
		return tampered(0, "the ledger is of another stream: id %016x instead of %016x", v.head.streamID, v.streamID)
	}
	if v.pruned, err = checkPruned(v.r, v.subjects, v.head.size, v.contents); err != nil {
		return err
	}
	unsigned := v.readCheckpoints()
	if err := v.readSegments(ctx); err != nil {
		return err
	}
	return lowest(v.join(), v.shorter(nil), v.noMore(), v.handedOver(), unsigned)
}

// shorter reports a database that ends before the anchor.
func (v *verification) shorter(otherwise error) error {
	if v.head.size >= v.anchored.Size {
		return otherwise
	}
	return tampered(v.head.streamSeq+1, "the database ends after %d records; the anchor signs %d: the end was cut off or rolled back", v.head.size, v.anchored.Size)
}

// lowest picks the error with the lowest sequence; one without sequence comes
// last.
func lowest(errs ...error) (out error) {
	rank := func(err error) uint64 {
		var halt *HaltError
		if errors.As(err, &halt) && halt.Seq != 0 {
			return halt.Seq
		}
		return ^uint64(0)
	}
	for _, err := range errs {
		if err != nil && (out == nil || rank(err) < rank(out)) {
			out = err
		}
	}
	return out
}

// readCheckpoints verifies the signature of every checkpoint. That of the
// anchor must be among them.
func (v *verification) readCheckpoints() error {
	c, err := openCursor(v.r, keyCheckpoint)
	if err != nil {
		return err
	}
	defer c.close()
	anchored := false
	for ok := c.it.First(); ok; ok = c.it.Next() {
		cp, err := checkpointRow(c.it, v.head.size, v.ring)
		if err != nil {
			return err
		}
		if cp.Size == v.anchored.Size {
			value, err := c.it.ValueAndErr()
			if err != nil {
				return err
			}
			anchored = bytes.Equal(value, v.anchorNote)
		}
		v.checkpoints = append(v.checkpoints, cp)
	}
	if err := c.it.Error(); err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	if !anchored {
		return tampered(0, "the anchored checkpoint of %d records does not stand in the database as it was signed", v.anchored.Size)
	}
	if last := v.checkpoints[len(v.checkpoints)-1].Size; v.head.size-last > maxUnsigned {
		return tampered(0, "the last %d records bear no signature, and a ledger signs every %d", v.head.size-last, signRecords)
	}
	return nil
}

// handedOver finds a handover that a record says and the keys don't follow. One
// that a crash left half done is at the end of what is signed.
func (v *verification) handedOver() error {
	for _, s := range v.segments {
		for _, at := range s.handovers {
			if !v.ring.isHandover(at.index) && at.index+1 < v.anchored.Size {
				return tampered(at.seq, "record %d hands the ledger over to another key, and the same key went on signing", at.index)
			}
		}
	}
	return nil
}

// checkpointRow verifies the checkpoint that an iterator stands on.
func checkpointRow(it *pebble.Iterator, size uint64, ring *keyring) (proof.Checkpoint, error) {
	value, err := it.ValueAndErr()
	if err != nil {
		return proof.Checkpoint{}, fmt.Errorf("read checkpoints: %w", err)
	}
	n, ok := parseNumberKey(keyCheckpoint, it.Key())
	c, err := ring.stored(value)
	switch {
	case err != nil:
		return c, tampered(0, "the checkpoint of %d records: %v", n, err)
	case !ok || n != c.Size:
		return c, tampered(0, "the checkpoint of %d records stands where that of %d should", c.Size, n)
	case c.Size > size:
		return c, tampered(0, "a checkpoint signs %d records, and the database holds %d", c.Size, size)
	}
	return c, nil
}

// readSegments verifies each segment by itself, in parallel.
func (v *verification) readSegments(ctx context.Context) error {
	n := (v.head.size + segmentSize - 1) >> segmentBits
	v.segments = make([]*segment, n)
	var g errgroup.Group
	g.SetLimit(v.workers)
	next := 0
	for i := range v.segments {
		s := &segment{v: v, first: uint64(i) << segmentBits, end: min(uint64(i+1)<<segmentBits, v.head.size)}
		for next < len(v.checkpoints) && v.checkpoints[next].Size <= s.first {
			next++ // the empty tree's, and what the segment before has
		}
		for next < len(v.checkpoints) && v.checkpoints[next].Size <= s.end {
			s.sizes = append(s.sizes, v.checkpoints[next].Size)
			next++
		}
		v.segments[i] = s
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			// A panic of the database on damaged bytes is a finding.
			s.bad = v.guard.run(func() error { return s.verify(ctx) })
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (v *verification) progressed(n uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += n
	if v.progress != nil {
		v.progress(v.done, v.head.size)
	}
}

// join puts the segments together: what one begins with must follow what the
// one before ended with, and the tree over all must be the one that every
// checkpoint and the head speak of.
func (v *verification) join() error {
	var last proof.Hash
	var lastSeq uint64
	signed := v.checkpoints
	if len(signed) > 0 && signed[0].Size == 0 {
		if signed[0].Root != proof.EmptyRoot {
			return tampered(0, "the checkpoint of no records has a wrong root")
		}
		signed = signed[1:]
	}
	var tileBad error
	emit := func(level int, n uint64, tile []byte) {
		stored, err := fullTile(v.r, level, n)
		if err == nil && !bytes.Equal(stored, tile) {
			err = tampered(0, "tile %d of level %d is not that of its records", n, level)
		}
		tileBad = firstError(tileBad, err)
	}
	confirmedSeq := uint64(0) // sequence of the last record under a checkpoint that held
	for _, s := range v.segments {
		if s.bad != nil && !s.begun {
			return at(lastSeq+1, s.bad)
		}
		if s.opening.Prev != last || !follows(lastSeq, &s.opening) {
			return tampered(lastSeq+1, "record %d does not follow the one before it", s.first)
		}
		for _, snap := range s.snapshots {
			root := s.rootAt(&v.tree, snap)
			if len(signed) == 0 || signed[0].Size != snap.size {
				break
			}
			if root != signed[0].Root {
				return v.narrow(snap.seq, tampered(confirmedSeq+1, "the first %d records lead to the root %v, and %v was signed: a record between sequences %d and %d was changed and chained anew",
					snap.size, root, signed[0].Root, confirmedSeq+1, snap.seq))
			}
			confirmedSeq = snap.seq
			signed = signed[1:]
		}
		if s.bad != nil {
			return at(s.lastSeq+1, s.bad)
		}
		s.joinTree(&v.tree, emit)
		if tileBad != nil {
			return tileBad
		}
		last, lastSeq = s.last, s.lastSeq
	}
	if v.tree.size != v.head.size || v.tree.root() != v.head.frontier.root(v.head.size) || last != v.head.last || lastSeq != v.head.streamSeq {
		return tampered(lastSeq, "the head is not that of the %d records", v.head.size)
	}
	return v.checkKeys()
}

// narrow prefers a finding that names one record, at or before last, to one
// that names a range up to it.
func (v *verification) narrow(last uint64, wide error) error {
	var halt *HaltError
	if err := v.checkKeys(); errors.As(err, &halt) && halt.Seq <= last {
		return err
	}
	return wide
}

// checkKeys reports the first record whose key is gone without a later record
// that says so.
func (v *verification) checkKeys() (err error) {
	redacted := map[[16]byte]uint64{}
	for _, s := range v.segments {
		for id, at := range s.redactions {
			redacted[id] = at
		}
	}
	for _, s := range v.segments {
		for id, m := range s.missing {
			if at, ok := redacted[id]; !ok || at < m.last {
				err = lowest(err, tampered(m.seq, "the key of record %d is missing, and no record says that it was erased; is the file %s whole?", m.first, subjectsFile))
			}
		}
	}
	return err
}

// noMore reports rows behind the end.
func (v *verification) noMore() error {
	behind := [][2][]byte{
		{numberKey(keyLeaves, v.head.size), {keyLeaves + 1}},
		{numberKey(keyContents, v.head.size), {keyContents + 1}},
		{numberKey(keySegment, v.head.size>>segmentBits), {keySegment + 1}},
		{numberKey(keyByAgent, (v.head.size+segmentSize-1)&^(segmentSize-1))[:7], {keyByAgent + 1}},
		{numberKey(keyByTrace, (v.head.size+segmentSize-1)&^(segmentSize-1))[:7], {keyByTrace + 1}},
	}
	for l := 0; l < 256; l++ {
		full := uint64(0)
		if l < levels {
			full = v.head.size >> (l*tileBits + tileBits)
		}
		behind = append(behind, [2][]byte{tileKey(l, full), append(tileKey(l, ^uint64(0)), 0)})
	}
	// Letters that no row begins with.
	last := byte(0)
	for _, letter := range []byte{keyTile, keyByAgent, keyCheckpoint, keyHandover, keyLeaves, keyMeta, keyContents, keySegment, keyByTrace} {
		behind = append(behind, [2][]byte{{last}, {letter}})
		last = letter + 1
	}
	behind = append(behind, [2][]byte{{last}, nil}, [2][]byte{{keyMeta}, headKey},
		[2][]byte{append(bytes.Clone(headKey), 0), prunedKey}, [2][]byte{append(bytes.Clone(prunedKey), 0), {keyMeta + 1}},
		[2][]byte{{keyContents}, numberKey(keyContents, v.pruned.records)})
	it, err := v.r.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	defer it.Close()
	for _, b := range behind {
		if it.SeekGE(b[0]) && (b[1] == nil || bytes.Compare(it.Key(), b[1]) < 0) {
			return tampered(v.head.streamSeq+1, "the database holds the row %x, which no record accounts for", it.Key())
		}
	}
	return it.Error()
}
