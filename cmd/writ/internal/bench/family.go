package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// A family is a parent and those whose capabilities derive from its own, each
// of whom hands on to four: a hundred stand four hops deep.
const (
	fanOut      = 4
	familyEvery = 100 * time.Millisecond // each descendant's actions; the parent makes 100 a second
	familyWait  = 20 * time.Second       // for every action of a family to have come to its end
)

// MaxDescendants fill the hops that a delegation may have.
const MaxDescendants = 4 + 16 + 64 + 256 + 1024

func parentName(round int) string { return fmt.Sprintf("bench-parent-%05d", round) }
func childName(i int) string      { return fmt.Sprintf("bench-child-%05d", i) }

// A kin is one of a family in one round.
type kin struct {
	id    string
	grant schemas.IssueReply
	nc    *nats.Conn
}

// runFamilies kills a parent a round, while it and all its descendants work,
// and holds the receipt against the ledger.
func (r *rig) runFamilies(ctx context.Context, k *Kill, progress func(string)) error {
	if err := r.declareFamilies(ctx, k.Descendants, k.Rounds); err != nil {
		return err
	}
	var effect, closed, receipt []time.Duration
	for round := range k.Rounds {
		progress(fmt.Sprintf("round %d of %d", round+1, k.Rounds))
		e, c, rc, err := r.killFamily(ctx, k, round)
		if err != nil {
			return err
		}
		effect, closed, receipt = append(effect, e), append(closed, c), append(receipt, rc)
		if err := r.resumeChildren(ctx, k.Descendants); err != nil {
			return err
		}
	}
	k.measured(effect, closed, receipt)
	return nil
}

