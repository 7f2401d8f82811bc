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
	Base: w(-5.76),
	Of: [evidences]fixed{
		evNewTool: w(.18), evTool: w(.05), evSimilar: w(.05), evPair: w(.07), evTogether: w(.06), evRepeat: w(.2), evShape: w(.45),
		evSlot: w(.45), evUnknown: w(.48), evTainted: w(.74), evRecipient: w(1.03), evUnused: w(1.67), evDisplaced: w(1.26),
		evDomain: w(.88), evFresh: w(.26), evOrigin: w(.12), evIntent: w(.73), evOutside: w(.7), evRare: w(.28), evBeyond: w(.46),
		evCredit: w(-.61),
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
