package capability

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func cached(c *Cache, token string) bool { return c.find(token) != nil }

func TestACachedTokenIsJudgedAnewEachTime(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 8)
	token := sign(t, sample())
	if _, err := c.Verify(token, shown()); err != nil {
		t.Fatal(err)
	}
	if !cached(c, token) {
		t.Fatal("a good token is not remembered")
	}
	for name, f := range map[string]struct {
		change func(*Expect)
		want   error
	}{
		"as before":           {func(*Expect) {}, nil},
		"at exp":              {func(e *Expect) { e.Time = issued.Add(5 * time.Minute) }, ErrExpired},
		"revoked meanwhile":   {func(e *Expect) { e.Revoked = func(string) bool { return true } }, ErrRevoked},
		"from another key":    {func(e *Expect) { e.PublicKey = other }, ErrPossession},
		"at another service":  {func(e *Expect) { e.Audience = "warehouse" }, ErrAudience},
		"for something else":  {func(e *Expect) { e.Scope = "read:data.other" }, ErrScope},
		"for what is denied":  {func(e *Expect) { e.Tool = "bash" }, ErrForbidden},
		"with nothing to pay": {func(e *Expect) { e.Metered, e.Spent = true, 50000 }, ErrBudget},
		"before it is valid":  {func(e *Expect) { e.Time = issued.Add(-time.Second) }, ErrNotYetValid},
	} {
		want := shown()
		f.change(&want)
		_, err := c.Verify(token, want)
		t.Run(name, func(t *testing.T) { onlyMatches(t, err, f.want) })
	}
}

// Whoever knows a token that was seen tries one that differs from it in a
// single character.
func TestOnlyTheVeryTokenIsRemembered(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 8)
	token := sign(t, sample())
	if _, err := c.Verify(token, shown()); err != nil {
		t.Fatal(err)
	}
	for i := range token {
		other := byte('A')
		if token[i] == other {
			other = 'B'
		}
		if _, err := c.Verify(token[:i]+string(other)+token[i+1:], shown()); err == nil {
			t.Fatalf("character %d changed, and it was taken", i)
		}
	}
	if _, err := c.Verify(token+"A", shown()); err == nil {
		t.Error("a longer one was taken")
	}
}

func TestARemovedKeyEndsItsCache(t *testing.T) {
	token := sign(t, sample())
	if _, err := NewCache(verifierOf(t, public(fixedKey(1))), 8).Verify(token, shown()); err != nil {
		t.Fatal(err)
	}
	_, err := NewCache(verifierOf(t, public(fixedKey(2))), 8).Verify(token, shown())
	onlyMatches(t, err, ErrUnknownKey)
}

func TestNothingRefusedIsRemembered(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 8)
	token := sign(t, sample())
	late := shown()
	late.Time = issued.Add(time.Hour)
	for _, try := range []struct {
		token string
		want  Expect
	}{{token, late}, {token[:len(token)-4] + "AAAA", shown()}, {"e30.e30.e30", shown()}} {
		if _, err := c.Verify(try.token, try.want); err == nil {
			t.Fatal("it was taken")
		}
		if len(c.young)+len(c.old) != 0 {
			t.Errorf("%d are remembered", len(c.young)+len(c.old))
		}
	}
}

func TestACacheIsBounded(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 3)
	var tokens []string
	for n := range 20 {
		claims := sample()
		claims.JTI = fmt.Sprint("j-", n)
		tokens = append(tokens, sign(t, claims))
		if _, err := c.Verify(tokens[n], shown()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Verify(tokens[0], shown()); err != nil { // in use all the time
			t.Fatal(err)
		}
		if len(c.young) > 3 || len(c.old) > 3 {
			t.Fatalf("%d and %d are remembered", len(c.young), len(c.old))
		}
	}
	if !cached(c, tokens[0]) || cached(c, tokens[1]) || !cached(c, tokens[19]) {
		t.Error("what is in use was forgotten, or what is not was kept")
	}
}

// A handler that changes its claims changes nobody else's.
func TestClaimsFromACacheAreTheCallersOwn(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 8)
	token, want := sign(t, sample()), sample()
	for range 2 {
		got, err := c.Verify(token, shown())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(normal(*got), normal(want)) {
			t.Fatalf("%+v, want %+v", got, want)
		}
		got.Scope, got.Tools[0], got.ForbiddenTools[0], got.Task.Text, got.Actor.Actor.Subject = "call:bash", "bash", "none", "x", "mallory"
		got.ForbiddenTools = got.ForbiddenTools[:0]
	}
}

func TestACacheServesManyAtOnce(t *testing.T) {
	c := NewCache(verifierOf(t, public(fixedKey(1))), 2)
	var tokens []string
	for n := range 6 {
		claims := sample()
		claims.JTI = fmt.Sprint("j-", n)
		tokens = append(tokens, sign(t, claims))
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 100 {
				i := (n + w) % len(tokens)
				got, err := c.Verify(tokens[i], shown())
				if err != nil || got.JTI != fmt.Sprint("j-", i) {
					t.Errorf("token %d: %v %v", i, got, err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCache(b *testing.B) {
	for _, size := range []int{0, 2000} {
		claims := sample()
		claims.Task = NewTask("Summarise the sales of Q1." + strings.Repeat(" More.", size/6))
		token := sign(b, claims)
		c := NewCache(verifierOf(b, public(fixedKey(1))), 8)
		want := shown()
		want.Scope = "read:data.sales_q1_2026"
		b.Run(fmt.Sprint(len(token), "B"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Verify(token, want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
