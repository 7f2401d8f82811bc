package traces

import (
	"slices"
	"strings"

	"github.com/writ-sh/writ/schemas"
)

// Payload is the call of a run as a body of JSON: the recorded names of its
// arguments, without what stood there, and under "values" the salient ones by
// kind.
func (c *Call) Payload() []byte {
	values := map[string]any{}
	for _, v := range c.Salient {
		add(values, v.Kind, v.Text)
	}
	if c.Amount != 0 {
		values["amount"] = c.Amount
	}
	body := map[string]any{"values": values}
	for _, name := range strings.Split(c.Names, ",") {
		if name != "" && name != "values" {
			body[name] = ""
		}
	}
	return schemas.Marshal(body)
}

// Output is what the tool of call i answers: the values that later calls are
// recorded to have from it, and that no later call of the same tool can have
// brought before they were used.
func (r *Run) Output(i int) []byte {
	body := map[string]any{}
	origin := "t:" + r.Calls[i].Tool
	for _, later := range r.Calls[i+1:] {
		for _, v := range later.Salient {
			if v.Origin == origin || v.Origin == "p"+origin {
				add(body, v.Kind, v.Text)
			}
		}
		if later.Tool == r.Calls[i].Tool {
			break
		}
	}
	return schemas.Marshal(body)
}

// Task is the user's task, with what the recording says stands in it and was
// cut off or hashed.
func (r *Run) Task() string {
	task := r.Prompt
	low := strings.ToLower(task)
	for _, c := range r.Calls {
		for _, v := range c.Salient {
			if strings.HasPrefix(v.Origin, "p") && !strings.Contains(low, strings.ToLower(v.Text)) {
				task += "; " + v.Text
				low += "; " + strings.ToLower(v.Text)
			}
		}
	}
	return task
}

func add(body map[string]any, kind, text string) {
	switch have := body[kind].(type) {
	case nil:
		body[kind] = text
	case string:
		if have != text {
			body[kind] = []string{have, text}
		}
	case []string:
		if !slices.Contains(have, text) {
			body[kind] = append(have, text)
		}
	}
}
