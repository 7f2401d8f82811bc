package jwks

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

const (
	domain = "acme.example"
	nkey   = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
)

var start = time.Unix(1_790_000_000, 0)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func token(t *testing.T, k ed25519.PrivateKey) string {
	t.Helper()
	s, err := capability.NewSigner(domain, k)
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Sign(capability.FromGrant(schemas.Grant{JTI: "j", Agent: "a", Operation: "o", NotBefore: start, Expires: start.Add(10 * time.Hour),
		TraceID: strings.Repeat("a", 32), PublicKey: nkey, IssuedBy: "test"}, domain, "", start))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A world is an issuer whose keys, health and clock the test moves.
type world struct {
	t     *testing.T
	now   time.Time
	set   []byte
	fail  error
	reads atomic.Int32
	keys  *Keys
}

func newWorld(t *testing.T, keys ...byte) *world {
	w := &world{t: t, now: start}
	w.publish(keys...)
	w.keys = New(Options{TrustDomain: domain, Now: func() time.Time { return w.now }, Source: func(context.Context) ([]byte, error) {
		w.reads.Add(1)
		return w.set, w.fail
	}})
	return w
}

func (w *world) publish(keys ...byte) {
	w.t.Helper()
	var public []ed25519.PublicKey
	for _, k := range keys {
		public = append(public, key(k).Public().(ed25519.PublicKey))
	}
	var err error
	if w.set, err = capability.MarshalJWKS(public...); err != nil {
		w.t.Fatal(err)
	}
}

// verify demands an error, nil for none, and how often the set was read so far.
func (w *world) verify(what, token string, want error, reads int32) {
	w.t.Helper()
	_, err := w.keys.Verify(w.t.Context(), token, capability.Expect{Time: w.now, PublicKey: nkey})
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		w.t.Errorf("%s: %v, want %v", what, err, want)
	}
	if n := w.reads.Load(); n != reads {
		w.t.Errorf("%s: the set was read %d times, not %d", what, n, reads)
	}
}

func TestANewKeyIsKnownWithItsFirstToken(t *testing.T) {
	w := newWorld(t, 1)
	w.verify("first", token(t, key(1)), nil, 1)
	w.verify("again", token(t, key(1)), nil, 1)
	w.now = w.now.Add(MinAge)
	w.publish(1, 2)
	w.verify("new key", token(t, key(2)), nil, 2)
	w.verify("old key, in the overlap", token(t, key(1)), nil, 2)
}

// Whoever floods with tokens under keys that don't exist has the set read once
// in a while, not once a token.
func TestUnknownKeysDoNotFloodTheIssuer(t *testing.T) {
	w := newWorld(t, 1)
	w.verify("first", token(t, key(1)), nil, 1)
	for range 100 {
		w.verify("unknown, at once", token(t, key(9)), capability.ErrUnknownKey, 1)
	}
	w.now = w.now.Add(MinAge)
	for range 100 {
		w.verify("unknown, later", token(t, key(9)), capability.ErrUnknownKey, 2)
	}
}

func TestARemovedKeyVerifiesNothingEvenWhatWasSeen(t *testing.T) {
	w := newWorld(t, 1, 2)
	one := token(t, key(1))
	w.verify("while it is there", one, nil, 1)
	w.publish(2)
	w.verify("not read again yet", one, nil, 1)
	w.now = w.now.Add(MaxAge)
	w.verify("after the next reading", one, capability.ErrUnknownKey, 2)
}

func TestWithoutTheIssuerTheSetHoldsForAWhile(t *testing.T) {
	w := newWorld(t, 1)
	one := token(t, key(1))
	w.fail = errors.New("down")
	w.verify("no set at all", one, ErrUnavailable, 1)
	w.fail = nil
	w.verify("tried just now", one, ErrUnavailable, 1)
	w.now = w.now.Add(MinAge)
	w.verify("back", one, nil, 2)
	w.fail = errors.New("down")
	w.now = w.now.Add(MaxStale)
	w.verify("an hour old", one, nil, 3)
	w.now = w.now.Add(MinAge)
	w.verify("too old", one, ErrUnavailable, 4)
	w.fail = nil
	w.now = w.now.Add(MinAge)
	w.verify("back again", one, nil, 5)
	w.set = []byte(`{"keys":[]}`)
	w.now = w.now.Add(MaxAge)
	w.verify("nonsense in place of the set", one, nil, 6)
}

func TestSetsComeFromURLsAndFiles(t *testing.T) {
	w := newWorld(t, 1)
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, w.set, 0o600); err != nil {
		t.Fatal(err)
	}
	answer := func(status int, body []byte) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	for name, c := range map[string]struct {
		source Source
		good   bool
	}{
		"file":         {File(path), true},
		"URL":          {URL(answer(200, w.set), nil), true},
		"no file":      {File(path + "x"), false},
		"not found":    {URL(answer(404, w.set), nil), false},
		"endless":      {URL(answer(200, bytes.Repeat([]byte(" "), maxSet+1)), nil), false},
		"no URL":       {URL("://", nil), false},
		"nobody there": {URL("http://127.0.0.1:1", nil), false},
	} {
		_, err := New(Options{TrustDomain: domain, Source: c.source}).Verify(t.Context(), token(t, key(1)), capability.Expect{Time: start, PublicKey: nkey})
		if (err == nil) != c.good || !c.good && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
