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

// ReadGrant decodes the body of token.issued, as Unmarshal does. What WriteGrant
// wrote in this process a moment ago is known by its bytes, all of them: the parts
// of a control plane in one process read each grant, and need not decode it again.
// What is returned is the caller's own.
func ReadGrant(body []byte) (g Grant, err error) {
	if known := slotOf(body).Load(); known != nil && known.body == string(body) {
		return known.grant.clone(), nil
	}
	err = Unmarshal(body, &g)
	return g, err
}

// WriteGrant encodes a grant as the body of token.issued. What would not be read
// as it was written is refused: it would halt every reader of the log.
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
	slotOf(body).Store(&grantWritten{string(body), g})
	return body, nil
}

func (g *Grant) texts() []string {
	return []string{g.JTI, g.Agent, g.Operation, g.Task, g.Job, g.TraceID, g.PublicKey, g.Certificate,
		g.Parent, g.ParentAgent, g.ParentOperation, g.IssuedBy, g.Refreshes, g.Token}
}

func slotOf(body []byte) *atomic.Pointer[grantWritten] {
	return &grantsWritten[maphash.Bytes(grantsSeed, body)%uint64(len(grantsWritten))]
}

// A grantWritten is a body with what it is decoded to; neither half is changed any
// more. The body is a copy: who gets it may use its bytes for something else.
type grantWritten struct {
	body  string
	grant Grant
}

var (
	grantsSeed    = maphash.MakeSeed()
	grantsWritten [4096]atomic.Pointer[grantWritten] // what falls out is decoded again
)

func (g *Grant) clone() Grant {
	c := *g
	for _, list := range []*[]string{&c.Scope, &c.ForbiddenTools, &c.Act, &c.Notes} {
		*list = slices.Clone(*list)
	}
	return c
}
