package schemas

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
)

// ReadGrant decodes the body of token.issued, as Unmarshal does. The parts of a
// control plane in one process read each grant a moment apart: the newest are
// remembered by their bytes, all of them, and given out without decoding again.
// What is returned is the caller's own.
func ReadGrant(body []byte) (Grant, error) {
	slot := &grantsRead[maphash.Bytes(grantsSeed, body)%uint64(len(grantsRead))]
	if known := slot.Load(); known != nil && known.body == string(body) {
		return known.grant.clone(), nil
	}
	var g Grant
	if err := Unmarshal(body, &g); err != nil {
		return Grant{}, err // not remembered: it is refused each time
	}
	slot.Store(&grantRead{string(body), g.clone()})
	return g, nil
}

// A grantRead is a body that was decoded; neither half is changed any more. The
// body is a copy: who handed it over may use its bytes for something else.
type grantRead struct {
	body  string
	grant Grant
}

var (
	grantsSeed = maphash.MakeSeed()
	grantsRead [1024]atomic.Pointer[grantRead] // some MB at most; what falls out is decoded again
)

func (g *Grant) clone() Grant {
	c := *g
	for _, list := range []*[]string{&c.Scope, &c.ForbiddenTools, &c.Act, &c.Notes} {
		*list = slices.Clone(*list)
	}
	return c
}
