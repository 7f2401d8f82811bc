package issuer

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natsext"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// Operators are named: each has an account of its own, whose commands arrive
// here under writ.op.<name>.>, stamped by the server, and whose template admits
// those of its role alone. What they ask of other services the issuer asks on
// for them, so that there is one place which knows who may, and no other
// service needs the right to answer beyond CONTROL.

const (
	ordersOpen    = 256         // commands of named operators in progress
	orderWait     = time.Minute // for the answer of another service
	healthStall   = 300 * time.Millisecond
	healthWait    = 2 * time.Second
	ctlPrefix     = "writ.ctl"
	operatorLimit = 100 // commands of one operator in a second
)

// An operator is who gives a command: nobody in particular where the name is
// empty.
type operator struct {
	name string
	role schemas.Role
}

type operatorKey struct{}

// An order carries out one kind of command.
type order func(ctx context.Context, by operator, data []byte) (any, error)

// acted are requests that name who asks.
type acted interface{ By() *string }

// take serves a control subject, for the data folder's credential and for named
// operators alike. What a request says of who asks is replaced by what is
// known.
func take[Req, Rep any](i *Issuer, subject string, fn func(context.Context, Req) (Rep, error)) error {
	do := func(ctx context.Context, by operator, req Req) (Rep, error) {
		if a, ok := any(&req).(acted); ok {
			actor := a.By()
			switch {
			case by.name != "":
				*actor = by.name
			case *actor != "":
				*actor = schemas.RootActor + *actor
			}
		}
		return fn(context.WithValue(ctx, operatorKey{}, by), req)
	}
	i.orders[subject] = func(ctx context.Context, by operator, data []byte) (any, error) {
		var req Req
		if len(data) > 0 {
			if err := schemas.Unmarshal(data, &req); err != nil {
				return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
			}
		}
		return do(ctx, by, req)
	}
	return bus.Handle(i.Control, i.Logger, subject, func(ctx context.Context, req Req) (Rep, error) { return do(ctx, operator{}, req) })
}

// overOperators refuses commands that act on operators to all but admins: who
// may enrol an admin is one. Nobody with a name acts on the built-in memory
// service: whoever may enrol it receives what every agent remembers.
func (i *Issuer) overOperators(ctx context.Context, id string) error {
	by, _ := ctx.Value(operatorKey{}).(operator)
	if by.name != "" && id == schemas.MemoryID {
		return schemas.Refuse(schemas.CodeForbidden, "%s is part of the control plane: only the data folder's own credential acts on it", id)
	}
	if by.name == "" || by.role == schemas.RoleAdmin {
		return nil
	}
	if !view(i, func(s *schemas.State) bool { a := s.Agents[id]; return a != nil && a.Kind == schemas.KindOperator }) {
		return nil
	}
	return schemas.Refuse(schemas.CodeForbidden, "%s is an operator: admins alone may do that, and %s is %s", clip(id), by.name, by.role)
}

// serveOperators answers named operators.
func (i *Issuer) serveOperators() error {
	open := make(chan struct{}, ordersOpen)
	_, err := i.Control.Subscribe(schemas.OpPrefix+".*.>", func(m *nats.Msg) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(m.Subject, schemas.OpPrefix+"."), ".")
		if !strings.HasPrefix(m.Reply, "_R_.") {
			i.Logger.Error("command of an operator passed over: the server made no inbox for its answer", "operator", name, "subject", m.Subject)
			return
		}
		if !i.paces.of(name).AllowN(i.Now(), 1) {
			i.answerOperator(m, nil, tooManyCommands())
			return
		}
		select {
		case open <- struct{}{}:
		default:
			i.answerOperator(m, nil, schemas.Refuse(schemas.CodeUnavailable, "the issuer has too much to do; ask again"))
			return
		}
		go func() {
			defer func() { <-open }()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			i.obey(ctx, m, name, ctlPrefix+"."+rest)
		}()
	})
	return err
}

