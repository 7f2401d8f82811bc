package dpop

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Options of a Checker.
type Options struct {
	// Origins are the addresses, scheme://host[:port], under which clients know
	// the service. The request's own Host is not believed: whoever relays a
	// proof chooses it.
	Origins []string
	// Nonce demands that a proof carries the checker's newest nonce, or the one
	// before: it was made for this checker, now (RFC 9449, section 9).
	Nonce bool
	Now   func() time.Time // the clock; time.Now where nil
}

// A Checker checks proofs. It is safe for concurrent use.
type Checker struct {
	origins map[string]bool
	nonce   bool
	now     func() time.Time
	seen    seen

	mu          sync.Mutex // guards the fields below
	fresh, last string     // nonces
	turned      time.Time
}

// nonceTurn is how long a nonce is the newest; it holds for twice that.
const nonceTurn = time.Minute

// NewChecker makes a checker for the service at the given addresses.
func NewChecker(o Options) (*Checker, error) {
	c := &Checker{origins: map[string]bool{}, nonce: o.Nonce, now: o.Now}
	if c.now == nil {
		c.now = time.Now
	}
	if len(o.Origins) == 0 {
		return nil, errors.New("dpop: no address is named under which clients know this service")
	}
	for _, one := range o.Origins {
		origin, path, err := split(one)
		if err != nil {
			return nil, fmt.Errorf("dpop: address: %w", err)
		}
		if path != "/" {
			return nil, fmt.Errorf("dpop: address %q has a path; name scheme and host alone", clip(one))
		}
		c.origins[origin] = true
	}
	return c, nil
}

// NonceFor is the nonce that clients are told, "" where none is demanded.
func (c *Checker) NonceFor() string {
	if !c.nonce {
		return ""
	}
	fresh, _ := c.nonces()
	return fresh
}

func (c *Checker) nonces() (fresh, last string) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if age := now.Sub(c.turned); c.fresh == "" || age >= nonceTurn || age < 0 {
		if c.last = c.fresh; age >= 2*nonceTurn {
			c.last = ""
		}
		c.fresh, c.turned = rand.Text(), now
	}
	return c.fresh, c.last
}

// Check checks the proof that came with a request and a token, and takes note
// of it: the same one is refused from then on. whose says who holds the token,
// and refuses a key that the token is not bound to: a thief of a token makes as
// many keys as it likes, and so does who is given tokens. Only holders can fill
// the memory, and each of them a part of it.
func (c *Checker) Check(r *http.Request, token string, whose func(Proof) (holder string, err error)) (Proof, error) {
	p, claimed, err := c.read(r, token)
	if err != nil {
		return Proof{}, fmt.Errorf("check DPoP proof: %w", err)
	}
	holder, err := whose(p)
	if err != nil {
		return Proof{}, err
	}
	if err := c.seen.add(holder, p.Thumbprint, claimed.ID, c.now()); err != nil {
		return Proof{}, fmt.Errorf("check DPoP proof: %w", err)
	}
	return p, nil
}

func (c *Checker) read(r *http.Request, token string) (Proof, claims, error) {
	proofs := r.Header.Values(Header)
	switch len(proofs) {
	case 0:
		return Proof{}, claims{}, fmt.Errorf("%w: the request has no header %s", ErrMissing, Header)
	case 1:
	default:
		return Proof{}, claims{}, fmt.Errorf("%w: the request has %d headers %s", ErrMalformed, len(proofs), Header)
	}
	p, claimed, err := open(proofs[0])
	if err != nil {
		return p, claimed, err
	}
	for _, check := range [...]func() error{
		func() error { return checkID(claimed.ID) },
		func() error { return checkMethod(r, claimed.Method) },
		func() error { return c.checkURL(r, claimed.URL) },
		func() error { return checkToken(token, claimed.Token) },
		func() error { return c.checkTime(claimed.Issued) },
		func() error { return c.checkNonce(claimed.Nonce) },
	} {
		if err := check(); err != nil {
			return p, claimed, err
		}
	}
	return p, claimed, nil
}

