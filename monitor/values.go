package monitor

import (
	"bytes"
	"encoding/base64"
	"hash/maphash"
	"math/bits"
	"unicode/utf8"
)

// Bounds of what is read of one body. What goes past them, or can't be read,
// makes the body count as one that holds an unknown value.
const (
	maxRead   = 64 << 10 // bytes
	maxLeaves = 128      // values
	maxValue  = 128      // bytes of a value; what is longer is text, or is cut
	maxWords  = 8        // words of a value; what has more is text
	maxKind   = 32       // bytes of a kind
	maxDepth  = 32       // levels of nesting
)

// overflow is the kind of the value that stands for all that was not read.
const overflow = "overflow"

// A value is one thing that an action names: a recipient, a file, an amount.
type value struct {
	kind string
	text []byte // normalised: see normal; of the extractor, until its next use
}

// An extractor finds the values of a body. It keeps its buffers from one body
// to the next.
type extractor struct {
	values []value
	buf    []byte // texts of the values; never grows while they are in use
	full   bool
	// decoded is what a text says in an encoding.
	decoded []byte
	keys    uint64 // the names of the outermost object's members, see shape; 0 where it has none
	scan    scanner
	kinds   map[string]*member // by the names of members met, see member
	named   [1 << 8]naming     // values whose ids were asked for, by hashes of their texts
	seed    maphash.Seed
}

func newExtractor() *extractor {
	return &extractor{values: make([]value, 0, maxLeaves+1), buf: make([]byte, 0, maxRead), kinds: map[string]*member{}, seed: maphash.MakeSeed(),
		decoded: make([]byte, 0, maxRead), scan: scanner{text: make([]byte, 0, maxRead)}}
}

// A naming is a text with its id.
type naming struct {
	text [maxValue]byte
	n    int
	id   id
}

// idOf is idOf, which most values that agents use have been given before.
func (x *extractor) idOf(text []byte) id {
	if len(text) > maxValue {
		return idOf(text)
	}
	c := &x.named[maphash.Bytes(x.seed, text)%uint64(len(x.named))]
	if c.n != len(text) || string(c.text[:c.n]) != string(text) || c.n == 0 {
		c.n, c.id = copy(c.text[:], text), idOf(text)
	}
	return c.id
}

