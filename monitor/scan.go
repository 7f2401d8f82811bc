package monitor

import "unicode/utf8"

// A scanner walks one JSON value, giving the extractor its leaves. It is
// lenient where a reader might be: it takes what it could read before an
// error, and both of two equal keys, so that no body means more to a tool than
// to the monitor.
type scanner struct {
	in    []byte
	pos   int
	depth int
	x     *extractor
	text  []byte // one string without its escapes, which is never longer than with them
}

// value reads one value under a key; false where there is none.
func (s *scanner) value(kind string) bool {
	if s.pos >= len(s.in) {
		return false
	}
	switch c := s.in[s.pos]; {
	case c == '{':
		return s.nested('}', kind)
	case c == '[':
		return s.nested(']', kind)
	case c == '"':
		text, ok := s.str()
		s.x.leaf(kind, text)
		return ok
	case c == '-' || isDigit(c):
		from := s.pos
		for s.pos < len(s.in) && numeric(s.in[s.pos]) {
			s.pos++
		}
		s.x.number(kind, s.in[from:s.pos])
		return true
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if end := s.pos + len(word); end <= len(s.in) && string(s.in[s.pos:end]) == word {
			s.pos = end
			return true
		}
	}
	return false
}

func numeric(c byte) bool {
	return isDigit(c) || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

// nested reads an object or a list. The members of a list are of the list's
// own kind. What began as an object and can't be read on as one may be read by a
// more lenient reader than this (of NaN, of comments, of names without quotes), to
// whom the rest says something: it counts as not read.
func (s *scanner) nested(end byte, kind string) (ok bool) {
	defer func() {
		if !ok && end == '}' {
			s.x.full = true
		}
	}()
	if s.depth == maxDepth {
		s.x.full = true
		return false
	}
	s.depth++
	defer func() { s.depth-- }()
	s.pos++
	for first := true; ; first = false {
		s.space()
		if s.pos < len(s.in) && s.in[s.pos] == end {
			s.pos++
			return true
		}
		if !first {
			if !s.take(',') {
				return false
			}
			s.space()
		}
		if end == '}' {
			if s.pos >= len(s.in) || s.in[s.pos] != '"' {
				return false
			}
			key, ok := s.str()
			if !ok {
				return false
			}
			kind = s.x.key(key, s.depth)
			s.space()
			if !s.take(':') {
				return false
			}
			s.space()
		}
		if !s.value(kind) {
			return false
		}
	}
}

func (s *scanner) take(c byte) bool {
	if s.pos < len(s.in) && s.in[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

func (s *scanner) space() {
	for s.pos < len(s.in) {
		switch s.in[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// str reads a string, and undoes its escapes. The text holds until the next
// string. False where the closing quote is missing.
func (s *scanner) str() (text []byte, ok bool) {
	s.pos++
	from, escaped := s.pos, false
	for s.pos < len(s.in) && s.in[s.pos] != '"' {
		if s.in[s.pos] == '\\' {
			escaped = true
			s.pos++
		}
		s.pos++
	}
	if s.pos >= len(s.in) {
		s.pos = len(s.in)
		return s.in[min(from, len(s.in)):], false
	}
	raw := s.in[from:s.pos]
	s.pos++
	if !escaped {
		return raw, true
	}
	return s.unescape(raw), true
}

// unescape undoes JSON's escapes.
func (s *scanner) unescape(raw []byte) []byte {
	out := s.text[:0]
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'n', 'r', 't', 'f':
			out = append(out, ' ')
		case 'b':
		case 'u':
			r, n := codepoint(raw[i+1:])
			out = utf8.AppendRune(out, r)
			i += n
		default:
			out = append(out, raw[i])
		}
	}
	s.text = out
	return out
}

// codepoint reads the digits behind "\u", with a low surrogate's if they
// follow, and says how many bytes they took.
func codepoint(in []byte) (r rune, n int) {
	r, ok := hex4(in)
	if !ok {
		return utf8.RuneError, 0
	}
	if r >= 0xd800 && r < 0xdc00 && len(in) >= 10 && in[4] == '\\' && in[5] == 'u' {
		if low, ok := hex4(in[6:]); ok && low >= 0xdc00 && low < 0xe000 {
			return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, 10
		}
	}
	return r, 4
}

func hex4(in []byte) (r rune, ok bool) {
	if len(in) < 4 {
		return 0, false
	}
	return hexadecimal(in[:4])
}

func hexadecimal(in []byte) (r rune, ok bool) {
	for _, c := range in {
		switch c = lower(c); {
		case isDigit(c):
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
