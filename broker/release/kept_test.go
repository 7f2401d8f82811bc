package release

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// storm makes a log of everything that release folds, in an order that a seed
// chooses.
func storm(t *testing.T, seed uint64, n int) *fixture {
	f := newFixture(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	open := func() uint64 {
		if seq, ok := f.core.Oldest(); ok {
			return seq
		}
		return 1
	}
	for i := range n {
		switch rng.IntN(18) {
		case 0, 1:
			e := act("call:buy", "shop")
			e.Expires = f.now.Add(time.Minute)
			f.step(e)
		case 2, 3:
			e := act("send:bob", "bob")
			e.MsgID = fmt.Sprint("m", rng.IntN(20))
			e.Expires = f.now.Add(time.Hour)
			f.step(e)
		case 4:
			f.step(answer("shop", open(), fmt.Sprint("answer ", i)))
		case 5:
			e := act("send:bob", "bob")
			e.Kind, e.Code, e.Reason = schemas.MessageHeld, schemas.CodeHeld, "looks odd"
			e.Expires = f.now.Add(time.Hour)
			f.step(e)
		case 6:
			f.step(schemas.Event{Kind: schemas.ReviewApproved, Agent: "alice", Ref: open(), Actor: "op"})
		case 7:
			f.step(schemas.Event{Kind: schemas.ReviewDenied, Agent: "alice", Ref: open(), Reason: "no", Actor: "op"})
		case 8:
			f.step(schemas.Event{Kind: schemas.MessageExpired, Agent: "alice", Ref: open(), Code: 504, Reason: "late", Trace: trace})
		case 9:
			f.step(schemas.Event{Kind: schemas.AgentPaused, Agent: "alice", Reason: "look", Actor: "op"})
		case 10:
			f.step(schemas.Event{Kind: schemas.AgentResumed, Agent: "alice", Reason: "fine", Actor: "op"})
			f.grant("alice", "j1")
		case 12:
			f.step(schemas.Event{Kind: schemas.PolicyLockdown, Agent: schemas.Fleet, Reason: "fire", Actor: "op"})
			if rng.IntN(2) == 0 {
				f.step(schemas.Event{Kind: schemas.PolicyLifted, Agent: schemas.Fleet, Reason: "out", Actor: "op"})
			}
		case 13: // what alice hands on to eve
			f.step(schemas.Event{Kind: schemas.TokenIssued, Agent: "eve", Operation: "sub", JTI: fmt.Sprint("k", i), Data: schemas.Marshal(schemas.Grant{
				JTI: fmt.Sprint("k", i), Agent: "eve", Operation: "sub", Scope: []string{"call:llm"}, NotBefore: epoch, Expires: epoch.Add(time.Hour), MaxTokens: int64(rng.IntN(60)),
				ParentAgent: "alice", ParentOperation: "op", Parent: "j1", Act: []string{"alice"}, TraceID: trace.ID, Token: "t"})})
		case 14, 15:
			e := act("call:llm", "model")
			e.Expires, e.Reserve = f.now.Add(time.Minute), int64(1+rng.IntN(30))
			if rng.IntN(2) == 0 {
				e.Agent, e.Operation = "eve", "sub"
				if g := f.core.state.GrantOf("eve", "sub"); g != nil {
					e.JTI = g.JTI
				}
			}
			f.step(e)
		case 16:
			e := answer("model", open(), fmt.Sprint("text ", i))
			e.Action, e.Tokens, e.Final = schemas.Action{Verb: "call", Resource: "llm"}, int64(rng.IntN(40)), rng.IntN(3) > 0
			f.step(e)
		case 17:
			switch rng.IntN(4) {
			case 0:
				f.step(schemas.Event{Kind: schemas.TokenRevoked, Agent: "alice", JTI: "j1", Reason: "stolen", Actor: "op"})
				f.grant("alice", "j1")
			case 1:
				f.step(schemas.Event{Kind: schemas.OperationEnded, Agent: "eve", Operation: "sub", Reason: "done"})
			case 2:
				f.step(schemas.Event{Kind: schemas.MessageCancelled, Agent: "alice", Ref: open(), Code: 410, Reason: "x", Trace: trace})
			case 3:
				f.step(schemas.Event{Kind: schemas.AgentRemoved, Agent: "eve"})
				f.declare(schemas.Principal{ID: "eve", Kind: schemas.KindAgent})
			}
		case 11:
			f.step(schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: f.seq})
		}
	}
	return f
}

// TestAKeptFoldIsExactlyTheFold: what a start goes on from must be what it
// would have come to from the first event, to the byte, or a restart would
// decide otherwise than the log.
func TestAKeptFoldIsExactlyTheFold(t *testing.T) {
	for seed := range uint64(20) {
		f := storm(t, seed, 300)
		whole := f.core.Marshal()
		for _, cut := range []int{0, 1, 8, 57, 150, len(f.log) - 1, len(f.log)} {
			c := NewCore()
			for _, e := range f.log[:cut] {
				if _, err := c.Step(e); err != nil {
					t.Fatal(err)
				}
			}
			kept := c.Marshal()
			c, err := OpenCore(kept)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.Marshal(), kept) {
				t.Fatalf("seed %d: a fold of %d events is kept as other bytes than it was read from", seed, cut)
			}
			full := NewCore()
			for i, e := range f.log {
				want, err := full.Step(e)
				if err != nil {
					t.Fatal(err)
				}
				if i < cut {
					continue
				}
				got, err := c.Step(e)
				if err != nil {
					t.Fatal(err)
				}
				if fmt.Sprintf("%+v", show(got)) != fmt.Sprintf("%+v", show(want)) {
					t.Fatalf("seed %d, kept at %d: event %d does\n%v\ninstead of\n%v", seed, cut, e.Seq, show(got), show(want))
				}
			}
			if !bytes.Equal(c.Marshal(), whole) {
				t.Fatalf("seed %d: going on from a fold of %d events comes to another state", seed, cut)
			}
			late := f.now.Add(30 * time.Hour)
			if got, want := show(c.Due(late)), show(full.Due(late)); len(got) != len(want) {
				t.Fatalf("seed %d, kept at %d: %d effects are due, and %d without a restart", seed, cut, len(got), len(want))
			}
		}
	}
}