// read finds the values of a body, in order, twice where they stand twice. The
// leaves of JSON are values whose kind is their key; what is no JSON, and a
// leaf too long for a value, is searched for mail addresses, URLs, accounts
// and paths. The result holds until the next read.
func (x *extractor) read(body []byte) []value {
	x.values, x.buf, x.full = x.values[:0], x.buf[:0], len(body) > maxRead
	x.keys = 0
	if x.full {
		body = body[:maxRead]
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")) // many readers of JSON pass it over
	if bytes.IndexByte(body, 0) >= 0 || !utf8.Valid(body) {
		x.full = true // UTF-16, compressed, whatever: who it is for reads it, and this can't
	}
	s := &x.scan
	s.in, s.pos, s.depth, s.x = body, 0, 0, x
	s.space()
	if !s.value("") {
		x.text(body[s.pos:]) // the JSON, if it was any, ended there
	} else if s.space(); s.pos < len(body) {
		x.text(body[s.pos:])
	}
	if x.full {
		x.values = append(x.values, value{kind: overflow, text: []byte(overflow)})
	}
	return x.values
}

// plain is a body, of at most maxRead bytes, without JSON's escapes, where it can
// be JSON. It holds until the next body is read.
func (x *extractor) plain(body []byte) []byte {
	if from := bytes.TrimLeft(body, " \t\r\n\xef\xbb\xbf"); len(from) == 0 || bytes.IndexByte([]byte(`{["`), from[0]) < 0 || bytes.IndexByte(from, '\\') < 0 {
		return body
	}
	return x.scan.unescape(body)
}

// add takes one value, if there is room.
func (x *extractor) add(kind string, text []byte) {
	if len(text) == 0 {
		return
	}
	if len(x.values) >= maxLeaves || len(x.buf)+len(text) > cap(x.buf) {
		x.full = true
		return
	}
	from := len(x.buf)
	x.buf = append(x.buf, text...)
	kept := normal(x.buf[from:])
	if len(kept) == 0 {
		return
	}
	x.values = append(x.values, value{kind: kind, text: kept})
}

// leaf takes a string that stood under a key of the given kind.
func (x *extractor) leaf(kind string, text []byte) {
	searched := x.value(kind, text)
	has, digits := flag(0), 0
	for _, c := range text {
		has |= flags[c]
		digits += int(flags[c] >> 7)
	}
	switch {
	case has&separating != 0 && !searched && (has&marking != 0 || digits >= 8 || has&formed == formed && worldWide(text)):
		x.text(text) // an address with a name, or one of several, is an address
	case has&other == 0 && len(text) >= 16:
		x.base64(text, has&ofURLs != 0)
	}
	if has&percent != 0 {
		x.percent(text)
	}
}

// A flag says what a byte of a value hints at.
type flag uint8

const (
	separating flag = 1 << iota // several things, one beside the other
	percent                     // percent-encoding
	ofURLs                      // base64 as in URLs
	other                       // no base64
	marking                     // an address or a path
	dot
	double
	digit

	formed = dot | double // www.
)

var flags = func() (f [256]flag) {
	for c := range f {
		switch c := byte(c); {
		case isDigit(c):
			f[c] = digit
		case c == 'w' || c == 'W':
			f[c] = double
		case c == '.':
			f[c] = dot | other
		case c == '/':
			f[c] = marking
		case c == '@':
			f[c] = marking | other
		case c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == ',' || c == ';' || c == '<' || c == '>' || c == '"' || c == '\'':
			f[c] = separating | other
		case c == '%':
			f[c] = percent | other
		case c == '-' || c == '_':
			f[c] = ofURLs
		case c != '+' && c != '=' && (c >= 0x80 || !alphanumeric(c)):
			f[c] = other
		}
	}
	return f
}()

// value takes it as one value; true where it is none, but text that was searched.
func (x *extractor) value(kind string, text []byte) bool {
	if len(text) > maxValue || len(text) > 2*maxWords && words(text) > maxWords {
		if declared(kind) {
			x.add(kind, text[:min(len(text), maxValue)])
		}
		x.text(text)
		return true
	}
	if !declared(kind) {
		if found := inferred(trimPunctuation(text)); found != "" {
			kind = found
		} else if kind == "" {
			kind = "text"
		}
	}
	x.add(kind, text)
	return false
}

// worldWide reports whether a text holds what begins a host by its name.
func worldWide(text []byte) bool {
	for i := 0; i+4 <= len(text); i++ {
		if text[i+3] == '.' && asciiEqual(text[i:i+4], "www.") {
			return true
		}
	}
	return false
}

// percent searches what a text says to who undoes percent-encoding, as in URLs and
// forms.
func (x *extractor) percent(text []byte) {
	out := x.decoded[:0]
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '%' && i+2 < len(text) {
			if r, ok := hexadecimal(text[i+1 : i+3]); ok {
				c, i = byte(r), i+2
			}
		}
		out = append(out, c)
	}
	x.text(out)
}

// base64 searches what a text says in base64, as whole mails are handed over.
func (x *extractor) base64(text []byte, ofURLs bool) {
	form := base64.RawStdEncoding
	if ofURLs {
		form = base64.RawURLEncoding
	}
	if n, err := form.Decode(x.decoded[:cap(x.decoded)], bytes.TrimRight(text, "=")); err == nil && utf8.Valid(x.decoded[:n]) {
		x.text(x.decoded[:n])
	}
}

// number takes a number. Under a kind that traces name it is a value; elsewhere
// it is one where it could be an account's, which is the same account as a number
// and as a string.
func (x *extractor) number(kind string, text []byte) {
	if !declared(kind) {
		if !numbersAccount(text) {
			return
		}
		kind = "account"
	}
	x.add(kind, text[:min(len(text), maxValue)])
}

