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
	Base: w(-7.91),
	Of: [evidences]fixed{
		evNewTool: w(.05), evTool: w(.05), evSimilar: w(.05), evPair: w(.06), evTogether: w(.17), evRepeat: w(.21), evShape: w(.4),
		evSlot: w(.09), evUnknown: w(.7), evTainted: w(1.61), evRecipient: w(1.84), evUnused: w(2), evDisplaced: w(1.56),
		evDomain: w(.73), evFresh: w(.29), evOrigin: w(.17), evIntent: w(1.03), evOutside: w(.74), evRare: w(.17), evBeyond: w(1.11),
		evCredit: w(-.77),
	},
}

// w is a weight as a constant: nothing is rounded at run time.
func w(x float64) fixed { return fixed(x * (1 << 16)) }

// method names how evidences are taken and summed: weights are fitted to one.
const method = "linear-6"

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
