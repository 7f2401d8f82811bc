package monitor

import (
	"math/big"
	"math/bits"
	"time"
)

// Numbers are fixed point with 16 fractional bits: floating point is not the
// same on every machine (fused multiply-add), and a verdict must be.
type fixed = int64

const one fixed = 1 << 16

// log2Steps is how many entries of the table divide [1, 2).
const log2Steps = 1 << 10

// log2Table[i] is log2(1 + i/log2Steps) with 32 fractional bits.
var log2Table = func() (t [log2Steps + 1]uint64) {
	for i := range log2Steps {
		t[i] = log2Fraction(1<<63 + uint64(i)<<(63-10))
	}
	t[log2Steps] = 1 << 32
	return t
}()

// log2Fraction is log2(m/2^63), 32 fractional bits, for m of 2^63 and more: one
// bit of the logarithm for each squaring.
func log2Fraction(m uint64) (y uint64) {
	for range 32 {
		hi, lo := bits.Mul64(m, m)
		y <<= 1
		if hi>>63 == 1 {
			y |= 1
			m = hi
		} else {
			m = hi<<1 | lo>>63
		}
	}
	return y
}

// log2 is the binary logarithm of x, which must not be 0, to within 2^-16.
func log2(x uint64) fixed {
	n := bits.Len64(x) - 1
	m := x << (63 - n)
	i, frac := m>>53&(log2Steps-1), m>>37&0xffff
	low := log2Table[i]
	y := low + (log2Table[i+1]-low)*frac>>16
	return fixed(n)*one + fixed(y>>16)
}

// surprise is −log2(num/den) in bits, within 0 and most.
func surprise(num, den uint64, most fixed) fixed {
	return min(max(log2(den)-log2(num), 0), most)
}

// roots[i] is 2^(−2^−(i+1)) with 62 fractional bits.
var roots = func() (t [16]uint64) {
	x := new(big.Int).Lsh(big.NewInt(1), 61) // one half
	for i := range t {
		x.Lsh(x, 62).Sqrt(x)
		t[i] = x.Uint64()
	}
	return t
}()

// exp2neg is 2^−x with 32 fractional bits, for x of 0 and more.
func exp2neg(x fixed) uint64 {
	whole := x >> 16
	if whole >= 32 {
		return 0
	}
	y := uint64(1) << 62
	for i := range roots {
		if x>>(15-i)&1 == 1 {
			hi, lo := bits.Mul64(y, roots[i])
			y = hi<<2 | lo>>62
		}
	}
	return y >> 30 >> whole
}

// HalfLife is the time in which risk, and the weight of refusals, halve.
const HalfLife = 10 * time.Minute

// decay is x·2^(−dt/HalfLife) for x of 0 and more. Clocks of two appenders can
// differ: time that runs backwards counts as none.
func decay(x fixed, dt time.Duration) fixed {
	if dt <= 0 || x == 0 {
		return x
	}
	if dt >= 40*HalfLife {
		return 0
	}
	halves := fixed(uint64(dt) * uint64(one) / uint64(HalfLife))
	hi, lo := bits.Mul64(uint64(x), exp2neg(halves))
	return fixed(hi<<32 | lo>>32)
}

// mul is the product of two fixed-point numbers, rounded towards −∞.
func mul(a, b fixed) fixed { return a * b >> 16 }

// clampFixed bounds a score, so that no sum can overflow.
func clampFixed(x, low, high fixed) fixed { return min(max(x, low), high) }
