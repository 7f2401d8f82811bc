package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

// A doer carries out one governed action; client.act is one.
type doer func(ctx context.Context, action, contentType string, body []byte) (*answer, error)

// The single acts of the analyst's job.

func (do doer) readTable(ctx context.Context, p period) (sales, error) {
	return wantJSON[sales](do(ctx, "read.data."+p.Table, "", nil))
}

func (do doer) totals(ctx context.Context, rows []row) (totals, error) {
	return wantJSON[totals](do(ctx, "call.pandas", typeJSON, schemas.Marshal(sales{Rows: rows})))
}

func (do doer) remarks(ctx context.Context, comments []byte) (remarks, error) {
	return wantJSON[remarks](do(ctx, "call.pandas", typeJSON, schemas.Marshal(sales{Comments: comments})))
}

func (do doer) chart(ctx context.Context, p period, t totals) ([]byte, error) {
	c := chart{Title: "Sales of " + p.Name, Labels: regions}
	for _, r := range regions {
		c.Values = append(c.Values, t.ByRegion[r])
	}
	return want(do(ctx, "call.matplotlib", typeJSON, schemas.Marshal(c)))
}

func (do doer) summary(ctx context.Context, p period, t totals) ([]byte, error) {
	return want(do.ask(ctx, request{What: "summary", Period: p.Name, To: p.To, Best: t.Best}))
}

func (do doer) ask(ctx context.Context, r request) (*answer, error) {
	return do(ctx, "ask."+writer, typeJSON, schemas.Marshal(r))
}

func (do doer) write(ctx context.Context, p period, text []byte) (*answer, error) {
	return do(ctx, "write."+p.Draft, typeMarkdown, text)
}

// tell lets writer-2 know that a draft is there.
func (do doer) tell(ctx context.Context, p period) (*answer, error) {
	return do(ctx, "send."+writer, typeJSON, schemas.Marshal(request{What: "published", Period: p.Name, To: p.To}))
}

// text is a report as it is written.
func text(p period, t totals, summary, svg []byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Sales of %s\n\n%s\n\n| region | revenue |\n|---|---|\n", p.Name, summary)
	for _, r := range regions {
		fmt.Fprintf(&b, "| %s | %d |\n", r, t.ByRegion[r])
	}
	fmt.Fprintf(&b, "\nIn all %d units for %d euros.\n\n%s\n", t.Units, t.Revenue, svg)
	return []byte(b.String())
}

// report does the whole job for one period. Not every report is like the other:
// n says which it is.
func (do doer) report(ctx context.Context, p period, n int) error {
	s, err := do.readTable(ctx, p)
	if err != nil {
		return err
	}
	t, err := do.totals(ctx, s.Rows)
	if err != nil {
		return err
	}
	var svg []byte
	if n%5 != 0 {
		if svg, err = do.chart(ctx, p, t); err != nil {
			return err
		}
	}
	summary, err := do.summary(ctx, p, t)
	if err != nil {
		return err
	}
	if _, err := want(do.write(ctx, p, text(p, t, summary, svg))); err != nil {
		return err
	}
	if n%3 == 0 {
		if _, err := want(do.ask(ctx, request{What: "proofreading", Period: p.Name, To: p.To})); err != nil {
			return err
		}
	}
	if _, err := do.remarks(ctx, s.Comments); err != nil {
		return err
	}
	if n%2 == 0 {
		_, err = want(do.tell(ctx, p))
	}
	return err
}

// dashboard is another job: figures and a chart, nothing written.
func (do doer) dashboard(ctx context.Context, p period) error {
	s, err := do.readTable(ctx, p)
	if err != nil {
		return err
	}
	t, err := do.totals(ctx, s.Rows)
	if err != nil {
		return err
	}
	_, err = do.chart(ctx, p, t)
	return err
}

// scopes are what a report on a period needs.
func (p period) scopes() []string {
	return []string{"read:data." + p.Table, "write:" + p.Draft, "ask:" + writer, "send:" + writer}
}
