package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// Show asks a ledger, near or far, for a page of records with their proofs.
type Show func(ctx context.Context, q schemas.ShowRequest) (schemas.ShowReply, error)

// ErrTooMuch is matched where more was asked for than one bundle holds.
var ErrTooMuch = errors.New("this is more than one bundle holds")

// Collect asks for page after page, and gives the bundle: records in order, all
// proven against the same checkpoint. The redactions that explain erasures
// stand among them. It is under key, a note verifier key of the ledger, or that
// one's last successor. What it gives is only as true as the ledger:
// proof.Bundle.Verify says whether it is.
func Collect(ctx context.Context, ask Show, key string, q schemas.ShowRequest) (*proof.Bundle, error) {
	var checkpoint string
	var records []schemas.Shown
	var handovers []schemas.ShownHandover
	redactions, size := map[uint64]schemas.Shown{}, 0
	for {
		page, err := ask(ctx, q)
		if err != nil {
			return nil, err
		}
		for i, r := range page.Records {
			size += len(r.Leaf) + len(r.Path) + len(r.Headers) + len(r.Payload)
			if last := len(records) - 1; i == 0 && q.Offset > 0 && last >= 0 && records[last].Index == r.Index {
				records[last].Payload = append(records[last].Payload, r.Payload...)
				continue
			}
			records = append(records, r)
		}
		for _, r := range page.Redactions {
			redactions[r.Index] = r
		}
		if n := len(records) + len(redactions); n > proof.MaxBundleRecords || size > proof.MaxBundle {
			return nil, fmt.Errorf("%w: %d records and %d MiB are the most", ErrTooMuch, proof.MaxBundleRecords, proof.MaxBundle>>20)
		}
		if checkpoint == "" {
			// Later pages are of the same size, and may lack its cosignatures.
			checkpoint, handovers = page.Checkpoint, page.Handovers
		}
		if !page.More {
			break
		}
		if page.Index < q.Index || page.Index == q.Index && page.Offset <= q.Offset {
			return nil, errors.New("the ledger's answer leads nowhere: its next page is no later than this one")
		}
		q.Size, q.Index, q.Offset = page.Size, page.Index, page.Offset
	}
	for _, r := range records {
		delete(redactions, r.Index)
	}
	for _, r := range redactions {
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b schemas.Shown) int { return cmp.Compare(a.Index, b.Index) })
	b := proof.NewBundle(key, checkpoint, records)
	return b, b.HandOver(handovers)
}
