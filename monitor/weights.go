package monitor

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Weights of the evidences, in 1/65536 per bit. None is negative but Base and
// that of the credit.
type Weights struct {
	Base fixed
	Of   [evidences]fixed
}

// Reference holds the weights of a monotone logistic fit to recorded runs, see
// package eval: of 2,600 runs of one benchmark and 650 of another, with jobs
// that recur and jobs that are new, with tight capabilities and without, each
// injection and each task weighing the same.
var Reference = Weights{
	Base: w(-3.58),
	Of: [evidences]fixed{
		evNewTool: w(.38), evTool: w(.05), evSimilar: w(.05), evPair: w(.05), evTogether: w(.05), evRepeat: w(.18),
		evSlot: w(.33), evUnknown: w(.20), evTainted: w(.62), evRecipient: w(.98), evUnused: w(.90), evDisplaced: w(.28),
		evDomain: w(.96), evFresh: w(.10), evOrigin: w(.10), evIntent: w(.12), evOutside: w(.94), evBeyond: w(1.16), evCredit: w(-.72),
	},
}

// w is a weight as a constant: nothing is rounded at run time.
func w(x float64) fixed { return fixed(x * (1 << 16)) }

// version names the method and the weights.
func (w Weights) version() string {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(w.Base))
	for _, x := range w.Of {
		b = binary.BigEndian.AppendUint64(b, uint64(x))
	}
	sum := sha256.Sum256(b)
	return "linear-2." + hex.EncodeToString(sum[:4])
}
