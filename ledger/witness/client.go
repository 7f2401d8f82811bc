package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrForked is matched where a witness has seen another history than the one
// that it was shown, or a longer one.
var ErrForked = errors.New("the witness has cosigned another history")

// A StaleError says which size a witness cosigned last.
type StaleError struct{ Size uint64 }

func (e *StaleError) Error() string {
	return fmt.Sprintf("the witness cosigned %d records last", e.Size)
}

// Add asks a witness for its cosignature: the line of a signed note, verified.
// Errors are of type *StaleError where the request's old size is not the
// witness's, and match ErrForked where the witness refuses the history.
func (m Member) Add(ctx context.Context, c *http.Client, r Request) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(r.Marshal()))
	if err != nil {
		return "", fmt.Errorf("witness %s: %w", m.Name, err)
	}
	rep, err := c.Do(req)
	if err != nil {
		return "", fmt.Errorf("witness %s: %w", m.Name, err)
	}
	body, err := io.ReadAll(io.LimitReader(rep.Body, maxBody+1))
	if err := errors.Join(err, rep.Body.Close()); err != nil {
		return "", fmt.Errorf("witness %s: %w", m.Name, err)
	}
	switch rep.StatusCode {
	case http.StatusOK:
		return m.verified(r.Checkpoint, body)
	case http.StatusConflict:
		if rep.Header.Get("Content-Type") != "text/x.tlog.size" {
			return "", fmt.Errorf("witness %s: %w: %.300q", m.Name, ErrForked, body)
		}
		size, err := strconv.ParseUint(strings.TrimSuffix(string(body), "\n"), 10, 63)
		if err != nil {
			return "", fmt.Errorf("witness %s: its size %.40q is no number", m.Name, body)
		}
		return "", &StaleError{Size: size}
	case http.StatusUnprocessableEntity:
		return "", fmt.Errorf("witness %s: %w: %.300q", m.Name, ErrForked, body)
	}
	return "", fmt.Errorf("witness %s: it answers %s: %.300q", m.Name, rep.Status, body)
}

// verified gives the one line by the witness's key, whatever else it answered.
func (m Member) verified(checkpoint, body []byte) (string, error) {
	n, err := note.Open(append(bytes.Clone(checkpoint), body...), note.VerifierList(m.key))
	if err != nil {
		return "", fmt.Errorf("witness %s: its answer is no cosignature of this checkpoint under its key: %w", m.Name, err)
	}
	return fmt.Sprintf("— %s %s\n", n.Sigs[0].Name, n.Sigs[0].Base64), nil
}
