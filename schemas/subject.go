package schemas

import (
	"strconv"
	"strings"
)

// OutKind tells the three things an agent may publish apart.
type OutKind uint8

const (
	OutAction   OutKind = iota // out.<operation>.<verb>.<resource>
	OutResponse                // out._r.<request>-<seq>
	OutToken                   // out.token.<issue|refresh|release|join>
)

// bornAs stands between the name of an agent and its incarnation, where the
// server stamps both. No id holds it.
const bornAs = "~"

// An Out is a parsed subject writ.out.<agent>~<incarnation>.…: what the agent
// published, with the account that the server stamped in front. The stamp is the
// only source of identity. Those declared before there were incarnations have
// none, and neither has their stamp.
type Out struct {
	Agent       string
	Incarnation string
	Kind        OutKind
	Operation   string // OutAction
	Action      Action // OutAction
	Request     string // OutResponse: 32 hex digits, as in the request's event
	Seq         uint64 // OutResponse: sequence of the request's event
	Token       string // OutToken: issue, refresh, release or join
}

// OutSubject is what CONTROL sees all that a principal publishes under, in one
// incarnation.
func OutSubject(id, incarnation string) string {
	if incarnation != "" {
		id += bornAs + incarnation
	}
	return OutPrefix + "." + id + ".>"
}

// OutSender returns the stamped agent and incarnation of a subject
// writ.out.<agent>~<incarnation>.…, and what follows, without parsing that:
// intake sheds floods with it before anything else. The agent is "" where the
// subject has another form.
func OutSender(subject string) (agent, incarnation, rest string) {
	stamped, ok := strings.CutPrefix(subject, OutPrefix+".")
	if !ok {
		return "", "", ""
	}
	stamp, rest, ok := strings.Cut(stamped, ".")
	if !ok {
		return "", "", ""
	}
	agent, incarnation, _ = strings.Cut(stamp, bornAs)
	return agent, incarnation, rest
}

// OutAgent is the agent of OutSender.
func OutAgent(subject string) string {
	agent, _, _ := OutSender(subject)
	return agent
}

// ParseOut parses a subject of what a principal published. Errors match ErrName.
func ParseOut(subject string) (Out, error) {
	var o Out
	var rest string
	if o.Agent, o.Incarnation, rest = OutSender(subject); o.Agent == "" {
		return o, nameError("subject", subject, "is not writ.out.<agent>.…")
	}
	if err := CheckID("agent", o.Agent); err != nil {
		return o, err
	}
	if strings.HasPrefix(subject, OutPrefix+"."+o.Agent+bornAs) {
		if err := CheckID("incarnation", o.Incarnation); err != nil {
			return o, err
		}
	}
	first, tail, _ := strings.Cut(rest, ".")
	switch first {
	case "_r":
		o.Kind = OutResponse
		var err error
		o.Request, o.Seq, err = ParseResponseToken(tail)
		return o, err
	case "token":
		o.Kind = OutToken
		o.Token = tail
		switch tail {
		case "issue", "refresh", "release", "join":
			return o, nil
		}
		return o, nameError("subject", subject, "is none of out.token.issue, out.token.refresh, out.token.release, out.token.join")
	}
	o.Kind = OutAction
	o.Operation = first
	if err := CheckID("operation", first); err != nil {
		return o, err
	}
	verb, resource, ok := strings.Cut(tail, ".")
	if !ok {
		return o, nameError("subject", subject, "is not out.<operation>.<verb>.<resource>")
	}
	o.Action = Action{Verb: verb, Resource: resource}
	return o, o.Action.check()
}

// ResponseToken builds the last token of a request's reply subject
// out._r.<token>. It carries the random request id, which only the recipient
// is given, and the sequence under which the request stands in the log, so
// that any intake can look the request up.
func ResponseToken(request string, seq uint64) string {
	return request + "-" + strconv.FormatUint(seq, 10)
}

// ParseResponseToken undoes ResponseToken.
func ParseResponseToken(s string) (request string, seq uint64, err error) {
	request, dec, ok := strings.Cut(s, "-")
	if !ok || !lowerHex(request, 32) {
		return "", 0, nameError("answer id", s, "is not one that was given out")
	}
	seq, err = parseUint(dec)
	if err != nil || seq == 0 {
		return "", 0, nameError("answer id", s, "is not one that was given out")
	}
	return request, seq, nil
}

// parseUint accepts the canonical decimal form alone.
func parseUint(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, nameError("number", s, "is not a canonical decimal")
	}
	return n, nil
}

// InSubject is the subject, inside DELIVER, under which release delivers to a
// recipient: writ.in.<to>.<what>.
func InSubject(to string, a Action, from string) string {
	switch a.Verb {
	case VerbSend, VerbAsk:
		return InPrefix + "." + to + "." + a.Verb + "." + from
	}
	return InPrefix + "." + to + "." + a.Verb + "." + a.Resource
}

// CancelSubject tells a recipient that the action it was given under seq was
// cancelled.
func CancelSubject(to string, seq uint64) string {
	return InPrefix + "." + to + ".cancel." + strconv.FormatUint(seq, 10)
}

// EventSubject is the subject of an event in the log: ev.<agent>.<kind>.
func EventSubject(agent string, kind Kind) string {
	return EventPrefix + "." + agent + "." + string(kind)
}

// ParseEventSubject undoes EventSubject.
func ParseEventSubject(subject string) (agent string, kind Kind, err error) {
	rest, ok := strings.CutPrefix(subject, EventPrefix+".")
	if !ok {
		return "", "", nameError("event subject", subject, "does not start with ev.")
	}
	agent, k, ok := strings.Cut(rest, ".")
	if !ok {
		return "", "", nameError("event subject", subject, "has no kind")
	}
	if agent != Fleet {
		if err := CheckID("agent", agent); err != nil {
			return "", "", err
		}
	}
	if _, known := kinds[Kind(k)]; !known {
		return "", "", nameError("event kind", k, "is unknown")
	}
	return agent, Kind(k), nil
}
