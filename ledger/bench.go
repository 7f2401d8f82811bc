package ledger

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A BenchResult is what the ledger does on this machine, beside the raw limit,
// measured in the same run in turns.
type BenchResult struct {
	Records     int     `json:"records"`              // in each round
	Append      float64 `json:"append_per_s"`         // events with bodies of 256 bytes, durable and handed over
	Pebble      float64 `json:"pebble_per_s"`         // rows of the same bytes, in the same batches, durable
	Ratio       float64 `json:"ratio"`                // of the two
	Single      float64 `json:"single_append_p50_us"` // one event, from the channel to the sink
	Fdatasync   float64 `json:"fdatasync_p50_us"`     // one page appended to a file, and synced
	VerifyRate  float64 `json:"verify_per_s"`         // leaves, per core: chain, tree, signatures, indexes
	VerifyLimit float64 `json:"verify_limit_per_s"`   // leaves read and hashed to a tree, and nothing else, per core
	VerifyFull  float64 `json:"verify_full_per_s"`    // with contents, per core
	Reopen      float64 `json:"reopen_ms"`            // recovery of a ledger of this size
}

const (
	benchRounds  = 5
	benchSingles = 300
	benchBody    = 256
)

// Bench measures with n events a round in a folder of its own inside dir,
// which it removes. Figures are medians over the rounds.
func Bench(ctx context.Context, dir string, n int) (r BenchResult, err error) {
	if n < 1 {
		return r, errors.New("bench: at least one event is needed")
	}
	root, err := os.MkdirTemp(dir, "writ-bench-")
	if err != nil {
		return r, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	entries := benchEntries(n)
	var rounds []BenchResult
	for i := range benchRounds {
		one, err := benchRound(ctx, filepath.Join(root, fmt.Sprint(i)), entries)
		if err != nil {
			return r, fmt.Errorf("bench: %w", err)
		}
		rounds = append(rounds, one)
	}
	median := func(of func(BenchResult) float64) float64 {
		v := make([]float64, len(rounds))
		for i := range rounds {
			v[i] = of(rounds[i])
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return BenchResult{
		Records:     n,
		Append:      median(func(b BenchResult) float64 { return b.Append }),
		Pebble:      median(func(b BenchResult) float64 { return b.Pebble }),
		Ratio:       median(func(b BenchResult) float64 { return b.Append / b.Pebble }),
		Single:      median(func(b BenchResult) float64 { return b.Single }),
		Fdatasync:   median(func(b BenchResult) float64 { return b.Fdatasync }),
		VerifyRate:  median(func(b BenchResult) float64 { return b.VerifyRate }),
		VerifyLimit: median(func(b BenchResult) float64 { return b.VerifyLimit }),
		VerifyFull:  median(func(b BenchResult) float64 { return b.VerifyFull }),
		Reopen:      median(func(b BenchResult) float64 { return b.Reopen }),
	}, nil
}

func benchRound(ctx context.Context, dir string, entries []Entry) (r BenchResult, err error) {
	o, err := benchOptions(dir)
	if err != nil {
		return r, err
	}
	steps := []func() error{
		func() (err error) { r.Fdatasync, err = benchFdatasync(dir); return err },
		func() (err error) { r.Pebble, err = benchPebble(filepath.Join(dir, "pebble"), entries); return err },
		func() (err error) { r.Append, r.Single, err = benchAppend(ctx, o, entries); return err },
		func() (err error) { r.Reopen, err = benchReopen(o); return err },
		func() (err error) { r.VerifyLimit, err = benchLimit(o); return err },
		func() (err error) { r.VerifyRate, err = benchVerify(ctx, o, false); return err },
		func() (err error) { r.VerifyFull, err = benchVerify(ctx, o, true); return err },
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	for _, step := range steps {
		runtime.GC() // what the step before left is not this one's cost
		if err := step(); err != nil {
			return r, err
		}
	}
	return r, nil
}

func benchOptions(dir string) (Options, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Options{}, err
	}
	signer, verifier, err := proof.Keys("bench.example", key)
	return Options{Dir: filepath.Join(dir, "ledger"), AnchorDir: filepath.Join(dir, "anchor"),
		Signer: signer, Verifier: verifier, StreamID: 1}, err
}

// benchEntries makes events like those of intake: agents take turns, four
// events to a trace.
func benchEntries(n int) []Entry {
	entries := make([]Entry, n)
	at := time.Unix(1_700_000_000, 0).UTC()
	for i := range entries {
		body := make([]byte, benchBody)
		for j := 0; j < len(body); j += sha256.Size {
			sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i*benchBody+j)))
			copy(body[j:], sum[:])
		}
		e := schemas.Event{
			Kind: schemas.MessageAccepted, Agent: fmt.Sprintf("agent-%d", i%64), ID: fmt.Sprintf("%032x", i+1),
			Source: "intake/1", Time: at.Add(time.Duration(i) * time.Microsecond),
			Trace:     schemas.Trace{ID: fmt.Sprintf("%032x", i/4+1), Span: fmt.Sprintf("%016x", i+1)},
			Operation: "report-2026-q1", Action: schemas.Action{Verb: schemas.VerbSend, Resource: "writer-2"}, To: "writer-2",
			JTI: fmt.Sprintf("%032x", i%64+1), Request: fmt.Sprintf("%032x", i+1), Expires: at.Add(24 * time.Hour),
			Digest: schemas.Sum(body), Data: body,
		}
		subject, h, data, err := e.Encode()
		if err != nil {
			panic(err) // the event above is well-formed
		}
		entries[i] = Entry{Seq: uint64(i + 1), Subject: subject, Header: h, Data: data}
	}
	return entries
}

