package demo

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

const (
	ttl       = 300 // seconds
	maxTokens = 50_000
)

var (
	allowedTools   = []string{"matplotlib", "pandas"}
	forbiddenTools = []string{"bash", "http"}
)

// work is the quarter's report, as it should be.
func (s *story) work(ctx context.Context) error {
	s.Narrator.Chapter("The quarter")
	s.Narrator.Say("A user asks: " + quarter.task())
	if !s.step(ctx, "capability", "the orchestrator gets analyst-7 exactly what it asks for, signed, for 300 s", s.issueQuarter) {
		return errBroken
	}
	s.step(ctx, "ceiling", "403: it can't get the forbidden http, not even for itself to hand on", s.beyondCeiling)
	var err error
	if s.agent, err = connect(s.plane.URL(), analyst, operation, []byte(s.grant.Creds)); err != nil {
		return err
	}
	do := doer(s.agent.act)
	var t totals
	var svg, summary []byte
	s.step(ctx, "read", "the quarter comes out of the warehouse, whole, once that has verified the capability", func(ctx context.Context) (finding, error) {
		var err error
		if s.quarter, err = do.readTable(ctx, quarter); err != nil {
			return finding{}, err
		}
		stored, err := readTable(s.tools.db, quarter.Table)
		if err != nil {
			return finding{}, err
		}
		scope := "read:data." + quarter.Table
		asked, good := s.tools.calls(scope), s.tools.good(scope)
		return found(len(stored.Rows) > 0 && slices.Equal(s.quarter.Rows, stored.Rows) && asked > 0 && good == asked,
			"%d of %d rows; the warehouse was asked %d times and verified %d capabilities offline", len(s.quarter.Rows), len(stored.Rows), asked, good), nil
	})
	s.step(ctx, "compute", "pandas gives the same totals as a count by hand, matplotlib a chart", func(ctx context.Context) (finding, error) {
		var err error
		if t, err = do.totals(ctx, s.quarter.Rows); err != nil {
			return finding{}, err
		}
		if svg, err = do.chart(ctx, quarter, t); err != nil {
			return finding{}, err
		}
		revenue := 0
		for _, r := range s.quarter.Rows {
			revenue += r.Revenue
		}
		return found(t.Revenue == revenue && bytes.HasPrefix(svg, []byte("<svg")), "revenue %d, by hand %d, best region %s; a chart of %d bytes", t.Revenue, revenue, t.Best, len(svg)), nil
	})
	s.step(ctx, "ask", "writer-2, another agent, answers", func(ctx context.Context) (finding, error) {
		before, _ := s.scribe.reached()
		var err error
		if summary, err = do.summary(ctx, quarter, t); err != nil {
			return finding{}, err
		}
		after, _ := s.scribe.reached()
		return found(after == before+1 && len(summary) > 0, "%q", summary), nil
	})
	s.step(ctx, "write", "the draft is stored, and the ledger has its SHA-256", func(ctx context.Context) (finding, error) {
		return s.writeDraft(ctx, text(quarter, t, summary, svg))
	})
	return nil
}

func (s *story) issueQuarter(ctx context.Context) (finding, error) {
	grant, err := s.issue(ctx, schemas.IssueRequest{AgentID: analyst, OperationID: operation, Scope: quarter.scopes(),
		Tools: allowedTools, ForbiddenTools: forbiddenTools, TTLSeconds: ttl, MaxTokens: maxTokens, Task: quarter.task(), Job: "report"})
	if err != nil {
		return finding{}, err
	}
	s.grant = grant
	c, err := s.verifier.Verify(grant.Token, capability.Expect{Time: time.Now(), Delivered: true})
	if err != nil {
		return finding{}, err
	}
	wanted := quarter.scopes()
	for _, tool := range allowedTools {
		wanted = append(wanted, schemas.VerbCall+":"+tool)
	}
	slices.Sort(wanted)
	granted := slices.Sorted(slices.Values(c.Scopes()))
	lives := c.Expires - c.NotBefore
	ok := slices.Equal(granted, wanted) && slices.Equal(c.ForbiddenTools, forbiddenTools) && lives == ttl && c.MaxTokens == maxTokens &&
		c.IssuedBy == orchestrator && c.AgentID == analyst && c.OperationID == operation
	return found(ok, "issued by %s: %s; forbidden %s; %d s, %d tokens; the signature verifies offline", c.IssuedBy,
		strings.Join(granted, " "), strings.Join(c.ForbiddenTools, " "), lives, c.MaxTokens), nil
}

// beyondCeiling asks for what the fleet file denies.
func (s *story) beyondCeiling(ctx context.Context) (finding, error) {
	a, err := s.chief.token(ctx, "issue", schemas.IssueRequest{AgentID: analyst, OperationID: "report-and-publish", Tools: []string{"http"}})
	if err != nil {
		return finding{}, err
	}
	return found(a.code == schemas.CodeForbidden, "%s", a), nil
}

func (s *story) writeDraft(ctx context.Context, draft []byte) (finding, error) {
	a, err := doer(s.agent.act).write(ctx, quarter, draft)
	if _, err := want(a, err); err != nil {
		return finding{}, err
	}
	stored, err := readDraft(s.tools.db, quarter.Draft)
	if err != nil {
		return finding{}, err
	}
	s.draft, s.draftSeq = schemas.Sum(draft), a.seq
	e, err := s.event(ctx, a.seq)
	if err != nil {
		return finding{}, err
	}
	return found(bytes.Equal(stored, draft) && e.Digest == s.draft && e.Kind == schemas.MessageAccepted,
		"%d bytes stored; event %d of %s: sha256 %.12s…, risk %d", len(stored), e.Seq, e.Agent, e.Digest, e.Risk), nil
}

// pending is what became of a question that was left open.
type pending struct {
	answer *answer
	err    error
}

// leaveOpen asks writer-2, who takes its time, and does not wait. It returns
// when the question is in the ledger.
func (s *story) leaveOpen(ctx context.Context) error {
	from, err := s.head(ctx)
	if err != nil {
		return err
	}
	s.scribe.dawdle()
	// On a connection of its own: a client waits for one thing at a time.
	c, err := connect(s.plane.URL(), analyst, operation, []byte(s.grant.Creds))
	if err != nil {
		return err
	}
	s.pending = make(chan pending, 1)
	s.open.Go(func() { // ends with the answer, with the connection, or with the story
		defer c.nc.Close()
		a, err := doer(c.act).ask(ctx, request{What: "proofreading", Period: quarter.Name, To: quarter.To})
		s.pending <- pending{a, err}
	})
	looking, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	e, err := s.await(looking, analyst, from, "question to "+writer, func(e *schemas.Event) bool {
		return e.Kind == schemas.MessageAccepted && e.Action.Verb == schemas.VerbAsk
	})
	if err != nil {
		return err
	}
	s.askSeq = e.Seq
	return nil
}
