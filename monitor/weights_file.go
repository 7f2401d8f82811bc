package monitor

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// Evidences names the evidences in the order of Weights.Of.
func Evidences() []string { return evidenceIDs[:] }

// weightsFile is how weights are written to a file: in points per bit.
type weightsFile struct {
	Version   string             `json:"version"`
	Base      float64            `json:"base"`
	Evidences map[string]float64 `json:"evidences"`
}

// MarshalJSON writes weights in points per bit, with their version.
func (w Weights) MarshalJSON() ([]byte, error) {
	f := weightsFile{Version: w.Version(), Base: points(w.Base), Evidences: map[string]float64{}}
	for ev, id := range evidenceIDs {
		f.Evidences[id] = points(w.Of[ev])
	}
	return json.Marshal(f)
}

func points(x fixed) float64 { return float64(x) / float64(one) }

// maxWeight bounds a weight, in points per bit: a hundred times what is usual.
const maxWeight = 100

// UnmarshalJSON reads weights. Each evidence must be named, none but the credit
// may be negative, and the version, if there is one, must be that of the rest.
func (w *Weights) UnmarshalJSON(b []byte) error {
	var f weightsFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	read := Weights{Base: fixedOf(f.Base)}
	for id, x := range f.Evidences {
		ev := slices.Index(evidenceIDs[:], id)
		switch {
		case ev < 0:
			return fmt.Errorf("there is no evidence %q", id)
		case math.Abs(x) > maxWeight, x < 0 && evidence(ev) != evCredit, x > 0 && evidence(ev) == evCredit:
			return fmt.Errorf("weight %g of %s is out of bounds", x, id)
		}
		read.Of[ev] = fixedOf(x)
	}
	if len(f.Evidences) != int(evidences) {
		return fmt.Errorf("%d evidences have a weight, and %d must", len(f.Evidences), evidences)
	}
	if math.Abs(f.Base) > maxWeight {
		return fmt.Errorf("base %g is out of bounds", f.Base)
	}
	if f.Version != "" && f.Version != read.Version() {
		return fmt.Errorf("these weights have version %s, not %s: the file was changed", read.Version(), f.Version)
	}
	*w = read
	return nil
}

func fixedOf(x float64) fixed { return fixed(math.Round(x * float64(one))) }
