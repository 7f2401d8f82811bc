package hooks

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/writ-sh/writ/schemas"
)

const (
	dialWithin = 5 * time.Second
	sendWithin = 15 * time.Second
)

// ErrAddress is matched where a name leads to where no webhook is sent.
var ErrAddress = errors.New("the address is not one that webhooks are sent to")

// client sends to the URL of a webhook and nowhere else.
func (h Hook) client() (*http.Client, error) {
	u, err := url.Parse(h.URL)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: the URL can't be read", h.ID)
	}
	d := &net.Dialer{Timeout: dialWithin, Control: func(_, address string, _ syscall.RawConn) error {
		return h.mayDial(u.Hostname(), address)
	}}
	return &http.Client{
		Timeout:       sendWithin,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: d.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
	}, nil
}

// mayDial holds the address that a name led to against what was configured: a
// name that someone else answers for must not lead into this machine or network.
func (h Hook) mayDial(host, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrAddress, address)
	}
	ip := at.Addr().Unmap()
	_, perr := netip.ParseAddr(host)
	literal := perr == nil
	switch {
	case ip.IsLoopback():
		if !isLoopback(host) {
			return fmt.Errorf("%w: the name leads to loopback", ErrAddress)
		}
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified():
		return fmt.Errorf("%w: it is link-local, multicast or none", ErrAddress)
	case ip.IsPrivate() && !literal && !h.Private:
		return fmt.Errorf("%w: the name leads to a private address, and --private was not given", ErrAddress)
	}
	return nil
}

// send makes one attempt. An error names no URL: it may hold a secret.
func (h Hook) send(ctx context.Context, c *http.Client, id string, body []byte, now time.Time) error {
	var signatures []string
	for _, secret := range h.Secrets {
		w, err := standard.NewWebhook(secret)
		if err != nil {
			return fmt.Errorf("webhook %s: its secret is not one of the standard's", h.ID)
		}
		signature, err := w.Sign(id, now, body)
		if err != nil {
			return fmt.Errorf("webhook %s: sign: %w", h.ID, err)
		}
		signatures = append(signatures, signature)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("webhook %s: the URL can't be asked", h.ID)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "writ")
	req.Header.Set(standard.HeaderWebhookID, id)
	req.Header.Set(standard.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standard.HeaderWebhookSignature, strings.Join(signatures, " "))
	res, err := c.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err
		}
		return fmt.Errorf("webhook %s: %w", h.ID, err)
	}
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // what it says does not matter
	if err := res.Body.Close(); err != nil {
		return fmt.Errorf("webhook %s: %w", h.ID, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("webhook %s: the receiver answers %d", h.ID, res.StatusCode)
	}
	return nil
}

// Test sends a signed message of the type test, once.
func (h Hook) Test(ctx context.Context, now time.Time) error {
	c, err := h.client()
	if err != nil {
		return err
	}
	body := schemas.Marshal(message{Type: "test", Time: now.UTC()})
	return h.send(ctx, c, "test_"+strconv.FormatInt(now.UnixNano(), 10), body, now)
}