// resumeChildren lets those go on whom the monitor has paused: they went on
// with a capability that had ended.
func (r *rig) resumeChildren(ctx context.Context, descendants int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pushing)
	for i := range descendants {
		g.Go(func() error {
			st, err := bus.Call[schemas.StatusReply](ctx, r.operator, schemas.CtlStatus, schemas.StatusRequest{AgentID: childName(i)})
			if err != nil || st.Agents[0].State == schemas.Active && st.Agents[0].Risk == 0 {
				return err
			}
			for _, lock := range []schemas.Lock{schemas.Paused, schemas.Active} { // a resumed one begins without risk
				if st.Agents[0].State != schemas.Active && lock == schemas.Paused {
					continue
				}
				if _, err := bus.Call[schemas.Receipt](ctx, r.operator, schemas.CtlLock, schemas.LockRequest{AgentID: childName(i), Lock: lock, Reason: "measured", Actor: "bench"}); err != nil {
					return fmt.Errorf("bench: resume %s: %w", childName(i), err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *rig) declareFamilies(ctx context.Context, descendants, rounds int) error {
	ceiling := &schemas.Ceiling{Tools: []string{"echo"}, TTLSeconds: ttl}
	rate := &schemas.Rate{PerSecond: 1e6, Burst: 1e6}
	var list []schemas.Principal
	for i := range rounds {
		list = append(list, schemas.Principal{ID: parentName(i), Kind: schemas.KindAgent, Rate: rate, Ceiling: ceiling, MayIssueFor: children(-1, descendants)})
	}
	for i := range descendants {
		list = append(list, schemas.Principal{ID: childName(i), Kind: schemas.KindAgent, Rate: rate, Ceiling: ceiling, MayIssueFor: children(i, descendants)})
	}
	for part := range slices.Chunk(list, 1000) {
		if _, err := bus.Call[schemas.ApplyReply](ctx, r.operator, schemas.CtlApply, schemas.ApplyRequest{Principals: part, Add: true, Actor: "bench"}); err != nil {
			return fmt.Errorf("bench: declare: %w", err)
		}
	}
	return nil
}

// children are those to whom one hands on; -1 is the parent of all.
func children(i, descendants int) []string {
	var out []string
	for c := fanOut * (i + 1); c < min(fanOut*(i+2), descendants); c++ {
		out = append(out, childName(c))
	}
	return out
}

// family issues to a parent, and lets everyone hand on to theirs.
func (r *rig) family(ctx context.Context, round, descendants int, closed func()) (all []kin, err error) {
	grant, err := bus.Call[schemas.IssueReply](ctx, r.operator, schemas.CtlIssue, schemas.IssueRequest{
		AgentID: parentName(round), OperationID: "bench", Tools: []string{"echo"}, TTLSeconds: ttl, Task: "measure", Actor: "bench"})
	if err != nil {
		return nil, fmt.Errorf("bench: issue: %w", err)
	}
	nc, err := r.connect(grant.Creds, closed)
	if err != nil {
		return nil, err
	}
	all = make([]kin, descendants+1)
	all[0] = kin{parentName(round), grant, nc}
	for from, to := 0, fanOut; from < descendants; from, to = to, to+fanOut*(to-from) {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(pushing)
		for i := from; i < min(to, descendants); i++ {
			g.Go(func() (err error) {
				up := all[i/fanOut] // of i-fanOut's index: its parent stands one before
				all[i+1], err = r.handOn(ctx, up.nc, childName(i))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			closeFamily(all)
			return nil, err
		}
	}
	return all, nil
}

func (r *rig) handOn(ctx context.Context, up *nats.Conn, id string) (kin, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := up.RequestWithContext(ctx, "out.token.issue", schemas.Marshal(schemas.IssueRequest{
		AgentID: id, OperationID: "bench", Tools: []string{"echo"}, ParentOperation: "bench"}))
	if err != nil {
		return kin{}, fmt.Errorf("bench: hand on to %s: %w", id, err)
	}
	if refused := m.Header.Get(schemas.HeaderError); refused != "" {
		return kin{}, fmt.Errorf("bench: hand on to %s: %s", id, refused)
	}
	k := kin{id: id}
	if err := json.Unmarshal(m.Data, &k.grant); err != nil {
		return kin{}, fmt.Errorf("bench: hand on to %s: %w", id, err)
	}
	k.nc, err = r.connect(k.grant.Creds, nil)
	return k, err
}

func closeFamily(all []kin) {
	for _, k := range all {
		if k.nc != nil {
			k.nc.Close()
		}
	}
}

// killFamily kills a parent at work.
func (r *rig) killFamily(ctx context.Context, k *Kill, round int) (effect, closed, receipt time.Duration, err error) {
	closedAt := make(chan time.Time, 1)
	all, err := r.family(ctx, round, k.Descendants, func() { closedAt <- time.Now() })
	if err != nil {
		return 0, 0, 0, err
	}
	defer closeFamily(all)
	conns := make([]*nats.Conn, len(all))
	for i, k := range all {
		conns[i] = k.nc
	}
	rest := atWork(ctx, conns, func(i int) time.Duration {
		if i == 0 {
			return victimEvery
		}
		return familyEvery
	})
	defer rest()
	time.Sleep(settleFor + familyEvery)
	began := time.Now()
	rc, err := bus.Call[schemas.Receipt](ctx, r.operator, schemas.CtlLock, schemas.LockRequest{
		AgentID: all[0].id, Lock: schemas.Killed, Reason: "measured", Actor: "bench"})
	if err != nil {
		return 0, 0, 0, fmt.Errorf("bench: kill: %w", err)
	}
	receipt = time.Since(began)
	select {
	case at := <-closedAt:
		closed = max(0, at.Sub(began))
	case <-time.After(10 * time.Second):
		return 0, 0, 0, fmt.Errorf("bench: the connection of %s was not closed", all[0].id)
	}
	time.Sleep(familyEvery) // each of them has tried once more
	rest()
	a, err := r.account(ctx, all, rc)
	if err != nil {
		return 0, 0, 0, err
	}
	k.Actions += a.actions
	k.Cancelled += len(a.cancelled)
	if !a.reconciles(all, rc) {
		k.Unreconciled++
	}
	return max(0, a.last.Sub(began)), closed, receipt, nil
}

// An accounting is what the ledger says of a family's round.
type accounting struct {
	actions   int       // accepted
	last      time.Time // when the last was
	open      int       // neither answered nor ended
	twice     int       // ended twice, or answered and ended
	cancelled []uint64  // until the receipt was complete
}

// account reads the ledger from the family's first event on, until all of its
// actions have come to an end.
func (r *rig) account(ctx context.Context, all []kin, rc schemas.Receipt) (a accounting, err error) {
	for until := time.Now().Add(familyWait); ; time.Sleep(settleFor) {
		if a, err = r.accountNow(ctx, all, rc); err != nil || a.open == 0 || time.Now().After(until) {
			return a, err
		}
	}
}

func (r *rig) accountNow(ctx context.Context, all []kin, rc schemas.Receipt) (a accounting, err error) {
	of := map[string]bool{}
	for _, k := range all {
		of[k.id] = true
	}
	ends := map[uint64]int{}
	complete := false
	for from := all[0].grant.Seq; from != 0; {
		page, err := bus.Call[schemas.ReadReply](ctx, r.operator, schemas.CtlRead, schemas.ReadRequest{From: from, Limit: 1000})
		if err != nil {
			return a, fmt.Errorf("bench: read the ledger: %w", err)
		}
		for _, rec := range page.Records {
			e, err := rec.Event()
			if err != nil {
				return a, fmt.Errorf("bench: %w", err)
			}
			switch e.Kind {
			case schemas.MessageAccepted:
				if of[e.Agent] {
					a.actions++
					a.last = e.Time
					ends[e.Seq] = 0
				}
			case schemas.MessageCancelled, schemas.MessageExpired, schemas.ResponseAccepted:
				if _, ours := ends[e.Ref]; !ours {
					continue
				}
				if e.Kind == schemas.ResponseAccepted && e.Seq > rc.Seq {
					continue // logged, and given to nobody: a cancellation must follow
				}
				if ends[e.Ref]++; ends[e.Ref] > 1 {
					a.twice++
				}
				if e.Kind == schemas.MessageCancelled && e.Seq > rc.Seq && !complete {
					a.cancelled = append(a.cancelled, e.Ref)
				}
			case schemas.ReleaseMark:
				complete = complete || e.Ref >= rc.Seq
			}
		}
		from = page.Next
	}
	for _, n := range ends {
		if n == 0 {
			a.open++
		}
	}
	slices.Sort(a.cancelled)
	return a, nil
}

// reconciles says whether a receipt names what the ledger names, and nothing
// was left, done twice, or done behind the kill.
func (a accounting) reconciles(all []kin, rc schemas.Receipt) bool {
	var held []string
	for _, k := range all {
		held = append(held, k.grant.JTI)
	}
	ended := slices.Clone(rc.Revoked)
	slices.Sort(held)
	slices.Sort(ended)
	return a.open == 0 && a.twice == 0 && !rc.Partial && slices.Equal(a.cancelled, rc.Cancelled) && slices.Equal(held, ended)
}
