package schemas

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxDepth bounds how deep JSON from outside may nest: the check below
// recurses, and a megabyte of opening brackets must not eat the stack.
const maxDepth = 64

// ErrJSON is matched by every error of Unmarshal.
var ErrJSON = errors.New("not acceptable JSON")

// Unmarshal decodes JSON strictly, so that no two readers can understand one
// text differently. Errors are: unknown keys, keys that differ from ours in
// case alone (encoding/json would take them, and by Unicode folding look-alikes
// such as "ſub" too), keys that stand twice in any object, bytes that are not
// UTF-8, data behind the end, and nesting deeper than 64.
func Unmarshal(data []byte, v any) error {
	if verbatim(data, v) {
		return nil
	}
	return strictly(data, v)
}

// verbatim decodes what our own encoder wrote, at a third of the cost, and
// nothing else: bytes that come out again as they went in hold no key that is
// unknown, stands twice or differs from ours, and nothing that is not UTF-8.
func verbatim(data []byte, v any) bool {
	to := reflect.ValueOf(v)
	if to.Kind() != reflect.Pointer || to.IsNil() || !to.Elem().IsZero() || !plain(to.Type().Elem()) {
		return false
	}
	read := reflect.New(to.Type().Elem())
	if json.Unmarshal(data, read.Interface()) != nil {
		return false
	}
	if again, err := json.Marshal(read.Interface()); err != nil || !bytes.Equal(again, data) {
		return false
	}
	to.Elem().Set(read.Elem())
	return true
}

// strictly is Unmarshal for whatever anybody wrote.
func strictly(data []byte, v any) error {
	if !utf8.Valid(data) {
		return fmt.Errorf("%w: it is not UTF-8", ErrJSON)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := checkKeys(dec, reflect.TypeOf(v), 0); err != nil {
		return fmt.Errorf("%w: %w", ErrJSON, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: there is data behind the end", ErrJSON)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrJSON, err)
	}
	return nil
}

// checkKeys walks one JSON value beside the Go type that it is meant for; a nil
// type stands for one that admits any keys.
func checkKeys(dec *json.Decoder, t reflect.Type, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	fields, elem := shapeOf(t)
	seen := map[string]bool{}
	for dec.More() {
		next := elem
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if seen[name] {
				return fmt.Errorf("key %q stands twice", clip(name))
			}
			seen[name] = true
			if fields != nil {
				ft, known := fields[name]
				if !known {
					return fmt.Errorf("key %q is unknown", clip(name))
				}
				next = ft
			}
		}
		if err := checkKeys(dec, next, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing delimiter
	return err
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	structFields    sync.Map // reflect.Type → map[string]reflect.Type
	plainTypes      sync.Map // reflect.Type → bool
)

// plain says of a type that the encoder writes each part of it from what it
// holds, and copies no JSON that came from elsewhere: that could hold a key
// twice, and come out as it went in.
func plain(t reflect.Type) bool {
	if known, ok := plainTypes.Load(t); ok {
		return known.(bool)
	}
	is := plainUnder(t, map[reflect.Type]bool{})
	plainTypes.Store(t, is)
	return is
}

func plainUnder(t reflect.Type, above map[reflect.Type]bool) bool {
	p := reflect.PointerTo(t)
	switch {
	case t == reflect.TypeFor[time.Time]():
		return true
	case p.Implements(jsonUnmarshaler) || p.Implements(jsonMarshaler):
		return false
	case p.Implements(textUnmarshaler):
		return true // a string
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return plainUnder(t.Elem(), above)
	case reflect.Map:
		return t.Key() == reflect.TypeFor[string]() && plainUnder(t.Elem(), above)
	case reflect.Struct:
		if above[t] {
			return false // it may nest without end
		}
		above[t] = true
		defer delete(above, t)
		for i := range t.NumField() {
			if !plainUnder(t.Field(i).Type, above) {
				return false
			}
		}
		return true
	}
	return t.Kind() == reflect.String || reflect.Bool <= t.Kind() && t.Kind() <= reflect.Float64
}

// shapeOf gives the keys that a type admits, nil for any, and the type of what
// it holds where it is a list or a map.
func shapeOf(t reflect.Type) (fields map[string]reflect.Type, elem reflect.Type) {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || reflect.PointerTo(t).Implements(jsonUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler) {
		return nil, nil
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return nil, t.Elem()
	case reflect.Struct:
		if known, ok := structFields.Load(t); ok {
			return known.(map[string]reflect.Type), nil
		}
		fields = jsonFields(t)
		structFields.Store(t, fields)
	}
	return fields, nil
}

// jsonFields lists the keys of a struct's JSON form with their Go types; an
// embedded struct's stand beside its own, which win.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, tagged := jsonName(f)
		if f.Anonymous && !tagged || !f.IsExported() || name == "-" {
			continue
		}
		if _, shadowed := fields[name]; !shadowed || len(f.Index) == 1 {
			fields[name] = f.Type
		}
	}
	return fields
}

func jsonName(f reflect.StructField) (name string, tagged bool) {
	name, _, _ = strings.Cut(f.Tag.Get("json"), ",")
	if name == "" {
		return f.Name, false
	}
	return name, true
}
