package monitor

import (
	"math"
	"testing"
	"time"
)

func TestLogarithmIsWithinOneStepOfTheTrueOne(t *testing.T) {
	for x := uint64(1); x < 1<<62; x += x/7 + 1 {
		want := math.Log2(float64(x)) * 65536
		if got := float64(log2(x)); math.Abs(got-want) > 1.5 {
			t.Fatalf("log2(%d) = %v, want %v", x, got, want)
		}
	}
	for i := range 62 {
		if got := log2(1 << i); got != fixed(i)*one {
			t.Errorf("log2(2^%d) = %d", i, got)
		}
	}
}

func TestPowerOfTwoIsWithinATrillionth(t *testing.T) {
	for x := fixed(0); x < 40*one; x += 1237 {
		want := math.Exp2(-float64(x)/65536) * (1 << 32)
		if got := float64(exp2neg(x)); math.Abs(got-want) > 2 {
			t.Fatalf("2^-%v = %v, want %v", float64(x)/65536, got, want)
		}
	}
}

func TestDecayHalvesInTenMinutesAndNeverGrows(t *testing.T) {
	for _, c := range []struct {
		dt   time.Duration
		want fixed
	}{
		{-time.Hour, 100 * one}, {0, 100 * one}, {10 * time.Minute, 50 * one}, {20 * time.Minute, 25 * one},
		{time.Hour, 100 * one / 64}, {1000 * time.Hour, 0}, {math.MaxInt64, 0},
	} {
		if got := decay(100*one, c.dt); got != c.want {
			t.Errorf("after %v: %d, want %d", c.dt, got, c.want)
		}
	}
	last := decay(100*one, 0)
	for dt := time.Duration(0); dt < 2*time.Hour; dt += 777 * time.Millisecond {
		if now := decay(100*one, dt); now > last {
			t.Fatalf("at %v it grew from %d to %d", dt, last, now)
		} else {
			last = now
		}
	}
}

// The constants that a p-value goes through are held against floating point
// here, where it may differ in the last place.
func TestRiskIs70WhereOneInFiftyComesAnd90WhereOneIn153(t *testing.T) {
	for _, c := range []struct {
		p    float64
		want int
	}{{1, 0}, {0.5, 12}, {0.0201, 69}, {0.0199, 70}, {0.0066, 89}, {0.0065, 90}, {1e-9, 100}} {
		if got := riskOf(fixed(-math.Log2(c.p) * 65536)); got != c.want {
			t.Errorf("p = %v: risk %d, want %d", c.p, got, c.want)
		}
	}
	for units, want := range map[fixed]int{0: 0, 1: 20, 2: 37, 3: 50, 4: 60, 6: 75, 9: 87, 10: 90, 100: 100} {
		if got := refusalRisk(units * one); got != want {
			t.Errorf("%d units: risk %d, want %d", units, got, want)
		}
	}
}
