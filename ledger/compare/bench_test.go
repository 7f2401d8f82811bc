package compare

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

const (
	rounds  = 5
	bulk    = 60_000
	singles = 100
)

// figures are of one round: appends a second, and microseconds of one append.
type figures struct{ perSecond, single float64 }

func benchLedger(b *testing.B, dir string) (f figures) {
	b.Helper()
	l := open(b, dir)
	all := entries(b, bulk+singles)
	in, s, stop := running(b, l)
	start := time.Now()
	go func() {
		for _, e := range all[:bulk] {
			in <- e
		}
	}()
	s.wait(bulk)
	f.perSecond = bulk / time.Since(start).Seconds()
	var times []float64
	for _, e := range all[bulk:] {
		start := time.Now()
		in <- e
		s.wait(e.Seq)
		times = append(times, float64(time.Since(start).Microseconds()))
	}
	stop()
	f.single = median(times)
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	return f
}

// benchTessera appends the same bodies to Tessera's POSIX log. An append is
// durable when its future has resolved.
func benchTessera(b *testing.B, dir string) (f figures) {
	b.Helper()
	signer, _ := keys(b)
	run := func(dir string, batch uint, age time.Duration, use func(*tessera.Appender)) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		driver, err := posix.New(ctx, posix.Config{Path: dir})
		if err != nil {
			b.Fatal(err)
		}
		a, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
			WithBatching(batch, age).WithCheckpointInterval(time.Second).WithPushback(2*bulk))
		if err != nil {
			b.Fatal(err)
		}
		use(a)
		if err := shutdown(ctx); err != nil {
			b.Fatal(err)
		}
	}
	add := func(a *tessera.Appender, i int) tessera.IndexFuture {
		return a.Add(context.Background(), tessera.NewEntry(body(i)))
	}
	resolve := func(future tessera.IndexFuture) {
		if _, err := future(); err != nil {
			b.Fatal(err)
		}
	}
	run(filepath.Join(dir, "bulk"), 512, 2*time.Millisecond, func(a *tessera.Appender) {
		futures := make([]tessera.IndexFuture, bulk)
		start := time.Now()
		for i := range futures {
			futures[i] = add(a, i)
		}
		for _, future := range futures {
			resolve(future)
		}
		f.perSecond = bulk / time.Since(start).Seconds()
	})
	run(filepath.Join(dir, "single"), 1, time.Millisecond, func(a *tessera.Appender) {
		var times []float64
		for i := range singles {
			start := time.Now()
			resolve(add(a, i))
			times = append(times, float64(time.Since(start).Microseconds()))
		}
		f.single = median(times)
	})
	return f
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkAgainstTessera appends bodies of 256 bytes to both, in turns, and
// reports medians and ratios over the rounds.
func BenchmarkAgainstTessera(b *testing.B) {
	for b.Loop() {
		var ours, theirs, faster, single []float64
		for range rounds {
			dir := b.TempDir()
			l := benchLedger(b, filepath.Join(dir, "writ"))
			t := benchTessera(b, filepath.Join(dir, "tessera"))
			ours, theirs = append(ours, l.perSecond), append(theirs, t.perSecond)
			faster, single = append(faster, l.perSecond/t.perSecond), append(single, t.single/l.single)
		}
		b.ReportMetric(median(ours), "writ/s")
		b.ReportMetric(median(theirs), "tessera/s")
		b.ReportMetric(median(faster), "times-bulk")
		b.ReportMetric(median(single), "times-single")
	}
}
