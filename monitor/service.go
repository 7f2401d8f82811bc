package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// ServiceOptions of a Service. All but Snapshot, Weights, Shadow and Now are needed.
type ServiceOptions struct {
	Conn     *nats.Conn // in CONTROL, as the user monitor
	Consumer string     // name of the consumer over all events
	Source   string     // ce-source of what it appends
	Snapshot string     // file that the model outlives a restart in; none where empty
	Weights  *Weights   // that count; Reference where nil
	Shadow   *Weights   // that judge beside the model's and decide nothing; none where nil
	Logger   *slog.Logger
	Now      func() time.Time // the clock; time.Now where nil
}

// A Service follows the log with a Model and answers intake and operators. It
// keeps nothing but snapshots of the model: a restart goes on from the newest,
// and folds the log anew where there is none, what EVENTS has lost of it from the
// ledger.
type Service struct {
	ServiceOptions
	log *bus.Appender

	mu      sync.Mutex
	model   *Model
	shadow  shadow
	waiting []question // whose time has not come, in order of arrival
	live    bool       // the fold has reached what was in the log at the start
	saved   uint64     // last event of the newest snapshot

	recalled uint64        // EVENTS began here, or before, and all that the ledger has of the time before is folded
	told     chan struct{} // closed when the fold reaches toldAt; nil where nobody waits
	toldAt   uint64
	changed  chan struct{}

	signalling sync.Mutex // one outside signal at a time, from decision to fold; taken before mu
}

// A question is a request for verdicts.
type question struct {
	msg     *nats.Msg
	drafts  []*schemas.Event
	after   uint64
	patient bool      // wait for capabilities that are not known yet
	late    time.Time // from then on it is refused
	known   time.Time // until then a capability may still be on its way
}

// How long a request for a verdict may wait: for the agent's previous action,
// and for the capability that it was admitted under.
const (
	foldWait  = 2 * time.Second
	grantWait = 250 * time.Millisecond
)

// Intake sends as much of a body as is read of it.
var _ [0]struct{} = [maxRead - schemas.MaxJudged]struct{}{}

// NewService prepares a service; Run starts it.
func NewService(o ServiceOptions) (*Service, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	log, err := bus.NewAppender(o.Conn)
	if err != nil {
		return nil, err
	}
	s := &Service{ServiceOptions: o, log: log, shadow: shadow{log: o.Logger}, changed: make(chan struct{}, 1)}
	s.model = New(s.options(o.Weights))
	if o.Shadow != nil {
		s.shadow.model = New(s.options(o.Shadow))
	}
	return s, nil
}

