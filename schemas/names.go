package schemas

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of names.
const (
	MaxID       = 63         // bytes of an agent, service or operation id, or of a tool's name
	MaxResource = 200        // bytes of a dotted resource
	MaxPayload  = 1 << 20    // bytes of a message's body
	MaxHeader   = 64 << 10   // bytes of an agent's header block
	Fleet       = "_fleet"   // stands where an event concerns no single agent
	MemoryID    = "memory"   // the built-in memory service
	Stream      = "EVENTS"   // the log
	EventPrefix = "ev"       // first token of each event's subject
	OutPrefix   = "writ.out" // what agents publish, as CONTROL sees it
	InPrefix    = "writ.in"  // what agents receive, as DELIVER sees it
)

// The verbs of an action. A scope "verb:resource" is the right to publish
// out.<operation>.<verb>.<resource>.
const (
	VerbCall   = "call"
	VerbRead   = "read"
	VerbWrite  = "write"
	VerbSend   = "send"
	VerbAsk    = "ask"
	VerbMemory = "memory"
)

// ErrName is matched by every error about a name that breaks the grammar.
var ErrName = errors.New("invalid name")

func nameError(what, value, why string) error {
	if len(value) > 80 {
		value = value[:80] + "…"
	}
	return fmt.Errorf("%w: %s %q %s", ErrName, what, value, why)
}

// CheckID reports whether s is an id: [a-z0-9][a-z0-9_-]{0,62}, and not a
// reserved word. Nothing is mended: upper case is an error, not folded.
func CheckID(what, s string) error {
	switch {
	case s == "":
		return nameError(what, s, "is empty")
	case len(s) > MaxID:
		return nameError(what, s, fmt.Sprintf("is longer than %d bytes", MaxID))
	case s == "token":
		return nameError(what, s, "is reserved")
	case s[0] == '_' || s[0] == '-':
		return nameError(what, s, "must start with a letter or a digit")
	}
	for i := 0; i < len(s); i++ {
		if !idByte(s[i]) {
			return nameError(what, s, "may hold only a-z, 0-9, _ and -")
		}
	}
	return nil
}

func idByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// CheckTrustDomain reports whether s is the name of a SPIFFE trust domain: a-z,
// 0-9, ".", "-" and "_", at most 255 bytes (SPIFFE-ID, section 2.1).
func CheckTrustDomain(s string) error {
	if s == "" || len(s) > 255 {
		return nameError("trust domain", s, "is empty or longer than 255 bytes")
	}
	for i := 0; i < len(s); i++ {
		if !idByte(s[i]) && s[i] != '.' {
			return nameError("trust domain", s, "may hold only a-z, 0-9, ., - and _")
		}
	}
	return nil
}

// CheckResource reports whether s is a resource: dotted tokens that are ids
// in form, at most 200 bytes in all.
func CheckResource(s string) error {
	if len(s) > MaxResource {
		return nameError("resource", s, fmt.Sprintf("is longer than %d bytes", MaxResource))
	}
	if s == "" {
		return nameError("resource", s, "is empty")
	}
	for rest := s; ; {
		token, after, more := strings.Cut(rest, ".")
		if err := CheckID("resource token", token); err != nil {
			return err
		}
		if !more {
			return nil
		}
		rest = after
	}
}

// CheckTrace reports whether s is a W3C trace id: 32 lower-case hex digits,
// not all zero.
func CheckTrace(s string) error {
	if !lowerHex(s, 32) || s == "00000000000000000000000000000000" {
		return nameError("trace id", s, "is not 32 lower-case hex digits")
	}
	return nil
}

func lowerHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := 0; i < n; i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// An Action is what an agent asks to do: a verb and the resource it acts on.
// Its text form is "verb:resource"; for memory "memory:get.<key>",
// "memory:put.<key>", "memory:delete.<key>" and "memory:list".
type Action struct {
	Verb     string
	Resource string
}

func (a Action) String() string { return a.Verb + ":" + a.Resource }

// Scope is the scope that must have been granted for the action. It is the
// action itself, save for memory, where a scope covers all keys of the
// agent's own namespace.
func (a Action) Scope() string {
	if a.Verb == VerbMemory {
		op, _, _ := strings.Cut(a.Resource, ".")
		return VerbMemory + ":" + op
	}
	return a.String()
}

// Request reports whether the sender waits for an answer. A send is
// acknowledged and delivered at least once; all else is a request.
func (a Action) Request() bool { return a.Verb != VerbSend }

// ParseAction parses "verb:resource".
func ParseAction(s string) (Action, error) {
	verb, resource, ok := strings.Cut(s, ":")
	if !ok {
		return Action{}, nameError("scope", s, "is not of the form verb:resource")
	}
	a := Action{Verb: verb, Resource: resource}
	return a, a.check()
}

func (a Action) check() error {
	switch a.Verb {
	case VerbCall, VerbSend, VerbAsk:
		return CheckID(a.Verb+" resource", a.Resource)
	case VerbRead, VerbWrite:
		return CheckResource(a.Resource)
	case VerbMemory:
		op, key, keyed := strings.Cut(a.Resource, ".")
		switch op {
		case "list":
			if keyed {
				return nameError("memory action", a.Resource, "takes no key")
			}
			return nil
		case "get", "put", "delete":
			if !keyed {
				return nameError("memory action", a.Resource, "needs a key")
			}
			return CheckResource(key)
		}
		return nameError("memory action", a.Resource, "is none of get, put, delete, list")
	}
	return nameError("verb", a.Verb, "is none of call, read, write, send, ask, memory")
}

// CheckScope reports whether s is a scope that can be granted: exact, without
// wildcard. Memory scopes name the operation alone ("memory:get").
func CheckScope(s string) error {
	if op, ok := strings.CutPrefix(s, VerbMemory+":"); ok {
		switch op {
		case "get", "put", "delete", "list":
			return nil
		}
		return nameError("scope", s, "is none of memory:get, memory:put, memory:delete, memory:list")
	}
	if _, err := ParseAction(s); err != nil {
		return fmt.Errorf("scope %q: %w", clip(s), err)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
