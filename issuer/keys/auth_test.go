package keys

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
)

// takenInAUTH are the keys whose users a server would ask about that starts now.
func takenInAUTH(t *testing.T, data string) []string {
	t.Helper()
	trust, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeAccountClaims(trust.JWTs[trust.Accounts[AUTH]])
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(c.SigningKeys, func(_ string, s jwt.Scope) bool { return s == nil })
	return slices.Sorted(maps.Keys(c.SigningKeys))
}

// The services' users are made anew, and with them AUTH, at each step of a
// rotation: agents' users go on counting as they did, the key that was replaced
// does not come back, and a list of keys says what counts.
func TestAUTHIsMadeAnewWithTheKeysThatCount(t *testing.T) {
	data := initialised(t)
	if err := WriteTLS(data, map[string][]byte{"tls.json": []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSecrets(data)
	if err != nil {
		t.Fatal(err)
	}
	m, until := s.Masters, time.Now().Add(48*time.Hour)
	for _, step := range []struct {
		name string
		do   func() error
		keys int
		kind string
	}{
		{"before", func() error { return nil }, 1, "agents' users in AUTH"},
		{"with a successor", func() error { return m.Succeed(false, "root/alice", "test") }, 2, "agents' users in AUTH, next"},
		{"with a former one", func() error { return m.Promote(until) }, 2, "agents' users in AUTH, verifies only"},
		{"without it", m.Drop, 1, "agents' users in AUTH"},
		{"compromised", func() error { return m.Succeed(true, "root/alice", "test") }, 1, "agents' users in AUTH"},
	} {
		if err := errors.Join(step.do(), m.Forget(), Renew(data)); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		again, err := OpenSecrets(data)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		pairs, err := again.Asking()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range pairs {
			want = append(want, p.Public())
		}
		slices.Sort(want)
		if got := takenInAUTH(t, data); len(want) != step.keys || !slices.Equal(got, want) {
			t.Errorf("%s: the server takes users of %v, the issuer those of %v", step.name, got, want)
		}
		list, err := List(data, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, k := range list {
			if strings.HasPrefix(k.Kind, "agents' users in AUTH") && slices.Contains(want, k.ID) {
				n++
			}
		}
		if n != step.keys || !slices.ContainsFunc(list, func(k Key) bool { return k.Kind == step.kind }) {
			t.Errorf("%s: listed: %+v", step.name, list)
		}
		_, err = os.Stat(filepath.Join(data, Dir, askFile))
		if gone := errors.Is(err, fs.ErrNotExist); gone != (step.name == "without it" || step.name == "compromised") {
			t.Errorf("%s: the first key's file: %v", step.name, err)
		}
	}
}