// numbersAccount reports whether a number could be an account's: a whole one of
// eight digits, or one that is written so that it does not show. What could as
// well be a time, in seconds or milliseconds of these years, is taken for one.
func numbersAccount(t []byte) bool {
	if e := bytes.IndexAny(t, "eE"); e > 0 {
		return e+1 < len(t) && t[e+1] != '-' || account(t[:e])
	}
	if dot := bytes.IndexByte(t, '.'); dot >= 0 {
		if len(bytes.Trim(t[dot+1:], "0")) > 0 {
			return false
		}
		t = t[:dot]
	}
	time := (len(t) == 10 || len(t) == 13) && t[0] == '1' && t[1] >= '5'
	return account(t) && !time
}

// A member is what the name of an object's member says.
type member struct {
	kind string // of its value, unless that shows another
	form string // that the name shows by itself, see inferred
	hash uint64
}

// key takes the name of an object's member, which can be a value itself, and gives
// the kind of the member. The sum over the outermost ones names which there are,
// whatever their order.
func (x *extractor) key(key []byte, depth int) string {
	m := x.member(key)
	if depth == 1 {
		x.keys += m.hash
	}
	if m.form != "" {
		x.add(m.form, key[:min(len(key), maxValue)])
	}
	return m.kind
}

// text searches running text for what looks like a value by itself.
func (x *extractor) text(text []byte) {
	for token := range tokens(text) {
		if kind := inferred(token); kind != "" {
			x.add(kind, token[:min(len(token), maxValue)])
		}
	}
}

// declared reports whether a kind is one of those that traces of agents name.
// Numbers count as values under these alone.
func declared(kind string) bool {
	switch kind {
	case "to", "user", "chan", "url", "file", "ent", "city", "id", "from", "repo", "prod", "q", "secret", "addr":
		return true
	}
	return false
}

// maxKinds bounds the keys whose kinds are kept.
const maxKinds = 1024

// member reads a name. As a kind it is in lower case, and cut to its bound.
func (x *extractor) member(name []byte) *member {
	if m := x.kinds[string(name)]; m != nil {
		return m
	}
	low := make([]byte, min(len(name), maxKind))
	for i := range low {
		low[i] = lower(name[i])
	}
	m := &member{kind: string(low), form: inferred(trimPunctuation(name)), hash: bits.Reverse64(wordHash(name)*0x9e3779b97f4a7c15) | 1}
	if len(name) > maxValue {
		return m
	}
	if len(x.kinds) >= maxKinds {
		clear(x.kinds)
	}
	x.kinds[string(name)] = m
	return m
}

// inferred is the kind that a token shows by its form, "" where it shows none.
func inferred(t []byte) string {
	if len(t) < 4 || bytes.IndexByte(t, ' ') >= 0 {
		return ""
	}
	at := bytes.IndexByte(t, '@')
	switch {
	case bytes.Contains(t, []byte("://")) || len(t) > 4 && asciiEqual(t[:4], "www."):
		return "url"
	case at > 0 && at < len(t)-1 && bytes.IndexByte(t[at:], '.') > 1:
		return "to"
	case t[0] == '/' || t[0] == '~' && t[1] == '/' || bytes.HasPrefix(t, []byte("./")) || bytes.HasPrefix(t, []byte("../")):
		return "file"
	case account(t):
		return "account"
	}
	if host := bytes.IndexByte(t, '/'); host > 0 && bytes.IndexByte(t[:host], '.') > 0 {
		return "url" // example.com/path
	}
	return ""
}