// obey carries out one command of a named operator.
func (i *Issuer) obey(ctx context.Context, m *nats.Msg, name, subject string) {
	by, err := i.mayAsk(name, subject)
	switch {
	case err != nil:
		i.answerOperator(m, nil, err)
	case subject == schemas.CtlHealth:
		i.gatherHealth(ctx, m)
	case i.orders[subject] != nil:
		answer, err := i.orders[subject](ctx, by, m.Data)
		i.answerOperator(m, answer, err)
	default:
		i.askOn(ctx, m, subject)
	}
}

// command carries out one of those that the issuer itself answers, for an
// operator who is known: what came over HTTP goes the way of what came over
// NATS.
func (i *Issuer) command(ctx context.Context, name, subject string, data []byte) (any, error) {
	by, err := i.mayAsk(name, subject)
	if err != nil {
		return nil, err
	}
	return i.orders[subject](ctx, by, data)
}

func tooManyCommands() *schemas.Refusal {
	return schemas.Refuse(schemas.CodeRate, "over %d commands in a second; slow down", operatorLimit)
}

// mayAsk decides whether an operator may give a command now. The server's
// template says the same of the role that the account was made for; a role that
// was lowered, or a lock, counts from its event on.
func (i *Issuer) mayAsk(name, subject string) (operator, error) {
	return decideAsk(view(i, func(s *schemas.State) schemas.Agent {
		if a := s.Agents[name]; a != nil {
			return *a
		}
		return schemas.Agent{}
	}), name, subject)
}

func decideAsk(a schemas.Agent, name, subject string) (operator, error) {
	switch {
	case a.Kind != schemas.KindOperator:
		return operator{}, schemas.Refuse(schemas.CodeUnauthorized, "%s is no operator of this fleet", clip(name))
	case a.Lock != schemas.Active:
		return operator{}, schemas.Refuse(schemas.CodeUnauthorized, "%s is %s: %s; an admin must resume or enrol %s", name, a.Lock, a.LockReason, name)
	case !a.Role.May(subject):
		return operator{}, schemas.Refuse(schemas.CodeForbidden, "%s is %s, whose commands do not include %s", name, a.Role, clip(subject))
	}
	return operator{name, a.Role}, nil
}

// askOn puts a question to another service, and hands its answer back as it is.
func (i *Issuer) askOn(ctx context.Context, m *nats.Msg, subject string) {
	ctx, cancel := context.WithTimeout(ctx, orderWait)
	defer cancel()
	answer, err := i.Control.RequestWithContext(ctx, subject, m.Data)
	if err != nil {
		i.answerOperator(m, nil, schemas.Refuse(schemas.CodeUnavailable, "nobody answers %s: that service of the control plane is down", subject))
		return
	}
	out := nats.NewMsg(m.Reply)
	out.Data = answer.Data
	for _, h := range []string{schemas.HeaderErrorCode, schemas.HeaderError, schemas.HeaderSeq} {
		if v := answer.Header[h]; len(v) > 0 {
			out.Header[h] = v
		}
	}
	i.sendOn(i.Control, m, out)
}

// signalFor hands a named operator's signal on to the monitor, with that name.
func (i *Issuer) signalFor(ctx context.Context, by operator, data []byte) (any, error) {
	var req schemas.SignalRequest
	if err := schemas.Unmarshal(data, &req); err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	req.Operator = by.name
	return bus.Call[schemas.SignalReply](ctx, i.Control, schemas.CtlSignal, req)
}

// gatherHealth asks all services, and hands on what each says as it comes.
func (i *Issuer) gatherHealth(ctx context.Context, m *nats.Msg) {
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	answers, err := natsext.RequestMany(ctx, i.Control, schemas.CtlHealth, nil, natsext.RequestManyStall(healthStall))
	if err != nil {
		i.answerOperator(m, nil, err)
		return
	}
	for one, err := range answers {
		if err != nil {
			if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) {
				i.Logger.Error("health not gathered", "error", err)
			}
			break
		}
		if err := i.Control.Publish(m.Reply, one.Data); err != nil {
			i.Logger.Error("answer to an operator not sent", "subject", m.Subject, "error", err)
			return
		}
	}
	i.forget(i.Control, m)
}

func (i *Issuer) answerOperator(m *nats.Msg, answer any, err error) {
	i.answerOn(i.Control, m, answer, err, true)
}
