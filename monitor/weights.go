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
// injection and each task weighing the same. They are the means of nine fits,
// each without a third of the tasks and a third of the injections, rounded to
// hundredths: writ monitor fit --cross-fit 3 makes them. Evidences that these runs
// hardly needed keep a small weight, for other attacks do.
var Reference = Weights{
	Base: w(-6.00),
	Of: [evidences]fixed{
		evNewTool: w(.08), evTool: w(.05), evSimilar: w(.05), evPair: w(.09), evTogether: w(.1), evRepeat: w(.19), evShape: w(.36),
		evSlot: w(.3), evUnknown: w(.62), evTainted: w(1.13), evRecipient: w(1.31), evUnused: w(1.42), evDisplaced: w(1.27),
		evDomain: w(.76), evFresh: w(.36), evOrigin: w(.1), evIntent: w(.38), evOutside: w(.44), evRare: w(.12), evBeyond: w(1.24),
		evCredit: w(-.69),
	},
}

// w is a weight as a constant: nothing is rounded at run time.
func w(x float64) fixed { return fixed(x * (1 << 16)) }

// method names how evidences are taken and summed: weights are fitted to one.
const method = "linear-5"

// Version names the method and the weights, as verdicts do.
func (w Weights) Version() string {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(w.Base))
	for _, x := range w.Of {
		b = binary.BigEndian.AppendUint64(b, uint64(x))
	}
	sum := sha256.Sum256(b)
	return method + "." + hex.EncodeToString(sum[:4])
}