func checkID(id string) error {
	if id == "" || len(id) > MaxID {
		return fmt.Errorf("%w: its jti is missing or longer than %d bytes", ErrMalformed, MaxID)
	}
	return nil
}

func checkMethod(r *http.Request, method string) error {
	if method != r.Method {
		return fmt.Errorf("%w: htm %q, the request is %s", ErrMethod, clip(method), r.Method)
	}
	return nil
}

func checkToken(token, ath string) error {
	if token == "" {
		return fmt.Errorf("%w: no token came with it", ErrToken)
	}
	if subtle.ConstantTimeCompare([]byte(ath), []byte(hash(token))) != 1 {
		return fmt.Errorf("%w: ath is not the SHA-256 of the token that came with it", ErrToken)
	}
	return nil
}

func (c *Checker) checkTime(iat int64) error {
	now := c.now()
	made := time.Unix(iat, 0)
	if age := now.Sub(made); age > MaxAge || age < -MaxSkew {
		return fmt.Errorf("%w: iat is %s behind the clock here; up to %s are possible: make a new one for each request, and check the clock", ErrTime, age.Round(time.Second), MaxAge)
	}
	return nil
}

func (c *Checker) checkNonce(nonce string) error {
	if !c.nonce {
		return nil
	}
	fresh, last := c.nonces()
	if nonce == "" || nonce != fresh && nonce != last {
		return fmt.Errorf("%w: take the one in the answer's header %s", ErrNonce, HeaderNonce)
	}
	return nil
}

// checkURL compares as RFC 9449, section 4.3 says: without query and fragment,
// after syntax-based and scheme-based normalisation (RFC 3986, sections 6.2.2
// and 6.2.3).
func (c *Checker) checkURL(r *http.Request, htu string) error {
	if len(htu) > MaxURL {
		return fmt.Errorf("%w: htu has %d bytes, %d are possible", ErrMalformed, len(htu), MaxURL)
	}
	origin, path, err := split(htu)
	if err != nil {
		return fmt.Errorf("%w: htu: %w", ErrURL, err)
	}
	if here := normalPath(r.URL); !c.origins[origin] || path != here {
		return fmt.Errorf("%w: htu %q, the request is for %s", ErrURL, clip(htu), clip(here))
	}
	return nil
}

// split gives an address's normalised origin and path.
func split(address string) (origin, path string, err error) {
	for i := range len(address) {
		if address[i] <= ' ' || address[i] > '~' {
			return "", "", fmt.Errorf("%q holds a space or a byte that is not printable ASCII", clip(address))
		}
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", "", fmt.Errorf("%q is no URL", clip(address))
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if scheme != "http" && scheme != "https" || host == "" || u.User != nil {
		return "", "", fmt.Errorf("%q is not http(s)://host/path", clip(address))
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" && port != map[string]string{"http": "80", "https": "443"}[scheme] {
		host += ":" + port
	}
	return scheme + "://" + host, normalPath(u), nil
}

// normalPath resolves dot segments, writes percent-encodings in one way, and
// the empty path as "/".
func normalPath(u *url.URL) string {
	var b strings.Builder
	escaped := u.EscapedPath()
	for i := 0; i < len(escaped); i++ {
		if escaped[i] != '%' || i+2 >= len(escaped) {
			b.WriteByte(escaped[i])
			continue
		}
		code := strings.ToUpper(escaped[i : i+3])
		i += 2
		if plain, err := url.PathUnescape(code); err == nil && unreserved(plain[0]) {
			code = plain
		}
		b.WriteString(code)
	}
	base := url.URL{Scheme: "http", Host: "h", Path: "/"}
	ref, err := base.Parse("http://h" + b.String())
	if err != nil {
		return escaped // fails to compare
	}
	path := base.ResolveReference(ref).EscapedPath()
	if path == "" {
		return "/"
	}
	return path
}

// unreserved characters are the same whether or not they are encoded (RFC
// 3986, section 2.3).
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
