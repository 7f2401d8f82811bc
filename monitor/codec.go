package monitor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A codec walks state in one fixed order and either writes it or reads it: one
// walk for both ways, so that they can't come apart. Numbers are varints,
// texts and lists carry their length, tables are sorted by the bytes of their
// keys: equal states give equal bytes, and there is no second way to write one.
type codec struct {
	reading bool
	buf     []byte                    // written so far, or what is left to read
	err     error                     // the first; all that follows is nothing
	texts   map[string]string         // read so far, so that equal texts share memory
	attic   *attic                    // holds what the state put aside; nil where it put nothing
	record  string                    // of the attic, of which buf is the end: texts are parts of it
	tools   map[schemas.Action]toolID // read so far

	in   *io.LimitedReader // more to read; nil where buf is all
	out  io.Writer         // takes what was written; nil where buf keeps it
	hold bool              // buf must stand still
}

// streamed is how much is in memory of what is read or written, at least.
const (
	streamed  = 1 << 20
	mostKey   = 1 << 16 // bytes of a table's key
	mostRoom  = 1 << 9  // entries for which room is made before they are read
	mostTexts = 1 << 14 // that share memory
	mostTools = 1 << 12 // that are looked up once
)

// want reads on until n bytes are at hand, or all.
func (c *codec) want(n int) {
	if c.in == nil || c.hold || len(c.buf) >= n {
		return
	}
	n = int(min(int64(n), int64(len(c.buf))+c.in.N)) // whatever a damaged length says
	more := make([]byte, len(c.buf), max(n, streamed))
	copy(more, c.buf)
	got, err := io.ReadFull(c.in, more[len(more):cap(more)])
	c.buf = more[:len(more)+got]
	if err != nil {
		c.in = nil
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			c.fail(err)
		}
	}
}

// spill hands on what was written.
func (c *codec) spill(least int) {
	if c.out == nil || len(c.buf) < least || c.err != nil {
		return
	}
	if _, err := c.out.Write(c.buf); err != nil {
		c.fail(err)
	}
	c.buf = c.buf[:0]
}

var (
	errShort = errors.New("it ends too early, or a length in it is wrong")
	errOrder = errors.New("a table in it is out of order")
)

func (c *codec) fail(err error) {
	if c.err == nil {
		c.err, c.buf = err, nil
	}
}

type integer interface {
	~int | ~int64 | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

func number[T integer](c *codec, p *T) {
	if !c.reading {
		c.buf = binary.AppendVarint(c.buf, int64(*p))
		return
	}
	if len(c.buf) > 0 && c.buf[0] < 0x80 && c.in == nil { // nearly all are so small
		x := int64(c.buf[0]>>1) ^ -int64(c.buf[0]&1)
		if int64(T(x)) != x {
			c.fail(errShort)
			return
		}
		*p, c.buf = T(x), c.buf[1:]
		return
	}
	c.want(binary.MaxVarintLen64)
	x, n := binary.Varint(c.buf)
	if n <= 0 || int64(T(x)) != x || n > 1 && c.buf[n-1] == 0 {
		c.fail(errShort)
		return
	}
	*p, c.buf = T(x), c.buf[n:]
}

func (c *codec) flag(p *bool) {
	var n uint8
	if *p {
		n = 1
	}
	if number(c, &n); !c.reading {
		return // who writes changes nothing: others may be reading
	}
	if n > 1 {
		c.fail(errors.New("a flag is neither set nor not"))
	}
	*p = n == 1
}

// length is of what takes a byte at least for each.
func (c *codec) length(n int) int {
	number(c, &n)
	if c.reading {
		c.want(n)
	}
	if c.reading && (n < 0 || n > len(c.buf)) {
		c.fail(errShort)
		return 0
	}
	return n
}

func text[T ~string | ~[]byte](c *codec, p *T) {
	n := c.length(len(*p))
	if !c.reading {
		c.buf = append(c.buf, *p...)
		return
	}
	if c.record != "" {
		at := len(c.record) - len(c.buf)
		*p, c.buf = T(c.record[at:at+n]), c.buf[n:]
		return
	}
	raw := c.buf[:n]
	c.buf = c.buf[n:]
	if _, isString := any(*p).(string); isString && n <= maxValue {
		s, ok := c.texts[string(raw)]
		if !ok {
			if len(c.texts) >= mostTexts {
				clear(c.texts)
			}
			s = string(raw)
			c.texts[s] = s
		}
		*p = T(s)
		return
	}
	*p = T(bytes.Clone(raw))
}

// instant is a time of UTC.
func (c *codec) instant(p *time.Time) {
	s, ns := p.Unix(), int64(p.Nanosecond())
	number(c, &s)
	number(c, &ns)
	if c.reading {
		*p = time.Unix(s, ns).UTC()
	}
}

func list[T any](c *codec, p *[]T, each func(*codec, *T)) {
	n := c.length(len(*p))
	if c.reading {
		*p = nil
		if n > 0 {
			*p = make([]T, 0, min(n, mostRoom)) // a damaged length makes no more room
		}
		for i := range n {
			var none T
			*p = append(*p, none)
			if each(c, &(*p)[i]); c.err != nil {
				return
			}
		}
		return
	}
	for i := range *p {
		each(c, &(*p)[i])
	}
}

// table goes through a map in the order of its keys' bytes.
func table[K comparable, V any](c *codec, p *map[K]V, key func(*codec, *K), value func(*codec, *V)) {
	n := c.length(len(*p))
	if c.reading {
		*p = make(map[K]V, min(n, mostRoom))
		var before []byte
		var k, noKey K // one for all: each would be room of its own
		var v, none V
		for i := range n {
			k, v = noKey, none
			c.want(mostKey)
			from := c.buf
			c.hold = true
			key(c, &k)
			c.hold = false
			if c.err != nil {
				return
			}
			raw := from[:len(from)-len(c.buf)]
			if i > 0 && bytes.Compare(before, raw) >= 0 {
				c.fail(errOrder)
				return
			}
			before = raw
			if value(c, &v); c.err != nil {
				return
			}
			(*p)[k] = v
		}
		return
	}
	type span struct{ from, to, i int } // of a key's bytes; without pointers, which are dear to sort
	spans, names := make([]span, 0, n), make([]K, 0, n)
	keys := codec{buf: make([]byte, 0, 16*n)}
	var k K
	var v V
	for k = range *p {
		from := len(keys.buf)
		key(&keys, &k)
		spans, names = append(spans, span{from, len(keys.buf), len(names)}), append(names, k)
	}
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(keys.buf[a.from:a.to], keys.buf[b.from:b.to]) })
	for _, s := range spans {
		v = (*p)[names[s.i]]
		c.buf = append(c.buf, keys.buf[s.from:s.to]...)
		value(c, &v)
	}
}

// owned is what a pointer points to, never nil.
func owned[T any](walk func(*codec, *T)) func(*codec, **T) {
	return func(c *codec, p **T) {
		if c.reading {
			*p = new(T)
		}
		walk(c, *p)
	}
}