// account reports whether a token has the form of an IBAN or of a card or
// account number.
func account(t []byte) bool {
	digits, letters := 0, 0
	for _, c := range t {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
			letters++
		default:
			return false
		}
	}
	iban := len(t) >= 12 && len(t) <= 40 && letters >= 2 && digits >= 8 && !isDigit(t[0]) && !isDigit(t[1]) && isDigit(t[2]) && isDigit(t[3])
	return iban || letters == 0 && digits >= 8
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// domainOf is the host of a URL or the domain of a mail address, nil where the
// value has neither. Both are normalised already. What readers of URLs read in
// different ways, a backslash, is no known domain.
func domainOf(v value) []byte {
	if v.kind != "url" && bytes.IndexByte(v.text, '@') < 0 {
		return nil
	}
	host, at, slash := v.text, -1, false
	for i, c := range host {
		if c == '@' {
			at = i
		} else if (c == '/' || c == '?' || c == '#') && (v.kind == "url" || at < 0 && bytes.IndexByte(host[i:], '@') > 0) {
			host = host[:i] // no '@' behind it says where a URL goes
			break
		}
		slash = slash || c == '\\'
	}
	if slash {
		return host
	}
	host = host[at+1:]
	if v.kind == "url" {
		if port := bytes.IndexByte(host, ':'); port >= 0 {
			host = host[:port]
		}
	}
	return host
}

// normal makes two ways of writing one value equal, in place: ASCII lower case
// (no tables of Unicode, which change from one version of Go to the next),
// without space or punctuation at the ends, without a URL's scheme.
func normal(t []byte) []byte {
	for i, c := range t {
		t[i] = lower(c)
	}
	for {
		t = trimPunctuation(t)
		n := len(t)
		if n > 7 && (t[4] == ':' || t[5] == ':' || t[6] == ':') {
			for _, scheme := range [...]string{"https://", "http://", "mailto:"} {
				if len(t) > len(scheme) && string(t[:len(scheme)]) == scheme {
					t = t[len(scheme):]
				}
			}
		}
		if len(t) > 1 && t[len(t)-1] == '/' {
			t = t[:len(t)-1]
		}
		if n == len(t) {
			return t
		}
	}
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func asciiEqual(t []byte, s string) bool {
	for i := range t {
		if lower(t[i]) != s[i] {
			return false
		}
	}
	return len(t) == len(s)
}

func trimPunctuation(t []byte) []byte {
	for len(t) > 0 && punctuation(t[0]) {
		t = t[1:]
	}
	for len(t) > 0 && punctuation(t[len(t)-1]) {
		t = t[:len(t)-1]
	}
	return t
}

func punctuation(c byte) bool {
	switch c {
	case ' ', '\t', '\n', '\r', '.', ',', ';', ':', '!', '?', '"', '\'', '`', '(', ')', '[', ']', '{', '}', '<', '>', '|', '*':
		return true
	}
	return false
}

func words(t []byte) (n int) {
	in := false
	for _, c := range t {
		if c <= ' ' {
			in = false
		} else if !in {
			in = true
			n++
		}
	}
	return n
}

// tokens yields the words of a text or of JSON, without the punctuation
// around them. Escapes of JSON separate, save for "\/".
func tokens(text []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for pos := 0; pos < len(text); {
			for pos < len(text) && separates(text[pos]) {
				pos += step(text[pos:])
			}
			from := pos
			for pos < len(text) && !separates(text[pos]) {
				pos++
			}
			if t := trimPunctuation(text[from:pos]); len(t) > 0 && !yield(t) {
				return
			}
		}
	}
}

func separates(c byte) bool {
	switch c {
	case '"', '\'', '`', '<', '>', '{', '}', '[', ']', '(', ')', ',', ';', '|', '\\', '=':
		return true
	}
	return c <= ' '
}

// step is how many bytes a separator takes: an escape takes its letter along.
func step(text []byte) int {
	if text[0] != '\\' || len(text) < 2 || text[1] == '/' || text[1] == '"' {
		return 1
	}
	if text[1] == 'u' {
		return min(6, len(text))
	}
	return 2
}

// printable makes a value fit to be shown in a verdict: valid UTF-8 without
// control bytes, cut at 40 bytes.
func printable(t []byte) string {
	const most = 40
	out := make([]byte, 0, most+8)
	for len(t) > 0 {
		r, n := utf8.DecodeRune(t)
		if len(out)+n > most {
			return string(append(out, "…"...))
		}
		if r == utf8.RuneError && n == 1 || r < 0x20 || r >= 0x7f && r < 0xa0 {
			r = '?'
		}
		out = utf8.AppendRune(out, r)
		t = t[n:]
	}
	return string(out)
}
