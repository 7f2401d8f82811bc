// Package traces reads recorded agent runs: newline-delimited JSON, plain or
// gzipped, in which each run's header is followed by its calls, in order. What
// its fields mean is in the README beside the recorded files.
//
// Fields of which the recordings say that they leak the label (lengths,
// durations) are not read at all.
package traces

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// A Run is one recorded run of an agent.
type Run struct {
	ID        string   `json:"run"`
	Source    string   `json:"src"`
	Model     string   `json:"model"`
	Suite     string   `json:"suite"`
	UserTask  string   `json:"ut"`
	Attack    string   `json:"atk"` // "none" where benign
	Injection string   `json:"it"`
	N         int      `json:"n"`
	Prompt    string   `json:"prompt"`
	Hit       int      `json:"hit"`      // label: the injection's goal was reached
	GTTools   []string `json:"gt_tools"` // what an ideal token would list
	Calls     []Call   `json:"-"`
}

// A Call is one tool call of a run.
type Call struct {
	Run     string  `json:"r"`
	Index   int     `json:"i"`
	Tool    string  `json:"tool"`
	Names   string  `json:"ak"` // of its arguments, with commas between
	Salient []Value `json:"sc"`
	Amount  float64 `json:"amt"`
	Y       int     `json:"y"` // label: 2 is an injected side-effecting call
}

// A Value is one salient argument: its kind, the value, and where it was first
// seen: "p" in the prompt, "t:<tool>" in that tool's output, "pt:<tool>" in
// both, "-" in neither.
type Value struct{ Kind, Text, Origin string }

// UnmarshalJSON reads the triple [kind, value, origin]. A value that is no
// string is taken as it is written.
func (v *Value) UnmarshalJSON(b []byte) error {
	var t []json.RawMessage
	if err := json.Unmarshal(b, &t); err != nil {
		return err
	}
	if len(t) != 3 {
		return fmt.Errorf("a salient value has %d parts, want 3", len(t))
	}
	for i, to := range []*string{&v.Kind, &v.Text, &v.Origin} {
		if json.Unmarshal(t[i], to) != nil {
			*to = string(t[i])
		}
	}
	return nil
}

const maxLine = 16 << 20

// Open reads the runs of a file, one at a time. The error names the file and
// line.
func Open(path string) iter.Seq2[*Run, error] {
	return func(yield func(*Run, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(nil, fmt.Errorf("traces: %w", err))
			return
		}
		defer f.Close()
		for run, err := range Read(f) {
			if err != nil {
				err = fmt.Errorf("traces: %s: %w", path, err)
			}
			if !yield(run, err) || err != nil {
				return
			}
		}
	}
}

// Read reads runs from r, which may be gzipped.
func Read(r io.Reader) iter.Seq2[*Run, error] {
	return func(yield func(*Run, error) bool) {
		buffered := bufio.NewReader(r)
		if magic, err := buffered.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
			z, err := gzip.NewReader(buffered)
			if err != nil {
				yield(nil, err)
				return
			}
			defer z.Close()
			buffered = bufio.NewReader(z)
		}
		sc := bufio.NewScanner(buffered)
		sc.Buffer(nil, maxLine)
		var run *Run
		for line := 1; sc.Scan(); line++ {
			next, err := parse(sc.Bytes(), run)
			if err != nil {
				yield(nil, fmt.Errorf("line %d: %w", line, err))
				return
			}
			if next != nil {
				if run != nil && !yield(run, nil) {
					return
				}
				run = next
			}
		}
		if err := sc.Err(); err != nil {
			yield(nil, err)
			return
		}
		if run != nil {
			yield(run, nil)
		}
	}
}

// parse reads one line: a header begins a run, a call goes to the present one.
func parse(line []byte, present *Run) (*Run, error) {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil, nil
	}
	var kind struct {
		Run *string `json:"run"`
		R   *string `json:"r"`
	}
	if err := json.Unmarshal(line, &kind); err != nil {
		return nil, err
	}
	switch {
	case kind.Run != nil:
		run := &Run{}
		return run, json.Unmarshal(line, run)
	case kind.R == nil:
		return nil, errors.New("neither a run's header nor a call")
	case present == nil || *kind.R != present.ID:
		return nil, fmt.Errorf("a call of run %s outside of it", *kind.R)
	}
	var c Call
	if err := json.Unmarshal(line, &c); err != nil {
		return nil, err
	}
	present.Calls = append(present.Calls, c)
	return nil, nil
}

// Tool is an entry of the manifest of tools.
type Tool struct {
	Class       string `json:"class"` // R read, W write, X execute or egress
	Description string `json:"description"`
}

// Manifest reads the manifest of tools.
func Manifest(path string) (map[string]Tool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("manifest of tools: %w", err)
	}
	var m map[string]Tool
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest of tools %s: %w", path, err)
	}
	return m, nil
}
