package demo

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// A request is what the analyst asks of writer-2.
type request struct {
	What   string `json:"what"` // summary or proofreading
	Period string `json:"period"`
	To     string `json:"to"`
	Best   string `json:"best,omitempty"`
	Text   string `json:"text,omitempty"`
}

// A scribe is writer-2: an agent that others ask.
type scribe struct {
	*client

	mu        sync.Mutex
	slow      bool            // it takes its time with what it is asked next
	asked     int             // questions that reached it
	told      int             // messages that reached it
	cancelled map[string]bool // sequences of which it heard that they are void
}

// listen lets it take what is delivered.
func (w *scribe) listen() error {
	for subject, do := range map[string]nats.MsgHandler{
		"in.ask.*": w.ask,
		"in.send.*": func(m *nats.Msg) {
			w.mu.Lock()
			w.told++
			w.mu.Unlock()
			_ = m.Respond(nil) // unanswered, it comes again
		},
		"in.cancel.*": func(m *nats.Msg) {
			w.mu.Lock()
			w.cancelled[strings.TrimPrefix(m.Subject, "in.cancel.")] = true
			w.mu.Unlock()
		},
	} {
		if _, err := w.nc.Subscribe(subject, do); err != nil {
			return fmt.Errorf("%s: subscribe: %w", writer, err)
		}
	}
	return w.nc.Flush()
}

func (w *scribe) ask(m *nats.Msg) {
	w.mu.Lock()
	w.asked++
	slow := w.slow
	w.mu.Unlock()
	if slow {
		return // the caller's deadline is minutes away
	}
	var r request
	if err := json.Unmarshal(m.Data, &r); err != nil {
		respond(m, nil, "", err)
		return
	}
	text := "In " + r.Period + " sales were led by the region " + r.Best + ", as the chart below shows in detail."
	if r.What == "proofreading" {
		text = "Read it twice and found nothing that has to be changed before it goes out to its readers."
	}
	respond(m, []byte(text), "text/plain", nil)
}

// dawdle makes it slow from now on.
func (w *scribe) dawdle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = true
}

// reached is how many questions and messages it got.
func (w *scribe) reached() (asked, told int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked, w.told
}

// heard reports whether it was told that a sequence is void.
func (w *scribe) heard(seq uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cancelled[fmt.Sprint(seq)]
}
