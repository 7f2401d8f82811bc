package ledger

import (
	"context"
	"testing"
)

// BenchmarkLedger prints what writ bench ledger measures: each figure beside
// the raw limit of the same run.
func BenchmarkLedger(b *testing.B) {
	for b.Loop() {
		r, err := Bench(context.Background(), b.TempDir(), 150_000)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(r.Append, "append/s")
		b.ReportMetric(r.Pebble, "pebble/s")
		b.ReportMetric(r.Ratio, "ratio")
		b.ReportMetric(r.Single, "single-p50-us")
		b.ReportMetric(r.Fdatasync, "fdatasync-p50-us")
		b.ReportMetric(r.VerifyRate, "leaves/s/core")
		b.ReportMetric(r.VerifyLimit, "leaf-limit/s/core")
		b.ReportMetric(r.VerifyFull, "full/s/core")
		b.ReportMetric(r.Reopen, "reopen-ms")
	}
}

func TestBenchMeasuresEverything(t *testing.T) {
	r, err := Bench(context.Background(), t.TempDir(), 2000)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]float64{"append": r.Append, "pebble": r.Pebble, "ratio": r.Ratio, "single": r.Single,
		"fdatasync": r.Fdatasync, "verify": r.VerifyRate, "limit": r.VerifyLimit, "full": r.VerifyFull, "reopen": r.Reopen} {
		if v <= 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
}