// TestEveryFieldOfTheCoreIsKept: as that of schemas.State.
func TestEveryFieldOfTheCoreIsKept(t *testing.T) {
	for _, c := range []struct {
		of   reflect.Type
		want []string
	}{
		{reflect.TypeFor[Core](), []string{"state", "open", "pairs", "ids", "due"}}, // due is made from open
		{reflect.TypeFor[item](), []string{"ev", "stage", "tries", "next", "told", "first", "grant", "reserve", "endKind", "refusal"}},
		{reflect.TypeFor[seen](), []string{"keys", "order"}},
		{reflect.TypeFor[firstUse](), []string{"digest", "seq", "time"}},
	} {
		var got []string
		for i := range c.of.NumField() {
			got = append(got, c.of.Field(i).Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s has the fields %v; kept are %v", c.of, got, c.want)
		}
	}
}

// show writes effects without pointers.
func show(effects []Effect) (out []string) {
	for _, e := range effects {
		switch e := e.(type) {
		case Deliver:
			out = append(out, fmt.Sprintf("deliver %+v to %s under %q, attempt %d", *e.Event, e.To, e.Token, e.Attempt))
		case Emit:
			out = append(out, fmt.Sprintf("emit %+v", *e.Event))
		default:
			out = append(out, fmt.Sprintf("%+v", e))
		}
	}
	return out
}

// TestTheKeeperStaysBehindTheMark: what no mark covers may not have been
// carried out. A fold that were ahead of it would lose it for good.
func TestTheKeeperStaysBehindTheMark(t *testing.T) {
	f := newFixture(t)
	k := keeper{core: NewCore()}
	for _, e := range f.log {
		k.take(e)
	}
	if due := k.due(); len(due) != 0 {
		t.Fatalf("%d events would be folded without a mark", len(due))
	}
	marked := f.seq
	f.step(act("call:buy", "shop"))
	f.step(schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Ref: marked})
	for _, e := range f.log[marked:] {
		k.take(e)
	}
	if err := k.fold(k.due()); err != nil {
		t.Fatal(err)
	}
	if k.core.Seq() != marked || len(k.core.open) != 0 || len(k.queue) != 2 {
		t.Fatalf("folded up to %d with %d open, %d waiting; the mark is at %d", k.core.Seq(), len(k.core.open), len(k.queue), marked)
	}
	// A mark that names what comes behind it is no more than itself.
	k.take(&schemas.Event{Kind: schemas.ReleaseMark, Agent: schemas.Fleet, Seq: f.seq + 1, Ref: 1 << 60})
	if k.mark != f.seq+1 {
		t.Fatalf("the mark is %d", k.mark)
	}
}

func TestAKeptFoldOfAnotherFormIsRefused(t *testing.T) {
	kept, version := string(storm(t, 1, 100).core.Marshal()), fmt.Sprintf(`"version":%d`, foldVersion)
	for name, bad := range map[string]string{
		"another version": strings.Replace(kept, version, `"version":1`, 1),
		"an unknown key":  strings.Replace(kept, version, version+`,"more":0`, 1),
		"cut short":       kept[:len(kept)-2],
		"no state":        "{" + version + "}",
		"a queue of what is not open": strings.Replace(string(NewCore().Marshal()), `"pairs":null`,
			`"pairs":[{"from":"a","to":"b","queue":[7]}]`, 1),
	} {
		if _, err := OpenCore([]byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestForgetLeavesNothingOfAnErasedAgent: its task stands in its grant.
func TestForgetLeavesNothingOfAnErasedAgent(t *testing.T) {
	f := newFixture(t)
	e := act("send:bob", "bob")
	e.MsgID = "marker-id"
	f.step(e)
	if err := f.core.Forget("alice"); err == nil {
		t.Fatal("an agent that is at work was forgotten")
	}
	f.step(schemas.Event{Kind: schemas.AgentKilled, Agent: "alice", Reason: "erase", Actor: "op"})
	if err := f.core.Forget("alice"); err == nil {
		t.Fatal("an agent of which something is open was forgotten")
	}
	for seq := range f.core.open {
		f.step(schemas.Event{Kind: schemas.MessageCancelled, Agent: "alice", Ref: seq, Code: 410, Reason: "killed", Trace: trace})
	}
	if err := f.core.Forget("alice"); err != nil {
		t.Fatal(err)
	}
	kept := string(f.core.Marshal())
	for _, trait := range []string{"alice", "marker-id", "token-j1"} {
		if strings.Contains(kept, trait) {
			t.Errorf("the kept fold still holds %q", trait)
		}
	}
}
