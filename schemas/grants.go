package schemas

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// ReadGrant decodes the body of token.issued, as Unmarshal does. The parts of a
// control plane in one process read each grant a moment apart: the newest are
// remembered by their bytes, all of them, and given out without decoding again.
// What is returned is the caller's own.
func ReadGrant(body []byte) (Grant, error) {
	slot := slotOf(body)
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

// WriteGrant encodes a grant as the body of token.issued. What would not be read
// as it was written is refused, or it would halt every reader of the log; so
// ReadGrant need not decode it in this process.
func WriteGrant(g Grant) ([]byte, error) {
	g = g.clone()
	for _, text := range slices.Concat(g.texts(), g.Scope, g.ForbiddenTools, g.Act, g.Notes) {
		if !utf8.ValidString(text) {
			return nil, fmt.Errorf("write the grant of %s: %q is not UTF-8", clip(g.Agent), clip(text))
		}
	}
	for _, list := range []*[]string{&g.ForbiddenTools, &g.Act, &g.Notes} {
		if len(*list) == 0 {
			*list = nil // none, and left out
		}
	}
	for _, at := range []*time.Time{&g.NotBefore, &g.Expires} {
		*at = at.UTC() // without the clock's own reading, too
	}
	body, err := json.Marshal(&g)
	if err != nil {
		return nil, fmt.Errorf("write the grant of %s: %w", clip(g.Agent), err)
	}
	slotOf(body).Store(&grantRead{string(body), g})
	return body, nil
}

func (g *Grant) texts() []string {
	return []string{g.JTI, g.Agent, g.Operation, g.Task, g.Job, g.TraceID, g.PublicKey, g.Certificate,
		g.Parent, g.ParentAgent, g.ParentOperation, g.IssuedBy, g.Refreshes, g.Token}
}

func slotOf(body []byte) *atomic.Pointer[grantRead] {
	return &grantsRead[maphash.Bytes(grantsSeed, body)%uint64(len(grantsRead))]
}

// A grantRead is a body with what it is decoded to; neither half is changed any more. The
// body is a copy: who handed it over may use its bytes for something else.
type grantRead struct {
	body  string
	grant Grant
}

var (
	grantsSeed = maphash.MakeSeed()
	grantsRead [4096]atomic.Pointer[grantRead] // what falls out is decoded again
)

func (g *Grant) clone() Grant {
	c := *g
	for _, list := range []*[]string{&c.Scope, &c.ForbiddenTools, &c.Act, &c.Notes} {
		*list = slices.Clone(*list)
	}
	return c
}
