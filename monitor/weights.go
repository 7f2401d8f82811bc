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
// each without a third of the tasks and a third of the injections. Evidences
// that these runs hardly needed keep a small weight, for other attacks do.
var Reference = Weights{
	Base: w(-3.9),
	Of: [evidences]fixed{
		evNewTool: w(.37), evTool: w(.05), evSimilar: w(.05), evPair: w(.06), evTogether: w(.05), evRepeat: w(.18),
		evSlot: w(.36), evUnknown: w(.2), evTainted: w(.67), evRecipient: w(1.13), evUnused: w(.91), evDisplaced: w(.54),
		evDomain: w(1), evFresh: w(.11), evOrigin: w(.08), evIntent: w(.12), evOutside: w(.47), evRare: w(.18), evBeyond: w(.85),
		evCredit: w(-1),
	},
}

// w is a weight as a constant: nothing is rounded at run time.
func w(x float64) fixed { return fixed(x * (1 << 16)) }

// method names how evidences are taken and summed: weights are fitted to one.
const method = "linear-3"

// Version names the method and the weights, as verdicts do.
func (w Weights) Version() string { return w.version() }

// version names the method and the weights.
func (w Weights) version() string {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(w.Base))
	for _, x := range w.Of {
		b = binary.BigEndian.AppendUint64(b, uint64(x))
	}
	sum := sha256.Sum256(b)
	return method + "." + hex.EncodeToString(sum[:4])
}
