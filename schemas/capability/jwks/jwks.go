// Package jwks verifies capabilities under a key set that changes: the
// issuer's, over HTTP or from a file.
//
// The set is read when the first token is verified, again once it is
// [MaxAge] old, and at once, though not more often than each [MinAge], when a
// token names a key that is not in it: so a new key is known when its first
// token comes. A key that was taken out of the set verifies nothing from the
// next reading on; what was remembered under the old set goes with it. While
// the set can't be read, the one that is here holds for up to [MaxStale];
// behind that every token is refused.
package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/writ-sh/writ/schemas/capability"
)

// Ages of a key set.
const (
	MinAge   = 5 * time.Second
	MaxAge   = 5 * time.Minute
	MaxStale = time.Hour
)

const (
	maxSet    = 64 << 10 // bytes
	fetchTime = 5 * time.Second
)

// ErrUnavailable is matched where no key set can be had: nothing can be said
// of any token.
var ErrUnavailable = errors.New("key set not available")

// A Source is where a key set comes from. It gives the set as it stands now.
type Source func(context.Context) ([]byte, error)

// URL reads the set from an address; http.DefaultClient where client is nil.
// Over anything but loopback it must be https, or whoever is on the way signs
// tokens.
func URL(address string, client *http.Client) Source {
	if client == nil {
		client = http.DefaultClient
	}
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s answers %s", address, res.Status)
		}
		return limited(res.Body)
	}
}

// File reads the set from a file.
func File(path string) Source {
	return func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return limited(f)
	}
}

func limited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSet+1))
	if err == nil && len(data) > maxSet {
		err = fmt.Errorf("it has more than %d bytes", maxSet)
	}
	return data, err
}

// Options of Keys. TrustDomain and Source are needed.
type Options struct {
	TrustDomain string
	Source      Source
	Cache       int              // tokens to remember; capability.DefaultCache where 0
	Now         func() time.Time // the clock; time.Now where nil
}

// Keys verify tokens. They are safe for concurrent use.
type Keys struct {
	o Options

	reading sync.Mutex // one reading at a time

	mu    sync.Mutex // guards the fields below
	cache *capability.Cache
	read  time.Time // when cache's set was read
	tried time.Time // when it was last tried
	why   error     // of the last try
}

// New reads nothing yet.
func New(o Options) *Keys {
	if o.Cache == 0 {
		o.Cache = capability.DefaultCache
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Keys{o: o}
}

// Verify is [capability.Verifier.Verify] under the present set, with tokens
// remembered as in [capability.Cache]. Without a set the error matches
// ErrUnavailable.
func (k *Keys) Verify(ctx context.Context, token string, want capability.Expect) (*capability.Claims, error) {
	cache, err := k.current(ctx, MaxAge)
	if err != nil {
		return nil, err
	}
	claims, err := cache.Verify(token, want)
	if !errors.Is(err, capability.ErrUnknownKey) {
		return claims, err
	}
	newer, uerr := k.current(ctx, MinAge)
	if uerr != nil || newer == cache {
		return claims, err
	}
	return newer.Verify(token, want)
}

// current gives the set if it is younger than age, or else reads it anew,
// unless that was tried within MinAge.
func (k *Keys) current(ctx context.Context, age time.Duration) (*capability.Cache, error) {
	if cache, ok := k.young(age); ok {
		return cache, nil
	}
	k.reading.Lock()
	defer k.reading.Unlock()
	now := k.o.Now()
	if cache, ok := k.young(age); ok {
		return cache, nil
	}
	k.mu.Lock()
	wait := !k.tried.IsZero() && now.Sub(k.tried) < MinAge && now.Sub(k.tried) >= 0
	k.mu.Unlock()
	if !wait {
		cache, err := k.fetch(ctx)
		k.mu.Lock()
		if k.tried, k.why = now, err; err == nil {
			k.cache, k.read = cache, now
		}
		k.mu.Unlock()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cache == nil || now.Sub(k.read) > MaxStale {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, k.why)
	}
	return k.cache, nil
}

func (k *Keys) young(age time.Duration) (*capability.Cache, bool) {
	now := k.o.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cache, k.cache != nil && now.Sub(k.read) < age && now.Sub(k.read) >= 0
}

// fetch is not ended by the one request that happens to need it: the others
// need it too.
func (k *Keys) fetch(ctx context.Context) (*capability.Cache, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
	defer cancel()
	set, err := k.o.Source(ctx)
	if err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	v, err := capability.NewVerifier(k.o.TrustDomain, set)
	if err != nil {
		return nil, err
	}
	return capability.NewCache(v, k.o.Cache), nil
}
