package witness

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
)

// Bounds of a request and of an answer.
const (
	maxBody  = 64 << 10 // bytes
	maxProof = 63       // hashes: no consistency proof of 2^63 leaves is longer
)

// ErrRequest is matched where a request is not in the protocol's form.
var ErrRequest = errors.New("malformed add-checkpoint request")

// A Request asks a witness to cosign a checkpoint.
type Request struct {
	Old        uint64       // size of what the witness cosigned last; 0: nothing
	Proof      []proof.Hash // that the tree of Old is a prefix of the checkpoint's
	Checkpoint []byte       // signed by the log
}

// Marshal gives the request's body.
func (r Request) Marshal() []byte {
	b := fmt.Appendf(nil, "old %d\n", r.Old)
	for _, h := range r.Proof {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	b = append(b, '\n')
	return append(b, r.Checkpoint...)
}

// ParseRequest reads a body: a line "old SIZE", the proof's hashes in base64,
// one a line, an empty line, and the checkpoint, which it does not read. The
// form is one, to the byte. Errors match ErrRequest.
func ParseRequest(body []byte) (r Request, err error) {
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	old, isOld := strings.CutPrefix(lines[0], "old ")
	switch {
	case len(body) > maxBody:
		return r, fmt.Errorf("%w: more than %d bytes", ErrRequest, maxBody)
	case !ok || !isOld:
		return r, fmt.Errorf("%w: it does not begin with \"old SIZE\", hashes and an empty line", ErrRequest)
	case len(lines)-1 > maxProof:
		return r, fmt.Errorf("%w: a proof of %d hashes, and %d are the most", ErrRequest, len(lines)-1, maxProof)
	}
	r.Checkpoint = checkpoint
	if r.Old, err = strconv.ParseUint(old, 10, 63); err != nil {
		return r, fmt.Errorf("%w: the old size %.40q is no number", ErrRequest, old)
	}
	for i, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return r, fmt.Errorf("%w: hash %d of the proof is not the base64 of 32 bytes", ErrRequest, i)
		}
		r.Proof = append(r.Proof, h)
	}
	// What could be written in two ways is refused.
	if !bytes.Equal(r.Marshal(), body) {
		return r, fmt.Errorf("%w: a number or a hash is not in canonical form", ErrRequest)
	}
	return r, nil
}
