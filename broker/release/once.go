package release

import (
	"time"

	"github.com/writ-sh/writ/schemas"
)

// Bounds of what is remembered of idempotency keys, per agent.
const (
	keyWindow = 24 * time.Hour
	keysMax   = 10_000
)

type seen struct {
	keys  map[string]firstUse
	order []string
}

type firstUse struct {
	digest schemas.Digest
	seq    uint64
	time   time.Time
}

// repeated finds a second use of an idempotency key.
func (c *Core) repeated(e *schemas.Event, it *item) *schemas.Refusal {
	if e.MsgID == "" {
		return nil
	}
	s := c.ids[e.Agent]
	if s == nil {
		s = &seen{keys: map[string]firstUse{}}
		c.ids[e.Agent] = s
	}
	first, known := s.keys[e.MsgID]
	if known && e.Time.Sub(first.time) < keyWindow {
		if first.digest != e.Digest {
			return schemas.Refuse(schemas.CodeConflict, "%s %q was used for another message, %d", schemas.HeaderMsgID, e.MsgID, first.seq)
		}
		it.first = first.seq
		return schemas.Refuse(schemas.CodeConflict, "a repetition of %d; it is carried out once", first.seq)
	}
	if !known {
		s.order = append(s.order, e.MsgID)
	}
	s.keys[e.MsgID] = firstUse{e.Digest, e.Seq, e.Time}
	if len(s.order) > keysMax {
		delete(s.keys, s.order[0])
		s.order = s.order[1:]
	}
	return nil
}
