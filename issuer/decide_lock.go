package issuer

import (
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A lockDecision is what a lock request comes to.
type lockDecision struct {
	kind   schemas.Kind // the event to append; "" where the lock is on already
	lock   schemas.Lock // what holds afterwards
	before schemas.Lock
	seq    uint64           // of the event that put it on, where it is on already
	vouch  []*schemas.Event // to append before it
}

var lockKinds = map[schemas.Lock]schemas.Kind{
	schemas.Active:    schemas.AgentResumed,
	schemas.Paused:    schemas.AgentPaused,
	schemas.Suspended: schemas.AgentSuspended,
	schemas.Killed:    schemas.AgentKilled,
}

var lockOrder = map[schemas.Lock]int{schemas.Active: 0, schemas.Paused: 1, schemas.Suspended: 2, schemas.Killed: 3}

// decideLock holds a lock request against the states an agent may go through:
// active → paused → active; active or paused → suspended → active; any →
// killed, for good. Asking for the lock that is on changes nothing and is no
// error.
func decideLock(s *schemas.State, req schemas.LockRequest) (lockDecision, error) {
	if err := schemas.CheckID("agent_id", req.AgentID); err != nil {
		return lockDecision{}, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	if err := checkActor(req.Actor); err != nil {
		return lockDecision{}, err
	}
	if err := checkReason(req.Reason); err != nil {
		return lockDecision{}, err
	}
	if len(req.Vouch) > 0 && req.Lock != schemas.Active {
		return lockDecision{}, schemas.Refuse(schemas.CodeMalformed, "vouch goes with lock active alone: who vouches for what suspended an agent lets it go on")
	}
	kind, ok := lockKinds[req.Lock]
	if !ok {
		return lockDecision{}, schemas.Refuse(schemas.CodeMalformed, "lock %.40q is none of active, paused, suspended, killed", string(req.Lock))
	}
	a := s.Agents[req.AgentID]
	if a == nil {
		return lockDecision{}, schemas.Refuse(schemas.CodeNotFound, "%s is neither an agent nor a service of this fleet; see writ status", req.AgentID)
	}
	d := lockDecision{kind: kind, lock: req.Lock, before: a.Lock}
	switch {
	case a.Lock == req.Lock:
		d.kind, d.seq = "", a.LockSeq
	case a.Lock == schemas.Killed:
		return d, schemas.Refuse(schemas.CodeConflict, "%s was killed, for good: %s; enrol it anew with writ enroll %s", a.ID, a.LockReason, a.ID)
	case req.Lock != schemas.Active && lockOrder[req.Lock] < lockOrder[a.Lock]:
		return d, schemas.Refuse(schemas.CodeConflict, "%s is %s already, which is stronger; resume it first", a.ID, a.Lock)
	}
	var err error
	d.vouch, err = decideVouch(a, req)
	if slices.ContainsFunc(d.vouch, func(e *schemas.Event) bool { return e.Kind == schemas.ReviewEndorsed }) {
		d.kind, d.lock, d.seq = "", a.Lock, a.LockSeq // until a second operator has vouched
	}
	return d, err
}

func checkReason(reason string) error {
	if schemas.HeaderText(reason) == "" {
		return schemas.Refuse(schemas.CodeMalformed, "no reason was given; say why, it stands in the log")
	}
	if len(reason) > schemas.MaxReason {
		return schemas.Refuse(schemas.CodeMalformed, "the reason has %d bytes, %d are possible", len(reason), schemas.MaxReason)
	}
	return nil
}

// decideVouch says which events vouch for the actions that a request names, or,
// where two operators must, which are the first half of that. All of them can be
// vouched for, or none is.
func decideVouch(a *schemas.Agent, req schemas.LockRequest) ([]*schemas.Event, error) {
	var events []*schemas.Event
	for _, seq := range sorted(req.Vouch) {
		cause := a.Causes[seq]
		if cause == nil {
			return nil, schemas.Refuse(schemas.CodeNotFound, "event %d is no action that suspended %s and can be vouched for: it is of another agent, was refused for more than its risk, has been vouched for, or is one of too long ago; see writ risk %s", seq, a.ID, a.ID)
		}
		kind, err := consent(a, cause, req.Actor, schemas.ReviewVouched)
		if err != nil {
			return nil, err
		}
		events = append(events, decided(kind, cause, req.Reason, req.Actor))
	}
	return events, nil
}

// decided is the event of a decision on an action. It names the very action, by
// the digest of its body too.
func decided(kind schemas.Kind, of *schemas.Event, reason, actor string) *schemas.Event {
	return &schemas.Event{
		Kind: kind, Agent: of.Agent, Ref: of.Seq, Operation: of.Operation, Action: of.Action, Digest: of.Digest,
		Trace: of.Trace, Reason: schemas.HeaderText(reason), Actor: actor,
	}
}

// decideReview finds the held action of a review and says which event ends it,
// or, where two operators must approve, is the first half of that.
func decideReview(s *schemas.State, req schemas.ReviewRequest) (*schemas.Event, error) {
	if err := checkActor(req.Actor); err != nil {
		return nil, err
	}
	kind := schemas.ReviewApproved
	if !req.Approve {
		kind = schemas.ReviewDenied
		if err := checkReason(req.Reason); err != nil {
			return nil, err
		}
	}
	held := heldAction(s, req.Seq)
	if held == nil {
		return nil, schemas.Refuse(schemas.CodeNotFound, "no action is held under %d: it was decided, cancelled or has expired; see writ review list", req.Seq)
	}
	if req.Approve {
		var err error
		if kind, err = consent(s.Agents[held.Agent], held, req.Actor, kind); err != nil {
			return nil, err
		}
	}
	return decided(kind, held, req.Reason, req.Actor), nil
}

// consent says what an operator's consent to an action is, held or vouched for:
// the whole, or where two must approve the first half, and then it takes another
// person.
func consent(a *schemas.Agent, of *schemas.Event, actor string, whole schemas.Kind) (schemas.Kind, error) {
	switch {
	case !a.TwoPerson:
	case of.Actor == "":
		return schemas.ReviewEndorsed, nil
	case person(of.Actor) == person(actor):
		return "", schemas.Refuse(schemas.CodeConflict, "%s approved action %d already; what %s does needs a second operator's approval", of.Actor, of.Seq, of.Agent)
	}
	return whole, nil
}

// Reviewed reports whether a state decides a review as an event says: what it is
// of is held, or suspended its agent where it is vouched for, and where two
// operators must approve, two have.
func Reviewed(s *schemas.State, e *schemas.Event) bool {
	a := s.Agents[e.Agent]
	if a == nil {
		return false
	}
	of, whole := a.Held[e.Ref], schemas.ReviewApproved
	if cause := a.Causes[e.Ref]; of == nil && cause != nil {
		of, whole = cause, schemas.ReviewVouched
	}
	if of == nil || of.Operation != e.Operation || of.Action != e.Action || of.Digest != e.Digest {
		return false
	}
	if e.Kind == schemas.ReviewDenied {
		return whole == schemas.ReviewApproved
	}
	kind, err := consent(a, of, e.Actor, whole)
	return err == nil && kind == e.Kind
}

// person is who an actor is. Those who have the credential of the data folder
// name themselves as they like, and so count as one.
func person(actor string) string {
	if strings.HasPrefix(actor, schemas.RootActor) {
		return schemas.RootActor
	}
	return actor
}

func heldAction(s *schemas.State, seq uint64) *schemas.Event {
	for _, a := range s.Agents {
		if held := a.Held[seq]; held != nil {
			return held
		}
	}
	return nil
}

// decideEnroll says whether a principal may be enrolled. Enrolling a killed
// one brings it back, as another incarnation; the event names the kill that it
// undoes.
func decideEnroll(s *schemas.State, req schemas.EnrollRequest, incarnation string, now time.Time) (*schemas.Event, error) {
	if err := checkActor(req.Actor); err != nil {
		return nil, err
	}
	if err := schemas.CheckID("id", req.ID); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	a := s.Agents[req.ID]
	if a == nil {
		return nil, schemas.Refuse(schemas.CodeNotFound, "%s is neither an agent nor a service of this fleet; declare it in the fleet file and run writ apply", req.ID)
	}
	e := &schemas.Event{Kind: schemas.AgentEnrolled, Agent: a.ID, Actor: req.Actor, ContentType: jsonType}
	made := schemas.Enrolment{Expires: now.Add(credentialTTL(a.Kind)).UTC().Truncate(time.Second)}
	switch a.Lock {
	case schemas.Suspended:
		return nil, schemas.Refuse(schemas.CodeConflict, "%s is suspended: %s; resume it first", a.ID, a.LockReason)
	case schemas.Killed:
		e.Ref, made.Incarnation = a.LockSeq, incarnation
	}
	e.Data = schemas.Marshal(made)
	return e, nil
}
