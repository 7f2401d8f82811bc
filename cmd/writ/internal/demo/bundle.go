package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// A handover is what an auditor gets of the hijacked request: one file, and by
// another way the ledger's public key.
type handover struct {
	bundle []byte
	policy *proof.Policy
}

// handOver exports the request's evidence from the running ledger.
func (s *story) handOver(ctx context.Context) (h handover, err error) {
	text, err := os.ReadFile(filepath.Join(s.data, keys.Dir, "ledger.pub"))
	if err != nil {
		return h, fmt.Errorf("hand evidence over: %w", err)
	}
	key := strings.TrimSpace(string(text))
	if h.policy, err = proof.TrustKey(key); err != nil {
		return h, fmt.Errorf("hand evidence over: %w", err)
	}
	ask := func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error) {
		return bus.Call[schemas.ShowReply](ctx, s.operator, schemas.CtlShow, q)
	}
	b, err := ledger.Collect(ctx, ask, key, schemas.ShowRequest{Trace: s.grant.TraceID})
	if err != nil {
		return h, fmt.Errorf("hand evidence over: %w", err)
	}
	if h.bundle, err = b.Marshal(); err != nil {
		return h, fmt.Errorf("hand evidence over: %w", err)
	}
	return h, nil
}

func (h handover) verify(data []byte) (*proof.Evidence, error) {
	b, err := proof.OpenBundle(data)
	if err != nil {
		return nil, err
	}
	return b.Verify(h.policy)
}

// proven verifies the file, and looks in it for what the story is about.
func (s *story) proven(h handover) (finding, error) {
	ev, err := h.verify(h.bundle)
	if err != nil {
		return found(false, "refused: %v", err), nil
	}
	draft, held, cancelled := false, false, false
	for _, e := range ev.Entries {
		if e.Event == nil {
			continue
		}
		draft = draft || e.Event.Seq == s.draftSeq && schemas.Sum(e.Event.Data) == s.draft
		held = held || e.Event.Seq == s.heldSeq
		cancelled = cancelled || e.Event.Kind == schemas.MessageCancelled
	}
	return found(draft && held && cancelled, "%d records of %d are proven from %d bytes: the draft %t, what was held %t, what was cancelled %t",
		len(ev.Entries), ev.Checkpoint.Size, len(h.bundle), draft, held, cancelled), nil
}

// flips is how many bytes of the file are changed, unless all are.
const flips = 400

// flipped changes bytes of the file, one at a time: one bit, and then all bits
// of it. Nothing that was changed may be taken.
func (s *story) flipped(ctx context.Context, h handover) (finding, error) {
	every := max(len(h.bundle)/flips, 1)
	if s.EveryByte {
		every = 1
	}
	data := append([]byte(nil), h.bundle...)
	changed, taken := 0, 0
	for i := 0; i < len(data); i += every {
		if err := ctx.Err(); err != nil {
			return finding{}, err
		}
		for _, mask := range []byte{1 << (i % 8), 0xff} {
			data[i] ^= mask
			if _, err := h.verify(data); err == nil {
				taken++
			}
			data[i] ^= mask
			changed++
		}
		if s.EveryByte {
			s.Narrator.Progress("changing the bundle: byte", i+1, len(data))
		}
	}
	if _, err := h.verify(data); err != nil {
		return finding{}, errors.Join(errors.New("the bundle is not what it was"), err)
	}
	return found(changed > 0 && taken == 0, "%d bytes, %d changed files, %d accepted", len(data), changed, taken), nil
}
