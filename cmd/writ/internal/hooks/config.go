// Package hooks tells chat systems and the like what operators should look at:
// signed webhooks (Standard Webhooks: webhook-id, webhook-timestamp,
// webhook-signature), made from the log.
//
// Each event that a webhook asks for is delivered at least once, in the order of
// the log, under an id that is the same in every attempt. The log is the queue:
// what is not delivered yet stands there, a file holds how far a webhook has
// come, and nobody waits for it. An event that could not be delivered for a day
// is passed over, counted and logged.
//
// What is sent says which agent, which action, its digest, risk and the ids of
// the factors; never what agents sent, nor words of theirs. It goes to the URL
// that was configured and nowhere else: no redirect is followed, no proxy asked.
//
// Webhooks are configured in the data folder, by who has it: whoever may declare
// a fleet must not be able to have this machine call addresses.
package hooks

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// A Hook is one webhook. Its secrets sign each delivery, all of them: the newest
// first, and the one before it, so that a receiver can change over.
type Hook struct {
	ID      string   `json:"id"`
	URL     string   `json:"url"`
	Events  []string `json:"events"`            // Names
	Private bool     `json:"private,omitempty"` // the URL's name may lead to a private address
	Secrets []string `json:"secrets"`           // whsec_…
}

const (
	secretBytes = 32
	dir         = "webhooks"
	suffix      = ".json"
)

func folder(data string) string { return filepath.Join(data, keys.Dir, dir) }

// name is that of a webhook's file in keys/.
func name(id string) string { return filepath.Join(dir, id+suffix) }

func path(data, id string) string { return filepath.Join(folder(data), id+suffix) }

// NewSecret makes one, in the form of the standard.
func NewSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b)
	return "whsec_" + base64.StdEncoding.EncodeToString(b)
}

// Check says what is wrong with a webhook.
func (h Hook) Check() error {
	if err := schemas.CheckID("webhook", h.ID); err != nil {
		return err
	}
	u, err := url.Parse(h.URL)
	switch {
	case err != nil:
		return fmt.Errorf("webhook %s: the URL can't be read", h.ID) // it may hold a secret
	case u.Host == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("webhook %s: the URL is not https://host/path", h.ID)
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return fmt.Errorf("webhook %s: the URL is neither https nor on loopback", h.ID)
	case len(h.Events) == 0:
		return fmt.Errorf("webhook %s: it asks for no events; there are %s", h.ID, strings.Join(Names(), ", "))
	case len(h.Secrets) == 0:
		return fmt.Errorf("webhook %s: it has no secret", h.ID)
	}
	for _, e := range h.Events {
		if !slices.Contains(Names(), e) {
			return fmt.Errorf("webhook %s: there is no event %.40q; there are %s", h.ID, e, strings.Join(Names(), ", "))
		}
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ErrNone is matched where there is no such webhook.
var ErrNone = errors.New("there is no such webhook")

// Read reads the webhook of an id.
func Read(data, id string) (Hook, error) {
	var h Hook
	if err := schemas.CheckID("webhook", id); err != nil {
		return h, err
	}
	info, err := os.Lstat(path(data, id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return h, fmt.Errorf("%w: %s", ErrNone, id)
	case err != nil:
		return h, fmt.Errorf("webhook %s: %w", id, err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0:
		return h, fmt.Errorf("webhook %s: %w: %s is not a file of mode 0600", id, keys.ErrPermissions, path(data, id))
	}
	text, err := keys.ReadSecret(data, name(id))
	if err != nil {
		return h, fmt.Errorf("webhook %s: %w", id, err)
	}
	if err := schemas.Unmarshal(text, &h); err != nil {
		return h, fmt.Errorf("webhook %s: its file can't be read: %w", id, err)
	}
	if h.ID != id {
		return h, fmt.Errorf("webhook %s: its file is that of %.80q", id, h.ID)
	}
	return h, h.Check()
}

// List reads all, by id.
func List(data string) ([]Hook, error) {
	entries, err := os.ReadDir(folder(data))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	var all []Hook
	var errs []error
	for _, e := range entries {
		id, ours := strings.CutSuffix(e.Name(), suffix)
		if !ours {
			continue
		}
		h, err := Read(data, id)
		switch {
		case errors.Is(err, ErrNone): // removed meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, h)
		}
	}
	return all, errors.Join(errs...)
}

// Write writes a webhook, whole or not at all.
func Write(data string, h Hook) error {
	if err := h.Check(); err != nil {
		return err
	}
	if err := keys.WriteSecret(data, name(h.ID), schemas.Marshal(h)); err != nil {
		return fmt.Errorf("webhook %s: %w", h.ID, err)
	}
	return nil
}

// Remove ends a webhook, and forgets how far it had come.
func Remove(data, id string) error {
	if _, err := Read(data, id); errors.Is(err, ErrNone) {
		return err
	}
	if err := os.Remove(path(data, id)); err != nil {
		return fmt.Errorf("webhook %s: %w", id, err)
	}
	if err := os.Remove(cursorPath(data, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("webhook %s: %w", id, err)
	}
	return nil
}

// replace writes a file of mode 0600 that is whole after a loss of power.
func replace(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}
