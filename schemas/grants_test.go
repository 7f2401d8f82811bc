package schemas_test

import (
	"math/rand"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/writ-sh/writ/schemas"
)

func someGrant() schemas.Grant {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	return schemas.Grant{JTI: "j1", Agent: "ana", Operation: "report", Scope: []string{"send:bob", "call:echo"},
		ForbiddenTools: []string{"bash"}, NotBefore: at, Expires: at.Add(time.Hour), TraceID: "0123456789abcdef0123456789abcdef",
		PublicKey: "U1", Act: []string{"cleo"}, Notes: []string{"a note"}, IssuedBy: "op", Token: "a.b.c"}
}

// A part of the control plane that changes what it read must not change what
// another reads: a scope that release wrote over would be one that intake grants.
func TestAGrantReadTwiceIsNobodyElses(t *testing.T) {
	want := someGrant()
	body, err := schemas.WriteGrant(want)
	if err != nil {
		t.Fatal(err)
	}
	first, err := schemas.ReadGrant(body)
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]string{first.Scope, first.ForbiddenTools, first.Act, first.Notes} {
		list[0] = "call:everything"
	}
	for range 3 {
		again, err := schemas.ReadGrant(body)
		if err != nil || !reflect.DeepEqual(again, want) {
			t.Fatalf("read again: %+v, %v", again, err)
		}
		_ = append(again.Scope[:1], "call:everything")
	}
}

// Every field that holds memory of its own must be copied: a new one that is
// forgotten would be shared.
func TestEveryListOfAGrantIsCopied(t *testing.T) {
	body, err := schemas.WriteGrant(someGrant())
	if err != nil {
		t.Fatal(err)
	}
	a, errA := schemas.ReadGrant(body)
	b, errB := schemas.ReadGrant(body)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		field, name := va.Field(i), va.Type().Field(i).Name
		switch field.Kind() {
		case reflect.Slice:
			if field.Len() == 0 || field.Pointer() == vb.Field(i).Pointer() {
				t.Errorf("%s is empty in this test, or shared by two readers", name)
			}
		case reflect.Map, reflect.Pointer, reflect.Interface, reflect.Chan, reflect.Func:
			t.Errorf("%s is of a kind that clone does not copy", name)
		}
	}
}

// What differs in one byte is another grant, also where the buffer is the same
// one, and what is refused is refused each time.
func TestAGrantIsKnownByAllItsBytes(t *testing.T) {
	g := someGrant()
	body, err := schemas.WriteGrant(g)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(body), "send:bob", "send:bop", 1)
	copy(body, other) // over the very bytes that were written
	got, err := schemas.ReadGrant(body)
	if err != nil || got.Scope[0] != "send:bop" {
		t.Fatalf("read %v, %v", got.Scope, err)
	}
	got, err = schemas.ReadGrant(schemas.Marshal(g))
	if err != nil || got.Scope[0] != "send:bob" {
		t.Fatalf("read %v, %v", got.Scope, err)
	}
	for i := range 10_000 { // more than are remembered: some take the place of others
		g.JTI = strconv.Itoa(i)
		if _, err := schemas.WriteGrant(g); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10_000 {
		g.JTI = strconv.Itoa(i)
		if got, err := schemas.ReadGrant(schemas.Marshal(g)); err != nil || got.JTI != g.JTI {
			t.Fatalf("%s was read as %s, %v", g.JTI, got.JTI, err)
		}
	}
	for range 2 {
		if _, err := schemas.ReadGrant([]byte(strings.Replace(other, `"jti"`, `"JTI"`, 1))); err == nil {
			t.Fatal("a key that differs in case was taken")
		}
	}
}

// What is remembered of a grant that was written must be what a reader in another
// process decodes from its body: else the two would hold different rights.
func TestWhatIsWrittenIsWhatIsRead(t *testing.T) {
	zone := time.FixedZone("east", 3*3600)
	random := &quick.Config{MaxCount: 2_000, Values: func(args []reflect.Value, r *rand.Rand) {
		var g schemas.Grant
		v := reflect.ValueOf(&g).Elem()
		for i := range v.NumField() {
			switch field := v.Field(i); field.Interface().(type) {
			case time.Time:
				at := time.Unix(r.Int63n(1<<36), r.Int63n(1e9)).In(zone)
				if r.Intn(4) == 0 {
					at = time.Now()
				}
				field.Set(reflect.ValueOf(at))
			default:
				if made, ok := quick.Value(field.Type(), r); ok {
					field.Set(made)
				}
				if field.Kind() == reflect.Slice && r.Intn(3) == 0 {
					field.Set(reflect.MakeSlice(field.Type(), 0, 0))
				}
			}
		}
		args[0] = reflect.ValueOf(g)
	}}
	if err := quick.Check(func(g schemas.Grant) bool {
		body, err := schemas.WriteGrant(g)
		if err != nil {
			t.Logf("not written: %v", err)
			return false
		}
		var decoded schemas.Grant
		if err := schemas.Unmarshal(body, &decoded); err != nil {
			t.Logf("not read: %v", err)
			return false
		}
		known, err := schemas.ReadGrant(body)
		if err != nil || !reflect.DeepEqual(known, decoded) {
			t.Logf("remembered %#v, %v\ndecoded %#v", known, err, decoded)
			return false
		}
		return string(schemas.Marshal(decoded)) == string(body)
	}, random); err != nil {
		t.Error(err)
	}
}

// The encoder would mend what is not UTF-8, and the reader get other words than
// were signed.
func TestAGrantThatIsNotTextIsNotWritten(t *testing.T) {
	fields := reflect.TypeFor[schemas.Grant]()
	tried := 0
	for i := range fields.NumField() {
		g := someGrant()
		switch field := reflect.ValueOf(&g).Elem().Field(i); field.Interface().(type) {
		case string:
			field.SetString("a\xffb")
		case []string:
			field.Set(reflect.ValueOf([]string{"fine", "a\xffb"}))
		default:
			continue
		}
		tried++
		if body, err := schemas.WriteGrant(g); err == nil {
			t.Errorf("%s: written as %s", fields.Field(i).Name, body)
		}
	}
	if tried < 18 {
		t.Errorf("%d fields were tried", tried)
	}
	g := someGrant()
	g.Expires = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := schemas.WriteGrant(g); err == nil {
		t.Error("a year of five digits was written")
	}
}

func BenchmarkReadGrant(b *testing.B) {
	body, err := schemas.WriteGrant(someGrant())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := schemas.ReadGrant(body); err != nil {
			b.Fatal(err)
		}
	}
}