// Run serves until the context ends or the log can no longer be followed.
// ready is called when it answers. Until the fold has caught up, nothing is
// judged: intake refuses meanwhile.
func (s *Service) Run(ctx context.Context, ready func()) error {
	if begun, err := s.begin(ctx); !begun {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	caughtUp := make(chan struct{})
	f := bus.Follower{Conn: s.Conn, Consumer: s.Consumer, From: s.model.Seq() + 1, CaughtUp: func(uint64) { close(caughtUp) }}
	g.Go(func() error { return f.Run(ctx, s.fold) })
	g.Go(func() error { return s.report(ctx) })
	g.Go(func() error { return s.expire(ctx) })
	g.Go(func() error { return s.keep(ctx) })
	g.Go(func() error {
		select {
		case <-caughtUp:
		case <-ctx.Done():
			return nil
		}
		return s.serve(ctx, ready)
	})
	err := g.Wait()
	if ctx.Err() != nil {
		s.save() // what another start need not fold again
	}
	err = errors.Join(err, s.close())
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// begin brings the model to where EVENTS goes on, unless the context ends before.
func (s *Service) begin(ctx context.Context) (bool, error) {
	err := s.resume(ctx)
	if err == nil {
		err = s.recall(ctx)
	}
	if ctx.Err() != nil {
		s.save() // what was folded of the ledger
		return false, s.close()
	}
	if err != nil {
		return false, errors.Join(err, s.close())
	}
	return true, nil
}

// close gives up what the models put aside.
func (s *Service) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.model.Close()
	if s.shadow.model != nil {
		err = errors.Join(err, s.shadow.model.Close())
	}
	return err
}

func (s *Service) serve(ctx context.Context, ready func()) error {
	s.mu.Lock()
	s.live = true
	s.mu.Unlock()
	s.wake() // violations of the time when nobody served
	sub, err := s.Conn.Subscribe(schemas.Assess, s.ask)
	if err != nil {
		return fmt.Errorf("monitor: subscribe: %w", err)
	}
	if err := sub.SetPendingLimits(-1, 256<<20); err != nil {
		return fmt.Errorf("monitor: subscribe: %w", err)
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlRisk, s.risk); err != nil {
		return err
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlRisks, s.risks); err != nil {
		return err
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlShadow, s.shades); err != nil {
		return err
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlSignal, s.signal); err != nil {
		return err
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlToken, s.token); err != nil {
		return err
	}
	if err := bus.Handle(s.Conn, s.Logger, schemas.CtlHealth, s.health); err != nil {
		return err
	}
	if err := s.Conn.Flush(); err != nil {
		return fmt.Errorf("monitor: subscribe: %w", err)
	}
	ready()
	<-ctx.Done()
	if err := sub.Unsubscribe(); err != nil && s.Conn.IsConnected() {
		return fmt.Errorf("monitor: unsubscribe: %w", err)
	}
	return nil
}

// fold takes one event, and answers what waited for it.
func (s *Service) fold(entry bus.Entry) error {
	e, err := entry.Event()
	if err != nil {
		return err
	}
	return s.take(e)
}

func (s *Service) take(e *schemas.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.model.Apply(e); err != nil {
		return fmt.Errorf("monitor: fold: %w", err)
	}
	s.shadow.apply(e)
	if (e.Kind == schemas.AgentViolation || e.Kind == schemas.RiskSignal) && s.live {
		s.wake()
	}
	s.tellFolded()
	s.answerReady(s.Now())
	return nil
}

// ask takes a request for a verdict: answered at once where the fold is far
// enough, as it nearly always is.
func (s *Service) ask(m *nats.Msg) {
	if !bus.FromService(m) {
		s.Logger.Error("no verdict: nobody awaits it in an inbox of a service", "reply", m.Reply)
		return
	}
	q, err := s.question(m)
	if err != nil {
		s.refuse(m, schemas.Refuse(schemas.CodeMalformed, "%v", err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answer(q, s.Now()) {
		s.waiting = append(s.waiting, q)
	}
}

func (s *Service) question(m *nats.Msg) (question, error) {
	now := s.Now()
	req, drafts, err := bus.ReadAssess(m.Data)
	return question{msg: m, drafts: drafts, after: req.After, patient: req.Patient,
		late: now.Add(foldWait), known: now.Add(grantWait)}, err
}

// answer answers a question, unless it must wait.
func (s *Service) answer(q question, now time.Time) bool {
	if s.model.Seq() < q.after {
		if now.Before(q.late) {
			return false
		}
		s.refuse(q.msg, schemas.Refuse(schemas.CodeUnavailable, "the monitor has folded the log up to %d and was to judge after %d", s.model.Seq(), q.after))
		return true
	}
	expired := !now.Before(q.known)
	rulings := make([]schemas.Ruling, len(q.drafts))
	for i, d := range q.drafts {
		if !s.model.Follows(d) && !expired {
			if q.patient {
				return false
			}
			rulings[i].Unknown = true
			continue
		}
		v := s.model.Assess(d)
		rulings[i] = schemas.Ruling{Verdict: schemas.Marshal(v), Risk: v.Risk, Decision: v.Decision}
	}
	if err := s.model.Err(); err != nil { // void, all of them
		s.refuse(q.msg, unfit(err))
		return true
	}
	data, err := bus.WriteAssess(rulings)
	if err == nil {
		err = q.msg.Respond(data)
	}
	if err != nil {
		s.Logger.Error("verdicts not sent", "drafts", len(q.drafts), "error", err)
	}
	return true
}

// unfit refuses what a model can't say that has lost what it put aside.
func unfit(err error) *schemas.Refusal {
	return schemas.Refuse(schemas.CodeUnavailable, "the monitor judges no longer, and has to be started anew: %v", err)
}

func (s *Service) refuse(m *nats.Msg, r *schemas.Refusal) {
	s.Logger.Error("no verdict", "error", r)
	answer := nats.NewMsg(m.Reply)
	answer.Header, answer.Data = nats.Header(r.Header()), r.Body()
	if err := m.RespondMsg(answer); err != nil {
		s.Logger.Error("refusal not sent", "error", err)
	}
}

// answerReady answers, in order of arrival, what need wait no longer.
func (s *Service) answerReady(now time.Time) {
	if len(s.waiting) == 0 {
		return
	}
	kept := s.waiting[:0]
	for _, q := range s.waiting {
		if !s.answer(q, now) {
			kept = append(kept, q)
		}
	}
	clear(s.waiting[len(kept):])
	s.waiting = kept
}

// expire ends waits also while nothing is logged.
func (s *Service) expire(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.mu.Lock()
			s.answerReady(s.Now())
			s.mu.Unlock()
		case <-ctx.Done():
			return nil
		}
	}
}

// wake makes report look for violations.
func (s *Service) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// report appends what violations did to risk. One that could not be appended
// is tried again: its event has the same id, so that it stands once.
func (s *Service) report(ctx context.Context) error {
	for {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil
		}
		s.mu.Lock()
		events, err := s.model.Changes(s.Now().UTC(), s.Source), s.model.Err()
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
		for _, e := range events {
			if _, err := s.log.Append(ctx, e); err != nil && ctx.Err() == nil {
				s.Logger.Error("change of risk not logged", "agent", e.Agent, "error", err)
				time.AfterFunc(time.Second, s.wake)
				break
			}
		}
	}
}

func (s *Service) risk(_ context.Context, req schemas.RiskRequest) (schemas.RiskReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rep, known := s.model.Risk(req.AgentID, s.Now())
	if err := s.model.Err(); err != nil {
		return rep, unfit(err)
	}
	if !known && s.model.fleet.Agents[req.AgentID] == nil {
		return rep, schemas.Refuse(schemas.CodeNotFound, "%s is not in the fleet; writ status lists who is", req.AgentID)
	}
	return rep, nil
}

// mostRisks bounds one question about several agents.
const mostRisks = 10_000

func (s *Service) risks(_ context.Context, req schemas.RisksRequest) (schemas.RisksReply, error) {
	if len(req.AgentIDs) > mostRisks {
		return schemas.RisksReply{}, schemas.Refuse(schemas.CodeMalformed, "%d agents: at most %d can be asked about at once", len(req.AgentIDs), mostRisks)
	}
	rep, now := schemas.RisksReply{Risks: []schemas.AgentRisk{}}, s.Now()
	for _, id := range req.AgentIDs {
		r, err := s.riskOf(id, now)
		if err != nil {
			return rep, unfit(err)
		}
		if r != nil {
			rep.Risks = append(rep.Risks, *r)
		}
	}
	return rep, nil
}

// riskOf is one agent's risk, nil where nothing is known of it. It may have to be
// fetched: no verdict waits for more than one.
func (s *Service) riskOf(id string, now time.Time) (*schemas.AgentRisk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model.settle()
	a := s.model.at(id)
	if a == nil {
		return nil, s.model.Err()
	}
	return &schemas.AgentRisk{AgentID: id, Risk: a.riskNow(now), Seq: a.lastSeq}, s.model.Err()
}

func (s *Service) health(context.Context, struct{}) (schemas.Health, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return schemas.Health{Service: "monitor", OK: s.live && s.model.Err() == nil, Seq: s.model.Seq(), Warning: strings.Join(s.model.Alarms(), "; ")}, nil
}
