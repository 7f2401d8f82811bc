package schemas_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

func someGrant() schemas.Grant {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	return schemas.Grant{JTI: "j1", Agent: "ana", Operation: "report", Scope: []string{"send:bob", "call:echo"},
		ForbiddenTools: []string{"bash"}, NotBefore: at, Expires: at.Add(time.Hour), TraceID: "0123456789abcdef0123456789abcdef",
		PublicKey: "U1", Act: []string{"cleo"}, Notes: []string{"a note"}, IssuedBy: "op", Token: "a.b.c"}
}

// One part of the control plane that changes what it read must not change what
// another reads: a scope that release wrote over would be one that intake grants.
func TestAGrantReadTwiceIsNobodyElses(t *testing.T) {
	want := someGrant()
	body := schemas.Marshal(want)
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
	body := schemas.Marshal(someGrant())
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
	body := schemas.Marshal(g)
	if _, err := schemas.ReadGrant(body); err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(body), "send:bob", "send:bop", 1)
	copy(body, other) // over the very bytes that were read
	got, err := schemas.ReadGrant(body)
	if err != nil || got.Scope[0] != "send:bop" {
		t.Fatalf("read %v, %v", got.Scope, err)
	}
	got, err = schemas.ReadGrant(schemas.Marshal(g))
	if err != nil || got.Scope[0] != "send:bob" {
		t.Fatalf("read %v, %v", got.Scope, err)
	}
	for range 2 {
		if _, err := schemas.ReadGrant([]byte(strings.Replace(other, `"jti"`, `"JTI"`, 1))); err == nil {
			t.Fatal("a key that differs in case was taken")
		}
	}
}

func BenchmarkReadGrant(b *testing.B) {
	body := schemas.Marshal(someGrant())
	for b.Loop() {
		if _, err := schemas.ReadGrant(body); err != nil {
			b.Fatal(err)
		}
	}
}
