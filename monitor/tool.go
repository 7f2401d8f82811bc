package monitor

import (
	"unique"

	"github.com/writ-sh/writ/schemas"
)

// A toolID is what counts as one tool, by one word of memory however long its
// name is: nearly all that is kept of an agent is counts by tools, pairs of them
// and places in them. The zero value stands for none. Ids are equal where the
// names are, and have no order: nothing may rest on one.
type toolID struct{ name unique.Handle[schemas.Action] }

func toolNamed(a schemas.Action) toolID {
	if a == (schemas.Action{}) {
		return toolID{}
	}
	return toolID{unique.Make(a)}
}

func (t toolID) action() schemas.Action {
	if t == (toolID{}) {
		return schemas.Action{}
	}
	return t.name.Value()
}

func (t toolID) String() string { return t.action().String() }

// firsts stand for the first tool of each verb that an agent uses, see view.seen.
var firsts = func() map[string]toolID {
	m := map[string]toolID{}
	for _, verb := range []string{schemas.VerbCall, schemas.VerbRead, schemas.VerbWrite, schemas.VerbSend, schemas.VerbAsk, schemas.VerbMemory, verbAnswer} {
		m[verb] = toolNamed(schemas.Action{Verb: verb})
	}
	return m
}()

// verbAnswer is that of all an agent answers; no action has it.
const verbAnswer = "answer"

// first is any first tool of this one's verb.
func (t toolID) first() toolID {
	verb := t.action().Verb
	if verb == "" {
		return t
	}
	if f, ok := firsts[verb]; ok {
		return f
	}
	return toolNamed(schemas.Action{Verb: verb})
}