// A benchSink tells when a sequence was handed over.
type benchSink struct{ seen chan uint64 }

func (s benchSink) Durable(batch []*schemas.Event) error {
	s.seen <- batch[len(batch)-1].Seq
	return nil
}

func benchAppend(ctx context.Context, o Options, entries []Entry) (perSecond, single float64, err error) {
	l, err := Open(o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	singles := min(benchSingles, len(entries)/2)
	in, sink := make(chan Entry, 2048), benchSink{make(chan uint64, 64)}
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, in, sink) }()
	wait := func(seq uint64) error {
		for {
			select {
			case at := <-sink.seen:
				if at >= seq {
					return nil
				}
			case err := <-done:
				return fmt.Errorf("the ledger ended: %w", err)
			}
		}
	}
	bulk := entries[:len(entries)-singles]
	start := time.Now()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for _, e := range bulk {
			select {
			case in <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := wait(bulk[len(bulk)-1].Seq); err != nil {
		return 0, 0, err
	}
	perSecond = float64(len(bulk)) / time.Since(start).Seconds()
	<-fed
	var times []float64
	for _, e := range entries[len(bulk):] {
		start := time.Now()
		in <- e
		if err := wait(e.Seq); err != nil {
			return 0, 0, err
		}
		times = append(times, micros(start))
	}
	close(in)
	return perSecond, middle(times), <-done
}

// benchPebble writes rows of the bytes that an event has, under the ledger's
// options, with the ledger's batches.
func benchPebble(dir string, entries []Entry) (perSecond float64, err error) {
	rows := make([][]byte, len(entries))
	for i, e := range entries {
		b, err := proof.AppendHeaders(nil, e.Subject, e.Header)
		if err != nil {
			return 0, err
		}
		rows[i] = append(b, e.Data...)
	}
	g := newGuard(slog.New(slog.DiscardHandler))
	db, err := pebble.Open(dir, pebbleOptions(vfs.Default, g))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	start := time.Now()
	var pending []*pebble.Batch
	for i := 0; i < len(rows); i += batchSize {
		b := db.NewBatch()
		for j := i; j < min(i+batchSize, len(rows)); j++ {
			if err := b.Set(numberKey('r', uint64(j)), rows[j], nil); err != nil {
				return 0, err
			}
		}
		if err := db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
			return 0, err
		}
		if pending = append(pending, b); len(pending) == inFlight {
			if err := synced(pending[0]); err != nil {
				return 0, err
			}
			pending = pending[1:]
		}
	}
	for _, b := range pending {
		if err := synced(b); err != nil {
			return 0, err
		}
	}
	return float64(len(rows)) / time.Since(start).Seconds(), nil
}

func benchFdatasync(dir string) (p50 float64, err error) {
	f, err := vfs.Default.Create(filepath.Join(dir, "sync"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Preallocate(0, 4<<20); err != nil {
		return 0, err
	}
	page := make([]byte, 4096)
	var times []float64
	for range benchSingles {
		start := time.Now()
		if _, err := f.Write(page); err != nil {
			return 0, err
		}
		if err := f.SyncData(); err != nil {
			return 0, err
		}
		times = append(times, micros(start))
	}
	return middle(times), nil
}

func benchReopen(o Options) (millis float64, err error) {
	start := time.Now()
	l, err := Open(o)
	if err != nil {
		return 0, err
	}
	return micros(start) / 1000, l.Close()
}

// benchLimit reads the leaves and hashes them to a tree, on one core.
func benchLimit(o Options) (perSecond float64, err error) {
	g := newGuard(slog.New(slog.DiscardHandler))
	db, err := pebble.Open(o.Dir, pebbleOptions(vfs.Default, g))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	c, err := openCursor(db, keyLeaves)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	start := time.Now()
	n := 0
	var all tree
	for ok := c.it.First(); ok; ok = c.it.Next() {
		b, err := c.it.ValueAndErr()
		if err != nil {
			return 0, err
		}
		for ; len(b) >= proof.RecordSize; b = b[proof.RecordSize:] {
			all.add(0, proof.LeafHash(b[:proof.RecordSize]), func(int, uint64, []byte) {})
			n++
		}
	}
	if all.root() == proof.EmptyRoot {
		return 0, errors.New("the ledger holds no leaves")
	}
	return float64(n) / time.Since(start).Seconds(), c.it.Error()
}

// benchVerify verifies on one core, as benchLimit reads on one.
func benchVerify(ctx context.Context, o Options, contents bool) (float64, error) {
	o.Signer = nil
	rep, err := verifyStored(ctx, o, nil, contents, 1)
	if err != nil {
		return 0, err
	}
	if !rep.OK {
		return 0, fmt.Errorf("what was just written does not verify: %s", rep.Error)
	}
	return rep.RecordsPerSec, nil
}

func micros(start time.Time) float64 { return float64(time.Since(start).Nanoseconds()) / 1000 }

func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
