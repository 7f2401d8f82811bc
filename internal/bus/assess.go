package bus

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/nats-io/nats.go"

	"github.com/writ-sh/writ/schemas"
)

// The forms of CBOR that intake and monitor speak: what could be read in two
// ways is refused.
var (
	cborWrite = must(cbor.EncOptions{IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.EncMode())
	cborRead  = must(cbor.DecOptions{
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, DupMapKey: cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options above are constant
	}
	return v
}

// AskVerdicts asks the monitor about drafts; there is one ruling for each.
func AskVerdicts(ctx context.Context, nc *nats.Conn, req *schemas.AssessRequest) ([]schemas.Ruling, error) {
	data, err := cborWrite.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("ask the monitor: %w", err)
	}
	m, err := nc.RequestWithContext(ctx, schemas.Assess, data)
	if err != nil {
		return nil, fmt.Errorf("ask the monitor: %w", err)
	}
	if r := ReadRefusal(m); r != nil {
		return nil, fmt.Errorf("the monitor refused: %w", r)
	}
	var rep schemas.AssessReply
	if err := cborRead.Unmarshal(m.Data, &rep); err != nil {
		return nil, fmt.Errorf("answer of the monitor: %w", err)
	}
	if len(rep.Rulings) != len(req.Drafts) {
		return nil, fmt.Errorf("answer of the monitor: %d rulings for %d drafts", len(rep.Rulings), len(req.Drafts))
	}
	for i := range rep.Rulings {
		if err := rep.Rulings[i].Check(); err != nil {
			return nil, fmt.Errorf("answer of the monitor: %w", err)
		}
	}
	return rep.Rulings, nil
}

// ReadAssess reads what AskVerdicts sent: the request, and its drafts as
// events.
func ReadAssess(data []byte) (req schemas.AssessRequest, drafts []*schemas.Event, err error) {
	if err := cborRead.Unmarshal(data, &req); err != nil {
		return req, nil, err
	}
	drafts = make([]*schemas.Event, len(req.Drafts))
	for i := range req.Drafts {
		if drafts[i], err = req.Drafts[i].Event(); err != nil {
			return req, nil, fmt.Errorf("draft %d: %w", i, err)
		}
	}
	return req, drafts, nil
}

// WriteAssess is the answer to it.
func WriteAssess(rulings []schemas.Ruling) ([]byte, error) {
	return cborWrite.Marshal(&schemas.AssessReply{Rulings: rulings})
}
